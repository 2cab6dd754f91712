"""transformers' Llama on torch: one static batch, greedy, fp32.

python transformers_peer.py FOLDER [--streams 16] [--prompt 128] [--tokens 128] [--threads 2]
"""

import time
from dataclasses import replace

import torch
from transformers import LlamaForCausalLM
from workload import Workload, read_arguments, report


@torch.inference_mode()
def run(model: LlamaForCausalLM, work: Workload) -> tuple[float, list[float]]:
    """Seconds in all, and until each sequence's first token."""
    ids = torch.tensor(work.prompts(model.config.vocab_size))
    began = time.perf_counter()
    output = model(ids, use_cache=True, logits_to_keep=1)
    ids = output.logits[:, -1:].argmax(-1)
    first = time.perf_counter() - began
    for _ in range(work.tokens - 1):
        output = model(ids, past_key_values=output.past_key_values, use_cache=True)
        ids = output.logits[:, -1:].argmax(-1)
    return time.perf_counter() - began, [first] * work.streams


if __name__ == "__main__":
    path, work, _ = read_arguments(__doc__)
    torch.set_num_threads(work.threads)
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.train(False)
    run(model, replace(work, tokens=8))
    report(work, *run(model, work))

"""onnxruntime-genai in process: one static batch, greedy.

    python genai_peer.py FOLDER [--streams 16] [--prompt 128] [--tokens 128] [--threads 2]

FOLDER was written by its own model builder. All sequences begin and end together, which is what it can do on a CPU.
"""

import time
from dataclasses import replace

import numpy as np
import onnxruntime_genai as og
from workload import Workload, read_arguments, report


def run(model: og.Model, vocabulary: int, work: Workload) -> tuple[float, list[float]]:
    """Seconds in all, and until each sequence's first token."""
    params = og.GeneratorParams(model)
    length = work.prompt + work.tokens
    params.set_search_options(
        do_sample=False, batch_size=work.streams, min_length=length, max_length=length, past_present_share_buffer=True
    )
    prompts = np.array(work.prompts(vocabulary), np.int32)
    began = time.perf_counter()
    generator = og.Generator(model, params)
    generator.append_tokens(prompts if work.streams > 1 else prompts[0])
    generator.generate_next_token()
    first = time.perf_counter() - began
    for _ in range(work.tokens - 1):
        generator.generate_next_token()
    return time.perf_counter() - began, [first] * work.streams


if __name__ == "__main__":
    path, work, options = read_arguments(__doc__)
    config = og.Config(path)
    threads = f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {work.threads}}}}}}}}}'
    config.overlay(threads)
    model = og.Model(config)
    run(model, 49_152, replace(work, tokens=8))
    report(work, *run(model, 49_152, work))

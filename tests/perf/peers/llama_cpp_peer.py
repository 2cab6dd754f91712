"""llama.cpp in process, at its best: one batch for all sequences, no server, greedy choice by numpy.

    python llama_cpp_peer.py FILE.gguf [--streams 16] [--prompt 128] [--tokens 128] [--threads 2]

Prompts are read in calls of up to 512 tokens, llama.cpp's own unit of work, so that the first ones have their first token
before the last are read.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from llama_cpp import llama_cpp as ll
from numpy.typing import NDArray
from workload import Workload, read_arguments, report

UNIT = 512
Floats = NDArray[np.float32]


class Peer:
    def __init__(self, path: str, work: Workload) -> None:
        ll.llama_backend_init()
        self.model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        self.vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        params = ll.llama_context_default_params()
        params.n_ctx = work.streams * (work.prompt + work.tokens)
        params.n_batch = params.n_ubatch = UNIT
        params.n_threads = params.n_threads_batch = work.threads
        params.n_seq_max = work.streams
        self.context = ll.llama_init_from_model(self.model, params)
        self.batch = ll.llama_batch_init(UNIT, 0, work.streams)

    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """Rows of (token, sequence, position, whether its next token is wanted) -> the likeliest next tokens."""
        batch = self.batch
        for n, (token, sequence, position, wanted) in enumerate(rows):
            batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, position, 1
            batch.seq_id[n][0], batch.logits[n] = sequence, int(wanted)
        batch.n_tokens = len(rows)
        if code := ll.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode failed with {code}")
        wanted_rows = [n for n, row in enumerate(rows) if row[3]]
        return [int(self.logits(n).argmax()) for n in wanted_rows]

    def logits(self, row: int) -> Floats:
        return np.ctypeslib.as_array(ll.llama_get_logits_ith(self.context, row), (self.vocabulary,))

    def run(self, work: Workload) -> tuple[float, list[float]]:
        """Seconds in all, and until each sequence's first token."""
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)
        prompts = work.prompts(self.vocabulary)
        began = time.perf_counter()
        first, chosen = [], []
        together = max(1, UNIT // work.prompt)
        for start in range(0, work.streams, together):
            part = range(start, min(start + together, work.streams))
            rows = [(t, s, i, i == work.prompt - 1) for s in part for i, t in enumerate(prompts[s])]
            chosen += self.decode(rows)
            first += [time.perf_counter() - began] * len(part)
        for position in range(work.prompt, work.prompt + work.tokens - 1):
            chosen = self.decode([(token, sequence, position, True) for sequence, token in enumerate(chosen)])
        return time.perf_counter() - began, first


if __name__ == "__main__":
    path, work, _ = read_arguments(__doc__)
    peer = Peer(path, work)
    peer.run(replace(work, tokens=8))
    report(work, *peer.run(work))

"""A sequence-to-sequence model in process: 16 streams, one stream, and torch's batched greedy loop over the same sources.

    python -m tests.perf.translation CHECKPOINT MODELS/NAME/VERSION [--streams 16] [--sources 320] [--rounds 3] [--threads N]

CHECKPOINT is the one that the bundle was exported from; sources come from its held_out.txt. Each stream takes the next source as
soon as its answer is over, and torch reads as many at a time as there are streams. The three take turns within a round. Counted
are output tokens with their end token; ratios are medians over the rounds, also of processor time, which other programs on the
machine change little. Before that: what a step takes of one and of all streams, by the room that their pool has for sources, and
reading a source; milliseconds of the fastest of 50.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from polyhead.export.seq2seq.verify import read_sources
from polyhead.models.checkpoint import load_checkpoint
from polyhead.models.seq2seq import RNNSeq2Seq, TransformerSeq2Seq
from polyhead.server.bundle import read_bundle
from polyhead.server.engine.generator import Generator
from polyhead.server.engine.scheduler import GeneratorLimits
from polyhead.server.engine.sequence import GenerationRequest, Sampling, Stopping
from polyhead.server.runtime import threads
from polyhead.server.runtime.seq2seq import Seq2SeqDecoder
from polyhead.server.runtime.seq2seq_memory import pool_lengths
from polyhead.server.tokenizer import Tokenizer
from polyhead.v1 import bundle_pb2
from tests.observers import Unwatched

LIMITS = GeneratorLimits(max_queue_requests=1024, max_queue_tokens=2**20, prefill_budget_tokens=32)


class Cost(NamedTuple):
    """Of a token, in seconds."""

    time: float
    processor: float


class Stopwatch:
    """Runs from its beginning."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def cost(self, tokens: int) -> Cost:
        return Cost((time.perf_counter() - self._began[0]) / tokens, (time.process_time() - self._began[1]) / tokens)


async def served(engine: Generator, sources: list[tuple[int, ...]], streams: int) -> Cost:
    waiting, tokens = iter(sources), 0
    stopping, sampling = Stopping(engine.capacity), Sampling(seed=0, temperature=0.0)

    async def stream() -> None:
        nonlocal tokens
        for source in waiting:
            async for piece in engine.submit(GenerationRequest(source, sampling, stopping)):
                tokens += len(piece.token_ids)

    watch = Stopwatch()
    await asyncio.gather(*(stream() for _ in range(streams)))
    return watch.cost(tokens)


def in_torch(
    model: RNNSeq2Seq | TransformerSeq2Seq, sources: list[tuple[int, ...]], rows: int, begin: int, end: int
) -> Cost:
    tokens, watch = 0, Stopwatch()
    for batch in batches(sources, rows):
        lengths = torch.tensor([len(source) for source in batch])
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(source) for source in batch], batch_first=True)
        answers = model.greedy(ids, lengths, model.config.max_target_tokens, begin, end)
        tokens += sum(len(answer) + 1 for answer in answers)
    return watch.cost(tokens)


def batches(sources: list[tuple[int, ...]], rows: int) -> Iterator[list[tuple[int, ...]]]:
    for i in range(0, len(sources), rows):
        yield sources[i : i + rows]


def print_steps(decoder: Seq2SeqDecoder, rows: int) -> None:
    for room in pool_lengths(decoder.longest_prompt):
        source = np.full(room, decoder.start_token_id)
        read = fastest(lambda source=source: decoder.read(0, [source]))  # type: ignore[misc]
        steps = []
        for count in (1, rows):
            read_sources(decoder, [source.tolist()] * count)
            tokens, held = np.ones(count, np.int64), np.full(count, room)
            steps.append(fastest(lambda tokens=tokens, held=held: decoder.decode(tokens, held, 1)))  # type: ignore[misc]
        print(
            f"room for {room} tokens: reading so many {read:.2f} ms, a step of 1 row {steps[0]:.2f}, of {rows} {steps[1]:.2f}"
        )
    decoder.memory.keep_first(0)


def fastest(work: Callable[[], object]) -> float:
    """Milliseconds."""
    times = []
    for _ in range(50):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1000 * min(times)


async def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(threads.configure(options.threads))
    bundle = read_bundle(options.bundle)
    manifest = bundle.manifest
    model = load_checkpoint(options.checkpoint)[1]
    assert isinstance(model, RNNSeq2Seq | TransformerSeq2Seq)
    lines = (options.checkpoint / "held_out.txt").read_text("utf-8").splitlines()
    path = bundle.folder / (manifest.seq2seq.source_tokenizer or manifest.tokenizer.file)
    read = Tokenizer.from_file(path, bundle_pb2.Tokenizer())
    sources = [tuple(read.encode(line.partition("\t")[0])) for line in lines[: options.sources]]
    decoder = Seq2SeqDecoder(
        bundle.folder,
        manifest,
        slots=options.streams,
        capacity=manifest.limits.max_tokens,
        source_capacity=manifest.seq2seq.max_source_tokens,
    )
    print_steps(decoder, options.streams)
    engine = Generator(decoder, Tokenizer.from_file(bundle.tokenizer, manifest.tokenizer), LIMITS, Unwatched())
    engine.start()
    begin, end = manifest.seq2seq.start_token_id, manifest.tokenizer.eos_token_ids[0]
    few = sources[: max(1, len(sources) // 8)]
    rounds: list[tuple[Cost, Cost, Cost]] = []
    for number in range(options.rounds + 1):
        one, many = await served(engine, few, 1), await served(engine, sources, options.streams)
        torch_ = in_torch(model, sources, options.streams, begin, end)
        if number:  # the first round warms up
            rounds.append((one, many, torch_))
            alone, together, peer = (1 / cost.time for cost in rounds[-1])
            print(
                f"round {number}: one stream {alone:,.0f}, {options.streams} streams {together:,.0f}, torch {peer:,.0f} tokens/s",
                flush=True,
            )
    engine.close()
    for number, name in enumerate(Cost._fields):
        of_one = median(one[number] / many[number] for one, many, _ in rounds)
        of_torch = median(torch_[number] / many[number] for _, many, torch_ in rounds)
        print(
            f"{options.streams} streams, by {name}: {of_one:.2f} times one stream, {of_torch:.2f} times torch's greedy loop"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--sources", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    asyncio.run(main(parser.parse_args()))

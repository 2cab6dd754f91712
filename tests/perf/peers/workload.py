"""What every peer is given, and what it reports: prompts of random tokens all at once, greedy answers of a fixed length.

No package but numpy, so that each peer can run in an environment of its own.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from statistics import mean

import numpy as np


@dataclass(frozen=True)
class Workload:
    """`streams` prompts of `prompt` tokens, each answered with `tokens` tokens, on `threads` threads."""

    streams: int
    prompt: int
    tokens: int
    threads: int

    def prompts(self, vocabulary: int) -> list[list[int]]:
        """(streams, prompt) ids, the same for everyone; the first few ids, which may be special, are left out."""
        rows: list[list[int]] = np.random.default_rng(0).integers(10, vocabulary, (self.streams, self.prompt)).tolist()
        return rows


@dataclass(frozen=True)
class Outcome:
    """Of one run, without loading and warm-up."""

    seconds: float
    """From giving the prompts to the last token of all."""
    tokens_per_second: float
    """Output tokens over those seconds, prefill included."""
    time_to_first_token: float
    """Seconds, mean over the streams."""


def read_arguments(description: str | None) -> tuple[str, Workload, argparse.Namespace]:
    """The model's path, the workload, and the rest, from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    return options.model, Workload(options.streams, options.prompt, options.tokens, options.threads), options


def report(work: Workload, seconds: float, first_tokens: list[float]) -> None:
    """Print the outcome as one line of JSON."""
    outcome = Outcome(seconds, work.streams * work.tokens / seconds, mean(first_tokens))
    print(json.dumps(asdict(outcome)), flush=True)

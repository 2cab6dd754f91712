"""What a server takes in memory beside the weights that it serves: resident, by kind, when a decoder is loaded and when all its
slots have been used.

    python -m tests.perf.memory MODELS [--slots 16] [--tokens 64]

MODELS is a models folder with one decoder. `rest` is what is neither weights nor slots: Python, gRPC, tokenizer, grammars, and what
onnxruntime keeps for itself. The limit is 1.3 times the weights, beside the slots (docs/decisions.md).
"""

import argparse
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from polyhead.client import Client
from polyhead.server.bundle import read_manifest
from polyhead.server.loader import BYTES
from polyhead.server.runtime.decoder import LANES
from polyhead.v1 import bundle_pb2
from tests.perf.served import Served, served

LIMIT = 1.3
PROMPT = 32


def weights_bytes(manifest: bundle_pb2.Bundle) -> int:
    """Of the graphs and their weights."""
    return sum(file.size for file in manifest.files if not file.path.endswith((".json", ".md")))


def slot_bytes(cache: bundle_pb2.Cache, slots: int, tokens: int) -> int:
    """Of so many tokens in every slot and every lane."""
    token = 2 * cache.layers * cache.kv_heads * cache.head_size
    return tokens * token * (slots * BYTES[cache.type] + min(slots, LANES) * BYTES["float"])


def resident(server: Served) -> dict[str, int]:
    """Bytes: all, of which anonymous, of which of files."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return {
        name: 1024 * int(re.findall(rf"^{name}:\s+(\d+)", text, re.M)[0]) for name in ("VmRSS", "RssAnon", "RssFile")
    }


def use_all_slots(server: Served, slots: int, tokens: int) -> None:
    """An answer in each slot at a time, `tokens` long with its prompt."""
    with Client(server.target, timeout=300) as client, ThreadPoolExecutor(slots) as threads:
        options = {"max_tokens": tokens - PROMPT, "ignore_eos": True}
        answers = [
            threads.submit(client.generate([5 + i] * PROMPT, **options).result)  # type: ignore[arg-type]
            for i in range(slots)
        ]
        for answer in answers:
            answer.result()


def report(when: str, found: dict[str, int], weights: int, slots: int) -> None:
    total = found["VmRSS"]
    ratio = (total - slots) / weights
    kinds = f"anonymous {found['RssAnon'] / 1e6:.0f}, of files {found['RssFile'] / 1e6:.0f}"
    print(
        f"{when}: {total / 1e6:.0f} MB ({kinds}) = weights {weights / 1e6:.0f} + slots {slots / 1e6:.0f} + rest "
        f"{(total - weights - slots) / 1e6:.0f}; without slots {ratio:.2f} times the weights, the limit is {LIMIT}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="in each slot")
    options = parser.parse_args()
    (bundle,) = options.models.glob("*/[0-9]*/bundle.json")
    manifest = read_manifest(bundle.parent)
    weights = weights_bytes(manifest)
    with tempfile.TemporaryDirectory() as log, served(options.models, Path(log), slots=options.slots) as server:
        report("loaded", resident(server), weights, 0)
        use_all_slots(server, options.slots, options.tokens)
        report("used", resident(server), weights, slot_bytes(manifest.cache, options.slots, options.tokens))


if __name__ == "__main__":
    main()

"""A tiny decoder through the real exporter, for tests of the engine that need no bundle."""

import math
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import onnx_ir as ir
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from polyhead.export.own import OwnDecoder
from polyhead.export.to_onnx import export_decoder
from polyhead.models.gpt import GPT, GPTConfig
from polyhead.server.constraints import GrammarCompiler
from polyhead.server.engine.scheduler import GeneratorLimits
from polyhead.server.runtime import threads
from polyhead.server.runtime.decoder import Decoder, StepOutput
from polyhead.server.tokenizer import Tokenizer
from polyhead.v1 import bundle_pb2

VOCABULARY = 300
CAPACITY = 256
CHUNK = 16
END = 299


LIMITS = GeneratorLimits(max_queue_requests=100, max_queue_tokens=100_000, prefill_budget_tokens=256)


@cache
def tiny_gpt(vocabulary: int = VOCABULARY) -> GPT:
    """Widths that no vector register divides, fewer key than query heads, and weights large enough for varied answers."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocabulary, CAPACITY, layers=2, heads=6, kv_heads=2, width=96, hidden=173)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


@cache
def tiny_graph(vocabulary: int = VOCABULARY) -> Path:
    path = Path(mkdtemp(prefix="polyhead-test-")) / "decoder.onnx"
    ir.save(export_decoder(OwnDecoder(tiny_gpt(vocabulary))), path)
    return path


def tiny_manifest(vocabulary: int = VOCABULARY) -> bundle_pb2.Bundle:
    config = tiny_gpt(vocabulary).config
    limits = bundle_pb2.Limits(max_tokens=CAPACITY, vocabulary_size=vocabulary, prefill_chunk=CHUNK)
    slots = bundle_pb2.Cache(layers=config.layers, kv_heads=config.kv_heads, head_size=config.head_size, type="float")
    return bundle_pb2.Bundle(task=bundle_pb2.TASK_GENERATE, limits=limits, cache=slots)


def tiny_decoder(slots: int = 4, prefix_slots: int = 0, vocabulary: int = VOCABULARY) -> Decoder:
    threads.configure(None)
    graph, manifest = tiny_graph(vocabulary), tiny_manifest(vocabulary)
    return Decoder(graph, manifest, slots=slots, capacity=CAPACITY, prefix_slots=prefix_slots)


class Faulty(Decoder):
    """Breaks from some step on: row 1 gets logits that are no numbers, or the call itself fails."""

    calls = 0
    break_row = break_call = 10_000

    def decode(self, *args: Any, **kwargs: Any) -> StepOutput:
        self.calls += 1
        if self.calls == self.break_call:
            raise RuntimeError("the call failed")
        out = super().decode(*args, **kwargs)
        if self.calls == self.break_row:
            out.logsumexp[1] = math.nan
        return out


def byte_tokenizer(end: int | None = None) -> Tokenizer:
    """One token a byte, and 44 more without text; `end` becomes the end token."""
    return Tokenizer(_byte_library(), bundle_pb2.Tokenizer(eos_token_ids=[] if end is None else [end]))


@cache
def byte_grammars() -> GrammarCompiler:
    """For the byte tokenizer, with END as its end token."""
    path = Path(mkdtemp(prefix="polyhead-test-")) / "tokenizer.json"
    _byte_library().save(str(path))
    return GrammarCompiler(path, VOCABULARY, frozenset({END}))


def _byte_library() -> tokenizers.Tokenizer:
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([f"<{i}>" for i in range(len(vocabulary), VOCABULARY)])
    return library

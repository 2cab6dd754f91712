"""Models of sizes that no vector register divides, and their graphs, exported once a test run."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import onnx_ir as ir
import torch
from torch import nn

from polyhead.export.own import OwnDecoder, OwnEncoder
from polyhead.export.to_onnx import export_decoder, export_encoder
from polyhead.models.encoder import Classifier, ClassifierConfig, Embedder, EmbedderConfig
from polyhead.models.gpt import GPT, GPTConfig
from polyhead.server.engine.batcher import padded_lengths
from polyhead.server.runtime.decoder import Decoder
from polyhead.server.runtime.encoder import Encoder
from polyhead.v1 import bundle_pb2

VOCABULARY = 301
TWINS = (7, 290)
"""Tokens of the GPT with equal embeddings, so with equal logits everywhere."""
CAPACITY = 96
CHUNK = 16
MAX_TOKENS = 48


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Make weights, also of norms and biases, so large that no part of the model is without effect."""
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))


@cache
def gpt() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(VOCABULARY, CAPACITY, layers=2, heads=3, kv_heads=1, width=48, hidden=131))
    _spread(model)
    with torch.no_grad():
        model.embedding.weight[TWINS[1]] = model.embedding.weight[TWINS[0]]
    return model.eval()


@cache
def classifier() -> Classifier:
    torch.manual_seed(0)
    model = Classifier(
        ClassifierConfig(VOCABULARY, MAX_TOKENS, layers=2, heads=3, width=39, hidden=133, classes=5, ngrams=3)
    )
    _spread(model)
    return model.eval()


@cache
def embedder() -> Embedder:
    torch.manual_seed(0)
    model = Embedder(EmbedderConfig(VOCABULARY, MAX_TOKENS, layers=2, heads=3, width=39, hidden=133, embedding_size=37))
    _spread(model)
    return model.eval()


@cache
def decoder_graph() -> Path:
    """`decoder.onnx` of the GPT, its weights beside it."""
    return _save(export_decoder(OwnDecoder(gpt())), "decoder")


@cache
def decoder() -> Decoder:
    """With eight slots."""
    config = gpt().config
    limits = bundle_pb2.Limits(max_tokens=CAPACITY, vocabulary_size=VOCABULARY, prefill_chunk=CHUNK)
    slots = bundle_pb2.Cache(layers=config.layers, kv_heads=config.kv_heads, head_size=config.head_size, type="float")
    return Decoder(decoder_graph(), bundle_pb2.Bundle(limits=limits, cache=slots), slots=8, capacity=CAPACITY)


@cache
def classifier_graph() -> Path:
    """`encoder.onnx` of the classifier."""
    return _save(export_encoder(OwnEncoder(classifier())), "encoder")


@cache
def classifying_encoder() -> Encoder:
    return _encoder(classifier_graph(), bundle_pb2.TASK_CLASSIFY)


@cache
def embedding_encoder() -> Encoder:
    return _encoder(_save(export_encoder(OwnEncoder(embedder())), "encoder"), bundle_pb2.TASK_EMBED)


def _encoder(graph: Path, task: "bundle_pb2.Task.ValueType") -> Encoder:
    limits = bundle_pb2.Limits(max_tokens=MAX_TOKENS, padded_lengths=padded_lengths(MAX_TOKENS))
    return Encoder(graph, bundle_pb2.Bundle(task=task, limits=limits))


def _save(graph: ir.Model, name: str) -> Path:
    path = Path(mkdtemp(prefix="polyhead-test-")) / f"{name}.onnx"
    ir.save(graph, path, external_data=f"{name}.onnx.data")
    return path

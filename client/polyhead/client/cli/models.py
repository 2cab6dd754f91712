"""`polyhead models`: list, describe, load, unload and reload the models of a server."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf import json_format

from polyhead.client.cli.output import print_json, table
from polyhead.client.results import Model
from polyhead.client.sync import Client
from polyhead.v1 import bundle_pb2


def models(options: Namespace) -> int:
    with Client(options.target, timeout=options.timeout) as client:
        found = _ask(client, options)
    if options.json:
        for model in found:
            print_json(model_json(model))
    elif options.describe:
        print(*description(found[0]), sep="\n")
    elif options.unload:
        print("unloaded")
    else:
        print(*(model_lines(found) if found else ["the server has no models"]), sep="\n")
    return 0


def _ask(client: Client, options: Namespace) -> list[Model]:
    if options.describe:
        name, version = options.describe
        return [client.model(name, version=version)]
    if options.load:
        name, version = options.load
        return [client.load_model(name, version=version)]
    if options.reload:
        name, version = options.reload
        return [client.reload_model(name, version=version)]
    if options.unload:
        name, version = options.unload
        client.unload_model(name, version=version)
        return []
    return client.models()


def model_json(model: Model) -> dict[str, Any]:
    """With the manifest if it was asked for."""
    names = ("name", "version", "state", "reason", "task", "architecture", "max_tokens", "load_seconds")
    shown = {
        name: getattr(model, name) for name in (*names, "max_answer_tokens", "aliases", "on_demand", "memory_bytes")
    }
    if model.bundle is not None:
        shown["bundle"] = json_format.MessageToDict(model.bundle, preserving_proto_field_name=True)
    return shown


def model_lines(found: Sequence[Model]) -> list[str]:
    """A table with a row a model, and under it what is wrong with which."""
    head = ("NAME", "VERSION", "TASK", "STATE", "ARCHITECTURE", "MAX TOKENS", "MEMORY", "LOADED IN", "ALIASES")
    rows = [
        (
            model.name,
            model.version,
            model.task or "-",
            model.state,
            model.architecture or "-",
            _longest(model),
            _size(model.memory_bytes) if model.memory_bytes else "-",
            f"{model.load_seconds:.2f} s" if model.load_seconds else "-",
            _aliases(model) or "-",
        )
        for model in found
    ]
    reasons = [f"{model.name} {model.version} {model.state}: {model.reason}" for model in found if model.reason]
    return [*table([head, *rows]), *reasons]


def description(model: Model) -> list[str]:
    """All that is known of a model, in sections."""
    lines = [f"{model.name}, version {model.version}", "", *table(list(_facts(model)))]
    if bundle := model.bundle:
        for title, rows in _sections(bundle):
            if rows:
                lines += ["", title, *(f"  {line}" for line in table(rows))]
    return lines


def _facts(model: Model) -> Iterator[tuple[str, str]]:
    yield "state", f"{model.state}: {model.reason}" if model.reason else model.state
    if aliases := _aliases(model):
        yield "aliases", aliases
    if model.on_demand:
        yield "loaded", "on demand"
    if model.memory_bytes:
        yield "memory", f"about {_size(model.memory_bytes)}"
    if bundle := model.bundle:
        yield "task", model.task or "-"
        yield "architecture", model.architecture or "-"
        yield "parameters", f"{bundle.parameters:,}"
        yield from _quantization_facts(bundle)
        yield "same answer in any traffic", "yes" if bundle.traffic_independent else "no"
        if bundle.license:
            yield "licence", bundle.license
        if bundle.labels:
            yield "labels of tokens" if bundle.labels_tokens else "labels", ", ".join(bundle.labels)
        if bundle.HasField("seq2seq"):
            yield from _source_facts(model, bundle.seq2seq)
        if bundle.task == bundle_pb2.TASK_GENERATE:
            yield "end tokens", ", ".join(map(str, bundle.tokenizer.eos_token_ids)) or "none"
            yield "chat template", "yes" if bundle.tokenizer.chat_template else "no"
        yield "size of its files", _size(sum(file.size for file in bundle.files))
        if bundle.origin.checkpoint:
            yield "checkpoint", bundle.origin.checkpoint
        if bundle.origin.revision:
            yield "revision on the hub", bundle.origin.revision
        if bundle.HasField("created_at"):
            yield "made", bundle.created_at.ToJsonString()


def _quantization_facts(bundle: bundle_pb2.Bundle) -> Iterator[tuple[str, str]]:
    origin = bundle.origin
    kind = bundle_pb2.Quantization.Name(bundle.quantization).removeprefix("QUANTIZATION_").lower()
    yield "quantization", f"{kind}, {origin.block_size} weights a scale" if origin.HasField("block_size") else kind
    if origin.keep_fp32:
        yield "kept in fp32", ", ".join(origin.keep_fp32)
    if origin.HasField("max_loss"):
        yield "largest loss accepted", f"{origin.max_loss:g}"


def _source_facts(model: Model, seq2seq: bundle_pb2.Seq2Seq) -> Iterator[tuple[str, str]]:
    """Of a model that reads a source and then writes an answer; lengths as served."""
    yield "longest source", f"{model.max_tokens:,} tokens"
    yield "longest answer", f"{model.max_answer_tokens:,} tokens"
    yield "vocabulary of sources", f"{seq2seq.source_vocabulary_size:,} tokens"
    yield "tokenizer of sources", seq2seq.source_tokenizer or "that of answers"


def _sections(bundle: bundle_pb2.Bundle) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Title and rows of what a bundle has lists of."""
    yield "limits", [(field.name.replace("_", " "), _shown(value)) for field, value in bundle.limits.ListFields()]
    yield "cache", [(field.name.replace("_", " "), _shown(value)) for field, value in bundle.cache.ListFields()]
    defaults = bundle.sampling_defaults.ListFields()
    yield "sampling unless a request says otherwise", [(field.name, _shown(value)) for field, value in defaults]
    yield "adapters", [(adapter.name, f"rank {adapter.rank}") for adapter in bundle.adapters]
    yield "quality, on held-out data", [(name, f"{value:.4g}") for name, value in sorted(bundle.quality.items())]
    checks: list[tuple[str, ...]] = [
        (check.name, check.shape, f"{check.error:.1e}", f"at most {check.tolerance:.0e}") for check in bundle.parity
    ]
    yield "differences between torch and the graph", checks
    yield "made with", sorted(bundle.made_with.items())


def _longest(model: Model) -> str:
    """Of a sequence-to-sequence model source and answer."""
    answer = f" → {model.max_answer_tokens}" if model.max_answer_tokens else ""
    return f"{model.max_tokens}{answer}" if model.max_tokens else "-"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else ", ".join(map(str, value))


def _aliases(model: Model) -> str:
    """`stable, canary 10 %`."""
    return ", ".join(name if share == 1 else f"{name} {share * 100:.3g} %" for name, share in model.aliases.items())


def _size(size: int) -> str:
    amount, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.4g} {unit}"

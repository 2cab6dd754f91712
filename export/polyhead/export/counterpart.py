"""Whether a checkpoint can be what a bundle was made from, before the two are made to compute anything."""

import json
from collections.abc import Iterator
from typing import Any

import tokenizers
from google.protobuf import json_format

from polyhead.export.errors import ExportError
from polyhead.export.manifest import make_manifest
from polyhead.export.source import Source
from polyhead.server.bundle import Bundle
from polyhead.v1 import bundle_pb2

COMPARED = (
    "task",
    "architecture",
    "limits.vocabulary_size",
    "cache.layers",
    "cache.kv_heads",
    "cache.head_size",
    "limits.embedding_size",
    "seq2seq.source_vocabulary_size",
    "seq2seq.source_tokenizer",
    "seq2seq.start_token_id",
    "labels",
    "labels_tokens",
    "pooling",
    "normalized",
    "parameters",
    "tokenizer.bos_token_id",
    "tokenizer.eos_token_ids",
    "tokenizer.pad_token_id",
)
"""Of the manifest."""
AT_MOST = ("limits.max_tokens", "seq2seq.max_source_tokens")
"""A bundle may have been exported for shorter inputs than its checkpoint takes."""
ENUMS = ("TASK_", "POOLING_")
"""Beginnings of names in the manifest that people know without them."""
SHOWN = 60
"""Characters of a value."""


def require_counterpart(bundle: Bundle, source: Source, checkpoint: str) -> None:
    """Raises ExportError, with the first field that differs and both values."""
    for field, theirs, ours in differences(bundle, source):
        raise ExportError(f"{checkpoint}: {field} is {shown(theirs)}, the bundle's is {shown(ours)}")


def differences(bundle: Bundle, source: Source) -> Iterator[tuple[str, Any, Any]]:
    """Where the two are not the same, with the checkpoint's value and the bundle's; None for what is not there."""
    theirs, ours = (json_format.MessageToDict(m, preserving_proto_field_name=True) for m in manifests(bundle, source))
    for field in COMPARED:
        pair = value(theirs, field), value(ours, field)
        if pair[0] != pair[1]:
            yield field, *pair
    for field in AT_MOST:
        pair = value(theirs, field), value(ours, field)
        if (pair[0] or 0) < (pair[1] or 0):
            yield field, *pair
    if named := value(ours, "tokenizer.special_tokens"):  # which older bundles don't name
        yield from first_difference("tokenizer.special_tokens", value(theirs, "tokenizer.special_tokens"), named)
    yield from differences_of_texts(bundle, source)


def manifests(bundle: Bundle, source: Source) -> tuple[bundle_pb2.Bundle, bundle_pb2.Bundle]:
    return make_manifest(source, "none"), bundle.manifest


def value(fields: dict[str, Any], path: str) -> Any:
    first, _, rest = path.partition(".")
    found = fields.get(first)
    return value(found, rest) if rest and isinstance(found, dict) else found


def differences_of_texts(bundle: Bundle, source: Source) -> Iterator[tuple[str, Any, Any]]:
    file, sources = bundle.manifest.tokenizer, bundle.manifest.seq2seq.source_tokenizer
    yield from tokenizer_difference(file.file, source.tokenizer_json, read(bundle, file.file))
    if sources and source.source_tokenizer_json:
        yield from tokenizer_difference(sources, source.source_tokenizer_json, read(bundle, sources))
    template = read(bundle, file.chat_template) if file.chat_template else None
    if source.chat_template is None or template is None:
        pair = source.chat_template, template
        if pair != (None, None):
            yield "chat template", *pair
    else:
        lines = (dict(enumerate(text.splitlines(), 1)) for text in (source.chat_template, template))
        yield from first_difference("chat template line", *lines)


def read(bundle: Bundle, file: str) -> str:
    return (bundle.folder / file).read_text("utf-8")


def tokenizer_difference(file: str, theirs: str, ours: str) -> Iterator[tuple[str, Any, Any]]:
    """As the library writes them today, since one of them may have been written by another release of it."""
    if theirs != ours:
        texts = (tokenizers.Tokenizer.from_str(text).to_str() for text in (theirs, ours))
        yield from first_difference(file, *map(json.loads, texts))


def first_difference(path: str, theirs: Any, ours: Any) -> Iterator[tuple[str, Any, Any]]:
    """Down to the first value of objects and lists that is not the same; nothing where all are."""
    if isinstance(theirs, list) and isinstance(ours, list):
        theirs, ours = dict(enumerate(theirs)), dict(enumerate(ours))
    if not (isinstance(theirs, dict) and isinstance(ours, dict)):
        if theirs != ours:
            yield path, theirs, ours
        return
    for key in (*ours, *(key for key in theirs if key not in ours)):
        if theirs.get(key) != ours.get(key) or (key in theirs) != (key in ours):
            yield from first_difference(f"{path} {key}", theirs.get(key), ours.get(key))
            return


def shown(found: Any) -> str:
    if found is None:
        return "none"
    if isinstance(found, str) and found.startswith(ENUMS):
        return found.partition("_")[2].lower()
    text = found if isinstance(found, str) and found.isprintable() else json.dumps(found, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"

"""What `bundle.json` must say to make sense, before any other file of the bundle is opened. See docs/architecture.md."""

from collections.abc import Iterator, Sequence
from math import inf

from polyhead.server import ranges
from polyhead.server.adapters import check_adapters, is_adapter_input
from polyhead.server.errors import BundleError, InvalidInput
from polyhead.v1 import bundle_pb2
from polyhead.v1.bundle_pb2 import TASK_CLASSIFY, TASK_EMBED, TASK_GENERATE, Quantization

MANIFEST_FILE = "bundle.json"
SCHEMA_VERSION = 1
MAX_END_TOKENS = 64
GRAPH_OF_TASK = {TASK_GENERATE: "decoder", TASK_CLASSIFY: "encoder", TASK_EMBED: "encoder"}

TensorType = tuple[str, tuple[str, ...]]
"""Element type and one entry a dimension; an empty entry stands for any dynamic dimension."""


def check_manifest(manifest: bundle_pb2.Bundle) -> None:
    """Raise BundleError, naming the field, unless the manifest is complete and free of contradictions."""
    if manifest.task not in GRAPH_OF_TASK:
        refuse("task", f"must be one of generate, classify, embed; got {manifest.task or 'none'}")
    if manifest.quantization not in Quantization.values()[1:]:
        refuse("quantization", f"must be one of none, int8, int4; got {manifest.quantization or 'nothing'}")
    check_graphs(manifest)
    check_limits(manifest)
    check_tokenizer(manifest)
    check_adapters(manifest)
    if manifest.HasField("seq2seq"):
        check_seq2seq(manifest)
    elif manifest.task == TASK_GENERATE:
        check_decoder(manifest)
    else:
        check_encoder(manifest)


def refuse(field: str, description: str) -> None:
    raise BundleError(f"{MANIFEST_FILE}: {field} {description}")


def require_positive(**values: int) -> None:
    for field, value in values.items():
        if value < 1:
            refuse(field.replace("__", "."), f"must be at least 1, got {value}")


def check_graphs(manifest: bundle_pb2.Bundle) -> None:
    names = [graph.name for graph in manifest.graphs]
    wanted = ["encoder", "decoder"] if manifest.HasField("seq2seq") else [GRAPH_OF_TASK[manifest.task]]
    if names != wanted:
        refuse("graphs", f"must be {' and '.join(wanted)}, got {names}")
    listed = {file.path for file in manifest.files}
    named = {f"graphs[{index}].file": graph.file for index, graph in enumerate(manifest.graphs)}
    named["tokenizer.file"] = manifest.tokenizer.file
    if manifest.seq2seq.source_tokenizer:
        named["seq2seq.source_tokenizer"] = manifest.seq2seq.source_tokenizer
    if manifest.tokenizer.chat_template:
        named["tokenizer.chat_template"] = manifest.tokenizer.chat_template
    for field, path in named.items():
        if path not in listed:
            refuse(field, f"is {path!r}, which is not among files")


def check_limits(manifest: bundle_pb2.Bundle) -> None:
    limits = manifest.limits
    require_positive(limits__max_tokens=limits.max_tokens, limits__vocabulary_size=limits.vocabulary_size)


def check_tokenizer(manifest: bundle_pb2.Bundle) -> None:
    tokenizer, size = manifest.tokenizer, manifest.limits.vocabulary_size
    if len(tokenizer.eos_token_ids) > MAX_END_TOKENS:
        refuse("tokenizer.eos_token_ids", f"must be at most {MAX_END_TOKENS}, got {len(tokenizer.eos_token_ids)}")
    special = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    special |= {f"eos_token_ids[{index}]": token for index, token in enumerate(tokenizer.eos_token_ids)}
    for field, token in special.items():
        if token >= size:
            refuse(f"tokenizer.{field}", f"must be below the vocabulary size {size}, got {token}")


def check_decoder(manifest: bundle_pb2.Bundle) -> None:
    cache = manifest.cache
    if not manifest.HasField("cache"):
        refuse("cache", "is missing; a decoder needs it")
    require_positive(cache__layers=cache.layers, cache__kv_heads=cache.kv_heads, cache__head_size=cache.head_size)
    require_positive(limits__prefill_chunk=manifest.limits.prefill_chunk)
    check_cache(cache)
    check_sampling_defaults(manifest)
    check_tensors("inputs", manifest.graphs[0].inputs, dict(decoder_inputs(manifest)), optional=("position_ids",))
    check_tensors("outputs", manifest.graphs[0].outputs, dict(decoder_outputs(manifest)))


def check_sampling_defaults(manifest: bundle_pb2.Bundle) -> None:
    for default, value in manifest.sampling_defaults.ListFields():
        try:
            ranges.SAMPLING[default.name].check(default.name, value)
        except InvalidInput as error:
            refuse(f"sampling_defaults.{default.name}", error.description)


def check_seq2seq(manifest: bundle_pb2.Bundle) -> None:
    seq2seq, (encoder, decoder) = manifest.seq2seq, manifest.graphs
    if manifest.task != TASK_GENERATE or manifest.HasField("cache"):
        refuse("seq2seq", "is for models that generate, and what they keep is in their graphs, not in `cache`")
    require_positive(
        seq2seq__max_source_tokens=seq2seq.max_source_tokens,
        seq2seq__source_vocabulary_size=seq2seq.source_vocabulary_size,
    )
    if seq2seq.start_token_id >= manifest.limits.vocabulary_size:
        limit = f"below the vocabulary size {manifest.limits.vocabulary_size}"
        refuse("seq2seq.start_token_id", f"must be {limit}, got {seq2seq.start_token_id}")
    check_sampling_defaults(manifest)
    read = {"input_ids": ("int64", ("batch", "source")), "lengths": ("int32", ("batch",))}
    check_tensors("inputs", encoder.inputs, {name: (dtype, ("",) * len(dims)) for name, (dtype, dims) in read.items()})
    kept = [tensor for tensor in decoder.inputs if tensor.name.partition(".")[0] in ("memory", "state", "past")]
    for tensor in kept:
        check_kept(tensor)
    given = {tensor.name: ("float", tuple(tensor.shape)) for tensor in kept}
    encoded = {name: named_sizes(type_) for name, type_ in given.items() if not name.startswith("past.")}
    check_tensors("outputs", encoder.outputs, encoded)
    inputs = dict(step_inputs()) | {name: named_sizes(type_) for name, type_ in given.items()}
    check_tensors("inputs", decoder.inputs, inputs, optional=("positions", "source_lengths", "capacity"), graph=1)
    written = {
        name.replace("state.", "new.state.", 1).replace("past.", "present.", 1): named_sizes(type_)
        for name, type_ in given.items()
        if not name.startswith("memory.")
    }
    outputs = dict(step_outputs(manifest)) | written
    check_tensors("outputs", decoder.outputs, outputs, optional=("alignment",), graph=1)


def check_kept(tensor: bundle_pb2.Tensor) -> None:
    """A row for each answer, of sizes that are fixed but for the tokens of its source, or of itself in a cache."""
    kind, (rows, *sizes) = tensor.name.partition(".")[0], tensor.shape or [""]
    tokens = {"memory": ["source"], "past": ["target"], "state": []}[kind]
    if rows != "batch" or [size for size in sizes if not size.isdecimal()] != tokens:
        wanted = f"batch, sizes and {tokens[0]}" if tokens else "batch and sizes"
        refuse("graphs[1].inputs", f"{tensor.name} must have {wanted}, got {list(tensor.shape)}")


def named_sizes(tensor: TensorType) -> TensorType:
    """Any name does for a size that is not fixed."""
    return tensor[0], tuple(size if size.isdecimal() else "" for size in tensor[1])


def step_inputs() -> Iterator[tuple[str, TensorType]]:
    yield "input_ids", ("int64", ("", "1"))
    yield "positions", ("int32", ("",))
    yield "source_lengths", ("int32", ("",))
    yield "capacity", ("int32", ())
    yield "top_k", ("int64", ("1",))


def step_outputs(manifest: bundle_pb2.Bundle) -> Iterator[tuple[str, TensorType]]:
    yield "topk_values", ("float", ("", ""))
    yield "topk_ids", ("int64", ("", ""))
    yield "logsumexp", ("float", ("",))
    yield "logits", ("float", ("", str(manifest.limits.vocabulary_size)))
    yield "alignment", ("float", ("", ""))


def check_cache(cache: bundle_pb2.Cache) -> None:
    if cache.type not in ("float", "int8"):
        refuse("cache.type", f"must be 'float' or 'int8', got {cache.type!r}")
    wanted = cache.layers if cache.type == "int8" else 0
    for name, scales in (("key_scales", cache.key_scales), ("value_scales", cache.value_scales)):
        if len(scales) != wanted or not all(0 < scale < inf for scale in scales):
            refuse(
                f"cache.{name}", f"must be {wanted} positive numbers with cache type {cache.type!r}, got {list(scales)}"
            )


def check_encoder(manifest: bundle_pb2.Bundle) -> None:
    limits = manifest.limits
    lengths = list(limits.padded_lengths)
    if manifest.HasField("cache"):
        refuse("cache", "is for decoders only")
    if not manifest.tokenizer.HasField("pad_token_id"):
        refuse("tokenizer.pad_token_id", "is missing; an encoder needs it")
    if not lengths or lengths != sorted(set(lengths)) or lengths[-1] != limits.max_tokens or lengths[0] < 1:
        refuse("limits.padded_lengths", f"must ascend from at least 1 to max_tokens {limits.max_tokens}, got {lengths}")
    if manifest.labels_tokens and manifest.task != TASK_CLASSIFY:
        refuse("labels_tokens", "is for models that classify only")
    if manifest.task == TASK_EMBED:
        require_positive(limits__embedding_size=limits.embedding_size)
        output = "embeddings", ("float", ("", str(limits.embedding_size)))
    else:
        if not manifest.labels or len(set(manifest.labels)) != len(manifest.labels):
            refuse("labels", f"must be there and differ from each other, got {list(manifest.labels)}")
        tokens = ("",) if manifest.labels_tokens else ()
        output = "probabilities", ("float", ("", *tokens, str(len(manifest.labels))))
    inputs = {"input_ids": ("int64", ("", "")), "lengths": ("int32", ("",)), "token_type_ids": ("int64", ("", ""))}
    check_tensors("inputs", manifest.graphs[0].inputs, inputs, optional=("token_type_ids",))
    check_tensors("outputs", manifest.graphs[0].outputs, dict([output]))


def decoder_inputs(manifest: bundle_pb2.Bundle) -> Iterator[tuple[str, TensorType]]:
    yield from {
        "input_ids": ("int64", ("", "")),
        "seqlens_k": ("int32", ("",)),
        "query_seqlens": ("int32", ("",)),
        "capacity": ("int32", ()),
        "position_ids": ("int64", ("", "")),
        "logit_positions": ("int64", ("",)),
        "top_k": ("int64", ("1",)),
    }.items()
    yield from cache_tensors(manifest, "past")
    if manifest.cache.type == "int8":
        yield "prefill", ("bool", ("1",))


def decoder_outputs(manifest: bundle_pb2.Bundle) -> Iterator[tuple[str, TensorType]]:
    yield "topk_values", ("float", ("", ""))
    yield "topk_ids", ("int64", ("", ""))
    yield "logsumexp", ("float", ("",))
    yield "logits", ("float", ("", str(manifest.limits.vocabulary_size)))
    yield from cache_tensors(manifest, "present")


def cache_tensors(manifest: bundle_pb2.Bundle, prefix: str) -> Iterator[tuple[str, TensorType]]:
    cache = manifest.cache
    shape = ("", str(cache.kv_heads), "", str(cache.head_size))
    for layer in range(cache.layers):
        for part in ("key", "value"):
            yield f"{prefix}.{part}.{layer}", (cache.type, shape)
            if cache.type == "int8":
                yield f"lane.{prefix}.{part}.{layer}", ("float", shape)


def check_tensors(
    side: str,
    tensors: Sequence[bundle_pb2.Tensor],
    expected: dict[str, TensorType],
    optional: Sequence[str] = (),
    graph: int = 0,
) -> None:
    """`tensors` are the expected ones, in any order, beside inputs for adapters; `side` is `inputs` or `outputs`."""
    field = f"graphs[{graph}].{side}"
    tensors = [tensor for tensor in tensors if not is_adapter_input(tensor)]
    given = {tensor.name: tensor for tensor in tensors}
    missing = [name for name in expected if name not in given and name not in optional]
    unknown = [name for name in given if name not in expected]
    if missing or unknown or len(given) != len(tensors):
        refuse(field, f"must be {list(expected)}, got {[tensor.name for tensor in tensors]}")
    for name, tensor in given.items():
        dtype, shape = expected[name]
        if tensor.type != dtype or not shape_fits(tensor.shape, shape):
            wanted = [size or "any" for size in shape]
            refuse(field, f"{name} must be {dtype} {wanted}, got {tensor.type} {list(tensor.shape)}")


def shape_fits(shape: Sequence[str], expected: Sequence[str]) -> bool:
    """Fixed sizes are equal; where any dynamic dimension is expected there is a name, not a number."""
    return len(shape) == len(expected) and all(
        size == wanted if wanted else not size.isdecimal() for size, wanted in zip(shape, expected, strict=True)
    )

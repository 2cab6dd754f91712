"""`MODEL.md`: what a person who finds a bundle wants to know of it."""

from collections.abc import Iterable, Mapping

from polyhead.export.source import Source
from polyhead.v1 import bundle_pb2


def model_card(name: str, version: str, manifest: bundle_pb2.Bundle, source: Source) -> str:
    """Markdown, from the manifest and what the checkpoint says of its training."""
    sizes = {
        "task": source.task,
        "architecture": source.architecture,
        "parameters": f"{manifest.parameters:,}",
        **sizes_of_input(manifest),
        "vocabulary": f"{manifest.limits.vocabulary_size:,} tokens",
        "quantization": quantization(manifest),
        **({"cache": manifest.cache.type} if manifest.HasField("cache") else {}),
        "same answer in any traffic": "yes" if manifest.traffic_independent else "no",
        **of_texts(manifest),
        **({"licence": manifest.license} if manifest.license else {}),
        **how_made(manifest),
    }
    defaults = {field.name: default for field, default in manifest.sampling_defaults.ListFields()}
    parity = [(c.name, c.shape, f"{c.error:.1e}", f"{c.tolerance:.0e}") for c in manifest.parity]
    sections = [
        f"# {name}, version {version}",
        table(("", ""), sizes.items()),
        section(
            "Labels of tokens" if manifest.labels_tokens else "Labels",
            [", ".join(manifest.labels)] if manifest.labels else [],
        ),
        section("Sampling unless a request says otherwise", pairs(("setting", "default"), defaults)),
        section("Adapters", pairs(("name", "rank"), {adapter.name: adapter.rank for adapter in manifest.adapters})),
        section("Quality", pairs(("measure", "on held-out data"), manifest.quality)),
        section("Training", pairs(("", ""), source.training)),
        section("torch against this graph", [table(("compared", "on", "error", "accepted"), parity)]),
        section("Made with", pairs(("package", "version"), manifest.made_with)),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def quantization(manifest: bundle_pb2.Bundle) -> str:
    """Such as `int4, 32 weights a scale, fp32: *.down_proj.weight`."""
    origin = manifest.origin
    kind = bundle_pb2.Quantization.Name(manifest.quantization).removeprefix("QUANTIZATION_").lower()
    block = [f"{origin.block_size} weights a scale"] if origin.HasField("block_size") else []
    return ", ".join([kind, *block, *([f"fp32: {' '.join(origin.keep_fp32)}"] if origin.keep_fp32 else [])])


def of_texts(manifest: bundle_pb2.Bundle) -> dict[str, str]:
    """Of models that generate."""
    if manifest.task != bundle_pb2.TASK_GENERATE:
        return {}
    tokenizer = manifest.tokenizer
    return {
        "end tokens": ", ".join(map(str, tokenizer.eos_token_ids)) or "none",
        "chat template": "yes" if tokenizer.chat_template else "no",
    }


def how_made(manifest: bundle_pb2.Bundle) -> dict[str, str]:
    origin = manifest.origin
    return {
        **({"checkpoint": origin.checkpoint} if origin.checkpoint else {}),
        **({"revision on the hub": origin.revision} if origin.revision else {}),
        **({"largest loss accepted": f"{origin.max_loss:g}"} if origin.HasField("max_loss") else {}),
        "made": f"{manifest.created_at.ToDatetime():%Y-%m-%d %H:%M} UTC",
    }


def sizes_of_input(manifest: bundle_pb2.Bundle) -> dict[str, str]:
    """Of a sequence-to-sequence model source and answer have a limit each, and perhaps a vocabulary each."""
    longest, seq2seq = f"{manifest.limits.max_tokens} tokens", manifest.seq2seq
    if not manifest.HasField("seq2seq"):
        return {"longest input": longest}
    return {
        "longest source": f"{seq2seq.max_source_tokens} tokens",
        "longest answer": longest,
        "vocabulary of sources": f"{seq2seq.source_vocabulary_size:,} tokens",
        "tokenizer of sources": seq2seq.source_tokenizer or "that of answers",
    }


def section(title: str, body: list[str]) -> str:
    """Nothing where there is nothing to say."""
    return "\n\n".join([f"## {title}", *body]) if body else ""


def pairs(head: tuple[str, str], items: Mapping[str, object]) -> list[str]:
    return [table(head, sorted(items.items()))] if items else []


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(head), *([escape(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(cell: object) -> str:
    text = f"{cell:.4g}" if isinstance(cell, float) else str(cell)
    return " ".join(text.split()).replace("|", "\\|")

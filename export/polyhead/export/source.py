"""A model that can be exported, and everything its bundle says of it that export does not measure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import tokenizers

from polyhead.export.errors import ExportError
from polyhead.export.exportable import Exportable
from polyhead.export.own import own
from polyhead.export.seq2seq.exportable import ExportableSeq2Seq
from polyhead.models.checkpoint import CheckpointConfig, Model, SpecialTokens, Task
from polyhead.v1 import bundle_pb2

TOKENIZER_FILE = "tokenizer.json"
SOURCE_TOKENIZER_FILE = "source_tokenizer.json"
"""Of sources, where they have a vocabulary of their own."""


@dataclass(frozen=True)
class Source:
    """What becomes a bundle."""

    model: Exportable
    task: Task
    architecture: str
    tokenizer_json: str
    tokenizer: bundle_pb2.Tokenizer
    """The special tokens by id."""
    labels: tuple[str, ...] = ()
    sampling: bundle_pb2.SamplingDefaults = field(default_factory=lambda: bundle_pb2.SamplingDefaults(temperature=1.0))
    """For decoders: how a request that says nothing is sampled."""
    chat_template: str | None = None
    """Jinja."""
    license: str = ""
    """What the checkpoint says of it; empty where it says nothing."""
    quality: Mapping[str, float] = field(default_factory=dict)
    """Measured in fp32 by who made the checkpoint."""
    training: Mapping[str, object] = field(default_factory=dict)
    """What made the checkpoint, for people."""
    ignored: str = ""
    """Settings of the checkpoint that change answers and that a bundle has no defaults for: their file and names."""
    held_out: str | None = None
    """Text that the model did not learn from."""
    source_tokenizer_json: str | None = None
    """Of a sequence-to-sequence model whose source has a vocabulary of its own."""
    start_token_id: int = 0
    """What the decoder of such a model begins with."""


def own_source(
    model: Model,
    config: CheckpointConfig,
    tokenizer_json: str,
    held_out: str | None = None,
    source_tokenizer_json: str | None = None,
) -> Source:
    """Raises ExportError where model and tokenizer contradict each other or the model can't be exported."""
    exportable = own(model.cpu().float().eval())
    entry = tokenizer_entry(config.special_tokens, tokenizer_json, exportable.sizes.vocabulary_size)
    if isinstance(exportable, ExportableSeq2Seq):
        read_tokenizer(source_tokenizer_json or tokenizer_json, exportable.sizes.source_vocabulary_size)
        if not entry.HasField("bos_token_id"):
            raise ExportError("special_tokens.bos: is missing; the decoder has nothing to begin with")
    return Source(
        model=exportable,
        task=config.task,
        architecture=config.architecture,
        tokenizer_json=tokenizer_json,
        tokenizer=entry,
        labels=config.labels,
        quality=config.quality,
        training=config.training,
        held_out=held_out,
        source_tokenizer_json=source_tokenizer_json,
        start_token_id=entry.bos_token_id,
        # A translation is wanted as it is likeliest; what a model begins to tell is not.
        sampling=bundle_pb2.SamplingDefaults(temperature=0.0 if isinstance(exportable, ExportableSeq2Seq) else 1.0),
    )


def read_tokenizer(tokenizer_json: str, vocabulary_size: int) -> tokenizers.Tokenizer:
    """Raises ExportError if it is no tokenizer or has a token that the model doesn't know."""
    try:
        tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises bare Exception
        raise ExportError(f"{TOKENIZER_FILE}: not a tokenizer: {error}") from error
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    last = max(vocabulary, key=vocabulary.__getitem__, default=None)
    if last is not None and vocabulary[last] >= vocabulary_size:
        raise ExportError(
            f"{TOKENIZER_FILE}: {last!r} has id {vocabulary[last]}, the model knows {vocabulary_size} tokens, 0 to "
            f"{vocabulary_size - 1}"
        )
    return tokenizer


def tokenizer_entry(special: SpecialTokens, tokenizer_json: str, vocabulary_size: int) -> bundle_pb2.Tokenizer:
    """The special tokens by id. Raises ExportError if one is missing or the tokenizer doesn't fit the model."""
    tokenizer = read_tokenizer(tokenizer_json, vocabulary_size)

    def token_id(field: str, token: str | None) -> int | None:
        found: int | None = None if token is None else tokenizer.token_to_id(token)
        if token is not None and found is None:
            raise ExportError(f"special_tokens.{field}: {token!r} is not in {TOKENIZER_FILE}")
        return found

    return bundle_pb2.Tokenizer(
        file=TOKENIZER_FILE,
        bos_token_id=token_id("bos", special.bos),
        eos_token_ids=[token_id("eos", token) or 0 for token in special.eos],
        pad_token_id=token_id("pad", special.pad),
    )

"""A folder in Hugging Face layout becomes a source of a bundle."""

from pathlib import Path
from typing import Any

import tokenizers

from polyhead.export.errors import ExportError
from polyhead.export.exportable import Exportable
from polyhead.export.huggingface.architectures import task_of
from polyhead.export.huggingface.decoder import HuggingFaceDecoder
from polyhead.export.huggingface.encoder import HuggingFaceClassifier, HuggingFaceEmbedder, longest_input
from polyhead.export.huggingface.folder import CheckpointFolder
from polyhead.export.huggingface.licence import read_license
from polyhead.export.huggingface.load import load_model
from polyhead.export.huggingface.sentences import SentenceHead, read_steps, sentence_head
from polyhead.export.huggingface.special_tokens import special_tokens
from polyhead.export.source import Source
from polyhead.models.checkpoint import Task

AUTO_CLASSES: dict[Task, str] = {
    "generate": "AutoModelForCausalLM",
    "classify": "AutoModelForSequenceClassification",
    "embed": "AutoModel",
}
UNUSED = ("pooler.",)
"""Weights of BERT and its kind that embedding by token vectors doesn't need."""


def import_source(path: Path, task: Task | None = None, max_tokens: int | None = None) -> Source:
    """Read everything and load the weights. `task` instead of the one that the checkpoint's class stands for; `max_tokens`: a
    longest input shorter than the checkpoint's.

    Raises CheckpointError for files that are missing, damaged or pickle, ExportError for what can't be exported.
    """
    folder = CheckpointFolder(path)
    task = task_of(folder.model_type, folder.architecture, folder.is_sentence_transformer, task)
    folder.check_weights(AUTO_CLASSES[task])
    folder.check_tokenizer()  # before weights are loaded, which takes longer
    model = load(folder, task, max_tokens)
    size = model.sizes.vocabulary_size
    tokenizer_json = folder.tokenizer_json(size)
    entry = folder.tokenizer_entry(tokenizer_json, size)
    entry.special_tokens.update(special_tokens(folder.tokenizer_config))
    if task != "generate" and not entry.HasField("pad_token_id"):
        raise ExportError(f"{path}: neither config.json nor tokenizer_config.json names a pad token")
    if folder.sentence_config.get("do_lower_case"):
        tokenizer_json = lower_case(tokenizer_json)
    return Source(
        model=model,
        task=task,
        architecture=folder.model_type,
        tokenizer_json=tokenizer_json,
        tokenizer=entry,
        labels=folder.labels() if task == "classify" else (),
        sampling=folder.sampling(),
        chat_template=folder.chat_template if task == "generate" else None,
        license=read_license(path, folder.config),
        training={"imported from": folder.architecture or folder.model_type},
    )


def load(folder: CheckpointFolder, task: Task, max_tokens: int | None) -> Exportable:
    """The weights, as export takes them."""
    steps = (
        sentence_head(read_steps(folder.path)) if task == "embed" and folder.is_sentence_transformer else SentenceHead()
    )
    model: Any = load_model(folder.path, AUTO_CLASSES[task], UNUSED if task == "embed" else ())
    if task == "generate":
        return HuggingFaceDecoder(model, max_tokens)
    limit = longest_input(model, folder.tokenizer_limit, folder.sentence_config.get("max_seq_length"))
    if max_tokens is not None and not 1 <= max_tokens <= limit:
        raise ExportError(f"--max-tokens must be from 1 to {limit}, which the checkpoint can take, got {max_tokens}")
    if task == "classify":
        return HuggingFaceClassifier(model, max_tokens or limit)
    return HuggingFaceEmbedder(model, max_tokens or limit, steps)


def lower_case(tokenizer_json: str) -> str:
    """A tokenizer that does so before anything else."""
    library = tokenizers.Tokenizer.from_str(tokenizer_json)
    before = [library.normalizer] if library.normalizer else []
    library.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase(), *before])
    text: str = library.to_str()
    return text

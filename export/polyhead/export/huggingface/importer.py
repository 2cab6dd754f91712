"""A folder in Hugging Face layout becomes a source of a bundle."""

from inspect import signature
from pathlib import Path
from typing import Any

import tokenizers

from polyhead.export.errors import ExportError
from polyhead.export.exportable import Exportable
from polyhead.export.huggingface.architectures import SEQ2SEQ, task_of
from polyhead.export.huggingface.decoder import HuggingFaceDecoder
from polyhead.export.huggingface.encoder import HuggingFaceClassifier, HuggingFaceEmbedder, longest_input
from polyhead.export.huggingface.folder import MODULES_FILE, CheckpointFolder, transformer_folder
from polyhead.export.huggingface.ignored import ignored_settings
from polyhead.export.huggingface.licence import read_license
from polyhead.export.huggingface.load import load_model
from polyhead.export.huggingface.sentences import SentenceHead, read_steps, sentence_head
from polyhead.export.huggingface.seq2seq import HuggingFaceSeq2Seq
from polyhead.export.huggingface.special_tokens import special_tokens
from polyhead.export.source import Source, read_tokenizer
from polyhead.models.checkpoint import Task
from polyhead.server.tokenizer import takes_pairs

AUTO_CLASSES: dict[Task, str] = {
    "generate": "AutoModelForCausalLM",
    "classify": "AutoModelForSequenceClassification",
    "embed": "AutoModel",
}
LABELS_TOKENS = "ForTokenClassification"
"""Ending of the class of checkpoints with a label for each token."""
CLASS_OF_NO_MODEL, INPUTS_OF_NO_MODEL = "TokenizersBackend", ["input_ids", "attention_mask"]
"""What transformers 5 calls a tokenizer that is not made for one kind of model, and what that gives unless it says otherwise."""
UNUSED = ("pooler.",)
"""Weights of BERT and its kind that embedding by token vectors doesn't need."""


def import_source(path: Path, task: Task | None = None, max_tokens: int | None = None) -> Source:
    """Read everything and load the weights. `task` instead of the one that the checkpoint's class stands for; `max_tokens`: a
    longest input shorter than the checkpoint's.

    Raises CheckpointError for files that are missing, damaged or pickle, ExportError for what can't be exported.
    """
    folder = CheckpointFolder(transformer_folder(path), path)
    task = task_of(folder.model_type, folder.architecture, task_of_sentences(folder), task)
    folder.check_weights(auto_class(folder, task))
    folder.check_tokenizer()  # before weights are loaded, which takes longer
    sampling, chat_template = folder.sampling(), folder.chat_template if task == "generate" else None
    model = load(folder, task, max_tokens)
    size = model.sizes.vocabulary_size
    tokenizer_json = folder.tokenizer_json(size)
    entry = folder.tokenizer_entry(tokenizer_json, size)
    entry.special_tokens.update(special_tokens(folder.tokenizer_config))
    if task != "generate" and not entry.HasField("pad_token_id"):
        raise ExportError(f"{path}: neither config.json nor tokenizer_config.json names a pad token")
    if folder.sentence_config.get("do_lower_case"):
        tokenizer_json = lower_case(tokenizer_json)
    ignored = {file: ", ".join(names) for file, names in ignored_settings(folder, task, size).items()}
    return Source(
        model=model,
        task=task,
        architecture=folder.model_type,
        tokenizer_json=tokenizer_json,
        tokenizer=entry,
        labels=folder.labels() if task == "classify" else (),
        sampling=sampling,
        chat_template=chat_template,
        license=read_license(path, folder.config),
        training={
            "imported from": folder.architecture or folder.model_type,
            **{f"ignored from {file}": names for file, names in ignored.items()},
        },
        ignored="; ".join(f"{file}: {names}" for file, names in ignored.items()),
        start_token_id=start_token(folder) if folder.model_type in SEQ2SEQ else 0,
    )


def task_of_sentences(folder: CheckpointFolder) -> Task | None:
    """What sentence-transformers says that the checkpoint does. Raises CheckpointError, ExportError for a cross-encoder of more steps
    than its transformer."""
    if not folder.is_cross_encoder:
        return "embed" if folder.is_sentence_transformer else None
    kinds = [step.kind for step in read_steps(folder.top)] if folder.is_sentence_transformer else []
    if len(kinds) > 1:
        raise ExportError(f"{MODULES_FILE}: a cross-encoder can be imported if it is a Transformer alone, is {kinds}")
    return "classify"


def load(folder: CheckpointFolder, task: Task, max_tokens: int | None) -> Exportable:
    """The weights, as export takes them."""
    has_steps = task == "embed" and folder.is_sentence_transformer and not folder.is_cross_encoder
    steps = sentence_head(read_steps(folder.top)) if has_steps else SentenceHead()
    model: Any = load_model(folder.path, auto_class(folder, task), UNUSED if task == "embed" else ())
    if folder.model_type in SEQ2SEQ:
        return HuggingFaceSeq2Seq(model, max_tokens)
    if task == "generate":
        return HuggingFaceDecoder(model, max_tokens)
    limit = longest_input(model, folder.tokenizer_limit, folder.sentence_limit)
    if max_tokens is not None and not 1 <= max_tokens <= limit:
        raise ExportError(f"--max-tokens must be from 1 to {limit}, which the checkpoint can take, got {max_tokens}")
    if task == "classify":
        labels_tokens = folder.architecture.endswith(LABELS_TOKENS)
        types = not labels_tokens and tells_texts_apart(model, folder)
        activation_fn = folder.sentence_settings.get("activation_fn")
        return HuggingFaceClassifier(model, max_tokens or limit, labels_tokens, types, activation_fn)
    return HuggingFaceEmbedder(model, max_tokens or limit, steps)


def start_token(folder: CheckpointFolder) -> int:
    """What the decoder begins with. Raises ExportError where the checkpoint doesn't say."""
    start = folder.config.get("decoder_start_token_id", folder.config.get("bos_token_id"))
    if not isinstance(start, int):
        raise ExportError(f"{folder.path}: config.json: decoder_start_token_id: is missing")
    return start


def auto_class(folder: CheckpointFolder, task: Task) -> str:
    """Of transformers."""
    if folder.model_type in SEQ2SEQ:
        return "AutoModelForSeq2SeqLM"
    if task == "classify" and folder.architecture.endswith(LABELS_TOKENS):
        return f"AutoModel{LABELS_TOKENS}"
    return AUTO_CLASSES[task]


def tells_texts_apart(model: Any, folder: CheckpointFolder) -> bool:
    """Whether the model has an embedding for the tokens of a second text, and the tokenizer says which they are, and not that the
    model isn't told."""
    config, tokenizer = model.config, folder.tokenizer_config
    untold = INPUTS_OF_NO_MODEL if tokenizer.get("tokenizer_class") == CLASS_OF_NO_MODEL else None
    told = tokenizer.get("model_input_names", untold)
    if isinstance(told, list) and "token_type_ids" not in told:
        return False
    if getattr(config, "type_vocab_size", 0) < 2 or "token_type_ids" not in signature(model.forward).parameters:
        return False
    library = read_tokenizer(folder.tokenizer_json(config.vocab_size), config.vocab_size)
    return takes_pairs(library) and any(library.encode("a", "a").type_ids)


def lower_case(tokenizer_json: str) -> str:
    """A tokenizer that does so before anything else."""
    library = tokenizers.Tokenizer.from_str(tokenizer_json)
    before = [library.normalizer] if library.normalizer else []
    library.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase(), *before])
    text: str = library.to_str()
    return text

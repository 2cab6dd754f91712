"""What a checkpoint says that would change answers, and that a bundle doesn't keep: named, so that nobody takes it for done."""

import json
from collections.abc import Iterator, Mapping

from polyhead.export.huggingface.folder import SENTENCES_FILE, CheckpointFolder
from polyhead.export.huggingface.sentences import read_steps
from polyhead.export.source import TOKENIZER_FILE
from polyhead.models.checkpoint import Task

NAMED = 8
"""Of many tokens only so many are named."""


def ignored_settings(folder: CheckpointFolder, task: Task, vocabulary_size: int) -> dict[str, tuple[str, ...]]:
    """By file, in words. Raises CheckpointError."""
    found: dict[str, tuple[str, ...]] = {}
    if task == "generate":
        file, names = folder.ignored()
        found[file] = names
    else:
        found[SENTENCES_FILE] = tuple(_prompts(folder))
    if task == "embed" and folder.is_sentence_transformer and not folder.is_cross_encoder:
        found.update(_poolings(folder))
    found[TOKENIZER_FILE] = tuple(_tokens(folder.unknown_tokens(vocabulary_size)))
    return {file: names for file, names in found.items() if names}


def _prompts(folder: CheckpointFolder) -> Iterator[str]:
    """sentence-transformers puts them in front of texts: the default one always, others when they are asked for."""
    settings = folder.sentence_settings
    given = settings.get("prompts")
    prompts = {str(name): text for name, text in given.items() if text} if isinstance(given, Mapping) else {}
    default = settings.get("default_prompt_name")
    if isinstance(default, str) and default in prompts:
        yield f"default_prompt_name ({_shown({default: prompts.pop(default)})})"
    if prompts:
        yield f"prompts ({_shown(prompts)})"


def _shown(prompts: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {json.dumps(text, ensure_ascii=False)}" for name, text in prompts.items())


def _poolings(folder: CheckpointFolder) -> Iterator[tuple[str, tuple[str, ...]]]:
    for step in read_steps(folder.top):
        if step.kind == "Pooling" and step.config().get("include_prompt") is False:
            yield f"{step.folder.name}/{step.config_file.name}", ("include_prompt: false",)


def _tokens(unknown: list[str]) -> Iterator[str]:
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        yield f"added tokens that the model has no embedding for ({', '.join(unknown[:NAMED])}{more})"

"""What lies in a checkpoint folder beside its weights, read without transformers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from polyhead.export.huggingface.architectures import SEQ2SEQ
from polyhead.export.source import TOKENIZER_FILE, read_tokenizer
from polyhead.models.checkpoint import CheckpointError
from polyhead.v1 import bundle_pb2

CONFIG_FILE = "config.json"
MODULES_FILE = "modules.json"
"""Of sentence-transformers."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
GENERATION_FILE = "generation_config.json"
SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
IGNORED_FIELDS = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "suppress_tokens",
)
"""Of generation_config.json: they change answers, and a bundle has no defaults for them."""


def is_hugging_face(folder: Path) -> bool:
    """Whether config.json names a type of model, as transformers writes it."""
    path = transformer_folder(folder) / CONFIG_FILE
    return path.is_file() and "model_type" in read_json(path)


def transformer_folder(folder: Path) -> Path:
    """Where config.json, tokenizer and weights lie: the folder itself, or the one that modules.json names for its first module,
    which older sentence-transformers call `0_Transformer`. Raises CheckpointError."""
    modules = folder / MODULES_FILE
    first = next(iter(read_list(modules)), None) if modules.is_file() else None
    return folder / str(first.get("path") or "") if isinstance(first, dict) else folder


def read_json(path: Path) -> dict[str, Any]:
    """An object. Raises CheckpointError."""
    document = _parse(path)
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: must be a JSON object, is a {type(document).__name__}")
    return document


def read_list(path: Path) -> list[Any]:
    """Raises CheckpointError."""
    document = _parse(path)
    if not isinstance(document, list):
        raise CheckpointError(f"{path}: must be a JSON list, is a {type(document).__name__}")
    return document


def _parse(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder with config.json, weights as safetensors, tokenizer.json and perhaps more. Properties raise CheckpointError."""

    path: Path
    root: Path | None = None
    """Where modules.json lies, if that is another folder."""

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_json(self.path / CONFIG_FILE)

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        return self._optional("tokenizer_config.json")

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        return self._optional(GENERATION_FILE)

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @property
    def architecture(self) -> str:
        """The class that wrote it, such as `LlamaForCausalLM`; empty if the configuration doesn't say."""
        return str((self.config.get("architectures") or [""])[0])

    @property
    def is_sentence_transformer(self) -> bool:
        return ((self.root or self.path) / MODULES_FILE).is_file()

    @cached_property
    def sentence_config(self) -> dict[str, Any]:
        """Of sentence-transformers."""
        return self._optional("sentence_bert_config.json")

    @property
    def tokenizer_limit(self) -> int | None:
        """The longest input in tokens that the tokenizer names; a number that no model reaches where it has none."""
        limit = self.tokenizer_config.get("model_max_length")
        return None if limit is None else int(limit)

    @property
    def chat_template(self) -> str | None:
        """Jinja; of several the one named `default`."""
        path = self.path / "chat_template.jinja"
        if path.is_file():
            return _read_text(path)
        template = self.tokenizer_config.get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        return None if template is None else str(template)

    def check_weights(self, auto_class: str) -> None:
        """Weights are there and aren't pickle; `auto_class` of transformers would load them. Raises CheckpointError."""
        if "quantization_config" in self.config:
            raise CheckpointError(
                f"{self.path}: its weights are quantized already; import the original and quantize it with --quantize"
            )
        if any(self.path.glob("*.safetensors")):
            return
        pickled = sorted(path.name for path in self.path.iterdir() if path.suffix in PICKLED)
        if not pickled:
            raise CheckpointError(f"{self.path}: has no weights (*.safetensors)")
        raise CheckpointError(
            f"{self.path}: {pickled[0]} is pickle, which can run code when it is read; if you trust who made it, convert it: "
            f'python -c "from transformers import {auto_class} as M; '
            f"M.from_pretrained('{self.path}').save_pretrained('{self.path}')\""
        )

    def check_tokenizer(self) -> None:
        """tokenizer.json is there. Raises CheckpointError."""
        path = self.path / TOKENIZER_FILE
        if not path.is_file() and self.model_type == "marian":
            raise CheckpointError(
                f"{path}: no such file, and transformers has no tokenizer for Marian that can write it; it has to be made by "
                "hand, with the tokenizers library, of source.spm, target.spm and vocab.json"
            )
        if not path.is_file():
            raise CheckpointError(
                f'{path}: no such file; make it: python -c "from transformers import AutoTokenizer as T; '
                f"T.from_pretrained('{self.path}').save_pretrained('{self.path}')\""
            )

    def tokenizer_json(self, vocabulary_size: int) -> str:
        """tokenizer.json without added tokens that the model has no embedding for. Raises CheckpointError."""
        path = self.path / TOKENIZER_FILE
        document = read_json(path)
        added = document.get("added_tokens") or []
        known = [token for token in added if token["id"] < vocabulary_size]
        if len(known) == len(added):
            return _read_text(path)
        return json.dumps({**document, "added_tokens": known}, ensure_ascii=False)

    def tokenizer_entry(self, tokenizer_json: str, vocabulary_size: int) -> bundle_pb2.Tokenizer:
        """Special tokens: of generation_config.json, else config.json, else tokenizer_config.json. Raises ExportError."""
        library = read_tokenizer(tokenizer_json, vocabulary_size)

        def ids(kind: str) -> list[int]:
            for document in (self.generation_config, self.config):
                found = document.get(f"{kind}_token_id")
                found = found if isinstance(found, list) else [found]
                if valid := [token for token in found if isinstance(token, int) and 0 <= token < vocabulary_size]:
                    return valid
            token = self.tokenizer_config.get(f"{kind}_token")
            text = token.get("content") if isinstance(token, dict) else token
            found = library.token_to_id(text) if text else None
            return [] if found is None else [found]

        return bundle_pb2.Tokenizer(
            file=TOKENIZER_FILE,
            bos_token_id=_first(ids("bos")),
            eos_token_ids=ids("eos"),
            pad_token_id=_first(ids("pad")),
        )

    def sampling(self) -> bundle_pb2.SamplingDefaults:
        """What generation_config.json says; `do_sample: false` is temperature 0, and where nothing is said it is 1, for a model that
        answers about a source 0."""
        given = {name: self.generation_config.get(name) for name in SAMPLING_FIELDS}
        values = {name: value for name, value in given.items() if value is not None}
        greedy = self.generation_config.get("do_sample", self.model_type not in SEQ2SEQ) is False
        return bundle_pb2.SamplingDefaults(**{"temperature": 1.0, **values, **({"temperature": 0.0} if greedy else {})})

    def ignored(self) -> tuple[str, tuple[str, ...]]:
        """The file that says how to generate, which is config.json where there is no generation_config.json, as to transformers; and
        names of what it wants and a bundle doesn't keep."""
        settings = self.generation_config
        file, said = (GENERATION_FILE, settings) if settings else (CONFIG_FILE, self.config)
        return file, tuple(name for name in IGNORED_FIELDS if _is_set(name, said.get(name)))

    def labels(self) -> tuple[str, ...]:
        """By index; `LABEL_0` and so on where config.json names none."""
        named = {int(index): str(label) for index, label in (self.config.get("id2label") or {}).items()}
        count = max(named, default=int(self.config.get("num_labels", 2)) - 1) + 1
        return tuple(named.get(index, f"LABEL_{index}") for index in range(count))

    def _optional(self, name: str) -> dict[str, Any]:
        path = self.path / name
        return read_json(path) if path.is_file() else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _is_set(name: str, value: Any) -> bool:
    """0 is a token's id, and as a size or length it says nothing."""
    return value not in (None, []) and (value != 0 or name.endswith("_token_id"))


def _first(ids: Sequence[int]) -> int | None:
    return ids[0] if ids else None

"""What lies in a checkpoint folder beside its weights, read without transformers."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from polyhead.export.huggingface.architectures import SEQ2SEQ
from polyhead.export.huggingface.fields import integer, malformed, number
from polyhead.export.huggingface.pickles import convert_model, pickled_among, refusal
from polyhead.export.source import TOKENIZER_FILE, read_tokenizer
from polyhead.models.checkpoint import CheckpointError
from polyhead.server.errors import InvalidInput
from polyhead.server.ranges import SAMPLING
from polyhead.v1 import bundle_pb2

CONFIG_FILE = "config.json"
MODULES_FILE = "modules.json"
"""Of sentence-transformers."""
SENTENCES_FILE = "config_sentence_transformers.json"
SENTENCE_CONFIG_FILE = "sentence_bert_config.json"
CROSS_ENCODER_TASK = "sequence-classification"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
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
    """Whether config.json is transformers', who doesn't write a format into it as `polyhead train` does. Raises CheckpointError for a
    file, and for what can't be read."""
    if folder.is_file():
        raise CheckpointError(f"{folder}: is a file; name the folder it lies in, {folder.parent}")
    path = transformer_folder(folder) / CONFIG_FILE
    if not path.is_file():
        return False
    config = read_json(path)
    return "model_type" in config or "format" not in config


def transformer_folder(folder: Path) -> Path:
    """Where config.json, tokenizer and weights lie: the folder itself, or the one that modules.json names for its first module,
    which older sentence-transformers call `0_Transformer`. Raises CheckpointError."""
    modules = folder / MODULES_FILE
    first = next(iter(read_list(modules)), None) if modules.is_file() else None
    return module_folder(modules, 0, first.get("path") or "") if isinstance(first, dict) else folder


def module_folder(modules: Path, index: int, path: object) -> Path:
    """Of an entry of modules.json. Raises CheckpointError if it is none inside the checkpoint."""
    field, root = f"[{index}].path", modules.parent
    if not isinstance(path, str):
        raise malformed(modules, field, "a folder's path", path)
    folder = root / path
    if not folder.resolve().is_relative_to(root.resolve()):
        raise malformed(modules, field, "inside the checkpoint", path)
    return folder


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
        return self._optional(TOKENIZER_CONFIG_FILE)

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        return self._optional(GENERATION_FILE)

    @property
    def model_type(self) -> str:
        if not isinstance(found := self.config.get("model_type"), str):
            raise malformed(
                self.path / CONFIG_FILE, "model_type", "the name of an architecture, as transformers writes it", found
            )
        return found

    @property
    def architecture(self) -> str:
        """The class that wrote it, such as `LlamaForCausalLM`; empty if the configuration doesn't say."""
        given = self.config.get("architectures") or [""]
        if not (isinstance(given, list) and isinstance(given[0], str)):
            raise malformed(self.path / CONFIG_FILE, "architectures", "a list of names of classes", given)
        return given[0]

    @property
    def top(self) -> Path:
        """Where the files of sentence-transformers lie."""
        return self.root or self.path

    @property
    def is_sentence_transformer(self) -> bool:
        return (self.top / MODULES_FILE).is_file()

    @property
    def is_cross_encoder(self) -> bool:
        """Whether sentence-transformers wrote it as one; earlier than version 6 it wrote nothing that says so."""
        says = self.sentence_settings, self.sentence_config
        return says[0].get("model_type") == "CrossEncoder" or any(
            said.get("transformer_task") == CROSS_ENCODER_TASK for said in says
        )

    @cached_property
    def sentence_settings(self) -> dict[str, Any]:
        """Of sentence-transformers, about all of the model."""
        path = self.top / SENTENCES_FILE
        return read_json(path) if path.is_file() else {}

    @cached_property
    def sentence_config(self) -> dict[str, Any]:
        """Of sentence-transformers, about the transformer."""
        return self._optional(SENTENCE_CONFIG_FILE)

    @property
    def tokenizer_limit(self) -> int | None:
        """The longest input in tokens that the tokenizer names; a number that no model reaches where it has none."""
        limit, path = self.tokenizer_config.get("model_max_length"), self.path / TOKENIZER_CONFIG_FILE
        if limit is None or number(path, "model_max_length", limit) == math.inf or limit <= 0:
            return None
        return integer(path, "model_max_length", limit, 1)

    @property
    def sentence_limit(self) -> int | None:
        """The same of sentence-transformers."""
        limit = self.sentence_config.get("max_seq_length")
        return None if limit is None else integer(self.path / SENTENCE_CONFIG_FILE, "max_seq_length", limit, 1)

    @property
    def chat_template(self) -> str | None:
        """Jinja; of several the one named `default`."""
        path = self.path / "chat_template.jinja"
        if path.is_file():
            return _read_text(path)
        template = self.tokenizer_config.get("chat_template")
        if isinstance(template, list):
            template = dict(self._named_template(index, entry) for index, entry in enumerate(template)).get("default")
        if not isinstance(template, str | None):
            limit = "a text, or a list of them with names"
            raise malformed(self.path / TOKENIZER_CONFIG_FILE, "chat_template", limit, template)
        return template

    def _named_template(self, index: int, entry: object) -> tuple[str, str]:
        if isinstance(entry, dict):
            name, template = entry.get("name"), entry.get("template")
            if isinstance(name, str) and isinstance(template, str):
                return name, template
        path, limit = self.path / TOKENIZER_CONFIG_FILE, "an object with a name and a template, both texts"
        raise malformed(path, f"chat_template[{index}]", limit, entry)

    def check_weights(self, auto_class: str) -> None:
        """Weights are there and aren't pickle; `auto_class` of transformers would load them. Raises CheckpointError."""
        if "quantization_config" in self.config:
            raise CheckpointError(
                f"{self.path}: its weights are quantized already; import the original and quantize it with --quantize"
            )
        if any(self.path.glob("model*.safetensors")):  # others are another model's, or the same once more
            return
        pickled = pickled_among(path.name for path in self.path.iterdir())
        if not pickled:
            raise CheckpointError(f"{self.path}: has no weights (model.safetensors)")
        raise CheckpointError(f"{self.path}: {refusal(pickled[0], convert_model(self.path, auto_class))}")

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
        if not self.unknown_tokens(vocabulary_size):
            return _read_text(path)
        document = read_json(path)
        known = [token for token in self.added_tokens if token["id"] < vocabulary_size]
        return json.dumps({**document, "added_tokens": known}, ensure_ascii=False)

    def unknown_tokens(self, vocabulary_size: int) -> list[str]:
        """Added tokens that the model has no embedding for. Raises CheckpointError."""
        return [str(token.get("content")) for token in self.added_tokens if token["id"] >= vocabulary_size]

    @cached_property
    def added_tokens(self) -> list[dict[str, Any]]:
        """Of tokenizer.json, each with an id."""
        path = self.path / TOKENIZER_FILE
        added = read_json(path).get("added_tokens") or []
        if not isinstance(added, list):
            raise malformed(path, "added_tokens", "a list", added)
        for index, token in enumerate(added):
            if not isinstance(token, dict):
                raise malformed(path, f"added_tokens[{index}]", "an object", token)
            integer(path, f"added_tokens[{index}].id", token.get("id"), 0)
        return added

    def tokenizer_entry(self, tokenizer_json: str, vocabulary_size: int) -> bundle_pb2.Tokenizer:
        """Special tokens: of generation_config.json, else config.json, else tokenizer_config.json. An answer ends with what
        generation_config.json says alone; where it says nothing, with config.json's end tokens and with the tokenizer's, which in a
        chat model is the end of a turn. Raises ExportError."""
        library = read_tokenizer(tokenizer_json, vocabulary_size)

        def ids(kind: str) -> list[int]:
            named = self._token_of_tokenizer(library, kind)
            for document in (self.generation_config, self.config):
                found = document.get(f"{kind}_token_id")
                found = found if isinstance(found, list) else [found]
                if valid := [token for token in found if isinstance(token, int) and 0 <= token < vocabulary_size]:
                    more = named if kind == "eos" and document is self.config else []
                    return list(dict.fromkeys([*valid, *more]))
            return named

        return bundle_pb2.Tokenizer(
            file=TOKENIZER_FILE,
            bos_token_id=_first(ids("bos")),
            eos_token_ids=ids("eos"),
            pad_token_id=_first(ids("pad")),
        )

    def _token_of_tokenizer(self, library: tokenizers.Tokenizer, kind: str) -> list[int]:
        """What tokenizer_config.json says; none or one."""
        token = self.tokenizer_config.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        found = library.token_to_id(text) if text and isinstance(text, str) else None
        return [] if found is None else [found]

    def sampling(self) -> bundle_pb2.SamplingDefaults:
        """What generation_config.json says; `do_sample: false` is temperature 0, and where nothing is said it is 1, for a model that
        answers about a source 0. Raises CheckpointError for what no request could say either."""
        given = {name: self.generation_config.get(name) for name in SAMPLING_FIELDS}
        values = {name: self._sampled(name, value) for name, value in given.items() if value is not None}
        greedy = self.generation_config.get("do_sample", self.model_type not in SEQ2SEQ) is False
        return bundle_pb2.SamplingDefaults(**{"temperature": 1.0, **values, **({"temperature": 0.0} if greedy else {})})

    def _sampled(self, name: str, given: object) -> Any:
        path, limits = self.path / GENERATION_FILE, SAMPLING[name]
        if name == "top_k":
            return min(0 if given == -1 else integer(path, name, given, 0), int(limits.high))  # -1: off, as in vLLM
        value = number(path, name, given)
        try:
            return limits.check(name, value)
        except InvalidInput:
            raise malformed(path, name, str(limits), given) from None

    def ignored(self) -> tuple[str, tuple[str, ...]]:
        """The file that says how to generate, which is config.json where there is no generation_config.json, as to transformers; and
        names of what it wants and a bundle doesn't keep."""
        settings = self.generation_config
        file, said = (GENERATION_FILE, settings) if settings else (CONFIG_FILE, self.config)
        return file, tuple(name for name in IGNORED_FIELDS if _is_set(name, said.get(name)))

    def labels(self) -> tuple[str, ...]:
        """By index; `LABEL_0` and so on where config.json names none."""
        path, given = self.path / CONFIG_FILE, self.config.get("id2label") or {}
        try:
            named = {int(index): str(label) for index, label in given.items()}
        except (AttributeError, TypeError, ValueError):
            raise malformed(path, "id2label", "an object with a label for each index", given) from None
        count = max(named, default=integer(path, "num_labels", self.config.get("num_labels", 2), 1) - 1) + 1
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

"""Constrained decoding by llguidance: which tokens may follow so that the answer matches a grammar."""

import json
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from polyhead.server.errors import InvalidInput

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

Kind = Literal["json_schema", "regex", "lark", "choice"]

LIMITS = LLParserLimits(max_items_in_row=500)
"""The library's limits, but a quarter of its 2,000 alternatives at a time: an ambiguous grammar would keep everyone in the batch
waiting for half a second a token before it reaches those."""

JSON_STYLE: "JsonCompileOptions" = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a document, as most JSON that models learn from is written: free white space lets a weak model write nothing
else until its tokens are spent."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must match: a JSON schema, a regular expression, a Lark grammar, or one of several strings."""

    kind: Kind
    text: str = ""
    choices: tuple[str, ...] = ()


class DeadEnd(InvalidInput):
    """No token may come next, and the answer is not complete: another beginning may do better."""


_DEAD_END = "NoExtensionBias"
"""What the library says of one that it sees itself."""


class Matcher:
    """Where one answer is in its grammar. One thread at a time."""

    def __init__(self, library: LLMatcher, vocabulary_size: int, silent: NDArray[np.int64], field: str) -> None:
        """`silent`: tokens that write nothing, and never may come next."""
        self._library = library
        self._field = field
        self._words = np.zeros((vocabulary_size + 31) // 32, np.uint32)
        self._vocabulary_size = vocabulary_size
        self._silent = silent

    def allowed(self) -> NDArray[np.bool_]:
        """(V,): the tokens that may come next, at least one; end tokens once the answer is complete. Releases the GIL. Raises DeadEnd
        if there are none, and InvalidInput if the grammar can't be followed any further."""
        self._library.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        if self._library.is_error():  # the mask then has end tokens alone, as if the answer were complete
            raise self._refusal()
        allowed = np.unpackbits(self._words.view(np.uint8), bitorder="little")[: self._vocabulary_size].view(np.bool_)
        allowed[self._silent] = (
            False  # what must come next the library has the tokenizer write, to whom that may be unknown
        )
        if not allowed.any():
            raise DeadEnd(self._field, "the model's vocabulary cannot write what must come next")
        return allowed

    def copy(self) -> "Matcher":
        """At the same place, going on by itself."""
        return Matcher(self._library.deep_copy(), self._vocabulary_size, self._silent, self._field)

    def consume(self, token: int) -> None:
        """A token was chosen. Raises InvalidInput if the grammar has become too ambiguous to go on."""
        if not self._library.consume_token(token):
            raise self._refusal()

    def _refusal(self) -> InvalidInput:
        """The library's own words quote what was generated."""
        if self._library.get_error().startswith(_DEAD_END):
            return DeadEnd(self._field, "matches nothing here that the model's tokens can write")
        return InvalidInput(self._field, "can't be followed any further: it has become too ambiguous")


class Grammar:
    """A constraint compiled for one model; any number of answers may follow it."""

    def __init__(self, beginning: Matcher) -> None:
        self._beginning = beginning

    def matcher(self) -> Matcher:
        """At the grammar's beginning."""
        return self._beginning.copy()


class GrammarCompiler:
    """Of one model. Thread-safe; the first call reads the tokenizer's vocabulary, which takes a moment."""

    def __init__(
        self, tokenizer: Path, vocabulary_size: int, end_tokens: frozenset[int], silent: frozenset[int] = frozenset()
    ) -> None:
        """`tokenizer`: the bundle's tokenizer.json; `silent`: tokens that no answer has, such as those that begin and pad one. The
        tokenizer's unknown token is always among them, end tokens never."""
        self._path = tokenizer
        self._vocabulary_size = vocabulary_size
        self._end_tokens = sorted(end_tokens)
        self._silent = silent
        self._lock = Lock()
        self._tokenizer: tuple[LLTokenizer, NDArray[np.int64]] | None = None

    def compile(self, constraint: Constraint) -> Grammar:
        """Raises InvalidInput, naming the field, for what is no grammar, for one that nothing matches as far as its first token
        tells, and for a model without an end token."""
        field = f"constraint.{constraint.kind}"
        if not self._end_tokens:
            raise InvalidInput(field, "the model has no end token, so its answers cannot be constrained")
        try:
            tokenizer, silent = self._library_tokenizer()
            library = LLMatcher(tokenizer, _grammar(constraint), log_level=0, limits=LIMITS)
        except RecursionError:
            raise InvalidInput(field, "is nested too deeply") from None
        except ValueError as error:
            raise InvalidInput(field, _one_line(str(error))) from error
        if library.is_error():
            raise InvalidInput(field, _one_line(library.get_error()))
        grammar = Grammar(Matcher(library, self._vocabulary_size, silent, field))
        grammar.matcher().allowed()
        return grammar

    def _library_tokenizer(self) -> tuple[LLTokenizer, NDArray[np.int64]]:
        """The vocabulary, and the tokens in it that write nothing."""
        with self._lock:
            if self._tokenizer is None:
                text = self._path.read_text("utf-8")
                document = json.loads(text)
                library = LLTokenizer(
                    _readable(document) or text, n_vocab=self._vocabulary_size, eos_token=self._end_tokens
                )
                silent = (self._silent | _unknown_tokens(document)) - set(self._end_tokens)
                self._tokenizer = library, np.array(sorted(silent), np.int64)
            return self._tokenizer


def _readable(document: dict[str, Any]) -> str | None:
    """The same tokens in a form that the library knows, None if they are: it refuses tokens that are text as they stand, but takes
    them from tokenizers that may write bytes as `<0x0A>`, too."""
    if (document.get("decoder") or {}).get("type") != "Fuse":
        return None
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    return json.dumps({**document, "decoder": decoder})


def _unknown_tokens(document: dict[str, Any]) -> set[int]:
    """What a tokenizer writes for characters that it doesn't know: a token, if it has one. Unigram models name an id, the others a
    text."""
    model = document["model"]
    if model.get("unk_id") is not None:
        return {model["unk_id"]}
    if model.get("unk_token") is None:
        return set()
    ids = {**model["vocab"], **{added["content"]: added["id"] for added in document.get("added_tokens") or ()}}
    return {ids[model["unk_token"]]} if model["unk_token"] in ids else set()


def _grammar(constraint: Constraint) -> str:
    match constraint.kind:
        case "json_schema":
            json.loads(constraint.text)  # its message says where; the library's does not
            return LLMatcher.grammar_from_json_schema(constraint.text, overrides=JSON_STYLE)
        case "regex":
            return LLMatcher.grammar_from_regex(constraint.text)
        case "lark":
            return LLMatcher.grammar_from_lark(constraint.text)
        case "choice":  # Lark's strings are quoted like JSON's
            return LLMatcher.grammar_from_lark(
                "start: " + " | ".join(json.dumps(choice) for choice in constraint.choices)
            )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]

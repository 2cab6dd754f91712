"""transformers' encoders with a head that classifies, or one that embeds."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyhead.export.attention import padded_attention
from polyhead.export.exportable import EncoderSizes, ExportableEncoder, Floats
from polyhead.export.huggingface.attention import attention_of, merge_heads, split_heads
from polyhead.export.huggingface.sentences import SentenceHead, activation
from polyhead.export.huggingface.substitutes import substitutes

FAR = -1e30
"""Added to the scores of keys outside a window. Finite, so that a row of padding that sees none stays a number."""


class HuggingFaceEncoder(ExportableEncoder):
    """An encoder of transformers; where its attention is a function of query, key and value, that becomes nodes that know
    each row's length, and elsewhere (MPNet, DeBERTa) it stays what transformers computes with a mask."""

    def __init__(self, model: Any, max_tokens: int) -> None:
        """`max_tokens`: longest input. Subclasses set `sizes` from it."""
        super().__init__()
        self.model = model
        self.max_tokens = max_tokens

    def run(self, input_ids: Tensor, lengths: Tensor, token_types: Tensor | None) -> Any:
        """transformers' output for right-padded rows. Traced."""
        mask = torch.arange(input_ids.shape[1]) < lengths[:, None]  # (B, S)
        inputs = {"input_ids": input_ids, "attention_mask": mask.long(), **self.types(token_types)}
        if not getattr(self.model, "_supports_attention_backend", False):
            return self.model(**inputs)
        with attention_of(self.model, over_rows(lengths)):
            return self.model(**inputs)

    def types(self, token_types: Tensor | None) -> dict[str, Tensor]:
        return {"token_type_ids": token_types} if self.takes_token_types and token_types is not None else {}

    @torch.inference_mode()
    def reference(self, ids: NDArray[np.int64], token_types: NDArray[np.int64] | None = None) -> Floats:
        row = torch.from_numpy(ids)[None]
        types = self.types(None if token_types is None else torch.from_numpy(token_types)[None])
        output = self.model(input_ids=row, attention_mask=torch.ones_like(row), **types)
        array: Floats = self.head(output, torch.tensor([len(ids)]))[0].numpy()
        return array

    def encode(self, input_ids: Tensor, lengths: Tensor, token_types: Tensor | None) -> Tensor:
        return self.head(self.run(input_ids, lengths, token_types), lengths)

    @abstractmethod
    def head(self, output: Any, lengths: Tensor) -> Tensor:
        """Probabilities (B, outputs) or (B, S, outputs), or embeddings (B, outputs), of transformers' output."""

    @contextmanager
    def tracing(self) -> Iterator[None]:
        with substitutes(self.model, self.max_tokens):
            yield


class HuggingFaceClassifier(HuggingFaceEncoder):
    """Labels of inputs, or of each of their tokens."""

    output = "probabilities"
    pooling = None

    def __init__(
        self,
        model: Any,
        max_tokens: int,
        labels_tokens: bool = False,
        takes_token_types: bool = False,
        activation_fn: str | None = None,
    ) -> None:
        """`activation_fn`: see `activation_of`."""
        super().__init__(model, max_tokens)
        self.sizes = EncoderSizes(model.config.vocab_size, max_tokens, model.config.num_labels)
        self.labels_tokens = labels_tokens
        self.takes_token_types = takes_token_types
        self.activate = nn.Softmax(-1) if labels_tokens else activation_of(model.config, activation_fn)

    def head(self, output: Any, lengths: Tensor) -> Tensor:
        scores: Tensor = self.activate(output.logits)
        return scores


def activation_of(config: Any, saved: str | None = None) -> nn.Module:
    """What makes scores of a head's logits: what sentence-transformers wrote down for its CrossEncoder, `saved` beside the model or in
    `config`; else by `problem_type`, as transformers' pipeline does, the logits themselves (regression), each label by itself between 0
    and 1 (several labels at once, or one), or a distribution. For several labels Identity is what it writes where nobody chose, and
    counts as nothing. Raises ExportError for an activation that torch doesn't have."""
    settings = getattr(config, "sentence_transformers", None)
    settings = settings if isinstance(settings, dict) else {}
    earlier = getattr(config, "sbert_ce_default_activation_function", None)
    if name := saved or settings.get("activation_fn") or earlier:
        chosen = activation(str(name))
        if config.num_labels == 1 or not isinstance(chosen, nn.Identity):
            return chosen
    if config.problem_type == "regression":
        return nn.Identity()
    return (
        nn.Sigmoid()
        if config.num_labels == 1 or config.problem_type == "multi_label_classification"
        else nn.Softmax(-1)
    )


class HuggingFaceEmbedder(HuggingFaceEncoder):
    """The token vectors through sentence-transformers' steps."""

    output = "embeddings"

    def __init__(self, model: Any, max_tokens: int, steps: SentenceHead) -> None:
        super().__init__(model, max_tokens)
        self.steps = steps
        self.normalized = steps.normalized
        self.pooling = steps.ways[0] if len(steps.ways) == 1 else None
        outputs = steps.outputs(model.config.hidden_size)
        self.sizes = EncoderSizes(model.config.vocab_size, max_tokens, outputs)

    def head(self, output: Any, lengths: Tensor) -> Tensor:
        embeddings: Tensor = self.steps(output.last_hidden_state, lengths)
        return embeddings


def over_rows(lengths: Tensor) -> Any:
    """The attention function that puts a node over rows of these lengths (B,) for each layer."""

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        heads, size = query.shape[1], query.shape[3]
        flat = (merge_heads(query), merge_heads(key), merge_heads(value))
        window = None if sliding_window is None else window_mask(query.shape[2], sliding_window)
        mixed = padded_attention(*flat, lengths, heads, size**-0.5 if scaling is None else float(scaling), window)
        return split_heads(mixed, heads), None

    return attend


def window_mask(positions: int, window: int) -> Tensor:
    """(S, S): 0 where two positions are fewer than `window` apart, as transformers counts, else FAR."""
    where = torch.arange(positions)
    near = (where[:, None] - where[None]).abs() < window
    return torch.where(near, 0.0, FAR)


def longest_input(model: nn.Module, tokenizer_limit: int | None, sentence_limit: int | None) -> int:
    """Tokens: as many as there are positions, if the tokenizer or sentence-transformers name no smaller limit.

    Models of RoBERTa's kind count positions from behind the padding id.
    """
    positions = int(model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            positions = module.num_embeddings - module.padding_idx - 1
    return min(limit for limit in (positions, tokenizer_limit, sentence_limit) if limit is not None and limit > 0)

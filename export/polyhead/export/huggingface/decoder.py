"""transformers' decoders over cache slots."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from polyhead.export.attention import AttentionVariant
from polyhead.export.errors import ExportError
from polyhead.export.exportable import LEAST_TOKENS, DecoderSizes, ExportableDecoder, Floats, Slots
from polyhead.export.huggingface.attention import attention_of, merge_heads, split_heads
from polyhead.export.huggingface.substitutes import substitutes

HEAD_MULTIPLE = 8
"""GroupQueryAttention takes no other head sizes."""


class HuggingFaceDecoder(ExportableDecoder):
    """Any of transformers' causal language models whose attention is a function of query, key and value.

    The model embeds, rotates and normalizes as transformers does; only its attention becomes nodes on the slots.
    """

    model: Any
    takes_positions = True

    def __init__(self, model: Any, max_tokens: int | None = None) -> None:
        """`max_tokens`: fewer than the model can take. Raises ExportError for what the attention nodes can't do."""
        super().__init__()
        self.model = model
        self.sizes = decoder_sizes(model.config, max_tokens)

    def logits(self, input_ids: Tensor, logit_positions: Tensor, slots: Slots, position_ids: Tensor | None) -> Tensor:
        def select(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            return (inputs[0].flatten(0, 1).index_select(0, logit_positions),)  # (B, S, C) -> (N, C)

        # The output layer is the widest, so select before it; what comes after it (soft caps, scales) is elementwise.
        hook = self.model.get_output_embeddings().register_forward_pre_hook(select)
        try:
            with attention_of(self.model, on_slots(slots)):
                output = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        finally:
            hook.remove()
        logits: Tensor = output.logits
        return logits

    @torch.inference_mode()
    def reference(self, tokens: list[int], count: int) -> tuple[Floats, Floats]:
        from transformers import DynamicCache

        cache = DynamicCache()  # told of no window, so it keeps every token, as slots do
        output = self.model(torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=count)
        sides = [torch.stack([getattr(layer, side)[0] for layer in cache.layers]) for side in ("keys", "values")]
        return output.logits[0].numpy(), torch.stack(sides).numpy()

    @contextmanager
    def tracing(self) -> Iterator[None]:
        with substitutes(self.model, self.sizes.max_tokens):
            yield


def on_slots(slots: Slots) -> Any:
    """The attention function that puts a node on the slots for each layer."""

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **more: Any,
    ) -> tuple[Tensor, None]:
        if more.get("s_aux") is not None or not getattr(module, "is_causal", True):
            raise ExportError(f"{type(module).__name__} has attention sinks or looks ahead, which the nodes can't do")
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        variant = AttentionVariant(scale, sliding_window, softcap or 0.0)
        flat = (merge_heads(query), merge_heads(key), merge_heads(value))
        mixed = slots.attend(module.layer_idx, *flat, variant=variant)
        return split_heads(mixed, query.shape[1]), None

    return attend


def decoder_sizes(config: Any, max_tokens: int | None) -> DecoderSizes:
    """Raises ExportError for a head size that the attention nodes can't take, or `max_tokens` the model can't."""
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if head_size % HEAD_MULTIPLE:
        raise ExportError(
            f"head size {head_size} must be a multiple of {HEAD_MULTIPLE}: the fused attention takes no other"
        )
    limit = longest_input(config)
    if max_tokens is not None and not LEAST_TOKENS <= max_tokens <= limit:
        raise ExportError(
            f"--max-tokens must be from {LEAST_TOKENS} to {limit}, which the checkpoint can take, got {max_tokens}"
        )
    return DecoderSizes(
        vocabulary_size=config.vocab_size,
        max_tokens=max_tokens or limit,
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=head_size,
    )


def longest_input(config: Any) -> int:
    """Tokens. Where frequencies change with the length of the input (longrope, dynamic), keys in the cache would have to be
    rotated anew, so the limit is the length up to which they don't. YaRN's (Peng et al. 2023) stay as they are, and are made for `factor`
    times the original length, also where a configuration that was edited for it still has that length as its positions."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in rope.values() if isinstance(kind, dict)] or [rope]
    positions = int(config.max_position_embeddings)
    return min(limit_of(kind, config, positions) for kind in kinds)


def limit_of(kind: Mapping[str, Any], config: Any, positions: int) -> int:
    """Tokens that one kind of rotation can take, of a model with so many positions."""
    original = kind.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    if kind.get("rope_type") == "longrope":
        return min(positions, int(original or positions))
    if kind.get("rope_type") == "yarn" and original:
        return max(positions, int(original * (kind.get("factor") or 1)))
    return positions

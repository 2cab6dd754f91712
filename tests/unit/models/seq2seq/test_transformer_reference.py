"""The Transformer's mathematics, held against torch's own layers with the same weights, and against the paper's formulas."""

from math import cos, sin, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from polyhead.models.seq2seq import TransformerSeq2Seq, TransformerSeq2SeqConfig
from polyhead.models.seq2seq.transformer import SinusoidalPositions
from polyhead.models.seq2seq.transformer_config import Norm
from tests.unit.models.seq2seq.sources import SOURCES, TARGETS, padded_sources, targets

WIDTH, LAYERS = 16, 2
CONFIG: dict[str, Any] = {"layers": LAYERS, "heads": 2, "width": WIDTH, "hidden": 24, "norm_epsilon": 0.1}
"""An epsilon that is told from any other."""
NORMS: tuple[Norm, ...] = ("pre", "post")


def build(norm: Norm) -> TransformerSeq2Seq:
    """No weight is what a norm or a bias begins with, so that leaving one out shows."""
    torch.manual_seed(0)
    model = TransformerSeq2Seq(TransformerSeq2SeqConfig(SOURCES, TARGETS, norm=norm, **CONFIG)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return model


def reference(block: nn.Module, kind: type[nn.Module], norm: Norm) -> nn.Module:
    """torch's layer with a block's weights."""
    layer = kind(WIDTH, 2, 24, 0.0, layer_norm_eps=0.1, batch_first=True, norm_first=norm == "pre").eval()
    own = block.state_dict()
    attentions = {"self_attn": "attention", "multihead_attn": "cross"}
    norms = [name for name in ("attention", "cross", "mlp") if f"{name}_residual.norm.weight" in own]
    weights: dict[str, Tensor] = {"linear1.weight": own["mlp.up.weight"], "linear1.bias": own["mlp.up.bias"]}
    weights |= {"linear2.weight": own["mlp.down.weight"], "linear2.bias": own["mlp.down.bias"]}
    for number, name in enumerate(norms, 1):
        weights |= {f"norm{number}.{end}": own[f"{name}_residual.norm.{end}"] for end in ("weight", "bias")}
    for theirs, ours in list(attentions.items())[: len(norms) - 1]:
        projections = [own[f"{ours}.{name}.weight"] for name in ("query", "key", "value")]
        weights |= {f"{theirs}.in_proj_weight": torch.cat(projections), f"{theirs}.in_proj_bias": torch.zeros(48)}
        weights |= {f"{theirs}.out_proj.weight": own[f"{ours}.output.weight"]}
        weights |= {f"{theirs}.out_proj.bias": torch.zeros(WIDTH)}
    layer.load_state_dict(weights)  # every one, and no other
    return layer


def embedded(table: nn.Embedding, ids: Tensor) -> Tensor:
    """Sections 3.4 and 3.5, one number at a time; sines in the first half, cosines in the second."""
    positions = torch.empty(ids.shape[1], WIDTH)
    for position in range(ids.shape[1]):
        for i in range(WIDTH // 2):
            angle = position / 10_000 ** (2 * i / WIDTH)
            positions[position, i], positions[position, WIDTH // 2 + i] = sin(angle), cos(angle)
    return table.weight[ids] * sqrt(WIDTH) + positions


def normalized(x: Tensor, norm: nn.Module, kind: Norm) -> Tensor:
    """A stack of pre-norm layers ends with a norm of its own."""
    if kind == "post":
        return x
    return F.layer_norm(x, (WIDTH,), norm.weight, norm.bias, 0.1)  # type: ignore[arg-type]


def expected_hidden(model: TransformerSeq2Seq, norm: Norm, source: Tensor, lengths: Tensor) -> Tensor:
    x = embedded(model.source_embedding, source)
    padding = torch.arange(source.shape[1]) >= lengths[:, None]
    for block in model.encoder_blocks:
        x = reference(block, nn.TransformerEncoderLayer, norm)(x, src_key_padding_mask=padding)
    return normalized(x, model.encoder_norm, norm)


def expected_logits(model: TransformerSeq2Seq, norm: Norm, hidden: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
    x = embedded(model.embedding, target)
    padding = torch.arange(hidden.shape[1]) >= lengths[:, None]
    later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
    for block in model.decoder_blocks:
        layer = reference(block, nn.TransformerDecoderLayer, norm)
        x = layer(x, hidden, tgt_mask=later, memory_key_padding_mask=padding)
    return normalized(x, model.decoder_norm, norm) @ model.embedding.weight.T


@pytest.mark.parametrize("norm", NORMS)
@torch.no_grad()
def test_source_and_target_are_read_as_torch_s_layers_read_them(norm: Norm) -> None:
    model, (source, lengths), target = build(norm), padded_sources(6, 1, 9), targets(3, 5)
    hidden = expected_hidden(model, norm, source, lengths)
    encoded = model.encode(source, lengths)
    for row, length in enumerate(lengths.tolist()):
        assert_close(encoded[row, :length], hidden[row, :length])
    assert_close(model(source, lengths, target).logits, expected_logits(model, norm, hidden, lengths, target))


def test_the_two_norms_are_not_the_same() -> None:
    (source, lengths), target = padded_sources(6, 3), targets(2, 4)
    pre, post = build("pre"), build("post")
    pre.load_state_dict({**pre.state_dict(), **post.state_dict()})
    assert not torch.allclose(pre(source, lengths, target).logits, post(source, lengths, target).logits, atol=0.1)


def test_positions_are_sines_and_cosines_of_the_paper_s_wavelengths() -> None:
    """Of width 4: position over 1 and over 10,000^(2/4) = 100 (section 3.5)."""
    table = SinusoidalPositions(102, 4)(torch.tensor([0, 1, 101]))
    expected = [
        [0.0, 0.0, 1.0, 1.0],
        [0.841471, 0.00999983, 0.540302, 0.999950],
        [0.452026, 0.846832, 0.892005, 0.531861],
    ]
    assert_close(table, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_embeddings_are_scaled_by_the_root_of_the_width_before_positions_are_added() -> None:
    model, (source, lengths) = build("pre"), padded_sources(6)
    seen: list[Tensor] = []
    model.encoder_blocks[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model.encode(source, lengths)
    positions = model.source_positions(torch.arange(6))
    assert_close(seen[0], model.source_embedding.weight[source] * 4.0 + positions)  # width 16

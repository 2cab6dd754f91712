"""Every architecture with an encoder and a decoder that can be imported: exported, verified, and served as transformers generates."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from polyhead.export.huggingface import architectures
from polyhead.export.pipeline import export_source, load_source, open_verified
from polyhead.export.seq2seq.verify import answers
from polyhead.server.bundle import read_bundle
from tests.parity.huggingface import VOCABULARY, write_checkpoint

SPECIAL = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
BART = {
    **SPECIAL,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "max_position_embeddings": 70,
    "forced_eos_token_id": None,
}
T5 = {
    **SPECIAL,
    "d_model": 48,
    "d_kv": 8,
    "d_ff": 80,
    "num_layers": 2,
    "num_heads": 5,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}
CHECKPOINTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bart": ("BartConfig", BART),
    "marian": ("MarianConfig", {**BART, "decoder_vocab_size": VOCABULARY, "scale_embedding": True}),
    "mt5": ("MT5Config", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5": ("T5Config", T5),
}
SMALL_SUITE = ("t5",)
STEPS = 30


@cache
def exported(name: str) -> tuple[Any, Path]:
    """transformers' model and the bundle of its checkpoint; made once a test run."""
    folder = Path(mkdtemp(prefix="polyhead-test-"))
    write_checkpoint(folder / "checkpoint", "AutoModelForSeq2SeqLM", *CHECKPOINTS[name])
    # Read again: a table of sines is not in a checkpoint.
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        folder / "checkpoint", attn_implementation="eager"
    ).eval()
    return model, export_source(load_source(folder / "checkpoint"), folder / "models" / "tiny")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SMALL_SUITE else pytest.mark.long) for name in CHECKPOINTS]
)
def test_a_mixed_batch_decodes_token_for_token_as_transformers_generates(name: str) -> None:
    model, folder = exported(name)
    bundle = read_bundle(folder)
    assert bundle.manifest.traffic_independent
    assert max(check.error for check in bundle.manifest.parity) < 3e-6
    random = np.random.default_rng(0)
    sources = [random.integers(3, VOCABULARY, length).tolist() for length in (1, 2, 5, 31, 64)]
    decoder = open_verified(bundle)
    for row in answers(decoder, sources, STEPS):
        assert [*row.inputs, int(row.topk_ids[-1, 0])] == generate(model, row.source)
    decoder.close()


@torch.inference_mode()
def generate(model: Any, source: list[int]) -> list[int]:
    """transformers' own greedy search, past end tokens."""
    ids = torch.tensor([source])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=1,
        max_new_tokens=STEPS,
        eos_token_id=None,
        forced_eos_token_id=None,
    )
    tokens: list[int] = output[0].tolist()
    return tokens


def test_every_supported_model_with_two_parts_is_held() -> None:
    assert CHECKPOINTS.keys() == architectures.SEQ2SEQ.keys()

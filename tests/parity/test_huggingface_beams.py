"""Beam search with a penalty, a bias, bans and a shortest answer on an imported checkpoint, against transformers' own."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

from polyhead.server.bundle import read_bundle
from polyhead.server.engine.generator import Generator
from polyhead.server.engine.sequence import BeamOptions, GenerationRequest, Sampling, Stopping
from polyhead.server.runtime.seq2seq import Seq2SeqDecoder
from tests.decoders import LIMITS, byte_tokenizer
from tests.observers import Unwatched
from tests.parity.huggingface import VOCABULARY
from tests.parity.test_huggingface_seq2seq import exported
from tests.traffic import Whole, samples

END, WIDTH, TOKENS = 2, 4, 12
BEST = 2
PENALTY, BIAS, BANNED, SHORTEST = 1.6, ((5, -3.0), (40, 0.4)), ((7,), (8, 9)), 3


@torch.inference_mode()
def of_transformers(model: Any, source: list[int], length_penalty: float) -> list[tuple[tuple[int, ...], float]]:
    """Its processors act on log-probabilities. The token that the decoder begins with does not count as said with us."""
    processors = [
        RepetitionPenaltyLogitsProcessor(PENALTY, prompt_ignore_length=1),
        SequenceBiasLogitsProcessor([[[token], value] for token, value in BIAS]),
    ]
    ids = torch.tensor([source])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=WIDTH,
        num_return_sequences=BEST,
        length_penalty=length_penalty,
        early_stopping="never",
        max_new_tokens=TOKENS,
        min_new_tokens=SHORTEST,
        bad_words_ids=[list(word) for word in BANNED],
        logits_processor=LogitsProcessorList(processors),
        forced_eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    answers = [tokens[1:].tolist() for tokens in found.sequences]
    cut = [answer[: answer.index(END) + 1] if END in answer else answer for answer in answers]
    return list(zip(map(tuple, cut), found.sequences_scores.tolist(), strict=True))


async def of_ours(engine: Generator, source: list[int], length_penalty: float) -> list[Whole]:
    sampling = Sampling(0, 0.0, repetition_penalty=PENALTY, logit_bias=BIAS, bad_words=BANNED)
    beams = BeamOptions(WIDTH, length_penalty)
    stopping = Stopping(TOKENS, SHORTEST)
    return await samples(engine, GenerationRequest(tuple(source), sampling, stopping, samples=BEST, beam_search=beams))


SOURCES = {"t5": (1, 5, 17), "bart": (1, 17, 31)}
"""Lengths of sources where the greedy beginning, which ours always keep, takes no better one's place."""


@pytest.mark.parametrize("name", ["t5", pytest.param("bart", marks=pytest.mark.long)])
async def test_the_best_beams_and_their_scores_are_those_of_transformers(name: str) -> None:
    model, folder = exported(name)
    decoder = Seq2SeqDecoder(folder, read_bundle(folder).manifest, slots=WIDTH, capacity=TOKENS, source_capacity=40)
    engine = Generator(decoder, byte_tokenizer(END), LIMITS, Unwatched())
    engine.start()
    random = np.random.default_rng(0)
    for length, length_penalty in ((1, 1.0), (5, 1.0), (17, 0.0), (31, 2.0)):
        source = random.integers(3, VOCABULARY, length).tolist()
        if length not in SOURCES[name]:
            continue
        found, expected = await of_ours(engine, source, length_penalty), of_transformers(model, source, length_penalty)
        assert [answer.token_ids for answer in found] == [tokens for tokens, _ in expected]
        assert [answer.score for answer in found] == pytest.approx([score for _, score in expected], abs=1e-4)
    engine.close()

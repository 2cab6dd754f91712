"""GenerateRequest → GenerationRequest, and pieces → messages."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.server.engine.sequence import FinishReason, Piece, Sampling, Stopping, TokenLogprob
from polyhead.server.errors import InvalidInput
from polyhead.server.loader import LiveModel
from polyhead.server.ranges import SAMPLING
from polyhead.server.rpc.generation import generation_request, message
from polyhead.server.rpc.parameters import sampling, stopping
from polyhead.server.rpc.workers import Workers
from polyhead.v1 import bundle_pb2
from polyhead.v1 import inference_pb2 as pb
from tests import bundles

floats = st.floats(width=32, allow_nan=True, allow_infinity=True)


def with_defaults(model: LiveModel, **defaults: float) -> LiveModel:
    manifest = bundle_pb2.Bundle()
    manifest.CopyFrom(model.manifest)
    manifest.sampling_defaults.CopyFrom(bundle_pb2.SamplingDefaults(**defaults))  # type: ignore[arg-type]
    return replace(model, manifest=manifest)


def test_what_the_request_leaves_open_comes_from_the_bundle_else_from_the_contract(generator: LiveModel) -> None:
    chosen = sampling(pb.SamplingParameters(top_k=3, seed=1), with_defaults(generator, temperature=0.5, top_k=7))
    assert chosen == Sampling(seed=1, temperature=0.5, top_k=3, top_p=1.0, min_p=0.0, repetition_penalty=1.0)


def test_a_value_of_zero_is_set_and_wins_over_the_bundle(generator: LiveModel) -> None:
    model = with_defaults(generator, temperature=0.5, top_k=7)
    chosen = sampling(pb.SamplingParameters(temperature=0, top_k=0, seed=0), model)
    assert (chosen.temperature, chosen.top_k, chosen.seed) == (0, 0, 0)


def test_without_a_seed_each_request_gets_its_own(generator: LiveModel) -> None:
    seeds = {sampling(pb.SamplingParameters(), generator).seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**64 for seed in seeds)


@given(name=st.sampled_from(sorted(SAMPLING.keys() - {"top_k"})), value=floats)
def test_a_sampling_value_is_taken_exactly_if_it_is_in_range_and_else_refused_by_name(
    generator: LiveModel, name: str, value: float
) -> None:
    given_ = pb.SamplingParameters()
    setattr(given_, name, value)
    limits = SAMPLING[name]
    value = getattr(given_, name)
    above_low = value > limits.low if limits.above else value >= limits.low
    if math.isfinite(value) and above_low and value <= limits.high:
        assert getattr(sampling(given_, generator), name) == value
    else:
        with pytest.raises(InvalidInput, match=r"must be .*, got ") as error:
            sampling(given_, generator)
        assert error.value.field == f"sampling.{name}"


def test_a_top_k_beyond_the_vocabulary_means_all_of_it(generator: LiveModel) -> None:
    size = generator.manifest.limits.vocabulary_size
    assert sampling(pb.SamplingParameters(top_k=2**32 - 1), generator).top_k == size


def test_bad_words_are_banned_as_written_and_after_a_space(generator: LiveModel) -> None:
    encode = generator.tokenizer.encode
    chosen = sampling(pb.SamplingParameters(bad_words=["cat"], logit_bias={5: -1.5, 3: 2}), generator)
    assert chosen.bad_words == (tuple(encode("cat", False)), tuple(encode(" cat", False)))
    assert chosen.logit_bias == ((3, 2.0), (5, -1.5))


@pytest.mark.parametrize(
    ("given_", "complaint"),
    [
        (pb.SamplingParameters(bad_words=["x"] * 65), "sampling.bad_words: must be at most 64 strings, got 65"),
        (pb.SamplingParameters(bad_words=[""]), r"sampling.bad_words\[0\]: must have 1 to 256 characters, got 0"),
        (pb.SamplingParameters(logit_bias={99_999: 1}), "tokens must be below the vocabulary size .*, got 99999"),
        (pb.SamplingParameters(logit_bias={1: 101}), r"sampling.logit_bias\[1\]: must be -100 to 100, got 101"),
        (
            pb.SamplingParameters(logit_bias=dict.fromkeys(range(1025), 0.0)),
            "sampling.logit_bias: must have at most 1024 tokens, got 1025",
        ),
    ],
)
def test_bad_words_and_biases_out_of_bounds_are_refused_by_name(
    generator: LiveModel, given_: pb.SamplingParameters, complaint: str
) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        sampling(given_, generator)


@given(st.integers(1, 50), st.one_of(st.none(), st.integers(0, 80)), st.integers(0, 80), st.integers(1, 60))
def test_an_answer_always_fits_what_the_slot_has_room_for(
    room: int, max_tokens: int | None, min_tokens: int, default: int
) -> None:
    given_ = pb.StoppingCriteria(max_tokens=max_tokens, min_tokens=min_tokens)
    wanted = min(default, room) if max_tokens is None else max_tokens
    if not 1 <= wanted <= room:
        with pytest.raises(InvalidInput, match=rf"stopping.max_tokens: must be 1 to {room} .*, got {wanted}"):
            stopping(given_, room, 10, default, 50)
    elif min_tokens > wanted:
        with pytest.raises(
            InvalidInput, match=f"stopping.min_tokens: must be 0 to max_tokens {wanted}, got {min_tokens}"
        ):
            stopping(given_, room, 10, default, 50)
    else:
        assert stopping(given_, room, 10, default, 50) == Stopping(wanted, min_tokens)


@pytest.mark.parametrize(
    ("stop", "complaint"),
    [
        (["x"] * 17, "stopping.stop: must be at most 16 strings, got 17"),
        (["x", ""], r"stopping.stop\[1\]: must have 1 to 256 characters, got 0"),
        (["x" * 257], r"stopping.stop\[0\]: must have 1 to 256 characters, got 257"),
    ],
)
def test_too_many_empty_and_too_long_stop_strings_are_refused(stop: list[str], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        stopping(pb.StoppingCriteria(stop=stop), 10, 1, 5, 50)


def test_sixteen_stop_strings_of_256_characters_that_are_not_ascii_are_taken() -> None:
    assert len(stopping(pb.StoppingCriteria(stop=["é" * 256] * 16), 10, 1, 5, 50).stop) == 16


def test_stop_tokens_are_taken_up_to_sixteen_below_the_vocabulary_size() -> None:
    def tokens(*ids: int) -> tuple[int, ...]:
        return stopping(pb.StoppingCriteria(stop_token_ids=ids), 10, 1, 5, 50).stop_token_ids

    assert tokens(*range(34, 50)) == tuple(range(34, 50))
    with pytest.raises(InvalidInput, match=r"stopping.stop_token_ids: must be at most 16 tokens, got 17"):
        tokens(*range(17))
    with pytest.raises(InvalidInput, match=r"stop_token_ids\[1\]: must be below the vocabulary size 50, got 50"):
        tokens(3, 50)


@pytest.mark.parametrize(("asked", "taken"), [(None, None), (0, 0), (20, 20)])
async def test_log_probabilities_are_sent_only_if_asked_for(
    generator: LiveModel, asked: int | None, taken: int | None
) -> None:
    work = await generation_request(
        pb.GenerateRequest(logprobs=asked, prompt_logprobs=asked), (1,), generator, 5, Workers(4)
    )
    assert (work.logprobs, work.prompt_logprobs) == (taken, taken)


async def test_the_room_for_an_answer_is_what_the_prompt_leaves_of_a_slot(generator: LiveModel) -> None:
    request = pb.GenerateRequest(stopping=pb.StoppingCriteria(max_tokens=4))
    capacity = bundles.GENERATOR_TOKENS
    assert (await generation_request(request, (1,) * (capacity - 4), generator, 5, Workers(4))).stopping.max_tokens == 4
    with pytest.raises(
        InvalidInput, match=rf"1 to 3 \(a slot's {capacity} tokens minus the prompt's {capacity - 3}\), got 4"
    ):
        await generation_request(request, (1,) * (capacity - 3), generator, 5, Workers(4))


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (pb.GenerateRequest(logprobs=21), "logprobs: must be 0 to 20, got 21"),
        (pb.GenerateRequest(prompt_logprobs=21), "prompt_logprobs: must be 0 to 20, got 21"),
        (pb.GenerateRequest(samples=0), "samples: must be 1 to .*, the model's slots, got 0"),
        (pb.GenerateRequest(samples=99_999), "samples: must be 1 to .*, the model's slots, got 99999"),
        (pb.GenerateRequest(priority=-101), "priority: must be -100 to 100, got -101"),
        (pb.GenerateRequest(constraint=pb.Constraint()), "constraint: must have one of json_schema, regex, lark"),
        (pb.GenerateRequest(constraint=pb.Constraint(regex="")), "constraint.regex: must have 1 to 65536 characters"),
        (pb.GenerateRequest(constraint=pb.Constraint(regex="[")), "constraint.regex: .*unclosed"),
        (pb.GenerateRequest(constraint=pb.Constraint(json_schema="{")), "constraint.json_schema: Expecting"),
        (pb.GenerateRequest(constraint=pb.Constraint(json_schema='{"type": "x"}')), "constraint.json_schema: .*x"),
        (pb.GenerateRequest(constraint=pb.Constraint(lark="start: y")), "constraint.lark: .*unknown name"),
        (
            pb.GenerateRequest(constraint=pb.Constraint(choice=pb.Choice())),
            "constraint.choice.choices: must be 1 to 256 strings, got 0",
        ),
        (
            pb.GenerateRequest(constraint=pb.Constraint(choice=pb.Choice(choices=["a", "a"]))),
            "constraint.choice.choices: must be different",
        ),
        (
            pb.GenerateRequest(
                constraint=pb.Constraint(regex="a"), stopping=pb.StoppingCriteria(ignore_eos=True, max_tokens=2)
            ),
            "stopping.ignore_eos: must not be set together with constraint",
        ),
        (
            pb.GenerateRequest(
                constraint=pb.Constraint(regex="a"), stopping=pb.StoppingCriteria(min_tokens=1, max_tokens=2)
            ),
            "stopping.min_tokens: must not be set together with constraint",
        ),
    ],
)
async def test_what_is_out_of_bounds_or_contradicts_itself_is_refused_by_name(
    generator: LiveModel, request_: pb.GenerateRequest, complaint: str
) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        await generation_request(request_, (1,), generator, 5, Workers(4))


async def test_a_constraint_is_compiled_for_the_models_own_tokens(generator: LiveModel) -> None:
    choice = pb.Choice(choices=["cat", 'dog "d"'])
    work = await generation_request(
        pb.GenerateRequest(constraint=pb.Constraint(choice=choice)), (1,), generator, 5, Workers(4)
    )
    assert work.grammar is not None
    allowed = work.grammar.matcher().allowed()
    assert {generator.tokenizer.token(i)[0] for i in np.flatnonzero(allowed).tolist()} == {"c", "d"}


def test_a_piece_becomes_a_message_with_all_it_has() -> None:
    top = (TokenLogprob(8, "b", -0.25),)
    piece = Piece("ab", (7,), (TokenLogprob(7, "a", -0.5, top),), FinishReason.STOP)
    expected = pb.GenerateResponse(
        text="ab",
        token_ids=[7],
        logprobs=[pb.TokenLogprob(token_id=7, token="a", logprob=-0.5, top=[pb.TokenLogprob(token_id=8, token="b", logprob=-0.25)])],
        finish_reason=pb.FINISH_REASON_STOP,
        seed=5,
    )  # fmt: skip
    assert message(piece, seed=5) == expected
    assert message(Piece("", (), sample_index=2, prompt_logprobs=top)) == pb.GenerateResponse(
        sample_index=2, prompt_logprobs=[pb.TokenLogprob(token_id=8, token="b", logprob=-0.25)]
    )

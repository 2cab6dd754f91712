"""Sequence-to-sequence models over a real channel: what torch says, alone and in company, with beams and with alignments."""

import asyncio

import grpc
import numpy as np
import pytest
import tokenizers
import torch

from polyhead.v1 import inference_pb2
from tests.integration.conftest import Running, Start
from tests.translators import (
    ANSWER_TOKENS,
    ATTENTION,
    CONFIGURATIONS,
    FIXED,
    SOURCE_TEXT,
    SOURCE_TOKENS,
    TRANSFORMER,
    torch_translator,
    translators_folder,
)

SOURCES = ["abc", "mardi 3 avril", "z", "le chat est sur la table et il dort", (SOURCE_TEXT * 7)[: SOURCE_TOKENS - 1]]


@pytest.fixture
async def translating(start: Start) -> Running:
    return await start(models=translators_folder(), slots=12)


def request(model: str, source: str, **fields: object) -> inference_pb2.GenerateRequest:
    sampling = inference_pb2.SamplingParameters(temperature=0)
    wanted = inference_pb2.GenerateRequest(
        model=inference_pb2.ModelReference(name=model), prompt=inference_pb2.Input(text=source), sampling=sampling
    )
    wanted.MergeFrom(inference_pb2.GenerateRequest(**fields))  # type: ignore[arg-type]
    return wanted


def beams(width: int, samples: int = 1, **options: object) -> dict[str, object]:
    return {
        "beam_search": inference_pb2.BeamSearch(width=width, **options),  # type: ignore[arg-type]
        "samples": samples,
        "logprobs": 0,
    }


Answer = list[inference_pb2.GenerateResponse]


async def ask(server: Running, wanted: inference_pb2.GenerateRequest) -> Answer:
    return [message async for message in server.inference.Generate(wanted)]


def tokens(answer: Answer, sample: int = 0) -> list[int]:
    return [token for message in answer if message.sample_index == sample for token in message.token_ids]


def logprobs(answer: Answer, sample: int = 0) -> list[float]:
    return [entry.logprob for message in answer if message.sample_index == sample for entry in message.logprobs]


def last(answer: Answer, sample: int = 0) -> inference_pb2.GenerateResponse:
    return [message for message in answer if message.sample_index == sample][-1]


def bits(answer: Answer) -> object:
    """All that an answer says but its times and name."""
    ends = [(m.sample_index, m.finish_reason, m.score, list(m.alignment.weights)) for m in answer if m.finish_reason]
    samples = {message.sample_index for message in answer}
    return [(tokens(answer, i), logprobs(answer, i)) for i in sorted(samples)], sorted(ends)


@pytest.mark.parametrize("model", CONFIGURATIONS)
async def test_a_greedy_answer_is_that_of_torch(translating: Running, model: str) -> None:
    folder = translators_folder() / model / "1"
    read = tokenizers.Tokenizer.from_file(str(folder / "source_tokenizer.json"))
    begin, end = (int(read.token_to_id(token) or 0) for token in ("<s>", "</s>"))
    for source in SOURCES:
        ids = read.encode(source).ids
        answer = await ask(translating, request(model, source))
        expected = torch_translator(model).greedy(
            torch.tensor([ids]), torch.tensor([len(ids)]), ANSWER_TOKENS, begin, end
        )[0]
        assert [token for token in tokens(answer) if token != end] == expected


async def test_answers_are_the_same_bits_alone_and_among_all_others(translating: Running) -> None:
    wanted = [
        request(model, source, **options)
        for model in CONFIGURATIONS
        for source in SOURCES
        for options in ({"logprobs": 2, "return_alignment": model != FIXED}, beams(3, 2))
    ]
    together = await asyncio.gather(*(ask(translating, one) for one in wanted))
    for one, among_others in zip(wanted, together, strict=True):
        assert bits(await ask(translating, one)) == bits(among_others)


@pytest.mark.parametrize("model", CONFIGURATIONS)
async def test_a_single_beam_is_the_greedy_answer_and_more_are_never_worse(translating: Running, model: str) -> None:
    for source in SOURCES:
        greedy = await ask(translating, request(model, source, logprobs=0))
        single = await ask(translating, request(model, source, **beams(1)))
        assert (tokens(single), logprobs(single)) == (tokens(greedy), logprobs(greedy))
        for length_penalty in (0.0, 1.0):
            options = {"length_penalty": length_penalty}
            found = await ask(translating, request(model, source, **beams(4, 4, **options)))
            scores = [last(found, i).score for i in range(4)]
            own = sum(logprobs(greedy)) / len(logprobs(greedy)) ** length_penalty
            assert scores == sorted(scores, reverse=True)
            assert scores[0] >= own - 1e-5
            assert len({tuple(tokens(found, i)) for i in range(4)}) == 4
            mean = sum(logprobs(found)) / len(logprobs(found)) ** length_penalty
            assert scores[0] == pytest.approx(mean, rel=1e-4)


async def test_an_alignment_has_a_row_for_each_token_of_the_answer(translating: Running) -> None:
    for options in ({}, beams(3, 2)):
        answer = await ask(translating, request(ATTENTION, "abc", return_alignment=True, **options))
        for sample in {message.sample_index for message in answer}:
            alignment = last(answer, sample).alignment
            assert list(alignment.source_tokens) == ["a", "b", "c", "</s>"]
            assert len(alignment.target_tokens) == len(tokens(answer, sample))
            weights = np.array(alignment.weights).reshape(len(alignment.target_tokens), 4)
            assert weights.sum(1) == pytest.approx(1, abs=1e-5)


async def test_an_answer_keeps_to_its_grammar_with_and_without_beams(translating: Running) -> None:
    constraint = inference_pb2.Constraint(regex="[0-9]{4}-[0-9]{2}")
    for options in ({}, beams(3, 3)):
        answer = await ask(translating, request(TRANSFORMER, "mardi", constraint=constraint, **options))
        for sample in {message.sample_index for message in answer}:
            text = "".join(message.text for message in answer if message.sample_index == sample)
            assert len(text) == 7
            assert text[4] == "-"
            assert text.replace("-", "").isdecimal()


async def test_beams_that_have_fewer_answers_to_find_tell_those(translating: Running) -> None:
    constraint = inference_pb2.Constraint(choice=inference_pb2.Choice(choices=["12", "345"]))
    answer = await ask(translating, request(TRANSFORMER, "mardi", constraint=constraint, **beams(4, 4)))
    assert {message.text for message in answer if message.finish_reason} == {"12", "345"}


def choices(*texts: str) -> dict[str, object]:
    return {"constraint": inference_pb2.Constraint(choice=inference_pb2.Choice(choices=texts))}


async def test_beams_that_the_vocabulary_can_not_go_on_with_are_dropped(translating: Running) -> None:
    answer = await ask(translating, request(TRANSFORMER, "mardi", **choices("2024-04-03", "1-x"), **beams(4, 4)))
    assert {message.text for message in answer if message.finish_reason} == {"2024-04-03"}


@pytest.mark.parametrize("options", [{}, beams(3)], ids=["greedy", "beams"])
@pytest.mark.parametrize(
    ("constraint", "is_told_at_once"),
    [
        (inference_pb2.Constraint(choice=inference_pb2.Choice(choices=["yes"])), True),
        (inference_pb2.Constraint(regex="[0-9]{4}/[0-9]{2}"), False),
    ],
    ids=["first token", "later"],
)
async def test_what_the_vocabulary_can_not_write_fails_in_words(
    translating: Running, constraint: inference_pb2.Constraint, is_told_at_once: bool, options: dict[str, object]
) -> None:
    seen: list[str] = []

    async def collect() -> None:
        async for message in translating.inference.Generate(
            request(TRANSFORMER, "mardi", constraint=constraint, **options)
        ):
            seen.append(message.text)

    with pytest.raises(grpc.aio.AioRpcError) as error:
        await collect()
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    kind = constraint.WhichOneof("constraint")
    assert error.value.details() == f"constraint.{kind}: the model's vocabulary cannot write what must come next"
    assert len("".join(seen)) == (0 if is_told_at_once or options else 4)


async def test_beams_go_together_with_a_penalty_and_biases(translating: Running) -> None:
    banned = inference_pb2.SamplingParameters(temperature=0, repetition_penalty=1.5, logit_bias={4: -100, 5: -100})
    plain = await ask(translating, request(TRANSFORMER, "mardi", **beams(3)))
    changed = await ask(translating, request(TRANSFORMER, "mardi", sampling=banned, **beams(3)))
    assert not {4, 5} & set(tokens(changed))
    assert last(changed).score < last(plain).score


async def test_characters_that_the_model_has_not_seen_are_read_as_unknown(translating: Running) -> None:
    answer = await ask(translating, request(ATTENTION, "日本", return_alignment=True))
    assert list(last(answer).alignment.source_tokens) == ["<|unk|>", "<|unk|>", "</s>"]


@pytest.mark.parametrize(
    ("wanted", "description"),
    [
        (request(ATTENTION, ""), "prompt: must not be empty"),
        (request(ATTENTION, "a" * SOURCE_TOKENS), "prompt: must have at most 200 tokens, got 201"),
        (request(ATTENTION, "a", **beams(13)), "beam_search.width: must be 1 to 12, the model's slots, got 13"),
        (request(ATTENTION, "a", **beams(0)), "beam_search.width: must be 1 to 12, the model's slots, got 0"),
        (request(ATTENTION, "a", **beams(2, 3)), "samples: must be 1 to 2, the width of the beam search, got 3"),
        (
            request(ATTENTION, "a", **beams(2, length_penalty=11)),
            "beam_search.length_penalty: must be -10 to 10, got 11",
        ),
        (
            request(ATTENTION, "a", **beams(2), sampling=inference_pb2.SamplingParameters(top_k=3)),
            "sampling.top_k: must not be set together with beam_search",
        ),
        (
            request(ATTENTION, "a", **beams(2), sampling=inference_pb2.SamplingParameters(presence_penalty=1)),
            "sampling.presence_penalty: must not be set together with beam_search",
        ),
        (
            request(ATTENTION, "a", **beams(2), stopping=inference_pb2.StoppingCriteria(stop=["x"])),
            "stopping.stop: must not be set together with beam_search",
        ),
        (request(FIXED, "a", return_alignment=True), "return_alignment: must not be set"),
        (request(ATTENTION, "a", prompt_lookup=True), "prompt_lookup: must not be set"),
        (request(ATTENTION, "a", prompt_logprobs=1), "prompt_logprobs: must not be set"),
        (
            request(ATTENTION, "a", stopping=inference_pb2.StoppingCriteria(max_tokens=ANSWER_TOKENS + 1)),
            "stopping.max_tokens: must be 1 to 40",
        ),
    ],
)
async def test_what_can_not_be_is_refused_with_field_and_limit(
    translating: Running, wanted: inference_pb2.GenerateRequest, description: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await ask(translating, wanted)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert description in (error.value.details() or "")

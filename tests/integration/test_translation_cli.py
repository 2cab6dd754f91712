"""Sequence-to-sequence models by the `polyhead` command and the Python client, against the real server."""

from pathlib import Path

import pytest

from polyhead.client import AsyncClient, InvalidInput
from tests.integration.conftest import Running, Start
from tests.integration.test_cli import Command
from tests.translators import ANSWER_TOKENS, ATTENTION, CONFIGURATIONS, FIXED, SOURCE_TOKENS, translators_folder

SLOTS = 12


@pytest.fixture
async def translating(start: Start) -> Running:
    return await start(models=translators_folder(), slots=SLOTS)


@pytest.fixture
def polyhead(translating: Running) -> Command:
    return Command(translating.target)


async def test_the_best_answers_come_sorted_with_their_scores(polyhead: Command) -> None:
    arguments = ("generate", "mardi", "--model", ATTENTION, "--beams", "4", "--samples", "3")
    answers = (await polyhead(*arguments, "--json")).objects
    assert [answer["sample_index"] for answer in answers] == [0, 1, 2]
    scores = [answer["score"] for answer in answers]
    assert scores == sorted(scores, reverse=True)
    shown = await polyhead(*arguments)
    assert (shown.code, shown.err) == (0, "")
    titles = [f"--- sample {index}, score {score:.4f} ---" for index, score in enumerate(scores)]
    assert [line for line in shown.out.splitlines() if line.startswith("---")] == titles


async def test_a_search_that_finds_fewer_answers_gives_those(translating: Running) -> None:
    async with AsyncClient(translating.target) as client:
        found = await client.generate("mardi", ATTENTION, beam_width=4, samples=4, choices=["12", "345"]).results()
        assert {answer.text for answer in found} == {"12", "345"}
        best = await client.generate("mardi", ATTENTION, beam_width=4, choices=["12", "345"]).result()
        assert (best.text, best.score) == (found[0].text, found[0].score)


async def test_the_alignment_of_json_is_what_the_terminal_draws(polyhead: Command) -> None:
    arguments = ("generate", "é a", "--model", ATTENTION, "--temperature", "0", "--max-tokens", "5", "--alignment", "-")
    (answer,) = (await polyhead(*arguments, "--json")).objects
    alignment = answer["alignment"]
    assert alignment["source_tokens"] == ["é", " ", "a", "</s>"]
    assert [len(row) for row in alignment["weights"]] == [4] * len(answer["token_ids"])
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in alignment["weights"])
    drawn = (await polyhead(*arguments)).out.splitlines()
    text, heading, rows = drawn[0], drawn[4].split(), drawn[5:-1]
    assert (text, heading) == (answer["text"], ["é", "␣", "a", ">"])
    assert [row.split()[0] for row in rows] == alignment["target_tokens"]


async def test_each_text_has_its_picture(polyhead: Command, tmp_path: Path) -> None:
    arguments = ("generate", "abc", "z", "--model", ATTENTION, "--beams", "2")
    for suffix, begin in ((".png", b"\x89PNG"), (".html", b"<!DOCTYPE html>")):
        done = await polyhead(*arguments, "--alignment", str(tmp_path / f"out{suffix}"))
        assert (done.code, done.err) == (0, "")
        for number in (1, 2):
            assert (tmp_path / f"out-{number}{suffix}").read_bytes().startswith(begin)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((FIXED, "--alignment", "-"), "return_alignment: must not be set: the model does not attend to a source"),
        ((ATTENTION, "--beams", "13"), f"beam_search.width: must be 1 to {SLOTS}, the model's slots, got 13"),
        ((ATTENTION, "--beams", "2", "--top-k", "3"), "sampling.top_k: must not be set together with beam_search"),
        ((ATTENTION, "--beams", "2", "--samples", "3"), "samples: must be 1 to 2, the width of the beam search, got 3"),
    ],
)
async def test_a_refusal_is_one_line(polyhead: Command, arguments: tuple[str, ...], complaint: str) -> None:
    done = await polyhead("generate", "abc", "--model", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert complaint in done.err


async def test_the_client_names_the_field_that_the_server_refuses(translating: Running) -> None:
    async with AsyncClient(translating.target) as client:
        with pytest.raises(InvalidInput) as caught:
            await client.generate("a", ATTENTION, beam_width=2, length_penalty=11).result()
        assert caught.value.field == "beam_search.length_penalty"


async def test_models_tell_longest_source_and_longest_answer(translating: Running, polyhead: Command) -> None:
    listed = await polyhead("models")
    longest = f"{SOURCE_TOKENS} → {ANSWER_TOKENS}"
    assert {line.split()[0]: longest in line for line in listed.out.splitlines()[1:]} == dict.fromkeys(
        CONFIGURATIONS, True
    )
    described = (await polyhead("models", "--describe", ATTENTION)).out
    facts = dict(line.split("  ", 1) for line in described.splitlines() if line[:1].strip() and "  " in line)
    assert facts["longest source"].strip() == f"{SOURCE_TOKENS} tokens"
    assert facts["longest answer"].strip() == f"{ANSWER_TOKENS} tokens"
    assert facts["tokenizer of sources"].strip() == "source_tokenizer.json"
    async with AsyncClient(translating.target) as client:
        model = await client.model(ATTENTION)
    assert (model.max_tokens, model.max_answer_tokens) == (SOURCE_TOKENS, ANSWER_TOKENS)


async def test_models_tell_what_fits_a_servers_slots_and_what_the_manifest_allows_before(start: Start) -> None:
    small = await start(models=translators_folder(), slots=2, slot_tokens=30, on_demand="*")
    async with AsyncClient(small.target) as client:
        before = {model.name: (model.max_tokens, model.max_answer_tokens) for model in await client.models()}
        assert before[ATTENTION] == (SOURCE_TOKENS, ANSWER_TOKENS)
        await client.generate("a", ATTENTION, max_tokens=1).result()
        after = {model.name: (model.max_tokens, model.max_answer_tokens) for model in await client.models()}
    assert (after[ATTENTION], after[FIXED]) == ((30, 30), (SOURCE_TOKENS, ANSWER_TOKENS))


def test_the_card_tells_longest_source_and_longest_answer() -> None:
    card = (translators_folder() / ATTENTION / "1" / "MODEL.md").read_text("utf-8")
    for row in (
        f"| longest source | {SOURCE_TOKENS} tokens |",
        f"| longest answer | {ANSWER_TOKENS} tokens |",
        "| tokenizer of sources | source_tokenizer.json |",
    ):
        assert row in card.splitlines()
    assert "longest input" not in card


async def test_a_load_of_searches_is_measured(polyhead: Command) -> None:
    lengths = ("--prompt-tokens", "8", "--max-tokens", "6", "--streams", "2", "--requests", "4", "--seed", "1")
    (report,) = (await polyhead("bench", "generate", "--model", ATTENTION, "--beams", "3", *lengths, "--json")).objects
    assert (report["requests"]["completed"], report["settings"]["sampling"]["beam_width"]) == (4, 3)
    lonely = await polyhead("bench", "generate", "--model", ATTENTION, "--length-penalty", "2", *lengths)
    assert (lonely.code, lonely.err) == (2, "polyhead bench generate: --length-penalty needs --beams N\n")

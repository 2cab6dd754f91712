"""Texts and token ids of a request → checked token ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.server.errors import InvalidInput
from polyhead.server.loader import LiveModel
from polyhead.server.rpc import inputs
from polyhead.server.rpc.inputs import encoder_inputs, tokenize
from polyhead.server.rpc.workers import Workers
from polyhead.v1 import inference_pb2 as pb
from tests import bundles

WORKERS = Workers(16)


async def prompt_tokens(prompt: pb.Input, model: LiveModel, workers: Workers) -> tuple[int, ...]:
    return await inputs.prompt_tokens(pb.GenerateRequest(prompt=prompt), model, workers)


def ids(*values: int) -> pb.Input:
    return pb.Input(token_ids=pb.TokenIds(ids=values))


@pytest.mark.parametrize("prompt", [pb.Input(), pb.Input(text=""), ids()])
async def test_an_empty_prompt_becomes_the_begin_token(generator: LiveModel, prompt: pb.Input) -> None:
    assert await prompt_tokens(prompt, generator, WORKERS) == (generator.tokenizer.bos_token_id,)


async def test_an_empty_prompt_is_refused_where_there_is_no_begin_token(
    generator: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator.tokenizer, "bos_token_id", None)
    with pytest.raises(InvalidInput, match="prompt: must have at least 1 token, as the model has no begin token"):
        await prompt_tokens(ids(), generator, WORKERS)


async def test_text_gets_its_special_tokens_and_ids_are_taken_as_they_are(generator: LiveModel) -> None:
    text = await prompt_tokens(pb.Input(text="the cat"), generator, WORKERS)
    assert text[0] == generator.tokenizer.bos_token_id
    assert await prompt_tokens(ids(*text[1:]), generator, WORKERS) == text[1:]


async def test_a_prompt_leaves_room_for_one_token(generator: LiveModel) -> None:
    longest = bundles.GENERATOR_TOKENS - 1
    assert len(await prompt_tokens(ids(*[5] * longest), generator, WORKERS)) == longest
    with pytest.raises(InvalidInput, match=f"prompt: must have at most {longest} tokens .*, got {longest + 1}"):
        await prompt_tokens(ids(*[5] * (longest + 1)), generator, WORKERS)


async def test_a_token_beyond_the_vocabulary_is_refused_by_its_place(generator: LiveModel) -> None:
    size = generator.manifest.limits.vocabulary_size
    with pytest.raises(InvalidInput, match=f"below the vocabulary size {size}, got {size}") as error:
        await prompt_tokens(ids(0, size - 1, size), generator, WORKERS)
    assert error.value.field == "prompt.token_ids.ids[2]"


async def encode(model: LiveModel, *inputs: pb.Input, truncate: bool = False) -> list[list[int]]:
    found = await encoder_inputs(inputs, model, WORKERS, truncate=truncate, max_inputs=4)
    return [list(given.ids) for given in found]


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ([], "inputs: must be 1 to 4, got 0"),
        ([pb.Input(text="a")] * 5, "inputs: must be 1 to 4, got 5"),
        ([pb.Input(text="a"), pb.Input(text="")], r"inputs\[1\]: must not be empty"),
        ([pb.Input(text="a"), pb.Input()], r"inputs\[1\]: must not be empty"),
        ([ids()], r"inputs\[0\]: must have at least 1 token, got none"),
        ([ids(0), ids(9999)], r"inputs\[1\].token_ids.ids\[0\]: must be below the vocabulary size \d+, got 9999"),
        ([ids(*[5] * 33)], r"inputs\[0\]: must have at most 32 tokens unless truncate is set, got 33"),
        ([pb.Input(text="zyx " * 40)], r"inputs\[0\]: must have at most 32 tokens unless truncate is set, got 1\d\d"),
    ],
)
async def test_inputs_that_no_encoder_can_take_are_refused_by_their_place(
    embedder: LiveModel, inputs: list[pb.Input], complaint: str
) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        await encode(embedder, *inputs)


async def test_texts_and_ids_may_be_mixed_and_keep_their_order(embedder: LiveModel) -> None:
    cat = embedder.tokenizer.encode("the cat")
    rows = await encode(embedder, ids(7), pb.Input(text="the cat"), ids(8, 9))
    assert rows == [[7], cat, [8, 9]]


@pytest.mark.parametrize("count", [1, 4, 400])
async def test_few_and_many_texts_become_the_same_tokens(embedder: LiveModel, count: int) -> None:
    texts = [f"the cat {n}" for n in range(count)]
    inputs = [pb.Input(text=text) for text in texts]
    found = await encoder_inputs(inputs, embedder, WORKERS, truncate=False, max_inputs=count)
    assert [given.ids for given in found] == [embedder.tokenizer.encode(text) for text in texts]


async def test_truncate_cuts_what_is_too_long_and_nothing_else(embedder: LiveModel) -> None:
    text = "zyx " * 40
    full = embedder.tokenizer.encode(text)
    rows = await encode(embedder, pb.Input(text=text), pb.Input(text="the"), ids(*range(40)), truncate=True)
    assert rows == [full[:32], embedder.tokenizer.encode("the"), list(range(32))]


async def test_lengths_are_looked_at_before_values(generator: LiveModel, embedder: LiveModel) -> None:
    """Else a list of millions of ids would keep other calls waiting."""
    many = ids(*[2**32 - 1] * 5000)
    with pytest.raises(InvalidInput, match="prompt: must have at most"):
        await prompt_tokens(many, generator, WORKERS)
    with pytest.raises(InvalidInput, match=r"inputs\[0\]: must have at most"):
        await encode(embedder, many)


@given(st.text(max_size=30))
async def test_without_special_tokens_the_spans_are_parts_of_the_text_in_order(embedder: LiveModel, text: str) -> None:
    (result,) = await tokenize([text], embedder.tokenizer, False, WORKERS)
    starts = [token.start for token in result.tokens]
    assert starts == sorted(starts)
    assert all(0 <= token.start <= token.end <= len(text) for token in result.tokens)
    assert [token.id for token in result.tokens] == embedder.tokenizer.encode(text, add_special_tokens=False)


async def test_a_second_text_is_refused_where_nothing_compares_two(
    generator: LiveModel, classifier: LiveModel, embedder: LiveModel
) -> None:
    pair = pb.Input(text="the cat", text_pair="the dog")
    with pytest.raises(InvalidInput, match=r"prompt\.text_pair: is for Classify only"):
        await prompt_tokens(pair, generator, WORKERS)
    with pytest.raises(InvalidInput, match=r"inputs\[1\]\.text_pair: is for Classify only"):
        await encode(embedder, ids(3), pair)
    with pytest.raises(InvalidInput, match="text_pair: must not be given: the model's tokenizer puts nothing between"):
        await encode(classifier, pair)

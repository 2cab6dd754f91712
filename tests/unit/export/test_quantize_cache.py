"""What an int8 cache is calibrated on, and what of a graph has to change for it."""

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from polyhead.export.errors import ExportError
from polyhead.export.quantize_cache import CALIBRATED_TOKENS, calibration_samples, count_rows_by_tokens, split_text
from polyhead.server.bundle import Bundle
from polyhead.v1 import bundle_pb2

WORDS = ["<s>", "w1", "w2", "w3", "é€"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tokenizer that puts a token before a text, and limits."""
    folder = tmp_path_factory.mktemp("bundle")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    limits = bundle_pb2.Limits(max_tokens=1000, vocabulary_size=len(WORDS))
    return Bundle(folder, bundle_pb2.Bundle(limits=limits, tokenizer=bundle_pb2.Tokenizer(file="tokenizer.json")))


@given(words=st.lists(st.sampled_from(WORDS[1:]), max_size=600))
def test_no_token_is_both_calibrated_on_and_measured_and_half_of_a_text_is_measured(
    bundle: Bundle, words: list[str]
) -> None:
    text = " ".join(words)
    ids, rest = split_text(bundle, text)
    assert text.endswith(rest)
    assert len(rest) >= len(text) / 2
    assert ids[:1] == [0]
    assert len(ids) <= CALIBRATED_TOKENS
    beginning = text[: len(text) - len(rest)]
    assert len(beginning.split()) == len(ids) - 1


def test_as_many_tokens_of_a_long_text_as_random_ones_are_calibrated_on(bundle: Bundle) -> None:
    ids, _ = split_text(bundle, "w1 w2 " * 1000)
    random, text = calibration_samples(bundle, ids)
    assert len(random) == len(text) == CALIBRATED_TOKENS
    assert len(calibration_samples(bundle)) == 1


def graph_that_reads(**attributes: int) -> ir.Graph:
    """Of the memory it has a `Shape`."""
    tokens, slot = (
        ir.val(name, ir.DataType.FLOAT, shape) for name, shape in (("input_ids", "bs"), ("past.key.0", "bkch"))
    )
    shape = ir.node("Shape", [slot], attributes)
    return ir.Graph([tokens, slot], [shape.outputs[0]], nodes=[shape])


def test_a_graph_that_reads_the_number_of_rows_off_a_slot_gets_it_from_the_tokens() -> None:
    graph = graph_that_reads(start=0, end=1)
    count_rows_by_tokens(graph)
    assert graph[0].inputs == (graph.inputs[0],)


@pytest.mark.parametrize("attributes", [{}, {"start": 2, "end": 3}])
def test_a_graph_that_computes_with_the_capacity_of_a_slot_is_refused(attributes: dict[str, int]) -> None:
    with pytest.raises(ExportError, match=r"an int8 cache is not for this model: Shape .*reads past\.key\.0"):
        count_rows_by_tokens(graph_that_reads(**attributes))

"""What the exported graphs look like, before and after onnxruntime optimized them."""

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort
import pytest

from polyhead.export.errors import ExportError
from polyhead.export.own import OwnDecoder
from polyhead.models.gpt import GPT, GPTConfig
from tests.parity.graphs import VOCABULARY, classifier_graph, decoder_graph, gpt

LAYERS = 2


def optimized(graph: Path, folder: Path) -> Counter[str]:
    """How often each operator is left when onnxruntime has fused what it can."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in ir.load(options.optimized_model_filepath).graph)


def test_a_decoder_is_left_with_nothing_but_fused_operators(tmp_path: Path) -> None:
    assert optimized(decoder_graph(), tmp_path) == {
        "Gather": 2,  # embeddings, wanted positions
        "Reshape": 2,
        "RMSNormalization": 2 * LAYERS + 1,
        "MatMul": 7 * LAYERS,
        "GroupQueryAttention": LAYERS,
        "QuickGelu": LAYERS,  # SiLU
        "Mul": LAYERS,
        "Add": 2 * LAYERS,
        "Gemm": 1,  # the output layer, which shares its matrix with the embeddings
        "TopK": 1,
        "LogSoftmax": 1,
        "ReduceMax": 2,
        "Sub": 1,
    }


def test_an_encoder_has_fused_attention_norms_and_activations(tmp_path: Path) -> None:
    found = optimized(classifier_graph(), tmp_path)
    assert found["Attention"] == LAYERS
    assert found["LayerNormalization"] + found["SkipLayerNormalization"] == 2 * LAYERS + 1
    assert found["BiasGelu"] == LAYERS
    assert found["Gather"] == 3  # tokens, positions, n-grams
    assert not found.keys() & {"Transpose", "Erf", "ReduceMean", "ReduceSum"}


def test_weights_keep_their_names_and_are_stored_once() -> None:
    weights = {weight.name: weight for weight in ir.load(decoder_graph()).graph.initializers.values()}
    state = gpt().state_dict()
    assert {str(name).removesuffix(".T") for name in weights} >= state.keys()
    stored = sum(weight.const_value.nbytes for weight in weights.values() if weight.const_value)
    tables = 4 * (gpt().cosine.numel() + gpt().sine.numel())
    assert stored <= 4 * sum(weight.numel() for weight in state.values()) + tables + 64


def test_a_graph_says_nothing_of_the_machine_that_exported_it() -> None:
    text = decoder_graph().read_bytes()
    assert not [word for word in (b"site-packages", b".py", str(Path.home()).encode()) if word in text]


def test_a_head_that_the_fused_attention_cannot_rotate_is_refused() -> None:
    model = GPT(GPTConfig(VOCABULARY, heads=4, kv_heads=4, width=96))
    with pytest.raises(ExportError, match=r"head size 24 \(width 96 / heads 4\) must be a multiple of 16"):
        OwnDecoder(model)

"""What is read of an adapter's folder, and what is refused in one line."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from polyhead.export.__main__ import main
from polyhead.export.adapter_inputs import add_adapters, read_written, write_adapters
from polyhead.export.adapters import Adapter, Change, merged, read_adapter
from polyhead.export.errors import ExportError
from polyhead.export.pipeline import ExportOptions, export_source, load_source
from polyhead.models.checkpoint import CheckpointError, load_checkpoint
from polyhead.server.bundle import read_bundle
from polyhead.server.errors import BundleError
from polyhead.server.runtime.decoder import Decoder
from tests.adapters import random_adapter, with_adapter, write_adapter
from tests.decoders import tiny_gpt, tiny_graph
from tests.unit.export.exports import gpt, write_classifier_checkpoint, write_gpt_checkpoint

LAYERS = ["query", "down"]
QUERY = "base_model.model.blocks.0.attention.query"


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "peft_type must be LORA, is 'IA3'"),
    ({"use_dora": True}, "use_dora is True, supported is False, None"),
    ({"bias": "lora_only"}, "bias is 'lora_only', supported is 'none', None"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', supported is True, False"),
    ({"target_parameters": ["experts"]}, r"target_parameters is \['experts'\]"),
    ({"trainable_token_indices": [3]}, r"trainable_token_indices is \[3\]"),
    ({"r": None}, "r, lora_alpha or their patterns are missing or malformed"),
    ({"rank_pattern": {"[": 3}}, "r, lora_alpha or their patterns are missing or malformed"),
    ({"r": 129}, "ranks must be 1 to 128, got 129"),
    ({"rank_pattern": {"query": 0}}, "ranks must be 1 to 128, got 0"),
    ({"r": 5}, r"query.lora_A.weight must have shape \(5, 32\), is \(4, 32\)"),
]


@pytest.mark.parametrize(("fields", "complaint"), CONFIGS)
def test_a_configuration_that_is_not_plain_lora_is_refused_by_its_field(
    fields: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    write_adapter(tmp_path, gpt(), LAYERS)
    edit_config(tmp_path, **fields)
    assert is_one_line_with(complaint, refusal(tmp_path))


WEIGHTS: list[tuple[Callable[[dict[str, torch.Tensor]], object], str]] = [
    (lambda w: w.pop(f"{QUERY}.lora_B.weight"), r"query.lora_B.weight must have shape \(32, 4\), is missing"),
    (lambda w: w.update({f"{QUERY}.lora_A.weight": torch.zeros(4, 31)}), r"must have shape \(4, 32\), is \(4, 31\)"),
    (lambda w: w.update({f"{QUERY}.lora_B.weight": torch.full((32, 4), torch.nan)}), "query.lora_B.weight must be finite"),
    (lambda w: w.update({f"{QUERY}.lora_A.weight": torch.zeros(4, 32, dtype=torch.int8)}), "must be finite numbers"),
    (lambda w: w.update({f"{QUERY}.lora_magnitude_vector": torch.zeros(32)}), "lora_magnitude_vector is none of what is"),
    (lambda w: w.update({"embedding.lora_embedding_A": torch.zeros(4, 50)}), "lora_embedding_A is none of what is supported"),
    (lambda w: w.update({"blocks.7.up.lora_A.weight": torch.zeros(4, 32)}), "blocks.7.up is no layer of the model"),
    (lambda w: w.update({"norm.lora_A.weight": torch.zeros(4, 32)}), "norm is a RMSNorm; linear layers are supported"),
    (lambda w: w.update({"norm.weight": torch.zeros(32)}), "norm is saved as a whole .* for a classifier's head only"),
    (lambda w: w.clear(), "has no lora_A and lora_B"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "complaint"), WEIGHTS)
def test_weights_that_do_not_fit_are_refused_by_their_name(
    change: Callable[[dict[str, torch.Tensor]], object], complaint: str, tmp_path: Path
) -> None:
    write_adapter(tmp_path, gpt(), LAYERS)
    edit_weights(tmp_path, change)
    assert is_one_line_with(complaint, refusal(tmp_path))


def refusal(folder: Path) -> str:
    """What is said of an adapter that can't be read."""
    with pytest.raises(ExportError) as error:
        read_adapter("one", folder, gpt(), classifies=False)
    return str(error.value)


def is_one_line_with(complaint: str, text: str) -> bool:
    return "\n" not in text and re.search(complaint, text) is not None


def test_pickle_and_missing_files_are_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, gpt(), LAYERS)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    assert is_one_line_with("no such file; adapter_model.bin is pickle", refusal(tmp_path))
    (tmp_path / "adapter_model.bin").rename(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"{}")
    assert is_one_line_with("adapter_model.safetensors: not safetensors", refusal(tmp_path))
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        read_adapter("one", tmp_path, gpt(), classifies=False)


def test_a_classifiers_head_is_replaced_and_nothing_else_of_it(tmp_path: Path) -> None:
    model = load_checkpoint(write_classifier_checkpoint(tmp_path / "checkpoint"))[1]
    write_adapter(tmp_path / "one", model, ["query"], saved=["head"])
    with merged(model, read_adapter("one", tmp_path / "one", model, classifies=True)):
        ours = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with with_adapter(model, tmp_path / "one"):
        theirs = model.state_dict()
        assert all(torch.allclose(ours[name], tensor, atol=1e-6) for name, tensor in theirs.items())
    write_adapter(tmp_path / "two", model, ["query"], saved=["encoder.embedding"])
    with pytest.raises(ExportError, match=r"encoder\.embedding is saved as a whole .* for a classifier's head only"):
        read_adapter("two", tmp_path / "two", model, classifies=True)


def test_a_model_is_the_same_after_an_adapter_was_merged_into_it() -> None:
    model = gpt()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with merged(model, random_adapter("one", model, LAYERS, 4, seed=0)):
        assert not torch.equal(
            model.state_dict()["blocks.0.attention.query.weight"], before["blocks.0.attention.query.weight"]
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    adapter = random_adapter("one", gpt(), LAYERS, 37, seed=0)
    (entry,) = write_adapters(tmp_path, [adapter])
    found = read_written(tmp_path, entry)
    assert (found.name, found.rank) == ("one", 37)
    for layer, change in adapter.changes.items():
        np.testing.assert_array_equal(found.changes[layer].a, change.a)
        np.testing.assert_array_equal(found.changes[layer].b, change.b)


def test_a_layer_whose_weight_is_shared_is_refused() -> None:
    graph = ir.load(tiny_graph())
    shared = Adapter("one", 1, {"output": Change(np.zeros((96, 1), np.float32), np.zeros((1, 300), np.float32))})
    with pytest.raises(ExportError, match="adapter one: output is no product of its own in the exported graph"):
        add_adapters(graph, [shared])


def test_layers_that_no_adapter_changes_stay_as_they_were() -> None:
    graph = ir.load(tiny_graph())
    nodes = len(graph.graph)
    layers = ["blocks.0.attention.query"]
    add_adapters(
        graph, [random_adapter(name, tiny_gpt(), layers, rank, seed=0) for name, rank in (("one", 20), ("two", 3))]
    )
    names = [str(value.name) for value in graph.graph.inputs if str(value.name).startswith("adapter.")]
    assert names == [f"adapter.blocks.0.attention.query.{part}" for part in ("a.0", "a.1", "b")]
    assert len(graph.graph) == nodes + 5  # three products, what joins two of them, and the sum
    assert [v.name for v in graph.graph.outputs[:4]] == ["topk_values", "topk_ids", "logsumexp", "logits"]
    assert all(isinstance(v, ir.Value) and v.shape is not None for v in graph.graph.inputs)


@cache
def exported() -> Path:
    """A bundle with two adapters; made once a test run."""
    folder = Path(mkdtemp(prefix="polyhead-test-"))
    write_gpt_checkpoint(folder / "checkpoint")
    adapters = [(name, write_adapter(folder / name, gpt(), LAYERS, seed=seed)) for seed, name in enumerate(("b", "a"))]
    return export_source(
        load_source(folder / "checkpoint"), folder / "models" / "tiny", ExportOptions(adapters=tuple(adapters))
    )


def test_a_bundle_lists_its_adapters_by_name_in_manifest_files_and_card() -> None:
    bundle = read_bundle(exported())
    assert [(a.name, a.file, a.rank) for a in bundle.manifest.adapters] == [
        ("a", "adapters/a.safetensors", 4),
        ("b", "adapters/b.safetensors", 4),
    ]
    assert {"adapters/a.safetensors", "adapters/b.safetensors"} < {file.path for file in bundle.manifest.files}
    assert "## Adapters\n\n| name | rank |\n|" in (bundle.folder / "MODEL.md").read_text()


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> str:
    """What the runtime says of a bundle whose adapter was changed after its files were checked."""
    bundle = read_bundle(folder)
    path = folder / "adapters" / "a.safetensors"
    before = path.read_bytes()
    weights = load_file(path)
    change(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    try:
        with pytest.raises(BundleError) as refusal:
            Decoder(bundle.graph, bundle.manifest, slots=1, capacity=8)
    finally:
        path.write_bytes(before)
    return str(refusal.value)


def test_the_server_refuses_arrays_that_do_not_fit_the_graph() -> None:
    folder, layer = exported(), "adapter.blocks.0.attention.query"
    assert (
        spoil(folder, lambda w: w.update(other=torch.zeros(1)))
        == "adapters/a.safetensors: other is no input of the graph"
    )
    for wrong in (torch.zeros(31, 4), torch.zeros(32, 17), torch.zeros(32), torch.zeros(32, 4, dtype=torch.float16)):
        said = spoil(folder, lambda w, wrong=wrong: w.update({f"{layer}.a.0": wrong}))  # type: ignore[misc]
        assert said.startswith(f"adapters/a.safetensors: {layer}.a.0 must be float32 ['32', ")
    assert (
        spoil(folder, lambda w: w.pop(f"{layer}.b"))
        == f"adapters/a.safetensors: {layer} has 4 columns in a and 0 rows in b"
    )


def test_the_command_line_refuses_what_is_no_name_and_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in ("french", "=folder", "a b=folder", "french="):
        with pytest.raises(SystemExit, match="2"):
            main(["CHECKPOINT", "--out", str(tmp_path / "m"), "--adapter", given])
        assert "--adapter: must be NAME=FOLDER, NAME matching [A-Za-z0-9]" in capsys.readouterr().err
    write_gpt_checkpoint(tmp_path / "checkpoint")
    twice = ["--adapter", f"a={tmp_path}", "--adapter", f"a={tmp_path}"]
    assert main([str(tmp_path / "checkpoint"), "--out", str(tmp_path / "m"), *twice]) == 1
    assert capsys.readouterr().err == "polyhead export: adapters must have different names, got a, a\n"


def test_a_transposed_matrix_is_taken_for_what_it_is(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = nn.ModuleDict({"c_attn": transformers.pytorch_utils.Conv1D(12, 8)})
    write_adapter(tmp_path, model, ["c_attn"], fan_in_fan_out=True)
    change = read_adapter("one", tmp_path, model, classifies=False).changes["c_attn"]
    assert (change.a.shape, change.b.shape) == ((8, 4), (4, 12))

"""What a bundle folder must be like to be believed."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyhead.server.bundle import Bundle, read_bundle
from polyhead.server.errors import BundleError
from polyhead.server.runtime.session import open_session, signature
from polyhead.v1 import bundle_pb2
from tests import bundles

Change = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound bundle that a test may spoil."""
    return bundles.copy_models(tmp_path / "models", bundles.EMBEDDER) / bundles.EMBEDDER / "1"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    change(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def relist(folder: Path) -> None:
    """Make the manifest's list of files true again, as somebody would who means harm."""
    paths = sorted(path for path in folder.iterdir() if path.name != "bundle.json")
    files = [
        {"path": path.name, "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in paths
    ]
    edit(folder, lambda manifest: manifest.update(files=files))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def tamper(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_by_link(path: Path, target: Path) -> None:
    shutil.copy(path, target)
    path.unlink()
    path.symlink_to(target)


def list_path(path: str) -> Change:
    entry = {"path": path, "size": 1, "sha256": "0" * 64}
    return lambda folder: edit(folder, lambda manifest: manifest["files"].append(entry))


@pytest.mark.parametrize("name", [bundles.GENERATOR, bundles.CLASSIFIER, bundles.EMBEDDER])
def test_what_export_wrote_is_believed_and_its_graph_is_as_the_manifest_says(name: str) -> None:
    bundle = read_bundle(bundles.models_folder() / name / "1")
    bundle.check_signature(*signature(open_session(bundle.graph)))
    assert bundle.tokenizer.is_file()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda f: (f / "bundle.json").unlink(), r"bundle\.json: is missing"),
        (lambda f: truncate(f / "bundle.json"), r"bundle\.json: is not a manifest: "),
        (lambda f: (f / "bundle.json").write_bytes(b"\xff\xfe"), r"bundle\.json: is not a manifest: "),
        (lambda f: (f / "bundle.json").write_text("[" * 100_000), r"bundle\.json: is not a manifest: "),
        (
            lambda f: (f / "bundle.json").write_bytes(b" " * (2**24 + 1)),
            r"bundle\.json: must be at most 16777216 bytes",
        ),
        (lambda f: (f / "bundle.json").write_text("[]"), r"schema_version must be a positive integer, got None"),
        (lambda f: edit(f, lambda m: m.update(schema_version="1")), r"must be a positive integer, got '1'"),
        (
            lambda f: edit(f, lambda m: m.update(schema_version=2, a_new_field={})),
            r"bundle\.json: schema_version 2 is newer than this server knows \(1\)",
        ),
        (lambda f: edit(f, lambda m: m.update(a_new_field={})), r"bundle\.json: is not a manifest: .*a_new_field"),
        (lambda f: edit(f, lambda m: m.update(task=7)), r"bundle\.json: "),
        (lambda f: truncate(f / "tokenizer.json"), r"tokenizer\.json: has \d+ bytes, bundle\.json says \d+"),
        (lambda f: tamper(f / "encoder.onnx"), r"encoder\.onnx: SHA-256 is \w{64}, bundle\.json says \w{64}"),
        (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json: is missing"),
        (
            lambda f: ((f / "MODEL.md").unlink(), (f / "MODEL.md").symlink_to("nothing")),
            r"MODEL\.md: is not a regular file",
        ),
        (lambda f: (f / "extra.bin").touch(), r"extra\.bin: is not listed in bundle\.json"),
        (lambda f: ((f / "sub").mkdir(), (f / "sub/x").touch()), r"sub/x: is not listed in bundle\.json"),
        (list_path("../other"), r"'\.\./other' must be a plain path inside the bundle"),
        (list_path("/etc/passwd"), r"'/etc/passwd' must be a plain path inside the bundle"),
        (list_path("a/../b"), r"'a/\.\./b' must be a plain path inside the bundle"),
        (list_path("a\\b"), r"must be a plain path inside the bundle"),
        (list_path(""), r"'' must be a plain path inside the bundle"),
        (list_path("tokenizer.json"), r"files lists a path twice"),
        (
            lambda f: replace_by_link(f / "tokenizer.json", f.parents[2] / "outside.json"),
            r"tokenizer\.json: is a link that leaves the bundle",
        ),
    ],
)
def test_a_spoilt_bundle_is_refused_in_one_line_that_says_what_is_wrong(
    folder: Path, change: Change, complaint: str
) -> None:
    change(folder)
    with pytest.raises(BundleError, match=complaint) as refusal:
        read_bundle(folder)
    assert "\n" not in str(refusal.value)


@given(st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_changed_byte_of_any_listed_file_goes_unnoticed(folder: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(path for path in folder.iterdir() if path.name != "bundle.json")))
    sound = path.read_bytes()
    position, bits = data.draw(st.integers(0, len(sound) - 1)), data.draw(st.integers(1, 255))
    path.write_bytes(sound[:position] + bytes([sound[position] ^ bits]) + sound[position + 1 :])
    with pytest.raises(BundleError, match=f"{path.name}: SHA-256 is"):
        read_bundle(folder)
    path.write_bytes(sound)


def test_a_link_that_stays_inside_is_taken(folder: Path) -> None:
    shutil.copy(folder / "tokenizer.json", folder / "again.json")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("again.json")
    relist(folder)
    assert read_bundle(folder).tokenizer.read_bytes() == (folder / "again.json").read_bytes()


@pytest.mark.parametrize("location", ["../outside.data", "/etc/hostname"])
def test_weights_outside_the_bundle_are_refused_even_if_every_file_is_listed(folder: Path, location: str) -> None:
    weights = next(folder.glob("*.data"))
    shutil.copy(weights, folder.parent / "outside.data")
    graph = onnx.load(folder / "encoder.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(graph, folder / "encoder.onnx")
    relist(folder)
    with pytest.raises(BundleError, match=r"encoder\.onnx: not a graph that can be run: .*([Ee]xternal data)"):
        open_session(read_bundle(folder).graph)


@pytest.mark.parametrize(
    ("side", "change", "complaint"),
    [
        (
            "inputs",
            {"shape": ["batch", "length"]},
            "input_ids is int64 [batch, sequence], bundle.json says int64 [batch, length]",
        ),
        ("inputs", {"type": "int32"}, "input_ids is int64 [batch, sequence], bundle.json says int32 [batch, sequence]"),
        ("outputs", {"shape": ["batch", "9"]}, "embeddings is float [batch, 8], bundle.json says float [batch, 9]"),
        ("outputs", {"name": "vectors"}, "embeddings is float [batch, 8], bundle.json says absent"),
    ],
)
def test_a_graph_with_another_signature_is_refused(side: str, change: dict[str, Any], complaint: str) -> None:
    bundle = read_bundle(bundles.models_folder() / bundles.EMBEDDER / "1")
    manifest = bundle_pb2.Bundle()
    manifest.CopyFrom(bundle.manifest)
    tensor = getattr(manifest.graphs[0], side)[0]
    tensor.ClearField(next(iter(change)))
    tensor.MergeFrom(bundle_pb2.Tensor(**change))
    with pytest.raises(BundleError) as refusal:
        Bundle(bundle.folder, manifest).check_signature(*signature(open_session(bundle.graph)))
    assert str(refusal.value) == f"encoder.onnx: {side}: {complaint}"

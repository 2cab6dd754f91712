"""Opening graphs."""

from pathlib import Path

import pytest

from polyhead.server.errors import BundleError
from polyhead.server.runtime.session import open_session, signature
from tests.unit.server.engine.graphs import write_encoder


def test_the_signature_reads_as_the_manifest_writes_it(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder.onnx")
    inputs, outputs = signature(open_session(tmp_path / "encoder.onnx"))
    assert inputs == [("input_ids", "int64", ("batch", "sequence")), ("lengths", "int32", ("batch",))]
    assert outputs == [("embeddings", "float", ("batch", "6"))]


def test_a_session_has_the_configured_threads_on_the_cpu_only(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder.onnx")
    session = open_session(tmp_path / "encoder.onnx")
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads >= 1


@pytest.mark.parametrize("content", [b"", b"no graph at all", None])
def test_what_is_no_graph_is_told_in_one_line_without_the_folder(
    tmp_path: Path, content: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "encoder.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        open_session(path)
    text = str(caught.value)
    assert text.startswith("encoder.onnx: not a graph that can be run: ")
    assert "\n" not in text
    assert str(tmp_path) not in text
    assert "onnxruntime_src" not in text
    assert capfd.readouterr() == ("", ""), "onnxruntime prints nothing by itself"

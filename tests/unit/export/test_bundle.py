"""Names, versions, and how a bundle's folder comes to be."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest

from polyhead.export.bundle import choose_target, half_written, publish, write_manifest
from polyhead.export.errors import ExportError
from polyhead.server.bundle import read_manifest
from polyhead.server.errors import PolyheadError
from polyhead.server.repository import scan
from tests.unit.export.exports import WORDS, gpt_bundle, tokenizer_json


def sparse_tokenizer() -> str:
    """Of fewer tokens than the model knows, one of which has an id that it doesn't know."""
    document = json.loads(tokenizer_json())
    vocabulary = document["model"]["vocab"]
    del vocabulary["w1"], vocabulary["w2"]
    vocabulary["w3"] = len(WORDS)
    return json.dumps(document)


def test_the_next_version_follows_the_newest_whatever_else_is_there(tmp_path: Path) -> None:
    out = tmp_path / "gpt"
    assert choose_target(out, None) == out / "1"
    for name in ("2", "10", "010", "notes", ".11.123"):
        (out / name).mkdir(parents=True)
    assert choose_target(out, None) == out / "11"
    assert choose_target(out, 3) == out / "3"


def test_a_version_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gpt" / "2").mkdir(parents=True)
    with pytest.raises(ExportError, match="gpt/2 exists; a version never changes"):
        choose_target(tmp_path / "gpt", 2)


@pytest.mark.parametrize("name", [".gpt", "-gpt", "a b", "ä", "a\n"])
def test_a_name_that_no_server_would_find_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="name must be letters"):
        choose_target(tmp_path / name, None)


def test_version_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="version must be at least 1 and have at most 18 digits, got 0"):
        choose_target(tmp_path / "gpt", 0)


def test_a_version_is_one_that_a_server_sees(tmp_path: Path) -> None:
    copytree(gpt_bundle(), choose_target(tmp_path / "gpt", 10**18 - 1))
    assert set(scan(tmp_path)["gpt"].versions) == {10**18 - 1}
    for version in (10**18, None):  # None: one after the newest
        with pytest.raises(ExportError, match="at most 18 digits, got 1000000000000000000"):
            choose_target(tmp_path / "gpt", version)


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with half_written(tmp_path / "gpt" / "1") as folder:
            (folder / "decoder.onnx").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_nothing_that_a_server_would_see(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys\n"
        "from polyhead.export.bundle import half_written\n"
        "with half_written(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'bundle.json').write_text('{}')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "gpt" / "1"], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name[0] for path in tmp_path.iterdir()] == ["."]
    with pytest.raises(PolyheadError, match="no model in"):
        list(scan(tmp_path))


def test_what_the_server_would_refuse_is_not_published(tmp_path: Path) -> None:
    target = tmp_path / "gpt" / "1"

    def tampered() -> None:
        with half_written(target) as folder:
            copytree(gpt_bundle(), folder, dirs_exist_ok=True)
            (folder / "tokenizer.json").write_text("{}")
            publish(folder, target)

    with pytest.raises(ExportError, match=r"the server would refuse this bundle: tokenizer\.json"):
        tampered()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        (
            "chat_template.jinja",
            "{% for message in messages %}\n{% if %}",
            r"chat_template\.jinja: not a chat template: line 2: ",
        ),
        ("tokenizer.json", "{}", r"tokenizer\.json: not a tokenizer: "),
        ("tokenizer.json", sparse_tokenizer(), r"tokenizer\.json: has token 50, the model knows 50, 0 to 49$"),
    ],
)
def test_texts_that_the_server_can_not_read_are_not_published(
    file: str, content: str, complaint: str, tmp_path: Path
) -> None:
    def bad() -> None:
        with half_written(tmp_path / "gpt" / "1") as folder:
            copytree(gpt_bundle(), folder, dirs_exist_ok=True)
            manifest = read_manifest(folder)
            (folder / "bundle.json").unlink()
            del manifest.files[:]
            (folder / file).write_text(content)
            if file == "chat_template.jinja":
                manifest.tokenizer.chat_template = file
            write_manifest(folder, manifest)
            publish(folder, tmp_path / "gpt" / "1")

    with pytest.raises(ExportError, match=f"^the server would refuse this bundle: {complaint}") as caught:
        bad()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    folder = copytree(gpt_bundle(), tmp_path / ".half")
    (tmp_path / "gpt" / "1").mkdir(parents=True)
    with pytest.raises(ExportError, match="meanwhile"):
        publish(folder, tmp_path / "gpt" / "1")
    assert list((tmp_path / "gpt" / "1").iterdir()) == []


def test_a_models_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ExportError, match="models"), half_written(tmp_path / "models" / "gpt" / "1"):
        pass


def test_the_manifest_lists_every_other_file_with_size_and_hash(tmp_path: Path) -> None:
    folder = copytree(gpt_bundle(), tmp_path / "1")
    manifest = read_manifest(folder)
    listed = {file.path: (file.size, file.sha256) for file in manifest.files}
    (folder / "bundle.json").unlink()
    del manifest.files[:]
    write_manifest(folder, manifest)
    assert {file.path: (file.size, file.sha256) for file in read_manifest(folder).files} == listed

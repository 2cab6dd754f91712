"""The licence and the special tokens of a checkpoint reach its bundle's manifest and card."""

from pathlib import Path

import pytest

from polyhead.export.card import model_card
from polyhead.export.huggingface.importer import import_source
from polyhead.export.huggingface.licence import read_license
from polyhead.export.huggingface.special_tokens import special_tokens
from polyhead.export.manifest import make_manifest
from tests.parity.huggingface import edit_json, write_decoder


@pytest.mark.parametrize(
    ("readme", "config", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# A model", {"license": "mit"}, "apache-2.0"),
        ("---\nlicense: other\nlicense_name: llama3.1\n---\n", {}, "llama3.1"),
        ("---\nlicense: other\n---\n", {}, "other"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", {}, "mit, apache-2.0"),
        ("---\nlicense: [\n---\n", {"license": "mit"}, "mit"),
        ("---\nlicense: |\n  two\n  lines\n---\n", {}, "two lines"),
        ("# license: mit", {"license": 3}, ""),
    ],
)
def test_a_licence_is_what_the_readme_says_else_config_json_else_nothing(
    tmp_path: Path, readme: str, config: dict[str, object], licence: str
) -> None:
    (tmp_path / "README.md").write_text(readme, "utf-8")
    assert read_license(tmp_path, config) == licence


def test_a_readme_that_is_no_text_is_passed_over(tmp_path: Path) -> None:
    assert read_license(tmp_path, {"license": "mit"}) == "mit"
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert read_license(tmp_path, {"license": "mit"}) == "mit"


def test_special_tokens_are_plain_or_objects_and_null_is_none() -> None:
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None, "add_bos_token": True}
    assert special_tokens(config) == {"bos_token": "<s>", "eos_token": "</s>"}


def test_they_reach_manifest_and_card(tmp_path: Path) -> None:
    write_decoder(tmp_path, "gpt2", n_layer=1)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n", "utf-8")
    edit_json(tmp_path / "tokenizer_config.json", bos_token="<s>")
    source = import_source(tmp_path)
    manifest = make_manifest(source, "none")
    assert manifest.license == "mit"
    assert dict(manifest.tokenizer.special_tokens) == {"bos_token": "<s>"}
    assert "| licence | mit |" in model_card("m", "1", manifest, source)
    manifest.license = ""
    assert "licence" not in model_card("m", "1", manifest, source)

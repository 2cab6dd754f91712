from pathlib import Path

import pytest

from polyhead.train.errors import DataError
from polyhead.train.stdlib import python_documents


def test_the_running_python_has_a_few_megabytes_of_source() -> None:
    documents = python_documents()
    assert any("class JSONDecoder" in document for document in documents)
    assert sum(map(len, documents)) > 2_000_000


def test_tests_and_modules_that_declare_a_wrong_encoding_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.py").write_text("left_out = 1")
    (tmp_path / "bad.py").write_bytes(b"# coding: utf-8\nx = '\xff'")
    (tmp_path / "latin.py").write_bytes("# coding: latin-1\nx = 'ö'".encode("latin-1"))
    assert python_documents(tmp_path) == ["# coding: latin-1\nx = 'ö'"]


def test_a_python_without_source_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Python source to learn from; name a text with --data"):
        python_documents(tmp_path)

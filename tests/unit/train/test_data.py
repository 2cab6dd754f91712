import gzip
import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.train.data import (
    DataOptions,
    LabelledText,
    digest,
    is_held_out,
    read_columns,
    read_documents,
    read_labelled,
)
from polyhead.train.errors import DataError, UsageError

ROWS = [LabelledText("where is it", "LOC"), LabelledText("who, then", "HUM")]


def write(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return str(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'id,label,text\n1,LOC,where is it\n\n2,HUM,"who, then"\n'),
        ("a.tsv", "text\tlabel\nwhere is it\tLOC\nwho, then\tHUM\n"),
        ("a.jsonl", '{"text": "where is it", "label": "LOC"}\n\n{"label": "HUM", "text": "who, then"}\n'),
        ("a.train", "LOC where is it\n\nHUM who, then\n"),
        ("bom.csv", '\ufefftext,label\r\nwhere is it,LOC\r\n"who, then",HUM\r\n'),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, text: str) -> None:
    assert read_labelled(write(tmp_path / name, text), DataOptions()) == ROWS


def test_numbers_name_columns_where_there_is_no_header(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.tsv", 'Go.\tVa !\t"quoted" once\nHi.\tSalut.\tx\n')
    assert read_columns(path, DataOptions(), ["2", "1"]) == [("Va !", "Go."), ("Salut.", "Hi.")]


def test_other_columns_are_taken_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'question,kind\nwhere is it,LOC\n"who, then",HUM\n')
    assert read_labelled(path, DataOptions(text_column="question", label_column="kind")) == ROWS


def test_gz_and_zip_are_read_like_what_is_in_them(tmp_path: Path) -> None:
    text = 'text,label\nwhere is it,LOC\n"who, then",HUM\n'
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("folder/a.csv", text)
        archive.writestr("__MACOSX/folder/._a.csv", b"\xff\xfe")
    assert read_labelled(str(tmp_path / "a.csv.gz"), DataOptions()) == ROWS
    assert read_labelled(str(tmp_path / "a.zip"), DataOptions()) == ROWS


def test_a_folder_is_all_its_files_and_a_glob_what_it_matches(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/a.py", "a.txt", ".hidden"):
        write(tmp_path / "docs" / name, name)
    assert read_documents(str(tmp_path / "docs"), DataOptions()) == ["a.txt", "b.txt", "sub/a.py"]
    assert read_documents(str(tmp_path / "docs" / "*.txt"), DataOptions()) == ["a.txt", "b.txt"]


def test_documents_come_from_tables_too(tmp_path: Path) -> None:
    assert read_documents(write(tmp_path / "a.jsonl", '{"text": "one"}\n{"text": "two"}'), DataOptions()) == [
        "one",
        "two",
    ]
    labelled = write(tmp_path / "a.train", "LOC where is it\n")
    assert read_documents(labelled, DataOptions("labelled")) == ["where is it"]


def test_text_is_read_in_the_encoding_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "größer\n", "latin-1")
    assert read_documents(path, DataOptions(encoding="latin-1")) == ["größer\n"]
    with pytest.raises(DataError, match=r"a\.txt: line 1: byte 0xf6 is not utf-8; .* --encoding latin-1"):
        read_documents(path, DataOptions())


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.csv", "text,kind\nx,LOC\n", r"a\.csv: line 2: no column 'label'; there are text, kind"),
        ("a.csv", "text,label\nx\n", r"a\.csv: line 2: no column 'label'; there are text"),
        ("a.csv", "text,label\nx,LOC\ny,\n", r"a\.csv: line 3: column 'label' must be a text or number, not ''"),
        ("a.csv", 'text,label\n"x,LOC\n', r"a\.csv: line 2: unexpected end of data"),
        (
            "a.jsonl",
            '{"text": "x", "label": null}',
            r"a\.jsonl: line 1: column 'label' must be a text or number, not None",
        ),
        ("a.jsonl", '{"text": "x"', r"a\.jsonl: line 1: not JSON"),
        ("a.jsonl", "\n[1]", r"a\.jsonl: line 2: must be a JSON object, not '\[1\]'"),
        ("a.train", "LOC x\nHUM\n", r"a\.train: line 2: a label, 'HUM', without a text"),
        ("a.train", "\n", r"a\.train: no labelled text in it"),
        ("a.gz", "not compressed", r"a\.gz: Not a gzipped file"),
        ("a.zip", "not compressed", r"a\.zip: File is not a zip file"),
    ],
)
def test_an_error_names_file_line_and_column(tmp_path: Path, name: str, text: str, error: str) -> None:
    with pytest.raises(DataError, match=error):
        read_labelled(write(tmp_path / name, text), DataOptions())


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "x y")
    with pytest.raises(DataError, match=r"nothing: no such file, folder or glob match"):
        read_documents(str(tmp_path / "nothing"), DataOptions())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no files in this folder"):
        read_documents(str(tmp_path / "empty"), DataOptions())
    with pytest.raises(UsageError, match="encoding 'utf-9' is unknown"):
        read_documents(path, DataOptions(encoding="utf-9"))
    with pytest.raises(UsageError, match="format text has no labels"):
        read_labelled(path, DataOptions("text"))
    with pytest.raises(UsageError, match="format labelled has no columns"):
        read_columns(path, DataOptions("labelled"), ["1"])
    with pytest.raises(DataError, match="no text in it"):
        read_documents(write(tmp_path / "blank.txt", " \n"), DataOptions())


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(min_size=1).filter(lambda text: text.strip() and "\0" not in text), min_size=1, max_size=5))
def test_any_text_comes_back_from_jsonl(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    assert read_documents(str(path), DataOptions()) == texts


def test_about_the_asked_share_is_held_out_and_always_the_same() -> None:
    held_out = [text for text in map(str, range(5000)) if is_held_out(text, 0.1)]
    assert 400 < len(held_out) < 600
    assert set(held_out) < {text for text in map(str, range(5000)) if is_held_out(text, 0.3)}
    assert held_out[:3] == ["9", "39", "49"]


def test_a_digest_tells_examples_and_their_borders_apart() -> None:
    assert digest(["ab", "c"]) == digest(["ab", "c"]) != digest(["a", "bc"])

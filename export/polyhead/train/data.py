"""Reading what people have: text files, CSV and TSV, JSONL, and lines of `LABEL text`; plain, in gz or in zip.

A path is a file, a folder (all files below it, in order of their names) or a glob. Every error is a DataError that names
file, line and column.
"""

import csv
import gzip
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from hashlib import sha256
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from polyhead.train.errors import DataError, UsageError

Format = Literal["auto", "text", "csv", "tsv", "jsonl", "labelled"]
FORMATS: tuple[str, ...] = get_args(Format)

_SUFFIXES: dict[str, Format] = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
LONGEST_FIELD = 1 << 30
"""Of a CSV file, in characters; the csv module's own limit, 131,072, is too short for documents."""


@dataclass(frozen=True)
class DataOptions:
    """How to read data. A column is a name from the header line or, if all are numbers, counted from 1 in files without one."""

    format: Format = "auto"
    """auto: by the file's name, else the task's own: `text` for documents, `labelled` for labelled texts."""
    text_column: str = "text"
    label_column: str = "label"
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Source:
    """A file, or a member of a zip archive, and its text."""

    name: str
    text: str


@dataclass(frozen=True)
class LabelledText:
    text: str
    label: str


def read_documents(path: str, options: DataOptions) -> list[str]:
    """One document a text file, row, JSONL object or labelled line (without its label). None is empty."""
    documents: list[str] = []
    for source in read_sources(path, options.encoding):
        match resolve_format(source.name, options.format, "text"):
            case "text":
                documents.append(source.text)
            case "labelled":
                documents.extend(row.text for row in parse_labelled(source))
            case table:
                documents.extend(row[0] for row in parse_columns(source, table, [options.text_column]))
    if not (documents := [document for document in documents if document.strip()]):
        raise DataError(f"{path}: no text in it")
    return documents


def read_labelled(path: str, options: DataOptions) -> list[LabelledText]:
    """Texts with labels from columns or `LABEL text` lines. Neither is empty."""
    rows: list[LabelledText] = []
    for source in read_sources(path, options.encoding):
        table = resolve_format(source.name, options.format, "labelled")
        if table == "text":
            raise UsageError(f"{path}: format text has no labels; csv, tsv, jsonl and labelled have")
        if table == "labelled":
            rows.extend(parse_labelled(source))
        else:
            columns = parse_columns(source, table, [options.text_column, options.label_column])
            rows.extend(LabelledText(text, label) for text, label in columns)
    if not rows:
        raise DataError(f"{path}: no labelled text in it")
    return rows


def read_columns(path: str, options: DataOptions, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The named columns of CSV, TSV or JSONL files, a tuple a row. No value is empty."""
    rows: list[tuple[str, ...]] = []
    for source in read_sources(path, options.encoding):
        table = resolve_format(source.name, options.format, "tsv")
        if table in ("text", "labelled"):
            raise UsageError(f"{path}: format {table} has no columns; csv, tsv and jsonl have")
        rows.extend(parse_columns(source, table, columns))
    if not rows:
        raise DataError(f"{path}: no rows in it")
    return rows


def is_held_out(example: str, share: float = 0.1) -> bool:
    """Whether an example belongs to the held-out part: by its hash, so the same on every machine and in any order."""
    return int(_digest(example)[:15], 16) < share * 16**15


def digest(examples: Iterable[str]) -> str:
    """One SHA-256 of all examples in order, by which a resumed training knows its data again."""
    return _digest("\0".join(_digest(example) for example in examples))


# -- files


def read_sources(path: str, encoding: str) -> Iterator[Source]:
    """Every file that `path` means, decoded. Raises DataError for one that is missing, unreadable or not in that encoding."""
    try:
        "".encode(encoding)
    except LookupError:
        raise UsageError(
            f"encoding {encoding!r} is unknown; utf-8, latin-1 and utf-16 are some that are known"
        ) from None
    for file in find_files(path):
        try:
            for name, content in _members(file):
                yield Source(name, decode(content, encoding, name))
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{file}: {getattr(error, 'strerror', None) or error}") from error


def find_files(path: str) -> list[Path]:
    """The file itself, all below a folder but hidden ones, or what a glob matches, in order of names."""
    root = Path(path)
    if root.is_dir():
        files = [p for p in root.rglob("*") if p.is_file() and not _hidden(p.relative_to(root).as_posix())]
    elif root.exists():
        files = [root]
    else:
        matches = glob(path, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        files = [p for p in map(Path, matches) if p.is_file()]
    if not files:
        raise DataError(
            f"{path}: {'no files in this folder' if root.is_dir() else 'no such file, folder or glob match'}"
        )
    return sorted(files)


def _members(file: Path) -> Iterator[tuple[str, bytes]]:
    """A file's name and bytes; of an archive each member's, of a gz file what is inside."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            for name in sorted(archive.namelist()):
                if not name.endswith("/") and not name.startswith("__MACOSX/") and not _hidden(name):
                    yield f"{file}/{name}", archive.read(name)
    elif file.suffix == ".gz":
        yield str(file), gzip.decompress(file.read_bytes())
    else:
        yield str(file), file.read_bytes()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def decode(content: bytes, encoding: str, name: str) -> str:
    """Text of a file, without a byte order mark and with \\n at line ends. Raises DataError naming the line of the first bad byte."""
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}: line {line}: byte 0x{content[error.start]:02x} is not {encoding}; "
            "say what the file is in with --encoding, such as --encoding latin-1"
        ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def resolve_format(name: str, asked: Format, otherwise: Format) -> Format:
    """The format asked for; for auto that of the file's name, `.gz` aside, else the task's own."""
    if asked != "auto":
        return asked
    return _SUFFIXES.get(PurePosixPath(name.removesuffix(".gz")).suffix.lower(), otherwise)


# -- formats


def parse_labelled(source: Source) -> Iterator[LabelledText]:
    """Lines of a label, white space and a text; empty lines are skipped."""
    for number, line in enumerate(source.text.split("\n"), 1):
        if not line.strip():
            continue
        label, *text = line.split(None, 1)
        if not text:
            raise DataError(f"{source.name}: line {number}: a label, {label!r}, without a text after it")
        yield LabelledText(text[0].strip(), label)


def parse_columns(source: Source, table: Format, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The named columns of each row; empty rows are skipped."""
    rows = _jsonl_rows(source) if table == "jsonl" else _table_rows(source, table, columns)
    for line, row in rows:
        yield tuple(_value(source, line, row, column) for column in columns)


def _value(source: Source, line: int, row: dict[str, Any], column: str) -> str:
    if column not in row:
        known = ", ".join(name for name in row if isinstance(name, str)) or "none"
        raise DataError(f"{source.name}: line {line}: no column {column!r}; there are {known}")
    value = row[column]
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise DataError(f"{source.name}: line {line}: column {column!r} must be a text or number, not {value!r}")
    return str(value)


def _table_rows(source: Source, table: Format, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a CSV or TSV file by column name, with the line they end on. TSV has no quotes: its texts may hold any."""
    csv.field_size_limit(LONGEST_FIELD)
    dialect: dict[str, Any] = {"strict": True} if table == "csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.reader(StringIO(source.text, newline=""), **dialect)
    numbered = all(column.isdecimal() for column in columns)
    header: list[str] | None = None
    try:
        for row in reader:
            if not row:
                continue
            if header is None and not numbered:
                header = row
                continue
            names = header or [str(number) for number in range(1, len(row) + 1)]
            yield reader.line_num, dict(zip(names, row, strict=False))
    except csv.Error as error:
        raise DataError(f"{source.name}: line {reader.line_num}: {error}") from error


def _jsonl_rows(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(source.text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{source.name}: line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{source.name}: line {number}: must be a JSON object, not {line.strip()[:40]!r}")
        yield number, row


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

"""Pairs of a source and its translation: from columns of a file, or from two files line by line."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from polyhead.train.data import DataOptions, Source, digest, is_held_out, parse_columns, read_sources, resolve_format
from polyhead.train.errors import DataError, UsageError

VALIDATION_SHARE, TEST_SHARE = 0.02, 0.05
LEAST_HELD_OUT = 20
"""Pairs to choose by and to test on below which figures mean nothing."""


@dataclass(frozen=True)
class Pair:
    source: str
    target: str


@dataclass(frozen=True)
class PairOptions:
    """Which pairs to take. Columns are names from the header line or numbers counted from 1 in files without one."""

    source_column: str = "1"
    target_column: str = "2"
    max_words: int | None = None
    """Pairs with more words on either side are left out."""
    training_pairs: int | None = None
    """Learn from so many at most."""
    test_pairs: int | None = None
    """Test on so many at most."""

    def __post_init__(self) -> None:
        for name in ("max_words", "training_pairs", "test_pairs"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise ValueError(f"{name} must be at least 1, not {given}")


@dataclass(frozen=True)
class PairCorpus:
    """Pairs to learn from, to choose the best checkpoint by, and to be measured on. No text of one part is in another."""

    name: str
    training: list[Pair]
    validation: list[Pair]
    test: list[Pair]

    def digests(self) -> dict[str, str]:
        parts = {"data": self.training, "validation_data": self.validation, "test_data": self.test}
        return {name: digest(f"{pair.source}\0{pair.target}" for pair in rows) for name, rows in parts.items()}


def read_pairs(paths: Sequence[str], data: DataOptions, options: PairOptions) -> list[Pair]:
    """Of one path its columns (tab-separated where the name says nothing else), of two their lines. White space is made plain."""
    if len(paths) > 2:
        raise UsageError(
            f"--data takes one file with two columns or two files with equal lines, not {len(paths)} files"
        )
    rows = _parallel(paths, data) if len(paths) == 2 else _columns(paths[0], data, options)
    pairs = (Pair(" ".join(source.split()), " ".join(target.split())) for source, target in rows)
    kept = [pair for pair in pairs if pair.source and pair.target and _short_enough(pair, options.max_words)]
    if not kept:
        raise DataError(f"{', '.join(paths)}: no pairs in it")
    return list(dict.fromkeys(kept))


def split_pairs(name: str, pairs: Iterable[Pair], options: PairOptions) -> PairCorpus:
    """Parts by a hash of the target; held-out pairs whose source is also in another part are left out.

    Where fewer are asked for than there are, those with the smallest hash, which is as good as at random.
    """
    pairs = list(pairs)
    held_out = [pair for pair in pairs if is_held_out(pair.target, TEST_SHARE + VALIDATION_SHARE)]
    test = [pair for pair in held_out if is_held_out(pair.target, TEST_SHARE)]
    tested = {pair.target for pair in test}
    training = [pair for pair in pairs if not is_held_out(pair.target, TEST_SHARE + VALIDATION_SHARE)]
    learned = {pair.source for pair in training}
    validation = [pair for pair in held_out if pair.target not in tested and pair.source not in learned]
    seen = learned | {pair.source for pair in validation}
    unseen = [pair for pair in test if pair.source not in seen]
    corpus = PairCorpus(name, _some(training, options.training_pairs), validation, _some(unseen, options.test_pairs))
    check(corpus)
    return corpus


def check(corpus: PairCorpus) -> None:
    """Raise DataError for a part with too few pairs to say anything."""
    for part, rows in (("validation", corpus.validation), ("test", corpus.test)):
        if len(rows) < LEAST_HELD_OUT:
            raise DataError(
                f"{corpus.name}: the {part} part has {len(rows)} pairs and needs {LEAST_HELD_OUT}; give more pairs"
            )


def _some(pairs: list[Pair], count: int | None) -> list[Pair]:
    if count is None or count >= len(pairs):
        return pairs
    return sorted(pairs, key=lambda pair: digest([pair.source, pair.target]))[:count]


def _short_enough(pair: Pair, max_words: int | None) -> bool:
    return max_words is None or max(len(pair.source.split()), len(pair.target.split())) <= max_words


def _columns(path: str, data: DataOptions, options: PairOptions) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for source in _tables(path, data):
        table = resolve_format(source.name, data.format, "tsv")
        if table in ("text", "labelled"):
            raise UsageError(f"{path}: format {table} has no columns; csv, tsv and jsonl have")
        rows.extend(parse_columns(source, table, [options.source_column, options.target_column]))
    return rows


def _tables(path: str, data: DataOptions) -> list[Source]:
    """All files that `path` means; of an archive or folder with several not those without a tab, such as a licence."""
    sources = list(read_sources(path, data.encoding))
    tables = [
        source for source in sources if resolve_format(source.name, data.format, "tsv") != "tsv" or "\t" in source.text
    ]
    return tables or sources


def _parallel(paths: Sequence[str], data: DataOptions) -> list[tuple[str, str]]:
    sides = ["\n".join(source.text.rstrip("\n") for source in read_sources(path, data.encoding)) for path in paths]
    lines = [side.split("\n") for side in sides]
    if len(lines[0]) != len(lines[1]):
        raise DataError(
            f"{paths[0]} has {len(lines[0])} lines and {paths[1]} has {len(lines[1])}; line by line they must be translations"
        )
    return list(zip(*lines, strict=True))

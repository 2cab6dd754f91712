import zipfile
from pathlib import Path

import pytest

from polyhead.train.data import DataOptions
from polyhead.train.errors import DataError, UsageError
from polyhead.train.pairs import Pair, PairOptions, read_pairs, split_pairs
from polyhead.train.tasks import Task, make_pairs

PAIRS = [Pair("Va !", "Go."), Pair("Cours !", "Run!"), Pair("Je le vois.", "I see him.")]
MANY = [Pair(f"source {i}", f"target {i // 2}") for i in range(3000)]


def read(*paths: Path, options: PairOptions | None = None, **data: str) -> list[Pair]:
    return read_pairs([str(path) for path in paths], DataOptions(**data), options or PairOptions())  # type: ignore[arg-type]


def test_tab_separated_columns_are_chosen_by_number(tmp_path: Path) -> None:
    path = tmp_path / "fra.txt"
    path.write_text("".join(f"{pair.target}\t{pair.source}\tmore\n" for pair in PAIRS), "utf-8")
    assert read(path, options=PairOptions(source_column="2", target_column="1")) == PAIRS


def test_tables_with_a_header_have_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("en,fr\n" + "".join(f'"{pair.target}","{pair.source}"\n' for pair in PAIRS), "utf-8")
    assert read(path, options=PairOptions(source_column="fr", target_column="en")) == PAIRS


def test_two_files_are_read_line_by_line(tmp_path: Path) -> None:
    for name, lines in (("fr", [p.source for p in PAIRS]), ("en", [p.target for p in PAIRS])):
        (tmp_path / name).write_text("\n".join(lines) + "\n", "utf-8")
    assert read(tmp_path / "fr", tmp_path / "en") == PAIRS
    (tmp_path / "fr").write_text("one\n", "utf-8")
    with pytest.raises(DataError, match=r"has 1 lines and .* has 3; line by line they must be translations"):
        read(tmp_path / "fr", tmp_path / "en")


def test_an_archive_is_read_as_it_is_and_its_licence_passed_over(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pairs.zip", "w") as archive:
        archive.writestr("fra-eng/_about.txt", "Terms of use\nNone.\n")
        archive.writestr("fra-eng/fra.txt", "".join(f"{pair.source}\t{pair.target}\n" for pair in PAIRS))
    assert read(tmp_path / "pairs.zip") == PAIRS


def test_pairs_come_once_with_plain_white_space_and_at_most_so_many_words(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("Va\u202f!\tGo.\nVa !\t Go.\nJe le  vois.\tI see him.\n", "utf-8")
    assert read(path) == [PAIRS[0], PAIRS[2]]
    assert read(path, options=PairOptions(max_words=2)) == [PAIRS[0]]


def test_more_than_two_files_and_files_without_pairs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_text("\n")
    with pytest.raises(UsageError, match="one file with two columns or two files with equal lines, not 3 files"):
        read(path, path, path)
    with pytest.raises(DataError, match="no pairs in it"):
        read(path)
    path.write_text("no tab here\n")
    with pytest.raises(DataError, match="line 1: no column '2'"):
        read(path)


def test_no_target_and_no_source_is_in_two_parts() -> None:
    pairs = [*MANY, *(Pair(pair.source, f"{pair.target} again") for pair in MANY[::5])]
    corpus = split_pairs("pairs", pairs, PairOptions())
    parts = (corpus.training, corpus.validation, corpus.test)
    for side in ("source", "target"):
        sets = [{getattr(pair, side) for pair in part} for part in parts]
        assert len(sets[0] | sets[1] | sets[2]) == sum(map(len, sets))
    assert len(corpus.training) > 0.85 * len(pairs)


def test_the_parts_can_be_limited_and_are_the_same_in_any_order() -> None:
    options = PairOptions(training_pairs=1000, test_pairs=50)
    corpus, again = split_pairs("a", MANY, options), split_pairs("b", MANY[::-1], options)
    assert (len(corpus.training), len(corpus.test)) == (1000, 50)
    assert set(corpus.training) == set(again.training)
    assert set(corpus.test) == set(again.test)


def test_as_many_test_pairs_come_as_are_asked_for_where_some_sources_are_in_other_parts_too() -> None:
    parts = split_pairs("many", MANY, PairOptions())
    again = [Pair(pair.source, parts.validation[0].target) for pair in parts.test[::2]]
    assert len(split_pairs("pairs", [*MANY, *again], PairOptions()).test) == len(parts.test) // 2 > 40
    assert len(split_pairs("pairs", [*MANY, *again], PairOptions(test_pairs=40)).test) == 40


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(DataError, match=r"the validation part has \d+ pairs and needs 20; give more pairs"):
        split_pairs("few", MANY[:100], PairOptions())


def test_tasks_grow_up_to_their_longest() -> None:
    assert [pair.target for pair in make_pairs(Task("copy", 100, 4))] == [
        p.source for p in make_pairs(Task("copy", 100, 4))
    ]
    reverse = make_pairs(Task("reverse", 200, 8))
    assert all(pair.target == pair.source[::-1] for pair in reverse)
    assert {len(pair.source) for pair in reverse} == set(range(1, 9))
    several = make_pairs(Task("multi-date", 100, 3))
    assert {len(pair.target.split()) for pair in several} == {1, 2, 3}
    assert all(len(pair.source.split("; ")) == len(pair.target.split()) for pair in several)


@pytest.mark.parametrize(
    ("task", "message"),
    [({"name": "sort"}, "task must be one of dates, "), ({"pairs": 5}, "pairs must be at least 100")],
)
def test_tasks_that_there_are_not_are_refused(task: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Task(**task)  # type: ignore[arg-type]

"""Options that say which pairs to learn from: files, or a task that is made up."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from polyhead.train.data import FORMATS, DataOptions
from polyhead.train.errors import UsageError
from polyhead.train.options import override
from polyhead.train.pairs import PairCorpus, PairOptions, read_pairs, split_pairs
from polyhead.train.tasks import DEFAULT_LONGEST, TASKS, Task, make_pairs


def add_pair_arguments(parser: ArgumentParser, task: str = "dates") -> None:
    made = parser.add_argument_group("a task that is made up")
    tasks = "; ".join(f"{name}: {text}" for name, text in TASKS.items())
    made.add_argument("--task", choices=TASKS, help=f"{tasks} ({task})")
    made.add_argument("--longest", type=int, help="letters, or dates in a text")
    made.add_argument("--pairs", type=int, metavar="N", help=f"how many ({Task.pairs})")
    made.add_argument("--locales", metavar="A,B,…", help="of dates, such as en,fr,de (33 languages)")
    data = parser.add_argument_group("data of one's own")
    data.add_argument(
        "--data",
        nargs="+",
        metavar="PATH",
        help="one file (folder, glob) with two columns, or two files; plain, .gz or .zip",
    )
    data.add_argument("--format", choices=FORMATS, help="of one file (auto: by its name, else tsv)")
    data.add_argument("--source-column", metavar="NAME", help="or number, where there is no header (1)")
    data.add_argument("--target-column", metavar="NAME", help="or number (2)")
    data.add_argument("--encoding", metavar="NAME", help="of the data (utf-8)")
    data.add_argument("--max-words", type=int, metavar="N", help="leave out pairs with more on either side")
    data.add_argument("--training-pairs", type=int, metavar="N", help="learn from so many at most")
    data.add_argument("--test-pairs", type=int, metavar="N", help="test on so many at most")


def read_corpus(args: Namespace, task: str = "dates") -> PairCorpus:
    """--data, or the task. Raises UsageError for options of the one beside the other."""
    options = override(PairOptions(), args)
    if not args.data:
        _refuse(
            args,
            ("format", "source_column", "target_column", "encoding", "max_words"),
            "is for --data, and there is none",
        )
        return made_corpus(task_of(args, task), options)
    _refuse(args, ("task", "longest", "pairs", "locales"), "is for a task that is made up; leave it or --data out")
    if len(args.data) == 2:
        _refuse(
            args, ("format", "source_column", "target_column"), "is for --data of one file; two are read line by line"
        )
    data = override(DataOptions(), args)
    return split_pairs(" and ".join(args.data), read_pairs(args.data, data, options), options)


def _refuse(args: Namespace, names: Sequence[str], why: str) -> None:
    """Raise UsageError for the first option of these that was given."""
    for name in names:
        if getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} {why}")


def made_corpus(task: Task, options: PairOptions) -> PairCorpus:
    name = task.name if task.longest == 1 else f"{task.name} up to {task.longest}"
    return split_pairs(name, dict.fromkeys(make_pairs(task)), options)


def task_of(args: Namespace, task: str) -> Task:
    """As told. Raises UsageError for values out of range."""
    name = args.task or task
    if args.locales is not None and name != "dates":
        raise UsageError(f"--locales is for --task dates, not {name}")
    if args.longest is not None and name == "dates":
        raise UsageError("--longest is for tasks that grow; of several dates in a text, --task multi-date")
    base = Task(name=name, longest=DEFAULT_LONGEST[name])
    given = Namespace(pairs=args.pairs, longest=args.longest)
    if args.locales is not None:
        given.locales = tuple(part.strip() for part in args.locales.split(","))
    return override(base, given)

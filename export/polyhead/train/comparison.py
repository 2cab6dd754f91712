"""Trains four models at an equal budget and shows how good each is on short and on long sources: a recurrent model with a
fixed context, one with attention, a deep one with attention, and a Transformer.

Equal means: parameters within five per cent, and the same processor time, so that others on the machine change nothing.
Leaves in --out a checkpoint of each model, comparison.json and comparison.png.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from polyhead.models.seq2seq.rnn_config import AttentionScore
from polyhead.train.comparison_report import (
    Outcome,
    Unit,
    caption,
    deciding_figure,
    draw,
    figures_by_length,
    read_outcome,
    table,
)
from polyhead.train.contestants import KEYS, Contestant, contestants
from polyhead.train.errors import UsageError
from polyhead.train.loop import Resume, train
from polyhead.train.options import add_threads_argument, override
from polyhead.train.pair_options import add_pair_arguments, read_corpus
from polyhead.train.pairs import PairCorpus
from polyhead.train.seq2seq import finish, make_recipe
from polyhead.train.seq2seq_settings import Seq2SeqSettings, add_bleu_argument, preset
from polyhead.train.vocabularies import make_vocabularies

DEFAULT_TASK = "reverse"
MANY_STEPS = 1_000_000
"""More than a budget allows: time ends the trainings."""


def add_arguments(parser: ArgumentParser) -> None:
    add_pair_arguments(parser, DEFAULT_TASK)
    group = parser.add_argument_group("comparison")
    group.add_argument("--minutes", type=float, default=5.0, metavar="M", help="of processor time, for each model (5)")
    group.add_argument("--models", nargs="+", choices=KEYS, default=KEYS, help="only these, as large as all would be")
    add_threads_argument(group)
    group.add_argument("--out", type=Path, default=Path("runs/compare-attention"), metavar="DIR")
    group.add_argument("--restart", action="store_true", help="replace the trainings in --out")
    group.add_argument("--width", type=int, help="of the recurrent model with attention, after which the others go")
    group.add_argument("--deep-layers", type=int, default=3, metavar="N", help="of the deep one (3)")
    group.add_argument("--score", choices=get_args(AttentionScore)[1:], help="of attention")
    group.add_argument("--vocabulary", type=int, metavar="SIZE", help="of BPE tokens (0: characters)")
    add_bleu_argument(group)
    group.add_argument("--batch-size", type=int)
    group.add_argument("--seed", type=int)


def run(args: Namespace) -> int:
    """Train all four, measure them and draw; prints a table."""
    if not args.minutes > 0:
        raise UsageError(f"--minutes must be above 0, not {args.minutes}")
    corpus = read_corpus(args, DEFAULT_TASK)
    base = "sentences" if args.data else "dates"
    unit: Unit = "words" if args.data else "characters"
    outcomes = []
    for contestant in _contestants(args, base, corpus):
        if contestant.key not in args.models:
            continue
        print(f"--- {contestant.name}: {contestant.parameters:,} parameters", flush=True)
        outcomes.append(_try(contestant, corpus, args, unit))
    figure = deciding_figure(outcomes, bool(args.data))
    data = " and ".join(_stem(path) for path in args.data) if args.data else corpus.name
    write(args.out, data, outcomes, unit, figure, args.minutes)
    print(table(outcomes, unit, figure))
    print(f"comparison: {args.out / 'comparison.png'}, {args.out / 'comparison.json'}")
    return 0


def _contestants(args: Namespace, base: str, corpus: PairCorpus) -> list[Contestant]:
    def change(settings: Seq2SeqSettings) -> Seq2SeqSettings:
        names = [
            "vocabulary",
            "batch_size",
            "bleu_tokenize",
            *(() if settings.arch == "transformer" else ("width", "score")),
        ]
        settings = override(settings, Namespace(**{name: getattr(args, name) for name in names}))
        budget = Namespace(steps=MANY_STEPS, max_seconds=args.minutes * 60, clock="processor", seed=args.seed)
        return replace(settings, loop=override(settings.loop, budget))

    plain = change(preset(base, "rnn-attention"))
    made = make_vocabularies(corpus.training, plain.vocabulary, plain.shared_vocabulary, plain.lowercase)
    return contestants(base, change, (made.source.get_vocab_size(), made.target.get_vocab_size()), args.deep_layers)


def _try(contestant: Contestant, corpus: PairCorpus, args: Namespace, unit: Unit) -> Outcome:
    """Train and measure; what an interrupted comparison has measured before is not measured again."""
    recipe = make_recipe(contestant.settings, corpus)
    out: Path = args.out / contestant.key
    resume: Resume = "restart" if args.restart else "auto"
    result = train(recipe, contestant.settings.loop, out, resume)
    measured = out / "outcome.json"
    if not args.restart and (known := read_outcome(measured)) is not None and known.steps == result.steps:
        return known
    print(finish(recipe, result, out), flush=True)
    outcome = Outcome(
        contestant.name,
        contestant.parameters,
        result.steps,
        result.seconds,
        json.loads((out / "config.json").read_text("utf-8"))["quality"],
        figures_by_length(corpus.test, recipe.test_answers(), unit, recipe.settings.bleu_tokenize),
    )
    measured.write_text(json.dumps(asdict(outcome), indent=2, ensure_ascii=False) + "\n", "utf-8")
    return outcome


def _stem(path: str) -> str:
    """A file's name without what says how it is written."""
    return Path(path).name.split(".")[0] or path


def write(out: Path, data: str, outcomes: Sequence[Outcome], unit: Unit, figure: str, minutes: float) -> None:
    """comparison.json and comparison.png."""
    models = [asdict(outcome) for outcome in outcomes]
    document: dict[str, Any] = {"data": data, "unit": unit, "minutes": minutes, "models": models}
    (out / "comparison.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
    draw(outcomes, out / "comparison.png", unit, figure, caption(data, unit, figure, minutes))

"""Learns which label a text has: an encoder with a classification head.

Without --data it learns to tell the language of a text from names and dates of the Unicode CLDR, in 33 languages. What
it is measured on belongs to concepts (a territory, a currency, …) of which it has seen no name in any language, and to
one language alone. A baseline of character n-grams is measured beside it.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polyhead.models.checkpoint import CheckpointConfig, SpecialTokens, save_held_out
from polyhead.models.encoder import Classifier, ClassifierConfig
from polyhead.train import cldr
from polyhead.train.baseline import fit_baseline
from polyhead.train.data import LabelledText, digest, is_held_out, read_labelled
from polyhead.train.encoder import (
    EncoderSettings,
    EpochBatches,
    Segmenter,
    add_model_arguments,
    pad,
    run_in_batches,
    text_tokenizer,
)
from polyhead.train.errors import DataError
from polyhead.train.loop import Result, train
from polyhead.train.options import (
    add_data_arguments,
    add_loop_arguments,
    data_options,
    loop_settings,
    override,
    resume_mode,
)
from polyhead.train.recipe import Batch
from polyhead.train.settings import LoopSettings, step_seed
from polyhead.train.tokenizer import PAD

VALIDATION_SHARE = 0.05
"""Of the data, to choose the best checkpoint by."""
TEST_SHARE = 0.1
"""Of the data, to be measured on; none where there is --test-data."""
WORST = 5
"""How many labels the summary names."""


@dataclass(frozen=True)
class ClassifierSettings(EncoderSettings):
    label_smoothing: float = 0.0
    """Szegedy et al. 2016, section 7."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, not {self.label_smoothing}")


PRESETS = {
    # The language of short texts, in about a minute on two cores.
    "demo": ClassifierSettings(
        vocabulary=0, max_tokens=512, batch_size=128, layers=1, heads=4, width=128, hidden=256, dropout=0.2,
        cut_share=0.0, drop_share=0.0, ngrams=4,
        loop=LoopSettings(steps=1000, learning_rate=2e-3, final_learning_rate=0.0, eval_every=500, weight_decay=0.05),
    ),
    # A few thousand labelled sentences of one language.
    "sentences": ClassifierSettings(
        vocabulary=0, max_tokens=512, batch_size=64, layers=2, heads=4, width=128, hidden=256, dropout=0.3,
        cut_share=0.0, drop_share=0.1, ngrams=5, label_smoothing=0.1,
        loop=LoopSettings(steps=800, learning_rate=1e-3, final_learning_rate=0.0, eval_every=100, weight_decay=0.1),
    ),
}  # fmt: skip


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--preset", choices=PRESETS, help="where what is not said here comes from (sentences with --data, else demo)"
    )
    add_data_arguments(parser, labels=True)
    parser.add_argument(
        "--label-separator", metavar="TEXT", help="a label is what stands before it: with : NUM:date counts as NUM"
    )
    add_model_arguments(parser)
    parser.add_argument("--label-smoothing", type=float)
    add_loop_arguments(parser, "classifier")


def run(args: Namespace) -> int:
    """Train as told; prints how right it is, beside the baseline, and where it errs."""
    preset = PRESETS[args.preset or ("sentences" if args.data else "demo")]
    settings = override(replace(preset, loop=loop_settings(args, preset.loop)), args)
    corpus = read_corpus(args)
    recipe = make_recipe(settings, corpus)
    print(recipe.summary(), flush=True)
    result = train(recipe, settings.loop, args.out, resume_mode(args))
    save_held_out(args.out, [row.text for row in corpus.test])
    print(result_text(result, recipe))
    print(f"checkpoint: {args.out}")
    return 0


# -- data


@dataclass(frozen=True)
class Corpus:
    """Labelled texts: to learn from, to choose the best checkpoint by, and to be measured on."""

    name: str
    training: list[LabelledText]
    validation: list[LabelledText]
    test: list[LabelledText]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted({row.label for row in self.training}))


def read_corpus(args: Namespace) -> Corpus:
    """--data and --test-data, or the CLDR. Raises DataError if a part is empty or has labels that can't be learned."""
    if not args.data:
        return language_corpus()
    options = data_options(args)

    def read(path: str) -> list[LabelledText]:
        rows = read_labelled(path, options)
        return [replace(row, label=coarse_label(row.label, args.label_separator)) for row in rows]

    corpus = split_rows(args.data, read(args.data), read(args.test_data) if args.test_data else None)
    check_corpus(corpus)
    return corpus


def coarse_label(label: str, separator: str | None) -> str:
    return label.split(separator, 1)[0] if separator else label


def split_rows(name: str, rows: Sequence[LabelledText], test: Sequence[LabelledText] | None = None) -> Corpus:
    """Held-out texts by hash, so that equal ones fall on one side; with test rows given, only validation is held out."""
    test_share = 0.0 if test else TEST_SHARE
    held_out = [row for row in rows if is_held_out(row.text, test_share + VALIDATION_SHARE)]
    return Corpus(
        name,
        [row for row in rows if not is_held_out(row.text, test_share + VALIDATION_SHARE)],
        [row for row in held_out if not is_held_out(row.text, test_share)],
        list(test or [row for row in held_out if is_held_out(row.text, test_share)]),
    )


def language_corpus() -> Corpus:
    """Texts that belong to one of the languages alone, labelled with it, split by concept."""
    training, held_out = cldr.split_by_concept(cldr.own_names(), TEST_SHARE + VALIDATION_SHARE)
    validation, test = cldr.split_by_concept(held_out, TEST_SHARE)
    parts = ([LabelledText(name.text, name.language) for name in part] for part in (training, validation, test))
    return Corpus(cldr.SOURCE, *parts)


def check_corpus(corpus: Corpus) -> None:
    """Raise DataError for an empty part, a single label, or held-out labels that training has no text of."""
    for part, rows in (("training", corpus.training), ("validation", corpus.validation), ("test", corpus.test)):
        if not rows:
            raise DataError(f"{corpus.name}: the {part} part is empty; give more texts")
        if unknown := {row.label for row in rows} - set(corpus.labels):
            raise DataError(
                f"{corpus.name}: the {part} part has labels without a text to learn from: {', '.join(sorted(unknown))}"
            )
    if len(corpus.labels) < 2:
        raise DataError(f"{corpus.name}: needs at least two labels, and has only {corpus.labels[0]!r}")


# -- recipe


@dataclass(frozen=True)
class ClassifierRecipe:
    """Cross entropy over C labels; B texts of up to T tokens a batch."""

    model: Classifier
    segmenter: Segmenter
    settings: ClassifierSettings
    corpus: Corpus
    labels: tuple[str, ...]
    batches: EpochBatches
    baseline_accuracy: float
    """Of character n-grams on the test part."""
    deciding: str = field(default="validation_accuracy", init=False)
    higher_is_better: bool = field(default=True, init=False)
    source_tokenizer_json: None = field(default=None, init=False)

    @property
    def tokenizer_json(self) -> str:
        return str(self.segmenter.tokenizer.to_str())

    @property
    def identity(self) -> dict[str, Any]:
        parts = {"data": self.corpus.training, "validation_data": self.corpus.validation, "test_data": self.corpus.test}
        digests = {name: digest(f"{row.label}\0{row.text}" for row in rows) for name, rows in parts.items()}
        return {**self.settings.identity(), **digests}

    def batch(self, step: int, progress: float = 0.0) -> Batch:
        """Ids (B, T), lengths (B,) and classes (B,)."""
        rows = [self.corpus.training[i] for i in self.batches.at(step)]
        seed = step_seed(self.settings.loop.seed, step)
        ids = self.segmenter.encode_varied(
            [row.text for row in rows], self.settings.cut_share, self.settings.drop_share, seed
        )
        return Batch((*pad(ids), classes_of(rows, self.labels)), sum(map(len, ids)))

    def loss(self, ids: Tensor, lengths: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(self.model(ids, lengths).float(), classes, label_smoothing=self.settings.label_smoothing)

    def evaluate(self, device: torch.device) -> dict[str, float]:
        """Share of right answers on the validation part, which decides, and on the test part; there macro F1 too."""
        validation = self.predict(self.corpus.validation, device)
        test, truth = self.predict(self.corpus.test, device), classes_of(self.corpus.test, self.labels)
        return {
            "validation_accuracy": accuracy(validation, classes_of(self.corpus.validation, self.labels)),
            "accuracy": accuracy(test, truth),
            "macro_f1": macro_f1(test, truth),
        }

    def predict(self, rows: Sequence[LabelledText], device: torch.device) -> Tensor:
        """The likeliest class of each text, (rows,)."""
        return run_in_batches(self.model, self.segmenter.encode([row.text for row in rows]), device).argmax(-1)

    def checkpoint_config(self, quality: dict[str, float]) -> CheckpointConfig:
        return CheckpointConfig(
            task="classify",
            architecture="encoder",
            model=asdict(self.model.config),
            special_tokens=SpecialTokens(pad=PAD),
            labels=self.labels,
            quality={**quality, "baseline_accuracy": self.baseline_accuracy},
            training={
                "recipe": "classifier",
                "data": self.corpus.name,
                "batch_size": self.settings.batch_size,
                "cut_share": self.settings.cut_share,
                "drop_share": self.settings.drop_share,
                "label_smoothing": self.settings.label_smoothing,
                **asdict(self.settings.loop),
            },
        )

    def summary(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"{self.corpus.name}: {len(self.corpus.training):,} texts to learn from, {len(self.corpus.validation):,} to "
            f"choose by, {len(self.corpus.test):,} to test; {len(self.labels)} labels; {size:,} parameters, "
            f"vocabulary {self.model.config.vocabulary_size:,}"
        )


def make_recipe(settings: ClassifierSettings, corpus: Corpus) -> ClassifierRecipe:
    """Train the tokenizer, measure the baseline, and draw the model's first weights."""
    texts = [row.text for row in corpus.training]
    segmenter = Segmenter(text_tokenizer(texts, settings.vocabulary), settings.max_tokens)
    batches = EpochBatches([len(ids) for ids in segmenter.encode(texts)], settings.batch_size, settings.loop.seed)
    torch.manual_seed(settings.loop.seed)
    sizes = asdict(settings.config(segmenter.tokenizer.get_vocab_size()))
    model = Classifier(ClassifierConfig(**sizes, classes=len(corpus.labels)))
    return ClassifierRecipe(model, segmenter, settings, corpus, corpus.labels, batches, measure_baseline(corpus))


def measure_baseline(corpus: Corpus) -> float:
    """Accuracy of character n-grams on the test part."""
    labels = corpus.labels
    classes = classes_of(corpus.training, labels).tolist()
    baseline = fit_baseline([row.text for row in corpus.training], classes, len(labels))
    return accuracy(baseline.predict([row.text for row in corpus.test]), classes_of(corpus.test, labels))


def classes_of(rows: Sequence[LabelledText], labels: Sequence[str]) -> Tensor:
    """(rows,): the index of each row's label."""
    index = {label: i for i, label in enumerate(labels)}
    return torch.tensor([index[row.label] for row in rows])


def accuracy(predicted: Tensor, truth: Tensor) -> float:
    return float((predicted == truth).double().mean())


def macro_f1(predicted: Tensor, truth: Tensor) -> float:
    """Mean over the classes in `truth` of 2·TP / (2·TP + FP + FN)."""
    scores = []
    for label in sorted(set(truth.tolist())):
        right = ((predicted == label) & (truth == label)).sum()
        scores.append(2 * right / ((predicted == label).sum() + (truth == label).sum()))
    return float(torch.stack(scores).double().mean())


# -- what came of it


def result_text(result: Result, recipe: ClassifierRecipe) -> str:
    """Accuracy beside the baseline, and the labels that were hardest to tell."""
    device = next(recipe.model.parameters()).device
    with torch.inference_mode():
        predicted = recipe.predict(recipe.corpus.test, device)
    figures = result.figures
    lines = [
        f"best at step {result.best_step} of {result.steps}, on {len(recipe.corpus.test):,} test texts:",
        f"  accuracy {figures['accuracy']:.4f}, macro F1 {figures['macro_f1']:.4f}",
        f"  accuracy of character n-grams (naive Bayes) {recipe.baseline_accuracy:.4f}",
        "  hardest labels:",
    ]
    return "\n".join([*lines, *hardest(predicted, classes_of(recipe.corpus.test, recipe.labels), recipe.labels)])


def hardest(predicted: Tensor, truth: Tensor, labels: Sequence[str]) -> list[str]:
    """A line for each of the labels with the smallest share of right answers, and what they were taken for."""
    shares = {i: accuracy(predicted[truth == i], truth[truth == i]) for i in set(truth.tolist())}
    lines = []
    for i in sorted(shares, key=shares.__getitem__)[:WORST]:
        taken = Counter(labels[j] for j in predicted[truth == i].tolist() if j != i)
        others = ", ".join(f"{label} {count}" for label, count in taken.most_common(3))
        lines.append(f"    {labels[i]}: {shares[i]:.1%} of {int((truth == i).sum())} right; taken for {others or '-'}")
    return lines

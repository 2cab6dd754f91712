"""Learns to put texts that mean the same close together: an encoder whose mean vector is the embedding.

Without --data it brings together what 33 languages call one thing: territories, languages, scripts, currencies, units,
cities, time zones, months and days of the Unicode CLDR. With --data it takes pairs of texts from two columns.

It is measured by retrieval among held-out groups, of which it has seen no text. A query is a text in one language (or
column); candidates are all held-out texts in another; right are those of the query's own group. Texts identical to the
query are no candidates, and a query whose translations all are identical to it does not count.

    recall_at_1       share of queries whose nearest candidate is right, averaged over all ordered pairs of languages
    mrr               mean of 1 / the rank of the first right candidate, likewise
    recall_at_1_all   the same share where the candidates are the held-out texts of all languages together
    chance            recall_at_1 of a blind guess
"""

import random
from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polyhead.models.checkpoint import CheckpointConfig, SpecialTokens, save_held_out
from polyhead.models.encoder import Embedder, EmbedderConfig
from polyhead.train import cldr
from polyhead.train.data import digest, is_held_out, read_columns
from polyhead.train.encoder import (
    EncoderSettings,
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
from polyhead.train.retrieval import Retrieval, Texts
from polyhead.train.settings import LoopSettings, step_seed
from polyhead.train.tokenizer import PAD

VALIDATION_SHARE = 0.05
"""Of the groups, to choose the best checkpoint by."""
TEST_SHARE = 0.1
"""Of the groups, to be measured on; none where there is --test-data."""
KINDS = ("territory", "language", "script", "currency", "unit", "city", "zone", "month", "day")
"""Of concepts that have translations worth finding."""
EXAMPLES = 8
"""How many queries the summary shows."""

Group = dict[str, str]
"""Texts that mean the same, by language or column."""


@dataclass(frozen=True)
class EmbedderSettings(EncoderSettings):
    embedding_size: int = 128
    temperature: float = 0.05
    """Similarities are divided by it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding_size < 1:
            raise ValueError(f"embedding_size must be at least 1, not {self.embedding_size}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2, one pair and another to tell it from, not {self.batch_size}"
            )


PRESETS = {
    # Names in 33 languages, in about a minute on two cores.
    "demo": EmbedderSettings(
        vocabulary=8000, max_tokens=128, batch_size=256, layers=1, heads=4, width=128, hidden=256, dropout=0.0,
        cut_share=0.05, drop_share=0.0,
        loop=LoopSettings(steps=400, learning_rate=2e-3, final_learning_rate=0.0, eval_every=200, weight_decay=0.05),
    ),
    # Pairs of sentences.
    "sentences": EmbedderSettings(
        vocabulary=12_000, max_tokens=128, batch_size=128, layers=4, heads=4, width=256, hidden=1024, dropout=0.1,
        cut_share=0.02, drop_share=0.0, embedding_size=256,
        loop=LoopSettings(steps=4000, learning_rate=5e-4, final_learning_rate=0.0, eval_every=500, weight_decay=0.05),
    ),
}  # fmt: skip


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--preset", choices=PRESETS, help="where what is not said here comes from (sentences with --data, else demo)"
    )
    add_data_arguments(parser)
    parser.add_argument(
        "--pair-column", default="pair", metavar="NAME", help="what --text-column is paired with, or number (pair)"
    )
    add_model_arguments(parser)
    parser.add_argument("--embedding-size", type=int)
    parser.add_argument("--temperature", type=float, help="what similarities are divided by")
    add_loop_arguments(parser, "embedder")


def run(args: Namespace) -> int:
    """Train as told; prints how many translations it finds, and some of them."""
    preset = PRESETS[args.preset or ("sentences" if args.data else "demo")]
    settings = override(replace(preset, loop=loop_settings(args, preset.loop)), args)
    corpus = read_corpus(args)
    recipe = make_recipe(settings, corpus)
    print(recipe.summary(), flush=True)
    result = train(recipe, settings.loop, args.out, resume_mode(args))
    save_held_out(args.out, [text for group in corpus.test for text in group.values()])
    print(result_text(result, recipe))
    print(f"checkpoint: {args.out}")
    return 0


# -- data


@dataclass(frozen=True)
class Corpus:
    """Groups to learn from, to choose the best checkpoint by, and to be measured on."""

    name: str
    training: list[Group]
    validation: list[Group]
    test: list[Group]


def read_corpus(args: Namespace) -> Corpus:
    """Pairs of --data and --test-data, or names of the CLDR. Raises DataError for too few."""
    corpus = make_corpus(cldr.SOURCE, name_groups()) if not args.data else read_pairs(args)
    for part, groups in (("training", corpus.training), ("validation", corpus.validation), ("test", corpus.test)):
        if len(groups) < 2:
            raise DataError(
                f"{corpus.name}: the {part} part has {len(groups)} pairs of different texts and needs 2; give more data"
            )
    return corpus


def read_pairs(args: Namespace) -> Corpus:
    columns = [args.text_column, args.pair_column]

    def read(path: str) -> dict[str, Group]:
        rows = read_columns(path, data_options(args), columns)
        return {f"{text}\0{pair}": {columns[0]: text, columns[1]: pair} for text, pair in rows}

    return make_corpus(args.data, read(args.data), read(args.test_data) if args.test_data else None)


def name_groups(languages: Sequence[str] = cldr.LANGUAGES) -> dict[str, Group]:
    """The plain name of each concept in every language that has one, by concept."""
    groups: defaultdict[str, Group] = defaultdict(dict)
    for language in languages:
        for name in cldr.names(language):
            if name.form == cldr.NAME and name.concept.split("/")[0] in KINDS:
                groups[name.concept].setdefault(language, name.text)
    return dict(groups)


def make_corpus(name: str, groups: dict[str, Group], test: dict[str, Group] | None = None) -> Corpus:
    """Held out by hash of the groups' keys; with test groups given, only validation is.

    Held-out texts that are also among those to learn from, whatever their case, are left out. So is a group whose
    texts are all the same, for there is nothing to find or learn.
    """
    test_share = 0.0 if test else TEST_SHARE
    learned = [group for key, group in groups.items() if not is_held_out(key, test_share + VALIDATION_SHARE)]
    held_out = {key: group for key, group in groups.items() if is_held_out(key, test_share + VALIDATION_SHARE)}
    validation = [group for key, group in held_out.items() if not is_held_out(key, test_share)]
    tested = list(test.values()) if test else [group for key, group in held_out.items() if is_held_out(key, test_share)]
    seen = {text.casefold() for group in learned for text in group.values()}
    return Corpus(name, _varied(learned), _varied(_unseen(validation, seen)), _varied(_unseen(tested, seen)))


def _unseen(groups: Iterable[Group], seen: set[str]) -> list[Group]:
    return [{name: text for name, text in group.items() if text.casefold() not in seen} for group in groups]


def _varied(groups: Iterable[Group]) -> list[Group]:
    return [group for group in groups if len({text.casefold() for text in group.values()}) > 1]


# -- recipe


@dataclass(frozen=True)
class EmbedderRecipe:
    """Contrastive learning: B pairs of texts a batch, each text to be told from those of the other pairs."""

    model: Embedder
    segmenter: Segmenter
    settings: EmbedderSettings
    corpus: Corpus
    variants: list[tuple[str, ...]]
    """The different texts of each training group."""
    deciding: str = field(default="validation_mrr", init=False)
    higher_is_better: bool = field(default=True, init=False)
    source_tokenizer_json: None = field(default=None, init=False)

    @property
    def tokenizer_json(self) -> str:
        return str(self.segmenter.tokenizer.to_str())

    @property
    def identity(self) -> dict[str, Any]:
        parts = {"data": self.corpus.training, "validation_data": self.corpus.validation, "test_data": self.corpus.test}
        digests = {name: digest("\0".join(group.values()) for group in groups) for name, groups in parts.items()}
        return {**self.settings.identity(), **digests}

    def batch(self, step: int, progress: float = 0.0) -> Batch:
        """Ids (2·B, T), lengths (2·B,) and text numbers (2·B,), equal for equal texts; text i is paired with i + B."""
        seed = step_seed(self.settings.loop.seed, step)
        chance = random.Random(seed)
        chosen = chance.sample(self.variants, min(self.settings.batch_size, len(self.variants)))
        pairs = [chance.sample(texts, 2) for texts in chosen]
        texts = [first for first, _ in pairs] + [second for _, second in pairs]
        ids = self.segmenter.encode_varied(texts, self.settings.cut_share, self.settings.drop_share, seed)
        numbers = {text.casefold(): number for number, text in enumerate(texts)}
        return Batch((*pad(ids), torch.tensor([numbers[text.casefold()] for text in texts])), sum(map(len, ids)))

    def loss(self, ids: Tensor, lengths: Tensor, numbers: Tensor) -> Tensor:
        first, second = self.model(ids, lengths).float().chunk(2)
        first_numbers, second_numbers = numbers.chunk(2)
        return contrastive_loss(first, second, first_numbers, second_numbers, self.settings.temperature)

    def evaluate(self, device: torch.device) -> dict[str, float]:
        """See the module's head; the validation part decides, the other figures are of the test part."""
        validation = self.retrieval(self.corpus.validation, device).figures()
        return {"validation_mrr": validation["mrr"], **self.retrieval(self.corpus.test, device).figures()}

    def retrieval(self, groups: Sequence[Group], device: torch.device) -> Retrieval:
        texts = Texts.of(groups)
        return Retrieval(texts, run_in_batches(self.model, self.segmenter.encode(texts.texts), device))

    def checkpoint_config(self, quality: dict[str, float]) -> CheckpointConfig:
        return CheckpointConfig(
            task="embed",
            architecture="encoder",
            model=asdict(self.model.config),
            special_tokens=SpecialTokens(pad=PAD),
            quality=quality,
            training={
                "recipe": "embedder",
                "data": self.corpus.name,
                "batch_size": self.settings.batch_size,
                "cut_share": self.settings.cut_share,
                "drop_share": self.settings.drop_share,
                "temperature": self.settings.temperature,
                **asdict(self.settings.loop),
            },
        )

    def summary(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        counts = (sum(map(len, part)) for part in (self.corpus.training, self.corpus.validation, self.corpus.test))
        learned, validation, test = counts
        return (
            f"{self.corpus.name}: {learned:,} texts in {len(self.corpus.training):,} groups to learn from, {validation:,} "
            f"to choose by, {test:,} in {len(self.corpus.test):,} groups to test; {size:,} parameters, vocabulary "
            f"{self.model.config.vocabulary_size:,}"
        )


def make_recipe(settings: EmbedderSettings, corpus: Corpus) -> EmbedderRecipe:
    """Train the tokenizer and draw the model's first weights."""
    segmenter = Segmenter(
        text_tokenizer([text for group in corpus.training for text in group.values()], settings.vocabulary),
        settings.max_tokens,
    )
    variants = [tuple({text.casefold(): text for text in group.values()}.values()) for group in corpus.training]
    torch.manual_seed(settings.loop.seed)
    sizes = asdict(settings.config(segmenter.tokenizer.get_vocab_size()))
    model = Embedder(EmbedderConfig(**sizes, embedding_size=settings.embedding_size))
    return EmbedderRecipe(model, segmenter, settings, corpus, variants)


def contrastive_loss(
    first: Tensor, second: Tensor, first_numbers: Tensor, second_numbers: Tensor, temperature: float
) -> Tensor:
    """InfoNCE with the batch's other pairs as negatives (van den Oord et al. 2018, equation 4), in both directions.

    first and second (B, C) of length 1, row i of one the positive of row i of the other. Pairs that share a text, told
    by equal numbers (B,), are no negatives of each other.
    """
    scores = first @ second.T / temperature  # (B, B)
    same = first_numbers[:, None] == second_numbers  # pair i's first is pair j's second
    same |= (first_numbers[:, None] == first_numbers) | (second_numbers[:, None] == second_numbers)
    same |= same.T.clone()
    scores = scores.masked_fill(same.fill_diagonal_(False), -torch.inf)
    target = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


# -- what came of it


def result_text(result: Result, recipe: EmbedderRecipe) -> str:
    """The figures, and the nearest text of some queries."""
    with torch.inference_mode():
        retrieval = recipe.retrieval(recipe.corpus.test, next(recipe.model.parameters()).device)
    figures = result.figures
    lines = [
        f"best at step {result.best_step} of {result.steps}, on {len(retrieval.texts.texts):,} held-out texts:",
        f"  right translation first {figures['recall_at_1']:.4f}, by chance {figures['chance']:.4f}; mean reciprocal rank "
        f"{figures['mrr']:.4f}",
        f"  right translation first among all languages {figures['recall_at_1_all']:.4f}",
        "  nearest:",
    ]
    return "\n".join([*lines, *retrieval.examples(EXAMPLES)])

"""Learns to translate: reads a source and writes an answer. A recurrent model with a fixed context (--arch rnn), with
attention (rnn-attention), or a Transformer.

Without --data it learns a task that it makes up: dates written in 33 languages, to ISO 8601. --data FILE reads
tab-separated pairs (or CSV, JSONL), --data SOURCE TARGET two files line by line.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polyhead.models.checkpoint import CheckpointConfig, SpecialTokens, save_checkpoint, save_held_out
from polyhead.train.encoder import EpochBatches, pad
from polyhead.train.errors import DataError
from polyhead.train.loop import Result, train
from polyhead.train.options import add_loop_arguments, loop_settings, override, resume_mode
from polyhead.train.pair_options import add_pair_arguments, read_corpus
from polyhead.train.pairs import Pair, PairCorpus
from polyhead.train.recipe import Batch
from polyhead.train.seq2seq_settings import (
    ARCHITECTURES,
    PRESETS,
    Model,
    Seq2SeqSettings,
    add_model_arguments,
    add_training_arguments,
    check_model_arguments,
    preset,
)
from polyhead.train.translate import answer_greedily, answer_with_beams
from polyhead.train.translation_metrics import signatures, translation_figures
from polyhead.train.vocabularies import BEGIN, END, PAD, Row, Vocabularies, make_vocabularies

IGNORED = -100
"""The target where there is none: at padding."""
RECORDED = (
    *("arch", "batch_size", "label_smoothing", "own_share", "vocabulary", "shared_vocabulary", "lowercase"),
    *("beam_width", "length_penalty"),
)
"""Settings in the checkpoint's `training` that its model doesn't tell."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--arch", choices=ARCHITECTURES, default="rnn-attention", help="(rnn-attention)")
    parser.add_argument(
        "--preset", choices=PRESETS, help="where what is not said here comes from (sentences with --data, else dates)"
    )
    add_pair_arguments(parser)
    add_model_arguments(parser)
    add_training_arguments(parser)
    add_loop_arguments(parser, "seq2seq")


def run(args: Namespace) -> int:
    """Train as told; prints what came of it on the test part, with greedy choice and with beams."""
    base = preset(args.preset or ("sentences" if args.data else "dates"), args.arch)
    settings = override(replace(base, loop=loop_settings(args, base.loop)), args)
    check_model_arguments(args, settings)
    recipe = make_recipe(settings, read_corpus(args))
    print(recipe.summary(), flush=True)
    result = train(recipe, settings.loop, args.out, resume_mode(args))
    print(finish(recipe, result, args.out))
    print(f"checkpoint: {args.out}")
    return 0


@dataclass(frozen=True)
class Seq2SeqRecipe:
    """The likelihood of targets, token by token, after sources; B pairs a batch, S and T tokens long."""

    model: Model
    vocabularies: Vocabularies
    settings: Seq2SeqSettings
    corpus: PairCorpus
    rows: list[Row]
    """Of the training part, where they fit."""
    batches: EpochBatches
    deciding: str = field(default="chrf", init=False)
    higher_is_better: bool = field(default=True, init=False)

    @property
    def tokenizer_json(self) -> str:
        return str(self.vocabularies.target.to_str())

    @property
    def source_tokenizer_json(self) -> str | None:
        return None if self.vocabularies.shared else str(self.vocabularies.source.to_str())

    @property
    def identity(self) -> dict[str, Any]:
        return {**self.settings.identity(), **self.corpus.digests()}

    def batch(self, step: int, progress: float = 0.0) -> Batch:
        """Sources (B, S), their lengths (B,), inputs (B, T), what is expected after each (B, T), share of own choices ()."""
        rows = [self.rows[i] for i in self.batches.at(step)]
        sources, lengths = pad([source for source, _ in rows])
        inputs, _ = pad([[self.vocabularies.begin, *target] for _, target in rows])
        targets, target_lengths = pad([[*target, self.vocabularies.end] for _, target in rows])
        targets[torch.arange(targets.shape[1]) >= target_lengths[:, None]] = IGNORED
        own_share = torch.tensor(self.settings.own_share * progress)
        return Batch((sources, lengths, inputs, targets, own_share), int(lengths.sum() + target_lengths.sum()))

    def loss(self, sources: Tensor, lengths: Tensor, inputs: Tensor, targets: Tensor, own_share: Tensor) -> Tensor:
        logits = self.model(sources, lengths, inputs, float(own_share)).logits
        return F.cross_entropy(
            logits.flatten(0, 1).float(),
            targets.flatten(),
            ignore_index=IGNORED,
            label_smoothing=self.settings.label_smoothing,
        )

    def evaluate(self, device: torch.device) -> dict[str, float]:
        """Of greedy answers to the validation part."""
        count, validation = self.settings.evaluation_pairs, self.corpus.validation
        pairs = validation[:: -(-len(validation) // count)]  # spread evenly: files are often sorted by length
        return self.figures(self.answers([pair.source for pair in pairs], device), pairs)

    def figures(self, answers: Sequence[str], pairs: Sequence[Pair]) -> dict[str, float]:
        return translation_figures(answers, [pair.target for pair in pairs], self.settings.bleu_tokenize)

    def answers(self, sources: Sequence[str], device: torch.device, beams: bool = False) -> list[str]:
        """Greedy answers, or the best of a beam search."""
        rows = [row[: self.settings.max_source_tokens] for row in self.vocabularies.encode_sources(sources)]
        if beams:
            return self.vocabularies.decode(
                answer_with_beams(self.model, self.vocabularies, self.settings, rows, device)
            )
        return self.vocabularies.decode(answer_greedily(self.model, self.vocabularies, rows, device))

    def test_answers(self, beams: bool = False) -> list[str]:
        """To the test part, on the device where the model is."""
        sources = [pair.source for pair in self.corpus.test]
        return self.answers(sources, next(self.model.parameters()).device, beams)

    def checkpoint_config(self, quality: dict[str, float]) -> CheckpointConfig:
        return CheckpointConfig(
            task="generate",
            architecture="transformer-seq2seq" if self.settings.arch == "transformer" else "rnn-seq2seq",
            model=asdict(self.model.config),
            special_tokens=SpecialTokens(bos=BEGIN, eos=(END,), pad=PAD),
            quality=quality,
            training={
                "recipe": "seq2seq",
                "data": self.corpus.name,
                **{name: getattr(self.settings, name) for name in RECORDED},
                **{f"{name}_signature": text for name, text in signatures(self.settings.bleu_tokenize).items()},
                **asdict(self.settings.loop),
            },
        )

    def summary(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        config = self.model.config
        return (
            f"{self.corpus.name}: {len(self.rows):,} pairs to learn from{self._left_out()}, {len(self.corpus.validation):,} "
            f"to choose by, {len(self.corpus.test):,} to test{self._cut()}; {size:,} parameters, vocabularies "
            f"{config.source_vocabulary_size:,} and {config.target_vocabulary_size:,}"
        )

    def _left_out(self) -> str:
        """How many training pairs don't fit; nothing where all do."""
        count, longest = len(self.corpus.training) - len(self.rows), self.settings
        limits = f"{longest.max_source_tokens} source or {longest.max_target_tokens} target tokens"
        return f" ({count:,} more are longer than {limits})" if count else ""

    def _cut(self) -> str:
        """How many sources are measured without their ends; nothing where all fit."""
        measured, limit = [*self.corpus.validation, *self.corpus.test], self.settings.max_source_tokens
        rows = self.vocabularies.encode_sources([pair.source for pair in measured])
        count = sum(len(row) > limit for row in rows)
        return f" ({count:,} sources of both are cut to {limit} tokens)" if count else ""


def make_recipe(settings: Seq2SeqSettings, corpus: PairCorpus) -> Seq2SeqRecipe:
    """Train the tokenizers, tokenize, and draw the model's first weights. Raises DataError if no pair fits the limits."""
    vocabularies = make_vocabularies(
        corpus.training, settings.vocabulary, settings.shared_vocabulary, settings.lowercase
    )
    rows = [
        row
        for row in vocabularies.encode(corpus.training)
        if len(row[0]) <= settings.max_source_tokens and len(row[1]) < settings.max_target_tokens
    ]
    if not rows:
        raise DataError(
            f"{corpus.name}: no pair fits {settings.max_source_tokens} source tokens and {settings.max_target_tokens} "
            "target tokens"
        )
    batches = EpochBatches([len(source) for source, _ in rows], settings.batch_size, settings.loop.seed)
    torch.manual_seed(settings.loop.seed)
    model = settings.build(vocabularies.source.get_vocab_size(), vocabularies.target.get_vocab_size())
    return Seq2SeqRecipe(model, vocabularies, settings, corpus, rows, batches)


# -- what came of it


def finish(recipe: Seq2SeqRecipe, result: Result, out: Path) -> str:
    """Measure the best weights on the test part, and complete the checkpoint with that; returns what to print."""
    figures = measure(recipe)
    config = recipe.checkpoint_config({**{f"validation_{k}": v for k, v in result.figures.items()}, **figures})
    save_held_out(out, [f"{pair.source}\t{pair.target}" for pair in recipe.corpus.test])
    weights = recipe.model.state_dict()
    save_checkpoint(out, config, weights, recipe.tokenizer_json, recipe.source_tokenizer_json)
    lines = [f"best at step {result.best_step} of {result.steps}, on {len(recipe.corpus.test):,} test pairs:"]
    for prefix, how in (("", "greedy"), ("beam_", f"{recipe.settings.beam_width} beams")):
        bleu = figures.get(f"{prefix}bleu")
        lines.append(
            f"  {how}: exact match {figures[f'{prefix}exact_match']:.4f}, chrF {figures[f'{prefix}chrf']:.2f}"
            + (f", BLEU {bleu:.2f}" if bleu is not None else "; BLEU counts four words, and no target has them")
        )
    signed = signatures(recipe.settings.bleu_tokenize)
    lines.append(
        f"  length penalty {recipe.settings.length_penalty:g}; chrF {signed['chrf']}"
        + (f"; BLEU {signed['bleu']}" if "bleu" in figures else "")
    )
    return "\n".join([*lines, *_examples(recipe.corpus.test, recipe)])


def measure(recipe: Seq2SeqRecipe) -> dict[str, float]:
    """Figures of the test part: greedy, and of beam search, `beam_…`."""
    greedy = recipe.figures(recipe.test_answers(), recipe.corpus.test)
    beams = recipe.figures(recipe.test_answers(beams=True), recipe.corpus.test)
    return {**greedy, **{f"beam_{name}": value for name, value in beams.items()}}


def _examples(pairs: Sequence[Pair], recipe: Seq2SeqRecipe) -> list[str]:
    some = pairs[:: max(1, len(pairs) // 4)][:4]
    device = next(recipe.model.parameters()).device
    answers = recipe.answers([pair.source for pair in some], device)
    return [f"    {pair.source} → {answer}" for pair, answer in zip(some, answers, strict=True)]

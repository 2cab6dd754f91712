"""Learns to continue text: a decoder on documents of characters or byte-level BPE tokens.

Without --data it learns Python from the source of the running Python's standard library.
"""

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from polyhead.models.checkpoint import CheckpointConfig, SpecialTokens, save_held_out
from polyhead.models.gpt import GPT, GPTConfig
from polyhead.train import stdlib
from polyhead.train.data import digest, is_held_out, read_documents
from polyhead.train.errors import DataError, UsageError
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
from polyhead.train.tokenizer import BOS, EOS, character_tokenizer, encode_plain, token_id, train_bpe

HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class GPTSettings:
    """A training of this recipe. Raises ValueError naming field, limit and what was given."""

    tokenizer: Literal["bpe", "character"]
    vocabulary: int
    """Largest size of a BPE vocabulary; characters make their own."""
    context: int
    batch_size: int
    layers: int
    heads: int
    kv_heads: int
    width: int
    dropout: float
    loop: LoopSettings
    hidden: int | None = None
    """Of SwiGLU. None: 8/3 of the width (Shazeer 2020, section 3.1, keeps parameters so), rounded up to a multiple of 32."""
    excerpt_share: float = 0.1
    """Share of training windows whose first token becomes the begin token, so that a prompt may begin anywhere in a text."""
    evaluation_tokens: int = 131_072
    """At most this many held-out tokens are evaluated, in windows spread evenly."""
    prompt: str = ""
    """What the sample shown at the end begins with."""

    def __post_init__(self) -> None:
        for name in ("context", "batch_size", "layers", "heads", "kv_heads", "width", "evaluation_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")


PRESETS = {
    # Python from the standard library, in about a minute and a half on two cores.
    "demo": GPTSettings(
        tokenizer="bpe", vocabulary=2048, context=256, batch_size=4, layers=4, heads=4, kv_heads=2, width=128, dropout=0.0,
        evaluation_tokens=32_768, prompt="def",
        loop=LoopSettings(steps=500, learning_rate=4e-3, warmup_steps=50, beta2=0.98, eval_every=250),
    ),
    # nanoGPT's setting for a CPU: its size, context, batch and steps.
    "char-small": GPTSettings(
        tokenizer="character", vocabulary=0, context=64, batch_size=12, layers=4, heads=4, kv_heads=4, width=128,
        dropout=0.0, prompt="\n",
        loop=LoopSettings(steps=2000, learning_rate=1e-3, warmup_steps=100, beta2=0.99, eval_every=250),
    ),
}  # fmt: skip


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--preset", choices=PRESETS, default="demo", help="where what is not said here comes from (demo)"
    )
    add_data_arguments(parser)
    model = parser.add_argument_group("model")
    model.add_argument("--tokenizer", choices=("bpe", "character"))
    model.add_argument("--vocabulary", type=int, metavar="SIZE", help="of the BPE tokenizer")
    model.add_argument("--context", type=int, metavar="TOKENS", help="longest input with its answer")
    for name in ("layers", "heads", "kv-heads", "width", "hidden"):
        model.add_argument(f"--{name}", type=int)
    model.add_argument("--dropout", type=float)
    add_loop_arguments(parser, "gpt")


def run(args: Namespace) -> int:
    """Train as told; prints what came of it and a sample."""
    preset = PRESETS[args.preset]
    settings = override(replace(preset, loop=loop_settings(args, preset.loop)), args)
    corpus = read_corpus(args)
    recipe = make_recipe(settings, corpus)
    print(recipe.summary(), flush=True)
    result = train(recipe, settings.loop, args.out, resume_mode(args))
    save_held_out(args.out, corpus.held_out)
    print(result_text(result, recipe))
    print(f"checkpoint: {args.out}")
    return 0


# -- data


@dataclass(frozen=True)
class Corpus:
    """Documents to learn from and documents to be measured on."""

    name: str
    training: list[str]
    held_out: list[str]


def read_corpus(args: Namespace) -> Corpus:
    """--data and --test-data, or the standard library."""
    options = data_options(args)
    documents = read_documents(args.data, options) if args.data else stdlib.python_documents()
    name = args.data or "the Python standard library"
    if args.test_data:
        return Corpus(name, documents, read_documents(args.test_data, options))
    return Corpus(name, *split_documents(documents))


def split_documents(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Documents to train on and held-out ones, by hash; of a single document the last tenth is held out."""
    if len(documents) == 1:
        end = round(len(documents[0]) * (1 - HELD_OUT_SHARE))
        return [documents[0][:end]], [documents[0][end:]]
    held_out = [document for document in documents if is_held_out(document, HELD_OUT_SHARE)]
    if not held_out or len(held_out) == len(documents):  # very few documents
        held_out = [min(documents, key=lambda document: digest([document]))]
    apart = set(held_out)
    return [document for document in documents if document not in apart], held_out


def token_stream(tokenizer: Tokenizer, documents: Sequence[str]) -> Tensor:
    """(tokens,): begin, document, end; one document after the other."""
    bos, eos = token_id(tokenizer, BOS), token_id(tokenizer, EOS)
    return torch.tensor([token for ids in encode_plain(tokenizer, documents) for token in (bos, *ids, eos)])


# -- recipe


@dataclass(frozen=True)
class GPTRecipe:
    """Next-token prediction on windows of a token stream; B windows of T tokens a batch."""

    model: GPT
    tokenizer: Tokenizer
    settings: GPTSettings
    corpus: Corpus
    training_tokens: Tensor
    held_out_tokens: Tensor
    deciding: str = field(default="validation_loss", init=False)
    higher_is_better: bool = field(default=False, init=False)
    source_tokenizer_json: None = field(default=None, init=False)

    @property
    def tokenizer_json(self) -> str:
        return str(self.tokenizer.to_str())

    @property
    def identity(self) -> dict[str, Any]:
        settings = {name: value for name, value in asdict(self.settings).items() if name not in ("loop", "prompt")}
        texts = {"data": digest(self.corpus.training), "test_data": digest(self.corpus.held_out)}
        return {**settings, **texts, "vocabulary": self.model.config.vocabulary_size}

    def batch(self, step: int, progress: float = 0.0) -> Batch:
        """Windows at random places: inputs (B, T), and targets (B, T) one further."""
        B, T = self.settings.batch_size, self.settings.context
        generator = torch.Generator().manual_seed(step_seed(self.settings.loop.seed, step))
        starts = torch.randint(len(self.training_tokens) - T, (B, 1), generator=generator)
        windows = self.training_tokens[starts + torch.arange(T + 1)]  # (B, T + 1)
        excerpt = torch.rand(B, generator=generator) < self.settings.excerpt_share
        windows[:, 0].masked_fill_(excerpt, token_id(self.tokenizer, BOS))
        return Batch((windows[:, :-1], windows[:, 1:]), B * T)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.model(inputs).flatten(0, 1).float(), targets.flatten())

    def evaluate(self, device: torch.device) -> dict[str, float]:
        """Mean loss a token over held-out windows that do not overlap, its exponential, and the loss in bits a byte of text."""
        windows = spread_windows(self.held_out_tokens, self.settings.context, self.settings.evaluation_tokens)
        total = 0.0
        for batch in torch.split(windows, 16):
            total += float(self.loss(batch[:, :-1].to(device), batch[:, 1:].to(device))) * len(batch)
        loss = total / len(windows)
        tokens_a_byte = len(self.held_out_tokens) / sum(len(text.encode()) for text in self.corpus.held_out)
        return {
            "validation_loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": loss * tokens_a_byte / math.log(2),
        }

    def checkpoint_config(self, quality: dict[str, float]) -> CheckpointConfig:
        return CheckpointConfig(
            task="generate",
            architecture="gpt",
            model=asdict(self.model.config),
            special_tokens=SpecialTokens(bos=BOS, eos=(EOS,)),
            quality=quality,
            training={
                "recipe": "gpt",
                "data": self.corpus.name,
                "batch_size": self.settings.batch_size,
                "context": self.settings.context,
                **asdict(self.settings.loop),
            },
        )

    def summary(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"{self.corpus.name}: {len(self.corpus.training)} documents, {len(self.training_tokens):,} tokens to learn from, "
            f"{len(self.held_out_tokens):,} held out; {size:,} parameters, vocabulary {self.model.config.vocabulary_size:,}"
        )


def make_recipe(settings: GPTSettings, corpus: Corpus) -> GPTRecipe:
    """Train the tokenizer, tokenize, and draw the model's first weights. Raises DataError for too little text."""
    if settings.tokenizer == "bpe":
        tokenizer = train_bpe(corpus.training, settings.vocabulary, [BOS, EOS], begin=BOS)
    else:
        tokenizer = character_tokenizer(corpus.training, [BOS, EOS], begin=BOS)
    streams = [token_stream(tokenizer, documents) for documents in (corpus.training, corpus.held_out)]
    for part, tokens in zip(("training", "held-out"), streams, strict=True):
        if len(tokens) <= settings.context:
            raise DataError(
                f"{corpus.name}: the {part} part has {len(tokens)} tokens, and one window takes {settings.context + 1}; "
                "give more text or a smaller --context"
            )
    torch.manual_seed(settings.loop.seed)
    return GPTRecipe(make_model(settings, tokenizer.get_vocab_size()), tokenizer, settings, corpus, *streams)


def make_model(settings: GPTSettings, vocabulary_size: int) -> GPT:
    sizes = {name: getattr(settings, name) for name in ("layers", "heads", "kv_heads", "width", "dropout")}
    try:
        return GPT(
            GPTConfig(
                vocabulary_size, settings.context, hidden=settings.hidden or -(-settings.width // 12) * 32, **sizes
            )
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def spread_windows(tokens: Tensor, context: int, most_tokens: int) -> Tensor:
    """(N, context + 1): windows that share no target, spread evenly over all tokens, of `most_tokens` targets at most."""
    available = (len(tokens) - 1) // context
    count = min(available, max(1, most_tokens // context))
    starts = torch.arange(count) * available // count * context
    return tokens[starts[:, None] + torch.arange(context + 1)]


# -- what came of it


def result_text(result: Result, recipe: GPTRecipe) -> str:
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in result.figures.items())
    text = sample(recipe.model, recipe.tokenizer, recipe.settings.prompt, recipe.settings.loop.seed)
    return f"best at step {result.best_step} of {result.steps}: {figures}\n--- sample\n{text}\n---"


@torch.inference_mode()
def sample(
    model: GPT, tokenizer: Tokenizer, prompt: str, seed: int, max_tokens: int = 128, temperature: float = 0.7
) -> str:
    """The prompt and one continuation by recomputing the whole sequence each step, within the model's context."""
    device = model.cosine.device
    generator = torch.Generator(device).manual_seed(seed)
    ids: list[int] = tokenizer.encode(prompt).ids
    while len(ids) < min(max_tokens, model.config.max_tokens):
        logits = model(torch.tensor([ids], device=device))[0, -1]
        probabilities = (logits.float() / temperature).softmax(-1)
        ids.append(int(torch.multinomial(probabilities, 1, generator=generator)))
        if ids[-1] == token_id(tokenizer, EOS):
            break
    return str(tokenizer.decode(ids))

"""What the classifier and the embedder share: settings, tokenizer, and batches of texts.

Texts are lower-cased and cut by byte-level BPE, or into characters. In training each can also be cut at random places
first, so that the model sees a word in many pieces (subword regularization: Kudo 2018; BPE-dropout: Provilkov et al.
2019), and some tokens can be dropped, so that it can't rely on any one (word dropout: Iyyer et al. 2015, section 3.1).
"""

import random
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, normalizers
from torch import Tensor

from polyhead.models.encoder import EncoderConfig
from polyhead.train.settings import LoopSettings, step_seed
from polyhead.train.tokenizer import PAD, character_tokenizer, encode_plain, train_bpe

POOL = 16
"""Batches that are sorted by length together, so that texts of a batch need little padding."""


@dataclass(frozen=True)
class EncoderSettings:
    """A training of an encoder. Raises ValueError naming field, limit and what was given."""

    vocabulary: int
    """Largest size of the tokenizer's vocabulary; 0: tokens are characters."""
    max_tokens: int
    """Longer texts are cut."""
    batch_size: int
    layers: int
    heads: int
    width: int
    hidden: int
    dropout: float
    cut_share: float
    """Share of the places between two characters where a training text is cut before it is tokenized."""
    drop_share: float
    """Share of a training text's tokens that are left out."""
    loop: LoopSettings
    ngrams: int = 1
    """The longest n-gram of tokens that has a vector of its own at the input; 1: each token on its own."""
    ngram_buckets: int = 16_384
    """Vectors that all n-grams share by their hash."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "batch_size", "layers", "heads", "width", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("dropout", "cut_share", "drop_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        self.config(1)  # refuses sizes that contradict each other

    def identity(self) -> dict[str, Any]:
        """All but the loop's settings, by which a resumed training knows itself again."""
        return {name: value for name, value in asdict(self).items() if name != "loop"}

    def config(self, vocabulary_size: int) -> EncoderConfig:
        names = ("max_tokens", "layers", "heads", "width", "hidden", "dropout", "ngrams", "ngram_buckets")
        return EncoderConfig(vocabulary_size, **{name: getattr(self, name) for name in names})


def add_model_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--vocabulary", type=int, metavar="SIZE", help="of the tokenizer (0: characters)")
    group.add_argument("--max-tokens", type=int, help="longest input")
    for name in ("layers", "heads", "width", "hidden"):
        group.add_argument(f"--{name}", type=int)
    group.add_argument("--dropout", type=float)
    group.add_argument("--ngrams", type=int, metavar="TOKENS", help="longest n-gram with a vector of its own (1: none)")
    group.add_argument("--ngram-buckets", type=int, metavar="N", help="vectors that all n-grams share")
    group.add_argument("--cut-share", type=float, help="of places in a training text where it is cut into tokens anew")
    group.add_argument("--drop-share", type=float, help="of a training text's tokens that are left out")


def text_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Lower-cased byte-level BPE or, where the vocabulary is 0, lower-cased characters. Id 0 is padding.

    A space before the text makes its first word like every other; one after it tells characters where the last word ends.
    """
    form = [normalizers.NFC(), normalizers.Lowercase(), normalizers.Prepend(" ")]
    if vocabulary:
        return train_bpe(texts, vocabulary, [PAD], normalizer=normalizers.Sequence(form))
    end = normalizers.Replace(Regex(r"\z"), " ")
    return character_tokenizer(texts, [PAD], normalizer=normalizers.Sequence([*form, end]))


@dataclass(frozen=True)
class Segmenter:
    """Texts to ids of 1 to `max_tokens` tokens."""

    tokenizer: Tokenizer
    max_tokens: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """As the server will."""
        return [ids[: self.max_tokens] for ids in encode_plain(self.tokenizer, texts)]

    def encode_varied(self, texts: Sequence[str], cut_share: float, drop_share: float, seed: int) -> list[list[int]]:
        """With each text cut first at about that share of its places, and that share of its tokens left out, but never all.

        The same seed gives the same.
        """
        chance = random.Random(seed)
        rows = [list(_cut(self.tokenizer.normalizer.normalize_str(text), cut_share, chance)) for text in texts]
        encodings = iter(self._pieces.encode_batch([piece for row in rows for piece in row], add_special_tokens=False))
        whole = ([id for _ in row for id in next(encodings).ids] for row in rows)
        return [([id for id in ids if chance.random() >= drop_share] or ids)[: self.max_tokens] for ids in whole]

    @cached_property
    def _pieces(self) -> Tokenizer:
        """The tokenizer for texts that are normalized already."""
        tokenizer = Tokenizer(self.tokenizer.model)
        tokenizer.pre_tokenizer = self.tokenizer.pre_tokenizer
        return tokenizer


def _cut(text: str, share: float, chance: random.Random) -> Iterator[str]:
    start = 0
    for end in range(2, len(text)):  # not after the space that begins each text
        if chance.random() < share:
            yield text[start:end]
            start = end
    yield text[start:]


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids of B texts -> (B, T) with padding, 0, on the right, and lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return padded, lengths


def run_in_batches(
    forward: Callable[[Tensor, Tensor], Tensor], rows: Sequence[Sequence[int]], device: torch.device, size: int = 256
) -> Tensor:
    """forward(ids (B, T), lengths (B,)) -> (B, C) over all rows, shortest first for little padding -> (rows, C) in order, on the CPU."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    outputs = []
    for start in range(0, len(rows), size):
        ids, lengths = pad([rows[i] for i in order[start : start + size]])
        outputs.append(forward(ids.to(device), lengths.to(device)).float().cpu())
    return torch.cat(outputs)[torch.tensor(order).argsort()]


class EpochBatches:
    """Batches of indices into N texts: each once an epoch, in an order drawn from seed and epoch, like lengths together.

    Only the epoch asked for last is kept.
    """

    def __init__(self, lengths: Sequence[int], size: int, seed: int) -> None:
        self._lengths, self._size, self._seed = torch.tensor(lengths), size, seed
        self._epoch, self._batches = 0, self._draw(0)

    def at(self, step: int) -> list[int]:
        """The batch of that step, of `size` indices; an epoch's last ones may have fewer."""
        epoch, place = divmod(step, len(self._batches))
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._draw(epoch)
        return self._batches[place]

    def _draw(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(step_seed(self._seed, epoch))
        batches: list[list[int]] = []
        for pool in torch.randperm(len(self._lengths), generator=generator).split(self._size * POOL):  # type: ignore[no-untyped-call]
            by_length = pool[self._lengths[pool].argsort(stable=True)]
            batches += [batch.tolist() for batch in by_length.split(self._size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

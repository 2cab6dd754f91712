"""What a classifier must beat to be worth its attention: naive Bayes over the n-grams of characters.

Multinomial with each n-gram of a text counted once, which does better than counts on short texts (Wang and Manning 2012,
section 2.1). N-grams of characters are the classic way to tell languages apart (Cavnar and Trenkle 1994).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NgramBaseline:
    """A fitted baseline over F n-grams and C classes."""

    features: dict[str, int]
    log_likelihood: Tensor
    """(F, C): of an n-gram in a class."""
    log_prior: Tensor
    """(C,)"""

    def predict(self, texts: Sequence[str]) -> Tensor:
        """The likeliest class of each text, (texts,). N-grams never seen say nothing."""
        return torch.stack([self._scores(text).argmax() for text in texts])

    def _scores(self, text: str) -> Tensor:
        known = [self.features[ngram] for ngram in ngrams(text) if ngram in self.features]
        return self.log_prior + self.log_likelihood[known].sum(0)


def fit_baseline(texts: Sequence[str], classes: Sequence[int], count: int, smoothing: float = 0.1) -> NgramBaseline:
    """Learn from texts and the class of each, in 0..count-1; `smoothing` is added to how often each class has an n-gram."""
    features: dict[str, int] = {}
    rows: list[int] = []
    columns: list[int] = []
    for text, label in zip(texts, classes, strict=True):
        found = [features.setdefault(ngram, len(features)) for ngram in ngrams(text)]
        rows += found
        columns += [label] * len(found)
    counts = torch.full((len(features), count), smoothing)
    counts.index_put_((torch.tensor(rows), torch.tensor(columns)), torch.ones(len(rows)), accumulate=True)
    prior = torch.bincount(torch.tensor(classes), minlength=count) + smoothing
    return NgramBaseline(features, (counts / counts.sum(0)).log(), (prior / prior.sum()).log())


def ngrams(text: str, longest: int = 4) -> list[str]:
    """All runs of 1 to `longest` characters, each once in order of appearance; case is dropped, a space marks both ends."""
    text = f" {text.casefold()} "
    runs = (text[i : i + size] for size in range(1, longest + 1) for i in range(len(text) - size + 1))
    return list(dict.fromkeys(runs))

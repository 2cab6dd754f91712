"""How well embeddings find translations: for each held-out text the nearest of the others, and whether it is a right one.

N texts of G groups in L languages (or columns). A text identical to the query, whatever its case, is no candidate.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

QUERIES_AT_ONCE = 1024


@dataclass(frozen=True)
class Texts:
    """Texts that are both queries and candidates."""

    texts: list[str]
    languages: list[str]
    """Names of the L languages."""
    group_of: Tensor
    """(N,): texts of one group are translations of each other."""
    language_of: Tensor
    """(N,), indices into `languages`."""
    number_of: Tensor
    """(N,): equal for identical texts."""

    @classmethod
    def of(cls, groups: Sequence[Mapping[str, str]]) -> "Texts":
        """From the texts of each group by language."""
        rows = [(g, language, text) for g, group in enumerate(groups) for language, text in group.items()]
        languages = sorted({language for _, language, _ in rows})
        place = {language: i for i, language in enumerate(languages)}
        numbers: dict[str, int] = {}
        return cls(
            [text for _, _, text in rows],
            languages,
            torch.tensor([g for g, _, _ in rows]),
            torch.tensor([place[language] for _, language, _ in rows]),
            torch.tensor([numbers.setdefault(text.casefold(), len(numbers)) for _, _, text in rows]),
        )


@dataclass(frozen=True)
class Retrieval:
    """Embeddings (N, C) of length 1 of the texts."""

    texts: Texts
    embeddings: Tensor

    def figures(self) -> dict[str, float]:
        """recall_at_1, mrr and chance, averaged over ordered pairs of languages; recall_at_1_all over all queries."""
        L = len(self.texts.languages)
        hits, reciprocal, chance, count = (torch.zeros(L, L) for _ in range(4))
        hits_all = count_all = 0
        for queries, scores, right in self._blocks():
            valid = right.any(1)
            hits_all += int(_nearest_is_right(scores, right)[valid].sum())
            count_all += int(valid.sum())
            for language in range(L):
                candidates = self.texts.language_of == language
                some, wanted = scores[:, candidates], right[:, candidates]
                asked = wanted.any(1) & (self.texts.language_of[queries] != language)
                some, wanted, source = some[asked], wanted[asked], self.texts.language_of[queries[asked]]
                hits[:, language].index_add_(0, source, _nearest_is_right(some, wanted).float())
                reciprocal[:, language].index_add_(0, source, 1 / _rank(some, wanted))
                chance[:, language].index_add_(0, source, wanted.sum(1) / some.isfinite().sum(1))
                count[:, language].index_add_(0, source, torch.ones(len(source)))
        pairs = count > 0
        mean = {"recall_at_1": hits, "mrr": reciprocal, "chance": chance}
        figures = {name: float((total[pairs] / count[pairs]).mean()) for name, total in mean.items()}
        return {**figures, "recall_at_1_all": hits_all / count_all}

    def examples(self, count: int) -> list[str]:
        """A line each for queries spread evenly over the texts: the nearest of all others, and whether it is right."""
        nearest, found = torch.zeros(len(self.texts.texts), dtype=torch.int64), torch.zeros(len(self.texts.texts))
        for queries, scores, right in self._blocks():
            nearest[queries] = scores.argmax(1)
            found[queries] = _nearest_is_right(scores, right).float()
        chosen = torch.linspace(0, len(nearest) - 1, count).long().tolist()
        return [
            f"    {self._shown(i)} -> {self._shown(int(nearest[i]))}{'' if found[i] else ' (wrong)'}" for i in chosen
        ]

    def _shown(self, i: int) -> str:
        return f"{self.texts.texts[i]} [{self.texts.languages[int(self.texts.language_of[i])]}]"

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Q queries (Q,) at once, their scores (Q, N), -inf for identical texts, and which are right (Q, N)."""
        texts = self.texts
        for queries in torch.arange(len(texts.texts)).split(QUERIES_AT_ONCE):  # type: ignore[no-untyped-call]
            identical = texts.number_of[queries, None] == texts.number_of
            scores = (self.embeddings[queries] @ self.embeddings.T).masked_fill(identical, -torch.inf)
            yield queries, scores, (texts.group_of[queries, None] == texts.group_of) & ~identical


def _nearest_is_right(scores: Tensor, right: Tensor) -> Tensor:
    """(Q, N) twice -> (Q,) boolean."""
    return right.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)


def _rank(scores: Tensor, right: Tensor) -> Tensor:
    """(Q, N) twice -> (Q,): the rank, from 1, of the best candidate that is right."""
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return 1 + (scores > best).sum(1)

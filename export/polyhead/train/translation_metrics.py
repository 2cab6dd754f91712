"""How good answers are, beside one right answer each: exact matches, chrF and BLEU."""

from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

NGRAMS = 4
"""The longest n-grams that BLEU counts (Papineni et al. 2002, section 2.3)."""


def translation_figures(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """exact_match from 0 to 1; chrf (Popović 2015) and bleu (Papineni et al. 2002, as Post 2018 computes it) from 0 to 100.

    No bleu where no reference has four tokens: it is 0 then, however right the answers.
    """
    matches = sum(answer == reference for answer, reference in zip(answers, references, strict=True))
    figures = {
        "exact_match": matches / len(references),
        "chrf": CHRF().corpus_score(list(answers), [list(references)]).score,
    }
    bleu = BLEU(force=True)  # no warning about a final stop
    if any(len(bleu.tokenizer(reference).split()) >= NGRAMS for reference in references):
        figures["bleu"] = bleu.corpus_score(list(answers), [list(references)]).score
    return figures

"""How good answers are, beside one right answer each: exact matches, chrF and BLEU."""

from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF


def translation_figures(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """exact_match from 0 to 1; chrf (Popović 2015) and bleu (Papineni et al. 2002, as Post 2018 computes it) from 0 to 100."""
    matches = sum(answer == reference for answer, reference in zip(answers, references, strict=True))
    return {
        "exact_match": matches / len(references),
        "chrf": CHRF().corpus_score(list(answers), [list(references)]).score,
        "bleu": BLEU(force=True)
        .corpus_score(list(answers), [list(references)])
        .score,  # force: no warning about a final stop
    }

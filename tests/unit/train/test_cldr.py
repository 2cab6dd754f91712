import unicodedata

import pytest

from polyhead.train import cldr
from polyhead.train.cldr import Name, names, own_names, split_by_concept

FEW = ("da", "de", "en", "ja")


def test_there_are_at_least_20_languages_and_at_least_12_write_in_latin_letters() -> None:
    sundays = {language: _by_concept(language)["day/6"] for language in cldr.LANGUAGES}
    latin = {language for language, text in sundays.items() if unicodedata.name(text[0]).startswith("LATIN")}
    assert len(cldr.LANGUAGES) >= 20
    assert latin == set(cldr.LATIN_LANGUAGES)
    assert len(latin) >= 12


def _by_concept(language: str) -> dict[str, str]:
    return {name.concept: name.text for name in names(language) if name.form == cldr.NAME}


@pytest.mark.parametrize(
    ("language", "concept", "text"),
    [
        ("de", "territory/DE", "Deutschland"),
        ("ja", "territory/DE", "ドイツ"),
        ("fr", "language/de", "allemand"),
        ("es", "currency/GBP", "libra esterlina"),
        ("it", "unit/length-kilometer", "chilometri"),
        ("pl", "city/Europe/Athens", "Ateny"),
        ("sv", "month/5", "maj"),
    ],
)
def test_names_are_what_the_language_says(language: str, concept: str, text: str) -> None:
    assert _by_concept(language)[concept] == text


def test_what_a_language_says_does_not_depend_on_the_languages_before_it() -> None:
    """Babel alone lets them through: the months of one language turn up in the next."""
    names.cache_clear()
    for language in ("he", "sw"):
        names(language)
    days = {name.text for language in ("sv", "uk") for name in names(language) if name.concept == "day/6"}
    assert days == {"söndag", "неділя"}


def test_dates_plurals_and_spans_belong_to_the_concept_of_their_name() -> None:
    german = {(name.concept, name.text) for name in names("de")}
    assert ("month/5", "1. Mai 2026") in german
    assert ("unit/length-kilometer", "5 Kilometer") in german
    assert ("span/day", "vor 2 Tagen") in german


def test_a_language_without_data_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="no CLDR data for language 'xx'"):
        names("xx")


def test_own_names_belong_to_one_language_alone_whatever_their_case() -> None:
    own = own_names(FEW)
    owner: dict[str, str] = {}
    assert all(owner.setdefault(name.text.casefold(), name.language) == name.language for name in own)
    texts = {name.text for name in own}
    assert "Deutschland" in texts
    assert "Angola" not in texts  # German, English and Danish
    assert len(own) == len({(name.language, name.text) for name in own})


def test_held_out_names_share_neither_concept_nor_text_with_the_others() -> None:
    learned, held_out = split_by_concept(own_names(FEW), 0.1)
    assert 0.05 < len(held_out) / (len(learned) + len(held_out)) < 0.15
    assert not {name.concept for name in learned} & {name.concept for name in held_out}
    assert not {name.text.casefold() for name in learned} & {name.text.casefold() for name in held_out}


def test_a_name_that_another_concept_shares_is_not_held_out() -> None:
    everything = [Name("en", f"city/{i}", "name", "Singapore") for i in range(200)]
    learned, held_out = split_by_concept(everything, 0.5)
    assert 0 < len(learned) < 200
    assert held_out == []


def test_a_smaller_share_is_part_of_a_larger_one() -> None:
    own = own_names(FEW)
    assert set(split_by_concept(own, 0.1)[1]) <= set(split_by_concept(own, 0.2)[1])

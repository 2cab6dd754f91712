"""Real multilingual text that every machine with Babel has: names and dates of the Unicode CLDR, in 33 languages.

Territories, languages, scripts, currencies, units, time zones, cities, months, days, and dates written out. Each text
belongs to a *concept*, such as `territory/DE` or `unit/length-meter`: all languages and all forms of one thing. A split
by concept therefore never has two forms of a name on different sides.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from importlib.metadata import version
from typing import Literal

from babel import Locale, UnknownLocaleError, localedata
from babel.dates import format_date, format_timedelta
from babel.numbers import get_currency_name
from babel.units import format_unit

from polyhead.train.data import is_held_out

LATIN_LANGUAGES = (
    *("cs", "da", "de", "en", "es", "et", "eu", "fi", "fr", "hu", "id"),
    *("it", "lt", "nl", "pl", "pt", "ro", "sv", "sw", "tr", "vi"),
)
OTHER_LANGUAGES = ("ar", "bg", "el", "fa", "he", "hi", "ja", "ko", "ru", "th", "uk", "zh")
LANGUAGES = tuple(sorted(LATIN_LANGUAGES + OTHER_LANGUAGES))

SOURCE = f"Unicode CLDR (Babel {version('Babel')})"
NAME = "name"
"""The form of a concept's plain name; others are plurals, dates and the like."""
_YEAR = 2026  # of the dates; any will do
_SPANS: tuple[tuple[Literal["minute", "hour", "day", "week", "year"], int], ...] = (
    *(("minute", 60), ("hour", 3600), ("day", 86_400), ("week", 604_800), ("year", 31_536_000)),
)
"""Units and their seconds."""


@dataclass(frozen=True, order=True)
class Name:
    """What one language calls a concept. Names of one concept and form in two languages are translations of each other."""

    language: str
    concept: str
    form: str
    text: str


@cache
def names(language: str) -> tuple[Name, ...]:
    """Every name of at least two letters that Babel has in that language, in order. Raises ValueError if it has none."""
    # Babel stores the first language's answer to an alias, such as "stand-alone days are the others", where all that have
    # the alias find it (python-babel/babel issue 1234): Swedish months are Hebrew after Hebrew ones. Uncached, nothing is
    # shared.
    localedata._cache.clear()  # type: ignore[attr-defined, unused-ignore]  # there is no public way
    try:
        locale = Locale.parse(language)
    except (ValueError, UnknownLocaleError) as error:
        raise ValueError(f"no CLDR data for language {language!r}: {error}") from error
    found = {Name(language, concept, form, " ".join(text.split())) for concept, form, text in _texts(locale)}
    return tuple(sorted(name for name in found if sum(map(str.isalpha, name.text)) >= 2))


def own_names(languages: Sequence[str] = LANGUAGES) -> list[Name]:
    """The names that belong to one of the languages alone, whatever their case; each text once a language."""
    owners: defaultdict[str, set[str]] = defaultdict(set)
    first: dict[tuple[str, str], Name] = {}
    for language in languages:
        for name in names(language):
            owners[name.text.casefold()].add(language)
            first.setdefault((language, name.text), name)
    return [name for name in first.values() if len(owners[name.text.casefold()]) == 1]


def split_by_concept(all_names: Iterable[Name], share: float) -> tuple[list[Name], list[Name]]:
    """Names to learn from, and held-out ones of the concepts that a hash picks: about `share` of all.

    A held-out name whose text, whatever its case, is also among those to learn from (Singapore is a territory and a
    city) is in neither part.
    """
    learned: list[Name] = []
    held_out: list[Name] = []
    for name in all_names:
        (held_out if is_held_out(name.concept, share) else learned).append(name)
    seen = {name.text.casefold() for name in learned}
    return learned, [name for name in held_out if name.text.casefold() not in seen]


# -- where the names come from: (concept, form, text), with repetitions


def _texts(locale: Locale) -> Iterator[tuple[str, str, str]]:
    for kind, table in (
        ("territory", locale.territories),
        ("language", locale.languages),
        ("script", locale.scripts),
        ("variant", locale.variants),
        ("currency", locale.currencies),
    ):
        yield from ((f"{kind}/{key}", NAME, text) for key, text in table.items())
    for code in map(str, locale.currencies):
        yield from ((f"currency/{code}", str(count), get_currency_name(code, count, locale)) for count in (2, 5))
    yield from _units(locale)
    yield from _time_zones(locale)
    yield from _calendar(locale)


def _units(locale: Locale) -> Iterator[tuple[str, str, str]]:
    for unit, widths in locale.unit_display_names.items():
        if "long" in widths:
            yield f"unit/{unit}", NAME, widths["long"]
            for count in (2, 5):
                yield f"unit/{unit}", str(count), format_unit(count, unit, "long", locale=locale)


def _time_zones(locale: Locale) -> Iterator[tuple[str, str, str]]:
    for zone, info in locale.time_zones.items():
        if "city" in info:
            yield f"city/{zone}", NAME, info["city"]
    for zone, info in locale.meta_zones.items():
        for form, text in info.get("long", {}).items():
            yield f"zone/{zone}", NAME if form == "standard" else form, text


def _calendar(locale: Locale) -> Iterator[tuple[str, str, str]]:
    for kind, contexts in (("month", locale.months), ("day", locale.days), ("quarter", locale.quarters)):
        for context, widths in contexts.items():
            form = NAME if context == "stand-alone" else context
            yield from ((f"{kind}/{number}", form, text) for number, text in widths["wide"].items())
    for day in range(0, 365, 5):  # 5 is prime to 7: every month meets every day of the week
        when = date(_YEAR, 1, 1) + timedelta(day)
        length = "full" if day % 2 else "long"
        yield f"month/{when.month}", when.isoformat(), format_date(when, length, locale=locale)
    for unit, seconds in _SPANS:
        for count in (-5, -2, -1, 1, 2, 5):
            ago = timedelta(seconds=seconds * count)
            text = format_timedelta(ago, granularity=unit, threshold=1, add_direction=True, locale=locale)
            yield f"span/{unit}", str(count), text

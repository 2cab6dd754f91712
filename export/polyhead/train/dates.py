"""Dates written out in the conventions of many languages, and in ISO 8601: a translation that every machine has data for.

Patterns and names are those of the Unicode CLDR as Babel has them, in the four lengths of each language: `mardi 3 avril
2024`, `3 avril 2024`, `3 avr. 2024`, `03/04/2024`. A text has one answer: formats without the year in full are left out, and
so are those that write a date as another format writes another date.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from random import Random
from typing import Any
from unicodedata import normalize

from babel import Locale, UnknownLocaleError, localedata
from babel.dates import DateTimeFormat, get_date_format, tokenize_pattern

from polyhead.train import cldr
from polyhead.train.errors import UsageError

LENGTHS = ("full", "long", "medium", "short")
LOCALES = (*cldr.LANGUAGES, "en_GB")
FIRST_YEAR, LAST_YEAR = 1900, 2099
SPELLED = 3
"""From this many letters on, a month's field in a pattern means its name."""

Field = tuple[str, int]
"""A letter of a pattern, such as M, and how often it stands there."""
Span = tuple[int, int]
"""Where something begins in a text, and the place after its end, in characters."""


@dataclass(frozen=True)
class WrittenDate:
    """A date as a text, and where in it the day (`d`), month (`M`), year (`y`) and perhaps weekday (`E`) stand."""

    text: str
    when: date
    spans: dict[str, Span]


@dataclass(frozen=True)
class DateFormat:
    """A pattern of a locale, with the names that it needs."""

    locale: str
    length: str
    parts: tuple[str | Field, ...]
    """Texts as they are, and fields."""
    names: dict[Field, tuple[str, ...]]
    """Of months (from January) and weekdays (from Monday)."""

    @property
    def spells_month(self) -> bool:
        return any(field[0] == "M" for field in self.names)

    def write(self, when: date) -> WrittenDate:
        text, spans = "", {}
        for part in self.parts:
            start = len(text)
            text += part if isinstance(part, str) else self._value(part, when)
            if not isinstance(part, str):
                spans[part[0]] = (start, len(text))
        return WrittenDate(text, when, spans)

    def _value(self, field: Field, when: date) -> str:
        letter, count = field
        if letter == "y":
            return str(when.year)
        if letter == "d":
            return f"{when.day:0{count}}"
        if letter == "E":
            return self.names[field][when.weekday()]
        return self.names[field][when.month - 1] if field in self.names else f"{when.month:0{count}}"


@cache
def date_formats(locales: Sequence[str] = LOCALES) -> tuple[DateFormat, ...]:
    """Every format of the locales by which a text has one answer. Raises UsageError for a locale that Babel doesn't know."""
    found = [made for name in locales for made in _formats(name)]
    meanings: defaultdict[str, set[date]] = defaultdict(set)
    year = [date(2024, 1, 1) + timedelta(day) for day in range(366)]  # texts of different years differ in the year
    for made in found:
        for when in year:
            meanings[made.write(when).text].add(when)
    return tuple(made for made in found if all(len(meanings[made.write(when).text]) == 1 for when in year))


def random_dates(formats: Sequence[DateFormat], count: int, seed: int) -> list[WrittenDate]:
    """Any day of 1900 to 2099, in any of the formats; the same seed gives the same."""
    chance = Random(seed)
    first = date(FIRST_YEAR, 1, 1)
    days = (date(LAST_YEAR, 12, 31) - first).days + 1
    return [chance.choice(formats).write(first + timedelta(chance.randrange(days))) for _ in range(count)]


def _formats(name: str) -> Iterable[DateFormat]:
    # Babel stores what it first found for an alias where other languages find it; see cldr.names.
    localedata._cache.clear()  # type: ignore[attr-defined, unused-ignore]
    try:
        locale = Locale.parse(name)
    except (ValueError, UnknownLocaleError) as error:
        raise UsageError(f"no CLDR data for locale {name!r}: {error}") from error
    for length in LENGTHS:
        tokens: list[tuple[str, Any]] = tokenize_pattern(get_date_format(length, locale).pattern)  # type: ignore[arg-type]
        fields = [value for kind, value in tokens if kind == "field"]
        if {"d", "M", "y"} <= {_letter(field[0]) for field in fields} and ("y", 2) not in fields:
            yield _format(locale, length, tokens)


def _format(locale: Locale, length: str, tokens: Sequence[tuple[str, Any]]) -> DateFormat:
    parts: list[str | Field] = []
    names: dict[Field, tuple[str, ...]] = {}
    for kind, value in tokens:
        if kind == "chars":
            parts.append(normalize("NFC", value))
        elif value[0] == "G":  # the era, the same for all dates
            parts.append(_named(locale, value, date(2024, 1, 1)))
        else:
            field = (_letter(value[0]), int(value[1]))
            parts.append(field)
            if field[0] == "E":
                names[field] = tuple(_named(locale, value, date(2024, 1, day)) for day in range(1, 8))
            elif field[0] == "M" and field[1] >= SPELLED:
                names[field] = tuple(_named(locale, value, date(2024, month, 1)) for month in range(1, 13))
    return DateFormat(str(locale), length, tuple(parts), names)


def _letter(letter: str) -> str:
    """Stand-alone forms of months and weekdays have letters of their own."""
    return {"L": "M", "c": "E", "e": "E"}.get(letter, letter)


def _named(locale: Locale, field: Field, when: date) -> str:
    return normalize("NFC", str(DateTimeFormat(when, locale)[field[0] * field[1]]))

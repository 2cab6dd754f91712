from collections import defaultdict
from datetime import date, timedelta

import pytest

from polyhead.train.dates import LOCALES, DateFormat, date_formats, random_dates
from polyhead.train.errors import UsageError

APRIL = date(2024, 4, 3)


def texts(locale: str) -> dict[str, str]:
    return {made.length: made.write(APRIL).text for made in date_formats() if made.locale == locale}


@pytest.mark.parametrize(
    ("locale", "length", "text"),
    [
        ("fr", "full", "mercredi 3 avril 2024"),
        ("de", "medium", "03.04.2024"),
        ("en", "long", "April 3, 2024"),
        ("en_GB", "short", "03/04/2024"),
        ("ja", "full", "2024年4月3日水曜日"),
        ("ru", "long", "3 апреля 2024 г."),
        ("eu", "long", "2024(e)ko apirilaren 3(a)"),
    ],
)
def test_dates_are_written_as_the_language_does(locale: str, length: str, text: str) -> None:
    assert " ".join(texts(locale)[length].split()) == text


def test_every_language_has_at_least_two_formats() -> None:
    counts: defaultdict[str, int] = defaultdict(int)
    for made in date_formats():
        counts[made.locale] += 1
    assert set(counts) == set(LOCALES)
    assert min(counts.values()) >= 2


def test_years_of_two_digits_are_left_out() -> None:
    assert "short" not in texts("de")
    assert "short" not in texts("en")


def test_a_text_has_one_answer() -> None:
    answers: defaultdict[str, set[date]] = defaultdict(set)
    for made in date_formats():
        for day in range(366):
            when = date(2000, 1, 1) + timedelta(day)
            answers[made.write(when).text].add(when)
    assert max(map(len, answers.values())) == 1


def test_spans_say_where_the_fields_stand() -> None:
    for made in date_formats():
        written = made.write(APRIL)
        fields = {name: written.text[start:end] for name, (start, end) in written.spans.items()}
        assert fields["y"] == "2024"
        assert int(fields["d"]) == 3
        assert fields["M"].isdecimal() is not made.spells_month


def test_the_same_seed_gives_the_same_dates_of_two_centuries() -> None:
    formats: tuple[DateFormat, ...] = date_formats(("fr", "en"))
    dates = random_dates(formats, 2000, seed=1)
    assert dates == random_dates(formats, 2000, seed=1)
    assert dates != random_dates(formats, 2000, seed=2)
    assert {d.when.year for d in dates} == set(range(1900, 2100))


def test_a_locale_without_data_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="no CLDR data for locale 'xx'"):
        date_formats(("xx",))

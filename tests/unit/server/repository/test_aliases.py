"""What `aliases.json` may say, and where requests go by it."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.server.repository.aliases import AliasError, Aliases, choose, parse

KEYS = [str(number).encode() for number in range(4000)]

weights = st.dictionaries(st.integers(1, 10**18 - 1), st.integers(1, 1_000_000), min_size=2, max_size=5)


def test_an_alias_is_a_version_or_versions_with_weights() -> None:
    routes = parse(b'{"stable": 3, "canary": {"3": 90, "4": 10, "5": 0}, "default": 3}')
    assert routes == {"stable": {3: 1}, "canary": {3: 90, 4: 10}, "default": {3: 1}}


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (b"{", "aliases.json: is not JSON: "),
        (b"\xff", "aliases.json: is not JSON: "),
        (b"[" * 60_000, "aliases.json: is not JSON: "),
        (b" " * 65_537, "aliases.json: must have at most 65536 bytes"),
        (b"[]", "aliases.json: must be an object of aliases, got []"),
        (b'{"a": 1, "a": 2}', "aliases.json: is not JSON: a name stands twice in one object"),
        (b'{"3": 1}', "aliases.json: '3' must begin with a letter and have up to 64 of A-Z a-z 0-9 . _ -"),
        (b'{"a": "3"}', "aliases.json: a must be a version or an object of versions and weights, got '3'"),
        (b'{"a": true}', "aliases.json: a must be a version or an object of versions and weights, got True"),
        (b'{"a": 0}', "aliases.json: a must be a version or an object of versions and weights, got 0"),
        (b'{"a": {}}', "aliases.json: a must be a version or an object of versions and weights, got {}"),
        (b'{"a": {"x": 1}}', "aliases.json: a: 'x' must be a version, a positive integer"),
        (b'{"a": {"1": -1}}', "aliases.json: a: weight of 1 must be 0 to 1000000, got -1"),
        (b'{"a": {"1": 0.5}}', "aliases.json: a: weight of 1 must be 0 to 1000000, got 0.5"),
        (b'{"a": {"1": 0}}', "aliases.json: a must have a weight above 0"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_in_one_line(source: bytes, complaint: str) -> None:
    with pytest.raises(AliasError) as refusal:
        parse(source)
    assert str(refusal.value).startswith(complaint)
    assert "\n" not in str(refusal.value)


@given(st.binary(max_size=200))
def test_whatever_the_file_holds_it_is_taken_or_refused(source: bytes) -> None:
    aliases = Aliases().reread(source)
    assert not aliases.routes or not aliases.reason


def test_a_bad_file_leaves_the_last_good_aliases_and_says_why() -> None:
    good = Aliases().reread(b'{"stable": 3}')
    bad = good.reread(b"{")
    assert bad.routes == {"stable": {3: 1}}
    assert bad.reason.startswith("aliases.json: is not JSON")
    assert bad.reread(b'{"stable": 4}').versions() == {4}
    assert bad.reread(None) == Aliases()


@given(weights, st.binary())
def test_the_same_key_goes_to_the_same_version(chosen: dict[int, int], key: bytes) -> None:
    assert choose(chosen, key) == choose(dict(reversed(chosen.items())), key)


def test_each_version_gets_its_share() -> None:
    counts = Counter(choose({3: 90, 4: 10}, key) for key in KEYS)
    assert 0.08 < counts[4] / len(KEYS) < 0.12


@given(weights, st.binary())
def test_when_a_version_goes_only_its_own_requests_move(chosen: dict[int, int], key: bytes) -> None:
    before = choose(chosen, key)
    gone = next(version for version in chosen if version != before)
    assert choose({version: weight for version, weight in chosen.items() if version != gone}, key) == before


def test_a_greater_weight_takes_requests_over_and_gives_none_back() -> None:
    moved = {(choose({3: 90, 4: 10}, key), choose({3: 80, 4: 20}, key)) for key in KEYS}
    assert moved == {(3, 3), (3, 4), (4, 4)}

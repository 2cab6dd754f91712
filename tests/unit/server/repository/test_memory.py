"""Who has to go so that another fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.server.repository.memory import Holder, Room, Stay, readable, room

FOREVER, UNTIL_ASKED, FOR_NOW = Stay.FOREVER, Stay.UNTIL_ASKED, Stay.FOR_NOW

holders = st.lists(
    st.builds(Holder, st.integers(), st.integers(1, 50), st.sampled_from(Stay), st.booleans(), st.integers(0, 9))
)


def test_without_a_limit_there_is_always_room() -> None:
    assert room(10**12, None, [Holder("a", 10**12, FOREVER)]) == Room(now=True)


def test_what_is_used_least_recently_goes_first_and_only_as_much_as_it_takes() -> None:
    there = [Holder("new", 4, UNTIL_ASKED, last_used=9), Holder("old", 3, UNTIL_ASKED, last_used=1)]
    assert room(3, 10, there) == Room(now=True)
    assert room(5, 10, there) == Room(("old",))
    assert room(10, 10, there) == Room(("old", "new"))


def test_what_is_in_use_goes_last() -> None:
    there = [Holder("busy", 4, UNTIL_ASKED, busy=True, last_used=1), Holder("idle", 4, UNTIL_ASKED, last_used=9)]
    assert room(5, 10, there) == Room(("idle",))


def test_what_goes_already_is_waited_for() -> None:
    there = [Holder("going", 4, FOR_NOW), Holder("idle", 4, UNTIL_ASKED)]
    assert room(5, 10, there) == Room()


def test_what_can_never_fit_is_refused() -> None:
    assert room(11, 10, []) is None
    assert room(5, 10, [Holder("a", 6, FOREVER), Holder("b", 2, UNTIL_ASKED)]) is None


@given(st.integers(1, 60), st.integers(1, 100), holders)
def test_when_victims_and_those_that_go_have_gone_it_fits(need: int, limit: int, there: list[Holder[int]]) -> None:
    found = room(need, limit, there)
    staying = sum(h.memory for h in there if h.stay is FOREVER)
    if found is None:
        assert need + staying > limit
    elif not found.now:
        going = sum(h.memory for h in there if h.stay is FOR_NOW)
        evictable = sorted((h for h in there if h.stay is UNTIL_ASKED), key=lambda h: (h.busy, h.last_used))
        freed = sum(h.memory for h in evictable[: len(found.unload)])
        assert need + sum(h.memory for h in there) - going - freed <= limit


@pytest.mark.parametrize(
    ("size", "text"), [(1023, "1023 bytes"), (1536, "1.5 KiB"), (2**20, "1 MiB"), (5 * 2**40, "5120 GiB")]
)
def test_sizes_are_for_people(size: int, text: str) -> None:
    assert readable(size) == text

"""Which versions shall be in memory."""

from hypothesis import given
from hypothesis import strategies as st

from polyhead.server.repository.policy import Orders, Policy, to_keep, to_load

versions = st.sets(st.integers(1, 9))
counts = st.none() | st.integers(1, 3)


def test_the_newest_that_has_not_failed_is_wanted_and_what_is_named() -> None:
    assert to_load({1, 2, 3, 4}, {4}, set(), 1) == {3}
    assert to_load({1, 2, 3, 4}, {4}, {1, 4, 9}, 1) == {1, 3}
    assert to_load({1, 2, 3, 4}, set(), set(), 2) == {3, 4}
    assert to_load({1, 2, 3, 4}, {2}, set(), None) == {1, 3, 4}


def test_the_old_version_stays_until_the_new_one_is_ready() -> None:
    assert to_keep({3}, {3, 4}, set(), 1, coming=True) == {3}
    assert to_keep({3, 4}, {3, 4}, set(), 1, coming=False) == {4}


def test_what_has_lost_its_folder_stays_until_something_else_serves() -> None:
    assert to_keep({4}, {3}, set(), 1, coming=True) == {4}
    assert to_keep({3, 4}, {3}, set(), 1, coming=True) == {3}
    assert to_keep({4}, set(), set(), 1, coming=False) == set()


@given(versions, versions, versions, counts)
def test_what_is_ready_and_wanted_is_kept(found: set[int], ready: set[int], named: set[int], count: int | None) -> None:
    wanted = to_load(found, set(), named, count)
    assert wanted & ready <= to_keep(ready, found, named, count, coming=False)


@given(versions, versions, versions, counts)
def test_while_something_comes_a_model_that_serves_goes_on_serving(
    found: set[int], ready: set[int], named: set[int], count: int | None
) -> None:
    assert bool(to_keep(ready, found, named, count, coming=True)) == bool(ready)


def test_orders_stand_above_the_folder_until_the_opposite_is_ordered() -> None:
    orders = Orders()
    orders.to_unload({3}, everything=False)
    assert orders.allowed({3, 4}) == {4}
    orders.to_unload(set(), everything=True)
    assert orders.allowed({3, 4, 5}) == set()
    orders.to_load(3, keep=True)
    assert (orders.allowed({3, 4}), orders.load) == ({3, 4}, {3})


def test_a_star_puts_all_models_on_demand() -> None:
    assert Policy(on_demand=("a",)).is_on_demand("a")
    assert not Policy(on_demand=("a",)).is_on_demand("b")
    assert Policy(on_demand=("*",)).is_on_demand("b")

"""The prefix cache over a memory that remembers which tokens were written where."""

from hypothesis import given
from hypothesis import strategies as st

from polyhead.server.engine.prefixes import PrefixCache

CHUNK = 4


class Memory:
    """Lanes of tokens."""

    def __init__(self, lanes: int) -> None:
        self.lanes: list[list[int]] = [[] for _ in range(lanes)]

    def copy_lane(self, source: int, target: int, length: int) -> None:
        self.lanes[target] = self.lanes[source][:length]


PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=14), max_size=20)


@given(PROMPTS, st.integers(0, 3))
def test_what_is_restored_is_a_beginning_of_the_prompt_in_whole_chunks(prompts: list[list[int]], count: int) -> None:
    memory = Memory(1 + count)
    prefixes = PrefixCache(1, count, memory, CHUNK)
    for prompt in prompts:
        memory.lanes[0] = [-1] * 20
        length = prefixes.restore(prompt, 0)
        assert length % CHUNK == 0
        assert length < len(prompt)
        assert memory.lanes[0][:length] == prompt[:length]
        memory.lanes[0] = list(prompt)
        prefixes.keep(prompt, 0)


def test_what_one_adapter_computed_is_nothing_to_another() -> None:
    memory = Memory(3)
    prefixes = PrefixCache(1, 2, memory, CHUNK)
    prompt = list(range(9))
    prefixes.keep(prompt, 0, "a")
    assert [prefixes.restore(prompt, 0, adapter) for adapter in ("a", "b", "")] == [8, 0, 0]


def test_the_longest_known_beginning_is_found_and_the_last_token_is_left_to_compute() -> None:
    memory = Memory(3)
    prefixes = PrefixCache(1, 2, memory, CHUNK)
    memory.lanes[0] = list(range(8))
    prefixes.keep(range(8), 0)
    assert prefixes.restore([*range(8), 99], 0) == 8
    assert prefixes.restore(range(8), 0) == 4
    assert prefixes.restore([*range(4), 9, 9, 9, 9, 9], 0) == 4
    assert prefixes.restore([7] * 9, 0) == 0


def test_a_longer_prompt_takes_the_place_of_its_own_beginning_and_the_least_recently_used_goes_first() -> None:
    memory = Memory(3)
    prefixes = PrefixCache(1, 2, memory, CHUNK)
    for prompt in ([1] * 4, [1] * 8, [2] * 4):
        memory.lanes[0] = list(prompt)
        prefixes.keep(prompt, 0)
    assert prefixes.restore([1] * 9, 0) == 8
    memory.lanes[0] = [3] * 4
    prefixes.keep([3] * 4, 0)
    assert (prefixes.restore([1] * 9, 0), prefixes.restore([2] * 5, 0), prefixes.restore([3] * 5, 0)) == (8, 0, 4)

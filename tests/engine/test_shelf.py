"""Sequences put away: found by their longest prefix, dropped in the order of their use, never too many."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ponder.engine.shelf import Shelf, cells, common, longer

TOKENS = st.lists(st.integers(0, 2), max_size=8)
ADAPTERS = st.sampled_from([(0.0,), (1.0,)])


def slow_common(a: list[int], b: list[int]) -> int:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length


@given(TOKENS, TOKENS)
def test_common_is_the_length_of_the_longest_common_prefix(a: list[int], b: list[int]) -> None:
    assert common(a, b) == slow_common(a, b)


@given(TOKENS, TOKENS, st.integers(0, 9))
def test_longer_tells_whether_more_is_common(a: list[int], b: list[int], length: int) -> None:
    assert longer(a, b, length) == (slow_common(a, b) > length)


@given(st.lists(st.tuples(ADAPTERS, TOKENS)))
def test_cells_counts_each_shared_prefix_once(sequences: list[tuple[tuple[float, ...], list[int]]]) -> None:
    nodes = {(adapters, tuple(ids[: at + 1])) for adapters, ids in sequences for at in range(len(ids))}
    assert cells(sequences) == len(nodes)


@given(st.lists(st.tuples(ADAPTERS, TOKENS.filter(len))), TOKENS, ADAPTERS)
def test_the_longest_prefix_is_found(
    put: list[tuple[tuple[float, ...], list[int]]], ids: list[int], adapters: tuple[float, ...]
) -> None:
    shelf = Shelf(10_000)
    for number, (its_adapters, its_ids) in enumerate(put):
        shelf.put(its_ids, its_adapters, bytes([number]))
    kept, length = shelf.find(ids, adapters)
    best = max((slow_common(i, ids) for a, i in put if a == adapters), default=0)
    assert length == best
    if best:
        assert kept is not None
        its_adapters, its_ids = put[shelf.use(kept)[0]]
        assert (its_adapters, slow_common(its_ids, ids)) == (adapters, best)
    else:
        assert kept is None


def test_the_longest_unused_gives_way() -> None:
    shelf = Shelf(10)
    for first in (1, 2, 3):
        shelf.put([first], (), bytes(3))
    one, _ = shelf.find([1], ())
    assert one is not None
    shelf.use(one)
    shelf.put([4], (), bytes(3))
    assert [shelf.find([first], ())[1] for first in (1, 2, 3, 4)] == [1, 0, 1, 1]


@given(st.lists(st.tuples(TOKENS.filter(len), st.integers(1, 30))), st.integers(0, 40))
def test_it_never_holds_more_than_its_capacity(put: list[tuple[list[int], int]], capacity: int) -> None:
    shelf = Shelf(capacity)
    for ids, size in put:
        shelf.put(ids, (), bytes(size))
        assert shelf.size <= capacity
        assert shelf.find(ids, ())[1] == len(ids) or size > capacity


def test_a_longer_sequence_replaces_what_it_begins_with() -> None:
    shelf = Shelf(100)
    shelf.put([1, 2], (), bytes(10))
    shelf.put([1, 2], (1.0,), bytes(20))
    shelf.put([1, 2, 3], (), bytes(30))
    assert shelf.size == 50
    shelf.clear()
    assert shelf.size == 0

"""Computed sequences put away in main memory, so that the cache which attention runs over stays small.

Every step attends over all cells up to the last one in use, also over those of sequences that nobody
continues: of 16,384 cells full of idle sequences, a new prompt took nearly twice as long. Putting one
away or taking it back copies its keys and values, milliseconds where computing again takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

State = bytes | memoryview
"""Keys and values of one sequence, as the backend wrote them."""


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    size = min(len(a), len(b))
    if list(a[:size]) == list(b[:size]):
        return size
    low, high = 0, size  # a[:low] == b[:low], a[:high] != b[:high]
    while high - low > 1:
        middle = (low + high) // 2
        if list(a[low:middle]) == list(b[low:middle]):
            low = middle
        else:
            high = middle
    return low


def longer(a: Sequence[int], b: Sequence[int], length: int) -> bool:
    """Whether more than `length` tokens are common. Where it is not so, one look mostly tells."""
    return min(len(a), len(b)) > length and a[length] == b[length] and list(a[:length]) == list(b[:length])


def cells(sequences: Iterable[tuple[Sequence[float], list[int]]]) -> int:
    """Cells that (adapters, tokens) sequences take, each shared prefix counted once: the size of their trie."""
    total, before = 0, None
    for adapters, tokens in sorted(sequences):  # neighbours in this order have the longest prefix in common
        total += len(tokens) - (common(before[1], tokens) if before and before[0] == adapters else 0)
        before = adapters, tokens
    return total


@dataclass(frozen=True, eq=False)
class Kept:
    """A sequence that was put away."""

    tokens: list[int]
    adapters: tuple[float, ...]
    state: State


class Shelf:
    """At most `capacity` bytes of states; those unused for longest give way."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: list[Kept] = []  # the longest unused first

    @property
    def size(self) -> int:
        """Bytes in use."""
        return sum(len(kept.state) for kept in self._kept)

    def find(self, ids: Sequence[int], adapters: tuple[float, ...]) -> tuple[Kept | None, int]:
        """What shares the longest prefix with `ids`, and the length of that prefix."""
        found, longest = None, 0
        for kept in self._kept:
            if kept.adapters == adapters and longer(kept.tokens, ids, longest):
                found, longest = kept, common(kept.tokens, ids)
        return found, longest

    def use(self, kept: Kept) -> State:
        """Its state. It stays, because a fork may start from it again."""
        self._kept.remove(kept)
        self._kept.append(kept)
        return kept.state

    def put(self, tokens: list[int], adapters: tuple[float, ...], state: State) -> None:
        """Keeps a state; drops those that it covers, and the longest unused where room is short."""
        self._kept = [k for k in self._kept if k.adapters != adapters or k.tokens != tokens[: len(k.tokens)]]
        if len(state) <= self._capacity:
            self._kept.append(Kept(tokens, adapters, state))
        while self.size > self._capacity:
            del self._kept[0]

    def clear(self) -> None:
        """Forgets everything."""
        self._kept.clear()

"""A backend of the scheduler in plain Python: the key-value cache of llama.cpp, strict about its use.

Every computed token takes a cell of its own; sequences that were copied share cells. The logits of a
row depend on all tokens before it and on the adapters that computed each of them, so that a single
wrong cell changes what is sampled. Logits are views that go stale with the next decode, as llama.cpp's do.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ponder.engine.libllama import ABORTED
from ponder.engine.sampling import Logits, Sampling, log_softmax_at, pick

END_IDS = (0, 1)
VOCABULARY = 16

Scales = tuple[float, ...]


@dataclass(frozen=True)
class Cell:
    """A computed token; `state` stands for its keys and values, which hold all that came before."""

    number: int
    token: int
    state: int


def advance(state: int, token: int, adapters: Scales) -> int:
    return hash((state, token, adapters))


def logits_of(state: int) -> Logits:
    return np.random.default_rng(state % 2**63).normal(0, 2, VOCABULARY).astype(np.float32)


class CacheBackend:
    """Implements `scheduler.Backend`. `aborts` is asked once a decode whether it stops half-way."""

    def __init__(
        self,
        *,
        cells: int,
        sequences: int,
        batch: int = 8,
        context: int = 1_000_000,
        aborts: Callable[[], bool] = lambda: False,
    ) -> None:
        self.batch = batch
        self.context = context
        self.computed = 0
        self.fail_with: int | None = None
        self.sequences: list[list[Cell]] = [[] for _ in range(sequences)]
        self.adapters_of_batches: list[Scales] = []
        self._cells = cells
        self._aborts = aborts
        self._numbers = itertools.count()
        self._adapters: Scales | None = None
        self._rows: dict[int, Logits] = {}

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> int:
        assert 0 < len(tokens) <= self.batch, "llama.cpp's batch holds no more"
        assert self._adapters is not None
        for row in self._rows.values():
            row.fill(np.nan)
        self._rows = {}
        if self.fail_with is not None:
            return self.fail_with
        if len({cell.number for cells in self.sequences for cell in cells}) + len(tokens) > self._cells:
            return 1
        aborted = self._aborts()
        for row, (token, position, sequence, wanted) in enumerate(tokens[: len(tokens) // 2 if aborted else None]):
            cells = self.sequences[sequence]
            assert position == len(cells), f"sequence {sequence} holds {len(cells)} tokens, and {position} comes next"
            assert 0 <= token < VOCABULARY
            state = advance(cells[-1].state if cells else 0, token, self._adapters)
            cells.append(Cell(next(self._numbers), token, state))
            if wanted:
                self._rows[row] = logits_of(state)
        if aborted:
            return ABORTED
        self.computed += len(tokens)
        self.adapters_of_batches.append(self._adapters)
        return 0

    def logits(self, row: int) -> Logits:
        return self._rows[row]

    def copy(self, source: int, target: int, length: int) -> None:
        assert not self.sequences[target], "a copy onto cells would leave two at one position"
        assert length <= len(self.sequences[source])
        self.sequences[target] = self.sequences[source][:length]

    def truncate(self, sequence: int, length: int) -> None:
        del self.sequences[sequence][length:]

    def save(self, sequence: int) -> bytes:
        return pickle.dumps(self.sequences[sequence])

    def restore(self, sequence: int, state: bytes) -> bool:
        assert not self.sequences[sequence]
        cells = [Cell(next(self._numbers), cell.token, cell.state) for cell in pickle.loads(state)]
        fits = len({cell.number for cells in self.sequences for cell in cells}) + len(cells) <= self._cells
        self.sequences[sequence] = cells if fits else []
        return fits

    def use_adapters(self, scales: Sequence[float]) -> None:
        self._adapters = tuple(scales)

    def tokens(self, sequence: int) -> list[int]:
        return [cell.token for cell in self.sequences[sequence]]


def state_of(ids: Sequence[int], adapters: Scales) -> int:
    state = 0
    for token in ids:
        state = advance(state, token, adapters)
    return state


def alone(
    prefix: Sequence[int], index: int, max_tokens: int, sampling: Sampling, adapters: Scales
) -> tuple[list[tuple[int, float]], str]:
    """What sample `index` has to be: (token, log-probability) rows and its finish, from a plain loop."""
    state, random = state_of(prefix, adapters), sampling.random(index)
    banned = np.array(END_IDS, dtype=np.int64) if sampling.ignore_eos else None
    rows: list[tuple[int, float]] = []
    while len(rows) < max_tokens:
        rows.append(pick(logits_of(state), sampling, random, banned))
        if rows[-1][0] in END_IDS:
            return rows, "stop"
        state = advance(state, rows[-1][0], adapters)
    return rows, "length"


def scores_alone(ids: Sequence[int], start: int, adapters: Scales) -> list[float]:
    """What `Scheduler.score` has to give."""
    return [log_softmax_at(logits_of(state_of(ids[:at], adapters)), ids[at]) for at in range(start, len(ids))]

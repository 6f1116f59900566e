"""Where the prompts of running samples lie: each is computed once, into one of the places that need it, and copied.

    Copied   every row holds its prompt before its own tokens: what captured graphs and the kernels take
    Shared   up to `SHARE` rows go on from a trunk that holds it: less memory, and less to read at each step

Jobs are counted as in the list of prompts; a prompt is all of its tokens but the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from ponder.engine.torch_cache import Cache, copy
from ponder.engine.torch_decoder import Decoder
from ponder.engine.torch_trunks import SHARE


class Prompts(Protocol):
    """What keeps the prompts of a run."""

    def before(self, job: int) -> int:
        """Tokens that a row holds when a sample of this job starts in it."""

    def enter(self, rows: Sequence[int], jobs: Sequence[int]) -> Sequence[int]:
        """Sees to it that a sample of each of the jobs can start in one of the free `rows`, and says in which."""

    def move(self, source: int, target: int) -> None:
        """The sample of row `source` is in row `target` now, which was free."""

    def leave(self, rows: Sequence[int]) -> None:
        """The samples in these rows ended."""

    def settle(self, rows: int) -> None:
        """The next steps compute the first `rows` rows, as they are now."""


class _Places:
    """Places of a cache, and the job whose prompt each holds."""

    def __init__(self, decoder: Decoder, cache: Cache, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        self._decoder, self.cache, self.prompts, self._tokens = decoder, cache, prompts, tokens
        self.held: list[int | None] = [None] * decoder.slots

    def fill(self, places: Sequence[int], jobs: Sequence[int]) -> None:
        """Sees to it that each of the places holds its job's prompt, computed or copied."""
        lacking: dict[int, list[int]] = {}
        for place, job in zip(places, jobs, strict=True):
            if self.held[place] != job:
                lacking.setdefault(job, []).append(place)
                self.held[place] = None
        missing = [job for job in lacking if job not in self.held]
        for batch in self._batches(missing):
            self._compute(batch, [lacking[job].pop(0) for job in batch])
        for job, targets in lacking.items():
            if targets:
                self.copy(self.held.index(job), targets)

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """Gives places `targets` the prompt of place `source`."""
        job = self.held[source]
        copy(self.cache, source, targets, 0 if job is None else len(self.prompts[job]))
        for place in targets:
            self.held[place] = job

    def _batches(self, jobs: Sequence[int]) -> Iterator[list[int]]:
        """Jobs whose prompts are computed together: of similar lengths, and not too many."""
        batch: list[int] = []
        for job in sorted(jobs, key=lambda number: len(self.prompts[number])):
            length = len(self.prompts[job])
            crowded = (len(batch) + 1) * length > self._tokens
            if batch and (crowded or length > 1.25 * len(self.prompts[batch[0]]) + 8):
                yield batch
                batch = []
            batch.append(job)
        if batch:
            yield batch

    def _compute(self, jobs: Sequence[int], places: Sequence[int]) -> None:
        longest = max(len(self.prompts[job]) for job in jobs)
        if longest:
            padded = [[*self.prompts[job], *[0] * (longest - len(self.prompts[job]))] for job in jobs]
            self._decoder.prefill(torch.tensor(padded, device=self._decoder.device), places, into=self.cache)
        for place, job in zip(places, jobs, strict=True):
            self.held[place] = job


class Copied:
    """The places are the rows. tokens: of prompts, padding included, that are computed in one batch."""

    def __init__(self, decoder: Decoder, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        self._places = _Places(decoder, decoder, prompts, tokens)

    def before(self, job: int) -> int:
        return len(self._places.prompts[job])

    def enter(self, rows: Sequence[int], jobs: Sequence[int]) -> Sequence[int]:
        """A row that holds its prompt already for each sample, where there is one."""
        holding: dict[int | None, list[int]] = {}
        for row in reversed(rows):
            holding.setdefault(self._places.held[row], []).append(row)
        seats = [holding[job].pop() if holding.get(job) else None for job in jobs]
        rest = iter(sorted(row for left in holding.values() for row in left))
        chosen = [next(rest) if seat is None else seat for seat in seats]
        self._places.fill(chosen, jobs)
        return chosen

    def move(self, source: int, target: int) -> None:
        self._places.held[target] = self._places.held[source]  # the prompt moved with what follows it

    def leave(self, rows: Sequence[int]) -> None:
        pass

    def settle(self, rows: int) -> None:
        pass


class Shared:
    """The places are the decoder's trunks. tokens: of prompts, padding included, that are computed in one batch."""

    def __init__(self, decoder: Decoder, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        assert decoder.trunks is not None
        self._trunks = decoder.trunks
        self._places = _Places(decoder, self._trunks, prompts, tokens)
        self._users: list[set[int]] = [set() for _ in range(decoder.slots)]  # rows of each trunk

    def before(self, job: int) -> int:
        return 0

    def enter(self, rows: Sequence[int], jobs: Sequence[int]) -> Sequence[int]:
        holding: dict[int | None, list[int]] = {}
        for trunk, job in enumerate(self._places.held):
            holding.setdefault(job, []).append(trunk)
        unused = (trunk for trunk, users in enumerate(self._users) if not users)
        chosen: dict[int, int] = {}
        for row, job in zip(rows, jobs, strict=True):
            fitting = holding.setdefault(job, [])
            while fitting and (len(self._users[fitting[-1]]) >= SHARE or chosen.get(fitting[-1], job) != job):
                fitting.pop()  # full, or another job's by now
            if not fitting:
                fitting.append(next(unused))
            chosen[fitting[-1]] = job
            self._users[fitting[-1]].add(row)
        self._trunks.widen(max(chosen) + 1)
        self._places.fill(list(chosen), list(chosen.values()))
        return rows

    def move(self, source: int, target: int) -> None:
        users = next(users for users in self._users if source in users)
        users.remove(source)
        users.add(target)

    def leave(self, rows: Sequence[int]) -> None:
        for users in self._users:
            users.difference_update(rows)

    def settle(self, rows: int) -> None:
        """Trunks in use move together, so that a step reads no others."""
        used = [trunk for trunk, users in enumerate(self._users) if users]
        holes = [trunk for trunk in range(len(used)) if not self._users[trunk]]
        for hole, trunk in zip(holes, reversed(used), strict=False):
            self._places.copy(trunk, [hole])
            self._users[hole], self._users[trunk] = self._users[trunk], set()
        trunks = {row: trunk for trunk, users in enumerate(self._users) for row in users}
        if trunks:
            of = [trunks[row] for row in range(rows)]
            self._trunks.arrange(of, [len(self._places.prompts[self._held(trunk)]) for trunk in of])

    def _held(self, trunk: int) -> int:
        job = self._places.held[trunk]
        assert job is not None
        return job

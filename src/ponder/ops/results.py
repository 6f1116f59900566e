"""Runs of evaluations, their results, and the samples that were paid for, in the database of traces.

    with Store.open() as store:
        results = Results(store)
        results.begin_run(run_id, "gsm8k/test", "ponder-135m", "vote(8)", document)
        results.add_result(run_id, "q1", 0, document)      # on disk when this returns
        results.keep({key: (True, blob)})                  # samples, by the hash of all that decides them

`Results` belongs to the thread of its store; `Background` serves an event loop, which it never blocks.
Documents are texts of the caller's own form (JSON), stored compressed.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from ponder.errors import InputError, StoreError
from ponder.ops.store import Store, _sqlite_errors
from ponder.types import Trace

T = TypeVar("T")

DAY = 86_400
_AT_ONCE = 500
"""Keys in one query: SQLite takes no more than 999 values in its older versions."""


@dataclass(frozen=True)
class RunSummary:
    """A run in one line; `results` counts those that are done."""

    id: str
    created: str
    task: str
    model: str
    strategy: str
    results: int


@dataclass(frozen=True)
class Pruned:
    """What was removed."""

    samples: int
    runs: int


class Results:
    """Runs, results and cached samples. All methods raise StoreError where the database cannot be used."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # ------------------------------------------------------------ runs and results

    def begin_run(self, run: str, task: str, model: str, strategy: str, document: str) -> None:
        """Stores what a run is about. One that is there already is left as it is: it goes on."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._store._transaction():
            self._execute(
                "INSERT INTO runs (id, created, task, model, strategy, document) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO NOTHING",
                (run, now, task, model, strategy, _packed(document)),
            )

    def add_result(self, run: str, question: str, seed: int, document: str, trace: Trace | None = None) -> None:
        """Stores the result of one question, asked once, and its trace if there is one: both or neither.

        A result that is there already stays. Raises InputError where the run was removed meanwhile.
        """
        with self._store._transaction():
            if not self._rows("SELECT 1 FROM runs WHERE id = ?", (run,)):
                raise InputError(f"the run {run} was removed while it went on", "start it again")
            self._execute(
                "INSERT INTO results VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (run, question, seed, _packed(document)),
            )
            if trace is not None:
                self._execute("DELETE FROM traces WHERE id = ?", (trace.id,))
                self._store._insert(trace)

    def results_of(self, run: str) -> dict[tuple[str, int], str]:
        """The documents of the results of a run, by question and seed."""
        with self._errors():
            rows = self._rows("SELECT question, seed, document FROM results WHERE run = ?", (run,))
            return {(question, seed): _unpacked(document) for question, seed, document in rows}

    def run(self, prefix: str) -> tuple[str, str]:
        """Id and document of the run whose id is or begins with `prefix`.

        Raises InputError if there is none or more than one.
        """
        with self._errors():
            query = "SELECT id, document FROM runs WHERE substr(id, 1, length(?1)) = ?1 ORDER BY id != ?1, id LIMIT 4"
            rows = self._rows(query, (prefix,))
            if not rows or not prefix:
                known = ", ".join(f"{each.id[:10]} ({each.strategy} on {each.task})" for each in self.runs(3))
                raise InputError(
                    f"there is no run {prefix!r}", f"the newest are {known}" if known else "there are none"
                )
            if len(rows) > 1 and rows[0][0] != prefix:
                ids = ", ".join(row[0][: len(prefix) + 4] for row in rows[:3])
                raise InputError(f"{prefix!r} is the beginning of several runs: {ids}", "write more of it")
            return rows[0][0], _unpacked(rows[0][1])

    def runs(self, limit: int | None = None) -> list[RunSummary]:
        """The newest runs first."""
        with self._errors():
            rows = self._rows(
                "SELECT id, created, task, model, strategy, (SELECT count(*) FROM results WHERE run = runs.id)"
                " FROM runs ORDER BY created DESC, rowid DESC LIMIT ?",
                (-1 if limit is None else limit,),
            )
        return [RunSummary(*row) for row in rows]

    def remove_run(self, prefix: str) -> str:
        """Removes a run with its results, and gives its id; the samples stay until they are pruned."""
        found, _ = self.run(prefix)
        with self._store._transaction():
            self._execute("DELETE FROM runs WHERE id = ?", (found,))
        return found

    # ------------------------------------------------------------ samples

    def keep(self, rows: Mapping[bytes, tuple[bool, bytes]]) -> None:
        """Stores samples by their keys, each with whether it is complete: all of them or none.

        What is complete stays; what is not gives way to what came later.
        """
        now = int(time.time())
        with self._store._transaction():
            for key, (complete, blob) in rows.items():
                self._execute(
                    "INSERT INTO samples (key, complete, made, chunks) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO"
                    " UPDATE SET complete = excluded.complete, made = excluded.made, chunks = excluded.chunks"
                    " WHERE NOT samples.complete",
                    (key, complete, now, blob),
                )

    def kept(self, keys: Iterable[bytes]) -> dict[bytes, tuple[bool, bytes]]:
        """Those of `keys` that are stored, each with whether it is complete."""
        wanted, found = list(keys), dict[bytes, tuple[bool, bytes]]()
        with self._errors():
            for start in range(0, len(wanted), _AT_ONCE):
                some = wanted[start : start + _AT_ONCE]
                marks = ", ".join("?" * len(some))
                rows = self._rows(f"SELECT key, complete, chunks FROM samples WHERE key IN ({marks})", some)
                found |= {key: (bool(complete), blob) for key, complete, blob in rows}
        return found

    def prune(self, days: float, runs: bool = False) -> Pruned:
        """Removes samples, and with `runs` also runs with their results, that were stored more than `days` ago."""
        if not days >= 0:  # as NaN is not, either
            raise InputError(f"{days} days are no age", "give 0 for all, or more")
        edge = time.time() - days * DAY
        oldest = datetime.fromtimestamp(edge, UTC).isoformat(timespec="milliseconds")
        with self._store._transaction():
            samples = self._execute("DELETE FROM samples WHERE made <= ?", (edge,))
            gone = self._execute("DELETE FROM runs WHERE created <= ?", (oldest,)) if runs else 0
        return Pruned(samples, gone)

    # ------------------------------------------------------------ rows

    def _execute(self, statement: str, values: Any) -> int:
        """Carries out a statement and gives the number of rows that it changed."""
        return self._store._connection.execute(statement, values).rowcount

    def _rows(self, query: str, values: Any) -> list[Any]:
        return self._store._connection.execute(query, values).fetchall()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with _sqlite_errors(self._store.path):
                yield
        except zlib.error as error:
            raise StoreError(
                f"{self._store.path} is damaged ({error})",
                f"move it away (mv '{self._store.path}' '{self._store.path}.damaged'): a new one will be made",
            ) from error


class Background:
    """`Results` for an event loop: a thread with a connection of its own does what it is asked, in that order.

    async with Background(path) as database:
        await database.do(lambda results: results.keep(rows))
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ponder-results")
        self._store: Store | None = None

    async def __aenter__(self) -> Background:
        try:
            await self.do(lambda results: None)
        except BaseException:
            await asyncio.to_thread(self._close)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._close)

    async def do(self, work: Callable[[Results], T]) -> T:
        """What `work` gives. What was begun is done even where nobody waits for it any more."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._do, work)

    def _do(self, work: Callable[[Results], T]) -> T:
        if self._store is None:
            self._store = Store.open(self._path)
        return work(Results(self._store))

    def _close(self) -> None:
        def close() -> None:
            if self._store is not None:
                self._store.close()

        self._thread.submit(close).result()
        self._thread.shutdown()


def _packed(document: str) -> bytes:
    return zlib.compress(document.encode())


def _unpacked(blob: bytes) -> str:
    return zlib.decompress(blob).decode()

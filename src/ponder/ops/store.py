"""The database of traces: what was asked, thought and answered survives the end of the process, kill -9 included.

    with Store.open() as store:
        recorder = store.begin(trace)      # a row, in state "running"
        recorder.record(event)             # on disk when this returns
        recorder.finish(trace)             # the whole trace in the place of its events

One SQLite file in write-ahead mode; several processes may use it at once. A `Store` belongs to the
thread that opened it. What was written survives the death of the process at any moment; a loss of
power may take the last few writes, never the database.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from ponder import paths
from ponder.errors import InputError, StoreError
from ponder.ops.database import BUSY_SECONDS, Database, sqlite_errors
from ponder.ops.process import start_of
from ponder.ops.replay import coalesce, rebuild
from ponder.types import (
    Done,
    Event,
    Trace,
    TraceState,
    event_from_json,
    event_to_json,
    from_json,
    to_json,
)

__all__ = ["Recorder", "Store", "TraceSummary", "coalesce"]

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE traces (
            id TEXT PRIMARY KEY,
            created TEXT NOT NULL,
            state TEXT NOT NULL,
            host TEXT NOT NULL,
            pid INTEGER NOT NULL,
            started TEXT NOT NULL,
            model TEXT NOT NULL,
            strategy TEXT NOT NULL,
            question TEXT NOT NULL,
            answer TEXT NOT NULL,
            tokens INTEGER NOT NULL,
            seconds REAL NOT NULL,
            dollars REAL,
            document TEXT NOT NULL
        )""",
        "CREATE INDEX traces_by_created ON traces (created)",
        """CREATE TABLE events (
            trace TEXT NOT NULL REFERENCES traces (id) ON DELETE CASCADE,
            seq INTEGER NOT NULL,
            document TEXT NOT NULL,
            PRIMARY KEY (trace, seq)
        ) WITHOUT ROWID""",
    ),
    (
        """CREATE TABLE samples (
            key BLOB PRIMARY KEY,
            complete INTEGER NOT NULL,
            made INTEGER NOT NULL,
            chunks BLOB NOT NULL
        )""",
        "CREATE INDEX samples_by_age ON samples (made)",
        """CREATE TABLE runs (
            id TEXT PRIMARY KEY,
            created TEXT NOT NULL,
            task TEXT NOT NULL,
            model TEXT NOT NULL,
            strategy TEXT NOT NULL,
            document BLOB NOT NULL
        )""",
        """CREATE TABLE results (
            run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
            question TEXT NOT NULL,
            seed INTEGER NOT NULL,
            document BLOB NOT NULL,
            PRIMARY KEY (run, question, seed)
        )""",
    ),
)
"""Statements that lead from one version of the database (`PRAGMA user_version`) to the next. Only ever appended to."""

QUESTION_CHARACTERS = 200
NO_STORE = "or ask with --no-store"


@dataclass(frozen=True)
class TraceSummary:
    """A trace in one line; `question` holds its first 200 characters. `dollars` is None where no price is known."""

    id: str
    created: str
    state: TraceState
    model: str
    strategy: str
    question: str
    answer: str
    tokens: int
    seconds: float
    dollars: float | None


_SUMMARY = ", ".join(TraceSummary.__dataclass_fields__)


class Recorder:
    """Writes down one trace while it happens. Made by `Store.begin`."""

    def __init__(self, store: Store, trace: Trace) -> None:
        self.trace_id = trace.id
        self._store = store
        self._trace = trace
        self._events = 0
        self._finished = False

    def record(self, event: Event) -> None:
        """Stores one event; it is safe from a kill -9 when this returns. `Done` is left to `finish`.

        Raises StoreError if it cannot be written.
        """
        if self._finished:
            raise ValueError(f"trace {self.trace_id} is finished: nothing more can be recorded")
        if isinstance(event, Done):
            return
        self._store._insert_event(self.trace_id, self._events, event)
        self._events += 1

    def finish(self, trace: Trace) -> None:
        """Puts the whole trace, in its last state, in the place of its events. Raises StoreError if it cannot."""
        if trace.id != self.trace_id:
            raise ValueError(f"trace {self.trace_id} was begun, and {trace.id} is to be finished")
        if trace.state == "running":
            raise ValueError(f"trace {trace.id} is to be finished and says that it is running")
        self._store._replace(replace(trace, created=trace.created or self._trace.created))
        self._finished = True


class Store:
    """The traces of one user. Open it with `Store.open`, close it or use it with `with`."""

    def __init__(self, database: Database) -> None:
        self.path = database.path
        self._database = database
        self._connection = database.connection
        self._me: tuple[str, int, str] | None = None

    @classmethod
    def open(cls, path: str | Path | None = None, background: bool = False) -> Store:
        """The store at `path`, by default `ponder.db` in `ponder.paths.home()`; made if it is not there.

        Traces that a process on this machine was working on when it died become "interrupted". `background`: a thread
        does what would delay a write now and then. Raises StoreError with the mend if the file cannot be made, read,
        written or understood.
        """
        path = paths.home() / "ponder.db" if path is None else Path(path)
        store = cls(Database.open(path, MIGRATIONS, NO_STORE, BUSY_SECONDS))
        try:
            store._interrupt_orphans()
            if background:
                store._database.checkpoint_in_background()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Closes the file. Safe to call twice."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------ writing

    def begin(self, trace: Trace) -> Recorder:
        """Stores the beginning of a trace, in state "running" and created now unless it says when.

        Raises StoreError if there is a trace of this id or it cannot be written.
        """
        if not trace.id:
            raise ValueError("a trace needs an id to be stored")
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        trace = replace(trace, state="running", created=trace.created or now)
        try:
            with _sqlite_errors(self.path):
                self._insert(trace)
        except sqlite3.IntegrityError:
            raise StoreError(f"a trace {trace.id} is stored already", "give the new one another id") from None
        return Recorder(self, trace)

    def keep(self, traces: Sequence[Trace]) -> None:
        """Stores whole traces, all of them or none. Raises StoreError if there is one of such an id already, or they
        cannot be written."""
        try:
            with self._transaction():
                for trace in traces:
                    self._insert(trace)
        except sqlite3.IntegrityError:
            raise StoreError("one of these traces is stored already", "give new ones other ids") from None

    def remove(self, prefix: str) -> str:
        """Removes the trace whose id is or begins with `prefix`, and gives its id.

        Raises InputError if there is none or more than one, and while it is being worked on.
        """
        found = self.find(prefix)
        with _sqlite_errors(self.path):
            row = self._connection.execute("SELECT state, host, pid, started FROM traces WHERE id = ?", (found,))
            state, host, pid, started = row.fetchone()
            if state == "running" and host == socket.gethostname() and start_of(pid) == started:
                raise InputError(f"trace {found} is still being worked on by process {pid}", "stop that first")
            self._connection.execute("DELETE FROM traces WHERE id = ?", (found,))
        return found

    # ------------------------------------------------------------ reading

    def find(self, prefix: str) -> str:
        """The id that is or begins with `prefix`. Raises InputError if there is none or more than one."""
        with _sqlite_errors(self.path):
            rows = self._connection.execute(
                "SELECT id FROM traces WHERE substr(id, 1, length(?1)) = ?1 ORDER BY id != ?1, id LIMIT 4", (prefix,)
            ).fetchall()
        ids = [row[0] for row in rows]
        if not ids or not prefix:
            raise InputError(f"there is no trace {prefix!r}", "see the ids with: ponder traces list")
        if len(ids) > 1 and ids[0] != prefix:
            raise InputError(
                f"{prefix!r} is the beginning of several ids: {', '.join(ids[:3])}{', ...' if ids[3:] else ''}",
                "write more of it",
            )
        return str(ids[0])

    def get(self, prefix: str) -> Trace:
        """The trace whose id is or begins with `prefix`; an unfinished one as far as it got.

        Raises InputError if there is none or more than one, StoreError if it cannot be read.
        """
        found = self.find(prefix)
        with _sqlite_errors(self.path):
            row = self._connection.execute("SELECT state, document FROM traces WHERE id = ?", (found,)).fetchone()
        return self._trace(found, *row)

    def list(
        self, limit: int | None = 20, state: TraceState | None = None, search: str | None = None
    ) -> list[TraceSummary]:
        """The newest traces first, those in `state` and with `search` in question, answer or model if given.

        `search` ignores the case of ASCII letters. `limit` None means all of them.
        """
        where, values = _filter(state, search)
        with _sqlite_errors(self.path):
            rows = self._connection.execute(
                f"SELECT {_SUMMARY} FROM traces WHERE {where} ORDER BY created DESC, rowid DESC LIMIT ?",
                (*values, -1 if limit is None else limit),
            ).fetchall()
        return [TraceSummary(*row) for row in rows]

    def lines(
        self, ids: Sequence[str] = (), state: TraceState | None = None, search: str | None = None
    ) -> Iterator[str]:
        """Traces as lines of JSON, oldest first: those of `ids` (or their beginnings), else all that pass the filter.

        `ponder.types.from_json(Trace, line)` reads one back.
        """
        chosen = [self.find(prefix) for prefix in ids]
        if not ids:
            where, values = _filter(state, search)
            with _sqlite_errors(self.path):
                rows = self._connection.execute(
                    f"SELECT id FROM traces WHERE {where} ORDER BY created, rowid", values
                ).fetchall()
            chosen = [row[0] for row in rows]
        for found in chosen:
            with _sqlite_errors(self.path):
                row = self._connection.execute("SELECT state, document FROM traces WHERE id = ?", (found,)).fetchone()
            if row is None:  # removed by another process meanwhile
                continue
            final = row[0] != "running" and not self._has_events(found)
            yield row[1] if final else to_json(self._trace(found, *row))

    def export(
        self, path: str | Path, ids: Sequence[str] = (), state: TraceState | None = None, search: str | None = None
    ) -> int:
        """Writes `lines` to a file, whole or not at all, and gives their number. Raises InputError if it cannot."""
        path = Path(path).resolve()
        # Something that is no file, such as /dev/null, is written to and not replaced.
        part = path if path.exists() and not path.is_file() else path.with_name(f".{path.name}.{os.getpid()}.part")
        count = 0
        try:
            with part.open("w", encoding="utf-8") as file:
                for line in self.lines(ids, state, search):
                    file.write(line + "\n")
                    count += 1
            if part != path:
                part.replace(path)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}", "choose another file") from None
        finally:
            if part != path:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
        return count

    # ------------------------------------------------------------ rows

    def _insert(self, trace: Trace) -> None:
        self._connection.execute(
            "INSERT INTO traces (id, created, state, host, pid, started, model, strategy, question, answer, tokens,"
            " seconds, dollars, document) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                trace.id,
                trace.created,
                trace.state,
                *self._process(),
                trace.provenance.model,
                trace.provenance.strategy,
                trace.question.text[:QUESTION_CHARACTERS],
                trace.answer,
                trace.cost.tokens,
                trace.cost.seconds,
                trace.cost.dollars,
                to_json(trace),
            ),
        )

    def _process(self) -> tuple[str, int, str]:
        """This process: host, id and start. A fork is another one."""
        if self._me is None or self._me[1] != os.getpid():
            self._me = (socket.gethostname(), os.getpid(), start_of(os.getpid()))
        return self._me

    def _replace(self, trace: Trace) -> None:
        with self._transaction():
            self._connection.execute("DELETE FROM traces WHERE id = ?", (trace.id,))  # and its events with it
            self._insert(trace)

    def _insert_event(self, trace: str, seq: int, event: Event) -> None:
        document = event_to_json(event)
        try:
            with _sqlite_errors(self.path):
                self._connection.execute("INSERT INTO events VALUES (?, ?, ?)", (trace, seq, document))
        except sqlite3.IntegrityError:
            raise StoreError(f"trace {trace} was removed while it was recorded", "begin a new one") from None

    def _has_events(self, trace: str) -> bool:
        with _sqlite_errors(self.path):
            row = self._connection.execute("SELECT EXISTS (SELECT 1 FROM events WHERE trace = ?)", (trace,)).fetchone()
        return bool(row[0])

    def _trace(self, found: str, state: TraceState, document: str) -> Trace:
        with _sqlite_errors(self.path):
            rows = self._connection.execute("SELECT document FROM events WHERE trace = ? ORDER BY seq", (found,))
            documents = [row[0] for row in rows]
        try:
            trace = replace(from_json(Trace, document), state=state)
            return rebuild(trace, [event_from_json(each) for each in documents]) if documents else trace
        except ValueError as error:
            reason = str(error).partition("\n")[0]
            raise StoreError(
                f"trace {found} cannot be read: {reason}", "read it with the ponder that wrote it, or remove it"
            ) from error

    # ------------------------------------------------------------ opening

    def _transaction(self) -> AbstractContextManager[None]:
        return self._database.transaction()

    def _interrupt_orphans(self) -> None:
        """Ends the traces whose process is gone. Those of other machines are left alone: nobody here can know."""
        query = "SELECT id, pid, started, document FROM traces WHERE state = 'running' AND host = ?"
        with _sqlite_errors(self.path):
            rows = self._connection.execute(query, (socket.gethostname(),)).fetchall()
        for found, pid, started, document in rows:
            if start_of(pid) == started:
                continue
            with self._transaction():
                # Its last events may have come after the rows were read, and another process may be doing this too.
                still = self._connection.execute("SELECT 1 FROM traces WHERE id = ? AND state = 'running'", (found,))
                if still.fetchone():
                    self._interrupt(found, document)

    def _interrupt(self, found: str, document: str) -> None:
        try:
            trace = self._trace(found, "interrupted", document)
        except StoreError:
            # Written by another version of ponder: the row must not claim to run, its content waits for its reader.
            self._connection.execute("UPDATE traces SET state = 'interrupted' WHERE id = ?", (found,))
            return
        self._connection.execute("DELETE FROM traces WHERE id = ?", (found,))
        self._insert(trace)


def _filter(state: TraceState | None, search: str | None) -> tuple[str, tuple[Any, ...]]:
    """A condition on rows of `traces`, and its values."""
    conditions = ["1"]
    values: list[str] = []
    if state is not None:
        if state not in get_args(TraceState):
            raise InputError(f"{state!r} is no state of a trace", f"choose one of {', '.join(get_args(TraceState))}")
        conditions.append("state = ?")
        values.append(state)
    if search:
        pattern = "".join(f"\\{c}" if c in "\\%_" else c for c in search)
        conditions.append(r"question || char(10) || answer || char(10) || model LIKE ? ESCAPE '\'")
        values.append(f"%{pattern}%")
    return " AND ".join(conditions), tuple(values)


def _sqlite_errors(path: Path) -> AbstractContextManager[None]:
    return sqlite_errors(path, NO_STORE)

"""SQLite files: made private, in write-ahead mode, brought up to date, and their errors told with what mends them.

    database = Database.open(path, MIGRATIONS)
    with database.transaction():
        database.connection.execute("INSERT ...")

Several processes may use a file at once. What was committed survives the death of the process at any
moment; a loss of power may take the last few commits, never the file (synchronous=NORMAL).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType

from ponder.errors import InputError, StoreError

BUSY_SECONDS = 10.0
"""How long another process may hold the file before that is an error."""
CHECKPOINT_SECONDS = 0.5
BACKLOG = 8_000
"""Pages that may wait for a thread to move them into the file; past that a commit does it."""


class Database:
    """One open file. It belongs to the thread that opened it.

    otherwise: what else a user can do where the file cannot be used, such as "or ask with --no-store".
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, otherwise: str = "") -> None:
        self.connection = connection
        self.path = path
        self.otherwise = otherwise
        self._stop = threading.Event()
        self._checkpoints: threading.Thread | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        migrations: Sequence[Sequence[str]],
        otherwise: str = "",
        busy_seconds: float = BUSY_SECONDS,
    ) -> Database:
        """Opens `path`, makes it if it is not there, and brings its `PRAGMA user_version` to len(migrations).

        Raises StoreError with the mend if the file cannot be made, read, written or understood.
        """
        _make(path, otherwise)
        with sqlite_errors(path, otherwise):
            connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None)
        database = cls(connection, path, otherwise)
        try:
            with database.errors():
                _write_ahead(connection, busy_seconds)
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute("PRAGMA foreign_keys = ON")
                database._migrate(migrations)
        except BaseException:
            connection.close()
            raise
        return database

    def checkpoint_in_background(self) -> None:
        """Has a thread move what was written ahead into the file, until this is closed.

        A commit that has to do that, as one of a hundred does otherwise, waits for the disk, and an event loop that
        commits stands still meanwhile.
        """
        if self._checkpoints is None:
            with self.errors():
                self.connection.execute(f"PRAGMA wal_autocheckpoint = {BACKLOG}")
            thread = threading.Thread(target=_checkpoint, args=(self.path, self._stop), daemon=True)
            self._checkpoints = thread
            thread.start()

    def close(self) -> None:
        """Closes the file. Safe to call twice."""
        self._stop.set()
        if self._checkpoints is not None:
            self._checkpoints.join()
        self.connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """SQLite's errors as StoreError with what mends them; a conflict of keys is left to the caller."""
        with sqlite_errors(self.path, self.otherwise):
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing, and no other process writes meanwhile (BEGIN IMMEDIATE)."""
        with sqlite_errors(self.path, self.otherwise):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                # A full disk may have rolled it back already.
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    def _version(self) -> int:
        return int(self.connection.execute("PRAGMA user_version").fetchone()[0])

    def _migrate(self, migrations: Sequence[Sequence[str]]) -> None:
        if self._version() < len(migrations):
            with self.transaction():  # asked again within: another process may have been faster
                for statements in migrations[self._version() :]:
                    for statement in statements:
                        self.connection.execute(statement)
                self.connection.execute(f"PRAGMA user_version = {len(migrations)}")
        if self._version() > len(migrations):
            raise StoreError(
                f"{self.path} was written by a newer ponder: it has version {self._version()}, "
                f"and this one knows up to {len(migrations)}",
                _either("upgrade ponder", "set PONDER_HOME to another folder", self.otherwise),
            )


def _checkpoint(path: Path, stop: threading.Event) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        while not stop.wait(CHECKPOINT_SECONDS):
            with suppress(sqlite3.Error):  # the next one tries again, and at last a commit, which says what is wrong
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _either(*mends: str) -> str:
    """Several mends as one text: the last one may bring its own "or"."""
    *given, last = [mend for mend in mends if mend]
    if not given:
        return last
    return ", ".join([*given, last]) if last.startswith("or ") else f"{', '.join(given)} or {last}"


def _make(path: Path, otherwise: str) -> None:
    """The folder and an empty file, which only their owner may read."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            path.touch(mode=0o600)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be made: {error.strerror}",
            _either("set PONDER_HOME to a folder that can be written", otherwise),
        ) from None


def _write_ahead(connection: sqlite3.Connection, busy_seconds: float) -> None:
    # Two processes that switch a new file over at the same moment collide, and SQLite does not wait here.
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextmanager
def sqlite_errors(path: Path, otherwise: str = "") -> Iterator[None]:
    """SQLite's errors as StoreError with what mends them; a conflict of keys is left to the caller."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except UnicodeEncodeError:
        raise InputError(
            "a text with bytes that are no UTF-8 cannot be stored", _either("write it in UTF-8", otherwise)
        ) from None
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:  # a misuse of the connection, not a state of the file
            raise
        problem, mend = _explain(path, code & 0xFF, str(error), otherwise)
        raise StoreError(problem, mend) from error


def _explain(path: Path, code: int, said: str, otherwise: str) -> tuple[str, str]:
    unwritable = f"{path} cannot be written ({said})"
    match code:
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return f"{path} is damaged ({said})", f"move it away (mv '{path}' '{path}.damaged'): a new one will be made"
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return unwritable, _either("make room", "set PONDER_HOME to another disk", otherwise)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return unwritable, _either("set PONDER_HOME to a folder that can be written", otherwise)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"{path} is held by another process ({said})", _either("try again when that is done", otherwise)
        case _:
            return (
                f"{path} cannot be used ({said})",
                _either("move it away", "set PONDER_HOME to another folder", otherwise),
            )

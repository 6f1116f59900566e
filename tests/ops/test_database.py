"""SQLite files: private, brought up to date whole or not at all, and what goes wrong said in a line."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from ponder.errors import InputError, StoreError
from ponder.ops.database import Database

FIRST = ("CREATE TABLE notes (text TEXT UNIQUE)",)
SECOND = ("ALTER TABLE notes ADD COLUMN place TEXT",)


def _half(database: Database) -> None:
    database.connection.execute("INSERT INTO notes VALUES ('half')")
    raise ZeroDivisionError


def notes(database: Database) -> list[str]:
    return [row[0] for row in database.connection.execute("SELECT text FROM notes ORDER BY rowid")]


def test_a_new_file_is_private_and_waits_for_nobody_on_reading(tmp_path: Path) -> None:
    path = tmp_path / "new" / "notes.db"
    with Database.open(path, [FIRST]) as database:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert database.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.connection.execute("PRAGMA synchronous").fetchone() == (1,)
        assert database.connection.execute("PRAGMA user_version").fetchone() == (1,)
        with database.transaction(), Database.open(path, [FIRST]) as reader:
            database.connection.execute("INSERT INTO notes VALUES ('not yet')")
            assert notes(reader) == []


def test_an_older_file_is_brought_up_to_date_and_a_newer_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    with Database.open(path, [FIRST]) as database:
        database.connection.execute("INSERT INTO notes VALUES ('kept')")
    with Database.open(path, [FIRST, SECOND]) as database:
        assert database.connection.execute("SELECT * FROM notes").fetchall() == [("kept", None)]
    with pytest.raises(StoreError, match="version 2, and this one knows up to 1") as caught:
        Database.open(path, [FIRST])
    assert caught.value.mend == "upgrade ponder or set PONDER_HOME to another folder"


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    Database.open(path, [FIRST]).close()
    with pytest.raises(StoreError, match="no such table: nowhere"):
        Database.open(path, [FIRST, (*SECOND, "DROP TABLE nowhere")])
    with Database.open(path, [FIRST]) as database:
        assert database.connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert [row[1] for row in database.connection.execute("PRAGMA table_info(notes)")] == ["text"]


def test_a_transaction_is_whole_or_nothing(tmp_path: Path) -> None:
    with Database.open(tmp_path / "notes.db", [FIRST]) as database:
        with pytest.raises(ZeroDivisionError), database.transaction():
            _half(database)
        assert notes(database) == []
        with pytest.raises(sqlite3.IntegrityError), database.transaction():  # a conflict is the caller's to explain
            database.connection.executemany("INSERT INTO notes VALUES (?)", [("twice",), ("twice",)])
        assert notes(database) == []
        with database.transaction():
            database.connection.execute("INSERT INTO notes VALUES ('whole')")
        assert notes(database) == ["whole"]


def test_a_full_disk_is_a_line_and_what_was_written_stays(tmp_path: Path) -> None:
    with Database.open(tmp_path / "notes.db", [FIRST], "or ask without") as database:
        database.connection.execute("INSERT INTO notes VALUES ('safe')")
        database.connection.execute("PRAGMA max_page_count = 4")
        with pytest.raises(StoreError, match="cannot be written") as caught, database.transaction():
            database.connection.execute("INSERT INTO notes VALUES (?)", ("x" * 100_000,))
        assert caught.value.mend == "make room, set PONDER_HOME to another disk, or ask without"
        assert notes(database) == ["safe"]


def test_a_file_held_by_another_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    with Database.open(path, [FIRST]) as holder, Database.open(path, [FIRST], busy_seconds=0.01) as other:
        with (
            holder.transaction(),  # which has written nothing yet: to check and then write must be one step
            pytest.raises(StoreError, match="held by another process") as caught,
            other.transaction(),
        ):
            pass
        assert caught.value.mend == "try again when that is done"
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)


def test_what_is_no_database_and_what_is_no_text_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_bytes(b"plain text, and enough of it to be read as a head" * 50)
    with pytest.raises(StoreError, match="is damaged"):
        Database.open(path, [FIRST])
    path.unlink()
    with (
        Database.open(path, [FIRST]) as database,
        pytest.raises(InputError, match="no UTF-8"),
        database.transaction(),
    ):
        database.connection.execute("INSERT INTO notes VALUES (?)", ("caf\udce9",))
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be made: File exists"):
        Database.open(tmp_path / "file" / "notes.db", [FIRST])


def test_processes_that_make_the_same_file_at_once_all_succeed(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from ponder.ops.database import Database
        sys.stdin.readline()
        with Database.open(Path(sys.argv[1]), [("CREATE TABLE notes (text TEXT UNIQUE)",)]) as database:
            database.connection.execute("INSERT INTO notes VALUES (?)", (sys.argv[2],))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "notes.db")]
    children = [subprocess.Popen([*command, name], stdin=subprocess.PIPE) for name in "abc"]
    for child in children:
        assert child.stdin
        child.stdin.write(b"\n")
        child.stdin.flush()
    for child in children:
        child.communicate(timeout=60)
        assert child.returncode == 0
    with Database.open(tmp_path / "notes.db", [FIRST]) as database:
        assert sorted(notes(database)) == ["a", "b", "c"]


def test_a_thread_moves_what_was_written_ahead_and_ends_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ponder.ops.database.CHECKPOINT_SECONDS", 0.01)
    path = tmp_path / "notes.db"
    threads = threading.active_count()
    with Database.open(path, [FIRST]) as database, closing(sqlite3.connect(path)) as reader:
        before = path.stat().st_size
        database.checkpoint_in_background()
        database.checkpoint_in_background()
        assert threading.active_count() == threads + 1
        database.connection.execute("INSERT INTO notes VALUES (?)", ("x" * 100_000,))
        deadline = time.monotonic() + 20
        while path.stat().st_size < before + 100_000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(reader.execute("SELECT text FROM notes").fetchone()[0]) == 100_000
    database.close()
    assert threading.active_count() == threads

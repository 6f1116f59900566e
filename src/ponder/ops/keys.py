"""Keys: who may ask, on behalf of which project, and how much.

    with Keys.open() as keys:
        key, secret = keys.add("alice", "web", parse_limits("5 USD/month"))   # the secret is never shown again
        keys.find(secret)                                                     # the key, or None

A secret has 256 random bits, so its SHA-256 alone is kept, and no slow hash is needed: there is nothing to
guess. Keys are looked up in memory; what another process changes is seen within a second. A `Keys`
belongs to the thread that opened it.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from ponder import paths
from ponder.errors import InputError
from ponder.ops.database import Database
from ponder.ops.ledger_schema import MIGRATIONS
from ponder.ops.limits import Limit, limits_text, parse_limits

PREFIX = "pk_"
POLL_SECONDS = 1.0
"""How old the keys in memory may be: a revoked one is refused after that time everywhere."""
LONGEST_NAME = 100
_SLOT = 8
"""Bytes of a digest by which it is found; all of them are then compared in constant time."""


@dataclass(frozen=True)
class Key:
    """A key without its secret. created, revoked: ISO 8601 in UTC; revoked is None while it may be used."""

    id: str
    name: str
    project: str
    limits: tuple[Limit, ...]
    created: str
    revoked: str | None = None


@dataclass(frozen=True)
class Project:
    """What several keys share, with limits for all of them together."""

    name: str
    limits: tuple[Limit, ...]


class Keys:
    """The keys and projects in ledger.db. Open them with `Keys.open`, close them or use them with `with`."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._connection = database.connection
        self._clock = clock
        self._polled = clock()
        self._version = self._changes = -1
        self._usable: dict[bytes, tuple[bytes, Key]] = {}
        self._projects: dict[str, tuple[Limit, ...]] = {}
        self._read()

    @classmethod
    def open(cls, path: str | Path | None = None, clock: Callable[[], float] = time.monotonic) -> Keys:
        """The keys at `path`, by default `ledger.db` in `ponder.paths.home()`; made if it is not there.

        Raises StoreError with the mend if the file cannot be made, read, written or understood.
        """
        database = Database.open(paths.home() / "ledger.db" if path is None else Path(path), MIGRATIONS)
        try:
            return cls(database, clock)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Closes the file. Safe to call twice."""
        self._database.close()

    def __enter__(self) -> Keys:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------ who asks

    def find(self, secret: str) -> Key | None:
        """The key of a secret; None where there is none or it was revoked.

        No query is made for a secret that is wrong: whether keys have changed is asked once a second at most.
        """
        self._poll()
        digest = _digest(secret)
        stored, key = self._usable.get(digest[:_SLOT], (b"", None))
        return key if hmac.compare_digest(stored, digest) else None

    def project_limits(self, project: str) -> tuple[Limit, ...]:
        """The limits of a project, none where it has none; from memory as well."""
        self._poll()
        return self._projects.get(project, ())

    def any(self) -> bool:
        """Whether there is any key that may be used."""
        self._poll()
        return bool(self._usable)

    # ------------------------------------------------------------ administration

    def add(self, name: str, project: str = "", limits: tuple[Limit, ...] = ()) -> tuple[Key, str]:
        """A new key, and its secret, which is not kept. Raises InputError where a usable key has the name."""
        _check_name(name, "a key")
        if project:
            _check_name(project, "a project")
        secret = PREFIX + secrets.token_urlsafe(32)
        key = Key(f"key_{secrets.token_hex(6)}", name, project, limits, _now())
        with self._changing():
            if self._connection.execute("SELECT 1 FROM keys WHERE name = ? AND revoked IS NULL", (name,)).fetchone():
                raise InputError(
                    f"there is a key {name!r} already", f"take another name, or end it: ponder keys revoke {name}"
                )
            self._connection.execute(
                "INSERT INTO keys (id, name, project, limits, digest, created) VALUES (?, ?, ?, ?, ?, ?)",
                (key.id, name, project, limits_text(limits), _digest(secret), key.created),
            )
        return key, secret

    def list(self, revoked: bool = False) -> tuple[Key, ...]:
        """The keys in the order in which they were made, with `revoked` those that were revoked too."""
        with self._database.errors():
            rows = self._connection.execute(
                "SELECT id, name, project, limits, created, revoked FROM keys WHERE ? OR revoked IS NULL"
                " ORDER BY created, rowid",
                (revoked,),
            ).fetchall()
        return tuple(Key(row[0], row[1], row[2], parse_limits(row[3]), *row[4:]) for row in rows)

    def projects(self) -> tuple[Project, ...]:
        """The projects that have limits, by name."""
        with self._database.errors():
            rows = self._connection.execute("SELECT name, limits FROM projects ORDER BY name").fetchall()
        return tuple(Project(name, parse_limits(limits)) for name, limits in rows)

    def get(self, name_or_id: str) -> Key:
        """The usable key of this name, or whose id is or begins with it. Raises InputError if there is not one."""
        usable = self.list()
        for found in (
            [key for key in usable if name_or_id in (key.name, key.id)],
            [key for key in usable if name_or_id and key.id.startswith(name_or_id)],
        ):
            if len(found) == 1:
                return found[0]
            if found:
                raise InputError(f"{name_or_id!r} means several keys", "write all of the id")
        raise InputError(f"there is no key {name_or_id!r} in use", "see them with: ponder keys list")

    def revoke(self, name_or_id: str) -> Key:
        """Ends a key for good. What it used stays in the ledger. Raises InputError where there is no such key."""
        key = self.get(name_or_id)
        with self._changing():
            self._connection.execute("UPDATE keys SET revoked = ? WHERE id = ?", (_now(), key.id))
        return key

    def limit(self, name_or_id: str, limits: tuple[Limit, ...]) -> Key:
        """Gives a key other limits in the place of those that it has. Raises InputError where there is no such key."""
        key = self.get(name_or_id)
        with self._changing():
            self._connection.execute("UPDATE keys SET limits = ? WHERE id = ?", (limits_text(limits), key.id))
        return self.get(key.id)

    def limit_project(self, project: str, limits: tuple[Limit, ...]) -> None:
        """Gives a project other limits in the place of those that it has; none with ()."""
        _check_name(project, "a project")
        with self._changing():
            self._connection.execute("DELETE FROM projects WHERE name = ?", (project,))
            if limits:
                self._connection.execute("INSERT INTO projects VALUES (?, ?)", (project, limits_text(limits)))

    # ------------------------------------------------------------ memory

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._database.transaction():
            yield
            self._connection.execute("UPDATE changes SET keys = keys + 1")
        self._read()

    def _poll(self) -> None:
        now = self._clock()
        if now - self._polled < POLL_SECONDS:
            return
        with self._database.errors():
            version = self._data_version()
            # The ledger writes to this file all the time: only what changed the keys has them read again.
            if version != self._version and self._count() != self._changes:
                self._read()
        self._version, self._polled = version, now

    def _read(self) -> None:
        with self._database.errors():
            # Both before the tables: what is changed between these reads is then read again at the next look.
            self._version, self._changes = self._data_version(), self._count()
            digests = dict(self._connection.execute("SELECT id, digest FROM keys WHERE revoked IS NULL").fetchall())
        found = {key.id: key for key in self.list()}
        self._usable = {
            digest[:_SLOT]: (digest, found[key_id]) for key_id, digest in digests.items() if key_id in found
        }
        self._projects = {project.name: project.limits for project in self.projects()}

    def _data_version(self) -> int:
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def _count(self) -> int:
        return int(self._connection.execute("SELECT keys FROM changes").fetchone()[0])


def _digest(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _check_name(name: str, what: str) -> None:
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable() or name.startswith(("-", "key_")):
        raise InputError(
            f"{name[:LONGEST_NAME]!r} cannot be the name of {what}",
            f"take up to {LONGEST_NAME} printable characters, and neither - nor key_ at the beginning",
        )

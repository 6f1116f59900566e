"""Kept responses: what `GET /v1/responses/{id}` gives again, and what `previous_response_id` goes on from.

    with ResponsesStore.open() as store:
        store.put(body, inputs, outputs, owner=key)
        items = store.chain("resp_1", owner=key)

Each response belongs to the key that made it; for every other key it is not there. It goes after `KEPT_SECONDS`, or
earlier where its owner, or all owners together, keep more bytes than there is room for: the oldest go first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from ponder import paths
from ponder.ops.database import Database
from ponder.server.failures import Refusal, invalid

KEPT_SECONDS = 30 * 86_400
LONGEST_CHAIN = 1000
"""Responses that one may go back to, each the previous of the next."""
MOST_ITEMS = 100
"""Items in one page of a listing."""

Items = Sequence[Mapping[str, Any]]

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE responses (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            created REAL NOT NULL,
            previous TEXT,
            bytes INTEGER NOT NULL,
            body TEXT NOT NULL,
            inputs TEXT NOT NULL,
            outputs TEXT NOT NULL
        )""",
        "CREATE INDEX responses_by_age ON responses (created)",
        "CREATE INDEX responses_by_owner ON responses (owner, created)",
        # Kept up by triggers: the sum over many rows would be too slow for every response.
        "CREATE TABLE sizes (owner TEXT PRIMARY KEY, bytes INTEGER NOT NULL)",
        """CREATE TRIGGER response_kept AFTER INSERT ON responses BEGIN
            INSERT INTO sizes VALUES (new.owner, new.bytes) ON CONFLICT (owner) DO UPDATE SET bytes = bytes + new.bytes;
        END""",
        """CREATE TRIGGER response_gone AFTER DELETE ON responses BEGIN
            UPDATE sizes SET bytes = bytes - old.bytes WHERE owner = old.owner;
            DELETE FROM sizes WHERE owner = old.owner AND bytes = 0;
        END""",
    ),
)
"""Statements that lead from one version of the file (`PRAGMA user_version`) to the next. Only ever appended to."""


class ResponsesStore:
    """The kept responses of a server. Open it with `ResponsesStore.open`; it belongs to the thread that did."""

    def __init__(self, database: Database, most_bytes: int, owner_bytes: int, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock
        self._most_bytes, self._owner_bytes = most_bytes, min(owner_bytes, most_bytes)

    @classmethod
    def open(
        cls,
        path: Path | None = None,
        *,
        most_bytes: int = 2**30,
        owner_bytes: int = 2**28,
        clock: Callable[[], float] = time.time,
    ) -> ResponsesStore:
        """The store at `path`, by default `responses.db` in `ponder.paths.home()`; made if it is not there.

        most_bytes, owner_bytes: room for all responses, and for those of one key. Raises StoreError if the file cannot
        be made, read or understood.
        """
        path = paths.home() / "responses.db" if path is None else path
        database = Database.open(path, MIGRATIONS, "or serve with --no-store")
        return cls(database, most_bytes, owner_bytes, clock)

    def close(self) -> None:
        """Closes the file. Safe to call twice."""
        self._database.close()

    def __enter__(self) -> ResponsesStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------ writing

    def put(self, body: Mapping[str, Any], inputs: Items, outputs: Items, owner: str) -> bool:
        """Keeps a response and, of its conversation, its own `inputs` and `outputs`; makes room for it.

        The body's `id` and `previous_response_id` are its place in a chain. False where it alone is larger than the
        room of its owner. Raises StoreError if it cannot be written, sqlite3.IntegrityError for an id that is taken.
        """
        documents = [_document(each) for each in (body, list(inputs), list(outputs))]
        size = sum(len(each.encode()) for each in documents)
        if size > self._owner_bytes:
            return False
        row = (body["id"], owner, self._clock(), body.get("previous_response_id"), size, *documents)
        with self._database.transaction():
            self._expire()
            self._make_room(owner, size)
            self._database.connection.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        return True

    def delete(self, id: str, owner: str) -> dict[str, Any]:
        """Removes a response and gives the answer to `DELETE /v1/responses/{id}`. Raises Refusal, 404."""
        with self._database.transaction():
            self._expire()
            gone = self._database.connection.execute("DELETE FROM responses WHERE id = ? AND owner = ?", (id, owner))
        if not gone.rowcount:
            raise _unknown(id)
        return {"id": id, "object": "response", "deleted": True}

    # ------------------------------------------------------------ reading

    def get(self, id: str, owner: str) -> dict[str, Any]:
        """The body of a response as it was sent. Raises Refusal, 404, for one that is not there or another key's."""
        row = self._row(id, owner)
        if row is None:
            raise _unknown(id)
        return cast("dict[str, Any]", json.loads(row[0]))

    def input_items(
        self, id: str, owner: str, limit: int = 20, order: str = "desc", after: str | None = None
    ) -> dict[str, Any]:
        """The answer to `GET /v1/responses/{id}/input_items`: a page of items, the newest first unless order is "asc".

        after: the id of the item before the page. Raises Refusal, 404 or 400.
        """
        row = self._row(id, owner)
        if row is None:
            raise _unknown(id)
        if not 1 <= limit <= MOST_ITEMS:
            raise invalid(f"limit must be from 1 to {MOST_ITEMS}, not {limit}", param="limit")
        if order not in ("asc", "desc"):
            raise invalid(f"order {order!r} is not known", "choose from asc, desc", param="order")
        items = json.loads(row[2])
        items = items if order == "asc" else items[::-1]
        return _page(items, limit, after)

    def chain(self, id: str, owner: str) -> list[dict[str, Any]]:
        """The items of the whole conversation up to and with response `id`: inputs and outputs, the oldest first.

        Raises Refusal, 400, where one of its responses is not there, is another key's, expired or was deleted.
        """
        parts: list[list[dict[str, Any]]] = []
        wanted: str | None = id
        while wanted is not None:
            row = self._row(wanted, owner)
            if row is None or len(parts) >= 2 * LONGEST_CHAIN:
                raise _broken(id, wanted, row is None)
            parts += [json.loads(row[3]), json.loads(row[2])]
            wanted = row[1]
        return [item for part in reversed(parts) for item in part]

    def _row(self, id: str, owner: str) -> tuple[str, str | None, str, str] | None:
        """Body, previous, inputs and outputs of a response."""
        with self._database.errors():
            found = self._database.connection.execute(
                "SELECT body, previous, inputs, outputs FROM responses WHERE id = ? AND owner = ? AND created > ?",
                (id, owner, self._clock() - KEPT_SECONDS),
            )
            return cast("tuple[str, str | None, str, str] | None", found.fetchone())

    # ------------------------------------------------------------ room

    def _expire(self) -> None:
        self._database.connection.execute("DELETE FROM responses WHERE created <= ?", (self._clock() - KEPT_SECONDS,))

    def _make_room(self, owner: str, size: int) -> None:
        """Removes the oldest responses of the owner, then the oldest of all, until `size` more bytes fit."""
        while self._kept("WHERE owner = ?", owner) + size > self._owner_bytes:
            self._remove_oldest("WHERE owner = ?", owner)
        while self._kept() + size > self._most_bytes:
            self._remove_oldest()

    def _kept(self, where: str = "", *values: str) -> int:
        found = self._database.connection.execute(f"SELECT coalesce(sum(bytes), 0) FROM sizes {where}", values)
        return int(found.fetchone()[0])

    def _remove_oldest(self, where: str = "", *values: str) -> None:
        oldest = f"SELECT rowid FROM responses {where} ORDER BY created, rowid LIMIT 1"
        self._database.connection.execute(f"DELETE FROM responses WHERE rowid = ({oldest})", values)


def _document(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _page(items: list[dict[str, Any]], limit: int, after: str | None) -> dict[str, Any]:
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise invalid(f"there is no item {after!r}", "give the last_id of the page before", param="after")
    start = ids.index(after) + 1 if after is not None else 0
    page = items[start : start + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + limit < len(items),
    }


def _unknown(id: str) -> Refusal:
    return Refusal(404, "not_found_error", f"there is no response {id!r}", "it may have expired", param="response_id")


def _broken(id: str, missing: str, gone: bool) -> Refusal:
    if not gone:
        problem = f"the conversation behind {id!r} is longer than {LONGEST_CHAIN} responses"
        return invalid(problem, "begin a new one", param="previous_response_id")
    problem = f"previous response {missing!r} is not kept here"
    mend = "send the conversation as input: responses made with store=false are not kept, older ones expire"
    return invalid(problem, mend, param="previous_response_id", code="previous_response_not_found")

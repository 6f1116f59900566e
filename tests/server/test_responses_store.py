"""Kept responses: whose they are, how long they stay, how much room they take."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ponder.errors import StoreError
from ponder.server.failures import Refusal
from ponder.server.responses_store import KEPT_SECONDS, ResponsesStore


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[ResponsesStore]:
    with ResponsesStore.open(tmp_path / "responses.db", most_bytes=4000, owner_bytes=2500, clock=clock) as opened:
        yield opened


def body(id: str, previous: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": id, "object": "response", "previous_response_id": previous, **more}


def item(id: str, text: str = "") -> dict[str, Any]:
    return {"id": id, "type": "message", "text": text}


def keep(store: ResponsesStore, id: str, previous: str | None = None, owner: str = "k", size: int = 0) -> bool:
    return store.put(body(id, previous), [item(f"in_{id}")], [item(f"out_{id}", "x" * size)], owner)


def test_a_response_comes_back_as_it_was_put(store: ResponsesStore) -> None:
    sent = body("r1", text="naïve 🤔 \u2028")
    assert store.put(sent, [item("i")], [item("o")], "k")
    assert store.get("r1", "k") == sent


def test_a_chain_is_the_whole_conversation_in_order(store: ResponsesStore) -> None:
    keep(store, "r1")
    keep(store, "r2", "r1")
    keep(store, "r3", "r2")
    keep(store, "branch", "r1")
    assert [each["id"] for each in store.chain("r3", "k")] == ["in_r1", "out_r1", "in_r2", "out_r2", "in_r3", "out_r3"]
    assert [each["id"] for each in store.chain("branch", "k")] == ["in_r1", "out_r1", "in_branch", "out_branch"]


def test_what_is_another_keys_is_not_there(store: ResponsesStore) -> None:
    keep(store, "r1", owner="alice")
    for attempt in (store.get, store.delete, store.input_items):
        with pytest.raises(Refusal, match="no response 'r1'") as caught:
            attempt("r1", "bob")
        assert (caught.value.status, caught.value.kind) == (404, "not_found_error")
    with pytest.raises(Refusal) as chained:
        store.chain("r1", "bob")
    assert (chained.value.status, chained.value.code) == (400, "previous_response_not_found")
    assert store.get("r1", "alice")["id"] == "r1"


def test_a_chain_does_not_pass_through_another_keys_response(store: ResponsesStore) -> None:
    keep(store, "r1", owner="alice")
    keep(store, "r2", "r1", owner="bob")
    with pytest.raises(Refusal, match="'r1' is not kept"):
        store.chain("r2", "bob")


def test_deleting(store: ResponsesStore) -> None:
    keep(store, "r1")
    keep(store, "r2", "r1")
    assert store.delete("r1", "k") == {"id": "r1", "object": "response", "deleted": True}
    with pytest.raises(Refusal):
        store.get("r1", "k")
    with pytest.raises(Refusal):
        store.delete("r1", "k")
    with pytest.raises(Refusal, match="'r1' is not kept"):
        store.chain("r2", "k")


def test_responses_expire_after_thirty_days(store: ResponsesStore, clock: Clock) -> None:
    assert KEPT_SECONDS == 30 * 24 * 3600
    keep(store, "old")
    clock.now += KEPT_SECONDS - 1
    assert store.get("old", "k")
    clock.now += 1
    with pytest.raises(Refusal):
        store.get("old", "k")
    keep(store, "new")
    assert _count(store) == 1, "what expired is removed, not hidden alone"


def test_an_owner_who_keeps_too_much_loses_the_oldest_and_nobody_elses(store: ResponsesStore, clock: Clock) -> None:
    keep(store, "others", owner="other")
    for number in range(5):
        clock.now += 1
        assert keep(store, f"r{number}", size=600)
    assert store.get("others", "other")
    assert store.get("r4", "k")
    with pytest.raises(Refusal):
        store.get("r0", "k")
    assert _bytes(store, "k") <= 2500


def test_all_together_keep_no_more_than_the_room_for_all(store: ResponsesStore, clock: Clock) -> None:
    for number in range(12):
        clock.now += 1
        keep(store, f"r{number}", owner=f"k{number}", size=500)
        assert _bytes(store) <= 4000
    assert store.get("r11", "k11")
    with pytest.raises(Refusal):
        store.get("r0", "k0")


def test_one_that_is_too_large_is_not_kept_and_drives_nothing_out(store: ResponsesStore) -> None:
    keep(store, "small")
    assert not keep(store, "huge", size=3000)
    assert store.get("small", "k")


def test_the_sizes_are_right_whatever_came_and_went(store: ResponsesStore) -> None:
    for number in range(4):
        keep(store, f"r{number}", owner=f"k{number % 2}", size=number * 10)
    store.delete("r2", "k0")
    counted = dict(_rows(store, "SELECT owner, sum(bytes) FROM responses GROUP BY owner"))
    assert dict(_rows(store, "SELECT owner, bytes FROM sizes")) == counted
    store.delete("r0", "k0")
    assert [owner for owner, _ in _rows(store, "SELECT owner, bytes FROM sizes")] == ["k1"]


def test_pages_of_input_items(store: ResponsesStore) -> None:
    store.put(body("r1"), [item(f"i{number}") for number in range(5)], [], "k")

    def ids(**settings: Any) -> list[str]:
        return [each["id"] for each in store.input_items("r1", "k", **settings)["data"]]

    assert ids() == ["i4", "i3", "i2", "i1", "i0"]
    assert ids(order="asc", limit=2) == ["i0", "i1"]
    assert ids(order="asc", limit=2, after="i1") == ["i2", "i3"]
    page = store.input_items("r1", "k", limit=3, order="asc", after="i1")
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("i2", "i4", False)
    assert store.input_items("r1", "k", limit=4)["has_more"]
    for wrong in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "nowhere"}):
        with pytest.raises(Refusal) as caught:
            ids(**wrong)
        assert (caught.value.status, caught.value.param) == (400, next(iter(wrong)))


def test_an_id_is_taken_once(store: ResponsesStore) -> None:
    keep(store, "r1", owner="alice")
    with pytest.raises(sqlite3.IntegrityError):
        keep(store, "r1", owner="bob")
    assert store.get("r1", "alice")
    assert _bytes(store, "bob") == 0


def test_it_survives_being_closed_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "responses.db"
    with ResponsesStore.open(path) as store:
        keep(store, "r1")
    with ResponsesStore.open(path) as store:
        assert store.get("r1", "k")["id"] == "r1"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_by_default_it_lies_in_the_home(ponder_home: Path) -> None:
    with ResponsesStore.open() as store:
        keep(store, "r1")
    assert (ponder_home / "responses.db").exists()


def test_a_newer_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    ResponsesStore.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="newer ponder"):
        ResponsesStore.open(path)


def _rows(store: ResponsesStore, query: str) -> list[Any]:
    connection = sqlite3.connect(store._database.path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def _count(store: ResponsesStore) -> int:
    return int(_rows(store, "SELECT count(*) FROM responses")[0][0])


def _bytes(store: ResponsesStore, owner: str | None = None) -> int:
    where = "" if owner is None else f"WHERE owner = '{owner}'"
    return int(_rows(store, f"SELECT coalesce(sum(bytes), 0) FROM responses {where}")[0][0])

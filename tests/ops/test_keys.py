"""Keys: found by their secret without a query, and nothing of the secret on the disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ponder.errors import InputError, StoreError
from ponder.ops import keys as keys_module
from ponder.ops.keys import Keys
from ponder.ops.ledger import Ledger
from ponder.ops.ledger_values import Reservation
from ponder.ops.limits import parse_limits

LIMITS = parse_limits("5 USD/month, 60 requests/minute")


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(tmp_path: Path, clock: Clock) -> Iterator[Keys]:
    with Keys.open(tmp_path / "ledger.db", clock) as opened:
        yield opened


@pytest.fixture
def queries(keys: Keys) -> list[str]:
    """Every statement from here on."""
    seen: list[str] = []
    keys._connection.set_trace_callback(seen.append)
    return seen


def test_a_key_is_found_by_its_secret_alone(keys: Keys) -> None:
    alice, secret = keys.add("alice", "web", LIMITS)
    bob, other = keys.add("bob")
    assert keys.find(secret) == alice
    assert keys.find(other) == bob
    assert (alice.name, alice.project, alice.limits, alice.revoked) == ("alice", "web", LIMITS, None)
    for wrong in ("", "alice", alice.id, secret[:-1], secret + "x", secret.upper(), "pk_", "caf\udce9"):
        assert keys.find(wrong) is None


def test_secrets_are_long_random_and_each_their_own(keys: Keys) -> None:
    secrets = {keys.add(f"user{number}")[1] for number in range(20)}
    assert len(secrets) == 20
    assert all(secret.startswith("pk_") and len(secret) == 3 + 43 for secret in secrets)  # 256 bits in base64


def test_the_disk_holds_no_secret(keys: Keys, tmp_path: Path) -> None:
    key, secret = keys.add("alice")
    keys.find(secret)
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"alice" in written
    assert secret.encode() not in written
    assert secret.removeprefix("pk_").encode() not in written
    assert secret not in repr(key) + repr(keys.list()) + repr(vars(keys))


def test_a_wrong_secret_makes_no_query(keys: Keys, clock: Clock, queries: list[str]) -> None:
    keys.add("alice")
    queries.clear()
    for number in range(1000):
        assert keys.find(f"pk_{number}") is None
    assert queries == []
    clock.now += 1
    for number in range(1000):
        assert keys.find(f"pk_{number}") is None
    assert queries == ["PRAGMA data_version"]


def test_digests_are_compared_in_constant_time(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    _, secret = keys.add("alice")
    compared: list[tuple[bytes, bytes]] = []

    def compare(first: bytes, second: bytes) -> bool:
        compared.append((first, second))
        return first == second

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    assert keys.find(secret)
    assert keys.find("pk_other") is None
    assert [len(second) for _, second in compared] == [32, 32]


def test_a_digest_that_begins_alike_is_another(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    _, secret = keys.add("alice")
    digest = keys_module._digest(secret)
    monkeypatch.setattr(keys_module, "_digest", lambda _: digest[:8] + bytes(24))
    assert keys.find("pk_collides") is None


def test_another_process_s_changes_are_seen_within_a_second(keys: Keys, clock: Clock, tmp_path: Path) -> None:
    _, old = keys.add("old")
    code = """
import sys
from ponder.ops.keys import Keys
from ponder.ops.limits import parse_limits
with Keys.open(sys.argv[1]) as keys:
    keys.revoke("old")
    keys.limit_project("web", parse_limits("7 requests/day"))
    print(keys.add("new", "web")[1])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "ledger.db")]
    new = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    clock.now += 0.99
    assert keys.find(old) is not None
    assert keys.find(new) is None
    clock.now += 0.01
    assert keys.find(old) is None
    found = keys.find(new)
    assert found is not None
    assert found.name == "new"
    assert keys.project_limits("web") == parse_limits("7 requests/day")


def test_what_the_ledger_writes_does_not_have_the_keys_read_again(
    keys: Keys, clock: Clock, queries: list[str], tmp_path: Path
) -> None:
    _, secret = keys.add("alice")
    queries.clear()
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.reserve(Reservation("r"))
    clock.now += 1
    assert keys.find(secret) is not None
    assert queries == ["PRAGMA data_version", "SELECT keys FROM changes"]


def test_a_database_that_fails_lets_nobody_in_on_old_knowledge(keys: Keys, clock: Clock) -> None:
    _, secret = keys.add("alice")
    keys._connection.execute("ALTER TABLE changes RENAME TO gone")
    keys._version = -1
    clock.now += 1
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot be used"):
            keys.find(secret)


def test_a_revoked_key_is_refused_at_once_and_stays_known(keys: Keys) -> None:
    key, secret = keys.add("alice", limits=LIMITS)
    assert keys.any()
    assert keys.revoke("alice").id == key.id
    assert keys.find(secret) is None
    assert not keys.any()
    assert keys.list() == ()
    (known,) = keys.list(revoked=True)
    assert (known.id, known.limits) == (key.id, LIMITS)
    assert known.revoked is not None
    again, other = keys.add("alice")
    assert again.id != key.id
    assert keys.find(other) == again
    with pytest.raises(InputError, match="no key"):
        keys.revoke(key.id)


def test_keys_are_named_by_name_id_or_its_beginning(keys: Keys) -> None:
    alice, _ = keys.add("alice")
    keys.add("bob")
    assert keys.get("alice") == keys.get(alice.id) == keys.get(alice.id[:10]) == alice
    with pytest.raises(InputError, match="several keys"):
        keys.get("key_")
    for wrong in ("", "carol", "alic", "key_zz"):
        with pytest.raises(InputError, match="there is no key"):
            keys.get(wrong)
    with pytest.raises(InputError, match="there is a key 'alice' already"):
        keys.add("alice")


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x1b[31m", "x" * 101, "-rf", "key_1"])
def test_names_that_would_confuse_are_refused(keys: Keys, name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of a key"):
        keys.add(name)
    if name:
        with pytest.raises(InputError, match="cannot be the name of a project"):
            keys.add("alice", name)
    assert keys.list(revoked=True) == ()


def test_limits_are_changed_for_keys_and_projects(keys: Keys) -> None:
    _, secret = keys.add("alice", "web")
    keys.limit("alice", LIMITS)
    keys.limit_project("web", LIMITS)
    found = keys.find(secret)
    assert found is not None
    assert found.limits == keys.project_limits("web") == LIMITS
    assert [(each.name, each.limits) for each in keys.projects()] == [("web", LIMITS)]
    keys.limit("alice", ())
    keys.limit_project("web", ())
    assert keys.get("alice").limits == keys.project_limits("web") == ()
    assert keys.projects() == ()


def test_a_disk_that_is_full_makes_no_key(keys: Keys) -> None:
    _, secret = keys.add("alice")
    keys._connection.execute("PRAGMA max_page_count = 1")

    def fill() -> None:
        for number in range(1000):
            keys.add(f"user{number}", limits=LIMITS)

    with pytest.raises(StoreError, match="cannot be written"):
        fill()
    assert keys.find(secret) is not None
    with Keys.open(keys._database.path) as others:
        assert others.list() == keys.list()
        assert 0 < len(others.list()) < 1000

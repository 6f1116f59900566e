"""`ponder costs`: what was used, what it cost, and what is not known."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import ponder

from ponder.ops.keys import Keys
from ponder.ops.ledger import Ledger
from ponder.ops.ledger_values import Reservation, Settlement

DAY = 86_400


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PONDER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")


def out(*arguments: str) -> str:
    result = ponder("costs", *arguments)
    assert (result.code, result.err) == (0, "")
    return result.out


def rows(*arguments: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(out(*arguments, "--json"))["rows"]}


def keep(request: str, micro: int | None, ago: float = 0, **rest: Any) -> None:
    """A request of some time ago."""
    clock: Callable[[], float] = lambda: time.time() - ago  # noqa: E731
    with Ledger.open(clock=clock) as ledger:
        ledger.reserve(Reservation(request, **({"model": "small", "micro_most": micro} | rest)))
        ledger.settle(request, 0, Settlement(prompt=1200, cached=200, completion=80, reasoning=60, micro=micro))


def test_nothing_yet() -> None:
    assert out() == "no requests\n"
    keep("r", 5, ago=3 * DAY)
    assert out("--since", "2d") == "no requests since then\n"
    assert json.loads(out("--json", "--since", "2d"))["rows"] == []


def test_costs_by_model() -> None:
    keep("a", 50_000)
    keep("b", 250_000, model="large", strategy="vote(8)")
    keep("c", 250_000, model="large")
    shown = out()
    lines = [line.split() for line in shown.splitlines() if line.split()[:1] in (["large"], ["small"], ["all"])]
    assert lines == [
        ["large", "2", "2,400", "400", "160", "120", "0.5", "USD"],
        ["small", "1", "1,200", "200", "80", "60", "0.05", "USD"],
        ["all", "3", "3,600", "600", "240", "180", "0.55", "USD"],
    ]
    assert rows("--by", "strategy")["vote(8)"]["dollars"] == 0.25
    assert "(none)" in out("--by", "strategy")


def test_the_json_has_all_counts() -> None:
    keep("a", 50_000)
    found = json.loads(out("--json"))
    assert (found["by"], found["since"], found["dollars"]) == ("model", None, 0.05)
    attempts = {"requests": 1, "attempts": 1, "open": 0, "unknown": 0, "failed": 0, "unpriced": 0}
    tokens = {"prompt": 1200, "cached": 200, "completion": 80, "reasoning": 60}
    money = {"micro": 50_000, "open_micro": 0, "unknown_micro": 0, "dollars": 0.05}
    assert found["rows"] == [{"name": "small"} | attempts | tokens | money]


def test_keys_are_told_by_their_names_revoked_ones_too() -> None:
    with Keys.open() as keys:
        alice, _ = keys.add("alice")
        bob, _ = keys.add("bob")
        keys.revoke("bob")
    keep("a", 1, key=alice.id)
    keep("b", 1, key=bob.id)
    shown = out("--by", "key")
    assert "alice" in shown
    assert "bob" in shown
    assert rows("--by", "key")[bob.id]["key_name"] == "bob"


def test_since_is_a_while_or_a_date() -> None:
    keep("old", 1, ago=10 * DAY, model="old")
    keep("new", 2, ago=2 * 3600, model="new")
    assert set(rows()) == {"old", "new"}
    assert set(rows("--since", "7d")) == set(rows("--since", "3h")) == {"new"}
    assert set(rows("--since", "2w")) == set(rows("--since", "2026-01-01")) == {"old", "new"}
    assert rows("--since", "30m") == {}
    day = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - DAY))
    assert set(rows("--since", day)) == set(rows("--since", day + "+00:00")) == {"new"}
    assert len(rows("--by", "day")) == 2


def test_what_is_not_known_is_said_and_not_counted_as_nothing() -> None:
    keep("a", None)
    assert "unknown" in out()
    assert "0 USD" not in out()
    keep("b", 50_000)
    shown = out()
    assert "0.05 USD + unknown" in shown
    assert "without a known price: 1 of 2 attempts" in shown
    with Ledger.open() as ledger:
        ledger.reserve(Reservation("c", model="small", micro_most=70_000))
        assert "under way: 1, for which 0.07 USD are reserved" in out()
        ledger._connection.execute("UPDATE owners SET started = 'gone'")
    assert "lost with their process: 1, which count as 0.07 USD against limits" in out()


@pytest.mark.parametrize("since", ["soon", "7y", "2026-13-01", "-3d"])
def test_a_wrong_time_is_told_in_one_line(since: str) -> None:
    result = ponder("costs", f"--since={since}")
    assert (result.code, result.out) == (2, "")
    assert "is no time" in result.err
    assert len(result.err.splitlines()) == 1

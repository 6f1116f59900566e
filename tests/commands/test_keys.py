"""`ponder keys`: what it makes, lists, limits and revokes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import ponder

from ponder.commands.keys import _complete_key, _complete_project
from ponder.ops.keys import Keys
from ponder.ops.ledger import Ledger
from ponder.ops.ledger_values import Reservation, Settlement
from ponder.ops.limits import parse_limits


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PONDER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path / "home"


def out(*arguments: str, stdin: str | None = None) -> str:
    result = ponder("keys", *arguments, stdin=stdin)
    assert result.code == 0, result.err
    return result.out


def document(*arguments: str) -> Any:
    return json.loads(out(*arguments, "--json"))


def test_a_new_key_works_and_its_secret_is_all_that_is_on_standard_output() -> None:
    result = ponder("keys", "add", "alice", "--project", "web", "--limit", "5 USD/month, 60 requests/min")
    assert result.code == 0
    secret = result.out.strip()
    assert re.fullmatch(r"pk_[\w-]{43}", secret)
    assert secret not in result.err
    assert "alice" in result.err
    with Keys.open() as keys:
        found = keys.find(secret)
    assert found is not None
    assert (found.name, found.project, found.limits) == ("alice", "web", parse_limits("5 USD/month, 60 requests/min"))


def test_the_secret_is_in_the_json_of_the_new_key_and_never_again(home: Path) -> None:
    made = document("add", "alice", "--limit", "1 USD")
    with Keys.open() as keys:
        found = keys.find(made["secret"])
    assert found is not None
    assert made == {
        "id": found.id,
        "name": "alice",
        "project": "",
        "limits": ["1 USD/total"],
        "created": found.created,
        "revoked": None,
        "secret": made["secret"],
    }
    assert made["secret"] not in out("list") + out("list", "--json") + out("list", "--all")


def test_the_list_tells_what_is_used_of_each_limit() -> None:
    made = document("add", "alice", "--project", "web", "--limit", "5 USD/month, 60 requests/min")
    out("limit", "--project", "web", "--limit", "1M tokens/day")
    with Ledger.open() as ledger:
        ledger.reserve(Reservation("r", key=made["id"], project="web", tokens_most=10, micro_most=10))
        ledger.settle("r", 0, Settlement(completion=7000, micro=250_000))
    listed = document("list")
    (row,) = listed["keys"]
    assert (row["id"], row["limits"]) == (made["id"], ["5 USD/month", "60 requests/minute"])
    assert row["used"][0] == "0.25 USD"
    assert listed["projects"] == [{"name": "web", "limits": ["1M tokens/day"], "used": ["7k tokens"]}]
    shown = out("list")
    assert "0.25 USD of 5 USD/month" in shown
    assert "7k tokens of 1M tokens/day" in shown
    assert made["id"] in shown


def test_names_are_shown_as_they_are() -> None:
    out("add", "[bold]x[/bold]")
    assert "[bold]x[/bold]" in out("list")


def test_revoking_asks_first_and_ends_the_key() -> None:
    secret = document("add", "alice")["secret"]
    refused = ponder("keys", "revoke", "alice", stdin="n\n")
    assert refused.code == 1
    assert "alice" in document("list")["keys"][0]["name"]
    assert out("revoke", "alice", stdin="y\n").endswith("(alice)\n")
    with Keys.open() as keys:
        assert keys.find(secret) is None
    assert out("list") == "no keys in use\n"
    assert document("list", "--all")["keys"][0]["revoked"].startswith("20")
    assert "revoked" in out("list", "--all")


def test_limits_are_changed_and_taken_away() -> None:
    out("add", "alice")
    assert "10 USD/month" in out("limit", "alice", "--limit", "10 USD/month")
    assert document("list")["keys"][0]["limits"] == ["10 USD/month"]
    assert "no limits" in out("limit", "alice")
    assert document("list")["keys"][0]["limits"] == []
    out("limit", "--project", "web", "-l", "1 USD")
    assert "no limits" in out("limit", "--project", "web")
    assert document("list")["projects"] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["add", "alice", "--limit", "lots"], "'lots' is no limit"),
        (["add", " "], "cannot be the name of a key"),
        (["add", "there"], "there is a key 'there' already"),
        (["revoke", "-y", "nobody"], "there is no key 'nobody'"),
        (["limit"], "of one key or of one project"),
        (["limit", "there", "--project", "web"], "of one key or of one project"),
        (["limit", "there", "-l", "5 USD/year"], "no window that is known"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], told: str) -> None:
    out("add", "there")
    result = ponder("keys", *arguments)
    assert (result.code, result.out) == (2, "")
    assert told in result.err
    assert len(result.err.splitlines()) == 1
    assert [row["name"] for row in document("list")["keys"]] == ["there"]


def test_completion_offers_keys_and_projects(home: Path) -> None:
    out("add", "alice", "--project", "web")
    out("add", "bob")
    out("limit", "--project", "batch", "-l", "1 USD")
    assert _complete_key("") == ["alice", "bob"]
    assert _complete_key("a") == ["alice"]
    assert _complete_project("") == ["batch", "web"]
    for file in home.iterdir():
        file.unlink()
    (home / "ledger.db").write_text("no database at all, and long enough to be looked at" * 20)
    assert _complete_key("") == _complete_project("") == []

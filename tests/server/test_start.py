"""A server in a process of its own: it drains when it is told to end, and says in one line why it cannot begin."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from raw_http import Raw, chat

from ponder.errors import InputError
from ponder.ops.keys import Keys
from ponder.ops.ledger import Ledger
from ponder.server.start import check_bind, loopback

SLOW = {"version": 1, "replies": [{"say": "0123456789", "fault": {"kind": "delay", "every": 1, "seconds": 0.1}}]}
"""Ten tokens and an end, a tenth of a second each."""


class Child:
    """`ponder serve` with a scripted engine."""

    def __init__(self, home: Path, *options: str) -> None:
        script = home / "slow.json"
        script.write_text(json.dumps(SLOW))
        command = [sys.executable, "-m", "ponder.cli", "serve", "-m", f"scripted:{script}", *options]
        self.process = subprocess.Popen(
            command, env={**os.environ, "PONDER_HOME": str(home)}, stderr=subprocess.PIPE, text=True
        )
        self.said = ""

    def listens(self) -> int:
        """The port, once it is there."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                return int(found[1])
        raise AssertionError(f"it ended: {self.said}")

    def ends(self, seconds: float) -> int:
        """Its exit status."""
        _, rest = self.process.communicate(timeout=seconds)
        self.said += rest
        return self.process.returncode


@pytest.fixture
def children() -> Iterator[list[Child]]:
    found: list[Child] = []
    yield found
    for child in found:
        child.process.kill()
        child.process.communicate()


def begun(port: int) -> Raw:
    """A client whose answer is under way."""
    raw = Raw(port)
    raw.ask("POST", "/v1/chat/completions", chat("count", model="scripted", stream=True))
    try:
        raw.until(b'"content":"0"')
    except BaseException:
        raw.reset()
        raise
    return raw


def test_a_server_that_is_told_to_end_lets_the_answers_under_way_end(ponder_home: Path, children: list[Child]) -> None:
    child = Child(ponder_home, "--port", "0", "--drain", "20")
    children.append(child)
    port = child.listens()
    with begun(port) as raw, Raw(port) as other:
        other.ask("GET", "/health")
        assert other.response().status == 200
        child.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        with pytest.raises((ConnectionError, TimeoutError)):
            late(port, other)
        rest = raw.until(b"data: [DONE]\n\n")
        assert b'"content":"9"' in rest
        assert b'"finish_reason":"stop"' in rest
    assert child.ends(10) == 0
    assert "Traceback" not in child.said
    with Ledger.open(ponder_home / "ledger.db") as ledger:
        assert [(entry.state, entry.completion) for entry in ledger.entries()] == [("done", 11)]


def late(port: int, kept: Raw) -> None:
    """A request after the signal is refused, over a new connection as over a kept one."""
    kept.ask("POST", "/v1/chat/completions", chat("count", model="scripted"))
    response = kept.response()
    assert response.status == 503
    Raw(port, timeout=1)


def test_what_does_not_end_in_time_is_ended(ponder_home: Path, children: list[Child]) -> None:
    child = Child(ponder_home, "--port", "0", "--drain", "0.3")
    children.append(child)
    with begun(child.listens()) as raw:
        child.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert b'"content":"9"' not in raw.until(b"0\r\n\r\n")
    assert child.ends(5) == 0
    assert time.monotonic() - began < 3
    with Ledger.open(ponder_home / "ledger.db") as ledger:
        [entry] = ledger.entries()
        assert entry.state in ("done", "partial")
        assert 1 <= (entry.completion or 0) < 11


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(ponder_home: Path, children: list[Child], first: signal.Signals) -> None:
    child = Child(ponder_home, "--port", "0", "--drain", "60")
    children.append(child)
    with begun(child.listens()):
        began = time.monotonic()
        child.process.send_signal(first)
        time.sleep(0.05)
        child.process.send_signal(signal.SIGTERM)
        child.ends(5)
        assert time.monotonic() - began < 3
    assert child.process.returncode in (0, 130)
    assert "Traceback" not in child.said


def test_a_port_that_is_taken_is_one_line(ponder_home: Path, children: list[Child]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        child = Child(ponder_home, "--port", str(taken.getsockname()[1]))
        children.append(child)
        assert child.ends(30) != 0
    assert re.fullmatch(r"[^\n]*cannot listen on 127\.0\.0\.1:\d+[^\n]*--port[^\n]*\n", child.said)


def test_a_server_without_keys_is_for_this_machine_alone(ponder_home: Path, children: list[Child]) -> None:
    child = Child(ponder_home, "--port", "0", "--host", "0.0.0.0")
    children.append(child)
    assert child.ends(30) != 0
    assert child.said.count("\n") == 1
    assert "ponder keys add" in child.said
    with Keys.open(ponder_home / "ledger.db") as keys:
        keys.add("someone")
    with pytest.raises(InputError, match="without keys"):
        check_bind("0.0.0.0", keys=False)
    check_bind("0.0.0.0", keys=True)


def test_kill_nine_leaves_nothing_uncharged(ponder_home: Path, children: list[Child]) -> None:
    child = Child(ponder_home, "--port", "0")
    children.append(child)
    with begun(child.listens()):
        child.process.kill()
        child.process.wait(10)
    with Ledger.open(ponder_home / "ledger.db") as ledger:
        [entry] = ledger.entries()
        assert entry.state == "unknown"
        assert ledger.spent().tokens >= 11


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.2", False), ("example.com", False), ("", False),
     ("127.0.0.1.example.com", False)],
)  # fmt: skip
def test_what_is_reached_from_here_alone(host: str, inside: bool) -> None:
    assert loopback(host) is inside

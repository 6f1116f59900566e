"""`ponder serve` under faults, and its books afterwards against what the upstream generated.

    python recipes/serving/faults.py [--requests 10000] [--clients 64] [--kills 3]

Clients ask over raw sockets; some leave at once, in the middle or read slowly; some name a fault that the upstream
then has: it hangs, stalls, resets, sends what is no HTTP, no JSON or no end, refuses, or takes its time. The server is
killed with SIGKILL and started again so many times. Then it has to hold that

- every client got a whole answer, or a clear error, or the end of its connection, before its deadline;
- of each answer that is booked as done the ledger has exactly the tokens that the upstream generated; of one that was
  cut no more than those; of one that nobody could count the worst case, which is no less;
- every request that the upstream saw is in the ledger;
- no key spent more than its limit by more than one reservation;
- the queue never held more than it may, and who found it full was told when to come back;
- the memory of the server is flat in the second half of a long run, where it was not killed.

Prints what it found and one line of JSON last; its status is 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ponder.ops.keys import Key, Keys
from ponder.ops.ledger import Ledger
from ponder.ops.limits import parse_limits

MOCK = Path(__file__).parents[2] / "benchmarks" / "mock_upstream.py"
DEADLINE = 20.0
"""Seconds in which every request has to have ended, one way or another."""
FIRST, SILENCE = 2.0, 1.0
"""The server's patience with an upstream."""
FAULTS = ("hang", "stall", "garbage", "nonsense", "die", "drop", "slow", "busy", "broken", "page", "endless")
RUNNING, WAITING = 24, 24
GROWTH = 1.15
"""What the most memory in the second half of a long run without kills may be over the most in the first. Lines without
an end are read up to a bound, so that memory goes up with the most of them that come at once, and then no more."""


@dataclass
class Outcome:
    """What became of one request. status: 0 where the connection ended."""

    name: str
    tight: bool
    fault: str
    how: str
    status: int = 0
    id: str = ""
    whole: bool = False
    retry_after: str = ""
    error: str = ""
    seconds: float = 0.0


@dataclass
class Findings:
    """What does not hold."""

    broken: list[str] = field(default_factory=list)

    def check(self, holds: bool, what: str) -> None:
        """Notes what does not."""
        if not holds:
            self.broken.append(what)


class Gateway:
    """The server in a process of its own, that may be killed."""

    def __init__(self, folder: Path, upstream: str) -> None:
        self.home, self._folder = folder / "home", folder
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = int(found.getsockname()[1])
        config = folder / "serve.toml"
        config.write_text(
            f"[server]\nrunning = {RUNNING}\nwaiting = {WAITING}\n\n"
            f'[[upstream]]\nname = "mock"\nurl = "{upstream}/v1"\n'
            f'models = ["mock"]\ntimeouts = {{ first = {FIRST}, silence = {SILENCE} }}\n'
            "breaker = { failures = 1000000, rate = 1.0, window = 10000 }\n"
            "retries = { attempts = 2, patience = 0.1 }\n",
            encoding="utf-8",
        )
        self._command = [sys.executable, "-m", "ponder.cli", "serve", "--config", str(config), "--keys"]
        self._command += ["--port", str(self.port), "--no-store"]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        with (self._folder / "server.log").open("ab") as log:
            environment = {**os.environ, "PONDER_HOME": str(self.home)}
            self.process = subprocess.Popen(self._command, env=environment, stderr=log)
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                return
            time.sleep(0.05)
        raise SystemExit(f"the server did not come up: {self.log[-2000:]}")

    def memory(self) -> float:
        """MiB that it holds now."""
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    def end(self, sign: signal.Signals) -> int:
        """Its exit status."""
        assert self.process is not None
        self.process.send_signal(sign)
        return self.process.wait(30)

    @property
    def log(self) -> str:
        """What it said."""
        return (self._folder / "server.log").read_text(errors="replace")


# ---------------------------------------------------------------- clients


async def ask(port: int, key: str, outcome: Outcome, stream: bool) -> None:
    """One request; what became of it is put into `outcome`."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(DEADLINE):
            await _asked(port, key, outcome, stream)
    except TimeoutError:
        outcome.error = "hung"
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        outcome.error = f"connection: {type(error).__name__}"
    outcome.seconds = time.monotonic() - began


async def _asked(port: int, key: str, outcome: Outcome, stream: bool) -> None:
    fault = f" fault:{outcome.fault}" if outcome.fault else ""
    messages = [{"role": "user", "content": f"#{outcome.name}{fault}"}]
    body = json.dumps({"model": "mock", "messages": messages, "stream": stream, "max_tokens": 8}).encode()
    lines = f"host: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + body)
        if outcome.how == "leaves at once":
            return
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        outcome.status = int(head.split()[1])
        headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in head.split("\r\n")[1:])}
        outcome.id, outcome.retry_after = headers.get("x-request-id", ""), headers.get("retry-after", "")
        if outcome.how == "leaves in the middle":
            await reader.read(10)
            return
        rest = b""
        while data := await reader.read(64 if outcome.how == "reads slowly" else 65536):
            rest += data
            if outcome.how == "reads slowly":
                await asyncio.sleep(0.005)
        done = b"data: [DONE]" in rest if stream else b'"finish_reason":"stop"' in rest
        outcome.whole = outcome.status == 200 and done and b'"error"' not in rest
        if not outcome.whole:
            found = re.search(rb'"message":"([^"]*)"', rest)
            outcome.error = found[1].decode() if found else ("cut" if outcome.status == 200 else "")
    finally:
        writer.transport.abort()


async def clients(
    port: int, keys: Mapping[bool, str], count: int, many: int, tick: Any, prefix: str = "n"
) -> list[Outcome]:
    """`many` clients at once, `count` requests in all. tick: called with the number of each that ends."""
    chance, outcomes, numbers = random.Random(3), list[Outcome](), iter(range(count))

    async def one() -> None:
        for number in numbers:
            draw = chance.random()
            how = "leaves at once" if draw < 0.05 else "leaves in the middle" if draw < 0.12 else "stays"
            how = "reads slowly" if draw > 0.95 else how
            fault = chance.choice(FAULTS) if chance.random() < 0.12 else ""
            outcome = Outcome(f"{prefix}{number}", chance.random() < 0.1, fault, how)
            outcomes.append(outcome)
            await ask(port, keys[outcome.tight], outcome, chance.random() < 0.5)
            if outcome.status in (0, 503):
                await asyncio.sleep(0.05)
            await tick(len(outcomes))

    await asyncio.gather(*(one() for _ in range(many)))
    return outcomes


# ---------------------------------------------------------------- what has to hold


def judged(
    outcomes: list[Outcome], counts: Mapping[str, Mapping[str, int]], gateway: Gateway, tight: Key, killed: bool
) -> tuple[Findings, dict[str, Any]]:
    """What does not hold, and figures."""
    found = Findings()
    with Ledger.open(gateway.home / "ledger.db") as ledger:
        ledger.recover()
        entries = {entry.request: entry for entry in ledger.entries()}
        spent, limit = ledger.spent(tight.id, "day").tokens, tight.limits[0].amount
    for outcome in outcomes:
        made = counts.get(outcome.name, {})
        entry = entries.get(outcome.id)
        found.check(outcome.error != "hung", f"{outcome} hung")
        found.check(
            outcome.status < 400 or outcome.how != "stays" or bool(outcome.error),
            f"{outcome} has an error without a word",
        )
        found.check(outcome.status not in (429, 503) or bool(outcome.retry_after), f"{outcome} has no Retry-After")
        if outcome.how == "stays" and not outcome.fault and not killed:
            clear = outcome.whole or outcome.status in (429, 503)
            found.check(clear, f"{outcome} is neither an answer nor a refusal")
        if not outcome.id or entry is None:
            found.check(not outcome.whole, f"{outcome} was answered and is not in the ledger")
            continue
        if outcome.whole:
            exact = (entry.state, entry.completion) == ("done", made.get("sent", 0))
            found.check(exact, f"{outcome}: booked {entry.state} {entry.completion}, generated {made}")
        elif entry.state == "void":
            found.check(made.get("sent", 0) == 0, f"{outcome}: nothing charged, generated {made}")
        elif entry.state == "unknown":
            found.check(entry.tokens_most >= made.get("sent", 0), f"{outcome}: {entry.tokens_most} put aside, {made}")
        else:
            found.check(entry.completion <= made.get("sent", 0), f"{outcome}: booked {entry.completion}, {made}")
    asked = sum(count["asked"] for count in counts.values())
    sent_entries = sum(entry.state != "void" for entry in entries.values())
    voided = sum(entry.state == "void" for entry in entries.values())
    found.check(sent_entries + voided >= len(counts), f"{len(counts)} reached the upstream, {len(entries)} are booked")
    generated = sum(count["sent"] for count in counts.values())
    charged = sum(e.tokens_most if e.state in ("unknown", "reserved") else e.completion for e in entries.values())
    most = max((entry.tokens_most for entry in entries.values()), default=0)
    found.check(spent <= limit + most, f"a key of {limit} tokens spent {spent}")
    figures = {
        "requests": len(outcomes),
        "whole": sum(outcome.whole for outcome in outcomes),
        "statuses": dict(Counter(str(outcome.status) for outcome in outcomes)),
        "reached_upstream": asked,
        "booked": dict(Counter(entry.state for entry in entries.values())),
        "generated": generated,
        "charged": charged,
        "tight_key": {"limit": limit, "spent": spent},
        "slowest_s": round(max(outcome.seconds for outcome in outcomes), 2),
    }
    return found, figures


async def run(asked: argparse.Namespace, folder: Path) -> tuple[Findings, dict[str, Any]]:
    """All of it."""
    mock, url = _upstream()
    gateway = Gateway(folder, url)
    gateway.home.mkdir(parents=True)
    with Keys.open(gateway.home / "ledger.db") as keys:
        _, wide = keys.add("wide", limits=parse_limits("1000000000 tokens/day"))
        key, tight = keys.add("tight", limits=parse_limits(f"{max(400, asked.requests)} tokens/day"))
    secrets = {False: wide, True: tight}
    queue: list[tuple[int, int]] = []
    kills = [asked.requests * (each + 1) // (asked.kills + 1) for each in range(asked.kills)]
    killing, memory = asyncio.Lock(), list[float]()

    async def tick(number: int) -> None:
        async with killing:
            if number >= len(memory) * asked.requests / 10:
                memory.append(gateway.memory())
            if kills and number >= kills[0]:
                kills.pop(0)
                await asyncio.to_thread(gateway.end, signal.SIGKILL)
                await asyncio.to_thread(gateway.start)

    async def look() -> None:
        while True:
            await asyncio.sleep(0.1)
            with suppress(OSError, ValueError):
                state = await asyncio.to_thread(_ready, gateway.port)
                queue.append((state["running"], state["waiting"]))

    try:
        gateway.start()
        looking = asyncio.create_task(look())
        warm = await clients(gateway.port, {False: wide, True: wide}, min(300, asked.requests), 16, _nothing, "w")
        memory.append(gateway.memory())
        began = time.monotonic()
        outcomes = await clients(gateway.port, secrets, asked.requests, asked.clients, tick)
        seconds = time.monotonic() - began
        await asyncio.sleep(SILENCE + FIRST + 0.5)
        memory.append(gateway.memory())
        looking.cancel()
        last = await asyncio.to_thread(_ready, gateway.port)
        counts = await asyncio.to_thread(_got, f"{url}/counts")
        status = await asyncio.to_thread(gateway.end, signal.SIGTERM)
    finally:
        mock.kill()
        mock.communicate()
        if gateway.process is not None:
            gateway.process.kill()
    found, figures = judged([*warm, *outcomes], counts, gateway, key, asked.kills > 0)
    found.check(status == 0, f"the server ended with {status}")
    found.check("Traceback" not in gateway.log, f"the server failed: {gateway.log[-1500:]}")
    found.check(last["running"] == last["waiting"] == 0, f"something is still at work: {last}")
    most = [max((each[place] for each in queue), default=0) for place in (0, 1)]
    found.check(most[0] <= RUNNING and most[1] <= WAITING, f"the queue held {most}")
    half = len(memory) // 2
    flat = max(memory[half:]) <= max(memory[:half]) * GROWTH
    found.check(flat or asked.kills > 0 or asked.requests < 5000, f"memory grew: {memory}")
    figures |= {"seconds": round(seconds, 1), "memory_MiB": [round(each, 1) for each in memory], "queue": most}
    return found, figures


async def _nothing(number: int) -> None:
    pass


def _upstream() -> tuple[subprocess.Popen[str], str]:
    mock = subprocess.Popen([sys.executable, str(MOCK)], stdout=subprocess.PIPE, text=True)
    assert mock.stdout is not None
    return mock, mock.stdout.readline().strip()


def _ready(port: int) -> dict[str, Any]:
    return _got(f"http://127.0.0.1:{port}/ready")


def _got(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=5) as reply:
        found: dict[str, Any] = json.load(reply)
        return found


def main() -> int:
    """Runs it and says what does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--kills", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found, figures = asyncio.run(run(asked, Path(name)))
    for line in found.broken[:20]:
        print("DOES NOT HOLD:", line)
    print(json.dumps({"recipe": "serving/faults", "kills": asked.kills, "broken": len(found.broken), **figures}))
    return 1 if found.broken else 0


if __name__ == "__main__":
    sys.exit(main())

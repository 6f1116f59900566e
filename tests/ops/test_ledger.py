"""The ledger: no limit is ever exceeded, nothing is charged twice, and nothing is lost, whatever happens."""

from __future__ import annotations

import dataclasses
import itertools
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ponder.errors import InputError, StoreError
from ponder.ops.ledger import SOON, Ledger
from ponder.ops.ledger_values import Reservation, Settlement, Spent
from ponder.ops.limits import WINDOWS, Limit, LimitReached, NoPrice, parse_limits, span_of

NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC).timestamp()


class Clock:
    """The time that it is told to be."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.db", clock) as opened:
        yield opened


def asked(request: str = "r1", limits: str = "", project_limits: str = "", **rest: Any) -> Reservation:
    """A reservation of 1000 tokens and 100 micro-dollars by the key k1, unless told otherwise."""
    return Reservation(
        request,
        limits=parse_limits(limits),
        project_limits=parse_limits(project_limits),
        **({"key": "k1", "model": "toy", "tokens_most": 1000, "micro_most": 100} | rest),
    )


def raw(path: Path, query: str, *values: Any) -> list[Any]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(query, values).fetchall()


def check_sums(path: Path) -> None:
    """What counts against limits is what the entries come to, for each key and project, minute and day."""
    expected: dict[tuple[str, int, int], list[int]] = {}
    for key, project, created, *charged in raw(
        path, "SELECT key, project, created, charged_requests, charged_tokens, charged_micro FROM entries"
    ):
        second = created // 1000
        for scope, width in itertools.product(
            [f"key:{key}", *([f"project:{project}"] if project else [])], (60, 86_400)
        ):
            sums = expected.setdefault((scope, width, second - second % width), [0, 0, 0])
            sums[:] = [a + b for a, b in zip(sums, charged, strict=True)]
    found = {tuple(row[:3]): list(row[3:]) for row in raw(path, "SELECT * FROM used")}
    assert found == expected


# ---------------------------------------------------------------- reserve, settle, void


def test_what_was_used_takes_the_place_of_what_was_reserved(ledger: Ledger, clock: Clock) -> None:
    ledger.reserve(asked(project="web", backend="up", strategy="vote(8)", prompt="support@3"))
    assert ledger.spent("k1") == ledger.spent(project="web") == Spent(1, 1000, 100)
    clock.now += 2
    ledger.settle("r1", 0, Settlement(prompt=20, cached=5, completion=70, reasoning=60, micro=9))
    assert ledger.spent("k1", "minute") == ledger.spent(project="web", window="month") == Spent(1, 90, 9)
    (entry,) = ledger.entries()
    assert dataclasses.astuple(entry) == (
        *("r1", 0, 0, NOON, "done", "k1", "web", "toy", "up", "vote(8)", "support@3"),
        *(1000, 100, 1, 90, 9, 20, 5, 70, 60, 9, NOON + 2),
    )
    check_sums(ledger.path)


def test_a_settlement_counts_once(ledger: Ledger) -> None:
    used = Settlement(prompt=20, completion=70, micro=9)
    ledger.reserve(asked())
    ledger.settle("r1", 0, used)
    before = ledger.entries()
    ledger.settle("r1", 0, used)
    assert ledger.entries() == before
    for other in (dataclasses.replace(used, micro=8), dataclasses.replace(used, state="failed")):
        with pytest.raises(StoreError, match="attempt 0 at request r1 was settled with something else, as done"):
            ledger.settle("r1", 0, other)
    with pytest.raises(StoreError, match="settled with something else"):
        ledger.void("r1")
    with pytest.raises(StoreError, match="was never reserved"):
        ledger.settle("r1", 1, used)
    assert ledger.entries() == before
    ledger.reserve(asked("r2"))  # an error of one is none of the next


def test_what_was_not_sent_costs_nothing(ledger: Ledger) -> None:
    ledger.reserve(asked(limits="1 request/day"))
    ledger.void("r1")
    ledger.void("r1")
    assert ledger.spent("k1") == Spent()
    assert ledger.totals() == []
    ledger.reserve(asked("r2", limits="1 request/day"))
    with pytest.raises(StoreError, match="settled with something else, as void"):
        ledger.settle("r1", 0, Settlement(micro=1))
    check_sums(ledger.path)


def test_a_reservation_is_made_once(ledger: Ledger) -> None:
    ledger.reserve(asked())
    ledger.reserve(asked(limits="0 requests/day"))  # the same: it is reserved already, whatever the limits are now
    assert ledger.spent("k1") == Spent(1, 1000, 100)
    with pytest.raises(StoreError, match="in the ledger already and reserved"):
        ledger.reserve(asked(tokens_most=1001))
    ledger.settle("r1", 0, Settlement())
    with pytest.raises(StoreError, match="in the ledger already and done"):
        ledger.reserve(asked())  # to send it again needs a reservation of its own


def test_attempts_and_samples_are_one_request_with_a_cost_each(ledger: Ledger) -> None:
    limits = "1 request/day"
    for attempt, sample in ((0, 0), (0, 1), (1, 0)):
        ledger.reserve(asked(limits=limits, attempt=attempt, sample=sample))
    assert ledger.spent("k1") == Spent(1, 3000, 300)
    with pytest.raises(LimitReached):
        ledger.reserve(asked("r2", limits=limits))
    ledger.settle("r1", 0, Settlement(completion=5, micro=1, state="failed"))
    ledger.settle("r1", 0, Settlement(completion=6, micro=2), sample=1)
    ledger.settle("r1", 1, Settlement(completion=7, micro=3, state="partial"))
    (total,) = ledger.totals()
    assert (total.requests, total.attempts, total.failed, total.completion, total.micro) == (1, 3, 1, 18, 6)
    check_sums(ledger.path)


def test_a_request_counts_as_long_as_any_of_its_attempts_was_sent(ledger: Ledger) -> None:
    ledger.reserve(asked())
    ledger.reserve(asked(attempt=1))
    ledger.void("r1", 0)
    assert ledger.spent("k1") == Spent(1, 1000, 100)


@pytest.mark.parametrize(
    "wrong", [{"prompt": -1}, {"completion": 10**16}, {"micro": -1}, {"state": "void", "completion": 1}]
)
def test_counts_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is no amount|used nothing"):
        Settlement(**wrong)
    with pytest.raises(ValueError, match="is no amount"):
        Reservation("r", tokens_most=-1)


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize("scope", ["limits", "project_limits"])
@pytest.mark.parametrize("limit", ["0.0003 USD/month", "3 requests/minute", "3k tokens/hour", "3000 tokens/total"])
def test_a_limit_is_used_up_and_not_exceeded(ledger: Ledger, scope: str, limit: str) -> None:
    for number in range(3):
        ledger.reserve(asked(f"r{number}", project="web", **{scope: limit}))
    with pytest.raises(LimitReached) as caught:
        ledger.reserve(asked("r3", project="web", **{scope: limit}))
    assert caught.value.limit == parse_limits(limit)[0]
    assert ("key k1" if scope == "limits" else "project web") in caught.value.problem
    assert str(parse_limits(limit)[0]) in caught.value.problem
    assert "\n" not in str(caught.value)
    assert len(ledger.entries()) == 3
    check_sums(ledger.path)


def test_all_limits_hold_not_only_the_first(ledger: Ledger) -> None:
    limits = "1 USD/month, 5 requests/minute, 2k tokens/day"
    ledger.reserve(asked("r0", limits=limits))
    ledger.reserve(asked("r1", limits=limits))
    with pytest.raises(LimitReached, match="2k tokens/day"):
        ledger.reserve(asked("r2", limits=limits))
    shared = {"project": "web", "limits": "1 USD", "project_limits": "2 requests/hour"}
    ledger.reserve(asked("p0", **shared))
    ledger.reserve(asked("p1", **shared))
    with pytest.raises(LimitReached, match="web may use 2 requests/hour"):
        ledger.reserve(asked("p2", **shared))


def test_keys_share_the_limits_of_their_project_and_nothing_else(ledger: Ledger) -> None:
    for key in ("k1", "k2"):
        ledger.reserve(
            asked(f"r-{key}", key=key, project="web", limits="1 request/day", project_limits="2 requests/day")
        )
    with pytest.raises(LimitReached, match="project web"):
        ledger.reserve(asked("r3", key="k3", project="web", project_limits="2 requests/day"))
    ledger.reserve(asked("r4", key="web", project="", limits="1 request/day"))  # a key of a project's name is none


def test_a_limit_in_dollars_refuses_what_has_no_price_by_name(ledger: Ledger) -> None:
    with pytest.raises(NoPrice, match="no price is known for toy") as caught:
        ledger.reserve(asked(limits="60 requests/minute, 5 USD/month", micro_most=None))
    assert "prices.toml" in caught.value.mend
    assert ledger.entries() == []
    ledger.reserve(asked(limits="60 requests/minute", micro_most=None))
    ledger.settle("r1", 0, Settlement(completion=5))
    (total,) = ledger.totals()
    assert (total.unpriced, total.micro) == (1, 0)
    assert ledger.entries()[0].micro is None


def test_a_cost_that_turns_out_unknown_stays_charged_as_reserved(ledger: Ledger) -> None:
    ledger.reserve(asked(limits="150 USD"))
    ledger.settle("r1", 0, Settlement(completion=5))
    assert ledger.spent("k1") == Spent(1, 5, 100)
    (total,) = ledger.totals()
    assert (total.unpriced, total.micro) == (1, 0)


def test_what_costs_more_than_was_reserved_is_charged_in_full(ledger: Ledger) -> None:
    ledger.reserve(asked(limits="0.0002 USD"))
    ledger.settle("r1", 0, Settlement(completion=5000, micro=170))
    assert ledger.spent("k1") == Spent(1, 5000, 170)
    with pytest.raises(LimitReached):
        ledger.reserve(asked("r2", limits="0.0002 USD"))


def test_when_to_ask_again(ledger: Ledger, clock: Clock) -> None:
    clock.now = NOON + 10.5

    def after(request: str, limits: str, **rest: Any) -> float | None:
        with pytest.raises(LimitReached) as caught:
            ledger.reserve(asked(request, limits, **rest))
        return caught.value.retry_after

    ledger.reserve(asked())
    assert after("a", "1999 tokens/minute") == SOON  # the other one may use less
    assert after("a", "1 request/minute") == 49.5  # but is a request whatever it uses
    assert after("a", "999 tokens/minute") is None  # never
    ledger.settle("r1", 0, Settlement(completion=1000, micro=100))
    assert after("a", "1999 tokens/minute") == 49.5
    assert after("a", "1999 tokens/hour") == 3600 - 10.5
    assert after("a", "0.000199 USD/day") == 43_200 - 10.5
    assert after("a", "0.000199 USD/month") == 7.5 * 86_400 - 10.5
    assert after("a", "0.000199 USD/total") is None
    clock.now += 49.5
    ledger.reserve(asked("a", "1999 tokens/minute, 1 request/minute"))


def test_windows_begin_anew_and_keep_what_came_before(ledger: Ledger, clock: Clock) -> None:
    """litellm 34733: what is settled as a window ends is not overwritten, for nothing is reset."""
    clock.now = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC).timestamp()
    for number in range(3):
        ledger.reserve(asked(f"r{number}", limits="3 requests/month"))
    clock.now += 2  # December
    for number in range(3):
        ledger.reserve(asked(f"s{number}", limits="3 requests/month"))
        ledger.settle(f"r{number}", 0, Settlement(completion=10, micro=7))  # of November
    assert ledger.spent("k1", "month") == Spent(3, 3000, 300)
    assert ledger.spent("k1") == Spent(6, 3030, 321)
    clock.now -= 2
    assert ledger.spent("k1", "month") == Spent(3, 30, 21)
    check_sums(ledger.path)


def test_a_clock_that_goes_backwards_gives_nothing_away(ledger: Ledger, clock: Clock) -> None:
    limits = "2 requests/hour, 3 requests/day, 4 requests/total"
    for number in range(2):
        ledger.reserve(asked(f"r{number}", limits=limits))
    clock.now -= 3 * 3600
    ledger.settle("r0", 0, Settlement(completion=1, micro=1))
    ledger.reserve(asked("r2", limits=limits))
    for shift, limit in ((0, "day"), (3 * 3600, "hour"), (0, "day")):
        clock.now += shift
        with pytest.raises(LimitReached, match=limit) as caught:
            ledger.reserve(asked("r3", limits=limits))
        assert caught.value.retry_after is not None
        assert 0 < caught.value.retry_after <= 86_400
        clock.now -= shift
    clock.now -= 86_400
    ledger.reserve(asked("r3", limits=limits))
    with pytest.raises(LimitReached, match="total"):
        ledger.reserve(asked("r4", limits=limits))
    check_sums(ledger.path)


# ---------------------------------------------------------------- against a slow reference


class Reference:
    """The same in the simplest way: a list of all attempts, which every question goes through."""

    def __init__(self) -> None:
        self.attempts: dict[tuple[str, int], dict[str, Any]] = {}

    def spent(self, kind: str, name: str, limit: Limit, now: float) -> int:
        span = span_of(limit.window, now)
        of = {"USD": "micro", "tokens": "tokens", "requests": "requests"}[limit.unit]
        return sum(
            each[of]
            for each in self.attempts.values()
            if each[kind] == name and (span.start is None or span.start <= each["created"] < (span.end or 0))
        )

    def first(self, request: str, but: int) -> int:
        others = [
            each
            for (other, attempt), each in self.attempts.items()
            if other == request and attempt != but and each["state"] != "void"
        ]
        return int(not others)

    def allows(self, wanted: Reservation, now: float) -> bool:
        more = {
            "USD": wanted.micro_most or 0,
            "tokens": wanted.tokens_most,
            "requests": self.first(wanted.request, wanted.attempt),
        }
        scopes = [("key", wanted.key, wanted.limits)]
        if wanted.project:
            scopes.append(("project", wanted.project, wanted.project_limits))
        return all(
            self.spent(kind, name, limit, now) + more[limit.unit] <= limit.amount
            for kind, name, limits in scopes
            for limit in limits
        )

    def reserve(self, wanted: Reservation, now: float) -> None:
        self.attempts[wanted.request, wanted.attempt] = {
            "key": wanted.key,
            "project": wanted.project,
            "created": int(now),
            "state": "reserved",
            "requests": self.first(wanted.request, wanted.attempt),
            "tokens": wanted.tokens_most,
            "micro": wanted.micro_most,
        }

    def settle(self, request: str, attempt: int, used: Settlement) -> None:
        each = self.attempts[request, attempt]
        if used.state == "void":
            each["requests"] -= each["requests"] * self.first(request, attempt)
            each["tokens"] = each["micro"] = 0
        else:
            each["tokens"] = used.prompt + used.completion
            each["micro"] = each["micro"] if used.micro is None else used.micro
        each["state"] = used.state


LIMITS = st.lists(
    st.one_of(
        st.builds(Limit, st.integers(0, 400), st.just("USD"), st.sampled_from(WINDOWS)),
        st.builds(Limit, st.integers(0, 6), st.just("requests"), st.sampled_from(WINDOWS)),
        st.builds(Limit, st.integers(0, 400), st.just("tokens"), st.sampled_from(WINDOWS)),
    ),
    max_size=3,
).map(tuple)
KEYS = st.sampled_from(["k1", "k2"])


class Machine(RuleBasedStateMachine):
    """Several ledgers on one file, and a clock that may jump, do what the reference does: no more and no less."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.db"
        self.clock = Clock()
        self.reference = Reference()
        self.ledgers = [Ledger.open(self.path, self.clock) for _ in range(2)]
        self.fresh = itertools.count()

    @initialize(key=LIMITS, project=LIMITS)
    def limit(self, key: tuple[Limit, ...], project: tuple[Limit, ...]) -> None:
        self.limits, self.project_limits = key, project

    @rule(
        which=st.integers(0, 1),
        again=st.integers(0, 3),
        key=KEYS,
        project=st.sampled_from(["", "web"]),
        tokens=st.integers(0, 150),
        micro=st.integers(0, 150),
    )
    def reserve(self, which: int, again: int, key: str, project: str, tokens: int, micro: int) -> None:
        request, attempt = f"r{next(self.fresh)}", 0
        open_ones = [each for each in self.reference.attempts if again == 0]
        if open_ones:  # another attempt at a request, by whoever asked
            request = open_ones[-1][0]
            attempt = 1 + max(number for other, number in self.reference.attempts if other == request)
            first = self.reference.attempts[request, 0]
            key, project = first["key"], first["project"]
        wanted = Reservation(
            request,
            attempt,
            key=key,
            project=project,
            tokens_most=tokens,
            micro_most=micro,
            limits=self.limits,
            project_limits=self.project_limits,
        )
        if self.reference.allows(wanted, self.clock.now):
            self.ledgers[which].reserve(wanted)
            self.reference.reserve(wanted, self.clock.now)
        elif (request, attempt) not in self.reference.attempts:
            with pytest.raises(LimitReached) as caught:
                self.ledgers[which].reserve(wanted)
            assert caught.value.retry_after is None or caught.value.retry_after > 0

    @rule(
        which=st.integers(0, 1),
        place=st.integers(0, 10),
        share=st.floats(0, 1),
        state=st.sampled_from(["done", "partial", "failed", "void"]),
        priced=st.booleans(),
    )
    def settle(self, which: int, place: int, share: float, state: Any, priced: bool) -> None:
        waiting = [name for name, each in self.reference.attempts.items() if each["state"] == "reserved"]
        if not waiting:
            return
        name = waiting[place % len(waiting)]
        each = self.reference.attempts[name]
        tokens, micro = int(each["tokens"] * share), int(each["micro"] * share)
        if state == "void":
            used = Settlement(state="void")
        else:
            used = Settlement(tokens // 2, 0, tokens - tokens // 2, 0, micro if priced else None, state)
        self.ledgers[which].settle(*name, used)
        self.ledgers[1 - which].settle(*name, used)  # told twice, by two: once
        self.reference.settle(*name, used)

    @rule(seconds=st.sampled_from([0.3, 20, 61, 3_700, 90_000, 3_000_000, -0.4, -30, -4_000, -90_000]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(which=st.integers(0, 1))
    def reopen(self, which: int) -> None:
        self.ledgers[which].close()
        self.ledgers[which] = Ledger.open(self.path, self.clock)

    @invariant()
    def they_agree(self) -> None:
        for window in WINDOWS:
            for kind, name in (("key", "k1"), ("key", "k2"), ("project", "web")):
                expected = [
                    self.reference.spent(kind, name, Limit(0, unit, window), self.clock.now)
                    for unit in ("requests", "tokens", "USD")
                ]
                found = self.ledgers[0].spent(
                    name if kind == "key" else "", window, project="web" * (kind == "project")
                )
                assert dataclasses.astuple(found) == tuple(expected)

    def teardown(self) -> None:
        check_sums(self.path)
        for ledger in self.ledgers:
            ledger.close()
        self.folder.cleanup()


Machine.TestCase.settings = settings(max_examples=50, stateful_step_count=25)
TestAgainstTheReference = Machine.TestCase


# ---------------------------------------------------------------- several processes, killed ones

CHILD = """
    import random, sys, time
    from ponder.ops.ledger import Ledger
    from ponder.ops.ledger_values import Reservation, Settlement
    from ponder.ops.limits import LimitReached, parse_limits

    path, name, count, limits = sys.argv[1], sys.argv[2], int(sys.argv[3]), parse_limits(sys.argv[4])
    draw = random.Random(name)
    print("ready", flush=True)
    sys.stdin.readline()
    with Ledger.open(path) as ledger:
        for number in range(count):
            request = f"{name}-{number}"
            wanted = Reservation(
                request, key="k1", project="web", model="toy", tokens_most=100, micro_most=50,
                limits=limits, project_limits=limits,
            )
            try:
                ledger.reserve(wanted)
            except LimitReached:
                print("refused", flush=True)
                continue
            print("reserved", request, flush=True)
            used = Settlement(completion=draw.randrange(101), micro=draw.randrange(51))
            ledger.settle(request, 0, used)
            print("settled", request, used.completion, used.micro, flush=True)
"""


def child(path: Path, name: str, count: int, limits: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(path), name, str(count), limits],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def test_four_processes_on_one_key_never_overspend_together(tmp_path: Path) -> None:
    """litellm 34732: requests at the same time do not pass a limit one by one that they exceed together."""
    path = tmp_path / "ledger.db"
    children = [child(path, f"p{number}", 100, "0.004 USD/total, 1000 requests/total") for number in range(4)]
    outputs = [process.communicate("go\n", timeout=90)[0].splitlines() for process in _started(children)]
    assert all(process.returncode == 0 for process in children)
    settled = [line.split() for lines in outputs for line in lines if line.startswith("settled")]
    refused = sum(line == "refused" for lines in outputs for line in lines)
    assert len(settled) + refused == 400
    assert refused > 0
    spent = sum(int(micro) for *_, micro in settled)
    with Ledger.open(path) as ledger:
        assert ledger.spent("k1").micro == ledger.spent(project="web").micro == spent <= 4000
        assert spent > 4000 - 50 - 50  # nor was anybody refused who fitted in
        (total,) = ledger.totals("project")
        assert (total.requests, total.micro, total.open, total.unknown) == (len(settled), spent, 0, 0)
    check_sums(path)


def _started(children: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    for process in children:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    return children


def test_a_request_that_is_under_way_counts(ledger: Ledger, tmp_path: Path, clock: Clock) -> None:
    """litellm 34732 without any luck of timing: nothing is settled yet, and the second one is refused already."""
    with Ledger.open(ledger.path, clock) as other:
        ledger.reserve(asked("r1", "0.00015 USD/month"))
        with pytest.raises(LimitReached):
            other.reserve(asked("r2", "0.00015 USD/month"))


def test_what_was_written_is_there_when_the_call_returns(ledger: Ledger, clock: Clock) -> None:
    """litellm 34733: no write is left to a task that may never run."""
    ledger.reserve(asked())
    assert raw(ledger.path, "SELECT state FROM entries") == [("reserved",)]
    ledger.settle("r1", 0, Settlement(completion=1, micro=1))
    assert raw(ledger.path, "SELECT state, micro FROM entries") == [("done", 1)]


def test_opening_it_many_times_at_once_inflates_nothing(ledger: Ledger, clock: Clock) -> None:
    """litellm 28247: sums are not added again by each process that finds them missing or the owner gone."""
    for number in range(5):
        ledger.reserve(asked(f"r{number}"))
    ledger.settle("r0", 0, Settlement(completion=10, micro=10))
    raw(ledger.path, "UPDATE owners SET started = 'another process of this id'")
    threads = [threading.Thread(target=lambda: Ledger.open(ledger.path).close()) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.spent("k1") == Spent(5, 4010, 410)
    assert {each.state for each in ledger.entries()} == {"done", "unknown"}
    check_sums(ledger.path)


def test_a_key_with_room_is_never_refused(ledger: Ledger) -> None:
    """litellm 36926: under sustained load what counts is what was spent, not that and the same once more."""
    limits = "0.0101 USD/month"
    for number in range(1000):
        ledger.reserve(asked(f"r{number}", limits))
        ledger.settle(f"r{number}", 0, Settlement(completion=10, micro=10))
    assert ledger.spent("k1", "month").micro == 10_000
    with pytest.raises(LimitReached, match=r"has 0\.0001 USD left"):
        ledger.reserve(asked("last", limits, micro_most=101))
    ledger.reserve(asked("last", limits))


def test_kill_9_loses_nothing_and_gives_nothing_away(tmp_path: Path) -> None:
    path, draw = tmp_path / "ledger.db", random.Random(5)
    reserved: set[str] = set()
    settled: dict[str, tuple[int, int]] = {}
    for turn in range(6):
        process = child(path, f"t{turn}", 10**6)
        (process,) = _started([process])
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(draw.randrange(1, 40))]
        time.sleep(draw.random() / 100)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        assert process.communicate() == ("", None)
        assert process.returncode == -signal.SIGKILL
        for line in lines:
            words = line.split()
            if words[0] == "reserved" and len(words) == 2:
                reserved.add(words[1])
            elif words[0] == "settled" and len(words) == 4:
                settled[words[1]] = (int(words[2]), int(words[3]))
        with Ledger.open(path) as ledger:
            entries = {each.request: each for each in ledger.entries()}
            assert {each.state for each in entries.values()} <= {"done", "unknown"}
            # What was told is there; one more of each turn may have been written and not told any more.
            assert reserved <= entries.keys()
            assert len(entries) - len(reserved) <= turn + 1
            for request, (completion, micro) in settled.items():
                each = entries[request]
                assert (each.state, each.completion, each.micro) == ("done", completion, micro)
            unknown = [each for each in entries.values() if each.state == "unknown"]
            assert len(unknown) <= turn + 1
            assert all((each.charged_tokens, each.charged_micro) == (100, 50) for each in unknown)
            assert sum(each.unknown_micro for each in ledger.totals()) == 50 * len(unknown)
        check_sums(path)
    assert raw(path, "PRAGMA integrity_check") == [("ok",)]


def test_what_was_given_up_is_settled_by_who_knows_better(ledger: Ledger, clock: Clock) -> None:
    ledger.reserve(asked())
    raw(ledger.path, "UPDATE owners SET started = 'gone'")
    with Ledger.open(ledger.path, clock) as other:
        assert other.entries()[0].state == "unknown"
        assert other.recover() == 0
        assert other.spent("k1") == Spent(1, 1000, 100)
        other.settle("r1", 0, Settlement(completion=10, micro=3))
        assert other.spent("k1") == Spent(1, 10, 3)
    check_sums(ledger.path)


def test_what_nobody_can_count_stays_charged(ledger: Ledger) -> None:
    ledger.reserve(asked())
    ledger.reserve(asked("r2"))
    ledger.settle("r2", 0, Settlement(completion=1, micro=1))
    ledger.give_up("r1")
    ledger.give_up("r2")
    assert {each.request: each.state for each in ledger.entries()} == {"r1": "unknown", "r2": "done"}
    assert ledger.spent("k1") == Spent(2, 1001, 101)
    ledger.settle("r1", 0, Settlement(completion=2, micro=2))
    assert ledger.spent("k1") == Spent(2, 3, 3)
    check_sums(ledger.path)


def test_other_machines_and_living_processes_are_left_alone(ledger: Ledger, clock: Clock) -> None:
    ledger.reserve(asked())
    with Ledger.open(ledger.path, clock) as other:
        assert other.entries()[0].state == "reserved"
        raw(ledger.path, "UPDATE owners SET host = 'elsewhere', started = 'gone'")
        assert other.recover() == 0
        assert other.entries()[0].state == "reserved"


# ---------------------------------------------------------------- a full disk


def full(ledger: Ledger) -> None:
    """No page more than there are, in any transaction."""
    ledger._connection.execute("PRAGMA max_page_count = 1")


def room(ledger: Ledger) -> None:
    ledger._connection.execute("PRAGMA max_page_count = 1000000")


def test_a_full_disk_refuses_in_one_line_and_loses_nothing(ledger: Ledger) -> None:
    ledger.reserve(asked("first"))
    full(ledger)

    def fill() -> None:
        for number in range(1000):
            ledger.reserve(asked(f"r{number}", model="m" * 500))

    with pytest.raises(StoreError, match="cannot be written") as caught:
        fill()
    assert "make room" in caught.value.mend
    assert "\n" not in str(caught.value)
    check_sums(ledger.path)
    written = len(ledger.entries())
    assert ledger.spent("k1").requests == written < 1000
    room(ledger)
    ledger.settle("first", 0, Settlement(completion=1, micro=1))
    fill()
    check_sums(ledger.path)


def test_a_settlement_that_could_not_be_written_is_made_up_for(ledger: Ledger, clock: Clock) -> None:
    ledger.reserve(asked())
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as holder:
        ledger._connection.execute("PRAGMA busy_timeout = 10")
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="held by another process"):
            ledger.settle("r1", 0, Settlement(completion=10, micro=3))
        with pytest.raises(StoreError, match="held by another process"):
            ledger.reserve(asked("r2"))  # nothing new while that is open
        holder.execute("ROLLBACK")
    assert ledger.entries()[0].state == "reserved"
    ledger.reserve(asked("r3"))
    assert {each.request: each.state for each in ledger.entries()} == {"r1": "done", "r3": "reserved"}
    assert ledger.spent("k1") == Spent(2, 1010, 103)


def test_a_file_that_may_not_grow_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    code = """
        import resource, sys
        from ponder.errors import StoreError
        from ponder.ops.ledger import Ledger
        from ponder.ops.ledger_values import Reservation
        ledger = Ledger.open(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        count = 0
        try:
            while True:
                ledger.reserve(Reservation(f"r{count}", key="k", tokens_most=1))
                count += 1
        except StoreError as error:
            print(count, error)
    """
    path = tmp_path / "ledger.db"
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    count, _, line = done.stdout.strip().partition(" ")
    assert "cannot be written" in line
    assert "make room" in line
    with Ledger.open(path) as ledger:
        assert len(ledger.entries(state="unknown")) == ledger.spent("k").requests == int(count) > 0
    check_sums(path)


# ---------------------------------------------------------------- reading


def test_totals_by_each_property(ledger: Ledger, clock: Clock) -> None:
    def used(request: str, micro: int | None, **rest: Any) -> None:
        ledger.reserve(asked(request, **rest))
        ledger.settle(request, 0, Settlement(prompt=10, cached=4, completion=5, reasoning=3, micro=micro))

    used("a", 5, model="small", project="web", strategy="vote(8)", prompt="p@1", backend="one")
    used("b", 7, model="large", key="k2", backend="two")
    clock.now += 86_400
    used("c", 1, model="large", backend="two")
    used("d", None, model="large", backend="two")
    ledger.reserve(asked("e", model="small"))

    def by(what: Any, **rest: Any) -> dict[str, tuple[int, int]]:
        return {total.name: (total.requests, total.micro) for total in ledger.totals(what, **rest)}

    assert list(by("model").items()) == [("large", (3, 8)), ("small", (2, 5))]  # the dearest first
    assert by("key") == {"k1": (4, 6), "k2": (1, 7)}
    assert by("project") == {"web": (1, 5), "": (4, 8)}
    assert by("strategy") == {"vote(8)": (1, 5), "": (4, 8)}
    assert by("prompt") == {"p@1": (1, 5), "": (4, 8)}
    assert by("backend") == {"one": (1, 5), "two": (3, 8), "": (1, 0)}
    assert list(by("day").items()) == [("2026-11-23", (2, 12)), ("2026-11-24", (3, 1))]
    assert by("all") == {"all": (5, 13)}
    assert by("model", since=NOON + 1) == {"large": (2, 1), "small": (1, 0)}
    assert by("model", until=NOON + 86_400) == {"large": (1, 7), "small": (1, 5)}
    assert by("model", since=NOON + 86_401) == {}
    large, small = ledger.totals()
    assert (large.prompt, large.cached, large.completion, large.reasoning, large.unpriced) == (30, 12, 15, 9, 1)
    assert (small.open, small.open_micro, small.attempts) == (1, 100, 2)
    with pytest.raises(InputError, match="by 'colour'"):
        ledger.totals("colour")  # type: ignore[arg-type]


def test_entries_are_found(ledger: Ledger, clock: Clock) -> None:
    for number in range(5):
        ledger.reserve(asked(f"r{number}", key=f"k{number % 2}"))
        clock.now += 1
    ledger.void("r4")
    assert [each.request for each in ledger.entries()] == ["r4", "r3", "r2", "r1", "r0"]
    assert [each.request for each in ledger.entries(limit=2)] == ["r4", "r3"]
    assert [each.request for each in ledger.entries(key="k1")] == ["r3", "r1"]
    assert [each.request for each in ledger.entries(state="void")] == ["r4"]
    assert [each.request for each in ledger.entries(request="r2")] == ["r2"]
    assert [each.request for each in ledger.entries(NOON + 1, NOON + 3)] == ["r2", "r1"]


def test_the_default_place_is_ponder_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PONDER_HOME", str(tmp_path / "home"))
    with Ledger.open() as ledger:
        assert ledger.path == tmp_path / "home" / "ledger.db"


def test_reserving_and_settling_take_less_than_a_millisecond(ledger: Ledger) -> None:
    limits = "5 USD/month, 600000 requests/minute, 100M tokens/day"

    def once(turn: int) -> float:
        wanted = [asked(f"{turn}-{number}", limits, project="web", project_limits=limits) for number in range(200)]
        start = time.perf_counter()
        for each in wanted:
            ledger.reserve(each)
            ledger.settle(each.request, 0, Settlement(completion=5, micro=5))
        return (time.perf_counter() - start) / 200

    assert min(once(turn) for turn in range(5)) < 0.001

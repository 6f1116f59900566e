"""The circuit breaker, with a clock that is turned by hand."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ponder.server.upstream_breaker import Breaker, BreakerSettings


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def made(**settings: float) -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker(BreakerSettings(**settings), clock), clock  # type: ignore[arg-type]


def test_failures_in_a_row_open_it_and_one_success_between_does_not() -> None:
    breaker, _ = made(failures=3, window=100)
    for outcome in (breaker.failed, breaker.failed, breaker.succeeded, breaker.failed, breaker.failed):
        outcome()
    assert breaker.state == "closed"
    breaker.failed()
    assert breaker.state == "open"
    assert not breaker.enter()
    assert breaker.left == pytest.approx(5.0)


def test_a_share_of_the_last_requests_opens_it_once_there_are_enough() -> None:
    breaker, _ = made(failures=100, window=10, rate=0.5)
    for _ in range(4):
        breaker.failed()
        breaker.succeeded()
    assert breaker.state == "closed"
    breaker.succeeded()
    breaker.failed()
    assert breaker.state == "open"


def test_half_open_lets_one_through_and_its_outcome_decides() -> None:
    breaker, clock = made(failures=1, pause=5, longest=12)
    breaker.failed()
    clock.now += 5
    assert breaker.state == "half-open"
    assert breaker.enter()
    assert breaker.state == "open"
    assert not breaker.enter()
    breaker.failed()
    assert breaker.left == pytest.approx(10)  # twice as long as before
    clock.now += 10
    assert breaker.enter()
    breaker.failed()
    assert breaker.left == pytest.approx(12)  # and never longer than this
    clock.now += 12
    assert breaker.enter()
    breaker.abandoned()  # nothing was learned: the next one may try
    assert breaker.enter()
    breaker.succeeded()
    assert breaker.state == "closed"
    breaker.failed()
    assert breaker.left == pytest.approx(5)


def test_what_was_under_way_when_it_opened_changes_nothing() -> None:
    breaker, _ = made(failures=1)
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.state == "open"
    assert breaker.left == pytest.approx(5)


@pytest.mark.parametrize("wrong", [{"failures": 0}, {"rate": 0.0}, {"pause": 9.0, "longest": 3.0}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no breaker"):
        BreakerSettings(**wrong)  # type: ignore[arg-type]


class Machine(RuleBasedStateMachine):
    """Any history: at most one trial at a time, open for as long as it says, never stuck."""

    @initialize(failures=st.integers(1, 4), window=st.integers(1, 8))
    def begin(self, failures: int, window: int) -> None:
        self.clock = Clock()
        self.breaker = Breaker(BreakerSettings(failures, 0.5, window, 5.0, 20.0), self.clock)
        self.failures, self.row, self.trials, self.until = failures, 0, 0, 0.0

    @rule(seconds=st.sampled_from([0.5, 5.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @precondition(lambda self: self.breaker.state == "closed")
    @rule(good=st.booleans())
    def answer(self, good: bool) -> None:
        assert self.breaker.enter()
        self.row = 0 if good else self.row + 1
        (self.breaker.succeeded if good else self.breaker.failed)()
        if self.row >= self.failures:
            assert self.breaker.state == "open"
        if self.breaker.state == "open":
            self.row, self.until = 0, self.clock.now + self.breaker.left

    @precondition(lambda self: self.breaker.state == "half-open")
    @rule(outcome=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def try_it(self, outcome: str) -> None:
        assert self.clock.now >= self.until
        assert self.breaker.enter()
        assert not self.breaker.enter()
        getattr(self.breaker, outcome)()
        expected = {"succeeded": "closed", "failed": "open", "abandoned": "half-open"}
        assert self.breaker.state == expected[outcome]
        if outcome == "failed":
            self.until = self.clock.now + self.breaker.left

    @invariant()
    def opens_for_a_bounded_time(self) -> None:
        if hasattr(self, "breaker"):
            assert 0 <= self.breaker.left <= 20
            assert (self.breaker.state == "open") == (self.breaker.left > 0)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_it_tells_since_when_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    breaker, clock = made(failures=2, pause=5)
    assert (breaker.since, breaker.error) == (1_000, "")
    now[0] = 1_100.0
    breaker.failed("timeout")
    assert (breaker.state, breaker.since, breaker.error) == ("closed", 1_000, "timeout")
    now[0] = 1_200.0
    breaker.failed("upstream_failed")
    assert (breaker.state, breaker.since, breaker.error) == ("open", 1_200, "upstream_failed")
    clock.now += 5
    assert (breaker.state, breaker.since) == ("half-open", 1_205)
    assert breaker.enter()
    now[0] = 1_300.0
    breaker.succeeded()
    assert (breaker.state, breaker.since, breaker.error) == ("closed", 1_300, "upstream_failed")

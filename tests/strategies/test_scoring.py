"""Verifiers under the budget: what scoring takes is set aside and counted, and a verifier that fails ends nothing."""

from __future__ import annotations

import asyncio
import time

import pytest
from drive import Outcome, outcome_of
from hypothesis import given, settings
from hypothesis import strategies as st
from voting import voter

from ponder.chat.model import Model
from ponder.errors import EngineError
from ponder.protocols import Strategy, Verifier, bound, most_tokens
from ponder.strategies.best_of_n import best_of_n
from ponder.strategies.naming import strategy_named
from ponder.strategies.refine import refine
from ponder.strategies.self_consistency import self_consistency
from ponder.types import BestAnswer, Budget, Cost, Question, Sample, SampleFinished, Score, Scored, ask

QUESTION = ask("?")


def last_digit(cost: int = 0, most: int | None = None) -> Verifier:
    """Scores by the last digit of the answer, for `cost` tokens."""

    async def verify(question: Question, sample: Sample) -> Score:
        digits = [each for each in sample.answer if each.isdigit()]
        return Score(float(digits[-1]) if digits else 0.0, "last_digit", cost=Cost(verifier=cost))

    verify.tokens = cost if most is None else most  # type: ignore[attr-defined]
    return verify


def solve(strategy: Strategy, model: Model, **bounds: float) -> Outcome:
    return outcome_of(strategy(QUESTION, model, Budget(**bounds)))  # type: ignore[arg-type]


def best(outcome: Outcome) -> str:
    return [event.answer for event in outcome.events if isinstance(event, BestAnswer)][-1]


def total(outcome: Outcome) -> Cost:
    return sum((e.cost for e in outcome.events if isinstance(e, SampleFinished | Scored)), Cost())


@given(st.integers(4, 700), st.integers(1, 8), st.integers(0, 40), st.sampled_from(["best", "vote", "refine"]))
@settings(max_examples=80, deadline=None)
def test_scoring_never_takes_a_request_over_its_budget(tokens: int, n: int, cost: int, kind: str) -> None:
    verifier = last_digit(cost)
    strategies = {
        "best": best_of_n(n, verifier),
        "vote": self_consistency(n, weight="reward", verifier=verifier),
        "refine": refine(n, verifier, enough=99),
    }
    model = voter("11", "12", "13", "14")
    outcome = solve(strategies[kind], model, tokens=tokens)
    spent = total(outcome)
    assert spent.tokens <= tokens
    assert spent.generated - spent.verifier == model.engine.generated  # type: ignore[attr-defined]
    assert spent.verifier == cost * sum(isinstance(event, Scored) for event in outcome.events)
    assert outcome.error is not None or best(outcome)


def test_a_vote_is_weighed_by_reward() -> None:
    """Two samples say 31, worth 1 each; one says 29, worth 9."""
    model = voter("31", "31", "29")
    assert best(solve(self_consistency(3), model, tokens=3000)) == "The answer is 31."
    rewarded = self_consistency(3, weight="reward", verifier=last_digit())
    assert best(solve(rewarded, voter("31", "31", "29"), tokens=3000)) == "The answer is 29."


def test_without_a_verifier_the_reward_is_checked_arithmetic() -> None:
    outcome = solve(self_consistency(2, weight="reward"), voter("3", "4", thinking="1 + 2 = 3."), tokens=3000)
    assert [event.score.verifier for event in outcome.events if isinstance(event, Scored)] == ["arithmetic_steps"] * 2


@pytest.mark.parametrize("strategy", ["best_of_n(3, verifier='arithmetic_steps')", "refine(2, verifier='choice')"])
def test_a_verifier_is_named_within_the_strategy(strategy: str) -> None:
    verifier = strategy.partition("'")[2].partition("'")[0]

    async def run() -> list[str]:
        question = Question(QUESTION.messages, reference="A")
        events = strategy_named(strategy)(question, voter("A", "B"), Budget(tokens=900))
        return [event.score.verifier async for event in events if isinstance(event, Scored)]

    assert set(asyncio.run(run())) == {verifier}


def test_a_verifier_that_fails_leaves_the_first_answer() -> None:
    async def gone(question: Question, sample: Sample) -> Score:
        raise EngineError("the scorer is gone")

    outcome = solve(best_of_n(3, gone), voter("1", "2", "3"), tokens=3000)
    assert outcome.error is None
    assert best(outcome).startswith("The answer is")
    assert not any(isinstance(event, Scored) for event in outcome.events)


def test_a_verifier_that_fails_once_costs_that_sample_its_chance_alone() -> None:
    asked = []

    async def moody(question: Question, sample: Sample) -> Score:
        asked.append(sample.index)
        if len(asked) == 1:
            raise EngineError("not now")
        return Score(1.0, "moody")

    outcome = solve(best_of_n(3, moody, at_once=1), voter("1", "2", "3"), tokens=3000)
    assert best(outcome) == "The answer is 2."


def test_a_verifier_that_hangs_is_left_when_time_is_up() -> None:
    async def hangs(question: Question, sample: Sample) -> Score:
        await asyncio.sleep(60)
        raise AssertionError("nobody waits that long")

    started = time.monotonic()
    outcome = solve(best_of_n(2, hangs, at_once=1), voter("1", "2"), tokens=3000, seconds=0.4)
    assert time.monotonic() - started < 3
    assert outcome.error is None
    assert best(outcome) == "The answer is 1."


def test_a_verifier_is_bound_to_the_model_that_the_strategy_runs_on() -> None:
    asked: list[Model] = []

    async def unbound(question: Question, sample: Sample) -> Score:
        raise AssertionError("it was to be bound")

    def with_model(model: Model) -> Verifier:
        asked.append(model)
        return last_digit()

    unbound.with_model = with_model  # type: ignore[attr-defined]
    model = voter("1", "2")
    assert best(solve(best_of_n(2, unbound), model, tokens=3000)) == "The answer is 2."
    assert [each.engine for each in asked] == [model.engine]
    plain = last_digit(3)
    assert bound(plain, model) is plain
    assert most_tokens(plain) == 3


@pytest.mark.parametrize("options", [{"weight": "none"}, {"verifier": last_digit()}])
def test_votes_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="weight"):
        self_consistency(3, **options)

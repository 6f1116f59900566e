"""Samples by difficulty: few where they agree, many where they do not, equal shares, one budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from drive import Watched, answering, outcome_of
from hypothesis import given, settings
from hypothesis import strategies as st
from staged import CALLS, SAID, check_staged, faults
from voting import voter

import ponder
from ponder.chat.formats import PONDER
from ponder.chat.model import Model, model_of
from ponder.engine.scripted import Fault, ScriptedEngine, says
from ponder.errors import InputError
from ponder.strategies.allocate import agreement, allocate, samples_for
from ponder.strategies.naming import strategy_named
from ponder.types import Budget, Sample, Trace, ask

LEVELS = ((0.75, 4), (0.5, 6), (0.0, 9))


def number(text: str) -> str | None:
    word = text.rstrip(".").split()[-1] if text.split() else ""
    return word if word.isdigit() else None


def drawn(model: Model, budget: int | Budget | None = 9 * 200, **options: Any) -> Trace:
    strategy = allocate(4, LEVELS, canonical=number, **options)
    return ponder.solve("?", model=model, strategy=strategy, budget=budget)


@pytest.mark.parametrize(
    ("answers", "n", "answer"),
    [
        ("7777", 4, "7"),
        ("7778", 4, "7"),
        ("7788" + "88", 6, "8"),
        ("7789" + "99", 6, "9"),
        ("7689" + "55555", 9, "5"),
        ("xxxx" + "55555", 9, "5"),
        ("xx77" + "66666", 6, "7"),
    ],
)
def test_the_first_samples_say_how_many_there_will_be(answers: str, n: int, answer: str) -> None:
    trace = drawn(voter(*answers))
    assert len(trace.samples) == n
    assert sorted(sample.index for sample in trace.samples) == list(range(n))
    assert trace.answer == f"The answer is {answer}."
    assert trace.cost.cancelled == 0, "nothing is cut short"


def test_samples_of_a_level_start_together_and_have_the_shares_of_the_largest() -> None:
    model = voter("7", "7", "8", "8", "8", "8")
    watched = Watched(model.engine)
    drawn(replace(model, engine=watched), 9 * 60)
    assert [n for _, n, _ in watched.asked if n > 1] == [4, 2]
    first, second = [params.max_tokens for _, n, params in watched.asked if n > 1]
    assert first == second, "a sample's share does not depend on its wave"


def test_what_an_easy_question_leaves_is_not_spent() -> None:
    trace = drawn(voter("7", thinking="Hm. " * 500), 9 * 60)
    assert len(trace.samples) == 4
    assert trace.cost.tokens <= 4 * 60


def test_agreement_is_the_share_of_the_leading_answer() -> None:
    def share(*answers: str) -> float:
        return agreement([Sample(i, each, answer=each) for i, each in enumerate(answers)], number)

    assert share("7", "8", "7", "none") == 0.5
    assert share("none") == share() == 0.0
    assert share("7") == 1.0


def test_the_first_level_that_is_reached_counts() -> None:
    assert [samples_for(share, LEVELS) for share in (1.0, 0.75, 0.74, 0.5, 0.49, 0.0)] == [4, 4, 6, 6, 9, 9]
    assert samples_for(2 / 3, ((0.1 + 0.2 + 11 / 30, 4), (0.0, 9))) == 4, "rounding decides nothing"


def test_levels_may_give_up_on_hopeless_questions() -> None:
    strategy = allocate(4, ((0.75, 4), (0.5, 9), (0.0, 4)), canonical=number)
    assert len(ponder.solve("?", model=voter(*"6789"), strategy=strategy, budget=1800).samples) == 4
    assert len(ponder.solve("?", model=voter(*"6699"), strategy=strategy, budget=1800).samples) == 9


def test_a_small_budget_draws_fewer() -> None:
    assert len(drawn(voter(*"6789"), 5 * 32).samples) == 5
    assert len(drawn(voter(*"6789"), 3 * 32).samples) == 3, "fewer than come first"


def test_a_server_that_deals_in_messages_gives_one_reply_after_the_other() -> None:
    model = model_of(ScriptedEngine(says("I think.\n</think>\nThe answer is 7."), chat_only=True))
    assert len(drawn(model).samples) == 4


def test_an_engine_that_fails_in_the_second_wave_ends_the_vote() -> None:
    model = voter(*"7788", faults=[Fault("garbage", at=3, first_call=2, times=None)])
    assert drawn(model).answer == "The answer is 7."


@settings(max_examples=120, deadline=None)
@given(
    said=st.lists(SAID, min_size=1, max_size=3),
    tokens=st.integers(8, 500),
    calls=CALLS,
    first=st.integers(1, 4),
    broken=faults(),
)
def test_never_over_budget_and_an_answer_or_a_typed_failure(
    said: list[str], tokens: int, calls: int | None, first: int, broken: list[Fault]
) -> None:
    begun: list[int] = []

    def reply(turn: str) -> str:
        begun.append(1)
        return said[len(begun) % len(said)]

    engine = answering(reply, faults=broken)
    model = replace(model_of(engine), format=replace(PONDER, answer_opener="A:"))
    budget = Budget(tokens=tokens, calls=calls)
    check_staged(outcome_of(allocate(first, ((0.75, 4), (0.0, 7)))(ask("?"), model, budget)), budget, [engine])


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("first", "levels", "words"),
    [
        (0, LEVELS, "first"),
        (4, (), "levels must have an agreement"),
        (4, ((0.75, 4), (0.5, 8)), "levels must have an agreement"),
        (4, ((0.5, 4), (0.75, 8), (0.0, 9)), "levels must have an agreement"),
        (4, ((1.5, 4), (0.0, 9)), "levels must have an agreement"),
        (4, ((0.5, 3), (0.0, 9)), "at least 4 samples"),
        (4, ((0.5, 4), (0.0, 9.5)), "at least 4 samples"),
    ],
)
def test_settings_that_make_no_sense_are_refused(first: int, levels: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        allocate(first, levels)


def test_a_policy_writes_it_as_plain_values() -> None:
    strategy = strategy_named("allocate(2, ((0.6, 2), (0, 8)))")
    assert strategy.__qualname__ == "allocate(2, ((0.6, 2), (0, 8)))"  # type: ignore[attr-defined]
    for text in (strategy.__qualname__, allocate(4, ((0, 4),)).__qualname__):  # type: ignore[attr-defined]
        assert callable(strategy_named(text))
    with pytest.raises(InputError, match="does not work"):
        strategy_named("allocate(2, 5)")

"""Routers from runs: probabilities near the true ones, what is kept and spent out of fold, data that say nothing."""

from __future__ import annotations

import functools
import math
import random
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import judged

from ponder.errors import InputError
from ponder.evals.results import Result, Run, Setting
from ponder.evals.routing import Calibrated, calibrate, decide, measured, tolerance, when_thinking_helps
from ponder.strategies.features import features
from ponder.strategies.route import cheapest_good_enough, choose, read, write
from ponder.types import Budget, Cost, Question, ask

NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve")
THINGS = ("apples", "pears", "plums", "coins", "books")


def questions_of(n: int, kinds: Sequence[str] = ("fact", "sum")) -> dict[str, Question]:
    """Questions of facts and of sums, in words that overlap."""
    draw = random.Random(5)

    def text(kind: str) -> str:
        who, what = draw.choice(NAMES), draw.choice(THINGS)
        if kind == "fact":
            return f"What is it that {who} has heard about {what}?"
        a, b, c = (draw.randint(2, 99) for _ in range(3))
        return f"{who} has {a} {what}, gets {b} more and gives {c} away. How many {what} are left?"

    return {f"q{i}": replace(ask(text(kind := kinds[i % len(kinds)])), metadata={"kind": kind}) for i in range(n)}


def run_of(
    questions: dict[str, Question],
    strategy: str,
    budget: int,
    skills: dict[str, float],
    tokens: int,
    seed: int,
    weights: Any = None,
) -> Run:
    """A run in which a question of a kind is right with the probability of that kind."""
    draw = random.Random(seed)
    results = []
    for name, question in questions.items():
        kind = question.metadata["kind"]
        correct = float(draw.random() < skills[kind])
        weight = 1.0 if weights is None else weights(draw, correct)
        sample = judged(0, "7", "7", weight=weight)
        results.append(Result(name, 0, correct, Cost(answer=tokens), kind=kind, samples=(sample,)))
    return Run(f"{strategy}{seed}", "task", "tiny", Setting(strategy, Budget(tokens=budget)), tuple(results))


SKILLS = (
    ("vote(8)", 2000, {"fact": 0.7, "sum": 0.8}, 800),
    ("direct", 64, {"fact": 0.7, "sum": 0.1}, 10),
    ("chain_of_thought", 400, {"fact": 0.7, "sum": 0.6}, 100),
)


@functools.cache
def simulated(n: int = 800) -> tuple[tuple[Run, ...], dict[str, Question]]:
    questions = questions_of(n)
    return tuple(run_of(questions, *each, seed) for seed, each in enumerate(SKILLS)), questions


@functools.cache
def found() -> Calibrated:
    runs, questions = simulated()
    return calibrate(runs, questions)


# ---------------------------------------------------------------- with a known truth


def test_probabilities_are_near_the_true_ones() -> None:
    table, questions = found().table, simulated()[1]
    errors = []
    for question in questions.values():
        expected = table.expected(features(question))
        truth = [SKILLS[i][2][question.metadata["kind"]] for i in (1, 2, 0)]
        errors += [abs(a - b) for a, b in zip(expected, truth, strict=True)]
    assert [arm.strategy for arm in table.arms] == ["direct", "chain_of_thought", "vote(8)"], "from cheap to dear"
    assert np.mean(errors) < 0.06
    for arm in found().arms:
        assert arm.reliability.error < 0.06
    assert found().arms[0].reliability.brier < 0.7 * found().arms[0].reliability.base, "facts and sums are told apart"


def test_the_router_keeps_the_accuracy_at_the_expected_cost() -> None:
    told = found()
    assert told.n == 800
    assert told.kept is not None
    assert told.kept.value >= 0.95
    assert told.kept.interval.low < told.kept.value < told.kept.interval.high
    # Facts go to the cheapest arm, sums to the dearest: half of the questions each.
    assert told.spent.value == pytest.approx((10 + 800) / 2 / 800, abs=0.05)
    assert told.tokens == pytest.approx(405, abs=40)
    assert told.arms[0].share == pytest.approx(0.5, abs=0.05)
    assert told.by_chance.interval.low > 0.1, "what a random choice with the same shares would lose"
    assert told.difference.interval.low < 0.01


def test_less_may_be_kept_for_less() -> None:
    runs, questions = simulated(300)
    told = calibrate(runs, questions, keep=0.8)
    assert told.kept is not None
    assert told.kept.value >= 0.8
    assert told.spent.value < 0.2, "thinking once keeps 0.65 of 0.75 for an eighth"


def test_the_table_routes_as_the_evaluation_did() -> None:
    table = read(tomllib.loads(tomli_w.dumps(write(found().table))))
    assert table == found().table
    arms = {kind: set() for kind in ("fact", "sum")}
    for question in simulated()[1].values():
        arms[question.metadata["kind"]].add(choose(table, features(question)).arm)
    assert arms == {"fact": {0}, "sum": {2}}
    assert table.measured["always"] == "vote(8)@2000"
    assert table.measured["questions"] == 800
    assert table.arms[0].accuracy == pytest.approx(0.4, abs=0.05)


def test_a_confident_first_answer_is_told_from_an_unsure_one() -> None:
    """Questions of one kind: nothing but the confidence tells which are right."""
    questions = questions_of(400, ("fact",))

    def weights(draw: random.Random, correct: float) -> float:
        return math.exp(draw.gauss(-0.2 if correct else -2.0, 0.1))

    runs = [
        run_of(questions, "direct", 64, {"fact": 0.5}, 10, 1, weights),
        run_of(questions, "vote(8)", 2000, {"fact": 0.9}, 800, 2),
    ]
    told = calibrate(runs, questions, first=True)
    assert told.kept is not None
    assert told.kept.value >= 0.95
    assert told.spent.value == pytest.approx(0.5 * (10 + 810) / 800, abs=0.06), "the first answer is always paid for"
    assert told.table.first
    assert told.table.arms[0].weights["confidence"] > 0
    low, high = told.table.seen["confidence"]
    assert -3 < low < -1.9 < -0.3 < high < 0.2
    assert calibrate(runs, questions).arms[0].share in (0.0, 1.0), "without it there is nothing to go by"


# ---------------------------------------------------------------- data that say little


def test_where_questions_are_alike_nothing_is_gained_over_chance() -> None:
    questions = questions_of(300)
    same = {"fact": 0.5, "sum": 0.5}
    runs = [run_of(questions, "direct", 64, same, 10, 1), run_of(questions, "vote(8)", 2000, same, 800, 2)]
    told = calibrate(runs, questions)
    assert told.by_chance.interval.low < 0 < told.by_chance.interval.high


def test_where_thinking_is_needed_everywhere_it_is_always_taken() -> None:
    questions = questions_of(200)
    runs = [
        run_of(questions, "direct", 64, {"fact": 0.1, "sum": 0.1}, 10, 1),
        run_of(questions, "vote(8)", 2000, {"fact": 0.9, "sum": 0.9}, 800, 2),
    ]
    told = calibrate(runs, questions, first=False)
    assert told.arms[1].share == 1
    assert told.spent.value == 1
    assert choose(told.table, features(questions["q0"])).arm == len(told.table.arms) - 1


def test_little_data_saves_nothing_rather_than_guess() -> None:
    questions = questions_of(24)
    half = {"fact": 0.5, "sum": 0.5}
    runs = [run_of(questions, "direct", 64, half, 10, 1), run_of(questions, "vote(8)", 2000, half, 800, 2)]
    told = calibrate(runs, questions)
    assert [arm.strategy for arm in told.table.arms] == ["vote(8)"]
    assert read(write(told.table)) == told.table
    assert choose(told.table, features(questions["q0"])).arm == 0


@pytest.mark.parametrize("first", [False, True])
def test_all_right_takes_the_cheapest(first: bool) -> None:
    questions = questions_of(200)
    runs = [
        run_of(questions, "direct", 64, {"fact": 1, "sum": 1}, 10, 1, lambda draw, _: draw.random()),
        run_of(questions, "vote(8)", 2000, {"fact": 1, "sum": 1}, 800, 2),
    ]
    told = calibrate(runs, questions, first=first)
    assert told.kept is not None
    assert (told.kept.value, told.spent.value) == (1, 10 / 800)
    assert told.kept.interval.low < 1, "of two hundred, none has told of what is rare"
    assert choose(told.table, features(questions["q1"])).arm == 0


def test_all_wrong_takes_the_cheapest_for_there_is_nothing_to_lose() -> None:
    questions = questions_of(60)
    runs = [run_of(questions, each, 64 * t, {"fact": 0, "sum": 0}, t, t) for each, t in (("direct", 1), ("vote(8)", 9))]
    told = calibrate(runs, questions)
    assert told.kept is None
    assert told.arms[0].share == 1
    assert told.accuracy.value == 0 < told.accuracy.interval.high


def test_runs_that_make_no_router_are_refused() -> None:
    runs, questions = simulated()
    few = [replace(run, results=run.results[:3]) for run in runs]
    with pytest.raises(InputError, match="3 questions are too few to calibrate on"):
        calibrate(few, questions)
    with pytest.raises(InputError, match="at least two"):
        calibrate(runs[:1], questions)
    with pytest.raises(InputError, match="keeping"):
        calibrate(runs, questions, keep=1.5)
    with pytest.raises(InputError, match="standard errors"):
        calibrate(runs, questions, margin=-1)
    with pytest.raises(InputError, match="no question 'q1'"):
        calibrate(runs, {"q0": questions["q0"]})
    with pytest.raises(InputError, match="one task and one model"):
        calibrate([runs[0], replace(runs[1], model="other")], questions)
    with pytest.raises(InputError, match="no budget in tokens"):
        calibrate([runs[0], replace(runs[1], setting=Setting("direct"))], questions)
    with pytest.raises(InputError, match="without --first"):
        calibrate(runs, questions, first=True)


# ---------------------------------------------------------------- its parts


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from([0.1, 0.3, 0.35, 0.9]), min_size=3, max_size=3), min_size=1, max_size=5),
    tokens=st.lists(st.sampled_from([1.0, 5.0, 7.0]), min_size=3, max_size=3),
    allowed=st.sampled_from([0.0, 0.05, 0.2, 1.0]),
)
def test_the_evaluation_decides_as_the_router_does(
    rows: list[list[float]], tokens: list[float], allowed: float
) -> None:
    chosen = decide(np.array(rows), np.array(tokens), allowed)
    assert chosen.tolist() == [cheapest_good_enough(row, tokens, allowed) for row in rows]


def test_the_tolerance_by_hand() -> None:
    # Of 100 questions, the cheap arm is expected to be 0.1, 0.3, ... below the dear one, and is as often wrong.
    expected = np.column_stack([np.repeat([0.8, 0.6, 0.4, 0.2], 25), np.full(100, 0.9)])
    correct = np.column_stack([np.repeat([1.0, 1.0, 0.0, 0.0], 25), np.ones(100)])
    tokens = np.array([1.0, 10.0])
    allowed = tolerance(expected, tokens, correct, keep=0.95)
    assert allowed is not None
    assert 0.3 <= allowed < 0.5
    half = tolerance(expected, tokens, correct, keep=0.5, margin=0)
    assert half == pytest.approx(0.84**2), "the smallest of those that take the cheap arm everywhere"
    assert tolerance(expected, tokens, correct, keep=1.0) is None, "no safety is left"
    assert tolerance(expected, tokens, correct, keep=1.0, margin=0) == allowed
    assert tolerance(expected, tokens, 0 * correct, keep=0.95) == 1.0


def test_repetitions_of_a_question_count_once() -> None:
    runs, _ = simulated()
    twice = replace(runs[1], results=(*runs[1].results, *(replace(r, seed=1, correct=0.0) for r in runs[1].results)))
    data = measured([runs[0], twice])
    assert len(data.ids) == 800
    assert data.correct[:, 0].mean() == pytest.approx(measured(runs).correct[:, 0].mean() / 2)
    assert [setting.strategy for setting in data.settings] == ["direct", "vote(8)"]


def test_when_thinking_helps_is_told_by_kind() -> None:
    runs, _ = simulated()
    rows = {row.kind: row for row in when_thinking_helps(runs[1], runs[2])}
    assert list(rows) == [None, "fact", "sum"]
    assert rows["sum"].difference.interval.low > 0.3
    assert rows["fact"].difference.interval.low < 0 < rows["fact"].difference.interval.high
    assert (rows["fact"].difference.n, rows[None].difference.n) == (400, 800)
    assert rows[None].tokens == (10, 100)
    assert rows["sum"].thinking.value == pytest.approx(0.6, abs=0.1)


def test_one_kind_is_one_row() -> None:
    questions = questions_of(30, ("sum",))
    runs = [run_of(questions, each, 64, {"sum": 0.5}, 9, 1) for each in ("direct", "vote(8)")]
    (row,) = when_thinking_helps(*runs)
    assert row.kind is None
    with pytest.raises(InputError, match="in both runs"):
        when_thinking_helps(runs[0], replace(runs[1], results=()))

"""The threshold of a cascade: by hand, out of fold, from runs, and as the cascade itself has its confidence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from studies import judged, run_of

from ponder.errors import InputError
from ponder.evals.cascading import Answers, answers_of, confidence_of, lowest, threshold
from ponder.evals.results import Judged, Result, Run, Setting
from ponder.types import Budget, Cost


def drawn(n: int = 600, seed: int = 0) -> Answers:
    """A small model that is right as often as it is sure, a large one that is right at 0.9 for fifty times the cost."""
    random = np.random.default_rng(seed)
    confidence = random.random(n)
    return Answers(
        tuple(f"q{i}" for i in range(n)),
        confidence,
        (random.random(n) < confidence).astype(float),
        (random.random(n) < 0.9).astype(float),
        np.full(n, 1.0),
        np.full(n, 50.0),
    )


def test_the_threshold_is_the_lowest_that_loses_little() -> None:
    small, large = np.array([1.0, 1, 0, 0]), np.ones(4)
    answers = Answers(tuple("abcd"), np.array([0.9, 0.8, 0.5, 0.4]), small, large, np.ones(4), np.ones(4))
    everyone = np.arange(4)
    # Without a margin: 0.8 loses nothing, 0.5 a quarter, 0.4 a half.
    assert lowest(answers, everyone, 0.0, 0) == 0.8
    assert lowest(answers, everyone, 0.25, 0) == 0.5
    assert lowest(answers, everyone, 0.5, 0) == 0.4
    # One standard error: at least 1/4 of the four questions.
    assert lowest(answers, everyone, 0.2, 1) == math.inf
    assert lowest(answers, everyone, 0.25, 1) == 0.8


def test_questions_of_one_confidence_go_together() -> None:
    answers = Answers(
        tuple("abc"), np.array([0.9, 0.5, 0.5]), np.array([1.0, 1, 0]), np.ones(3), np.ones(3), np.ones(3)
    )
    assert lowest(answers, np.arange(3), 0.0, 0) == 0.9


def test_what_was_found_is_kept_out_of_fold_at_less_cost() -> None:
    found = threshold(drawn(), within=0.03)
    # Losing max(0, 0.9 - c) above t: the mean is (0.9 - t)^2 / 2 - 0.1^2 / 2, which is 0.03 at t = 0.64.
    assert 0.6 < found.value < 0.85
    assert found.spread.low <= found.value <= found.spread.high
    assert found.difference.value > -0.045
    assert found.difference.interval.low < -0.01 < found.difference.interval.high
    assert found.escalated == pytest.approx(found.value, abs=0.08)
    assert found.cost.value == pytest.approx(1 / 50 + found.escalated)
    assert found.n == 600


def test_a_large_model_that_adds_nothing_is_not_asked() -> None:
    answers = drawn()
    same = Answers(
        answers.ids, answers.confidence, answers.small, answers.small, answers.small_cost, answers.large_cost
    )
    found = threshold(same)
    assert found.escalated < 0.01
    assert found.cost.value < 0.03


def test_a_confidence_that_says_nothing_asks_the_large_model() -> None:
    answers = drawn()
    random = np.random.default_rng(9)
    noise = Answers(
        answers.ids, random.random(600), answers.small, answers.large, answers.small_cost, answers.large_cost
    )
    found = threshold(noise, within=0.01)
    assert found.escalated > 0.9
    assert found.cost.value > 0.9, "the small model is asked in vain"


def test_too_few_questions_and_impossible_wishes_are_refused() -> None:
    with pytest.raises(InputError, match="too few to calibrate"):
        threshold(drawn(5))
    with pytest.raises(InputError, match="within 1"):
        threshold(drawn(), within=1.0)


# ---------------------------------------------------------------- from runs


def result(answers: list[str | None], weights: list[float], kept: tuple[bool, ...] | None = None) -> Result:
    samples = [
        Judged(i, answer, float(answer == "7"), Cost(answer=3), weight=weight, kept=kept is None or kept[i])
        for i, (answer, weight) in enumerate(zip(answers, weights, strict=True))
    ]
    return Result("q", 0, 1.0, Cost(answer=9), samples=tuple(samples))


def test_confidence_is_that_of_the_winning_answer() -> None:
    voted = result(["8", "7", "7", None], [0.9, 0.6, 0.7, 0.2])
    assert confidence_of(voted, "logprob") == 0.6
    assert confidence_of(voted, "agreement") == 0.5
    cut = result(["8", "7", "7", None], [0.9, 0.6, 0.7, 0.2], (True, True, False, True))
    assert confidence_of(cut, "logprob") == 0.9, "a tie goes to the first"
    assert confidence_of(cut, "agreement") == pytest.approx(1 / 3)
    assert confidence_of(result([None], [0.4]), "agreement") == 0
    assert confidence_of(Result("q", 0, 0.0, Cost()), "logprob") == 0
    with pytest.raises(InputError, match="no scores of 'mood'"):
        confidence_of(voted, "mood")


def with_weights(run: Run, weights: list[float]) -> Run:
    results = tuple(
        Result(r.question, 0, r.correct, r.cost, samples=(judged(0, "7", "7", weight=w),))
        for r, w in zip(run.results, weights, strict=True)
    )
    return Run(run.id, run.task, run.model, run.setting, results)


def test_runs_of_two_models_become_answers() -> None:
    weights = [i / 40 for i in range(40)]
    small = with_weights(run_of("direct", 60, [float(i >= 20) for i in range(40)]), weights)
    large = run_of("chain_of_thought", 600, [1.0] * 39)
    answers = answers_of(small, large)
    assert len(answers.ids) == 39, "what both have answered"
    assert answers.confidence.tolist() == weights[:39]
    assert answers.unit == "flops"
    assert answers.large_cost[0] == 2e6 * (40 + 450)
    found = threshold(answers, within=0.1)
    assert 0.4 < found.value <= 0.55
    assert found.unit == "flops"
    with pytest.raises(InputError, match="not of the same questions"):
        answers_of(small, Run("x", "others", "large", Setting("direct", Budget(tokens=9)), large.results))

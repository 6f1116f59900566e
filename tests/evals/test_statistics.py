"""Intervals against published numbers, closed forms, and the coverage that simulation finds."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ponder.errors import InputError
from ponder.evals.statistics import (
    Interval,
    bootstrap_means,
    mcnemar,
    mean_interval,
    paired_difference,
    percentiles,
    wilson,
)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(15, 30, 0.3315, 0.6685), (0, 50, 0, 0.0713), (50, 50, 0.9287, 1), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_is_as_published(right: int, n: int, low: float, high: float) -> None:
    # The last is of Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I.
    assert wilson(right, n) == pytest.approx((low, high), abs=6e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_is_scipys(pair: tuple[int, int], confidence: float) -> None:
    reference = stats.binomtest(*pair).proportion_ci(confidence, method="wilson")
    assert wilson(*pair, confidence) == pytest.approx((reference.low, reference.high), abs=1e-9)


@pytest.mark.parametrize(("right", "n"), [(0, 50), (7, 50), (45, 50), (50, 50), (133, 300)])
def test_answers_without_repetition_get_jeffreys_interval(right: int, n: int) -> None:
    mean = mean_interval([[1]] * right + [[0]] * (n - right), draws=40_000)
    reference = stats.beta.ppf([0.025, 0.975], right + 0.5, n - right + 0.5)
    assert mean.value == right / n
    assert mean.interval == pytest.approx(reference, abs=0.003)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_where_all_are_wrong_or_all_are_right_the_interval_reaches_the_end(n: int) -> None:
    wrong, right = mean_interval([[0, 0]] * n).interval, mean_interval([[1]] * n).interval
    assert wrong == (0, pytest.approx(stats.beta.ppf(0.975, 0.5, n + 0.5), abs=0.02))
    assert right == (pytest.approx(stats.beta.ppf(0.025, n + 0.5, 0.5), abs=0.02), 1)
    assert mean_interval([[5.0]] * n, bounds=(-5, 5)).interval.high == 5
    assert mean_interval([[-5.0]] * n, bounds=(-5, 5)).interval.low == -5
    difference = paired_difference([[1]] * n, [[0]] * n).interval
    assert -1 < difference.low < difference.high == 1
    assert paired_difference([[0]] * n, [[1]] * n).interval.low == -1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_other_intervals_are_the_percentiles_and_reach_no_end(scores: list[float]) -> None:
    interval = mean_interval([[score] for score in scores]).interval
    low, high = percentiles(bootstrap_means(np.array(scores)[:, None])[:, 0])
    assert interval == (0.0 if set(scores) == {0} else low, 1.0 if set(scores) == {1} else high)


def test_coverage_of_the_mean_is_nominal() -> None:
    random = np.random.default_rng(1)

    @cache
    def interval(right: int, n: int) -> Interval:  # the order of questions does not matter, so one a count will do
        return mean_interval([[1]] * right + [[0]] * (n - right)).interval

    for n in (50, 100, 300):
        for p in (0.2, 0.35, 0.5, 0.7, 0.8, 0.9):
            counts = random.binomial(n, p, 4000)
            covered = np.mean([interval(int(c), n).low <= p <= interval(int(c), n).high for c in counts])
            assert 0.93 <= covered <= 0.97, (n, p, covered)


def test_coverage_with_repetitions_is_nominal_where_that_of_single_answers_is_not() -> None:
    random = np.random.default_rng(2)
    clustered, naive = 0, 0
    for _ in range(400):
        chances = random.beta(0.6, 0.4, 60)
        right = random.binomial(8, chances)
        low, high = mean_interval([[1] * int(c) + [0] * (8 - int(c)) for c in right], draws=1000).interval
        clustered += low <= 0.6 <= high
        low, high = wilson(int(right.sum()), 480)
        naive += low <= 0.6 <= high
    assert 0.92 <= clustered / 400 <= 0.975
    assert naive / 400 < 0.75


def test_coverage_of_a_difference_is_nominal() -> None:
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        hardness = random.random(80)
        a, b = random.random(80) < hardness * 0.9, random.random(80) < hardness * 0.6
        low, high = paired_difference(a[:, None].tolist(), b[:, None].tolist(), draws=1000).interval
        covered += low <= 0.15 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_each_question_counts_alike_and_their_order_does_not_matter() -> None:
    scores = [[1, 1, 1, 1], [0], [0.5, 0.25]]
    mean = mean_interval(scores)
    assert mean.value == pytest.approx((1 + 0 + 0.375) / 3)
    assert mean_interval(scores[::-1]).interval == mean.interval
    assert mean_interval(scores, seed=1).interval != mean.interval


def test_the_bootstrap_has_the_moments_of_its_weights() -> None:
    scores = np.random.default_rng(4).random((40, 2))
    replicates = bootstrap_means(scores, None, draws=20_000)
    assert replicates.mean(axis=0) == pytest.approx(scores.mean(axis=0), abs=0.002)
    assert np.cov(replicates.T) == pytest.approx(np.cov(scores.T, ddof=0) / 41, rel=0.06, abs=2e-5)


def test_blocks_of_the_bootstrap_come_to_all_that_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ponder.evals.statistics._AT_ONCE", 100)
    replicates = bootstrap_means(np.arange(30.0)[:, None] / 30, draws=50)
    assert replicates.shape == (50, 1)
    assert len(np.unique(replicates)) == 50


def test_a_difference_is_paired() -> None:
    hardness = np.linspace(0, 1, 50).tolist()
    a, b = [[h * 0.5 + 0.3, h * 0.5 + 0.5] for h in hardness], [[h * 0.5] for h in hardness]
    difference = paired_difference(a, b)
    assert difference.value == pytest.approx(0.4)
    assert 0.33 < difference.interval.low < 0.4 < difference.interval.high < 0.47
    assert (difference.better, difference.worse, difference.p_value) == (50, 0, None)
    back = paired_difference(b, a)
    assert back.value == pytest.approx(-0.4)


def test_single_answers_get_the_exact_p() -> None:
    a, b = [[1]] * 9 + [[0]] * 2 + [[1]] * 5, [[0]] * 9 + [[1]] * 2 + [[1]] * 5
    difference = paired_difference(a, b)
    assert (difference.better, difference.worse, difference.n) == (9, 2, 16)
    assert difference.p_value == pytest.approx(stats.binomtest(9, 11).pvalue)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2000), st.integers(0, 2000))
def test_mcnemar_is_the_binomial_test(better: int, worse: int) -> None:
    reference = stats.binomtest(better, better + worse).pvalue if better + worse else 1
    assert mcnemar(better, worse) == pytest.approx(reference, rel=1e-6, abs=1e-300)


def test_percentiles_leave_the_tails_out() -> None:
    assert percentiles(np.arange(101.0), 0.9) == pytest.approx((5, 95))


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(3, 2),
        lambda: wilson(0, 0),
        lambda: wilson(1, 2, 1.0),
        lambda: mean_interval([]),
        lambda: mean_interval([[1], []]),
        lambda: mean_interval([[2]]),
        lambda: mean_interval([[float("nan")]]),
        lambda: mean_interval([[7.0]], bounds=None),
        lambda: mean_interval([[1]], draws=0),
        lambda: paired_difference([[1]], [[1], [0]]),
    ],
)
def test_what_cannot_be_is_refused(call) -> None:
    with pytest.raises(InputError):
        call()

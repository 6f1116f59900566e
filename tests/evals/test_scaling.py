"""Curves against scipy's least squares, and the gain they predict against curves whose gain is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from ponder.errors import InputError
from ponder.evals.scaling import _KINDS, Point, _fit, fit, frontier, what_ten_times_buys
from ponder.evals.statistics import bootstrap_means

TOKENS = [64, 128, 256, 512, 1024, 2048]


def saturating(x: float, a: float, b: float, c: float) -> float:
    return a - (a - b) * (x / TOKENS[0]) ** -c


def logistic(x: float, s: float, t: float) -> float:
    return 1 / (1 + np.exp(-(s * np.log10(x / TOKENS[0]) + t)))


def points_of(accuracies: list[float], n: int = 200) -> list[Point]:
    return [Point(x, float(y), n) for x, y in zip(TOKENS, accuracies, strict=False)]


@pytest.mark.parametrize("truth", [(0.7, 0.2, 0.8), (0.55, 0.1, 0.4), (0.95, 0.5, 2.0)])
def test_a_saturating_curve_is_found_again(truth: tuple[float, float, float]) -> None:
    curve = fit(points_of([saturating(x, *truth) for x in TOKENS]))
    assert curve.kind == "saturating"
    assert curve.parameters == pytest.approx(truth, abs=1e-3)
    assert curve.error < 1e-3
    assert curve(20_480) == pytest.approx(saturating(20_480, *truth), abs=1e-3)


@pytest.mark.parametrize("truth", [(2.5, -4.0), (6.0, -5.0), (-1.0, 0.5)])
def test_a_logistic_curve_is_found_again_even_a_falling_one(truth: tuple[float, float]) -> None:
    curve = fit(points_of([logistic(x, *truth) for x in TOKENS]))
    assert curve.kind == "logistic"
    assert curve.parameters == pytest.approx(truth, abs=1e-3)
    assert curve(20_480) == pytest.approx(logistic(20_480, *truth), abs=1e-3)


@pytest.mark.parametrize("kind", ["saturating", "logistic"])
def test_fits_are_as_good_as_scipys(kind: str) -> None:
    """From many starts, on noisy points with weights, where parameters meet their bounds."""
    random = np.random.default_rng(0)
    places = np.log10(np.array(TOKENS) / TOKENS[0])
    accuracies = np.clip(np.sort(random.random((12, 6)), axis=1) + random.normal(0, 0.05, (12, 6)), 0, 1)
    weights = random.dirichlet(np.full(6, 3.0), 12)
    found = _fit(_KINDS[kind], places, accuracies, weights)
    ours = (weights * (_KINDS[kind].values(found, places) - accuracies) ** 2).sum(axis=1)
    if kind == "saturating":  # (floor, share of what is left above it, log10 of the exponent): a box
        bounds = ([0, 0, np.log10(0.02)], [1, 1, np.log10(5)])
        assert (found[:, 1] >= 0).all()
        assert (found[:, 0] >= found[:, 1] - 1e-12).all()
        assert (found[:, 0] <= 1 + 1e-12).all()
    else:
        bounds = ([-10, -12], [10, 12])

    def residuals(theta: np.ndarray, row: int) -> np.ndarray:
        if kind == "saturating":
            theta = np.array([theta[0] + (1 - theta[0]) * theta[1], theta[0], 10 ** theta[2]])
        return np.sqrt(weights[row]) * (_KINDS[kind].values(theta[None], places)[0] - accuracies[row])

    for row in range(12):
        starts = [random.uniform(*bounds) for _ in range(12)]
        theirs = min(2 * least_squares(residuals, start, bounds=bounds, args=(row,)).cost for start in starts)
        assert ours[row] <= theirs + 1e-6


def asked(truth: tuple[float, ...], n: int, random: np.random.Generator) -> np.ndarray:
    """Scores (points, questions): the same question stays hard at all points."""
    return (random.random(n) < np.array([[saturating(x, *truth)] for x in TOKENS])).astype(float)


def test_ten_times_buys_what_the_curve_rises() -> None:
    truth = (0.8, 0.2, 0.5)
    gain_of_truth = saturating(20_480, *truth) - saturating(2048, *truth)
    covered, widths = 0, []
    for seed in range(12):
        scores = asked(truth, 300, np.random.default_rng(seed))
        gain = what_ten_times_buys(points_of(scores.mean(axis=1)), scores, draws=100)
        covered += gain.interval.low <= gain_of_truth <= gain.interval.high
        widths.append(gain.interval.high - gain.interval.low)
    assert covered >= 9
    assert max(widths) < 0.5
    assert (gain.tokens, gain.times) == (2048, 10)
    assert gain.value == pytest.approx(gain.curve(20_480) - gain.curve(2048))


def test_what_has_saturated_gains_nothing_and_what_falls_loses() -> None:
    flat = what_ten_times_buys(points_of([0.5] * 6), replicates=[[0.5] * 6, [0.52] * 6])
    assert flat.value == pytest.approx(0, abs=1e-3)
    assert flat.interval == pytest.approx((0, 0), abs=1e-3)
    falling = what_ten_times_buys(points_of([0.6, 0.56, 0.53, 0.49, 0.45, 0.41]), replicates=[[0.6] * 6])
    assert falling.value < -0.08


def test_replicates_and_scores_are_two_ways_to_the_same_interval() -> None:
    scores = asked((0.8, 0.2, 0.5), 100, np.random.default_rng(5))
    points = points_of(scores.mean(axis=1))
    by_scores = what_ten_times_buys(points, scores, draws=60, seed=3)
    by_replicates = what_ten_times_buys(points, replicates=bootstrap_means(scores.T, draws=60, seed=3))
    assert by_scores == by_replicates
    assert by_scores != what_ten_times_buys(points, scores, draws=60, seed=4)


def test_three_points_suffice_and_stay_in_range() -> None:
    gain = what_ten_times_buys(points_of([0.2, 0.3, 0.4]), replicates=[[0.2, 0.3, 0.4], [0.25, 0.28, 0.4]])
    assert 0 < gain.value < 0.6


def test_points_with_more_questions_weigh_more() -> None:
    accuracies = [0.2, 0.3, 0.4, 0.45, 0.5, 0.9]
    alike = fit(points_of(accuracies))
    points = [Point(x, y, 1 if y == 0.9 else 1000) for x, y in zip(TOKENS, accuracies, strict=True)]
    assert fit(points)(2048) < alike(2048) - 0.05


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), max_size=12))
def test_the_frontier_is_what_nothing_beats(pairs: list[tuple[int, int]]) -> None:
    points = [Point(x, y / 5, 10) for x, y in pairs]

    def beaten(point: Point) -> bool:
        return any(
            other.tokens <= point.tokens
            and other.accuracy >= point.accuracy
            and (other.tokens, other.accuracy) != (point.tokens, point.accuracy)
            for other in points
        )

    best = frontier(points)
    assert best == sorted((p for p in points if not beaten(p)), key=lambda p: p.tokens)


GOOD = points_of([0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    "call",
    [
        lambda: fit(GOOD[:2]),
        lambda: what_ten_times_buys(GOOD[:2], replicates=[[0.2, 0.3]]),
        lambda: fit([GOOD[0], GOOD[0], GOOD[1]]),
        lambda: fit([*GOOD, Point(0, 0.5, 10)]),
        lambda: fit([*GOOD, Point(9, 1.5, 10)]),
        lambda: fit([*GOOD, Point(9, 0.5, 0)]),
        lambda: fit(GOOD)(0),
        lambda: what_ten_times_buys(GOOD),
        lambda: what_ten_times_buys(GOOD, [[0.2], [0.3], [0.4]], [[0.2, 0.3, 0.4]]),
        lambda: what_ten_times_buys(GOOD, [[0.2], [0.3]]),
        lambda: what_ten_times_buys(GOOD, [[0.4], [0.3], [0.2]]),
        lambda: what_ten_times_buys(GOOD, replicates=[[0.2, 0.3]]),
        lambda: what_ten_times_buys(GOOD, replicates=[[0.2, 0.3, 0.4]], times=0),
    ],
)
def test_what_cannot_be_is_refused(call) -> None:
    with pytest.raises(InputError):
        call()

"""Calibration: regressions against scipy and by hand, predictions that never saw their own answer, honest intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from ponder.errors import InputError
from ponder.evals.calibration import (
    STRENGTHS,
    Ratio,
    cost_share,
    cross_fit,
    enough,
    fit,
    folds,
    holds,
    log_loss,
    reliability,
    share_kept,
)
from ponder.evals.statistics import wilson

IDS = [f"q{i}" for i in range(60)]


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, 3), of which the last is noise, the true probabilities, and verdicts drawn from them."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 3)) * [1, 5, 2] + [0, 10, 3]
    p = 1 / (1 + np.exp(-(0.3 + 1.2 * x[:, 0] - 0.2 * (x[:, 1] - 10))))
    return x, p, (random.random(n) < p).astype(float)


# ---------------------------------------------------------------- folds


@given(st.permutations(IDS), st.integers(2, 7))
def test_folds_are_even_and_the_same_in_every_order(ids: list[str], k: int) -> None:
    found = dict(zip(ids, folds(ids, k).tolist(), strict=True))
    assert found == dict(zip(IDS, folds(IDS, k).tolist(), strict=True))
    sizes = np.bincount(list(found.values()), minlength=k)
    assert sizes.max() - sizes.min() <= 1


def test_folds_do_not_follow_the_order_of_the_file() -> None:
    assert len(set(folds(IDS)[:10].tolist())) > 2
    assert folds(IDS).tolist() != [i % 5 for i in range(60)]


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(InputError, match="1 questions cannot be dealt"):
        folds(["a"])
    with pytest.raises(InputError, match="3 questions are too few to calibrate on"):
        enough(3)


# ---------------------------------------------------------------- the regression


@pytest.mark.parametrize("strength", [0.5, 10.0])
def test_the_regression_is_the_minimum_that_scipy_finds(strength: float) -> None:
    x, _, right = drawn(150)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    ones = right.sum()
    targets = np.where(right == 1, (ones + 1) / (ones + 2), 1 / (len(x) - ones + 2))

    def loss(found: np.ndarray) -> float:
        odds = found[0] + z @ found[1:]
        p = 1 / (1 + np.exp(-odds))
        return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum() + strength / 2 * (found[1:] ** 2).sum()

    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    mine = fit(x, right, strength)
    assert mine.weights * x.std(axis=0) == pytest.approx(best[1:], abs=1e-5)
    assert mine(x) == pytest.approx(1 / (1 + np.exp(-(best[0] + z @ best[1:]))), abs=1e-6)


def test_without_a_feature_that_varies_it_is_the_base_rate() -> None:
    constant = np.full((10, 2), 3.7)
    right = np.array([1.0] * 4 + [0.0] * 6)
    found = fit(constant, right, 1.0)
    # Platt's targets: 5/6 for the four right, 1/8 for the six wrong.
    assert found(constant) == pytest.approx((4 * 5 / 6 + 6 / 8) / 10)
    assert found.weights.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("verdict", "expected"), [(1.0, 61 / 62), (0.0, 1 / 62)])
def test_all_right_or_all_wrong_still_gives_a_probability(verdict: float, expected: float) -> None:
    x, _, _ = drawn(60)
    found = cross_fit(x, np.full(60, verdict), IDS)
    assert found.logistic(x).mean() == pytest.approx(expected, abs=0.002)
    assert ((found.held_out > 0) & (found.held_out < 1)).all()


def test_what_can_be_told_apart_perfectly_stays_finite() -> None:
    x = np.linspace(-1, 1, 60)[:, None]
    found = fit(x, (x[:, 0] > 0).astype(float), 1e-6)
    assert np.isfinite(found.weights).all()
    assert found(x)[0] < 0.05 < 0.95 < found(x)[-1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=20, max_size=20), st.lists(st.booleans(), min_size=20, max_size=20))
def test_any_feature_gives_probabilities(feature: list[float], right: list[bool]) -> None:
    x = np.array(feature)[:, None]
    p = fit(x, np.array(right, dtype=float), 1.0)(x)
    assert ((p > 0) & (p < 1)).all()


def test_noise_gets_the_strongest_penalty_and_a_signal_does_not() -> None:
    x, _, right = drawn(60)
    assert cross_fit(x, right, IDS).strength < STRENGTHS[0]
    coins = (np.random.default_rng(3).random(60) < 0.5).astype(float)
    noise = cross_fit(np.random.default_rng(4).normal(size=(60, 20)), coins, IDS)
    assert noise.strength == STRENGTHS[0]
    assert np.ptp(noise.logistic(np.random.default_rng(5).normal(size=(60, 20)))) < 0.01


def test_a_prediction_has_never_seen_its_own_answer() -> None:
    x, _, right = drawn(60)
    before = cross_fit(x, right, IDS)
    fold = folds(IDS)
    for i in (0, 7, 31):
        other = right.copy()
        other[i] = 1 - other[i]
        after = cross_fit(x, other, IDS)
        assert after.strength == before.strength, "else the predictions differ for another reason"
        same = fold == fold[i]
        assert after.held_out[same] == pytest.approx(before.held_out[same], abs=1e-12)
        assert after.held_out[~same] != pytest.approx(before.held_out[~same], abs=1e-12)


def test_calibrated_probabilities_are_near_the_true_ones() -> None:
    x, p, right = drawn(2000)
    ids = [str(i) for i in range(2000)]
    found = cross_fit(x, right, ids).held_out
    assert np.abs(found - p).mean() < 0.02
    told = reliability(found, right)
    assert told.error < 0.05
    assert told.brier < 0.8 * told.base
    inside = [b for b in told.bins if b.interval.low <= b.predicted <= b.interval.high]
    assert len(inside) >= 8


def test_log_loss_by_hand() -> None:
    assert log_loss(np.array([0.5, 0.8]), np.array([1.0, 0.0])) == pytest.approx((math.log(2) + math.log(5)) / 2)
    assert math.isfinite(log_loss(np.array([0.0]), np.array([1.0])))


# ---------------------------------------------------------------- reliability


def test_reliability_by_hand() -> None:
    told = reliability(np.array([0.9, 0.1, 0.2, 0.8]), np.array([1.0, 0.0, 1.0, 1.0]), bins=2)
    assert [(b.n, b.predicted, b.right) for b in told.bins] == [
        (2, pytest.approx(0.15), 0.5),
        (2, pytest.approx(0.85), 1.0),
    ]
    assert told.bins[0].interval == wilson(1, 2)
    assert told.error == pytest.approx((0.35 + 0.15) / 2)
    assert told.brier == pytest.approx((0.01 + 0.01 + 0.64 + 0.04) / 4)
    assert told.base == pytest.approx(3 / 16)


@given(st.lists(st.sampled_from([0.1, 0.3, 0.31, 0.9]), min_size=1, max_size=40), st.integers(1, 12))
def test_bins_hold_every_question_once_and_equal_predictions_together(predicted: list[float], bins: int) -> None:
    told = reliability(np.array(predicted), np.ones(len(predicted)), bins)
    assert sum(b.n for b in told.bins) == len(predicted)
    assert len(told.bins) <= bins
    means = [b.predicted for b in told.bins]
    assert means == sorted(means)
    if len(set(predicted)) == 1:
        assert len(told.bins) == 1


# ---------------------------------------------------------------- shares


def test_the_share_kept_is_a_quotient_of_means() -> None:
    mine, theirs = np.array([1.0, 0, 1, 0] * 25), np.array([1.0, 1, 1, 0] * 25)
    kept = share_kept(mine, theirs)
    assert kept is not None
    assert kept.value == pytest.approx(2 / 3)
    assert kept.interval.low < 2 / 3 < kept.interval.high < 0.85


def test_systems_that_never_differed_are_not_called_equal_for_sure() -> None:
    same = np.array([1.0, 0.0] * 20)
    kept = share_kept(same, same)
    assert kept is not None
    assert kept.value == 1
    assert kept.interval.low < 0.99 < 1.01 < kept.interval.high
    assert share_kept(same, np.zeros(40)) is None


def test_the_interval_of_the_share_kept_holds_what_it_says() -> None:
    random, inside = np.random.default_rng(1), 0
    for _ in range(150):
        u = random.random((80, 2))
        theirs = (u[:, 0] < 0.6).astype(float)
        mine = np.where(u[:, 1] < 0.15, (u[:, 1] < 0.06).astype(float), theirs)  # of 0.15 that differ, 0.06 are right
        kept = share_kept(mine, theirs, draws=400)
        assert kept is not None
        truth = (0.85 * 0.6 + 0.06) / 0.6
        inside += kept.interval.low <= truth <= kept.interval.high
    assert inside / 150 > 0.9


def test_the_share_of_cost_is_a_quotient_of_means() -> None:
    told = cost_share(np.array([10.0, 30.0] * 20), np.array([100.0, 60.0] * 20))
    assert told.value == 0.25
    assert isinstance(told, Ratio)
    assert told.interval.low < 0.25 < told.interval.high


def test_what_holds_is_a_standard_error_above_zero() -> None:
    # Ten differences of 0.1 and -0.1 + 2 m: mean m, variance 0.01; the ends add 1 / n.
    def told(mean: float, margin: float = 1.0) -> bool:
        values = np.array([mean - 0.1, mean + 0.1] * 5)
        return bool(holds(values.sum(), (values**2).sum(), 10, margin))

    error = math.sqrt(0.01 / 10 + 1 / 100)
    assert told(error + 1e-6)
    assert not told(error - 1e-6)
    assert told(0.0, margin=0)
    assert not told(-1e-6, margin=0)

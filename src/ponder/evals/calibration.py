"""Probabilities that mean what they say, and thresholds that are set on one part of the data and judged on another.

A logistic regression with an L2 penalty, by Newton's method with halved steps (iteratively reweighted least squares),

    min_{w, b}  sum_i -(t_i log p_i + (1 - t_i) log(1 - p_i)) + (strength / 2) |w|^2
    p_i = 1 / (1 + exp(-(b + w . z_i)))

over standardised features z. The targets t are Platt's: (N1 + 1) / (N1 + 2) for what was right and 1 / (N0 + 2) for
what was wrong, so that answers that were all right, or all wrong, still give a probability inside (0, 1) (Platt,
Probabilistic Outputs for Support Vector Machines, 1999). The strength is the one with the least
log loss out of fold; the greatest leaves nothing but the base rate.

Questions are dealt to folds by the hash of their ids: the same on every machine and in every order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ponder.errors import InputError
from ponder.evals.statistics import (
    Interval,
    bootstrap_means,
    percentiles,
    wilson,
)

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

FOLDS = 5
LEAST = 20
"""Questions below which nothing is calibrated: a fold would have fewer than four."""

STRENGTHS = (1e6, 100.0, 10.0)
"""Penalties tried, strongest first: the first leaves the base rate alone."""

_STEPS = 100
_CERTAIN = 1e-12
"""Probabilities are kept so far from 0 and 1 in a log loss."""


# ---------------------------------------------------------------- folds


def folds(ids: Sequence[str], k: int = FOLDS) -> Places:
    """The fold of each question (questions,), 0 to k - 1: folds are as large as each other, to one."""
    if not 2 <= k <= len(ids):
        raise InputError(f"{len(ids)} questions cannot be dealt to {k} folds", "give more questions")
    ranked = sorted(range(len(ids)), key=lambda i: hashlib.sha256(ids[i].encode("utf-8", "replace")).digest())
    places = np.empty(len(ids), dtype=np.int64)
    places[ranked] = np.arange(len(ids)) % k
    return places


def enough(n: int) -> None:
    """Raises InputError where there are too few questions to calibrate on."""
    if n < LEAST:
        raise InputError(f"{n} questions are too few to calibrate on", f"measure at least {LEAST}, better hundreds")


# ---------------------------------------------------------------- logistic regression


@dataclass(frozen=True)
class Logistic:
    """b and w (features,), on features as they are."""

    bias: float
    weights: Array

    def __call__(self, x: Array) -> Array:
        """Probabilities (questions,) for features (questions, features)."""
        return _sigmoid(x @ self.weights + self.bias)


@dataclass(frozen=True)
class Fitted:
    """A regression on all questions, its penalty, and what each question was given by one that never saw it."""

    logistic: Logistic
    strength: float
    held_out: Array


def fit(x: Array, right: Array, strength: float) -> Logistic:
    """The regression of `right` (questions,), 0 to 1, on features (questions, features).

    A feature that is the same for all questions gets no weight.
    """
    mean, spread = x.mean(axis=0), x.std(axis=0)
    varies = spread > 1e-9 * np.maximum(1.0, np.abs(mean))
    scale = np.where(varies, spread, 1.0)
    z = np.column_stack([np.ones(len(x)), np.where(varies, (x - mean) / scale, 0.0)])
    found = _newton(z, _targets(right), np.array([0.0, *[strength] * x.shape[1]]))
    weights = np.where(varies, found[1:] / scale, 0.0)
    return Logistic(float(found[0] - weights @ mean), weights)


def cross_fit(x: Array, right: Array, ids: Sequence[str], k: int = FOLDS) -> Fitted:
    """The regression with the penalty that predicts best out of fold, and those predictions."""
    fold = folds(ids, k)
    best: tuple[float, float, Array] | None = None
    for strength in STRENGTHS:
        held_out = np.empty(len(x))
        for part in range(k):
            inside = fold != part
            held_out[~inside] = fit(x[inside], right[inside], strength)(x[~inside])
        loss = log_loss(held_out, right)
        if best is None or loss < best[0]:
            best = (loss, strength, held_out)
    assert best is not None
    return Fitted(fit(x, right, best[1]), best[1], best[2])


def log_loss(predicted: Array, right: Array) -> float:
    """mean_i -(y_i log p_i + (1 - y_i) log(1 - p_i)), in nats."""
    p = np.clip(predicted, _CERTAIN, 1 - _CERTAIN)
    return float(-(right * np.log(p) + (1 - right) * np.log(1 - p)).mean())


def _targets(right: Array) -> Array:
    ones = right.sum()
    low, high = 1 / (len(right) - ones + 2), (ones + 1) / (ones + 2)
    return np.asarray(right * high + (1 - right) * low, dtype=np.float64)


def _newton(z: Array, targets: Array, penalty: Array) -> Array:
    found = np.zeros(z.shape[1])
    found[0] = np.log(targets.mean() / (1 - targets.mean()))
    loss = _loss(z, targets, penalty, found)
    for _ in range(_STEPS):
        p = _sigmoid(z @ found)
        gradient = z.T @ (p - targets) + penalty * found
        if np.abs(gradient).max() < 1e-8 * len(z):
            break
        curvature = (z * (p * (1 - p))[:, None]).T @ z + np.diag(penalty + 1e-12)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while (new := _loss(z, targets, penalty, found - size * step)) > loss and size > 1e-9:
            size /= 2
        if new >= loss:  # as near as rounding lets it come
            break
        found, loss = found - size * step, new
    return found


def _loss(z: Array, targets: Array, penalty: Array, found: Array) -> float:
    odds = z @ found
    return float((np.logaddexp(0, odds) - targets * odds).sum() + (penalty * found**2).sum() / 2)


def _sigmoid(odds: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(odds, -500, 500))), dtype=np.float64)


# ---------------------------------------------------------------- reliability


@dataclass(frozen=True)
class Bin:
    """`n` questions of similar predictions: their mean prediction, and the share that was right with its interval."""

    n: int
    predicted: float
    right: float
    interval: Interval


@dataclass(frozen=True)
class Reliability:
    """How far predictions are what they say. `error` is the expected calibration error, `brier` the mean squared one.

    `base` is the Brier score of predicting the same share for every question: what a prediction has to beat.
    """

    bins: tuple[Bin, ...]
    error: float
    brier: float
    base: float
    n: int


def reliability(predicted: Array, right: Array, bins: int = 10, confidence: float = 0.95) -> Reliability:
    """The reliability diagram of predictions (questions,) of what was `right` (questions,).

    Bins hold about equally many questions, equal predictions together (Nixon et al., Measuring Calibration in Deep
    Learning, 2019); intervals are Wilson's. The error is sum_b n_b / n |right_b - predicted_b|
    (Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning, 2015).
    """
    order = np.argsort(predicted, kind="stable")
    edges = {len(order) * b // bins for b in range(1, bins)}
    starts = [i for i in range(len(order)) if i == 0 or (i in edges and predicted[order[i]] > predicted[order[i - 1]])]
    found = []
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        inside = order[start:end]
        share = float(right[inside].mean())
        told = wilson(round(float(right[inside].sum())), len(inside), confidence)
        found.append(Bin(len(inside), float(predicted[inside].mean()), share, told))
    error = sum(b.n * abs(b.right - b.predicted) for b in found) / len(order)
    brier = float(((predicted - right) ** 2).mean())
    return Reliability(tuple(found), error, brier, float(((right.mean() - right) ** 2).mean()), len(order))


# ---------------------------------------------------------------- what is kept, and at which cost


@dataclass(frozen=True)
class Ratio:
    """A quotient of two means over the same questions, and its bootstrap interval."""

    value: float
    interval: Interval


def share_kept(mine: Array, theirs: Array, confidence: float = 0.95, *, draws: int = 4000) -> Ratio | None:
    """Mean of `mine` over mean of `theirs`, both (questions,) within 0 and 1; None where the second is 0.

    The bootstrap is that of `statistics`, with the least and the greatest difference as its two ends, so that two
    systems that never differed on these questions are not called equal on all.
    """
    if theirs.mean() == 0:
        return None
    columns = np.column_stack([(mine - theirs + 1) / 2, 1 - theirs])  # its ends: (-1, 1) and (1, 0)
    drawn = bootstrap_means(columns, draws=draws)
    ratios = 1 + (2 * drawn[:, 0] - 1) / np.maximum(1 - drawn[:, 1], _CERTAIN)
    return Ratio(float(mine.mean() / theirs.mean()), percentiles(ratios, confidence))


def cost_share(mine: Array, theirs: Array, confidence: float = 0.95, *, draws: int = 4000) -> Ratio:
    """Mean of `mine` over mean of `theirs`, both costs (questions,) above 0."""
    drawn = bootstrap_means(np.column_stack([mine, theirs]), None, draws=draws)
    return Ratio(float(mine.mean() / theirs.mean()), percentiles(drawn[:, 0] / drawn[:, 1], confidence))


def holds(sums: Array, squares: Array, n: int, margin: float = 1.0) -> Array:
    """Whether the mean of n differences is at least `margin` standard errors above 0, of their `sums` and `squares`.

    As in the intervals of `statistics`, half a question with either end, 1 and -1, is supposed to have been seen too.
    Of several settings the luckiest one holds by more than it is worth; the margin is also for that.
    """
    mean = sums / n
    error = np.sqrt(np.maximum(squares / n - mean**2, 0) / n + 1 / n**2)
    return np.asarray(mean >= margin * error - 1e-12)

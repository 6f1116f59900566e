"""Means over questions with intervals, and the difference of two systems on the same questions.

The questions are the sample: repetitions of one question are one cluster, of which only the mean counts
(Miller, "Adding Error Bars to Evals", 2024, section 2.2). Intervals are percentiles of a Bayesian bootstrap
(Rubin, "The Bayesian Bootstrap", 1981) over questions,

    mean* = sum_i w_i x_i,    w ~ Dirichlet(1, ..., 1, 1/2, 1/2)

where the last two weights belong to the least and the greatest score there can be. For scores of 0 and 1
this is Jeffreys' interval, Beta(right + 1/2, wrong + 1/2), whose coverage stays near the nominal one where
resampled questions fall short of it, and which does not shrink to a point when every answer is right
(Brown, Cai and DasGupta, "Interval Estimation for a Binomial Proportion", 2001, section 4.1). As theirs, it begins at
the least score where every one is the least, and ends at the greatest where every one is the greatest: a percentile
would leave out there what the data say is likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, isfinite, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ponder.errors import InputError

Array = npt.NDArray[np.float64]

_AT_ONCE = 2_000_000
"""Random numbers held at a time: 16 MB."""


class Interval(NamedTuple):
    """From `low` to `high`, both included."""

    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """The mean over `n` questions, and its interval."""

    value: float
    interval: Interval
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of a minus mean of b over the same `n` questions, and its interval.

    `better` and `worse` count the questions on which a beat b and lost to it. `p_value` is that of the exact
    McNemar test, and None where a score is neither 0 nor 1 or a question was repeated.
    """

    value: float
    interval: Interval
    n: int
    better: int
    worse: int
    p_value: float | None


def wilson(right: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson, 1927; Brown, Cai and DasGupta, 2001, equation 4).

    (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n) with p = right / n. It is for independent
    answers, one a question; `mean_interval` is for repeated ones.
    """
    if n < 1 or not 0 <= right <= n:
        raise InputError(f"{right} right of {n} is no proportion", "give 0 <= right <= n, with n at least 1")
    z = NormalDist().inv_cdf((1 + _fraction(confidence)) / 2)
    p, square = right / n, z * z / n
    middle, half = p + square / 2, z * sqrt(p * (1 - p) / n + square / (4 * n))
    low, high = (middle - half) / (1 + square), (middle + half) / (1 + square)
    return Interval(0.0 if right == 0 else low, 1.0 if right == n else high)  # rounding would miss the ends


def mean_interval(
    scores: Sequence[Sequence[float]],
    confidence: float = 0.95,
    *,
    bounds: tuple[float, float] | None = (0, 1),
    draws: int = 4000,
    seed: int = 0,
) -> Mean:
    """The mean over questions, each of which counts alike however often it was repeated, and its interval.

    `scores[i]` are those of question i's repetitions. `bounds` are the least and the greatest score there can
    be; None leaves their two weights out. The order of the questions does not matter.
    """
    return _mean(_by_question(scores, bounds), confidence, bounds, draws, seed)


def paired_difference(
    a: Sequence[Sequence[float]],
    b: Sequence[Sequence[float]],
    confidence: float = 0.95,
    *,
    bounds: tuple[float, float] | None = (0, 1),
    draws: int = 4000,
    seed: int = 0,
) -> Difference:
    """How much better a is than b, where `a[i]` and `b[i]` are scores of the same question i.

    The bootstrap runs over the questions' differences, so what makes a question hard for both cancels.
    """
    if len(a) != len(b):
        raise InputError(f"{len(a)} questions are paired with {len(b)}", "give both systems' scores of the same ones")
    differences = _by_question(a, bounds) - _by_question(b, bounds)
    spread = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    mean = _mean(differences, confidence, spread, draws, seed)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    single = all(len(each) == 1 and each[0] in (0, 1) for each in [*a, *b])
    return Difference(mean.value, mean.interval, mean.n, better, worse, mcnemar(better, worse) if single else None)


def mcnemar(better: int, worse: int) -> float:
    """Two-sided p of the exact McNemar test, the sign test of the pairs that differ (McNemar, 1947).

    min(1, 2 P(X <= min(better, worse))) with X ~ Binomial(better + worse, 1/2).
    """
    pairs = better + worse
    tail = sum(comb(pairs, count) for count in range(min(better, worse) + 1))
    return min(1.0, float(2 * tail / (1 << pairs)))


def bootstrap_means(
    scores: Array, bounds: tuple[float, float] | None = (0, 1), *, draws: int = 4000, seed: int = 0
) -> Array:
    """Replicates (draws, columns) of the mean over questions of `scores` (questions, columns).

    All columns of a replicate share their weights, so that what is compared was asked the same questions.
    """
    if draws < 1:
        raise InputError(f"{draws} replicates are none", "ask for at least 1, better for thousands")
    rows = scores[np.lexsort(scores.T)]
    questions = len(rows)
    random = np.random.default_rng(seed % 2**64)
    block = max(1, _AT_ONCE // questions)
    means = []
    for begin in range(0, draws, block):
        size = min(block, draws - begin)
        weights = random.standard_exponential((size, questions))
        sums, totals = weights @ rows, weights.sum(axis=1)
        if bounds is not None:
            ends = random.standard_gamma(0.5, (size, 2))
            sums += (ends @ np.array(bounds, dtype=np.float64))[:, None]
            totals += ends.sum(axis=1)
        means.append(sums / totals[:, None])
    return np.concatenate(means)


def percentiles(replicates: Array, confidence: float = 0.95) -> Interval:
    """The interval that leaves out (1 - confidence) / 2 of `replicates` (draws,) on either side."""
    tail = (1 - _fraction(confidence)) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Interval(float(low), float(high))


def interval_of_mean(
    replicates: Array, scores: Array, confidence: float = 0.95, bounds: tuple[float, float] | None = (0, 1)
) -> Interval:
    """The interval of the mean of `scores` (questions,) with its `replicates` (draws,)."""
    low, high = percentiles(replicates, confidence)
    if bounds is None:
        return Interval(low, high)
    least, greatest = bounds
    return Interval(
        float(least) if np.all(scores == least) else low, float(greatest) if np.all(scores == greatest) else high
    )


def _mean(values: Array, confidence: float, bounds: tuple[float, float] | None, draws: int, seed: int) -> Mean:
    if bounds is None and len(values) < 2:
        raise InputError("one question alone says nothing about others", "give more questions, or the scores' bounds")
    replicates = bootstrap_means(values[:, None], bounds, draws=draws, seed=seed)[:, 0]
    return Mean(float(values.mean()), interval_of_mean(replicates, values, confidence, bounds), len(values))


def _by_question(scores: Sequence[Sequence[float]], bounds: tuple[float, float] | None) -> Array:
    """Each question's mean (questions,)."""
    if len(scores) == 0 or any(len(each) == 0 for each in scores):
        raise InputError("a mean needs a score", "give at least one question, and at least one score to each")
    low, high = (float("-inf"), float("inf")) if bounds is None else bounds
    for each in scores:
        for score in each:
            if not (isfinite(score) and low <= score <= high):
                raise InputError(f"the score {score} is not within {low} and {high}", "set `bounds` to what can be")
    return np.array([sum(each) / len(each) for each in scores], dtype=np.float64)


def _fraction(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"a confidence of {confidence} cannot be", "give one between 0 and 1, such as 0.95")
    return confidence

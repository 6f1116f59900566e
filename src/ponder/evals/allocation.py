"""Levels for `strategies.allocate`, from one pool of samples a question (`vote(32)`): samples by difficulty.

The difficulty of a question is the agreement b of its first m samples. For each b that occurs,

    share_b = P(agreement = b),    A_b(n) = P(vote of n is right | agreement of the first m of them = b)

both over questions and random orders of their pools. The levels maximise

    sum_b share_b A_b(n_b)   under   sum_b share_b n_b <= mean samples

greedily: each A_b is replaced by its upper concave hull, and the steps of all hulls are taken by falling gain a
sample, as long as they fit. That is the optimum of the linear relaxation but for the last step (a knapsack with
concave parts; Fox, Discrete Optimization via Marginal Analysis, 1966). Accuracy is reported out of fold, and paired
with votes of the same mean number of samples for every question.

Source: Snell et al., Scaling LLM Test-Time Compute Optimally (2024), section 3, with the model's own agreement in
place of their bins of difficulty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor

import numpy as np
import numpy.typing as npt

from ponder.errors import InputError
from ponder.evals.calibration import FOLDS, Array, Places, enough, folds
from ponder.evals.results import Judged, Run
from ponder.evals.statistics import Difference, Mean, mean_interval, paired_difference

Levels = tuple[tuple[float, int], ...]

_LEAST_SHARE = 1e-9


@dataclass(frozen=True)
class Orders:
    """What random orders of each question's pool would have given.

    `share` (questions, bins): how often the first samples had the agreement of a bin; `right` (questions, bins,
    sizes): how often the vote of so many samples was right then, times that share. `agreements` (bins,) fall.
    """

    agreements: tuple[float, ...]
    sizes: tuple[int, ...]
    share: Array
    right: Array


@dataclass(frozen=True)
class Allocation:
    """Levels, and out of fold: accuracy, mean samples, and the difference to as many samples for every question."""

    first: int
    levels: Levels
    accuracy: Mean
    samples: float
    difference: Difference

    @property
    def strategy(self) -> str:
        """The expression of the strategy."""
        told = ", ".join(f"({least:g}, {n})" for least, n in self.levels)
        return f"allocate({self.first}, ({told}{',' * (len(self.levels) == 1)}))"


def allocate_by_difficulty(
    pool: Run, samples: float, *, first: int = 4, k: int = FOLDS, draws: int = 200, seed: int = 0
) -> Allocation:
    """The levels that make most of a mean of `samples` a question, which the pool must have at least twice.

    Raises InputError for too few questions or samples.
    """
    drawn: dict[str, list[Judged]] = {}
    for result in pool.results:
        drawn.setdefault(result.question, []).extend(result.samples)
    enough(len(drawn))
    most = min(map(len, drawn.values()))
    if not (1 <= first <= samples and 2 * samples <= most):
        raise InputError(
            f"{samples:g} samples on average, {first} of them first, cannot be chosen from pools of {most}",
            "draw a larger pool, or ask for fewer samples",
        )
    orders = ordered([judged[:most] for judged in drawn.values()], first, draws, seed)
    fold = folds(tuple(drawn), k)
    chosen = np.stack([_sizes(orders, fold != part, samples) for part in range(k)])[fold]  # (questions, bins)
    mine, spent = _outcome(orders, chosen)
    same = _everywhere(orders, float(spent.mean()))
    return Allocation(
        first,
        levels_of(orders.agreements, _taken(orders, _sizes(orders, np.ones(len(fold), dtype=bool), samples))),
        mean_interval(mine[:, None].tolist()),
        float(spent.mean()),
        paired_difference(mine[:, None].tolist(), same[:, None].tolist()),
    )


# ---------------------------------------------------------------- random orders


def ordered(pools: Sequence[Sequence[Judged]], first: int, draws: int = 200, seed: int = 0) -> Orders:
    """`draws` random orders of each pool; tied answers share a vote's win equally. Pools are of one size."""
    most = len(pools[0])
    sizes = tuple(range(first, most + 1))
    agreements = tuple(votes / first for votes in range(first, -1, -1))
    share = np.zeros((len(pools), len(agreements)))
    right = np.zeros((len(pools), len(agreements), len(sizes)))
    random = np.random.default_rng(seed)
    for place, pool in enumerate(pools):
        votes, verdicts = _votes(pool)
        order = random.random((draws, most)).argsort(axis=1)
        counts = votes[order].cumsum(axis=1)[:, first - 1 :]  # (draws, sizes, answers)
        top = counts.max(axis=2, keepdims=True, initial=0)
        tied = (counts == top) & (top > 0)
        won = (tied @ verdicts) / np.maximum(tied.sum(axis=2), 1)  # (draws, sizes)
        bins = first - top[:, 0, 0].astype(np.int64)
        np.add.at(share[place], bins, 1 / draws)
        np.add.at(right[place], bins, won / draws)
    return Orders(agreements, sizes, share, right)


def _votes(pool: Sequence[Judged]) -> tuple[Array, Array]:
    """Who voted for what (samples, answers), and which answers are right (answers,). What was cut short has no vote."""
    places: dict[str, int] = {}
    given = [(row, each) for row, each in enumerate(pool) if each.kept and each.answer is not None]
    for _, sample in given:
        places.setdefault(str(sample.answer), len(places))
    votes, verdicts = np.zeros((len(pool), len(places))), np.zeros(len(places))
    for row, sample in given:
        votes[row, places[str(sample.answer)]] = 1
        verdicts[places[str(sample.answer)]] = sample.correct
    return votes, verdicts


# ---------------------------------------------------------------- the best levels


def hull(values: Array) -> list[int]:
    """The places of the corners of the upper concave hull of `values` (sizes,), from the first up to the highest."""
    corners = [0]
    for place in range(1, int(values.argmax()) + 1):
        while len(corners) > 1 and _slope(values, corners[-2], corners[-1]) <= _slope(values, corners[-1], place):
            corners.pop()
        corners.append(place)
    return corners


def _slope(values: Array, start: int, end: int) -> float:
    return float(values[end] - values[start]) / (end - start)


def greedy(share: Array, right: Array, more: float) -> Places:
    """How many samples each bin gets beyond the first, in places of `right` (bins, sizes), for `more` on average.

    `share` (bins,) and `right` are means over questions, `right` already times the share.
    """
    steps = []
    for b in range(len(share)):
        corners = hull(right[b]) if share[b] > _LEAST_SHARE else [0]
        for start, end in pairwise(corners):
            steps.append((-_slope(right[b], start, end) / share[b], b, start, end))
    chosen = np.zeros(len(share), dtype=np.int64)
    for _, b, start, end in sorted(steps):
        cost = share[b] * (end - start)
        # A bin whose last step did not fit takes no later one: its gain would be counted from where it is not.
        if chosen[b] == start and cost <= more + 1e-12:
            chosen[b], more = end, more - cost
    return chosen


def levels_of(agreements: Sequence[float], samples: Sequence[int]) -> Levels:
    """Levels of falling agreement, equal neighbours as one, the last from 0 on."""
    levels: list[tuple[float, int]] = []
    for least, n in zip(agreements, samples, strict=True):
        if levels and levels[-1][1] == n:
            levels.pop()
        levels.append((floor(least * 1e6) / 1e6, n))  # never above the share itself
    return tuple(levels)


def _sizes(orders: Orders, inside: npt.NDArray[np.bool_], samples: float) -> Places:
    """The place of the size that each bin gets (bins,), of the questions `inside`."""
    share, right = orders.share[inside].mean(axis=0), orders.right[inside].mean(axis=0)
    return greedy(share, right, samples - orders.sizes[0])


def _taken(orders: Orders, chosen: Places) -> list[int]:
    return [orders.sizes[place] for place in chosen]


def _outcome(orders: Orders, chosen: Places) -> tuple[Array, Array]:
    """Accuracy and samples of each question (questions,), where bins get the sizes at `chosen` (questions, bins)."""
    right = np.take_along_axis(orders.right, chosen[:, :, None], axis=2)[:, :, 0].sum(axis=1)
    spent = (orders.share * np.array(orders.sizes)[chosen]).sum(axis=1)
    return np.clip(right, 0, 1), np.asarray(spent, dtype=np.float64)


def _everywhere(orders: Orders, samples: float) -> Array:
    """Accuracy of each question (questions,) with `samples` for all: between two whole numbers, so many get either."""
    curve = np.clip(orders.right.sum(axis=1), 0, 1)  # (questions, sizes)
    low = min(int(samples), orders.sizes[-1]) - orders.sizes[0]
    high = min(low + 1, len(orders.sizes) - 1)
    part = samples - int(samples)
    return np.asarray((1 - part) * curve[:, low] + part * curve[:, high], dtype=np.float64)

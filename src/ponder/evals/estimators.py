"""What k samples would have scored, estimated from one pool of n >= k samples of a question.

Every estimate is the mean over all subsets of k of the pool, drawn without replacement, and therefore
unbiased: the expectation over pools is that of k fresh samples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations
from math import comb, isnan

import numpy as np
import numpy.typing as npt

from ponder.errors import InputError

Array = npt.NDArray[np.float64]

_SAME = 1e-9
"""Sums of votes that differ by less, as a share of the heaviest, differ by rounding: they are tied."""


def pass_at_k(right: int, n: int, k: int) -> float:
    """The chance that one of k samples is right, where `right` of n were.

    1 - C(n - right, k) / C(n, k) (Chen et al., "Evaluating Large Language Models Trained on Code", 2021,
    equation 1), in whole numbers up to the one division, so that nothing cancels or overflows.
    """
    _check(n, k)
    if not 0 <= right <= n:
        raise InputError(f"{right} of {n} samples cannot be right", "give 0 <= right <= n")
    subsets = comb(n, k)
    return (subsets - comb(n - right, k)) / subsets


def majority(answers: Sequence[Hashable | None], weights: Sequence[float] | None = None) -> Hashable | None:
    """The answer with the heaviest vote (Wang et al., "Self-Consistency", 2022, section 2).

    The samples come in the order in which they started: of tied answers, the one that the earliest sample
    gave wins, whichever sample ended first. None is no answer and has no vote; it wins where nobody votes.
    """
    votes, given = _votes(answers, weights)
    if not given:
        return None
    sums = votes.sum(axis=0)
    return given[int((sums >= sums.max() * (1 - _SAME)).argmax())]


def majority_at_k(
    answers: Sequence[Hashable | None],
    correct: Sequence[bool],
    k: int,
    weights: Sequence[float] | None = None,
    *,
    exact: int = 20_000,
    draws: int = 20_000,
    seed: int = 0,
) -> float:
    """The expected accuracy of a vote of k samples, each with its own weight (None: all alike).

    mean over subsets S of |correct among the tied of S| / |the tied of S|: tied answers share the win
    equally, as the subsets have no order. Without weights that is also what `majority` comes to over random
    orders, since tied answers then have equally many samples. A subset without a vote is wrong.

    Exact where there are at most `exact` subsets; else the mean of `draws` random ones, with a standard
    error of at most 1 / (2 sqrt(draws)).
    """
    _check(len(answers), k)
    votes, given = _votes(answers, weights)
    verdicts = _verdicts(answers, correct, given)
    if not given:
        return 0.0
    members = _subsets(len(answers), k, exact, draws, seed)
    sums = members @ votes
    most = sums.max(axis=1, keepdims=True)
    tied = (sums >= most * (1 - _SAME)) & (most > 0)
    return float(((tied @ verdicts) / np.maximum(tied.sum(axis=1), 1)).mean())


def best_of_k(scores: Sequence[float], correct: Sequence[float], k: int) -> float:
    """The expected correctness of the highest-scored of k samples; equal scores share the win evenly.

    sum over distinct scores s of (C(n_<=s, k) - C(n_<s, k)) / C(n, k) * mean correctness at s, where n_<=s
    samples score at most s: within equal scores every sample is as likely as any other to be the one picked.
    """
    _check(len(scores), k)
    _aligned(scores, correct)
    if any(isnan(score) for score in scores):
        raise InputError("a score is not a number", "leave out the samples that have none, or score them lowest")
    groups: dict[float, list[float]] = {}
    for score, verdict in zip(scores, correct, strict=True):
        groups.setdefault(score, []).append(verdict)
    subsets, below, total = comb(len(scores), k), 0, 0.0
    for score in sorted(groups):
        upto = below + len(groups[score])
        total += (comb(upto, k) - comb(below, k)) / subsets * (sum(groups[score]) / len(groups[score]))
        below = upto
    return total


def _votes(answers: Sequence[Hashable | None], weights: Sequence[float] | None) -> tuple[Array, list[Hashable]]:
    """What each sample adds to each answer (samples, answers), and the answers by first appearance."""
    if weights is None:
        weights = [1.0] * len(answers)
    _aligned(answers, weights)
    if not all(0 <= weight < float("inf") for weight in weights):
        raise InputError("a vote's weight is negative or no number", "give finite weights of at least 0")
    places: dict[Hashable, int] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None and weight > 0:
            places.setdefault(answer, len(places))
    votes = np.zeros((len(answers), len(places)))
    for row, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        if answer is not None and weight > 0:
            votes[row, places[answer]] = weight
    return votes, list(places)


def _verdicts(answers: Sequence[Hashable | None], correct: Sequence[bool], given: list[Hashable]) -> Array:
    """Whether each of `given` is right (answers,)."""
    _aligned(answers, correct)
    known: dict[Hashable | None, bool] = {}
    for answer, verdict in zip(answers, correct, strict=True):
        if known.setdefault(answer, bool(verdict)) != bool(verdict):
            raise InputError(f"the answer {answer!r} is called both right and wrong", "judge equal answers alike")
    return np.array([known[answer] for answer in given], dtype=np.float64)


def _subsets(n: int, k: int, exact: int, draws: int, seed: int) -> Array:
    """Which samples are in each subset (subsets, n), as 0 and 1: all subsets of k, or random ones."""
    count = comb(n, k)
    if count <= exact:
        chosen = np.array(list(combinations(range(n), k)), dtype=np.int64)
    elif draws < 1:
        raise InputError(f"{draws} random subsets are none", "ask for at least 1, better for thousands")
    else:
        order = np.random.default_rng(seed % 2**64).random((draws, n))
        chosen = order.argpartition(k - 1, axis=1)[:, :k]
    members = np.zeros((len(chosen), n))
    np.put_along_axis(members, chosen, 1.0, axis=1)
    return members


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise InputError(f"{k} samples cannot be drawn from {n}", "give 1 <= k <= n, or draw a larger pool")


def _aligned(samples: Sequence[object], others: Sequence[object]) -> None:
    if len(samples) != len(others):
        raise InputError(f"{len(samples)} samples came with {len(others)} values", "give one value to each sample")

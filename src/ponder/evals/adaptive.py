"""What a vote that stops early would have come to, from one pool of samples.

    E[accuracy], E[tokens]  over random orders of the pool, of the rule of `strategies.self_consistency`:
    in the order of their start, stop at the first sample after which the whole vote would give another
    answer with at most `risk` (`overtaken`); what was started by then is paid for

Samples start in waves, and a wave is counted whole: the strategy cuts short what still runs when it has
decided, so it pays a little less. Where samples end in another order than they started in, the strategy sees
several at once and may pass over a moment at which it would have stopped; that is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import permutations
from math import factorial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ponder.errors import InputError
from ponder.strategies.self_consistency import overtaken

WAVE = 4
"""Samples that a vote with a risk starts at a time."""


class Expected(NamedTuple):
    """Means over orders: the accuracy, the tokens paid for, and the samples started."""

    accuracy: float
    tokens: float
    samples: float


def adaptive_vote(
    answers: Sequence[str | None],
    correct: Sequence[float],
    tokens: Sequence[float],
    k: int,
    risk: float,
    *,
    wave: int = WAVE,
    exact: int = 5040,
    orders: int = 400,
    seed: int = 0,
) -> Expected:
    """`vote(k, risk=risk)` over a pool of at least k samples with their answers, verdicts and tokens.

    Over all orders where the pool has at most `exact` of them, else over `orders` random ones.
    """
    n = len(answers)
    if not 1 <= k <= n or not len(correct) == len(tokens) == n:
        raise InputError(f"{k} samples cannot be drawn from {n}", "give 1 <= k <= n, and a verdict and tokens to each")
    order = _orders(n, k, exact, orders, seed)
    ranks = np.arange(len(order))
    known = list(dict.fromkeys(answer for answer in answers if answer is not None))
    given = np.array([[answer == each for each in known] for answer in answers], dtype=np.int64).reshape(n, len(known))
    votes = given[order].cumsum(axis=1)  # (orders, k, answers)
    decided = _decisions(k, risk)[np.arange(k), _largest(votes, 1), _largest(votes, 2)]
    last = np.where(decided.any(axis=1), decided.argmax(axis=1), k - 1)
    started = np.minimum(k, (last // wave + 1) * wave)
    winner = order[ranks, _winners(votes[ranks, last], given[order])]
    paid = np.array(tokens, dtype=np.float64)[order].cumsum(axis=1)[ranks, started - 1]
    verdicts = np.array(correct, dtype=np.float64)[winner]
    return Expected(float(verdicts.mean()), float(paid.mean()), float(started.mean()))


def _orders(n: int, k: int, exact: int, orders: int, seed: int) -> npt.NDArray[np.int64]:
    """The first k of all orders of n, or of random ones (orders, k)."""
    if factorial(n) <= exact:
        return np.array(list(permutations(range(n))), dtype=np.int64)[:, :k]
    if orders < 1:
        raise InputError(f"{orders} random orders are none", "ask for at least 1, better for hundreds")
    return np.random.default_rng(seed % 2**64).random((orders, n)).argsort(axis=1)[:, :k]


@cache
def _decisions(k: int, risk: float) -> npt.NDArray[np.bool_]:
    """Whether v1 votes against v2 decide it after the i-th sample, at [i, v1, v2]."""
    found = np.zeros((k, k + 1, k + 1), dtype=np.bool_)
    for i in range(k):
        for v1 in range(1, i + 2):
            for v2 in range(min(v1, i + 1 - v1) + 1):
                found[i, v1, v2] = overtaken(v1, v2, k - i - 1) <= risk
    return found


def _largest(votes: npt.NDArray[np.int64], place: int) -> npt.NDArray[np.int64]:
    """The place-th largest count (orders, k); 0 where there are fewer answers."""
    answers = votes.shape[2]
    if answers < place:
        return np.zeros(votes.shape[:2], dtype=np.int64)
    return np.partition(votes, answers - place, axis=2)[:, :, answers - place]


def _winners(votes: npt.NDArray[np.int64], given: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The place in each order (orders,) of the first sample with the winning answer.

    Of tied answers the one that was begun first wins, and without any vote the first sample.
    `votes` (orders, answers) are those at the end, `given` (orders, k, answers) says who gave what.
    """
    if votes.shape[1] == 0:
        return np.zeros(len(votes), dtype=np.int64)
    first = np.where(given.any(axis=1), given.argmax(axis=1), given.shape[1])
    most = votes.max(axis=1, keepdims=True)
    places: npt.NDArray[np.int64] = np.where(votes == most, first, given.shape[1]).min(axis=1)
    return np.where(most[:, 0] > 0, places, 0)

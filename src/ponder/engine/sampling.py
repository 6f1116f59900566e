"""Choosing the next token from logits, and its log-probability.

Filters apply in the order temperature, top-k, min-p, top-p, as in vLLM:

    p_i = exp(z_i / T) / sum_j exp(z_j / T)
    top-k  keeps the k largest; min-p keeps p_i >= min_p * max p;
    top-p  keeps the smallest set of largest p_i whose sum reaches top_p (Holtzman et al., 2020)

The reported log-probability is the model's own, at temperature 1 and before any filter or constraint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ponder.errors import EngineError

Logits = npt.NDArray[np.float32]

_COLDEST, _HOTTEST = 1e-30, 1e30
"""Temperatures beyond these sample alike, and scaling by them could leave the range of float32."""

_BLOCK = 256


@dataclass(frozen=True)
class Sampling:
    """The settings of `protocols.SamplingParams` that choose tokens, with the seed drawn."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    ignore_eos: bool
    first: int = 0

    def random(self, index: int) -> np.random.Generator:
        """Sample `index`'s own stream of random numbers: it depends on nothing that runs beside it."""
        # A seed may have any sign; as a spawn key, the index never runs together with the words of a long seed.
        seed = np.random.SeedSequence(self.seed % 2**64, spawn_key=(self.first + index,))
        return np.random.Generator(np.random.PCG64(seed))


def pick(
    logits: Logits, sampling: Sampling, random: np.random.Generator, banned: npt.NDArray[np.int64] | None = None
) -> tuple[int, float]:
    """(token, log-probability) from `logits` (vocabulary,), which is left as it is.

    `banned` ids are never picked, and still count in the model's own probabilities. Raises EngineError
    for logits that are no numbers.
    """
    return picks(logits, sampling, [random], banned)[0]


def picks(
    logits: Logits,
    sampling: Sampling,
    randoms: Sequence[np.random.Generator],
    banned: npt.NDArray[np.int64] | None = None,
    allowed: npt.NDArray[np.bool_] | None = None,
) -> list[tuple[int, float]]:
    """What `pick` gives for each of several streams of random numbers, for little more than one costs.

    Nothing but what is `allowed` (vocabulary,) is picked: at least one token that is not banned.
    """
    peak = _peak(logits)
    weights = logits - peak
    exponentials = np.exp(weights)
    total = np.log(exponentials.sum())
    if allowed is not None:
        if banned is not None:
            allowed = allowed.copy()
            allowed[banned] = False
        banned = np.flatnonzero(~allowed)
        if 2 * banned.size > allowed.size:  # what is left is looked at alone
            tokens = _constrained(weights, sampling, randoms, np.flatnonzero(allowed))
            return [(token, float(logits[token] - peak - total)) for token in tokens]
    if banned is not None:
        weights[banned] = -np.inf
        weights -= weights.max()  # the rest would underflow where the model wants nothing but what is banned
    if sampling.temperature == 0:
        tokens = [int(weights.argmax())] * len(randoms)
    else:
        if sampling.temperature != 1 or banned is not None:
            weights *= np.float32(1 / min(max(sampling.temperature, _COLDEST), _HOTTEST))
            np.exp(weights, out=exponentials)
        tokens = _drawn(exponentials, sampling, randoms)
    return [(token, float(logits[token] - peak - total)) for token in tokens]


def _constrained(
    weights: Logits, sampling: Sampling, randoms: Sequence[np.random.Generator], ids: npt.NDArray[np.int64]
) -> list[int]:
    """Tokens out of `ids`, by the logarithms `weights` (vocabulary,): filters see nothing but these."""
    chosen = weights[ids]
    chosen -= chosen.max()  # they would underflow where the model wants none of them
    if sampling.temperature == 0:
        return [int(ids[chosen.argmax()])] * len(randoms)
    if sampling.temperature != 1:
        chosen *= np.float32(1 / min(max(sampling.temperature, _COLDEST), _HOTTEST))
    return [int(ids[place]) for place in _drawn(np.exp(chosen), sampling, randoms)]


def likeliest(logits: Logits, count: int) -> list[tuple[int, float]]:
    """The `count` likeliest tokens of `logits` (vocabulary,) with their log-probabilities, best first, then by number.

    Raises EngineError for logits that are no numbers.
    """
    peak = _peak(logits)
    count = min(count, logits.size)
    least = np.partition(logits, -count)[-count]
    ids = np.flatnonzero(logits >= least)  # as many as are tied with the last
    ids = ids[np.argsort(-logits[ids], kind="stable")][:count]
    total = np.log(np.exp(logits - peak).sum())
    return [(int(token), float(logits[token] - peak - total)) for token in ids]


def _drawn(weights: Logits, sampling: Sampling, randoms: Sequence[np.random.Generator]) -> list[int]:
    """Tokens drawn by unnormalised `weights` (vocabulary,), after the filters."""
    candidates: npt.NDArray[np.int64] | None = None
    if sampling.top_k and sampling.top_k < weights.size:
        candidates = np.argpartition(weights, -sampling.top_k)[-sampling.top_k :]
    if sampling.min_p > 0:
        candidates = _among(candidates, weights, lambda kept: np.flatnonzero(kept >= sampling.min_p * weights.max()))
    if sampling.top_p < 1:
        candidates = _among(candidates, weights, lambda kept: _nucleus(kept, sampling.top_p))
    if candidates is None:
        return [_place(weights, random.random()) for random in randoms]
    return [int(candidates[_place(weights[candidates], random.random())]) for random in randoms]


def _among(
    candidates: npt.NDArray[np.int64] | None, weights: Logits, chosen: Callable[[Logits], npt.NDArray[np.int64]]
) -> npt.NDArray[np.int64]:
    """Those of the candidates (None: all) that `chosen` keeps, which sees their weights alone."""
    return chosen(weights) if candidates is None else candidates[chosen(weights[candidates])]


def _nucleus(weights: Logits, top_p: float) -> npt.NDArray[np.int64]:
    """Places of the smallest set of the heaviest that sums to `top_p` of all `weights`.

    Sorting a whole vocabulary costs ten times what the rest of `pick` does, so only as much of its head
    is sorted as is sure to hold the nucleus.
    """
    enough = top_p * weights.sum(dtype=np.float64)
    head, least = np.arange(0), weights.max()
    while least > 0 and weights[head].sum(dtype=np.float64) < enough:
        least /= 8
        head = np.flatnonzero(weights >= least) if least > 0 else np.flatnonzero(weights)
    order = head[np.argsort(-weights[head], kind="stable")]
    cumulative = np.cumsum(weights[order], dtype=np.float64)
    return order[: int(np.searchsorted(cumulative, enough)) + 1]


def _place(weights: Logits, fraction: float) -> int:
    """Where `fraction`, in [0, 1), of the sum of `weights` is reached: never at a weight of 0.

    First by blocks, then within one: a running sum of a whole vocabulary took half the time of a step's sampling.
    """
    if weights.size <= 2 * _BLOCK:
        return _reached(np.cumsum(weights, dtype=np.float64), fraction)[0]
    sums = np.add.reduceat(weights, np.arange(0, weights.size, _BLOCK))
    block, within = _reached(np.cumsum(sums, dtype=np.float64), fraction)
    begin = block * _BLOCK
    return begin + _reached(np.cumsum(weights[begin : begin + _BLOCK], dtype=np.float64), within)[0]


def _reached(cumulative: npt.NDArray[np.float64], fraction: float) -> tuple[int, float]:
    """The first place whose running sum is beyond `fraction` of the total, and how far into its own share that is."""
    wanted = fraction * cumulative[-1]
    last = int(np.searchsorted(cumulative, cumulative[-1]))  # rounding must not lead beyond the last weight
    place = min(int(np.searchsorted(cumulative, wanted, side="right")), last)
    before = cumulative[place - 1] if place else 0.0
    return place, float((wanted - before) / (cumulative[place] - before))


def log_softmax_at(logits: Logits, token: int) -> float:
    """Log-probability of `token` under `logits` (vocabulary,). Raises EngineError for logits that are no numbers."""
    peak = _peak(logits)
    return float(logits[token] - peak - np.log(np.exp(logits - peak).sum()))


def _peak(logits: Logits) -> np.float32:
    peak: np.float32 = logits.max()
    if not np.isfinite(peak):
        raise EngineError("the model computed no numbers", "lower the adapters' scales, or fetch the weights again")
    return peak

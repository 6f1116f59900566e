"""Choosing the next token from logits, and its log-probability.

Filters apply in the order temperature, top-k, min-p, top-p, as in vLLM and transformers:

    p_i = exp(z_i / T) / sum_j exp(z_j / T)
    top-k  keeps the k largest; min-p keeps p_i >= min_p * max p;
    top-p  keeps the smallest set of largest p_i whose sum reaches top_p (Holtzman et al., 2020)

The reported log-probability is the model's own, at temperature 1 and before any filter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """The settings of `protocols.SamplingParams` that choose tokens, with the seed drawn."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    ignore_eos: bool

    def random(self, index: int) -> np.random.Generator:
        """Sample `index`'s own stream of random numbers: it depends on nothing that runs beside it."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, index])))


def pick(
    logits: Logits, sampling: Sampling, random: np.random.Generator, banned: npt.NDArray[np.int64] | None = None
) -> tuple[int, float]:
    """(token, log-probability) from `logits` (vocabulary,), which is left as it is."""
    peak = logits.max()
    weights = logits - peak
    if banned is not None:
        weights[banned] = -np.inf
    if sampling.temperature == 0:
        token = int(weights.argmax())
        return token, log_softmax_at(logits, token)
    exponentials = np.exp(weights)
    # Summed over the unfiltered logits: what is banned still counts in the model's own probability.
    total = exponentials.sum() if banned is None else np.exp(logits - peak).sum()
    if sampling.temperature != 1:
        np.multiply(weights, np.float32(1 / sampling.temperature), out=weights)
        np.exp(weights, out=exponentials)
        if not exponentials.any():  # everything but the banned underflowed at a low temperature
            return int(weights.argmax()), float(logits[int(weights.argmax())] - peak - np.log(total))
    token = _draw(exponentials, sampling, random)
    return token, float(logits[token] - peak - np.log(total))


def _draw(weights: Logits, sampling: Sampling, random: np.random.Generator) -> int:
    """A token drawn by unnormalised `weights` (vocabulary,), after the filters."""
    candidates: npt.NDArray[np.int64] | None = None
    if sampling.top_k and sampling.top_k < weights.size:
        candidates = np.argpartition(weights, -sampling.top_k)[-sampling.top_k :]
    if sampling.min_p > 0:
        candidates = np.arange(weights.size) if candidates is None else candidates
        candidates = candidates[weights[candidates] >= sampling.min_p * weights.max()]
    if sampling.top_p < 1:
        candidates = np.flatnonzero(weights) if candidates is None else candidates
        order = candidates[np.argsort(-weights[candidates], kind="stable")]
        cumulative = np.cumsum(weights[order], dtype=np.float64)
        candidates = order[: int(np.searchsorted(cumulative, sampling.top_p * cumulative[-1])) + 1]
    kept = weights if candidates is None else weights[candidates]
    cumulative = np.cumsum(kept, dtype=np.float64)
    place = int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
    place = min(place, kept.size - 1)
    return place if candidates is None else int(candidates[place])


def log_softmax_at(logits: Logits, token: int) -> float:
    """Log-probability of `token` under `logits` (vocabulary,)."""
    peak = logits.max()
    return float(logits[token] - peak - np.log(np.exp(logits - peak).sum()))

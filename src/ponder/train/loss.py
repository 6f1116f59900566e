"""Losses of policy optimisation as pure functions of packed tokens.

    loss = sum_t weight_t (surrogate_t + beta kl_t)

The aggregation is a weight per token, which `weights` computes once from the whole batch before that is cut into
micro-batches. Micro-batches and devices then only add up: however the sequences fall among them, the gradient is
that of the whole batch. (What averages gradients over N devices has to have this loss multiplied by N.)

Shapes: T tokens, those of all sequences one after the other without padding; B sequences.

    logprobs, old, reference   (T,) log-probability of each token: now; when it was sampled; under the reference
    advantages                 (T,) how much better than expected
    mask                       (T,) bool: the policy sampled it. Prompts and what a tool wrote are False
    sequence                   (T,) int64 in 0..B-1: whose token it is

What stands at tokens outside the mask does not matter, not even a NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ponder.errors import InputError

Aggregation = Literal["dapo", "grpo", "bnpo", "dr_grpo"]
Kind = Literal["ppo", "gspo", "gspo_token", "cispo"]
Estimator = Literal["k1", "k2", "k3"]


class Surrogate(NamedTuple):
    """A surrogate loss (T,), 0 outside the mask, and what it was made of."""

    loss: Tensor
    ratio: Tensor
    """(T,) pi / pi_old of the token, or of its sequence where the kind is a GSPO; with its gradient."""
    low: Tensor
    """(T,) bool: the ratio fell below 1 - clip_low, and the clip took the gradient away."""
    high: Tensor
    """(T,) bool: the same above 1 + clip_high, or above CISPO's ceiling."""


def sequence_sums(values: Tensor, mask: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    """The sum of each sequence's values inside the mask (B,); of no values it is 0."""
    _check_packed(mask, sequence, values)
    return values.new_zeros(sequences).index_add(0, sequence, values.where(mask, 0.0))


def weights(
    mask: Tensor,
    sequence: Tensor,
    sequences: int,
    kind: Aggregation = "dapo",
    *,
    tokens: int | None = None,
    longest: int | None = None,
) -> Tensor:
    """What each token's loss counts in the whole batch (T,), float32.

        dapo, bnpo  1 / N          a mean over tokens (DAPO: Yu et al., 2025, section 3.3)
        grpo        1 / (B n_i)    a mean over sequences of their means (GRPO: Shao et al., 2024, equation 3)
        dr_grpo     1 / (B longest)  lengths weigh nothing (Dr. GRPO: Liu et al., 2025, section 3.2)

    N counts the batch's sampled tokens, n_i those of sequence i, `longest` the most that a sequence may have.
    `bnpo` is `dapo` by another name: the mean over whatever batch it is given.

    `sequences` and `tokens` are the totals of the whole batch. Give `tokens` where this part lacks some of it, such
    as sequences dropped because their advantage is 0 or held by other devices: they stay in the denominator, as
    sequences without a token do. Raises InputError where a total is missing, or is too small to be one.
    """
    _check_packed(mask, sequence)
    _one_of(kind, Aggregation, "aggregation")
    if sequences < 1:
        raise InputError(f"a batch of {sequences} sequences has no loss", "give the number of sequences of the batch")
    on = mask.float()
    if kind in ("dapo", "bnpo"):
        return on / (on.sum().clamp(min=1) if tokens is None else max(tokens, 1))
    if kind == "grpo":
        lengths = sequence_sums(on, mask, sequence, sequences)
        return on / (sequences * lengths[sequence].clamp(min=1))
    if longest is None or longest < 1:
        raise InputError("dr_grpo divides by the longest completion there may be", "give longest, at least 1")
    return on / (sequences * longest)


def surrogate(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    sequence: Tensor,
    sequences: int,
    *,
    kind: Kind = "ppo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ceiling: float | None = None,
    limit: float | None = None,
    importance: Tensor | None = None,
) -> Surrogate:
    """The loss of each token, whose gradient is the policy's, with r = exp(logprobs - old).

        ppo         -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)   (Schulman et al., 2017, equation 7)
        gspo        the same with s_i = exp(mean_t log r_it) for r      (Zheng et al., 2025, equations 5 and 7)
        gspo_token  the same with sg(s_i) r_it / sg(r_it), sg stopping the gradient   (equations 13 and 14)
        cispo       -sg(min(r, ceiling)) A logprobs   (MiniMax, 2025, section 3.1; Khatri et al., 2025, ScaleRL)

    GRPO, Dr. GRPO and DAPO are `ppo`: they differ in `weights`, and DAPO has clip_high > clip_low. GSPO's own
    aggregation is `grpo`. Its two kinds differ only where advantages differ within a sequence: `gspo_token` then
    gives each token its own. Both need whole sequences: none may be cut between two calls.

    `old` are detached log-probabilities; on the first step after sampling `logprobs` themselves will do.
    `ceiling` is CISPO's bound, which has to be given (ScaleRL: 5). In the other kinds it bounds r where the
    advantage is negative and the clip does not (dual clip: Ye et al., 2020).
    `limit` clamps log r to +-limit before anything else (20 is common). Without it, as here by default, a
    log-ratio above 88 overflows.
    `importance` (T,) multiplies the loss: `importance_weights`, where another engine sampled.
    """
    _check_packed(mask, sequence, logprobs, old, advantages)
    _one_of(kind, Kind, "surrogate")
    advantages = advantages.where(mask, 0.0)
    delta = (logprobs - old.detach()).where(mask, 0.0)
    if limit is not None:
        delta = delta.clamp(-limit, limit)
    if kind in ("gspo", "gspo_token"):
        mean = _sequence_means(delta, mask, sequence, sequences)[sequence]
        delta = mean if kind == "gspo" else mean.detach() + delta - delta.detach()
    ratio = delta.exp()
    if kind == "cispo":
        if ceiling is None:
            raise InputError("cispo bounds the ratio from above", "give ceiling, for example 5.0")
        loss = -ratio.clamp(max=ceiling).detach() * advantages * logprobs.where(mask, 0.0)
        low, high = torch.zeros_like(mask), (ratio > ceiling) & (advantages > 0)
    else:
        clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
        bounded = ratio if ceiling is None else ratio.clamp(max=ceiling)
        loss = -torch.minimum(bounded * advantages, clipped * advantages)
        low = (ratio < 1 - clip_low) & (advantages < 0)
        high = (ratio > 1 + clip_high) & (advantages > 0)
    if importance is not None:
        _check_packed(mask, importance)
        loss = loss * importance.detach().where(mask, 0.0)
    return Surrogate(loss, ratio, low, high)


def importance_weights(
    trainer: Tensor,
    sampler: Tensor,
    mask: Tensor,
    sequence: Tensor,
    sequences: int,
    *,
    level: Literal["token", "sequence"] = "token",
    rule: Literal["truncate", "mask"] = "truncate",
    low: float | None = None,
    high: float | None = 3.0,
) -> Tensor:
    """What corrects for tokens that another engine sampled: pi_trainer / pi_sampler at the same weights (T,), detached.

    `trainer` and `sampler` are both engines' log-probabilities of the tokens at the weights that sampled them. The
    ratio is the token's, or the product of its sequence's. Outside low..high it is `truncate`d to the bound (Yao
    et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025) or `mask`ed, which makes
    it 0 (Liu et al., "When Speed Kills Stability", 2025). None is no bound. A token that the sampler gave no
    log-probability (NaN) counts as if both agreed.
    """
    _check_packed(mask, sequence, trainer, sampler)
    _one_of(level, Literal["token", "sequence"], "level")
    _one_of(rule, Literal["truncate", "mask"], "rule")
    delta = (trainer - sampler).detach().where(mask & ~sampler.isnan(), 0.0)
    if level == "sequence":
        delta = sequence_sums(delta, mask, sequence, sequences)[sequence]
    ratio = delta.exp()
    bounded = ratio.clamp(min=low, max=high) if low is not None or high is not None else ratio
    return bounded if rule == "truncate" else ratio.where(ratio == bounded, 0.0)


def kl(
    logprobs: Tensor,
    reference: Tensor,
    *,
    estimator: Estimator = "k3",
    mask: Tensor | None = None,
    ratio: Tensor | None = None,
) -> Tensor:
    """An estimate of KL(policy || reference) from each token that the policy sampled (T,), d = reference - logprobs.

        k1  -d              unbiased, of either sign
        k2  d^2 / 2         biased, with the gradient of KL(policy || reference)
        k3  exp(d) - d - 1  unbiased, never negative

    (Schulman, "Approximating KL Divergence", 2020.) As a loss they part ways, for the gradient of an expectation is
    not the expected gradient: k1's is 0 on average, k3's that of KL(reference || policy) (Tang and Munos, "On a Few
    Pitfalls in KL Divergence Gradient Estimation for RL", 2025). Multiplied by `ratio`, that of `surrogate` with its
    gradient, k1 and k3 have the gradient of KL(policy || reference) (DeepSeek-V3.2, 2025, section 3.1).

    `mask` sets the rest to 0, for where log-probabilities outside it may be infinite.
    """
    _one_of(estimator, Estimator, "estimator")
    d = reference.detach() - logprobs
    if mask is not None:
        _check_packed(mask, d)
        d = d.where(mask, 0.0)
    value = -d if estimator == "k1" else d.square() / 2 if estimator == "k2" else d.expm1() - d
    return value if ratio is None else value * ratio


@dataclass(frozen=True)
class Measures:
    """Sums and the counts they are over. They add over micro-batches and devices; `means` comes last."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: Measures) -> Measures:
        return Measures(_added(self.sums, other.sums), _added(self.counts, other.counts))

    def means(self) -> dict[str, float]:
        """By name; what nothing was counted for is left out."""
        return {name: total / self.counts[name] for name, total in self.sums.items() if self.counts[name]}


def measures(
    result: Surrogate,
    mask: Tensor,
    *,
    trainer: Tensor | None = None,
    sampler: Tensor | None = None,
    entropy: Tensor | None = None,
) -> Measures:
    """What to watch, as sums over the sampled tokens.

    clip_low, clip_high  the share of tokens whose gradient the clip took away
    ratio                the mean of pi / pi_old
    sampler_kl           KL(sampler || trainer) by k3, where both log-probabilities at the weights that sampled
                         are given; about 0 where the two engines agree. Tokens with a NaN are left out
    entropy              where given (T,), in nats
    """
    values = {"clip_low": result.low, "clip_high": result.high, "ratio": result.ratio}
    if entropy is not None:
        values["entropy"] = entropy
    masks = dict.fromkeys(values, mask)
    if trainer is not None and sampler is not None:
        values["sampler_kl"], masks["sampler_kl"] = kl(sampler, trainer), mask & ~sampler.isnan()
    _check_packed(mask, *values.values())
    sums = torch.stack([values[name].detach().float().where(masks[name], 0.0).sum() for name in values])
    counts = torch.stack([masks[name].sum() for name in values])
    return Measures(dict(zip(values, sums.tolist(), strict=True)), dict(zip(values, counts.tolist(), strict=True)))


def _sequence_means(values: Tensor, mask: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    lengths = sequence_sums(mask.to(values.dtype), mask, sequence, sequences)
    return sequence_sums(values, mask, sequence, sequences) / lengths.clamp(min=1)


def _added(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {name: a.get(name, 0.0) + b.get(name, 0.0) for name in [*a, *(name for name in b if name not in a)]}


def _check_packed(mask: Tensor, *others: Tensor) -> None:
    """Shapes that differ would be broadcast to (T, T) without a word."""
    if mask.dtype != torch.bool:
        raise InputError(f"a mask of {mask.dtype} is no mask", "give booleans: mask.bool()")
    for other in others:
        if mask.dim() != 1 or other.shape != mask.shape:
            shapes = f"{tuple(other.shape)} beside {tuple(mask.shape)}"
            raise InputError(f"packed tensors have one shape, (tokens,), not {shapes}", "flatten them alike")


def _one_of(given: str, allowed: object, what: str) -> None:
    if given not in get_args(allowed):
        raise InputError(f"there is no {what} {given!r}", f"choose one of {', '.join(get_args(allowed))}")

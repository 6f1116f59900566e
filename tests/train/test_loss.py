from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ponder.errors import InputError
from ponder.train.advantage import group_advantages
from ponder.train.loss import (
    Measures,
    importance_weights,
    kl,
    measures,
    sequence_sums,
    surrogate,
    weights,
)

torch.set_num_threads(1)  # more of them wait for each other in products as small as these

KINDS = ("ppo", "gspo", "gspo_token", "cispo")
AGGREGATIONS = ("dapo", "grpo", "bnpo", "dr_grpo")


class Packed(NamedTuple):
    """Random sequences of different lengths, some empty, some without a sampled token; the mask has holes."""

    logprobs: Tensor
    old: Tensor
    advantages: Tensor
    mask: Tensor
    sequence: Tensor
    sequences: int

    def part(self, chosen: list[int]) -> Packed:
        rows = torch.isin(self.sequence, torch.tensor(chosen, dtype=torch.int64))
        tensors = (self.logprobs, self.old, self.advantages, self.mask, self.sequence)
        return Packed(*(each[rows] for each in tensors), self.sequences)


def packed(lengths: list[int], seed: int = 0, *, spread: float = 0.4, per_token: bool = False) -> Packed:
    drawn = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    old = -torch.rand(tokens, generator=drawn, dtype=torch.float64) * 3 - 0.1
    logprobs = old + spread * torch.randn(tokens, generator=drawn, dtype=torch.float64)
    advantages = torch.randn(tokens if per_token else len(lengths), generator=drawn, dtype=torch.float64)
    mask = torch.rand(tokens, generator=drawn) < 0.75
    return Packed(logprobs, old, advantages if per_token else advantages[sequence], mask, sequence, len(lengths))


batches = st.builds(
    packed,
    st.lists(st.integers(0, 6), min_size=1, max_size=6),
    st.integers(0, 2**32),
    spread=st.sampled_from([0.0, 0.1, 0.6]),
    per_token=st.booleans(),
)


# ------------------------------------------------------------------ weights


def slow_weights(batch: Packed, kind: str, longest: int) -> list[float]:
    sampled = [i for i, on in zip(batch.sequence.tolist(), batch.mask.tolist(), strict=True) if on]
    expected = []
    for i, on in zip(batch.sequence.tolist(), batch.mask.tolist(), strict=True):
        if not on:
            expected.append(0.0)
        elif kind in ("dapo", "bnpo"):
            expected.append(1 / len(sampled))
        elif kind == "grpo":
            expected.append(1 / (batch.sequences * sampled.count(i)))
        else:
            expected.append(1 / (batch.sequences * longest))
    return expected


@settings(max_examples=50)
@given(batches, st.sampled_from(AGGREGATIONS), st.integers(1, 9))
def test_weights_are_what_a_loop_says(batch, kind, longest):
    found = weights(batch.mask, batch.sequence, batch.sequences, kind, longest=longest)
    assert found.tolist() == pytest.approx(slow_weights(batch, kind, longest), rel=1e-6)


@settings(max_examples=50)
@given(batches, st.sampled_from(KINDS), st.sampled_from(AGGREGATIONS), st.data())
def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(batch, kind, aggregation, data):
    """However unevenly the tokens fall: the trap of gradient accumulation."""
    shares = data.draw(st.lists(st.integers(0, 2), min_size=batch.sequences, max_size=batch.sequences))
    each = weights(batch.mask, batch.sequence, batch.sequences, aggregation, longest=7).double()

    def gradient(parts: list[list[int]]) -> tuple[float, Tensor]:
        logprobs = batch.logprobs.clone().requires_grad_()
        total = 0.0
        for chosen in parts:
            rows = torch.isin(batch.sequence, torch.tensor(chosen, dtype=torch.int64))
            part = batch._replace(logprobs=logprobs).part(chosen)
            loss = (each[rows] * surrogate(*part, kind=kind, ceiling=3.0).loss).sum()
            loss.backward()
            total += loss.item()
        return total, logprobs.grad

    whole, expected = gradient([list(range(batch.sequences))])
    total, found = gradient([[i for i, share in enumerate(shares) if share == number] for number in range(3)])
    assert total == pytest.approx(whole, abs=1e-12)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_dropped_sequences_stay_in_the_denominator(kind):
    batch = packed([4, 6, 3, 5], seed=1)
    whole = weights(batch.mask, batch.sequence, 4, kind, longest=6)
    kept = batch.part([0, 2])
    total = int(batch.mask.sum())
    found = weights(kept.mask, kept.sequence, 4, kind, tokens=total, longest=6)
    torch.testing.assert_close(found, whole[torch.isin(batch.sequence, torch.tensor([0, 2]))])
    if kind in ("dapo", "bnpo"):  # what would go wrong without it
        assert not torch.equal(weights(kept.mask, kept.sequence, 4, kind), found)


def test_a_batch_without_a_sampled_token_weighs_nothing():
    nothing, sequence = torch.zeros(3, dtype=torch.bool), torch.tensor([0, 0, 1])
    for kind in AGGREGATIONS:
        assert weights(nothing, sequence, 2, kind, longest=4).tolist() == [0, 0, 0]
        assert weights(nothing, sequence, 2, kind, tokens=0, longest=4).tolist() == [0, 0, 0]
    assert weights(nothing[:0], sequence[:0], 2).shape == (0,)


# ------------------------------------------------------------------ the surrogates


def slow_surrogate(batch: Packed, kind: str, low: float, high: float, ceiling: float) -> list[float]:
    rows = list(
        zip(batch.logprobs.tolist(), batch.old.tolist(), batch.advantages.tolist(), batch.mask.tolist(), strict=True)
    )
    sequence, expected = batch.sequence.tolist(), []
    for t, (logprob, old, advantage, on) in enumerate(rows):
        if not on:
            expected.append(0.0)
            continue
        if kind in ("gspo", "gspo_token"):
            deltas = [n - o for (n, o, _, m), i in zip(rows, sequence, strict=True) if m and i == sequence[t]]
            ratio = math.exp(sum(deltas) / len(deltas))
        else:
            ratio = math.exp(logprob - old)
        if kind == "cispo":
            expected.append(-min(ratio, ceiling) * advantage * logprob)
        else:
            clipped = min(max(ratio, 1 - low), 1 + high)
            expected.append(-min(min(ratio, ceiling) * advantage, clipped * advantage))
    return expected


@settings(max_examples=50)
@given(batches, st.sampled_from(KINDS), st.sampled_from([0.1, 0.3]), st.sampled_from([0.1, 0.3]))
def test_surrogates_are_what_a_loop_says(batch, kind, low, high):
    found = surrogate(*batch, kind=kind, clip_low=low, clip_high=high, ceiling=1.5).loss
    assert found.tolist() == pytest.approx(slow_surrogate(batch, kind, low, high, 1.5), abs=1e-12)


def away_from_kinks(batch: Packed) -> Packed:
    """Finite differences are wrong within a step of a corner of the clip: ratios 0.8 and 1.2."""
    delta = batch.logprobs - batch.old
    near = ((delta.exp() - 0.8).abs() < 1e-3) | ((delta.exp() - 1.2).abs() < 1e-3)
    return batch._replace(logprobs=batch.logprobs + 0.01 * near)


@pytest.mark.parametrize("kind", ["ppo", "gspo"])
@pytest.mark.parametrize("seed", range(3))
def test_ppo_and_gspo_have_the_gradient_of_their_loss(kind, seed):
    batch = away_from_kinks(packed([4, 5, 1, 3], seed, per_token=True))

    def loss(logprobs: Tensor) -> Tensor:
        return surrogate(logprobs, *batch[1:], kind=kind).loss

    assert torch.autograd.gradcheck(loss, batch.logprobs.requires_grad_())


def gradient_of(batch: Packed, **settings) -> Tensor:
    logprobs = batch.logprobs.detach().clone().requires_grad_()
    surrogate(logprobs, *batch[1:], **settings).loss.sum().backward()
    return logprobs.grad


def test_cispo_keeps_the_gradient_of_every_token():
    """Its gradient is -min(r, ceiling) A, above the ceiling too, where a clip would have left none."""
    batch = packed([5, 4], seed=3, spread=1.0)
    ratio = (batch.logprobs - batch.old).exp()
    assert (ratio[batch.mask] > 1.5).any()
    expected = (-ratio.clamp(max=1.5) * batch.advantages).where(batch.mask, 0.0)
    torch.testing.assert_close(gradient_of(batch, kind="cispo", ceiling=1.5), expected)


def test_gspo_token_is_gspo_unless_advantages_differ_within_a_sequence():
    alike = packed([5, 4, 2], seed=4, spread=0.1)
    by_sequence = weights(alike.mask, alike.sequence, 3, "grpo").double()

    def weighted(batch: Packed, kind: str) -> Tensor:
        logprobs = batch.logprobs.detach().clone().requires_grad_()
        (by_sequence * surrogate(logprobs, *batch[1:], kind=kind).loss).sum().backward()
        return logprobs.grad

    torch.testing.assert_close(weighted(alike, "gspo_token"), weighted(alike, "gspo"))
    unlike = alike._replace(advantages=packed([5, 4, 2], seed=5, per_token=True).advantages)
    ratio = surrogate(*unlike, kind="gspo_token", clip_low=9, clip_high=9).ratio
    expected = (-ratio * unlike.advantages * by_sequence).where(unlike.mask, 0.0)
    logprobs = unlike.logprobs.clone().requires_grad_()
    (by_sequence * surrogate(logprobs, *unlike[1:], kind="gspo_token", clip_low=9, clip_high=9).loss).sum().backward()
    torch.testing.assert_close(logprobs.grad, expected)  # each token by its own advantage, at its sequence's ratio
    assert not torch.allclose(weighted(unlike, "gspo"), expected)


def test_the_clip_takes_gradients_away_and_says_so():
    ratio = torch.tensor([0.5, 0.5, 1.0, 2.0, 2.0], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    batch = Packed(ratio.log(), torch.zeros_like(ratio), advantages, torch.ones(5).bool(), torch.zeros(5).long(), 1)
    result = surrogate(*batch, kind="ppo", clip_low=0.2, clip_high=0.3)
    assert result.loss.tolist() == pytest.approx([-0.5, 0.8, -1.0, -1.3, 2.0])
    assert result.low.tolist() == [False, True, False, False, False]
    assert result.high.tolist() == [False, False, False, True, False]
    gradient = gradient_of(batch, kind="ppo", clip_low=0.2, clip_high=0.3)
    assert gradient.tolist() == pytest.approx([-0.5, 0.0, -1.0, 0.0, 2.0])
    # Dual clip: what a negative advantage may cost is bounded too.
    dual = surrogate(*batch, kind="ppo", clip_low=0.2, clip_high=0.3, ceiling=1.6)
    assert dual.loss.tolist() == pytest.approx([-0.5, 0.8, -1.0, -1.3, 1.6])
    assert gradient_of(batch, kind="ppo", clip_low=0.2, clip_high=0.3, ceiling=1.6)[-1] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_outside_the_mask_does_not_matter(kind):
    batch = packed([4, 5, 2], seed=6)
    outside = ~batch.mask
    assert outside.any()
    for rubbish in (torch.nan, torch.inf, -torch.inf, 1e6):
        spoilt = batch._replace(
            logprobs=batch.logprobs.masked_fill(outside, rubbish),
            old=batch.old.masked_fill(outside, rubbish),
            advantages=batch.advantages.masked_fill(outside, rubbish),
        )
        importance = torch.ones_like(batch.old).masked_fill(outside, rubbish)
        settings = {"kind": kind, "ceiling": 4.0}
        found = surrogate(*spoilt, **settings, importance=importance)
        torch.testing.assert_close(found.loss, surrogate(*batch, **settings).loss)
        torch.testing.assert_close(
            gradient_of(spoilt, **settings, importance=importance), gradient_of(batch, **settings)
        )
        assert found.ratio.isfinite().all()
        d = kl(spoilt.logprobs, spoilt.old, mask=batch.mask)
        torch.testing.assert_close(d, kl(batch.logprobs, batch.old).where(batch.mask, 0.0))


def test_old_logprobs_need_not_be_detached():
    """On the first step they are the same tensor, whose gradient would cancel."""
    batch = packed([3, 4], seed=7, spread=0)
    logprobs = batch.logprobs.clone().requires_grad_()
    surrogate(logprobs, logprobs, *batch[2:], kind="ppo").loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, -batch.advantages.where(batch.mask, 0.0))


def test_a_limit_keeps_log_ratios_from_overflowing():
    ones = torch.ones(2).bool()
    batch = Packed(torch.tensor([200.0, -200.0]), torch.zeros(2), torch.tensor([-1.0, 1.0]), ones, torch.arange(2), 2)
    assert surrogate(*batch, kind="ppo").loss[0].isinf()
    limited = surrogate(*batch, kind="ppo", limit=20.0)
    assert limited.ratio.tolist() == pytest.approx([math.exp(20), math.exp(-20)])
    assert limited.loss.isfinite().all()


# ------------------------------------------------------------------ importance, KL, measures


@settings(max_examples=50)
@given(batches, st.sampled_from(["token", "sequence"]), st.sampled_from(["truncate", "mask"]))
def test_importance_weights_are_what_a_loop_says(batch, level, rule):
    low, high = 0.9, 1.2
    found = importance_weights(*batch[:2], *batch[3:], level=level, rule=rule, low=low, high=high)
    deltas, sequence, on = (batch.logprobs - batch.old).tolist(), batch.sequence.tolist(), batch.mask.tolist()
    for t in range(len(deltas)):
        if not on[t]:
            continue
        same = [d for d, i, m in zip(deltas, sequence, on, strict=True) if m and i == sequence[t]]
        ratio = math.exp(deltas[t] if level == "token" else sum(same))
        bounded = min(max(ratio, low), high)
        expected = bounded if rule == "truncate" or bounded == ratio else 0.0
        assert found[t].item() == pytest.approx(expected, rel=1e-9)


def test_importance_weights_have_default_bounds_and_forgive_a_missing_logprob():
    trainer = torch.tensor([0.0, 0.0, 5.0, -5.0], requires_grad=True)
    sampler = torch.tensor([0.0, torch.nan, 0.0, 0.0])
    where = (torch.ones(4).bool(), torch.tensor([0, 0, 1, 2]), 3)
    found = importance_weights(trainer, sampler, *where)
    assert found.tolist() == pytest.approx([1.0, 1.0, 3.0, math.exp(-5)])
    assert not found.requires_grad
    unbounded = importance_weights(trainer, sampler, *where, level="sequence", rule="mask", high=None)
    assert unbounded.tolist() == pytest.approx([1.0, 1.0, math.exp(5), math.exp(-5)])


def test_importance_multiplies_the_loss():
    batch = packed([4, 3], seed=8)
    importance = torch.rand(7, dtype=torch.float64) * 2
    for kind in KINDS:
        plain = surrogate(*batch, kind=kind, ceiling=3.0).loss
        found = surrogate(*batch, kind=kind, ceiling=3.0, importance=importance).loss
        torch.testing.assert_close(found, plain * importance)


def softmax_policy(actions: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of a policy (actions,), and the log-probabilities of a reference."""
    logits, reference = torch.randn(2, actions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.requires_grad_(), reference.log_softmax(0)


@pytest.mark.parametrize("seed", range(3))
def test_kl_estimators_have_the_means_and_gradients_they_claim(seed):
    """Expectations over all actions of a categorical policy, hence exact."""
    logits, reference = softmax_policy(5, seed)
    logprobs = logits.log_softmax(0)
    p = logprobs.exp().detach()

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    reverse = (logprobs.exp() * (logprobs - reference)).sum()
    forward = (reference.exp() * (reference - logprobs)).sum()
    ratio = (logprobs - logprobs.detach()).exp()
    for estimator in ("k1", "k3"):
        estimate = kl(logprobs, reference, estimator=estimator)
        torch.testing.assert_close((p * estimate).sum(), reverse)
        corrected = kl(logprobs, reference, estimator=estimator, ratio=ratio)
        torch.testing.assert_close((p * corrected).sum(), reverse)
        torch.testing.assert_close(gradient((p * corrected).sum()), gradient(reverse))
    zero = gradient((p * kl(logprobs, reference, estimator="k1")).sum())
    torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient((p * kl(logprobs, reference, estimator="k2")).sum()), gradient(reverse))
    torch.testing.assert_close(gradient((p * kl(logprobs, reference, estimator="k3")).sum()), gradient(forward))
    assert (kl(logprobs, reference) >= 0).all()
    assert kl(logprobs, logprobs.detach()).abs().max() == 0


def test_measures_add_over_micro_batches_however_they_are_cut():
    batch = packed([5, 3, 0, 6, 4], seed=9)
    sampler = (batch.old + 0.1).masked_fill(torch.arange(18) % 5 == 0, torch.nan)
    entropy = torch.rand(18, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def measured(chosen: list[int]) -> Measures:
        rows = torch.isin(batch.sequence, torch.tensor(chosen))
        part = batch.part(chosen)
        result = surrogate(*part, kind="ppo")
        return measures(result, part.mask, trainer=part.old, sampler=sampler[rows], entropy=entropy[rows])

    whole = measured([0, 1, 2, 3, 4]).means()
    added = sum([measured([2]), measured([0, 4]), measured([1, 3])], Measures()).means()
    assert added == pytest.approx(whole)
    on = batch.mask
    ratio = (batch.logprobs - batch.old).exp()
    assert whole["ratio"] == pytest.approx(ratio[on].mean().item())
    assert whole["entropy"] == pytest.approx(entropy[on].mean().item())
    assert whole["clip_low"] == pytest.approx(((ratio < 0.8) & (batch.advantages < 0))[on].double().mean().item())
    assert whole["clip_high"] == pytest.approx(((ratio > 1.2) & (batch.advantages > 0))[on].double().mean().item())
    assert whole["clip_low"] > 0
    assert whole["clip_high"] > 0
    assert whole["sampler_kl"] == pytest.approx(math.exp(-0.1) + 0.1 - 1, rel=1e-5)
    assert Measures().means() == {}
    without = measures(surrogate(*batch, kind="ppo"), batch.mask)
    assert set(without.means()) == {"clip_low", "clip_high", "ratio"}


# ------------------------------------------------------------------ optima that are known

REWARDS = torch.tensor([0.0, 0.2, 1.0, 0.4], dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_loss_finds_the_best_arm_of_a_bandit(kind, aggregation):
    """Groups of 16 sampled one-token answers, three steps of plain SGD on each, so that old and new part."""
    drawn = torch.Generator().manual_seed(0)
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=0.5)
    one, mask = torch.arange(16), torch.ones(16).bool()
    each = weights(mask, one, 16, aggregation, longest=1).double()
    for _ in range(40):
        actions = torch.multinomial(logits.detach().softmax(0), 16, replacement=True, generator=drawn)
        advantages = group_advantages(REWARDS[actions][None])[0]
        old = logits.detach().log_softmax(0)[actions]
        for _ in range(3):
            optimizer.zero_grad()
            logprobs = logits.log_softmax(0)[actions]
            result = surrogate(logprobs, old, advantages, mask, one, 16, kind=kind, ceiling=5.0)
            (each * result.loss).sum().backward()
            optimizer.step()
    assert logits.softmax(0)[2] > 0.95


def fixed_point(**penalty) -> tuple[Tensor, Tensor]:
    """Where exact expected gradients of reward - beta KL lead: every action once, weighed by its probability."""
    logits, reference = softmax_policy(4)
    one, mask = torch.arange(4), torch.ones(4).bool()
    optimizer = torch.optim.SGD([logits], lr=3.0)
    use_ratio = penalty.pop("use_ratio", False)
    for _ in range(400):
        optimizer.zero_grad()
        logprobs = logits.log_softmax(0)
        p = logprobs.exp().detach()
        advantages = REWARDS - (p * REWARDS).sum()
        result = surrogate(logprobs, logprobs, advantages, mask, one, 4, kind="ppo")
        cost = kl(logprobs, reference, ratio=result.ratio if use_ratio else None, **penalty)
        (p * (result.loss + 0.5 * cost)).sum().backward()
        optimizer.step()
    return logits.detach().softmax(0), reference.exp()


@pytest.mark.parametrize("penalty", [{"estimator": "k2"}, {"estimator": "k3", "use_ratio": True}])
def test_with_a_kl_penalty_the_policy_tilts_the_reference(penalty):
    """The optimum of E[r] - beta KL(policy || reference) is reference * exp(r / beta), normalised."""
    found, reference = fixed_point(**penalty)
    expected = reference * (REWARDS / 0.5).exp()
    torch.testing.assert_close(found, expected / expected.sum(), rtol=1e-5, atol=1e-6)


def test_k3_alone_leads_elsewhere():
    """Its gradient is that of KL(reference || policy): p (beta + mean reward - r) = beta reference."""
    found, reference = fixed_point(estimator="k3")
    mean = (found * REWARDS).sum()
    torch.testing.assert_close(found * (0.5 + mean - REWARDS), 0.5 * reference, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ what is refused


def test_contradictions_are_refused_with_what_mends_them():
    batch = packed([3, 2], seed=1)
    with pytest.raises(InputError, match="give ceiling"):
        surrogate(*batch, kind="cispo")
    with pytest.raises(InputError, match="choose one of ppo"):
        surrogate(*batch, kind="reinforce")
    with pytest.raises(InputError, match="give longest"):
        weights(batch.mask, batch.sequence, 2, "dr_grpo")
    with pytest.raises(InputError, match="choose one of dapo"):
        weights(batch.mask, batch.sequence, 2, "mean")
    with pytest.raises(InputError, match="number of sequences"):
        weights(batch.mask, batch.sequence, 0)
    with pytest.raises(InputError, match="choose one of k1"):
        kl(batch.logprobs, batch.old, estimator="k4")
    with pytest.raises(InputError, match="choose one of token"):
        importance_weights(*batch[:2], *batch[3:], level="word")
    with pytest.raises(InputError, match="choose one of truncate"):
        importance_weights(*batch[:2], *batch[3:], rule="drop")


def test_shapes_that_would_be_broadcast_are_refused():
    batch = packed([3, 2], seed=1)
    with pytest.raises(InputError, match=r"\(5, 1\) beside \(5,\)"):
        surrogate(*batch._replace(advantages=batch.advantages[:, None]), kind="ppo")
    with pytest.raises(InputError, match="one shape"):
        surrogate(*batch, kind="ppo", importance=torch.ones(1))
    with pytest.raises(InputError, match=r"mask\.bool"):
        weights(batch.mask.float(), batch.sequence, 2)
    with pytest.raises(InputError, match="one shape"):
        sequence_sums(batch.old[:4], batch.mask, batch.sequence, 2)

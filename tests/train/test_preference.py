from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ponder.errors import InputError
from ponder.train.preference import Pair, preference, sequence_logprobs

torch.set_num_threads(1)  # more of them wait for each other in products as small as these

KINDS = ("sigmoid", "robust", "hinge", "ipo")
logprobs = st.floats(-30, 0)


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def slow_loss(delta: float, kind: str, beta: float, e: float) -> float:
    right, wrong = softplus(-beta * delta), softplus(beta * delta)
    return {
        "sigmoid": (1 - e) * right + e * wrong,
        "robust": ((1 - e) * right - e * wrong) / (1 - 2 * e),
        "hinge": max(0.0, 1 - beta * delta),
        "ipo": (delta - 1 / (2 * beta)) ** 2,
    }[kind]


def pair(rows: list[tuple[float, float]]) -> Pair:
    values = torch.tensor(rows, dtype=torch.float64)
    return Pair(values[:, 0], values[:, 1])


@given(
    st.lists(st.tuples(logprobs, logprobs, logprobs, logprobs), min_size=1, max_size=5),
    st.sampled_from(KINDS),
    st.sampled_from([0.05, 0.1, 1.0]),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.booleans(),
)
def test_losses_are_what_a_loop_says(rows, kind, beta, smoothing, with_reference):
    smoothing = smoothing if kind in ("sigmoid", "robust") else 0.0
    policy, reference = pair([row[:2] for row in rows]), pair([row[2:] for row in rows])
    found = preference(policy, reference if with_reference else None, kind=kind, beta=beta, label_smoothing=smoothing)
    for i, (chosen, rejected, r_chosen, r_rejected) in enumerate(rows):
        h = (chosen - r_chosen, rejected - r_rejected) if with_reference else (chosen, rejected)
        expected = slow_loss(h[0] - h[1], kind, beta, smoothing)
        assert found.loss[i].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert found.rewards.chosen[i].item() == pytest.approx(beta * h[0], abs=1e-12)
        assert found.rewards.rejected[i].item() == pytest.approx(beta * h[1], abs=1e-12)


def test_only_the_policy_has_a_gradient():
    policy = Pair(*torch.tensor([[-1.0], [-2.0]], requires_grad=True).unbind())
    reference = Pair(*torch.tensor([[-1.5], [-1.0]], requires_grad=True).unbind())
    result = preference(policy, reference)
    assert not result.rewards.chosen.requires_grad
    given = torch.autograd.grad(result.loss.sum(), [*policy, *reference], allow_unused=True)
    assert given[0] < 0 < given[1]
    assert given[2] is given[3] is None


def test_sequence_logprobs_are_sums_or_averages_inside_the_mask():
    found = torch.tensor([-1.0, -2.0, torch.nan, -4.0, -5.0])
    mask = torch.tensor([True, True, False, True, False])
    sequence = torch.tensor([0, 0, 0, 1, 2])
    assert sequence_logprobs(found, mask, sequence, 4).tolist() == [-3, -4, 0, 0]
    assert sequence_logprobs(found, mask, sequence, 4, average=True).tolist() == [-1.5, -4, 0, 0]


# ------------------------------------------------------------------ optima that are known

REFERENCE = torch.tensor([0.3, 0.7], dtype=torch.float64).log()


def log_odds_learned(wins: float, *, rate: float = 2.0, steps: int = 150, falling: bool = False, **settings) -> float:
    """log pi(a) / pi(b) - log pi_ref(a) / pi_ref(b), learned where a is preferred to b in a share `wins` of pairs."""
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    shares = torch.tensor([wins, 1 - wins], dtype=torch.float64)

    def loss() -> Tensor:
        a, b = logits.log_softmax(0).unbind()
        reference = Pair(REFERENCE, REFERENCE.flip(0))
        both = Pair(torch.stack([a, b]), torch.stack([b, a]))
        return (shares * preference(both, reference, **settings).loss).sum()

    for step in range(1, steps + 1):
        (gradient,) = torch.autograd.grad(loss(), logits)
        with torch.no_grad():
            logits -= (rate / step if falling else rate) * gradient
    return float((logits.log_softmax(0).diff() - REFERENCE.diff()).neg().detach())


@pytest.mark.parametrize("wins", [0.6, 0.8])
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_dpo_learns_how_often_an_answer_wins(wins, beta):
    """sigma(beta Delta) = the share of wins: the odds under Bradley and Terry."""
    assert log_odds_learned(wins, beta=beta) == pytest.approx(math.log(wins / (1 - wins)) / beta, abs=1e-3)


def test_smoothed_labels_bound_what_certain_preferences_teach():
    found = log_odds_learned(1.0, beta=0.5, label_smoothing=0.1)
    assert found == pytest.approx(math.log(0.9 / 0.1) / 0.5, abs=1e-3)


def test_robust_dpo_sees_through_flipped_labels():
    """A share of 0.8 with a tenth of all labels flipped looks like 0.74."""
    found = log_odds_learned(0.8 * 0.9 + 0.2 * 0.1, kind="robust", beta=0.5, label_smoothing=0.1)
    assert found == pytest.approx(math.log(0.8 / 0.2) / 0.5, abs=1e-3)


@pytest.mark.parametrize("wins", [0.6, 0.8, 1.0])
def test_ipo_learns_the_share_of_wins_itself(wins):
    """Delta = (2 wins - 1) / (2 beta): bounded even for certain preferences, unlike DPO's."""
    found = log_odds_learned(wins, kind="ipo", beta=0.5, rate=0.2)
    assert found == pytest.approx((2 * wins - 1) / (2 * 0.5), abs=1e-3)


def test_the_hinge_stops_at_its_margin():
    """Its minimum is a corner, which steps of one length would jump over for ever."""
    found = log_odds_learned(0.7, kind="hinge", beta=0.5, rate=5.0, steps=500, falling=True)
    assert found == pytest.approx(1 / 0.5, abs=0.01)


# ------------------------------------------------------------------ what is refused


def test_contradictions_are_refused_with_what_mends_them():
    policy = pair([(-1.0, -2.0), (-3.0, -1.0)])
    for settings, mend in [
        ({"kind": "orpo"}, "choose one of sigmoid"),
        ({"beta": 0.0}, "above 0"),
        ({"beta": math.nan}, "above 0"),
        ({"label_smoothing": 0.5}, "below 0.5"),
        ({"label_smoothing": -0.1}, "at least 0"),
        ({"label_smoothing": 0.1, "kind": "ipo"}, "sigmoid or robust"),
        ({"label_smoothing": 0.1, "kind": "hinge"}, "sigmoid or robust"),
    ]:
        with pytest.raises(InputError, match=mend):
            preference(policy, None, **settings)
    with pytest.raises(InputError, match=r"each as \(pairs,\)"):
        preference(policy, pair([(-1.0, -2.0)]))
    with pytest.raises(InputError, match=r"each as \(pairs,\)"):
        preference(Pair(torch.zeros(2, 1), torch.zeros(2, 1)), None)

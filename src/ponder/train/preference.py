"""Learning from pairs of answers, one preferred to the other, without a reward model: DPO and its kin.

With h = log pi - log pi_reference of an answer, and Delta = h(chosen) - h(rejected):

    sigmoid  -(1 - e) log sigma(beta Delta) - e log sigma(-beta Delta)
             DPO (Rafailov et al., 2023, equation 7); with label smoothing e > 0 conservative DPO (Mitchell, "A note
             on DPO with noisy preferences", 2023): preferences are taken to be wrong with probability e
    robust   (-(1 - e) log sigma(beta Delta) + e log sigma(-beta Delta)) / (1 - 2 e)
             the same noise, without bias: its mean over flipped labels is the clean DPO loss (Chowdhury et al.,
             "Provably Robust DPO", 2024)
    hinge    max(0, 1 - beta Delta)    SLiC's loss on DPO's rewards (Zhao et al., 2023; Liu et al., 2023, RSO)
    ipo      (Delta - 1 / (2 beta))^2  IPO (Azar et al., 2023, equation 17)

Log-probabilities are sums over an answer's tokens. `ipo` takes averages instead, as its authors' experiments do.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from torch import Tensor
from torch.nn import functional

from ponder.errors import InputError
from ponder.train.loss import sequence_sums

Kind = Literal["sigmoid", "robust", "hinge", "ipo"]


class Pair(NamedTuple):
    """A value of each pair's chosen answer (pairs,) and of its rejected one (pairs,)."""

    chosen: Tensor
    rejected: Tensor


class Preference(NamedTuple):
    """The loss of each pair (pairs,), and the implied rewards beta h of its answers, detached."""

    loss: Tensor
    rewards: Pair


def sequence_logprobs(
    logprobs: Tensor, mask: Tensor, sequence: Tensor, sequences: int, *, average: bool = False
) -> Tensor:
    """The log-probability of each sequence (sequences,): the sum, or average, over its tokens inside the mask.

    Shapes as in `ponder.train.loss`. A sequence without such tokens has 0.
    """
    sums = sequence_sums(logprobs, mask, sequence, sequences)
    if not average:
        return sums
    return sums / sequence_sums(mask.to(sums.dtype), mask, sequence, sequences).clamp(min=1)


def preference(
    policy: Pair,
    reference: Pair | None,
    *,
    kind: Kind = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Preference:
    """The loss of each pair from the log-probabilities of its answers. The equations are the module's.

    Without a reference (None) h is log pi alone. The batch's loss is the sum of these divided by the number of
    pairs in the whole batch, so that micro-batches add. Raises InputError for settings that contradict each other.
    """
    _check(policy, reference, kind, beta, label_smoothing)
    chosen, rejected = policy
    if reference is not None:
        chosen, rejected = chosen - reference.chosen.detach(), rejected - reference.rejected.detach()
    delta = chosen - rejected
    if kind == "ipo":
        loss = (delta - 1 / (2 * beta)).square()
    elif kind == "hinge":
        loss = (1 - beta * delta).relu()
    else:
        right, wrong = -functional.logsigmoid(beta * delta), -functional.logsigmoid(-beta * delta)
        loss = (1 - label_smoothing) * right + (label_smoothing if kind == "sigmoid" else -label_smoothing) * wrong
        if kind == "robust":
            loss = loss / (1 - 2 * label_smoothing)
    return Preference(loss, Pair(beta * chosen.detach(), beta * rejected.detach()))


def _check(policy: Pair, reference: Pair | None, kind: str, beta: float, label_smoothing: float) -> None:
    if kind not in get_args(Kind):
        raise InputError(f"there is no preference loss {kind!r}", f"choose one of {', '.join(get_args(Kind))}")
    if not beta > 0:
        raise InputError(f"beta is {beta}", "give a number above 0, for example 0.1")
    if not 0 <= label_smoothing < 0.5:
        raise InputError(f"label_smoothing is {label_smoothing}", "give a probability of at least 0 and below 0.5")
    if label_smoothing and kind not in ("sigmoid", "robust"):
        raise InputError(f"label_smoothing says nothing to {kind}", "leave it out, or take sigmoid or robust")
    shapes = {tuple(values.shape) for pair in (policy, reference) if pair is not None for values in pair}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise InputError(f"log-probabilities of shapes {sorted(shapes)} are no pairs", "give each as (pairs,)")

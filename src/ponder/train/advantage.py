"""Advantages: rewards minus what the policy gets anyway, estimated from a group of answers to the same question.

Rewards come as (groups, n). NaN is no reward: such an answer takes no part in the baseline and gets advantage 0.
Where all rewards of a group are equal its advantages are exactly 0, not the rounding error of a mean.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ponder.errors import InputError


def group_advantages(
    rewards: Tensor, *, scale: Literal["group", "batch", "none"] = "group", epsilon: float = 1e-4
) -> Tensor:
    """(r - mean of the group) / (standard deviation + epsilon), of the shape of `rewards` (groups, n).

    GRPO (Shao et al., "DeepSeekMath", 2024, section 4.1.2) has `scale="group"`, Dr. GRPO (Liu et al.,
    "Understanding R1-Zero-Like Training", 2025, section 3.2) "none"; "batch" divides by the deviation of all
    rewards together. The deviation is the unbiased one, over n - 1.
    """
    varies = varied(rewards)[:, None]
    values = rewards.double()
    advantages = values - values.nanmean(dim=1, keepdim=True)
    if scale == "group":
        advantages = advantages / (_deviation(values) + epsilon)
    elif scale == "batch":
        advantages = advantages / (_deviation(values.reshape(1, -1)) + epsilon)
    elif scale != "none":
        raise InputError(f"advantages cannot be scaled by {scale!r}", "choose one of group, batch, none")
    return advantages.where(varies & ~rewards.isnan(), 0.0).to(rewards.dtype)


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    """r_i - mean of the group's others, of the shape of `rewards` (groups, n).

    RLOO (Kool et al., "Buy 4 REINFORCE Samples, Get a Baseline for Free!", 2019; Ahmadian et al., "Back to Basics",
    2024). No reward is in its own baseline, so the estimate
    of the policy gradient is unbiased.
    """
    varies = varied(rewards)[:, None]
    values = rewards.double()
    others = (~values.isnan()).sum(dim=1, keepdim=True) - 1
    baseline = (values.nansum(dim=1, keepdim=True) - values) / others
    return (values - baseline).where(varies & ~rewards.isnan(), 0.0).to(rewards.dtype)


def process_advantages(
    rewards: Tensor, ends: Tensor, sequence: Tensor, group: Tensor, *, epsilon: float = 1e-4
) -> Tensor:
    """Advantages from rewards of steps (tokens,): A_t = sum over the steps j of the sequence that end at t or later of

        (r_j - mean) / (standard deviation + epsilon)

    with mean and deviation over all steps of all answers of the group (Shao et al., "DeepSeekMath", 2024, section
    4.1.3). Tokens after the last step get 0. A NaN is a step without a reward, which counts nowhere.

    rewards   (steps,)
    ends      (steps,) int64: the place of each step's last token among the packed tokens
    sequence  (tokens,) int64 in 0..sequences-1; the tokens of a sequence stand together
    group     (sequences,) int64: which question each sequence answers
    """
    runs, lengths = torch.unique_consecutive(sequence, return_counts=True)
    if len(runs) != len(torch.unique(runs)):
        raise InputError("the tokens of a sequence do not stand together", "pack one sequence after the other")
    if rewards.shape != ends.shape or rewards.dim() != 1:
        raise InputError(f"{rewards.numel()} rewards came with {ends.numel()} steps", "give each step one reward")
    groups = group[sequence[ends]]
    normal = torch.zeros_like(rewards, dtype=torch.float64)
    for each in torch.unique(groups):
        of_group = groups == each
        normal[of_group] = group_advantages(rewards[of_group][None].double(), epsilon=epsilon)[0]
    at_ends = normal.new_zeros(len(sequence)).index_add(0, ends, normal)
    parts = [part.flip(0).cumsum(0).flip(0) for part in torch.split(at_ends, lengths.tolist())]
    return torch.cat(parts).to(rewards.dtype) if parts else at_ends.to(rewards.dtype)


def varied(rewards: Tensor) -> Tensor:
    """Which groups have rewards that differ (groups,), bool: the others teach nothing and can be skipped.

    They are what dynamic sampling keeps (Yu et al., "DAPO", 2025, section 3.2). NaNs do not count.
    """
    if rewards.dim() != 2:
        raise InputError(f"rewards of shape {tuple(rewards.shape)} have no groups", "give them as (groups, n)")
    missing = rewards.isnan()
    most = rewards.masked_fill(missing, -torch.inf).amax(dim=1)
    return most > rewards.masked_fill(missing, torch.inf).amin(dim=1)


def _deviation(values: Tensor) -> Tensor:
    """The unbiased standard deviation of each row's numbers (rows, 1); NaN where there are fewer than two."""
    count = (~values.isnan()).sum(dim=1, keepdim=True)
    squares = (values - values.nanmean(dim=1, keepdim=True)).square().nansum(dim=1, keepdim=True)
    return (squares / (count - 1)).sqrt()

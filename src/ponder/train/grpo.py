"""Reinforcement learning on verifiable rewards, each answer measured against others to the same question.

    A_i = (r_i - mean(r)) / (std(r) + eps)                     within the group of one question
    loss = sum_t w_t [ -min(q_t A, clip(q_t, 1 - low, 1 + high) A) + beta KL_t ],   q_t = pi(y_t) / pi_old(y_t)

The losses (GRPO, Dr. GRPO, DAPO, GSPO, CISPO) are in `loss`, the advantages in `advantage`. Groups whose rewards are
all equal teach nothing: their rows are dropped before the backward pass, and stay in the denominators. pi_old is what
the sampler drew from, where sampler and trainer agree, which each step measures (`sampler_kl`), or computed anew.

Sources: Shao et al., DeepSeekMath (2024), section 4.1; Yu et al., DAPO (2025), section 3; Aggarwal and Welleck, L1
(2025).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ponder.errors import InputError
from ponder.protocols import Verifier
from ponder.train import loss as losses
from ponder.train.advantage import group_advantages, process_advantages, varied
from ponder.train.batches import batch
from ponder.train.devices import Devices
from ponder.train.rewards import Rewarded, Rewards
from ponder.train.rollout import Ask, Rollout, Rollouts, kept
from ponder.train.rows import Pack, Row
from ponder.train.scorer import Reduce, at_targets, with_entropy
from ponder.train.texts import Texts
from ponder.train.trainer import Trainer
from ponder.types import Question

Name = Literal["dapo", "grpo", "bnpo", "dr_grpo", "gspo", "cispo"]
_KINDS: dict[str, tuple[losses.Kind, losses.Aggregation]] = {
    "dapo": ("ppo", "dapo"),
    "grpo": ("ppo", "grpo"),
    "bnpo": ("ppo", "bnpo"),
    "dr_grpo": ("ppo", "dr_grpo"),
    "gspo": ("gspo", "grpo"),
    "cispo": ("cispo", "dapo"),
}

Disabled = Callable[[], AbstractContextManager[Any]]
"""Inside it the model is the reference: its adapter switched off, say."""


@dataclass(frozen=True)
class Settings:
    """How a step is made. Tokens, not characters; every value has the published method's name.

    prompts, samples: questions a step, answers to each. max_tokens: of an answer, thinking included. thinking: cap of
    the thinking alone. budgets: caps that the prompt tells the model, one drawn for each question. temperature: of
    drawing, and of the log-probabilities learnt from. loss, clip_low, clip_high, ceiling (CISPO), beta (KL to the
    reference), scale (of advantages). dynamic: how often questions with all-equal rewards are replaced by further
    ones. minibatches, passes: steps of the optimiser a batch, and times it is gone through. old: whose
    log-probabilities are pi_old. importance: bound of the ratio that corrects for another engine's arithmetic, None for
    no correction. drop_truncated: answers cut off teach nothing. process: weight of the process rewards' advantage.
    part: questions sampled between writes to disk. keep_rollouts: steps whose rollouts stay on disk, None for all.
    """

    prompts: int = 16
    samples: int = 8
    max_tokens: int = 256
    thinking: int | None = None
    budgets: tuple[int, ...] = ()
    temperature: float = 1.0
    loss: Name = "dapo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    ceiling: float = 5.0
    beta: float = 0.0
    scale: Literal["group", "batch", "none"] = "group"
    dynamic: int = 0
    minibatches: int = 1
    passes: int = 1
    old: Literal["sampler", "trainer"] = "sampler"
    importance: float | None = None
    drop_truncated: bool = False
    process: float = 0.0
    part: int = 1024
    keep_rollouts: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise InputError(f"samples={self.samples} leaves nothing to compare an answer with", "Give at least 2")
        if self.prompts < 1 or self.minibatches < 1 or self.passes < 1:
            raise InputError("prompts, minibatches and passes must be at least 1", "Raise the one that is not")
        if not self.temperature > 0:
            raise InputError("rollouts at temperature 0 are all the same", "Give a temperature above 0, such as 1.0")
        if self.importance is not None and self.old == "sampler":
            raise InputError(
                'importance corrects from the sampler to the trainer, and old = "sampler"', 'Set old = "trainer"'
            )


def grpo(
    trainer: Trainer,
    questions: Sequence[Question],
    texts: Texts,
    rollouts: Rollouts,
    rewards: Rewards,
    settings: Settings,
    *,
    reference: Disabled | None = None,
    process: Verifier | None = None,
    refresh: Callable[[], None] = lambda: None,
) -> None:
    """Trains on `questions`. `reference` is needed where beta is above 0, `process` where its weight is.

    refresh: called after each step of the optimiser, for a sampler that holds copies of the weights. Raises InputError
    for settings that contradict each other and questions that do not fit, TrainingError for a reward that fails.
    """
    if settings.beta > 0 and reference is None:
        raise InputError(f"beta={settings.beta} needs a reference model", "Train a LoRA, or set beta = 0")
    scored = [Rewards({"process": (process, 1.0)})] if settings.process and process else []
    sample = kept(
        _shared_out(rollouts, trainer.devices),
        trainer.run.folder / "rollouts",
        settings.part,
        keeps=trainer.devices.first,
    )
    for step in trainer.steps():
        groups, rounds, taken = _collected(trainer, step, questions, texts, sample, rewards, settings)
        everything = [one for group in groups for one in group]
        extra = scored[0].of([one.rollout for one in everything]) if scored else None
        rows = _rows(groups, settings, texts, extra)
        rows = _completed(trainer, rows, settings, reference)
        totals = _updated(trainer, rows, settings, refresh)
        trainer.state["taken"] = taken
        _dropped(trainer, settings.keep_rollouts)
        trainer.log(**_described(groups), rounds=rounds, **totals)


# ---------------------------------------------------------------- rollouts


def _shared_out(rollouts: Rollouts, devices: Devices) -> Rollouts:
    """Each process samples its share of the asks, and gets all of them."""

    def sample(asks: Sequence[Ask]) -> list[list[Rollout]]:
        mine = devices.dealt(asks)
        return devices.gathered(rollouts(mine) if mine else [])

    return sample


def _collected(
    trainer: Trainer,
    step: int,
    questions: Sequence[Question],
    texts: Texts,
    sample: Callable[[str, Sequence[Ask]], list[list[Rollout]]],
    rewards: Rewards,
    settings: Settings,
) -> tuple[list[list[Rewarded]], int, int]:
    """The groups of a step, how many rounds of sampling they took, and how many questions are taken by now."""
    groups: list[list[Rewarded]] = []
    taken = int(trainer.state.get("taken", 0))
    for number in range(settings.dynamic + 1):
        asks = asked(questions, texts, settings, taken, settings.prompts - len(groups), trainer.seed)
        taken += len(asks)
        found = sample(f"step-{step:08d}-{number}", asks)
        flat = rewards.of([rollout for group in found for rollout in group])
        fresh = [flat[at : at + settings.samples] for at in range(0, len(flat), settings.samples)]
        last = number == settings.dynamic
        groups += [group for group in fresh if last or _varies(group)]
        if len(groups) >= settings.prompts:
            break
    return groups, number + 1, taken


def asked(
    questions: Sequence[Question], texts: Texts, settings: Settings, taken: int, count: int, seed: int
) -> list[Ask]:
    """The next `count` questions after `taken` ones, with the budget that each is told."""
    asks = []
    for place in range(taken, taken + count):
        (at,) = batch(len(questions), 1, place + 1, seed)
        number = int.from_bytes(hashlib.sha256(f"{seed},{place}".encode()).digest()[:8], "big") >> 2
        told = settings.budgets[number % len(settings.budgets)] if settings.budgets else None
        prompt = tuple(texts.prompt(questions[at].messages, budget=told))
        cap = told if told is not None else settings.thinking
        asks.append(Ask(questions[at], prompt, settings.samples, settings.max_tokens, cap, told, number))
    return asks


def _dropped(trainer: Trainer, keep: int | None) -> None:
    """Removes the rollouts of old steps, but none that a resume would take up again."""
    if keep is None or not trainer.devices.first:
        return
    last = min(trainer.step + 1 - keep, trainer.saved)
    for path in (trainer.run.folder / "rollouts").glob("step-*.jsonl"):
        if int(path.name.split("-")[1]) <= last:
            path.unlink()


def _varies(group: Sequence[Rewarded]) -> bool:
    return bool(varied(torch.tensor([[one.reward for one in group]]))[0])


# ---------------------------------------------------------------- rows


def _rows(
    groups: Sequence[Sequence[Rewarded]], settings: Settings, texts: Texts, process: Sequence[Rewarded] | None
) -> list[Row]:
    """What is learnt from: a row for each rollout whose advantage is not 0 (all of them where there is a KL term)."""
    advantages = group_advantages(
        torch.tensor([[one.reward for one in group] for group in groups]), scale=settings.scale
    ).flatten()
    everything = [one.rollout for group in groups for one in group]
    lengths = torch.tensor([rollout.length for rollout in everything])
    mask = torch.ones(int(lengths.sum()), dtype=torch.bool)
    sequence = torch.repeat_interleave(torch.arange(len(everything)), lengths)
    aggregation = _KINDS[settings.loss][1]
    weights = losses.weights(mask, sequence, len(everything), aggregation, longest=settings.max_tokens)
    firsts = (lengths.cumsum(0) - lengths).tolist()
    steps = _process_advantages(groups, texts, process) if process is not None else None
    rows = []
    for at, rollout in enumerate(everything):
        if not rollout.length or (settings.drop_truncated and rollout.sample.finish == "length"):
            continue
        a_token = [float(advantages[at])] * len(rollout.sample.ids)
        if steps is not None:
            a_token = [a + settings.process * b for a, b in zip(a_token, steps[at], strict=True)]
        if any(a_token) or settings.beta > 0:
            rows.append(_row(rollout, a_token, float(weights[firsts[at]])))
    return rows


def _row(rollout: Rollout, advantages: Sequence[float], weight: float) -> Row:
    sample, before = rollout.sample, [0.0] * len(rollout.sample.prompt_ids)
    values = {
        "advantage": [*before, *advantages],
        "weight": [*before, *(weight for _ in sample.ids)],
        "drawn": [*before, *rollout.drawn],
    }
    return Row([*sample.prompt_ids, *sample.ids], [*(False for _ in before), *sample.mask], values)


def _process_advantages(
    groups: Sequence[Sequence[Rewarded]], texts: Texts, process: Sequence[Rewarded]
) -> list[list[float]]:
    """For each rollout, an advantage for each of its tokens, from the rewards of the steps that end there or later."""
    rewards, ends, begin = [], [], 0
    for one in process:
        (score,) = one.scores.values()
        rewards += list(score.steps)
        ends += [begin + end for end in step_places(texts, one.rollout, len(score.steps))]
        begin += len(one.rollout.sample.ids)
    lengths = torch.tensor([len(one.rollout.sample.ids) for one in process])
    sequence = torch.repeat_interleave(torch.arange(len(process)), lengths)
    group = torch.tensor([number for number, each in enumerate(groups) for _ in each])
    found = process_advantages(torch.tensor(rewards), torch.tensor(ends, dtype=torch.long), sequence, group)
    return [part.tolist() for part in torch.split(found, lengths.tolist())]


def step_places(texts: Texts, rollout: Rollout, steps: int) -> list[int]:
    """The place of each step's last token among the rollout's tokens."""
    from ponder.verifiers.reward_model import step_ends

    if not steps:
        return []
    sample, places, read = rollout.sample, [], 1
    for end in step_ends(sample.text, sample.spans, steps):
        while read < len(sample.ids) and len(texts.decode(sample.ids[:read])) < end:
            read += 1
        places.append(read - 1)
    return places


def _completed(trainer: Trainer, rows: list[Row], settings: Settings, reference: Disabled | None) -> list[Row]:
    """The rows with what the loss needs beside: pi_old, importance, the reference."""
    more: dict[str, list[list[float]]] = {}
    if settings.old == "trainer" and rows:
        old = trainer.scored(rows, lambda pack: at_targets(pack, settings.temperature))
        more["old"] = [each.tolist() for each in old]
        if settings.importance is not None:
            more["importance"] = [
                _importance(row, each, settings.importance) for row, each in zip(rows, old, strict=True)
            ]
    if reference is not None and settings.beta > 0 and rows:
        with reference():
            held = trainer.scored(rows, lambda pack: at_targets(pack, settings.temperature))
        more["reference"] = [each.tolist() for each in held]
    return [
        Row(row.ids, row.mask, {**row.values, **{name: values[at] for name, values in more.items()}})
        for at, row in enumerate(rows)
    ]


def _importance(row: Row, old: Tensor, bound: float) -> list[float]:
    drawn = torch.tensor(row.values["drawn"])
    mask, sequence = torch.tensor(row.mask), torch.zeros(len(row), dtype=torch.long)
    return losses.importance_weights(old, drawn, mask, sequence, 1, high=bound).tolist()


# ---------------------------------------------------------------- steps of the optimiser


def _updated(
    trainer: Trainer, rows: Sequence[Row], settings: Settings, refresh: Callable[[], None]
) -> dict[str, float]:
    """Takes the batch's steps; gives means over its tokens of what is worth watching."""
    kept: losses.Measures = losses.Measures()
    for number in range(settings.passes * settings.minibatches):
        part = rows[number % settings.minibatches :: settings.minibatches]
        # A part of the batch is a batch of its own: its denominators shrink with it.
        scale = float(settings.minibatches)
        totals = trainer.update(part, _reduce(settings), _loss(settings, scale, fresh=number == 0))
        refresh()
        kept += losses.Measures(
            {name[4:]: value for name, value in totals.items() if name.startswith("sum.")},
            {name[2:]: value for name, value in totals.items() if name.startswith("n.")},
        )
    return kept.means()


def _reduce(settings: Settings) -> Callable[[Pack], Reduce]:
    return lambda pack: with_entropy(pack, settings.temperature)


def _loss(settings: Settings, scale: float, fresh: bool) -> Callable[[Tensor, Pack], tuple[Tensor, dict[str, Tensor]]]:
    kind, _ = _KINDS[settings.loss]

    def loss(learnt: Tensor, pack: Pack) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs, values, count = learnt[:, 0], pack.values, len(pack.lengths)
        drawn = values["drawn"]
        old = values.get("old", torch.where(drawn.isnan(), logprobs.detach(), drawn))
        result = losses.surrogate(
            logprobs,
            old,
            values["advantage"],
            pack.mask,
            pack.sequence,
            count,
            kind=kind,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            ceiling=settings.ceiling if kind == "cispo" else None,
            importance=values.get("importance"),
        )
        tokens = result.loss
        if settings.beta > 0:
            # Multiplied by the ratio, the term has the gradient of KL(policy || reference) off policy too.
            held = losses.kl(logprobs, values["reference"], mask=pack.mask, ratio=result.ratio)
            tokens = tokens + settings.beta * held
        found = losses.measures(
            result,
            pack.mask,
            trainer=logprobs.detach() if fresh else None,
            sampler=drawn if fresh else None,
            entropy=learnt[:, 1].detach(),
        )
        sums = {f"sum.{name}": torch.tensor(value) for name, value in found.sums.items()}
        sums |= {f"n.{name}": torch.tensor(value) for name, value in found.counts.items()}
        return scale * (values["weight"] * tokens).sum(), sums

    return loss


def _described(groups: Sequence[Sequence[Rewarded]]) -> dict[str, float]:
    """What the line of a step says of its rollouts."""
    everything = [one for group in groups for one in group]
    rollouts = [one.rollout for one in everything]
    told = [one for one in everything if one.rollout.ask.told is not None]
    values = {
        "reward": _mean([one.reward for one in everything]),
        "correct": _mean([float(one.correct) for one in everything]),
        "length": _mean([float(rollout.length) for rollout in rollouts]),
        "truncated": _mean([float(rollout.sample.finish == "length") for rollout in rollouts]),
        "groups_even": _mean([float(not _varies(group)) for group in groups]),
        "questions": float(len(groups)),
    }
    if told:
        values["over_budget"] = _mean([float(one.rollout.length > (one.rollout.ask.told or 0)) for one in told])
    return values


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan

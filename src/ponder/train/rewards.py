"""Rewards: verifiers with weights, and what a length earns.

r = sum_v w_v score_v + the length's own        then L1, where it is asked for, replaces correctness by
exact    1[correct] - alpha |told - length|     both see the whole length of a rollout
maximum  1[correct] clip(alpha (told - length) + delta, 0, 1)
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ponder.errors import PonderError, TrainingError
from ponder.protocols import Verifier
from ponder.train.length_reward import exact_length, maximum_length, soft_overlong
from ponder.train.loop import run
from ponder.train.rollout import Rollout
from ponder.types import Score

LengthReward = Literal["none", "exact", "maximum"]

CORRECT = 0.999
"""From this score on a verifier says "right": some give a little less than 1 for a right answer."""


@dataclass(frozen=True)
class Rewards:
    """What a rollout earns.

    verifiers: by name, with weights; the first one is what "correct" means. length: how a told budget counts.
    overlong: tokens below max_tokens over which DAPO's soft punishment sets in; 0 for none. alpha and delta: of the
    length reward.
    """

    verifiers: Mapping[str, tuple[Verifier, float]]
    length: LengthReward = "none"
    alpha: float = 0.0003
    delta: float = 0.5
    overlong: int = 0
    at_once: int = 64

    def of(self, rollouts: Sequence[Rollout]) -> list[Rewarded]:
        """Each rollout with its scores and reward. Raises TrainingError where a verifier fails or gives no number."""
        return run(self._of(rollouts))

    async def _of(self, rollouts: Sequence[Rollout]) -> list[Rewarded]:
        gate = asyncio.Semaphore(self.at_once)

        async def one(rollout: Rollout) -> Rewarded:
            async with gate:
                scores = {name: await _scored(name, v, rollout) for name, (v, _) in self.verifiers.items()}
            return Rewarded(rollout, scores, self._total(rollout, scores))

        return list(await asyncio.gather(*map(one, rollouts)))

    def _total(self, rollout: Rollout, scores: Mapping[str, Score]) -> float:
        values = {name: weight * scores[name].value for name, (_, weight) in self.verifiers.items()}
        first = next(iter(self.verifiers))
        told = rollout.ask.told
        if self.length != "none" and told is not None:
            right = scores[first].value >= CORRECT
            earn = exact_length if self.length == "exact" else maximum_length
            more = {} if self.length == "exact" else {"delta": self.delta}
            values[first] = self.verifiers[first][1] * earn(right, rollout.length, told, alpha=self.alpha, **more)
        total = sum(values.values())
        if self.overlong:
            total += soft_overlong(rollout.length, rollout.ask.max_tokens, min(self.overlong, rollout.ask.max_tokens))
        return total


@dataclass(frozen=True)
class Rewarded:
    """A rollout and what it earned."""

    rollout: Rollout
    scores: Mapping[str, Score] = field(default_factory=dict)
    reward: float = math.nan

    @property
    def correct(self) -> bool:
        """Whether the first verifier says so."""
        return bool(self.scores) and next(iter(self.scores.values())).value >= CORRECT


async def _scored(name: str, verifier: Verifier, rollout: Rollout) -> Score:
    where = f"the answer {rollout.sample.answer.strip()[:60]!r} to {rollout.ask.question.text[:60]!r}"
    try:
        score = await verifier(rollout.ask.question, rollout.sample)
    except PonderError:
        raise
    except Exception as error:
        raise TrainingError(
            f"the reward {name} failed on {where}: {type(error).__name__}: {error}", "Mend it and resume"
        ) from error
    if not math.isfinite(score.value):
        raise TrainingError(f"the reward {name} gave {score.value} for {where}", "Let it return a finite number")
    return score

"""Reward models: taught to say "+" or "-" after a marker, at the end of a sample or of each of its steps.

    loss = 1/N sum_k -(c_k log r_k + (1 - c_k) log(1 - r_k))      N: the labelled steps of the whole batch
    r_k  = P("+" | x y_k m) / (P("+" | x y_k m) + P("-" | x y_k m)) = sigma(z_+ - z_-)

x: the prompt; y_k: the sample up to the end of its step k; m: the marker; c_k in [0, 1]: the step's label, hard or a
share of completions that were right; z: logits. An outcome model has one step, the whole sample. All steps of a sample
are branches of one row, so its tokens are computed once.

What is trained is used by `outcome_reward` and `process_reward_model` of `ponder.verifiers.reward_model`, and asked
there after exactly the ids it was trained on: `labelled_row` finds them by the verifier's own functions. Adapters that
are on in training are to be on there, too, and no others.

Sources: Cobbe et al., Training Verifiers to Solve Math Word Problems (2021), outcomes; Lightman et al., Let's Verify
Step by Step (2023), steps; Wang et al., Math-Shepherd (2024), section 3, both losses and soft labels; Guo et al., On
Calibration of Modern Neural Networks (2017), the expected calibration error.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

from ponder.data.step_labels import MOST_STEPS, steps_in
from ponder.errors import InputError
from ponder.protocols import Engine
from ponder.train.batches import batch
from ponder.train.rows import Pack, Row, branched
from ponder.train.scorer import Reduce
from ponder.train.trainer import Trainer
from ponder.types import Sample
from ponder.verifiers.asking import TwoWay, two_way
from ponder.verifiers.reward_model import MARKER

BINS = 10
"""Parts of [0, 1] that the calibration error compares."""

Numbers = npt.NDArray[np.float64]
T = TypeVar("T")


class Tokens(Protocol):
    """What `Texts` knows of a tokenizer."""

    @property
    def encode(self) -> Callable[[str], list[int]]: ...
    @property
    def decode(self) -> Callable[[Sequence[int]], str]: ...


# ---------------------------------------------------------------- rows


def asked(texts: Tokens, marker: str = MARKER, token: str = "+", against: str = "-") -> TwoWay:
    """The marker as token ids, and the ids of the two answers.

    Raises InputError where one answer is the beginning of the other.
    """
    return _at_once(two_way(engine_of(texts), marker, token, against))


def labelled_row(
    texts: Tokens,
    sample: Sample,
    labels: Sequence[float | None],
    *,
    marker: str = MARKER,
    token: str = "+",
    against: str = "-",
    most_steps: int | None = MOST_STEPS,
) -> Row:
    """The sample's tokens, with the marker after each step whose label is not None; values "target" and "weight".

    Steps are those of `process_reward_model(most_steps=...)`; None makes the whole sample one, as for `outcome_reward`.
    Raises InputError where there are not as many labels as steps, or one is no probability.
    """
    places = [place for _, place in _at_once(steps_in(engine_of(texts), sample, most_steps))]
    if len(labels) != len(places):
        raise InputError(
            f"{len(labels)} labels do not fit a sample of {len(places)} steps", "Label it with the same most_steps"
        )
    if odd := [label for label in labels if label is not None and not 0 <= label <= 1]:
        raise InputError(f"{odd[0]} is no probability", "Give labels from 0 to 1")
    known = [(len(sample.prompt_ids) + place, c) for place, c in zip(places, labels, strict=True) if c is not None]
    ends = [end for end, _ in known]
    trunk = [*sample.prompt_ids, *sample.ids][: max(ends, default=0)]
    question = asked(texts, marker, token, against)
    row = branched(trunk, ends, [*question.question, question.yes], [label for _, label in known])
    return replace(row, values={**row.values, "weight": [float(learnt) for learnt in row.mask]})


@dataclass(frozen=True)
class _Written:
    """The part of an engine that only writes down and reads: tokens of a text, text of tokens."""

    texts: Tokens

    async def tokenize(self, text: str) -> list[int]:
        return self.texts.encode(text)

    async def detokenize(self, ids: Sequence[int]) -> str:
        return self.texts.decode(ids)


def engine_of(texts: Tokens) -> Engine:
    """What functions that only write down and read tokens take for an engine, such as `arithmetic_labels`."""
    return cast(Engine, _Written(texts))


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    work.close()
    raise RuntimeError("a tokenizer had to be waited for")


# ---------------------------------------------------------------- training


def reward_model(
    trainer: Trainer,
    rows: Sequence[Row],
    size: int,
    plus: int,
    minus: int,
    *,
    held_out: Sequence[Row] = (),
    every: int = 0,
) -> None:
    """Trains on `size` rows a step; `plus` and `minus` are the ids of `asked`.

    Logs `accuracy` on each batch before it is learnt, and the `Quality` on `held_out` rows as `held_out_*`: after each
    `every` steps, where that is not 0, and after the last. Raises InputError where there is nothing to learn from or a
    row asks for another answer, and what `Trainer` raises.
    """
    rows, held_out = [row for row in rows if row.learnt], [row for row in held_out if row.learnt]
    if not rows:
        raise InputError("no sample has a labelled step", "Give samples with labels")
    for row in (*rows, *held_out):
        if any(learnt and token != plus for token, learnt in zip(row.ids, row.mask, strict=True)):
            raise InputError(f"a row asks for another token than {plus}", "Give the ids that `asked` names")
    for step in trainer.steps():
        chosen = [rows[at] for at in batch(len(rows), size, step, trainer.seed)]
        total = sum(row.learnt for row in chosen)

        def loss(odds: Tensor, pack: Pack, total: int = total) -> tuple[Tensor, dict[str, Tensor]]:
            target, weight = pack.values["target"], pack.values["weight"] / total
            each = functional.binary_cross_entropy_with_logits(odds, target, reduction="none")
            right = ((odds.detach() >= 0) == (target >= 0.5)).float()
            return (weight * each).sum(), {"accuracy": (weight * right).sum()}

        sums = trainer.update(chosen, log_odds(plus, minus), loss)
        trainer.log(accuracy=sums["accuracy"])
        last = step == trainer.schedule.steps
        if held_out and (last or (every and step % every == 0)):
            trainer.log(
                **{f"held_out_{name}": value for name, value in measured(trainer, held_out, plus, minus).items()}
            )


def log_odds(plus: int, minus: int) -> Callable[[Pack], Reduce]:
    """z_plus - z_minus for each step: the logarithm of the odds of "+" against "-"."""

    def of(pack: Pack) -> Reduce:
        return lambda logits, places: logits[:, plus] - logits[:, minus]

    return of


# ---------------------------------------------------------------- how good it is


@dataclass(frozen=True)
class Quality:
    """How probabilities r_k fit labels c_k, over `steps` steps. Steps of one sample are not independent of each other.

    loss: the mean cross-entropy. accuracy: of r_k >= 1/2 as a guess of c_k >= 1/2. auc: the chance that a step with
    c_k >= 1/2 has the higher probability of it and one without; None where there are only steps of one kind.
    brier: the mean of (r_k - c_k)^2. calibration_error: the mean distance between probability and label over `BINS`
    parts of [0, 1], by their numbers of steps.
    """

    steps: int
    loss: float
    accuracy: float
    auc: float | None
    brier: float
    calibration_error: float

    def items(self) -> list[tuple[str, float]]:
        """Names and values, without what is None."""
        return [(name, value) for name, value in vars(self).items() if value is not None]


def measured(trainer: Trainer, rows: Sequence[Row], plus: int, minus: int) -> Quality:
    """How good the model is on the labelled steps of `rows`. Raises InputError where there are none."""
    rows, odds, targets = [row for row in rows if row.learnt], [], []
    for row, found in zip(rows, trainer.scored(rows, log_odds(plus, minus)), strict=True):
        places = [at for at, learnt in enumerate(row.mask) if learnt]
        odds += [float(found[at]) for at in places]
        targets += [row.values["target"][at] for at in places]
    return quality(odds, targets)


def quality(odds: Sequence[float], targets: Sequence[float]) -> Quality:
    """The quality of probabilities that are given as log-odds (steps,), for labels (steps,)."""
    if not len(odds) == len(targets) > 0:
        raise InputError(f"{len(odds)} probabilities and {len(targets)} labels compare nothing", "Give labelled steps")
    z, c = np.array(odds, dtype=np.float64), np.array(targets, dtype=np.float64)
    small = np.exp(-np.abs(z))
    r = np.where(z >= 0, 1, small) / (1 + small)
    return Quality(
        steps=len(z),
        loss=float(np.mean(np.logaddexp(0, z) - c * z)),
        accuracy=float(np.mean((r >= 0.5) == (c >= 0.5))),
        auc=_auc(z, c >= 0.5),
        brier=float(np.mean((r - c) ** 2)),
        calibration_error=_calibration_error(r, c),
    )


def _auc(values: Numbers, positive: npt.NDArray[np.bool_]) -> float | None:
    """The statistic of Mann and Whitney over all pairs; equal values count one half."""
    ones, zeros = np.sort(values[positive]), np.sort(values[~positive])
    if not len(ones) or not len(zeros):
        return None
    below = np.searchsorted(zeros, ones, "left") + np.searchsorted(zeros, ones, "right")
    return float(below.sum() / (2 * len(ones) * len(zeros)))


def _calibration_error(r: Numbers, c: Numbers) -> float:
    part = np.minimum((r * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(part, weights=r - c, minlength=BINS)
    return float(np.abs(gaps).sum() / len(r))

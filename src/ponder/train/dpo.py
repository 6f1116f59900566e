"""Learning from pairs of answers, directly: the trainer around the losses of `preference`.

    h(y) = sum_t log pi(y_t | x, y_<t) - log pi_reference(y_t | x, y_<t)
    loss = 1/B sum_pairs f(beta (h(chosen) - h(rejected)))       f: see `preference`

Both answers of a pair are branches of one row after the prompt, which is thus computed once; and as rows are never
split, both are in the loss of the same micro-batch. The reference is worked out before the first step and kept in the
run's folder. Its differences are summed, not subtracted as sums: near the reference they are small, and float32
keeps them exactly.

Source: Rafailov et al., Direct Preference Optimization (2023), section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ponder.errors import InputError
from ponder.train import preference, stored
from ponder.train.batches import batch
from ponder.train.preference import Kind
from ponder.train.rows import Pack, Row, check_fit
from ponder.train.scorer import at_targets
from ponder.train.trainer import Trainer
from ponder.train.verified import Verified
from ponder.types import Sample

Reference = Literal["initial", "base", "none"]
FILE = "reference.safetensors"


@dataclass(frozen=True)
class Pair:
    """Token ids of a prompt and of two answers to it, each with what ends it.

    The masks say which tokens the model gave itself; None: all of them. What was written into an answer, such as the
    result of a tool, counts nothing.
    """

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    chosen_mask: Sequence[bool] | None = None
    rejected_mask: Sequence[bool] | None = None


def dpo(
    trainer: Trainer,
    pairs: Sequence[Pair],
    size: int,
    *,
    beta: float = 0.1,
    kind: Kind = "sigmoid",
    smoothing: float = 0.0,
    reference: Reference = "initial",
) -> None:
    """Trains on `size` pairs a step.

    reference: "initial", the weights that the trainer was made with; "base", the same with adapters off; "none" for a
    loss without one. It logs the implied rewards beta h of both answers, their margin, and how often it is above 0.
    Raises InputError for pairs or settings that cannot be used, and what `Trainer` raises.
    """
    _check(kind, beta, smoothing, reference)
    rows = [_row(pair, number) for number, pair in enumerate(pairs, start=1)]
    if not rows:
        raise InputError("there are no pairs to learn from", "Give at least one answer preferred to another")
    check_fit(rows, trainer.tokens)
    before = _reference(trainer, rows, reference)  # ahead of steps(), which may take up weights of a later step
    rows = [replace(row, values={"reference": known.tolist()}) for row, known in zip(rows, before, strict=True)]

    def loss(logprobs: Tensor, pack: Pack) -> tuple[Tensor, dict[str, Tensor]]:
        policy = _answers(logprobs - pack.values["reference"], pack, average=kind == "ipo")
        found = preference.preference(policy, None, kind=kind, beta=beta, label_smoothing=smoothing)
        chosen, rejected = found.rewards
        measured = {
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "margin": chosen - rejected,
            "accuracy": (chosen > rejected).float(),
        }
        return found.loss.sum() / size, {name: value.sum() / size for name, value in measured.items()}

    for step in trainer.steps():
        totals = trainer.update([rows[at] for at in batch(len(rows), size, step, trainer.seed)], at_targets, loss)
        trainer.log(**{name: value for name, value in totals.items() if name != "loss"})


def _answers(values: Tensor, pack: Pack, average: bool) -> preference.Pair:
    """Sums (or averages) of values of tokens over each answer of a pack's pairs."""
    assert pack.branch is not None
    pairs = len(pack.lengths)
    answer = 2 * pack.sequence + (pack.branch == 2)
    sums = preference.sequence_logprobs(values, pack.mask, answer, 2 * pairs, average=average)
    return preference.Pair(sums[0::2], sums[1::2])


def _row(pair: Pair, number: int) -> Row:
    """The prompt as trunk, and the two answers as its branches 1 and 2."""
    prompt, answers = len(pair.prompt), (pair.chosen, pair.rejected)
    given = (pair.chosen_mask, pair.rejected_mask)
    masks = [[True] * len(ids) if mask is None else list(mask) for ids, mask in zip(answers, given, strict=True)]
    if not prompt:
        raise InputError(f"pair {number} has no prompt", "Give at least the token that begins a text")
    for name, ids, mask in zip(("chosen", "rejected"), answers, masks, strict=True):
        if len(ids) != len(mask):
            raise InputError(f"pair {number} masks {len(mask)} of {len(ids)} tokens of what is {name}", "Mask each")
        if not any(mask):
            raise InputError(f"pair {number} has no token to learn from in what is {name}", "Leave the pair out")
    if list(pair.chosen) == list(pair.rejected):
        raise InputError(f"the answers of pair {number} are the same", "Leave out pairs that prefer nothing")
    return Row(
        [*pair.prompt, *pair.chosen, *pair.rejected],
        [False] * prompt + masks[0] + masks[1],
        positions=[*range(prompt), *(prompt + at for ids in answers for at in range(len(ids)))],
        branch=[0] * prompt + [1] * len(pair.chosen) + [2] * len(pair.rejected),
    )


def _check(kind: str, beta: float, smoothing: float, reference: str) -> None:
    if reference not in get_args(Reference):
        raise InputError(f"there is no reference {reference!r}", f"Choose one of {', '.join(get_args(Reference))}")
    nothing = torch.zeros(1)
    any_kind: Any = kind  # an unknown one is refused there
    preference.preference(preference.Pair(nothing, nothing), None, kind=any_kind, beta=beta, label_smoothing=smoothing)


# ---------------------------------------------------------------- the reference


def _reference(trainer: Trainer, rows: Sequence[Row], reference: Reference) -> list[Tensor]:
    """The reference's log-probabilities at each row's tokens, from the run's folder where they are there already."""
    if reference == "none":
        return [torch.zeros(len(row)) for row in rows]
    facts = {"rows": stored.rows_hash(rows), "model": stored.model_hash(trainer.model), "reference": reference}
    path = trainer.run.folder / FILE
    found = _kept(path, facts)
    if trainer.devices.agreed(found is None):
        with _without_adapters(trainer.model) if reference == "base" else nullcontext():
            values = trainer.scored(rows, at_targets)
        found = torch.cat([value.float() for value in values])
        if trainer.devices.first:
            stored.save(path, {"logprobs": found}, facts)
        trainer.devices.wait()
    assert found is not None
    return list(torch.split(found, [len(row) for row in rows]))


def _kept(path: Path, facts: dict[str, str]) -> Tensor | None:
    """What an earlier start of this run worked out; None where it has to be done again, as for a damaged file."""
    try:
        tensors, written = stored.load(path)
    except InputError:
        return None
    changed = [name for name, value in facts.items() if written.get(name) != value]
    if changed:
        what = {"rows": "other pairs", "model": "other initial weights", "reference": "another kind of reference"}
        raise InputError(
            f"{path.parent} belongs to a run that began with {what[changed[0]]}",
            "Resume with what it began with, or take a new folder",
        )
    return tensors["logprobs"]


def _without_adapters(model: Any) -> AbstractContextManager[Any]:
    if not hasattr(model, "disable_adapter"):
        raise InputError("the model has no adapter to leave out", 'Set reference = "initial"')
    context: AbstractContextManager[Any] = model.disable_adapter()
    return context


# ---------------------------------------------------------------- pairs from samples


def pairs_of(samples: Iterable[Verified], *, matched: bool = False, gap: float = 0.0) -> list[Pair]:
    """One pair for each prompt: a best and a worst one of its samples, where their scores differ by more than `gap`.

    matched: of all best and all worst ones, the two whose lengths are nearest, so that length is not what is learnt;
    otherwise the first of each. Samples without token ids are left out.
    """
    groups: dict[tuple[int, ...], list[Verified]] = {}
    for item in samples:
        if item.sample.exact and item.sample.prompt_ids and any(item.sample.mask):
            groups.setdefault(item.sample.prompt_ids, []).append(item)
    return [pair for group in groups.values() for pair in _extremes(group, matched, gap)]


def _extremes(group: Sequence[Verified], matched: bool, gap: float) -> Iterator[Pair]:
    scores = [item.score for item in group]
    high, low = max(scores), min(scores)
    if not high - low > gap:
        return
    best = [item.sample for item in group if item.score == high]
    worst = [item.sample for item in group if item.score == low]
    choices = [(a, b) for a in best for b in worst if a.ids != b.ids]
    if choices:
        yield _pair(*(min(choices, key=_difference) if matched else choices[0]))


def _difference(pair: tuple[Sample, Sample]) -> int:
    return abs(len(pair[0].ids) - len(pair[1].ids))


def _pair(chosen: Sample, rejected: Sample) -> Pair:
    return Pair(chosen.prompt_ids, chosen.ids, rejected.ids, chosen.mask, rejected.mask)

"""Reward models as a kind of training: scored traces as labelled rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from ponder.data.step_labels import arithmetic_labels
from ponder.engine.torch_load import Loaded
from ponder.errors import InputError
from ponder.train.kinds import Dataset, Lesson, fitting, scored_samples
from ponder.train.kinds_dpo import own_tokens
from ponder.train.loop import run
from ponder.train.recipe import Recipe, Reward
from ponder.train.reward_model import asked, engine_of, labelled_row, reward_model
from ponder.train.rows import Row
from ponder.train.texts import Texts
from ponder.train.verified import Verified
from ponder.verifiers.reward_model import MARKER


def rows(recipe: Recipe, start: Loaded) -> Dataset:
    """A row for each labelled sample; all samples of a question are learnt from, or all held out."""
    told, texts = recipe.reward or Reward(), Texts.of(start)
    found, counts = scored_samples(recipe, told.verifier)
    own = [each for each in found if own_tokens(texts, each)]
    made = [(each, _row(texts, told, each)) for each in own]
    learnt = [row for each, row in made if not _held_out(each, told.held_out)]
    held = [row for each, row in made if _held_out(each, told.held_out)]
    if not learnt:
        raise InputError(
            f"the data holds no sample to learn from: of {len(found)}, {len(own)} are in this model's tokens",
            "Ask this model, with best_of_n(8), say",
        )
    other = len(found) - len(own)
    return fitting(recipe, learnt, held, samples_of_other_tokens=other, **counts)


def train(lesson: Lesson) -> None:
    """Learns to judge."""
    told = lesson.recipe.reward or Reward()
    question = asked(lesson.texts, told.marker or MARKER, told.plus, told.minus)
    reward_model(
        lesson.trainer,
        lesson.items,
        lesson.recipe.size,
        question.yes,
        question.no,
        held_out=lesson.data.held_out,
        every=lesson.recipe.save_every,
    )


def _row(texts: Texts, told: Reward, item: Verified) -> Row:
    words: Any = {"marker": told.marker or MARKER, "token": told.plus, "against": told.minus}
    if told.kind == "outcome":
        return labelled_row(texts, item.sample, [min(1.0, max(0.0, item.score))], most_steps=None, **words)
    return labelled_row(texts, item.sample, run(_labels(texts, item)), **words)


async def _labels(texts: Texts, item: Verified) -> Sequence[float | None]:
    if item.labels:
        return item.labels
    label = arithmetic_labels(engine_of(texts))
    return (await label(item.question, item.sample)).values


def _held_out(item: Verified, share: float) -> bool:
    digest = hashlib.sha256(repr(item.question.messages).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share

"""What a kind of training is: the data that it learns from, and its loop over them. The others: `kinds_*.py`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ponder.data.examples import Example
from ponder.engine.torch_load import Loaded
from ponder.errors import InputError
from ponder.train import sources
from ponder.train.recipe import Recipe
from ponder.train.rows import Row
from ponder.train.texts import Texts
from ponder.train.trainer import Trainer
from ponder.train.verified import Verified


@dataclass(frozen=True)
class Dataset:
    """Items to learn from, and what is to be told of them: counts by name. held_out: items that are only measured."""

    items: Sequence[Any]
    counts: dict[str, int] = field(default_factory=dict)
    held_out: Sequence[Any] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """The counts, and a hash by which a run that is resumed knows its data again."""
        text = json.dumps([repr(item) for item in (*self.items, *self.held_out)])
        return {**self.counts, "sha256": hashlib.sha256(text.encode()).hexdigest()}


@dataclass(frozen=True)
class Lesson:
    """Everything that a loop may need."""

    recipe: Recipe
    start: Loaded
    trainer: Trainer
    data: Dataset

    @property
    def texts(self) -> Texts:
        """How the model's conversations are written down."""
        return Texts.of(self.start)

    @property
    def items(self) -> Sequence[Any]:
        """What is learnt from."""
        return self.data.items


@dataclass(frozen=True)
class Kind:
    """A kind of training."""

    data: Callable[[Recipe, Loaded], Dataset]
    train: Callable[[Lesson], None]


# ---------------------------------------------------------------- supervised fine-tuning, which others use, too


def example_rows(recipe: Recipe, start: Loaded) -> Dataset:
    """A row for each example."""
    texts, told = Texts.of(start), recipe.data
    found, hits = sources.kept_out(sources.turns(told.sources), told.keep_out, _example)
    found = [_direct(turn, told.direct) for turn in found]
    return fitting(recipe, [texts.row(*turn) for turn in found], (), **({"kept_out": hits} if told.keep_out else {}))


def _example(turn: sources.Turn) -> Example:
    messages, thinking, answer = turn
    return Example("\n".join(message.text for message in messages), answer, thinking)


def _direct(turn: sources.Turn, share: float) -> sources.Turn:
    """The turn, or for that share of all turns, the same ones each time, its answer alone."""
    digest = hashlib.sha256(repr(turn[0]).encode()).digest()
    return (turn[0], "", turn[2]) if int.from_bytes(digest[:8], "big") / 2**64 < share else turn


def scored_samples(recipe: Recipe, verifier: str | None = None) -> tuple[list[Verified], dict[str, int]]:
    """The samples of traces that `verifier`, or any, has scored, less what is kept out, and how many that were."""
    found = sources.samples(recipe.data.sources, verifier)
    kept, hits = sources.kept_out(found, recipe.data.keep_out, _answered)
    return kept, {"kept_out": hits} if recipe.data.keep_out else {}


def _answered(item: Verified) -> Example:
    return _example((item.question.messages, item.sample.thinking, item.sample.answer))


def sft(lesson: Lesson) -> None:
    """Imitates the examples."""
    from ponder.train.sft import sft

    sft(lesson.trainer, lesson.items, lesson.recipe.size)


def fitting(recipe: Recipe, rows: Sequence[Row], held_out: Sequence[Row] = (), **counts: int) -> Dataset:
    """The rows of at most `longest` tokens. Raises InputError where none is left."""
    kept = [row for row in rows if len(row) <= recipe.longest]
    if rows and not kept:
        shortest = min(len(row) for row in rows)
        raise InputError(
            f"no example has at most {recipe.longest} tokens: the shortest has {shortest}", "Raise longest, and tokens"
        )
    told = {
        "examples": len(kept),
        "left_out_as_too_long": len(rows) - len(kept),
        "tokens": sum(len(row) for row in kept),
        "learnt_tokens": sum(row.learnt for row in kept),
    }
    measured = [row for row in held_out if len(row) <= recipe.longest]
    return Dataset(kept, {**told, **counts, **({"held_out": len(measured)} if held_out else {})}, measured)

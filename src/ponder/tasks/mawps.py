"""MAWPS (Koncel-Kedziorski et al. 2016) as its subsets are spread in JSONL: `input` and a number as `target`."""

from __future__ import annotations

from ponder.tasks import fields
from ponder.tasks.fields import Row
from ponder.types import Question, user

VERIFIER = "math_answer"


def matches(row: Row) -> bool:
    """Whether the row has these two fields alone, with a number for a target."""
    target = row.get("target")
    return row.keys() == {"input", "target"} and isinstance(target, int | float) and not isinstance(target, bool)


def question(row: Row, index: int) -> Question:
    """The question and its number."""
    return Question(
        (user(fields.text(row, "input")),),
        reference=fields.number(row, "target"),
        metadata=fields.metadata(row, index),
    )

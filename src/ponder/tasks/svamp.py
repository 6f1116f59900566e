"""SVAMP (Patel et al. 2021, https://github.com/arkilpatel/SVAMP): `Body`, `Question`, `Answer`, `ID`, `Type`."""

from __future__ import annotations

from ponder.tasks import fields
from ponder.tasks.fields import Row
from ponder.types import Question, user

VERIFIER = "math_answer"


def matches(row: Row) -> bool:
    """Whether the row has SVAMP's capitalised fields."""
    return {"Body", "Question", "Answer"} <= row.keys()


def question(row: Row, index: int) -> Question:
    """Body and question joined, and the number."""
    text = f"{fields.text(row, 'Body').strip()} {fields.text(row, 'Question').strip()}"
    return Question(
        (user(text),),
        reference=fields.number(row, "Answer"),
        metadata=fields.metadata(row, index, kind=fields.label(row, "Type"), solution=fields.label(row, "Equation")),
    )

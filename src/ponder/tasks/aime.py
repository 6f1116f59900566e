"""AIME, the American Invitational Mathematics Examination: every answer is an integer from 0 to 999.

Spread as `ID`, `Problem`, `Solution`, `Answer` (2024) and as `id`, `problem`, `answer` (2025).
"""

from __future__ import annotations

import re

from ponder.errors import InputError
from ponder.tasks import fields
from ponder.tasks.fields import Row
from ponder.types import Question, user

VERIFIER = "math_answer"

ANSWER = re.compile(r"[0-9]{1,3}")
OF_MATH = {"level", "type", "subject", "unique_id"}


def matches(row: Row) -> bool:
    """Whether the row has a problem and an answer of AIME's range, and no field that only MATH has."""
    problem, answer = fields.present(row, "problem", "Problem"), fields.present(row, "answer", "Answer")
    return bool(problem and answer and _integer(row[answer]) and not OF_MATH & row.keys())


def question(row: Row, index: int) -> Question:
    """The problem and its integer, without leading zeros."""
    found = fields.value(row, "answer", "Answer")
    reference = _integer(found)
    if reference is None:
        raise InputError(f"AIME's answer must be an integer from 0 to 999, not {found!r}", "Name another format")
    return Question(
        (user(fields.text(row, "problem", "Problem")),),
        reference=reference,
        metadata=fields.metadata(row, index, solution=fields.label(row, "solution", "Solution")),
    )


def _integer(found: object) -> str | None:
    written = found.strip() if isinstance(found, str) else fields.as_number(found) or ""
    return str(int(written)) if ANSWER.fullmatch(written) else None

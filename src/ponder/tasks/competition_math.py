r"""MATH (Hendrycks et al. 2021, https://github.com/hendrycks/math): `problem`, `solution`, `level`, `type`.

The answer stands in the solution's last \boxed{...}. The subset MATH-500 (Lightman et al. 2023) adds
`answer`, `unique_id` and calls the type `subject`.
"""

from __future__ import annotations

from ponder.errors import InputError
from ponder.tasks import aime, fields
from ponder.tasks.fields import Row
from ponder.types import Question, user

VERIFIER = "math_answer"

BOXES = ("\\boxed", "\\fbox")


def matches(row: Row) -> bool:
    """Whether the row has a problem with an answer or a boxed one, and is not AIME's."""
    solution = row.get("solution")
    answered = "answer" in row or (isinstance(solution, str) and boxed(solution) is not None)
    return "problem" in row and answered and not aime.matches(row)


def question(row: Row, index: int) -> Question:
    """The problem, its answer, and the solution under "solution"."""
    solution = fields.label(row, "solution")
    if fields.present(row, "answer"):
        found = fields.value(row, "answer")
        reference: str | None = found.strip() if isinstance(found, str) else fields.as_number(found)
    else:
        reference = boxed(fields.text(row, "solution", "answer"))
    if not reference:
        raise InputError("the solution has no \\boxed{...} and the row no answer", "Add one of them")
    level = fields.label(row, "level")
    return Question(
        (user(fields.text(row, "problem")),),
        reference=reference,
        metadata=fields.metadata(
            row,
            index,
            kind=fields.label(row, "type", "subject"),
            level=level and level.removeprefix("Level "),
            solution=solution,
        ),
    )


def boxed(text: str) -> str | None:
    r"""What the last \boxed{...} holds, braces inside it included; also "\boxed 5", as MATH has it."""
    at, box = max((text.rfind(box), box) for box in BOXES)
    if at < 0:
        return None
    rest = text[at + len(box) :].lstrip()
    if not rest.startswith("{"):
        return rest.split("$")[0].strip() or None
    depth = 0
    for position, character in enumerate(rest):
        escaped = position > 0 and rest[position - 1] == "\\"
        if not escaped:
            depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[1:position].strip() or None
    return None

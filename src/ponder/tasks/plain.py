"""One's own questions, as JSONL, a JSON array or CSV.

`question` (or `prompt`, `input`) and `answer` (or `target`, `reference`); `id`, `choices`, `kind` and
`verifier` where wanted. With choices, the answer is a letter or the text of a choice; in CSV, choices
are parted by "|". A first row such as {"task": "...", "verifier": "...", "instruction": "..."} speaks
for the whole file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ponder.errors import InputError
from ponder.tasks import fields
from ponder.tasks.fields import LETTERS, Row
from ponder.types import Question, user

VERIFIER = "normalised_text"

QUESTION = ("question", "prompt", "input")
ANSWER = ("answer", "target", "reference")
HEADER = ("task", "verifier", "instruction")


def matches(row: Row) -> bool:
    """Whether the row has something to ask and an answer to it."""
    return any(name in row for name in QUESTION) and any(name in row for name in ANSWER)


def question(row: Row, index: int) -> Question:
    """The question as it stands in the row, with its choices below where it has some."""
    text = fields.text(row, *QUESTION)
    answer = fields.value(row, *ANSWER)
    choices = _choices(row)
    return Question(
        (user(fields.lettered(text, choices) if choices else text),),
        reference=_letter(answer, choices) if choices else _written(answer),
        metadata=fields.metadata(
            row,
            index,
            kind=fields.label(row, "kind", "type"),
            level=fields.label(row, "level"),
            choices=choices,
            verifier=fields.text(row, "verifier") if fields.present(row, "verifier") else None,
            solution=fields.label(row, "solution"),
        ),
    )


def verifier(questions: Sequence[Question]) -> str:
    """What suits answers of which nobody said how to compare them."""
    if all("choices" in question.metadata for question in questions):
        return "choice"
    if all(fields.as_number(question.reference) is not None for question in questions):
        return "math_answer"
    return VERIFIER


def is_header(row: Row) -> bool:
    """Whether a first row speaks for the whole file: it asks nothing."""
    return any(name in row for name in HEADER) and not any(name in row for name in (*QUESTION, "problem", "Problem"))


def header(row: Row) -> dict[str, str]:
    """The header's fields, checked."""
    unknown = [name for name in row if name not in HEADER]
    if unknown:
        raise InputError(f"the header has the unknown field {unknown[0]}", f"It may have {', '.join(HEADER)}")
    return {name: fields.text(row, name) for name in row}


def _choices(row: Row) -> list[str] | None:
    if fields.present(row, "choices") is None:
        return None
    found = row["choices"]
    return fields.texts([part.strip() for part in found.split("|")] if isinstance(found, str) else found, "choices")


def _letter(answer: Any, choices: list[str]) -> str:
    written = str(answer).strip()
    if len(written) == 1 and written in LETTERS[: len(choices)]:
        return written
    if choices.count(written) == 1:
        return LETTERS[choices.index(written)]
    raise InputError(f"the answer {answer!r} is none of the choices", "Write the letter or the text of one")


def _written(answer: Any) -> str:
    if isinstance(answer, str):
        if not answer.strip():
            raise InputError("the answer is blank", "Write it, or leave the row out")
        return answer
    number = fields.as_number(answer)
    return json.dumps(answer, ensure_ascii=False) if number is None else number

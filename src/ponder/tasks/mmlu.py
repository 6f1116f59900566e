"""MMLU (Hendrycks et al. 2021, https://github.com/hendrycks/test): a question with four choices.

Published as CSV without a header (question, the four choices, the letter), and spread as JSONL with
`question`, `subject`, `choices` and `answer`, which is the index of the right choice.
"""

from __future__ import annotations

from ponder.errors import InputError
from ponder.tasks import fields
from ponder.tasks.fields import LETTERS, Row
from ponder.types import Question, user

VERIFIER = "choice"

COLUMNS = ("question", "A", "B", "C", "D", "answer")
FIELDS = {"id", "question", "subject", "choices", "answer"}


def headless(cells: list[str]) -> bool:
    """Whether the first row of a CSV file is already a question of MMLU's."""
    return len(cells) == len(COLUMNS) and cells[-1].strip() in COLUMNS[1:5] and cells[2:] != list(COLUMNS[1:5])


def matches(row: Row) -> bool:
    """Whether the row has MMLU's columns, or a list of choices with an index or a letter for an answer."""
    if set(COLUMNS) <= row.keys():
        return True
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or not {"question", "choices"} <= row.keys() <= FIELDS:
        return False
    if isinstance(answer, str):
        return answer in LETTERS[: len(choices)] and len(answer) == 1
    # Among choices that are numbers themselves, 2 may mean the third choice or the choice "2": only MMLU's
    # `subject` tells which.
    unclear = "subject" not in row and str(answer) in map(str, choices)
    return isinstance(answer, int) and not isinstance(answer, bool) and not unclear


def question(row: Row, index: int) -> Question:
    """The question with its lettered choices, and the letter of the right one."""
    if "choices" in row:
        choices = fields.texts(row["choices"], "choices")
    else:
        choices = [str(fields.value(row, column)) for column in COLUMNS[1:5]]
    return Question(
        (user(fields.lettered(fields.text(row, "question").strip(), choices)),),
        reference=_letter(fields.value(row, "answer"), len(choices)),
        metadata=fields.metadata(row, index, kind=fields.label(row, "subject"), choices=choices),
    )


def _letter(answer: object, count: int) -> str:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < count:
        return LETTERS[answer]
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip() in LETTERS[:count]:
        return answer.strip()
    raise InputError(
        f"the answer {answer!r} is neither an index below {count} nor a letter up to {LETTERS[count - 1]}", "Mend it"
    )

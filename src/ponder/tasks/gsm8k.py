"""GSM8K (Cobbe et al. 2021, https://github.com/openai/grade-school-math): `question` and `answer`.

The answer is a worked solution whose last line is "#### 18". Calculations in it carry marks such as
"<<16-3-4=9>>", which were made for a calculator and are left out here.
"""

from __future__ import annotations

import re

from ponder.errors import InputError
from ponder.tasks import fields
from ponder.tasks.fields import Row
from ponder.types import Question, user

VERIFIER = "math_answer"

MARK = "####"
CALCULATOR = re.compile(r"<<[^<>\n]*>>")


def matches(row: Row) -> bool:
    """Whether `answer` ends the way GSM8K's do."""
    answer = row.get("answer")
    return "question" in row and isinstance(answer, str) and MARK in answer and not {"body", "choices"} & row.keys()


def question(row: Row, index: int) -> Question:
    """The question, the number behind "####", and the worked solution under "solution"."""
    solution, mark, final = fields.text(row, "answer").rpartition(MARK)
    final = final.strip()
    if not mark or not final:
        raise InputError('the field answer must end in a line such as "#### 18"', "Add it, or name another format")
    return Question(
        (user(fields.text(row, "question")),),
        reference=fields.as_number(final) or final,
        metadata=fields.metadata(
            row, index, kind=fields.label(row, "kind"), solution=CALCULATOR.sub("", solution).strip()
        ),
    )

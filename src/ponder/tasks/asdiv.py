"""ASDiv (Miao et al. 2020, https://github.com/chaochun/nlu-asdiv-dataset): `body`, `question`, `answer` "9 (apples)".

Published as XML, one <Problem> each, and spread as JSONL with the same fields in lower case.
"""

from __future__ import annotations

import re
from typing import Any
from xml.parsers import expat

from ponder.tasks import fields
from ponder.tasks.fields import Row
from ponder.types import Question, user

VERIFIER = "math_answer"

UNIT = re.compile(r"\s*\(([^()]*)\)")


def matches(row: Row) -> bool:
    """Whether the row has ASDiv's fields, in lower case."""
    return {"body", "question", "answer"} <= row.keys()


def question(row: Row, index: int) -> Question:
    """Body and question joined, the answer without its unit, and the unit under "unit"."""
    answer = str(fields.value(row, "answer")).strip()
    bare = UNIT.sub("", answer).strip() or answer
    text = f"{fields.text(row, 'body').strip()} {fields.text(row, 'question').strip()}"
    return Question(
        (user(text),),
        reference=fields.as_number(bare) or bare,
        metadata=fields.metadata(
            row,
            index,
            kind=fields.label(row, "solution_type", "kind"),
            level=fields.label(row, "grade"),
            unit="; ".join(UNIT.findall(answer)) if bare != answer else None,
            solution=fields.label(row, "formula"),
        ),
    )


class XMLError(ValueError):
    """What is wrong with the XML, and on which line."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line


def problems(text: str) -> list[tuple[int, dict[str, Any]]]:
    """Every <Problem> of the XML as a row like JSONL's, with the line on which it begins."""
    parser = expat.ParserCreate()
    parser.buffer_text = True
    rows: list[tuple[int, dict[str, Any]]] = []
    path: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        path.append(tag.lower().replace("-", "_"))
        if path[-1] == "problem":
            row = {name.lower(): value for name, value in attributes.items()}
            rows.append((parser.CurrentLineNumber, row))

    def characters(more: str) -> None:
        if len(path) > 1 and path[-2] == "problem":
            row = rows[-1][1]
            row[path[-1]] = row.get(path[-1], "") + more

    def refuse(*_: object) -> None:  # a DOCTYPE may define entities that grow without bound
        raise XMLError("it has a DOCTYPE", parser.CurrentLineNumber)

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: path.pop()
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise XMLError(expat.ErrorString(error.code), error.lineno) from None
    if not rows:
        raise XMLError("it has no <Problem>", 1)
    return rows

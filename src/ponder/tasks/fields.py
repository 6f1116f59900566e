"""Picking fields out of a row. Whatever is missing or unfit is an `InputError` that `load` gives its file and line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Protocol

from ponder.errors import InputError
from ponder.types import Question

Row = Mapping[str, Any]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NUMBER = re.compile(r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|[-+]?\.[0-9]+")


class Source(Protocol):
    """What a module for one source of questions offers."""

    VERIFIER: str

    def matches(self, row: Row) -> bool:
        """Whether a row has this source's shape."""
        ...

    def question(self, row: Row, index: int) -> Question:
        """The question in the row; `index` counts the rows of the file from 0."""
        ...


def present(row: Row, *names: str) -> str | None:
    """The first of `names` that the row has a value for."""
    return next((name for name in names if row.get(name) is not None and row[name] != ""), None)


def value(row: Row, *names: str) -> Any:
    """The value of the first of `names` that the row has."""
    name = present(row, *names)
    if name is None:
        others = f" (or {', '.join(names[1:])})" if names[1:] else ""
        raise InputError(f"the row lacks the field {names[0]}{others}", "Add it, or name another format")
    return row[name]


def text(row: Row, *names: str) -> str:
    """The text of the first of `names` that the row has."""
    found = value(row, *names)
    if not isinstance(found, str) or not found.strip():
        raise InputError(f"the field {present(row, *names)} must hold text, not {found!r}", "Write it as a string")
    return found


def as_number(found: Any) -> str | None:
    """The shortest decimal of a number or of a text that is one ("43.0" and "43" agree), None for anything else."""
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        return None
    if isinstance(found, str):
        found = found.strip()
        if not NUMBER.fullmatch(found):  # exponents, "nan" and "inf" are left out on purpose
            return None
        found = found.replace(",", "")
    number = Decimal(str(found))
    if not number.is_finite():
        return None
    written = format(number, "f")
    if "." in written:
        written = written.rstrip("0").rstrip(".")
    return "0" if written == "-0" else written


def number(row: Row, *names: str) -> str:
    """The number in the first of `names` that the row has, as text."""
    found = value(row, *names)
    written = as_number(found)
    if written is None:
        raise InputError(
            f"the field {present(row, *names)} must hold a number, not {found!r}", "Mend it, or name another format"
        )
    return written


def metadata(row: Row, index: int, **kept: Any) -> dict[str, Any]:
    """The question's id (its row's index where the source gives none) and whatever of `kept` is known."""
    name = present(row, "id", "ID", "unique_id")
    known = {key: found for key, found in kept.items() if found is not None and found != ""}
    return {"id": str(index if name is None else row[name]), **known}


def label(row: Row, *names: str) -> str | None:
    """A kind, a level or a subject, as text, where the row has one."""
    name = present(row, *names)
    return None if name is None else str(row[name])


def lettered(question: str, choices: list[str]) -> str:
    """The question with its choices below, a letter each."""
    return "\n".join(
        [question, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))],
    )


def texts(found: Any, name: str) -> list[str]:
    """A list of choices, between two and one for each letter."""
    if not isinstance(found, list) or not 2 <= len(found) <= len(LETTERS):
        raise InputError(f"the field {name} must list 2 to {len(LETTERS)} choices, not {found!r}", "Mend the list")
    wrong = [choice for choice in found if isinstance(choice, bool) or not isinstance(choice, str | int | float)]
    if wrong:
        raise InputError(f"a choice must be text or a number, not {wrong[0]!r}", "Write it as a string")
    return [str(choice) for choice in found]

"""Files of questions with known answers: what a strategy, a model or a verifier is measured on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from ponder.errors import InputError
from ponder.tasks import aime, asdiv, competition_math, gsm8k, hub, mawps, mmlu, plain, reasoning_gym, svamp
from ponder.tasks.fields import Row, Source
from ponder.tasks.rows import Numbered, place, read
from ponder.types import Question, system

FORMATS: dict[str, Source] = {
    "gsm8k": gsm8k,
    "mawps": mawps,
    "svamp": svamp,
    "asdiv": asdiv,
    "competition_math": competition_math,
    "aime": aime,
    "mmlu": mmlu,
    "plain": plain,
}
"""Every format by its name. `plain` takes what no other one recognises."""

FIRST = 16
"""How many rows are looked at to recognise a format."""


@dataclass(frozen=True)
class Task:
    """Questions with their reference answers, and the expression that names how answers are compared.

    A question that declares a verifier of its own has it in its metadata, and that one holds for it.
    `sha256` is that of the whole file, or of the rows or entries where there is no file, however few of
    its questions were taken. `revision` is the commit of a data set from a model hub, where known.
    `prompt` is the version of a stored prompt that stands before each question, such as "support@3".
    """

    name: str
    questions: tuple[Question, ...]
    verifier: str
    sha256: str
    revision: str | None = None
    prompt: str | None = None


def load(
    path: str | PathLike[str],
    *,
    format: str | None = None,
    verifier: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
) -> Task:
    """The task in a file: JSONL, a JSON array, CSV with a header or ASDiv's XML.

    In place of a path, `hf:OWNER/NAME:CONFIGURATION@SPLIT` takes a data set of a model hub and
    `reasoning-gym:FAMILY?size=100&seed=1` makes questions; see `ponder.tasks.hub` and `.reasoning_gym`.

    The format is recognised from the first rows unless given. `limit` takes the first rows or, with
    `seed`, a random subset that stays the same for the same seed, and that a larger limit only adds to.
    The whole file is checked in any case.
    """
    if format is not None and format not in FORMATS:
        raise InputError(f"there is no format {format!r}", f"Known formats: {', '.join(FORMATS)}")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, not {limit}", "Leave it out for all questions")
    text, path = str(path), Path(path)
    if text.startswith(reasoning_gym.PREFIX):
        if format is not None:
            raise InputError(f"{text} has no format to choose", "Leave it out")
        name, made, sha256 = reasoning_gym.read(text)
        return Task(name, tuple(_subset(made, limit, seed)), verifier or reasoning_gym.VERIFIER, sha256)
    remote = text.startswith(hub.PREFIX)
    rows, sha256, revision = hub.read(text) if remote else (*read(path), None)
    stem = hub.parse(text).label if remote else path.stem
    header: dict[str, str] = {}
    if rows and plain.is_header(rows[0][1]) and recognise(rows[0][1]) is None:
        line, row = rows.pop(0)
        header = _at(path, line, plain.header, row)
    if not rows:
        raise InputError(f"{path} has no questions", "Give a file with at least one")
    chosen = format or _recognise_all(path, rows[:FIRST])
    name = header.get("task") or (stem if chosen == "plain" else f"{chosen}/{stem}")
    questions = _questions(path, FORMATS[chosen], rows)
    default = plain.verifier(questions) if chosen == "plain" else FORMATS[chosen].VERIFIER
    before = (system(header["instruction"]),) if "instruction" in header else ()
    return Task(
        name=name,
        questions=tuple(
            replace(question, task=name, messages=(*before, *question.messages))
            for question in _subset(questions, limit, seed)
        ),
        verifier=verifier or header.get("verifier") or default,
        sha256=sha256,
        revision=revision,
    )


def recognise(row: Row) -> str | None:
    """The name of the format that a row has, or None."""
    return next((name for name, source in FORMATS.items() if source.matches(row)), None)


def describe(task: Task) -> dict[str, Any]:
    """What is in a task: how many questions, of which kinds, and what a constant answer would reach."""
    answer, share = constant_floor(task)
    return {
        "name": task.name,
        "questions": len(task.questions),
        "kinds": dict(Counter(str(question.metadata.get("kind", "")) for question in task.questions)),
        "verifier": task.verifier,
        "sha256": task.sha256,
        **({"revision": task.revision} if task.revision else {}),
        "floor": {"answer": answer, "share": share},
    }


def constant_floor(task: Task) -> tuple[str, float]:
    """The constant answer that gets most questions right, and their share; the earliest one of equals."""
    counts = Counter(question.reference for question in task.questions if question.reference is not None)
    if not counts:
        return "", 0.0
    answer, count = counts.most_common(1)[0]
    return answer, count / len(task.questions)


def _recognise_all(path: Path, rows: Sequence[Numbered]) -> str:
    """The one format of the first rows. Rows of none are left to the format, which says what they lack."""
    found: dict[str, int] = {}
    for line, row in rows:
        name = recognise(row)
        if name is not None:
            found.setdefault(name, line)
    if not found:
        line, row = rows[0]
        raise InputError(
            f"{place(path, line)}: no known format has the fields {', '.join(map(str, row)) or '(none)'}",
            f"Write question and answer, or name one with format: {', '.join(FORMATS)}",
        )
    if len(found) > 1:
        (first, one), (second, other) = list(found.items())[:2]
        raise InputError(
            f"{place(path, other)} looks like {second}, line {one} like {first}", "Say which with format, or mend it"
        )
    return next(iter(found))


def _questions(path: Path, source: Source, rows: Sequence[Numbered]) -> list[Question]:
    questions: list[Question] = []
    seen: dict[str, int] = {}
    for index, (line, row) in enumerate(rows):
        question = _at(path, line, source.question, row, index)
        name = question.metadata["id"]
        if name in seen:
            raise InputError(
                f"{place(path, line)} has the id {name!r} of line {seen[name]}", "Give every row an id of its own"
            )
        seen[name] = line
        questions.append(question)
    return questions


def _at(path: Path, line: int, make: Any, *arguments: Any) -> Any:
    """What `make` makes of a row; its errors are told where the row is."""
    try:
        return make(*arguments)
    except InputError as error:
        raise InputError(f"{place(path, line)}: {error.problem}", error.mend) from None


def _subset(questions: Sequence[Question], limit: int | None, seed: int | None) -> Sequence[Question]:
    if limit is None or seed is None:
        return questions[:limit]
    # Ranked by a hash, not drawn: the same on every version of Python, and wherever the row stands.
    rank = {q.metadata["id"]: hashlib.sha256(f"{seed}:{q.metadata['id']}".encode()).digest() for q in questions}
    taken = sorted(rank, key=rank.__getitem__)[:limit]
    return [question for question in questions if question.metadata["id"] in set(taken)]

"""A task's verifier, but for questions that declare one of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ponder.errors import InputError
from ponder.protocols import Verifier
from ponder.types import Question, Sample, Score
from ponder.verifiers.naming import verifier_named


class Declares(Protocol):
    """What `ponder.tasks.Task` looks like from here."""

    @property
    def verifier(self) -> str: ...

    @property
    def questions(self) -> Sequence[Question]: ...


def verifier_of(task: str | Declares) -> Verifier:
    """The verifier that `question.metadata["verifier"]` names where a question has it, else that of `task`.

    `task` is a task or the expression of its verifier. Each expression is built once; those of a
    task's questions are built here, so that a mistake in one comes before anything was paid for.

    Raises InputError for an expression that names no verifier.
    """
    expression, questions = (task, ()) if isinstance(task, str) else (task.verifier, task.questions)
    built = {expression: verifier_named(expression)}

    def chosen(question: Question) -> Verifier:
        declared = question.metadata.get("verifier", expression)
        if not isinstance(declared, str):
            raise InputError(_of(question, f"declares {declared!r} as its verifier"), "Write its expression as text")
        if declared not in built:
            try:
                built[declared] = verifier_named(declared)
            except InputError as error:
                raise InputError(_of(question, f"declares a verifier: {error.problem}"), error.mend) from None
        return built[declared]

    for question in questions:
        chosen(question)

    async def verify(question: Question, sample: Sample) -> Score:
        return await chosen(question)(question, sample)

    return verify


def _of(question: Question, what: str) -> str:
    return f"the question {question.metadata.get('id', question.text[:40])!r} {what}"

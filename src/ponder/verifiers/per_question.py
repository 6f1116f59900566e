"""A task's verifier, but for questions that declare one of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ponder.errors import InputError
from ponder.protocols import Verifier, bound, most_tokens
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
    task's questions are built here, so that a mistake in one comes before anything was paid for, and
    that `tokens` knows the most that any of them takes.

    Raises InputError for an expression that names no verifier.
    """
    expression, questions = (task, ()) if isinstance(task, str) else (task.verifier, task.questions)
    verifier = _PerQuestion(expression, {expression: verifier_named(expression)})
    for question in questions:
        verifier.chosen(question)
    return verifier


@dataclass(frozen=True)
class _PerQuestion:
    """`built` holds the verifiers of the expressions met so far, asking `model` once there is one."""

    expression: str
    built: dict[str, Verifier] = field(repr=False)
    model: Any = None

    @property
    def tokens(self) -> int:
        return max(map(most_tokens, self.built.values()))

    def with_model(self, model: Any) -> _PerQuestion:
        if self.model is not None:
            return self
        return _PerQuestion(self.expression, {name: bound(each, model) for name, each in self.built.items()}, model)

    def chosen(self, question: Question) -> Verifier:
        declared = question.metadata.get("verifier", self.expression)
        if not isinstance(declared, str):
            raise InputError(_of(question, f"declares {declared!r} as its verifier"), "Write its expression as text")
        if declared not in self.built:
            try:
                verifier = verifier_named(declared)
            except InputError as error:
                raise InputError(_of(question, f"declares a verifier: {error.problem}"), error.mend) from None
            self.built[declared] = verifier if self.model is None else bound(verifier, self.model)
        return self.built[declared]

    async def __call__(self, question: Question, sample: Sample) -> Score:
        return await self.chosen(question)(question, sample)


def _of(question: Question, what: str) -> str:
    return f"the question {question.metadata.get('id', question.text[:40])!r} {what}"

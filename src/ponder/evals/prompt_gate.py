"""Whether a prompt may take the place of another: both asked the same questions, and compared question by question.

A test of non-inferiority (Piaggio et al., "Reporting of Noninferiority and Equivalence Randomized Trials", 2012): the
candidate passes where the loss that the data still allow is within a margin,

    lower end of the interval of mean(candidate) - mean(current) > -margin

with the paired interval of 95 % of `statistics.paired_difference`. So too few questions let nothing pass, however well
it did on them: nothing is promoted because it could not be told apart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from ponder.errors import InputError
from ponder.evals.results import Run
from ponder.evals.run import compare
from ponder.evals.statistics import Difference, Mean, mean_interval
from ponder.ops.prompt import Prompt, in_front
from ponder.tasks import Task
from ponder.types import Question

Ask = Callable[[Task], Awaitable[Run]]
"""Asks a model all questions of a task, each time under the same setting."""

MARGIN = 0.02
"""How much worse a candidate may be: two points of a hundred."""


@dataclass(frozen=True)
class Version:
    """A version on a task: the id of its run, its accuracy, tokens and (None: unknown) dollars an answer."""

    prompt: str
    run: str
    accuracy: Mean
    tokens: float
    dollars: float | None


@dataclass(frozen=True)
class Verdict:
    """How a candidate did, and beside it what it is to replace; both None where there was nothing to compare with."""

    task: str
    model: str
    strategy: str
    candidate: Version
    current: Version | None
    difference: Difference | None
    margin: float

    @property
    def passed(self) -> bool | None:
        """Whether the candidate is not worse by the margin or more; None where there was nothing to compare with."""
        return None if self.difference is None else self.difference.interval.low > -self.margin

    @property
    def figures(self) -> str:
        """The comparison in words; "" where there was nothing to compare with."""
        if self.difference is None or self.current is None:
            return ""
        low, high = self.difference.interval
        return (
            f"{100 * self.difference.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}] against"
            f" {self.current.prompt} on {self.difference.n} questions of {self.task}, margin {100 * self.margin:g}"
        )

    @property
    def document(self) -> dict[str, Any]:
        """All of it as JSON values."""
        found = self.difference
        return {
            "task": self.task,
            "model": self.model,
            "strategy": self.strategy,
            "candidate": _document(self.candidate),
            "current": None if self.current is None else _document(self.current),
            "difference": None
            if found is None
            else {"value": found.value, "low": found.interval.low, "high": found.interval.high},
            "questions": self.candidate.accuracy.n,
            "better": None if found is None else found.better,
            "worse": None if found is None else found.worse,
            "margin": self.margin,
            "passed": self.passed,
        }

    def check(self) -> None:
        """Raises InputError, with the figures, where the candidate may not take the place of the current one."""
        if self.passed is not False or self.difference is None:
            return
        if self.difference.interval.high < 0:
            said, mend = "is worse", "mend the prompt"
        elif self.difference.value < -self.margin:
            said, mend = "did worse", "mend the prompt, or ask more questions"
        else:
            said, mend = "is not shown to be as good", "ask more questions, or raise --margin"
        raise InputError(f"{self.candidate.prompt} {said}: {self.figures}", f"{mend}; --force promotes it all the same")


async def weigh(
    ask: Ask,
    task: Task,
    candidate: Prompt,
    current: Prompt | None = None,
    variables: Mapping[str, Any] | None = None,
    margin: float = MARGIN,
) -> Verdict:
    """Asks the questions of `task` with either version in front of them, and compares.

    variables: what fills the blanks of both; see `with_prompt`. margin: a share of 1. Raises InputError for variables
    that do not fit and a margin that cannot be, before anything is asked, and whatever `ask` raises.
    """
    if not (isfinite(margin) and 0 <= margin < 1):
        raise InputError(f"a margin of {margin:g} cannot be", "give one from 0 to below 1, such as 0.02 for two points")
    values = variables or {}
    versions = [candidate] if current is None else [candidate, current]
    unused = [name for name in values if not any(name in prompt.variables for prompt in versions)]
    if unused:
        raise InputError(f"no version that is asked has the variable {unused[0]!r}", "leave it out")
    tasks = [with_prompt(task, prompt, values) for prompt in versions]
    runs = [await ask(each) for each in tasks]
    weighed = [_version(prompt, run) for prompt, run in zip(versions, runs, strict=True)]
    return Verdict(
        task.name,
        runs[0].model,
        runs[0].setting.strategy,
        weighed[0],
        weighed[1] if current is not None else None,
        compare(runs[0], runs[1]).difference if current is not None else None,
        margin,
    )


def with_prompt(task: Task, prompt: Prompt, variables: Mapping[str, Any]) -> Task:
    """The task with a prompt in front of each question.

    Its blanks are filled from `variables`, and what these leave open from the question's own fields. The questions
    keep their ids and the task its file, so that runs of it with different prompts are paired. Their traces name the
    version.
    """
    questions = tuple(_with_prompt(question, prompt, variables) for question in task.questions)
    return replace(task, name=f"{task.name} + {prompt.reference}", questions=questions, prompt=prompt.reference)


def _with_prompt(question: Question, prompt: Prompt, variables: Mapping[str, Any]) -> Question:
    known = {**question.metadata, **variables}
    rendered = prompt.render({name: known[name] for name in prompt.variables if name in known})
    return replace(question, messages=in_front(rendered, question.messages))


def _version(prompt: Prompt, run: Run) -> Version:
    answers, cost = max(1, len(run.results)), run.cost
    dollars = None if cost.dollars is None else cost.dollars / answers
    return Version(prompt.reference, run.id, mean_interval(run.scores()), cost.tokens / answers, dollars)


def _document(version: Version) -> dict[str, Any]:
    mean = version.accuracy
    return {
        "prompt": version.prompt,
        "run": version.run,
        "accuracy": {"value": mean.value, "low": mean.interval.low, "high": mean.interval.high},
        "tokens": version.tokens,
        "dollars": version.dollars,
    }

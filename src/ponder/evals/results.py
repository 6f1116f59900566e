"""What an evaluation found out: one `Result` a question and repetition, all of them a `Run`.

The samples behind an answer are judged too, so that one run of many samples a question (`vote(32)`)
is a pool from which every smaller vote, best-of-N and pass@k follows (`estimators.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ponder.types import Budget, Cost


@dataclass(frozen=True)
class Setting:
    """How a question is asked: a strategy by its expression (`strategies.naming`), and its budget."""

    strategy: str
    budget: Budget = Budget()


@dataclass(frozen=True)
class Judged:
    """One sample of a question: its answer in canonical form (None: it has none), and whether that is right.

    `scores` holds what selecting verifiers made of it by their names, one value of each; `weight` is
    exp(mean log-probability of its own tokens). `kept` is False for a sample that was cut short or
    failed: it cost, and is no draw from the distribution of the others. `costs` holds what selecting verifiers
    spent, where they spent anything.
    """

    index: int
    answer: str | None
    correct: float
    cost: Cost
    lenient: float = 0.0
    weight: float = 1.0
    scores: Mapping[str, float] = field(default_factory=dict)
    kept: bool = True
    costs: Mapping[str, Cost] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One question, asked once: `seed` numbers the repetition from 0. `error` is set where no answer came.

    `correct` is the task's verifier's strict verdict, `lenient` that of its lenient form, 0 to 1.
    An infrastructure failure (the engine went away) is no result: the question stays open and is asked again.
    """

    question: str
    seed: int
    correct: float
    cost: Cost
    answer: str = ""
    lenient: float = 0.0
    kind: str = ""
    samples: tuple[Judged, ...] = ()
    trace: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Run:
    """All results of one setting on one task. `id` is a hash of everything that decides them."""

    id: str
    task: str
    model: str
    setting: Setting
    results: tuple[Result, ...]
    seeds: int = 1
    temperature: float | None = None
    sha256: str = ""
    engine: str = ""
    """The kind of engine that computed it, as in its uri."""

    @property
    def questions(self) -> tuple[str, ...]:
        """The questions' ids, in the order of the task."""
        return tuple(dict.fromkeys(result.question for result in self.results))

    def scores(self) -> list[list[float]]:
        """The verdicts by question (questions, repetitions), as `statistics.mean_interval` takes them."""
        by_question: dict[str, list[float]] = {}
        for result in self.results:
            by_question.setdefault(result.question, []).append(result.correct)
        return list(by_question.values())

    @property
    def cost(self) -> Cost:
        """What all of it cost together."""
        return sum((result.cost for result in self.results), Cost())

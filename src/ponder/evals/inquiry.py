"""One question of a task: asked under a setting, and every sample of it judged.

    question, repetition -> seed -> solve on a cached engine -> verdicts on the answer and on each sample -> Result

The seed is a hash of the run's seed, the question's id and the number of the repetition, so that neither order nor
concurrency nor the machine changes a result.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from ponder import expressions
from ponder.chat.model import Model
from ponder.errors import BudgetTooSmall, ContextOverflow, EngineTimeout, NoAnswer, PonderError
from ponder.evals.cached import Account, Cache, CachedEngine
from ponder.evals.identity import identity_of
from ponder.evals.results import Judged, Result, Setting
from ponder.ops.replay import rebuild
from ponder.protocols import Strategy, Verifier, bound
from ponder.solving import stream
from ponder.strategies.naming import strategy_named
from ponder.tasks import Task
from ponder.types import BestAnswer, Cost, Done, Event, Question, Sample, SampleFinished, Trace

Answered = tuple[Result, Trace]


def seed_of(seed: int, question: str, repetition: int) -> int:
    """The seed of a question: the same on every machine, in every order."""
    text = json.dumps([seed, question, repetition])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass
class Inquiry:
    """What is asked, of whom and how. Raises InputError for a strategy or verifier that cannot be."""

    task: Task
    model: Model
    setting: Setting
    seed: int = 0
    selectors: Mapping[str, Verifier] = field(default_factory=dict)
    stop: asyncio.Event | None = None
    cache: Cache | None = None

    def __post_init__(self) -> None:
        self.questions = {
            str(question.metadata.get("id", place)): question for place, question in enumerate(self.task.questions)
        }
        self.identity = identity_of(self.model.engine)
        self._strategy: Strategy = strategy_named(self.setting.strategy)
        self._judges = Judges(self.task)

    @property
    def stopped(self) -> bool:
        """Whether the user said stop."""
        return self.stop is not None and self.stop.is_set()

    async def ask(self, name: str, repetition: int, account: Account) -> Answered | None:
        """The result of a question and its trace; None where it was stopped.

        Raises EngineError where the engine failed, also where the strategy would have made do with what was left.
        """
        question = self.questions[name]
        engine = CachedEngine(self.model.engine, self.cache, account=account, identity=self.identity)
        params = replace(self.model.params, seed=seed_of(self.seed, name, repetition))
        model = replace(self.model, engine=engine, params=params, stop=self.stop)
        trace, error = await self._solved(question, model)
        if self.stopped:
            return None
        # A strategy may make do with the samples that were left to it. Here they would be too few.
        if account.failure is not None and (error or any(sample.finish == "error" for sample in trace.samples)):
            raise account.failure
        samples = [
            await self._judged(question, event, model) for event in trace.events if isinstance(event, SampleFinished)
        ]
        correct, lenient = (0.0, 0.0) if error else await self._judges(question, _chosen(trace), model)
        result = Result(
            name,
            repetition,
            correct,
            replace(trace.cost, seconds=max(0.0, trace.cost.seconds + account.saved)),
            trace.answer if error is None else "",
            lenient,
            str(question.metadata.get("kind", "")),
            tuple(samples),
            error=None if error is None else f"{type(error).__name__}: {error.problem}",
        )
        return result, trace

    async def _solved(self, question: Question, model: Model) -> tuple[Trace, PonderError | None]:
        """The trace, and the error where the model gave no answer."""
        events, started = list[Event](), time.monotonic()
        asking = stream(
            question,
            model=model,
            strategy=self._strategy,
            budget=self.setting.budget,
            prompt_version=self.task.prompt,
        )
        try:
            async with aclosing(asking) as happening:
                async for event in happening:
                    if isinstance(event, Done):
                        return event.trace, None
                    events.append(event)
        except (NoAnswer, BudgetTooSmall, ContextOverflow) as failure:
            error: PonderError = failure
        except EngineTimeout as failure:
            if not self._out_of_bounds(events, time.monotonic() - started):
                raise
            error = failure
        trace = rebuild(Trace("", question, state="failed"), events)
        return replace(trace, cost=replace(trace.cost, seconds=time.monotonic() - started)), error

    def _out_of_bounds(self, events: list[Event], seconds: float) -> bool:
        """Whether it was the setting's bound that ended the request, and not a silent engine."""
        budget = self.setting.budget
        calls = sum(event.cost.calls for event in events if isinstance(event, SampleFinished))
        late = budget.seconds is not None and seconds >= 0.99 * budget.seconds
        return late or (budget.calls is not None and calls >= budget.calls)

    async def _judged(self, question: Question, event: SampleFinished, model: Model) -> Judged:
        sample = event.sample
        correct, lenient = await self._judges(question, sample, model)
        scores = {name: await bound(verify, model)(question, sample) for name, verify in self.selectors.items()}
        return Judged(
            sample.index,
            self._judges.canonical(question, sample.answer),
            correct,
            event.cost,
            lenient,
            _weight(sample),
            {name: score.value for name, score in scores.items()},
            sample.finish not in ("error", "cancelled"),
            {name: score.cost for name, score in scores.items() if score.cost != Cost()},
        )


def _chosen(trace: Trace) -> Sample:
    """The sample whose answer was given."""
    best = [event.sample for event in trace.events if isinstance(event, BestAnswer)]
    given = (sample for sample in trace.samples if sample.index in best[-1:] and sample.answer == trace.answer)
    return next(given, Sample(0, trace.answer, answer=trace.answer))


def _weight(sample: Sample) -> float:
    """exp(mean log-probability of the tokens that the model sampled); 1 where they are unknown."""
    own = [p for p, mine in zip(sample.logprobs, sample.mask, strict=True) if mine and p is not None]
    return math.exp(sum(own) / len(own)) if own else 1.0


# ---------------------------------------------------------------- verdicts


class Judges:
    """A task's verifier in its strict form, which wants an answer marked as one, and in its lenient form."""

    def __init__(self, task: Task) -> None:
        from ponder.verifiers.per_question import verifier_of

        self._default = task.verifier
        self._forms = []
        for strict in (True, False):
            questions = tuple(_with_form(question, strict) for question in task.questions)
            form = replace(task, verifier=_form(task.verifier, strict), questions=questions)
            self._forms.append((strict, verifier_of(form)))

    async def __call__(self, question: Question, sample: Sample, model: Model) -> tuple[float, float]:
        """The strict and the lenient verdict; `model` is asked where the verifier asks one and has none of its own."""
        strict, lenient = [
            (await bound(verify, model)(_with_form(question, form), sample)).value for form, verify in self._forms
        ]
        return strict, lenient

    def canonical(self, question: Question, answer: str) -> str | None:
        """The form of an answer that votes count; None where there is none."""
        if not answer.strip():
            return None
        if expressions.parse(question.metadata.get("verifier", self._default))[0] == "choice":
            from ponder.verifiers.choice import _options, chosen

            return chosen(answer, _options(question))
        from ponder.verifiers.math_answer import canonical

        return canonical(answer)


def _form(expression: str, strict: bool) -> str:
    """The expression of a verifier in its strict or lenient form, where it has these."""
    name, positional, named = expressions.parse(expression, "verifier", "math_answer")
    if name != "math_answer":
        return expression
    settings = [*map(repr, positional[1:]), *(f"{key}={value!r}" for key, value in named.items() if key != "strict")]
    return f"{name}({', '.join([repr(strict), *settings])})"


def _with_form(question: Question, strict: bool) -> Question:
    own = question.metadata.get("verifier")
    if not isinstance(own, str):
        return question
    return replace(question, metadata={**question.metadata, "verifier": _form(own, strict)})

"""Strategies that run one after the other for one request: what is left of its budget, samples numbered through.

A stage that only improves on an answer can do no harm: where it fails or is cut short, the answer before it stands.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

from ponder.chat.model import Model
from ponder.errors import BudgetTooSmall, ContextOverflow, EngineError
from ponder.protocols import Strategy, closing
from ponder.types import (
    AnswerDelta,
    BestAnswer,
    Budget,
    Cost,
    Event,
    Question,
    Sample,
    SampleFinished,
    Scored,
    ThinkingDelta,
    ToolCalled,
)

FAILURES = (EngineError, BudgetTooSmall, ContextOverflow)
"""What ends a stage, and not a request that has an answer. Anything else is a mistake to be told."""


@dataclass
class Stages:
    """The stages of one request. `best` is the best answer so far, `samples` are those that ended, by their index."""

    question: Question
    budget: Budget
    spent: Cost = field(default_factory=Cost)
    best: BestAnswer | None = None
    samples: dict[int, Sample] = field(default_factory=dict)
    _clock: float = field(default_factory=time.monotonic)

    @property
    def answer(self) -> Sample | None:
        """The sample behind the best answer, cut short or not, unless it failed or says nothing."""
        sample = None if self.best is None else self.samples.get(self.best.sample)
        says = sample is not None and sample.finish != "error" and (sample.answer or sample.tool_calls)
        return sample if says else None

    @property
    def next_index(self) -> int:
        """The number that the first sample of the next stage will have."""
        return max(self.samples, default=-1) + 1

    def left(self, share: float = 1.0) -> Budget | None:
        """What is left of the budget, or a share of that. None where one of its bounds leaves nothing."""
        budget, spent = self.budget, self.spent
        tokens = None if budget.tokens is None else math.floor((budget.tokens - spent.tokens) * share)
        calls = None if budget.calls is None else math.ceil((budget.calls - spent.calls) * share)
        seconds = None if budget.seconds is None else (budget.seconds - time.monotonic() + self._clock) * share
        dollars = None if budget.dollars is None else (budget.dollars - (spent.dollars or 0.0)) * share
        if any(bound is not None and bound <= 0 for bound in (tokens, calls, seconds, dollars)):
            return None
        return within(replace(budget, tokens=None, seconds=seconds, calls=calls, dollars=dollars), tokens)

    async def run(self, strategy: Strategy, model: Model, budget: Budget) -> AsyncGenerator[Event, None]:
        """The events of the next stage. Raises as the strategy does."""
        first = self.next_index
        async with closing(strategy(self.question, model, budget)) as events:
            async for event in events:
                yield self.note(moved(event, first))

    async def improve(self, strategy: Strategy, model: Model, budget: Budget) -> AsyncGenerator[Event, None]:
        """The events of the next stage; the answer before it, if there is one, stands where this one comes to none."""
        kept = self.best if self.answer is not None else None
        try:
            async with closing(self.run(strategy, model, budget)) as events:
                async for event in events:
                    yield event
        except FAILURES:
            if kept is None:
                raise
        new = self.answer
        if kept is not None and (new is None or (new.finish == "cancelled" and self.best is not kept)):
            yield self.note(kept)

    def note(self, event: Event) -> Event:
        """The event, its cost added and its sample or answer kept."""
        if isinstance(event, SampleFinished):
            self.samples[event.sample.index] = event.sample
        if isinstance(event, SampleFinished | Scored):
            self.spent += event.cost
        if isinstance(event, BestAnswer):
            self.best = event
        return event


def within(budget: Budget, tokens: int | None) -> Budget:
    """The budget with that bound in tokens; where what it keeps back for the answer does not fit, half of them are."""
    answer = budget.answer
    if answer is not None and tokens is not None and answer > tokens:
        answer = max(1, tokens // 2)
    return replace(budget, tokens=tokens, answer=answer)


def stopped(model: Model) -> bool:
    """Whether the user asked to stop."""
    return model.stop is not None and model.stop.is_set()


def reseeded(model: Model, stage: int) -> Model:
    """The model with a seed of its own for a stage, where it has one: no stage draws what another drew."""
    seed = model.params.seed
    if seed is None:
        return model
    return replace(model, params=replace(model.params, seed=hash((seed, -2, stage)) & (2**63 - 1)))


def moved(event: Event, first: int) -> Event:
    """The event of a sample that was number 0 in its stage and is number `first` in the request."""
    if isinstance(event, ThinkingDelta | AnswerDelta | ToolCalled | Scored | BestAnswer):
        return replace(event, sample=event.sample + first)
    if isinstance(event, SampleFinished):
        sample = event.sample
        parent = None if sample.parent is None else sample.parent + first
        return replace(event, sample=replace(sample, index=sample.index + first, parent=parent))
    return event

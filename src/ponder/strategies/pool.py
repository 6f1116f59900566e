"""Several samples of one question under one budget, numbered in the order of their start.

Samples start in waves. Those of a wave share one prefill; between waves a strategy may decide that it
has seen enough. Every sample gets the same share of the budget, whichever wave it is in, so that all are
draws from one distribution.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

from ponder.chat.model import Model
from ponder.errors import BudgetTooSmall, EngineError
from ponder.protocols import SamplingParams, Strategy, Verifier, bound, most_tokens
from ponder.strategies.budget import think_within
from ponder.strategies.message_budget import reply_within
from ponder.types import (
    AnswerDelta,
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

LEAST_SHARE = 32
"""Tokens a sample below which fewer samples are drawn instead: less is no thought."""

DRAWING_TEMPERATURE = 0.7
"""For a strategy that draws several samples from a model that would otherwise answer greedily, each time the same."""


@dataclass
class Pool:
    """The samples of one request: up to `n`, in waves of `at_once`. `finished` holds those that ended well."""

    question: Question
    model: Model
    budget: Budget
    n: int
    at_once: int
    think: bool = True
    verifier: Verifier | None = None
    """What `score` asks. What one scoring may take is set aside for each sample."""
    finished: dict[int, Sample] = field(default_factory=dict)
    spent: Cost = field(default_factory=Cost)
    started: int = 0
    enough: bool = False
    _over: set[int] = field(default_factory=set)
    _scoring: int = 0
    _clock: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.verifier is not None:
            self.verifier = bound(self.verifier, self.model)
            self._scoring = most_tokens(self.verifier)
        if self.budget.tokens is not None:
            self.n = max(1, min(self.n, self.budget.tokens // (LEAST_SHARE + self._scoring)))
            if self.budget.tokens <= self._scoring:  # an answer comes first
                self.verifier, self._scoring = None, 0
        if not self.model.engine.capabilities.tokens:  # a server that deals in messages: one reply after the other
            self.at_once = 1

    @property
    def in_order(self) -> list[Sample]:
        """The samples that ended well of those before which none is still running, in the order of their start.

        What finishes first tends to be short: counting it before its elders would favour short thoughts.
        """
        return [self.finished[index] for index in sorted(self.finished) if index < self._settled]

    @property
    def to_come(self) -> int:
        """Samples that `in_order` may still come to have."""
        return self.n - self._settled

    @property
    def _settled(self) -> int:
        return next((index for index in range(self.started) if index not in self._over), self.started)

    async def events(self) -> AsyncGenerator[Event, None]:
        """All events of all samples. Set `enough` to stop: what runs then is cut short, and still accounted for.

        Where an engine fails after a sample has ended well, the pool ends there; else its error is raised.
        """
        while self.started < self.n and not (self.enough or self._stopped or self._spent_all):
            wave = min(self.at_once, self.n - self.started)
            try:
                async with aclosing(self._wave(wave)) as events:
                    async for event in events:
                        yield event
            except (EngineError, BudgetTooSmall):
                if not self.finished:
                    raise
                return

    async def score(self, sample: Sample) -> Scored | None:
        """What the verifier says of a sample; None where it fails, or time is up before it has said it."""
        if self.verifier is None:
            return None
        seconds = None if self.budget.seconds is None else max(0.0, self.budget.seconds - self._passed)
        try:
            async with asyncio.timeout(seconds):
                score = await self.verifier(self.question, sample)
        except (EngineError, TimeoutError):
            return None
        self.spent += score.cost
        return Scored(score, sample.index, score.cost)

    @property
    def _stopped(self) -> bool:
        return self.model.stop is not None and self.model.stop.is_set()

    @property
    def _spent_all(self) -> bool:
        """No time, call or dollar is left for another wave."""
        calls = self.budget.calls is not None and self.spent.calls >= self.budget.calls
        return calls or self.budget.exceeded(replace(self.spent, seconds=self._passed)) is not None

    @property
    def _passed(self) -> float:
        return time.monotonic() - self._clock

    async def _wave(self, size: int) -> AsyncGenerator[Event, None]:
        first, self.started = self.started, self.started + size
        share = self._share(size)
        async with _halting(self.model, first) as (model, halt):
            if self.model.engine.capabilities.tokens:
                within = think_within(model, self.question, share, size, self.think)
            else:
                within = reply_within(model, self.question, share, self.think)
            async with aclosing(within) as events:
                async for event in events:
                    moved = _renumbered(event, first)
                    if isinstance(moved, SampleFinished):
                        self._note(moved, halt)
                    yield moved
                    if self.enough:
                        halt.set()

    def _note(self, event: SampleFinished, halt: asyncio.Event) -> None:
        self.spent += event.cost
        self._over.add(event.sample.index)
        # Cut short, it is no draw from the distribution of the others.
        if event.sample.finish != "error" and event.sample.answer and not (halt.is_set() or self._stopped):
            self.finished[event.sample.index] = event.sample

    def _share(self, size: int) -> Budget:
        """What a wave may spend: its samples' equal shares of tokens and dollars, and all the time and calls left."""
        budget, left = self.budget, self.n - self.started + size
        seconds = None if budget.seconds is None else max(1e-3, budget.seconds - self._passed)
        calls = None if budget.calls is None else budget.calls - self.spent.calls
        tokens = None if budget.tokens is None else max(1, budget.tokens // self.n - self._scoring) * size
        dollars = budget.dollars
        if dollars is not None:
            dollars = max(1e-12, (dollars - (self.spent.dollars or 0.0)) * size / left)
        answer = budget.answer
        if answer is not None and tokens is not None:  # no more than half of a sample's share
            answer = max(1, min(answer, tokens // size // 2))
        return replace(budget, tokens=tokens, seconds=seconds, calls=calls, dollars=dollars, answer=answer)


def _renumbered(event: Event, first: int) -> Event:
    if isinstance(event, ThinkingDelta | AnswerDelta | ToolCalled):
        return replace(event, sample=event.sample + first)
    if isinstance(event, SampleFinished):
        return replace(event, sample=replace(event.sample, index=event.sample.index + first))
    return event


@asynccontextmanager
async def _halting(model: Model, first: int) -> AsyncIterator[tuple[Model, asyncio.Event]]:
    """The model with a stop of its own, set by the user's too, for a wave from sample `first` on."""
    halt, outer = asyncio.Event(), model.stop
    own = replace(model, stop=halt, params=_numbered(model, first))
    watching = asyncio.create_task(_pass_on(outer, halt)) if outer is not None else None
    try:
        yield own, halt
    finally:
        if watching is not None:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


def _numbered(model: Model, first: int) -> SamplingParams:
    """Settings with which sample i of the request is the same whatever wave it is in, where the engine can do that."""
    params = model.params
    if model.engine.capabilities.first:
        return replace(params, first=params.first + first)
    if params.seed is None or not first:
        return params
    return replace(params, seed=hash((params.seed, -1, first)) & (2**63 - 1))


async def _pass_on(outer: asyncio.Event, halt: asyncio.Event) -> None:
    await outer.wait()
    halt.set()


def of_several(strategy: Strategy, name: str, draws: bool, at_once: int = 1) -> Strategy:
    """The strategy, marked as one of several samples, which a terminal tells in a line each.

    `draws`: they have to differ, so a greedy model is sampled at a temperature. `name` is what traces call it.
    `at_once`: samples that always run side by side.
    """
    vars(strategy).update(several=True, draws=draws, at_once=at_once)
    strategy.__qualname__ = name  # type: ignore[attr-defined]  # a function has one, the protocol asks for none
    return strategy


def drawing(model: Model, strategy: Strategy) -> Model:
    """The model, at a temperature at which several samples differ if the strategy draws several."""
    if model.params.temperature > 0 or not getattr(strategy, "draws", False):
        return model
    return replace(model, params=replace(model.params, temperature=DRAWING_TEMPERATURE))

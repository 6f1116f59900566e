"""One sample under the budget, on an engine of either kind: token ids, or messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from ponder.chat.model import Model
from ponder.strategies.budget import think_within
from ponder.strategies.message_budget import reply_within
from ponder.types import BestAnswer, Budget, Event, Question, SampleFinished


async def single(question: Question, model: Model, budget: Budget, think: bool) -> AsyncGenerator[Event, None]:
    """The events of one sample, and its answer as the best answer."""
    within = think_within if model.engine.capabilities.tokens else reply_within
    async with aclosing(within(model, question, budget, think=think)) as events:
        async for event in events:
            yield event
            if isinstance(event, SampleFinished):
                yield BestAnswer(event.sample.answer, event.sample.index)

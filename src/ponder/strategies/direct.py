"""Answer at once, without thinking: the baseline that every strategy has to beat."""

from __future__ import annotations

from collections.abc import AsyncIterator

from ponder.chat.model import Model
from ponder.protocols import Strategy
from ponder.strategies.single import single
from ponder.types import Budget, Event, Question


def direct() -> Strategy:
    """One sample, thinking switched off by the model's own means where it has them."""

    def strategy(question: Question, model: Model, budget: Budget) -> AsyncIterator[Event]:
        return single(question, model, budget, think=False)

    strategy.__qualname__ = "direct()"  # what traces call it
    return strategy

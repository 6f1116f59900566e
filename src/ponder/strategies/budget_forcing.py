"""Budget forcing: a model that would stop thinking too early is told "Wait", and goes on.

    while |thinking| < minimum:  replace the closing marker by "Wait"

The state machine of the thinking budget does it (`draft.py`); this strategy only asks for it, as a
number of tokens or a share of the budget.

Source: Muennighoff et al., s1: Simple test-time scaling (2025), section 3.1.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from ponder.chat.model import Model
from ponder.protocols import Strategy
from ponder.strategies.single import single
from ponder.types import Budget, Event, Question


def budget_forcing(minimum: int | None = None, *, share: float = 0.5) -> Strategy:
    """One sample that thinks for at least `minimum` tokens, or for `share` of the budget where none is named."""
    if minimum is not None and minimum < 1:
        raise ValueError(f"minimum must be at least 1, not {minimum}")
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, not {share}")

    def strategy(question: Question, model: Model, budget: Budget) -> AsyncIterator[Event]:
        wanted = minimum if minimum is not None else int(share * (budget.tokens or 0))
        if budget.thinking is not None:
            wanted = min(wanted, budget.thinking)
        return single(question, model, replace(budget, min_thinking=max(wanted, budget.min_thinking)), think=True)

    strategy.__qualname__ = f"budget_forcing({minimum if minimum is not None else f'share={share}'})"
    return strategy

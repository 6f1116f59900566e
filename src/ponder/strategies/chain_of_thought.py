"""Think, then answer: chain of thought, trained into the model or asked for in words.

    answer ~ p(y | x, z),  thinking z ~ p(z | x)

Sources: Wei et al., Chain-of-Thought Prompting Elicits Reasoning in Large Language Models (2022);
Kojima et al., Large Language Models are Zero-Shot Reasoners (2022) for the words; DeepSeek-AI,
DeepSeek-R1 (2025) for thinking that was trained.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

from ponder.chat.model import Model
from ponder.errors import Unsupported
from ponder.protocols import Strategy
from ponder.strategies.single import single
from ponder.types import Budget, Event, Question

How = Literal["auto", "trained", "prompt"]


def chain_of_thought(how: How = "auto") -> Strategy:
    """One sample that thinks first.

    "trained" uses the model's own thinking format, "prompt" asks for steps in words, and "auto" takes
    the first where the model was trained to think and the second where it was not. Asking a model
    for "trained" that is known to have no such format raises Unsupported.
    """
    if how not in ("auto", "trained", "prompt"):
        raise ValueError(f"how must be auto, trained or prompt, not {how!r}")

    def strategy(question: Question, model: Model, budget: Budget) -> AsyncIterator[Event]:
        # Of a server that keeps its template to itself nothing is known.
        if how == "trained" and model.engine.capabilities.tokens and not model.format.trained:
            raise Unsupported(
                f"{model.name} was not trained to think", 'ask for it in words: how="prompt", --think prompt'
            )
        return single(question, model.eliciting() if how == "prompt" else model, budget, think=True)

    strategy.__qualname__ = f"chain_of_thought({how!r})"  # what traces call it
    return strategy

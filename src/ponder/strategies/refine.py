"""Sequential revision: answer, look at the answer again, answer anew.

    y_1 ~ p(y | x),   y_k ~ p(y | x, y_{k-1}, c_{k-1})

where the critique c is what a verifier says of the answer, or else a plain request to check it. Every
round gets the same share of the budget. With a verifier the best-scored answer wins, the first among
equals, and a score that is enough ends it; without one the last answer wins.

Sources: Madaan et al., Self-Refine (2023); Snell et al., Scaling LLM Test-Time Compute Optimally
(2024), section 6, for revision as a way to spend a budget. Huang et al., Large Language Models Cannot
Self-Correct Reasoning Yet (2023), is why the verifier is worth having.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from ponder.chat.model import Model
from ponder.protocols import Strategy, Verifier
from ponder.strategies.pool import Pool, of_several
from ponder.types import (
    BestAnswer,
    Budget,
    Event,
    Message,
    Question,
    Sample,
    SampleFinished,
    assistant,
    user,
)

CHECK = "Check this answer step by step. If it is wrong, correct it. Give the final answer again."
REJECTED = "This answer was checked and is not accepted: {why}. Find the mistake and answer again."


def refine(rounds: int = 2, verifier: Verifier | None = None, *, enough: float = 1.0) -> Strategy:
    """`rounds` answers one after the other, each with the one before and what is said of it in view.

    `enough`: the verifier's score that ends it.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")

    def strategy(question: Question, model: Model, budget: Budget) -> AsyncIterator[Event]:
        return _refined(question, model, budget, rounds, verifier, enough)

    return of_several(strategy, f"refine({rounds})", draws=False)


async def _refined(
    question: Question, model: Model, budget: Budget, rounds: int, verifier: Verifier | None, enough: float
) -> AsyncGenerator[Event, None]:
    # The pool deals out the budget: waves of one, each with a question of its own.
    pool = Pool(question, model, budget, rounds, at_once=1, verifier=verifier)
    best: float | None = None
    async with aclosing(pool.events()) as events:
        async for event in events:
            yield event
            if not isinstance(event, SampleFinished) or event.sample.index not in pool.finished:
                continue
            said, value = CHECK, 0.0
            pool.question = question  # it is this that the answer is judged for
            scored = await pool.score(event.sample)
            if scored is not None:
                yield scored
                value = scored.score.value
                said = REJECTED.format(why=scored.score.why or "it is wrong")
                pool.enough = value >= enough
            if best is None or verifier is None or value > best:
                best = value
                yield BestAnswer(event.sample.answer, event.sample.index)
            pool.question = replace(question, messages=_asked_again(question.messages, event.sample, said))


def _asked_again(messages: Sequence[Message], sample: Sample, said: str) -> tuple[Message, ...]:
    return (*messages, assistant(sample.answer), user(said))

"""Best of N: sample several answers, score each with a verifier, and give the one with the highest score.

    answer = a_i,  i = argmax_i r(x, y_i)

For a verifier that scores steps, r is an aggregate of the steps' scores: their minimum, product, mean,
or the last one. Ties go to the sample that was started first.

Sources: Cobbe et al., Training Verifiers to Solve Math Word Problems (2021); Lightman et al., Let's
Verify Step by Step (2023), section 2.6 and appendix F for the aggregates.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Literal

from ponder.chat.model import Model
from ponder.protocols import Strategy, Verifier
from ponder.strategies.defaults import checked_arithmetic
from ponder.strategies.pool import Pool, of_several
from ponder.types import BestAnswer, Budget, Event, Question, Sample, SampleFinished, Score

Aggregate = Literal["value", "min", "product", "mean", "last"]


def best_of_n(
    n: int = 8,
    verifier: Verifier | None = None,
    *,
    aggregate: Aggregate = "value",
    enough: float | None = None,
    at_once: int | None = None,
) -> Strategy:
    """The best of `n` samples by `verifier`, fewer where the budget would leave each under 32 tokens.

    Without a verifier, the arithmetic of the thinking is checked (`verifiers.arithmetic_steps`).
    `aggregate`: how scores of steps become one number; "value" takes the verifier's own. `enough`: stop
    at the first score that reaches it; samples then start `at_once` at a time (4, else all).
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    if aggregate not in ("value", "min", "product", "mean", "last"):
        raise ValueError(f"aggregate must be value, min, product, mean or last, not {aggregate!r}")
    if at_once is not None and at_once < 1:
        raise ValueError(f"at_once must be at least 1, not {at_once}")
    wave = at_once or (n if enough is None else min(n, 4))

    def strategy(question: Question, model: Model, budget: Budget) -> AsyncIterator[Event]:
        return _best(
            Pool(question, model, budget, n, wave, verifier=verifier or checked_arithmetic()), aggregate, enough
        )

    return of_several(strategy, f"best_of_n({n})", draws=n > 1, at_once=min(n, wave))


async def _best(pool: Pool, aggregate: Aggregate, enough: float | None) -> AsyncGenerator[Event, None]:
    best: tuple[float, int] | None = None
    async with aclosing(pool.events()) as events:
        async for event in events:
            yield event
            if not isinstance(event, SampleFinished) or event.sample.index not in pool.finished:
                continue
            sample: Sample = event.sample
            scored = await pool.score(sample)
            if scored is None:
                if len(pool.finished) == 1:  # better an answer that nobody has judged than none
                    yield BestAnswer(sample.answer, sample.index)
                continue
            yield scored
            value = aggregated(scored.score, aggregate)
            if best is None or (value, -sample.index) > best:
                best = (value, -sample.index)
                yield BestAnswer(sample.answer, sample.index)
            pool.enough = pool.enough or (enough is not None and value >= enough)


def aggregated(score: Score, aggregate: Aggregate) -> float:
    """One number for a score; a verifier that scores no steps counts as it is."""
    if aggregate == "value" or not score.steps:
        return score.value
    match aggregate:
        case "min":
            return min(score.steps)
        case "product":
            return math.prod(score.steps)
        case "mean":
            return sum(score.steps) / len(score.steps)
        case _:
            return score.steps[-1]

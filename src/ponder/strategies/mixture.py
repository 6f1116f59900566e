"""Parallel and sequential at once: several chains, each of which revises its answer, and a choice among their ends.

    y_{c,1} ~ p(y | x),   y_{c,k} ~ p(y | x, y_{c,k-1}, critique),   c = 1..m chains of k = 1..r rounds

The ratio of m to r is how a budget is divided between looking elsewhere and looking again. With a verifier the
answer of the highest score wins, without one the vote of the chains' last answers.

Source: Snell et al., Scaling LLM Test-Time Compute Optimally (2024), section 6.2 ("sequential to parallel ratio").
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace

from ponder.chat.model import Model
from ponder.errors import BudgetTooSmall, EngineError, PonderError
from ponder.protocols import Strategy, Verifier, closing
from ponder.strategies.defaults import canonical_answers
from ponder.strategies.pool import LEAST_SHARE, of_several
from ponder.strategies.refine import refine
from ponder.strategies.self_consistency import winner
from ponder.strategies.stages import moved, reseeded, within
from ponder.types import BestAnswer, Budget, Event, Question, Sample, SampleFinished, Scored


def mixture(chains: int = 4, rounds: int = 2, verifier: Verifier | None = None) -> Strategy:
    """`chains` side by side, each of `rounds` answers; fewer chains where the budget leaves them too little.

    Samples are numbered chain by chain: round k of chain c is sample c * rounds + k.
    """
    if chains < 1 or rounds < 1:
        raise ValueError(f"chains and rounds must be at least 1, not {chains} and {rounds}")

    def strategy(question: Question, model: Model, budget: Budget) -> AsyncIterator[Event]:
        n = _affordable(budget, chains, rounds)
        share = _share(budget, n)
        streams = [refine(rounds, verifier)(question, reseeded(model, c), share) for c in range(n)]
        return _chosen(streams, rounds, verifier is not None)

    return of_several(strategy, f"mixture({chains}, {rounds})", draws=chains > 1)


def _affordable(budget: Budget, chains: int, rounds: int) -> int:
    bounds = [chains]
    if budget.tokens is not None:
        bounds.append(budget.tokens // (LEAST_SHARE * rounds))
    if budget.calls is not None:
        bounds.append(budget.calls)
    return max(1, min(bounds))


def _share(budget: Budget, n: int) -> Budget:
    return replace(
        within(budget, None if budget.tokens is None else max(1, budget.tokens // n)),
        dollars=None if budget.dollars is None else budget.dollars / n,
        calls=None if budget.calls is None else max(1, budget.calls // n),
    )


async def _chosen(streams: Sequence[AsyncIterator[Event]], rounds: int, scored: bool) -> AsyncGenerator[Event, None]:
    """All events, and the best answer over all chains in the place of each chain's own."""
    samples: dict[int, Sample] = {}
    values: dict[int, float] = {}
    ends: dict[int, int] = {}  # chain -> the sample that is its best so far
    best: int | None = None
    canonical = canonical_answers()
    async with closing(_merged(streams, rounds)) as events:
        async for chain, event in events:
            if isinstance(event, SampleFinished):
                samples[event.sample.index] = event.sample
            if isinstance(event, Scored):
                values[event.sample] = event.score.value
            if not isinstance(event, BestAnswer):
                yield event
                continue
            ends[chain] = event.sample
            if scored:
                leader = max(sorted(ends.values()), key=lambda index: values.get(index, 0.0))
            else:
                leading = winner([samples[ends[c]] for c in sorted(ends)], "plain", canonical)
                leader = event.sample if leading is None else leading.index
            if leader != best:
                best = leader
                yield BestAnswer(samples[leader].answer, leader)


async def _merged(streams: Sequence[AsyncIterator[Event]], rounds: int) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of all chains as they come. One that fails ends no other; where all fail, the first says why."""
    queue: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()
    failures: list[PonderError] = []

    async def follow(chain: int, stream: AsyncIterator[Event]) -> None:
        try:
            async with closing(stream) as events:
                async for event in events:
                    queue.put_nowait((chain, moved(event, chain * rounds)))
        except (EngineError, BudgetTooSmall) as failure:
            failures.append(failure)
        finally:
            queue.put_nowait(None)

    work = asyncio.gather(*(follow(chain, stream) for chain, stream in enumerate(streams)))
    answered, running = False, len(streams)
    try:
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
                continue
            answered = answered or isinstance(item[1], BestAnswer)
            yield item
        await work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    if failures and not answered:
        raise failures[0]

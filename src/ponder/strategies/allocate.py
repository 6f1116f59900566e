"""Samples by difficulty: a few first, and as many more as their disagreement says, voting over all.

    agreement = votes of the leading answer among the first m samples / m
    n = n_l   for the first level l with   agreement >= a_l

A question on which the first samples agree is easy, and gets no more; on a hard one more samples change the vote.
Levels that suit a model and a task are found by `evals.allocation`; they need not rise as agreement falls, for
where hardly any sample is right, more of them are wasted too.

Sources: Snell et al., Scaling LLM Test-Time Compute Optimally (2024), section 3, for compute by difficulty as the
model itself sees it; Wang et al., Self-Consistency (2022), section 3.4, for agreement as a measure of it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing

from ponder.chat.model import Model
from ponder.protocols import Strategy
from ponder.strategies.defaults import Canonical, canonical_answers
from ponder.strategies.pool import Pool, of_several
from ponder.strategies.self_consistency import winner
from ponder.types import BestAnswer, Budget, Event, Question, Sample, SampleFinished

LEVELS = ((0.75, 4), (0.5, 8), (0.0, 32))

SAME = 1e-9
"""Shares that differ by less differ by rounding."""


def allocate(
    first: int = 4,
    levels: Sequence[tuple[float, int]] = LEVELS,
    *,
    canonical: Canonical | None = None,
) -> Strategy:
    """A vote of `first` samples, and of so many more as the level of their agreement says: (agreement, samples).

    Levels come by falling agreement, the last one with 0; their samples count the first ones in. Each sample gets an
    equal share of the budget as if all the samples of the largest level were drawn, fewer where that would be under
    32 tokens; what an easy question leaves is not spent. `canonical` as of `self_consistency`.
    """
    steps = _checked(first, levels)
    most = max(n for _, n in steps)

    def strategy(question: Question, model: Model, budget: Budget) -> AsyncIterator[Event]:
        pool = Pool(question, model, budget, most, at_once=first)
        return _allocated(pool, min(first, pool.n), steps, canonical or canonical_answers())

    told = ", ".join(f"({least:g}, {n})" for least, n in steps)
    return of_several(strategy, f"allocate({first}, ({told}{',' * (len(steps) == 1)}))", draws=most > 1)


def agreement(samples: Iterable[Sample], canonical: Canonical) -> float:
    """The share of the samples that gives the leading answer; 0 where there are none."""
    answers = [canonical(sample.answer) for sample in samples]
    given = [answer for answer in answers if answer is not None]
    return max(map(given.count, given)) / len(answers) if given else 0.0


def samples_for(share: float, levels: Sequence[tuple[float, int]]) -> int:
    """How many samples the level of an agreement has."""
    return next((n for least, n in levels if share >= least - SAME), levels[-1][1])


async def _allocated(
    pool: Pool, first: int, levels: Sequence[tuple[float, int]], canonical: Canonical
) -> AsyncGenerator[Event, None]:
    best: Sample | None = None
    over, wanted = 0, first
    async with aclosing(pool.events()) as events:
        async for event in events:
            yield event
            if not isinstance(event, SampleFinished):
                continue
            leader = winner([pool.finished[i] for i in sorted(pool.finished)], "plain", canonical)
            if leader is not None and leader is not best:
                best = leader
                yield BestAnswer(leader.answer, leader.index)
            over += 1
            if over < pool.started:
                continue
            # Between two waves: nothing is cut short, and the shares stay those of the largest level.
            if over == first:
                wanted = min(pool.n, samples_for(agreement(pool.in_order, canonical), levels))
            pool.enough = over >= wanted
            if pool.model.engine.capabilities.tokens:
                pool.at_once = max(1, wanted - over)


def _checked(first: int, levels: Sequence[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    if type(first) is not int or first < 1:
        raise ValueError(f"first must be a whole number of at least 1, not {first}")
    steps = tuple((least, n) for least, n in levels)
    shares = [least for least, _ in steps]
    if not steps or shares[-1] != 0 or shares != sorted(set(shares), reverse=True) or not shares[0] <= 1:
        raise ValueError(f"levels must have an agreement that falls from at most 1 to 0, not {shares}")
    if any(type(n) is not int or n < first for _, n in steps):
        raise ValueError(f"levels must have at least {first} samples, as many as come first")
    return steps

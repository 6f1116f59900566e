"""Self-consistency: sample several chains of thought, and give the answer that most of them reach.

    answer = argmax_a  sum_i w_i [canonical(a_i) = a]

over samples i, with w_i = 1 for the plain vote, exp(mean log-probability of the sample's own tokens), or the
value that a verifier gives the sample (Li et al., Making Large Language Models Better Reasoners with Step-Aware
Verifier, 2023, section 3.2).
Votes are over canonical answers ("1,000" is "$1000"), never over whole texts. Ties go to the answer
that was begun first.

With `risk`, it stops early: after the samples so far, in the order of their start, the two leading answers have
v1 and v2 votes, and m samples are still to come. Under a uniform prior on the share p of the second among the two,
p ~ Beta(v2 + 1, v1 + 1), and if all that comes goes to one of them, the full vote would give the second with

    P(v2 + J >= v1 + m - J),  J ~ BetaBinomial(m, v2 + 1, v1 + 1)

As m grows this becomes P(p > 1/2), the criterion of Aggarwal et al., Let's Sample Step by Step (2023), section 3;
with few samples left it knows that there are not enough of them to turn the vote.

Source: Wang et al., Self-Consistency Improves Chain of Thought Reasoning in Language Models (2022).
"""

from __future__ import annotations

import functools
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Literal

from ponder.chat.model import Model
from ponder.protocols import Strategy, Verifier
from ponder.strategies.defaults import canonical_answers, checked_arithmetic
from ponder.strategies.pool import Pool, of_several
from ponder.types import BestAnswer, Budget, Event, Question, Sample, SampleFinished

Weight = Literal["plain", "logprob", "reward"]

Weigh = Callable[[Sample], float]


def self_consistency(
    n: int = 8,
    *,
    weight: Weight = "plain",
    verifier: Verifier | None = None,
    risk: float | None = None,
    at_once: int | None = None,
    canonical: Callable[[str], str | None] | None = None,
) -> Strategy:
    """A vote of `n` samples, fewer where the budget would leave each under 32 tokens.

    `weight`: what a vote weighs; "reward" takes `verifier`'s value of the sample, by default that of its arithmetic.
    `risk`: stop as soon as the full vote would give another answer with at most this probability;
    samples then start `at_once` at a time (4, else all). `canonical` gives the form of an answer that is
    voted on, None for an answer that has no vote; without it numbers and short texts are compared
    as `ponder.verifiers.math_answer.canonical` does.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    if weight not in ("plain", "logprob", "reward"):
        raise ValueError(f"weight must be plain, logprob or reward, not {weight!r}")
    if verifier is not None and weight != "reward":
        raise ValueError(f"a verifier has no say in a vote with weight={weight!r}: take weight='reward'")
    if risk is not None and not 0 < risk < 0.5:
        raise ValueError(f"risk must lie between 0 and 0.5, not {risk}")
    if at_once is not None and at_once < 1:
        raise ValueError(f"at_once must be at least 1, not {at_once}")
    wave = at_once or (n if risk is None else min(n, 4))

    def strategy(question: Question, model: Model, budget: Budget) -> AsyncIterator[Event]:
        judge = (verifier or checked_arithmetic()) if weight == "reward" else None
        pool = Pool(question, model, budget, n, wave, verifier=judge)
        return _voted(pool, weight, risk, canonical or canonical_answers())

    settings = [str(n), *([f"weight={weight!r}"] if weight != "plain" else []), *([f"risk={risk}"] if risk else [])]
    return of_several(strategy, f"self_consistency({', '.join(settings)})", draws=n > 1, at_once=min(n, wave))


async def _voted(
    pool: Pool, weight: Weight, risk: float | None, canonical: Callable[[str], str | None]
) -> AsyncGenerator[Event, None]:
    best: Sample | None = None
    rewards: dict[int, float] = {}

    def weigh(sample: Sample) -> float:
        return rewards.get(sample.index, 0.0) if weight == "reward" else _weight(sample, weight)

    async with aclosing(pool.events()) as events:
        async for event in events:
            yield event
            if not isinstance(event, SampleFinished):
                continue
            if event.sample.index in pool.finished and (scored := await pool.score(event.sample)) is not None:
                yield scored
                rewards[event.sample.index] = max(0.0, scored.score.value)
            # So far, all that have ended count; what is decided for good is decided in the order of start.
            leader = winner([pool.finished[i] for i in sorted(pool.finished)], weigh, canonical)
            if leader is not None and leader is not best:
                best = leader
                yield BestAnswer(leader.answer, leader.index)
            settled = pool.in_order
            if risk is not None and decided(settled, risk, canonical, pool.to_come) and not pool.enough:
                pool.enough = True
                best = winner(settled, weigh, canonical)
                assert best is not None
                yield BestAnswer(best.answer, best.index)


def winner(samples: Iterable[Sample], weigh: Weight | Weigh, canonical: Callable[[str], str | None]) -> Sample | None:
    """The first sample that gives the answer with most votes; the first of all where no answer has one."""
    votes: dict[str, float] = {}
    first: dict[str, Sample] = {}
    eldest: Sample | None = None
    for sample in samples:
        eldest = eldest or sample
        answer = canonical(sample.answer)
        if answer is not None:
            votes[answer] = votes.get(answer, 0.0) + (weigh(sample) if callable(weigh) else _weight(sample, weigh))
            first.setdefault(answer, sample)
    return first[max(votes, key=lambda each: votes[each])] if votes else eldest


def _weight(sample: Sample, weight: Weight) -> float:
    if weight == "plain":
        return 1.0
    own = [p for p, mine in zip(sample.logprobs, sample.mask, strict=True) if mine and p is not None]
    return math.exp(sum(own) / len(own)) if own else 1.0


def decided(samples: Iterable[Sample], risk: float, canonical: Callable[[str], str | None], left: int) -> bool:
    """Whether `left` samples more would put the second answer before the leading one with at most that probability."""
    votes: dict[str, int] = {}
    for sample in samples:
        answer = canonical(sample.answer)
        if answer is not None:
            votes[answer] = votes.get(answer, 0) + 1
    most = sorted(votes.values(), reverse=True)
    return bool(most) and overtaken(most[0], most[1] if len(most) > 1 else 0, left) <= risk


@functools.cache
def overtaken(first: int, second: int, left: int) -> float:
    """The probability that the second answer comes level with the first or passes it: see the top of this file."""
    before = _log_beta(second + 1, first + 1) + math.log(left + 1)
    needed = max(1, -(-(first + left - second) // 2))
    ways = (  # C(left, j) = 1 / ((left + 1) B(j + 1, left - j + 1))
        math.exp(_log_beta(second + 1 + j, first + 1 + left - j) - _log_beta(j + 1, left - j + 1) - before)
        for j in range(needed, left + 1)
    )
    return min(1.0, sum(ways))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

"""Labels for the steps of samples, without people: what a process reward model is trained on.

    c_k = 0 from the first step on that holds a wrong equation, else 1          `arithmetic_labels`
    c_k = how often completions of the first k steps are right                  `ponder.data.monte_carlo`

A labeller is any asynchronous function from a question and a sample to `Labels`. Steps are those of the verifiers in
`ponder.verifiers.reward_model`, so that a reward model is taught exactly where it will be asked.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ponder.errors import Unsupported
from ponder.protocols import Engine
from ponder.types import Cost, Question, Sample
from ponder.verifiers.arithmetic_steps import arithmetic_steps
from ponder.verifiers.reward_model import step_ends, text_in, tokens_of

MOST_STEPS = 16
"""Steps of a sample at the most, as `process_reward_model` has it: all that are left are the last one."""

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Labels:
    """places[k]: tokens of the sample up to the end of step k. values[k]: its label, 0 to 1, None where none is known.

    cost: what was spent on them now; nothing for what a ledger knew.
    """

    places: tuple[int, ...]
    values: tuple[float | None, ...]
    cost: Cost = Cost()


class Labeller(Protocol):
    """Labels the steps of a sample with exact tokens."""

    def __call__(self, question: Question, sample: Sample) -> Awaitable[Labels]: ...


# ---------------------------------------------------------------- steps


async def steps_in(engine: Engine, sample: Sample, most_steps: int | None = MOST_STEPS) -> list[tuple[str, int]]:
    """Text of each step, and the sample's tokens up to its end: where the verifiers of `reward_model` ask.

    None takes the whole sample, without the token that ended its turn, as one step. Raises Unsupported for a sample
    without exact tokens.
    """
    if not sample.exact or (sample.text and not sample.ids):
        raise Unsupported("a sample without exact tokens cannot be continued", "Sample with an engine of tokens")
    text = await text_in(engine, sample)
    ends = [len(sample.text)] if most_steps is None else step_ends(text, sample.spans, most_steps)
    steps, read, begin = [], 0, 0
    for end in ends:
        read = await tokens_of(engine, sample.ids, text[:end], read)
        steps.append((text[begin:end], read))
        begin = end
    return steps


# ---------------------------------------------------------------- by arithmetic


def arithmetic_labels(engine: Engine, most_steps: int = MOST_STEPS) -> Labeller:
    """0 from the first step on that holds a wrong equation, 1 before it; all None where a sample has no equation.

    Equations are read as `arithmetic_steps` reads them. A wrong plan that is calculated well stays a 1.
    """
    check = arithmetic_steps()

    async def label(question: Question, sample: Sample) -> Labels:
        steps = await steps_in(engine, sample, most_steps)
        found = [(await check(question, Sample(0, text, thinking=text))).steps for text, _ in steps]
        wrong = next((k for k, right in enumerate(found) if not all(right)), len(found))
        values = [float(k < wrong) if any(found) else None for k in range(len(found))]
        return Labels(tuple(place for _, place in steps), tuple(values))

    return label


# ---------------------------------------------------------------- many samples


async def in_order(
    work: Callable[[Item], Awaitable[Made]], items: Iterable[Item], workers: int = 8
) -> AsyncIterator[Made]:
    """What `work` makes of each item, in their order, `workers` at a time. A failure cancels the rest."""
    waiting: deque[asyncio.Future[Made]] = deque()
    try:
        for item in items:
            waiting.append(asyncio.ensure_future(work(item)))
            if len(waiting) == workers:
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()
    finally:
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def labelled(
    label: Labeller, samples: Iterable[tuple[Question, Sample]], workers: int = 8
) -> AsyncIterator[tuple[Question, Sample, Labels]]:
    """Questions and samples with their labels, in their order, `workers` samples at a time."""

    async def work(item: tuple[Question, Sample]) -> tuple[Question, Sample, Labels]:
        return (*item, await label(*item))

    return in_order(work, samples, workers)

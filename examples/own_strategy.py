"""A strategy of one's own: a function that returns a function from question, model and budget to events."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import ponder
from ponder.chat.model import Model
from ponder.protocols import Strategy
from ponder.strategies.budget import think_within
from ponder.types import BestAnswer, Budget, Event, Question, Sample, SampleFinished


def vote(n: int = 5) -> Strategy:
    """n samples share the budget and one computation of the prompt; the answer that most of them gave wins."""
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")

    async def strategy(question: Question, model: Model, budget: Budget) -> AsyncIterator[Event]:
        finished: list[Sample] = []
        async for event in think_within(model, question, budget, n=n):
            yield event
            if isinstance(event, SampleFinished):
                finished.append(event.sample)
                # In the order in which they were started: what finishes first is short, not better.
                finished.sort(key=lambda sample: sample.index)
                winner, _ = Counter(sample.answer for sample in finished).most_common(1)[0]
                yield BestAnswer(winner, next(s.index for s in finished if s.answer == winner))

    return strategy


async def main() -> None:
    question = "Anna has 5 apples and buys 7 more. How many apples does she have?"
    trace = await ponder.asolve(question, strategy=vote(5), budget=600)
    print("\n".join(sample.answer for sample in trace.samples))
    print(f"most of them: {trace.answer} ({trace.cost.tokens} tokens)")


if __name__ == "__main__":
    asyncio.run(main())

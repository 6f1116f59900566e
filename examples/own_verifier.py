"""A verifier of one's own: a function that returns an asynchronous function from question and sample to a score."""

import asyncio
import re

import ponder
from ponder.protocols import Verifier
from ponder.types import Question, Sample, Score, user


def last_number() -> Verifier:
    """1 where the last number of the answer is the reference, else 0."""

    async def verify(question: Question, sample: Sample) -> Score:
        numbers = re.findall(r"-?\d+(?:\.\d+)?", sample.answer.replace(",", ""))
        if question.reference is None:
            raise ValueError("last_number() needs a question with a reference")
        right = bool(numbers) and float(numbers[-1]) == float(question.reference)
        why = f"found {numbers[-1]}" if numbers else "found no number"
        return Score(float(right), "last_number", why)

    return verify


async def main() -> None:
    question = Question((user("Anna has 5 apples and buys 7 more. How many apples does she have?"),), reference="12")
    trace = await ponder.asolve(question, budget=200)
    for sample in trace.samples:
        score = await last_number()(question, sample)
        print(f"{sample.answer!r} scores {score.value:g}: {score.why}")


if __name__ == "__main__":
    asyncio.run(main())

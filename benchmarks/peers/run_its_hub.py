"""its_hub on a file of questions: a line of JSON for each.

    python benchmarks/peers/run_its_hub.py METHOD QUESTIONS --url URL [--n 8] [--temperature 0.7] [--max-tokens 256]

METHOD is self_consistency, best_of_n or beam. Best of n and beam search get ponder's own rule as their
reward models (`ponder.verifiers.arithmetic_steps`), so that the searches are compared, not the verifiers.
"""

from __future__ import annotations

import asyncio
import random
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

from its_hub import BestOfN, LMOrchestrator, OpenAICompatibleLanguageModel, SelfConsistency, StepGeneration
from its_hub.api import AbstractOutcomeRewardModel, AbstractProcessRewardModel
from its_hub.core.algorithms.beam_search import BeamSearch
from its_hub.core.algorithms.self_consistency import create_regex_projection_function
from lines import Account, Found, parser, questions

from ponder.strategies.best_of_n import Aggregate, aggregated
from ponder.types import Question, Sample, user
from ponder.verifiers.arithmetic_steps import arithmetic_steps

ANSWER = r"</think>.*?answer is:?\s*\$?(-?\d[\d,]*(?:\.\d+)?)"
STEP, LAST = "\n", "The answer is"
"""ponder-135m writes one step a line, and begins its answer so. its_hub cannot see that a reply has ended."""


async def reward(question: str, text: str, aggregate: Aggregate) -> float:
    """ponder's score of a reply, which may be unfinished."""
    thinking, _, answer = text.partition("</think>")
    sample = Sample(0, text, thinking=thinking.strip(), answer=answer.strip(), exact=False)
    return aggregated(await arithmetic_steps()(Question((user(question),)), sample), aggregate)


class Outcome(AbstractOutcomeRewardModel):
    """Scores whole replies, for best of n."""

    def __init__(self, aggregate: Aggregate) -> None:
        self._aggregate = aggregate

    async def ascore(self, messages: Any, orchestrator: Any = None, **kwargs: Any) -> list[float]:
        return [await reward(talk[0].content, talk[-1].content, self._aggregate) for talk in messages]

    def score(self, messages: Any, **kwargs: Any) -> list[float]:
        return asyncio.run(self.ascore(messages))


class Process(AbstractProcessRewardModel):
    """Scores replies up to a step, for beam search."""

    def __init__(self, aggregate: Aggregate) -> None:
        self._aggregate = aggregate

    async def ascore(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
        return [await reward(prompt_or_messages, text, self._aggregate) for text in steps]

    def score(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
        return asyncio.run(self.ascore(prompt_or_messages, steps))


class Continuing(OpenAICompatibleLanguageModel):
    """its_hub's client, for a server that repeats the assistant's message which it continues.

    its_hub is written for vLLM, which replies with the new text alone; with the repetition, each step
    would hold all those before it.
    """

    async def agenerate(self, messages_or_messages_lst: Any, *args: Any, **settings: Any) -> Any:
        replies = await super().agenerate(messages_or_messages_lst, *args, **settings)
        return [self._new(talk[-1], reply) for talk, reply in zip(messages_or_messages_lst, replies, strict=True)]

    @staticmethod
    def _new(last: Any, reply: dict[str, Any]) -> dict[str, Any]:
        if last.role != "assistant":
            return reply
        content = reply["content"] or ""
        if not content.startswith(last.content):
            raise ValueError(f"the reply {content!r} does not begin with the message to be continued, {last.content!r}")
        return {**reply, "content": content.removeprefix(last.content)}


Infer = Callable[[str], Awaitable[Any]]


def method(asked: Any, lm: OpenAICompatibleLanguageModel) -> Infer:
    """What answers a question. As many requests run side by side as the server has slots."""
    orchestrator = LMOrchestrator(max_concurrency=-1)
    algorithm: Any
    match asked.method:
        case "self_consistency":
            algorithm = SelfConsistency(create_regex_projection_function(ANSWER), orchestrator=orchestrator)
        case "best_of_n":
            algorithm = BestOfN(Outcome(asked.aggregate), orchestrator=orchestrator)
        case _:
            steps = StepGeneration(asked.max_steps, STEP, LAST, asked.temperature)
            algorithm = BeamSearch(steps, Process(asked.aggregate), asked.beam_width)
    return lambda question: algorithm.ainfer(lm, question, asked.n, return_response_only=False)


async def run(asked: Any) -> None:
    """Asks everything, one question after the other."""
    account = Account(asked.url)
    async with Continuing(
        f"{asked.url}/v1",
        "none",
        "model",
        temperature=asked.temperature,
        max_completion_tokens=asked.max_tokens,
    ) as lm:
        infer = method(asked, lm)
        for question in questions(asked.questions):
            with account.running():
                result = await infer(question.text)
            texts = [reply["content"] or "" for reply in result.responses]
            print(account.line(question, Found(texts[result.selected_index], texts)), flush=True)


def main() -> None:
    """Reads the arguments, and runs."""
    arguments = parser(__doc__, ("self_consistency", "best_of_n", "beam"))
    arguments.add_argument("--beam-width", type=int, default=2, help="beams that are kept; n is a multiple of it")
    arguments.add_argument("--max-steps", type=int, default=16, help="of a beam; its_hub bounds steps, not tokens")
    arguments.add_argument("--aggregate", default="value", choices=("value", "min", "product", "mean", "last"))
    arguments.add_argument("--seed", type=int, default=0, help="its_hub draws lots between answers with equal votes")
    asked = arguments.parse_args()
    if asked.method == "beam" and asked.n % asked.beam_width:
        arguments.error(f"--n {asked.n} is no multiple of --beam-width {asked.beam_width}")
    random.seed(asked.seed)
    warnings.filterwarnings("ignore", r"agenerate\(\) is deprecated")  # by its_hub, whose own beam search calls it
    asyncio.run(run(asked))


if __name__ == "__main__":
    main()

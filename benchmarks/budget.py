"""Whether the budget holds: random questions, random budgets, several ways of thinking, and what came of it.

    python benchmarks/budget.py [--questions 200] [--engine gguf|scripted] [--model NAME] [--seed 0]

Each question is an arithmetic word problem with a budget of 16 to 400 tokens for the whole request. Counted are

- over-runs: the engine gave, and ponder wrote, more tokens than the budget allowed;
- miscounts: the cost that ponder states is not what the engine gave;
- missing answers: no answer, or an error instead of one;
- leftover markers: a marker of thinking or of the end of a turn within the answer.

Prints one line of JSON last, and ends with exit code 1 unless all four are zero.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, cycle
from typing import Any

from ponder.chat.formats import ENDS, FAMILIES
from ponder.chat.model import Model, model_of
from ponder.engine import open_engine
from ponder.engine.scripted import ScriptedEngine, Source, says
from ponder.errors import PonderError
from ponder.protocols import Chunk, Engine, SamplingParams
from ponder.strategies.chain_of_thought import chain_of_thought
from ponder.strategies.direct import direct
from ponder.types import Budget, Cost, SampleFinished, ask

WAYS = {
    "trained": chain_of_thought(),
    "prompt": chain_of_thought("prompt"),
    "direct": direct(),
}
TEMPLATES = (
    "{name} has {a} bags with {b} {things} in each. {name} gives away {c}. How many {things} are left?",
    "A train has {a} cars with {b} seats each, and {c} seats are taken. How many seats are free?",
    "{name} reads {b} pages a day for {a} days and {c} pages on the last day. How many pages is that?",
    "A box of {b} {things} costs ${a}. What do {c} boxes cost?",
    "{name} is {a} years old, and {other} is {b} years older. How old will {other} be in {c} years?",
    "There are {b} {things} on a table. {name} takes {c}, and {other} puts {a} back. How many are there now?",
)
NAMES = ("Tom", "Ana", "Wei", "Zoë", "Omar", "Łucja", "Priya", "Jun")
THINGS = ("apples", "marbles", "books", "pens", "crêpes", "stamps")


@dataclass(frozen=True)
class Case:
    """One question, its budget, and how it is to be thought about."""

    text: str
    budget: int
    way: str
    seed: int


@dataclass
class Result:
    """What came of all cases. `mean_use` is the mean share of the budget that was spent."""

    engine: str
    questions: int
    seed: int
    over_runs: int = 0
    miscounts: int = 0
    missing_answers: int = 0
    leftover_markers: int = 0
    mean_use: float = 0.0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        return not (self.over_runs or self.miscounts or self.missing_answers or self.leftover_markers)


def cases(count: int, seed: int) -> Iterator[Case]:
    """Random questions with random budgets."""
    draw = random.Random(seed)
    for _ in range(count):
        name, other = draw.sample(NAMES, 2)
        a, b, c = (draw.randint(2, 60) for _ in range(3))
        text = draw.choice(TEMPLATES).format(name=name, other=other, things=draw.choice(THINGS), a=a, b=b, c=c)
        yield Case(text, draw.randint(16, 400), draw.choice(list(WAYS)), draw.getrandbits(31))


class Counting:
    """An engine, with a count of its own of the tokens that were generated, read or not."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.generated = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> AsyncIterator[Chunk]:
        stream: Any = self.engine.sample(prefix, n, params)
        try:
            async for chunk in stream:
                self.generated += len(chunk.ids) + chunk.lost
                yield chunk
        finally:
            await stream.aclose()
            self.generated += getattr(stream, "undelivered", 0)


async def measure(model: Model, asked: Sequence[Case], result: Result, show: Any = lambda done: None) -> Result:
    """Asks every case, and adds up what came of it."""
    started, use = time.perf_counter(), 0.0
    for done, case in enumerate(asked, 1):
        engine = Counting(model.engine)
        params = replace(model.params, seed=case.seed)
        answer, cost = await solved(replace(model, engine=engine, params=params), case)  # type: ignore[arg-type]
        result.over_runs += max(engine.generated + cost.written, cost.tokens) > case.budget
        result.miscounts += engine.generated != cost.generated
        result.missing_answers += not answer.removeprefix(model.format.answer_opener).strip(" .:*\n")
        result.leftover_markers += any(marker in answer for marker in markers(model))
        result.tokens += cost.tokens
        use += cost.tokens / case.budget
        show(done)
    result.mean_use = use / max(1, len(asked))
    result.seconds += time.perf_counter() - started
    return result


async def solved(model: Model, case: Case) -> tuple[str, Cost]:
    """The answer, "" where there is none, and its cost."""
    answer, cost = "", Cost()
    try:
        async for event in WAYS[case.way](ask(case.text), model, Budget(tokens=case.budget)):
            if isinstance(event, SampleFinished):
                answer, cost = event.sample.answer, cost + event.cost
    except PonderError as error:
        print(f"\n{case}: {error}", file=sys.stderr)
        answer = ""
    return answer, cost


def markers(model: Model) -> tuple[str, ...]:
    """What has no place in an answer."""
    form = model.format
    closes = () if form.keep_close else form.close_markers
    return (*form.open_markers, *closes, *ENDS, "<think>", "</think>")


# ---------------------------------------------------------------- the scripted engine


def realistic(case: Case) -> Model:
    """A model of any family: it thinks for a random length, then answers. Where it may not end it says its answer."""
    draw = random.Random(case.seed)
    form = FAMILIES[draw.choice(list(FAMILIES))]
    steps = "So far that makes {}.", "Let me see: {} and so on,", "Hmm, {}?\n", "Zoë has {}… ", "{} 🤔 "
    thinking = " ".join(draw.choice(steps).format(draw.randint(1, 999)) for _ in range(draw.randint(0, 25)))
    number = draw.randint(0, 9999)
    answer = draw.choice(("{}", "It is {}.", "The answer is {}.", "**{}**", "{} – that is it.\n")).format(number)
    specials = draw.choice(((), tuple(each for each in (form.open, form.close) if each)))
    engine = ScriptedEngine(lambda *asked: (), specials=specials, burst=draw.choice((1, 1, 1, 2, 5)))
    said = says(f"{form.open}{thinking}{form.closing}{answer}", tokenizer=engine.tokenizer)

    def reply(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Source:
        return chain(said(prefix, index, params), cycle(str(number).encode()) if params.ignore_eos else ())

    engine.reply = reply
    return replace(model_of(engine), format=form)


async def measure_scripted(asked: Sequence[Case], result: Result, show: Any = lambda done: None) -> Result:
    """As `measure`, each case with a model of its own."""
    use = 0.0
    for done, case in enumerate(asked, 1):
        await measure(realistic(case), [case], result)
        use += result.mean_use
        show(done)
    result.mean_use = use / max(1, len(asked))
    return result


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--questions", type=int, default=200, help="how many")
    parser.add_argument("--engine", choices=("gguf", "scripted"), default="gguf")
    parser.add_argument("--model", default="ponder-135m", help="what gguf runs: a known name or a path")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    def show(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{options.questions}", end="", file=sys.stderr, flush=True)

    asked = list(cases(options.questions, options.seed))
    result = Result(options.engine, options.questions, options.seed)
    if options.engine == "scripted":
        await measure_scripted(asked, result, show)
    else:
        engine = await open_engine(f"gguf:{options.model}")
        try:
            await measure(model_of(engine), asked, result, show)
        finally:
            await engine.close()
    print(file=sys.stderr)
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(result).items()}
    print(json.dumps({"benchmark": "budget", **rounded}))
    return 0 if result.holds else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))

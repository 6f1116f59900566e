"""What the tests of the budget share: models that say what they are told, and what holds of every request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ponder.chat.formats import PONDER, ThinkingFormat
from ponder.chat.model import Model, model_of
from ponder.engine.scripted import EOS, HEADER, ScriptedEngine
from ponder.errors import PonderError
from ponder.protocols import Chunk, SamplingParams
from ponder.strategies.budget import think_within
from ponder.types import AnswerDelta, Budget, Cost, Event, Question, Sample, SampleFinished, ThinkingDelta, ask

QUESTION = ask("What is 3 + 4?")
SEVEN = ord("7")
IM_START = 257
MARKERS = ("<think>", "</think>")
AT_MOST = 20.0
"""Seconds after which a test calls a request hung."""


def turn_of(prefix: Sequence[int]) -> tuple[int, ...]:
    """The ids of the assistant's turn at the end of a scripted engine's prompt."""
    header = len(prefix) - 1 - prefix[::-1].index(IM_START)
    return tuple(prefix[header + len(HEADER.encode()) - len("<|im_start|>") + 1 :])


@dataclass(frozen=True)
class Babble:
    """Says token k of its stream as token k of the turn, whatever is there already; after its end, the end of the turn.

    It begins no character halfway. Where it may not end it says 7.
    """

    stream: tuple[int, ...]

    def __call__(self, prefix: tuple[int, ...], index: int, params: SamplingParams) -> Iterator[int]:
        rest = list(self.stream[len(turn_of(prefix)) + index :])
        while rest and 0x80 <= rest[0] < 0xC0:
            rest.pop(0)
        yield from rest
        while True:
            yield SEVEN if params.ignore_eos else EOS


def babbler(text: str, eos: bool = True, **how: Any) -> ScriptedEngine:
    """An engine that babbles `text`, and then ends its turn, or goes on with newlines."""
    engine = ScriptedEngine(lambda *asked: (), **how)
    engine.reply = Babble((*engine.tokenizer.encode(text), *(() if eos else (10,) * 5000)))
    return engine


def answering(reply: Callable[[str], str | Sequence[int]], **how: Any) -> ScriptedEngine:
    """An engine that says what `reply` gives for the turn so far, and what it says where it may not end is 7."""
    engine = ScriptedEngine(lambda *asked: (), **how)

    def source(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Iterator[int]:
        said = reply(engine.tokenizer.decode(turn_of(prefix)).decode(errors="replace"))
        yield from engine.tokenizer.encode(said) if isinstance(said, str) else said
        yield from [ord("7")] * 1000 if params.ignore_eos else [EOS]

    engine.reply = source
    return engine


def thinks(form: ThinkingFormat, thinking: str, answer: str) -> Callable[[str], str]:
    """A reply for `answering`: it goes on with its thinking, and once that is closed with its answer."""
    ends = (*form.close_markers, form.answer_opener)

    def reply(turn: str) -> str:
        at = max((place + len(end) for end in ends if (place := turn.rfind(end)) >= 0), default=-1)
        if at >= 0:
            return answer.removeprefix(turn[at:].lstrip())
        opened = not form.open or form.open in turn
        said = turn.partition(form.open)[2].lstrip() if form.open else turn
        return ("" if opened else form.open) + thinking[len(said) :]

    return reply


def of(engine: Any, form: ThinkingFormat = PONDER) -> Model:
    return replace(model_of(engine), format=form)


def short(engine: ScriptedEngine, form: ThinkingFormat) -> Model:
    """On bytes the usual opener has 13 tokens; a short one fits into the smallest budgets here."""
    return replace(model_of(engine), format=replace(form, answer_opener="A:"))


@dataclass
class Outcome:
    """What a request came to."""

    events: list[Event]
    error: PonderError | None = None

    @property
    def finished(self) -> list[tuple[Sample, Cost]]:
        return [(e.sample, e.cost) for e in self.events if isinstance(e, SampleFinished)]

    @property
    def sample(self) -> Sample:
        """The only sample, or the last."""
        return self.finished[-1][0]

    @property
    def total(self) -> Cost:
        return sum((cost for _, cost in self.finished), Cost())

    def said(self, kind: type, sample: int) -> str:
        """The deltas of a sample, joined."""
        return "".join(e.text for e in self.events if isinstance(e, kind) and e.sample == sample)  # type: ignore[attr-defined]


Solve = Callable[[Model, Question, Budget], AsyncIterator[Event]]


def outcome_of(solve: AsyncIterator[Event]) -> Outcome:
    """Runs a request to its end. Lets nothing pass but errors that a user can mend, and no hanging."""

    async def run() -> Outcome:
        outcome = Outcome([])
        try:
            async with asyncio.timeout(AT_MOST):
                async for event in solve:
                    outcome.events.append(event)
        except PonderError as error:
            outcome.error = error
        return outcome

    return asyncio.run(run())


def think(model: Model, budget: Budget | int, n: int = 1, think: bool = True, question: Question = QUESTION) -> Outcome:
    """n samples within a budget."""
    bounds = Budget(tokens=budget) if isinstance(budget, int) else budget
    return outcome_of(think_within(model, question, bounds, n=n, think=think))


def answer_runs(sample: Sample) -> list[str]:
    """The stretches of answer: "<" and "think>" around a marker that was dropped make no marker of their own."""
    runs, end = [""], -1
    for span in sample.spans:
        if span.kind == "answer":
            text = sample.text[span.start : span.end]
            runs = [*runs[:-1], runs[-1] + text] if span.start == end else [*runs, text]
            end = span.end
    return runs


def check_told(engine: ScriptedEngine, outcome: Outcome, n: int = 1) -> None:
    """What holds of every request, whatever the model says and whatever goes wrong: all is told, and told once."""
    assert engine.open_streams == 0
    assert sorted(sample.index for sample, _ in outcome.finished) == list(range(n))
    for sample, cost in outcome.finished:
        assert outcome.said(ThinkingDelta, sample.index).strip() == sample.thinking, "the deltas are not the thinking"
        assert outcome.said(AnswerDelta, sample.index).strip() == sample.answer, "the deltas are not the answer"
        assert cost.written == sample.mask.count(False)
        assert len(sample.ids) == cost.tokens - cost.cancelled
        whole = engine.tokenizer.decode(token for token in sample.ids if token != EOS).decode(errors="replace")
        assert whole.replace("\ufffd", "") == sample.text.replace("\ufffd", ""), "the ids are not the text"
        assert "".join(sample.text[span.start : span.end] for span in sample.spans) == sample.text
        assert not any(marker in run for run in answer_runs(sample) for marker in MARKERS)
        assert sample.finish != "error" or outcome.error is not None


def check(engine: ScriptedEngine, outcome: Outcome, tokens: int, n: int = 1) -> None:
    """What holds as long as the engine counts right: no token over the budget, none forgotten."""
    check_told(engine, outcome, n)
    assert outcome.total.tokens <= tokens, "over budget"
    assert outcome.total.generated == engine.generated, "usage differs from what the engine generated"


class Watched:
    """An engine that keeps what it was asked. `then` may see each chunk before it is handed out."""

    def __init__(self, engine: Any, then: Callable[[Chunk], Chunk] = lambda chunk: chunk) -> None:
        self.engine = engine
        self.then = then
        self.asked: list[tuple[tuple[int, ...], int, SamplingParams]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> AsyncIterator[Chunk]:
        self.asked.append((tuple(prefix), n, params))
        stream = self.engine.sample(prefix, n, params)
        try:
            async for chunk in stream:
                yield self.then(chunk)
        finally:
            await stream.aclose()


class Wasteful(Watched):
    """An engine that has generated `waste` tokens more by the time it hears that a stream was closed early."""

    def __init__(self, engine: Any, waste: int) -> None:
        super().__init__(engine)
        self.waste = waste
        self.wasted = 0

    def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> Any:
        return _WastefulStream(self, super().sample(prefix, n, params))


class _WastefulStream:
    def __init__(self, engine: Wasteful, stream: Any) -> None:
        self.engine, self.stream = engine, stream
        self.undelivered = 0
        self.begun = self.ended = False

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Chunk:
        self.begun = True
        try:
            chunk: Chunk = await anext(self.stream)
        except Exception:
            self.ended = True
            raise
        self.ended = chunk.finish is not None
        return chunk

    async def aclose(self) -> None:
        await self.stream.aclose()
        if self.begun and not self.ended:
            self.undelivered = self.engine.waste
            self.engine.wasted += self.engine.waste

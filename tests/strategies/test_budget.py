"""The thinking budget over a byte-level engine: never over, always an answer, nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.chat.formats import FAMILIES, THINK_TAGS, ThinkingFormat
from ponder.chat.model import Model, model_of
from ponder.engine.scripted import EOS, Fault, ScriptedEngine, says
from ponder.errors import BudgetTooSmall, EngineError
from ponder.protocols import SamplingParams
from ponder.strategies.budget import think_within
from ponder.types import AnswerDelta, Budget, Cost, Event, Sample, SampleFinished, ThinkingDelta, ask

PIECES = st.sampled_from(
    ["<think>", "</think>", "</thi", "<", "think>", "\n", " ", "Wait. ", "We add 3 and 4.", "é", "漢字", "🤔", "7", "\x00"]
)


def tokens_of(text: str, eos: bool) -> list[int]:
    return [*text.encode(), *([EOS] if eos else [])]


class Babble:
    """Says the same stream of tokens whatever it is asked to continue, from where it stopped."""

    def __init__(self, stream: Sequence[int]) -> None:
        self.stream = stream
        self.position: dict[int, int] = {}

    def __call__(self, prefix: tuple[int, ...], index: int, params: SamplingParams):  # type: ignore[no-untyped-def]
        while True:
            at = self.position.get(index, 0)
            self.position[index] = at + 1
            yield self.stream[at] if at < len(self.stream) else EOS


def events_of(model: Model, budget: Budget, n: int = 1, think: bool = True) -> list[Event]:
    async def run() -> list[Event]:
        return [event async for event in think_within(model, ask("What is 3 + 4?"), budget, n=n, think=think)]

    return asyncio.run(run())


def with_format(engine: ScriptedEngine, form: ThinkingFormat) -> Model:
    """On bytes the usual opener has 13 tokens; a short one fits into the smallest budgets here."""
    return replace(model_of(engine), format=replace(form, answer_opener="A:"))


def finished(events: Sequence[Event]) -> list[tuple[Sample, Cost]]:
    return [(e.sample, e.cost) for e in events if isinstance(e, SampleFinished)]


def answer_runs(sample: Sample) -> list[str]:
    """The stretches of answer. "<" and "think>" around a marker that was dropped make no marker of their own."""
    runs, end = [""], -1
    for span in sample.spans:
        if span.kind == "answer":
            runs[-1:] = [runs[-1] + sample.text[span.start : span.end]] if span.start == end else [runs[-1], ""]
            runs[-1] = runs[-1] or sample.text[span.start : span.end]
            end = span.end
    return runs


def check(engine: ScriptedEngine, events: Sequence[Event], budget: int, n: int = 1) -> None:
    """What holds of every request, whatever the model says."""
    samples = finished(events)
    assert len(samples) == n
    total = sum((cost for _, cost in samples), Cost())
    assert total.tokens <= budget, "over budget"
    assert total.generated == engine.generated, "usage differs from what the engine generated"
    for sample, cost in samples:
        assert sample.answer.strip(), "no answer"
        assert not any(marker in run for run in answer_runs(sample) for marker in ("<think>", "</think>"))
        for kind, of in ((ThinkingDelta, sample.thinking), (AnswerDelta, sample.answer)):
            deltas = "".join(e.text for e in events if isinstance(e, kind) and e.sample == sample.index)
            assert deltas.strip() == of, "the deltas are not the text"
        assert cost.written == sample.mask.count(False)
        assert len(sample.ids) == cost.tokens - cost.cancelled


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(PIECES, max_size=60),
    eos=st.booleans(),
    budget=st.integers(16, 400),
    n=st.integers(1, 3),
    think=st.booleans(),
    minimum=st.sampled_from([0, 0, 5, 40]),
    form=st.sampled_from([THINK_TAGS, FAMILIES["ponder"], FAMILIES["deepseek-r1"], FAMILIES["elicit"]]),
    burst=st.sampled_from([1, 1, 3]),
)
def test_never_over_budget_and_always_an_answer(
    pieces: list[str],
    eos: bool,
    budget: int,
    n: int,
    think: bool,
    minimum: int,
    form: ThinkingFormat,
    burst: int,
) -> None:
    engine = ScriptedEngine(Babble(tokens_of("".join(pieces), eos) or [55]), burst=burst)
    if budget // n < 6:  # the opener and the least answer
        return
    events = events_of(with_format(engine, form), Budget(tokens=budget, min_thinking=minimum), n, think)
    check(engine, events, budget, n)

"""The thinking budget over a byte-level engine: never over, always an answer or a typed failure, nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace

from drive import MARKERS, babbler, check, check_told, of, short, think, turn_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.chat.formats import FAMILIES, THINK_TAGS, ThinkingFormat
from ponder.engine.scripted import EOS, Fault, ScriptedEngine
from ponder.errors import EngineError, EngineTimeout, NoAnswer
from ponder.protocols import SamplingParams
from ponder.types import Budget

PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "</thi",
        "<",
        "think>",
        "\n",
        " ",
        "Wait. ",
        "We add 3 and 4.",
        "é",
        "漢字",
        "🤔",
        "7",
        "\x00",
    ]
)
TEXTS = st.lists(PIECES, max_size=60).map("".join)
FORMS = st.sampled_from([THINK_TAGS, FAMILIES["ponder"], FAMILIES["deepseek-r1"], FAMILIES["elicit"]])
BURSTS = st.sampled_from([1, 1, 3])
SPECIALS = st.sampled_from([(), (), MARKERS])
LEAST = 6
"""Tokens that a sample needs here: the short opener and the least answer."""


@settings(max_examples=200, deadline=None)
@given(
    text=TEXTS,
    eos=st.booleans(),
    budget=st.integers(16, 400),
    n=st.integers(1, 3),
    wanted=st.booleans(),
    minimum=st.sampled_from([0, 0, 5, 40]),
    calls=st.sampled_from([None, None, 1, 2, 3, 4, 7]),
    form=FORMS,
    burst=BURSTS,
    specials=SPECIALS,
)
def test_never_over_budget_and_always_an_answer(
    text: str,
    eos: bool,
    budget: int,
    n: int,
    wanted: bool,
    minimum: int,
    calls: int | None,
    form: ThinkingFormat,
    burst: int,
    specials: Sequence[str],
) -> None:
    engine = babbler(text, eos, burst=burst, specials=specials)
    if budget // n < LEAST:
        return
    outcome = think(short(engine, form), Budget(tokens=budget, min_thinking=minimum, calls=calls), n, wanted)
    check(engine, outcome, budget, n)
    assert calls is None or outcome.total.calls <= calls
    if outcome.error is None:
        # Where calls run out, one sample may have no answer as long as another has.
        assert calls is not None or all(sample.answer for sample, _ in outcome.finished)
        assert any(sample.answer for sample, _ in outcome.finished)
    elif isinstance(outcome.error, NoAnswer):
        blank = [cost for s, cost in outcome.finished if s.answer.strip(" .:*\n") in ("", "A", "The answer is")]
        assert any(cost.tokens == budget // n for cost in blank), "there was an answer, or room for trying on"
    else:
        assert calls is not None
        assert isinstance(outcome.error, EngineTimeout)


def faults(*kinds: str, times: Sequence[int | None] = (1, 2, 3, None)) -> st.SearchStrategy[list[Fault]]:
    """A few faults at random tokens, of the whole call or of one sample."""
    one = st.builds(
        Fault,
        kind=st.sampled_from(kinds),
        at=st.integers(0, 60),
        seconds=st.just(0.0005),
        every=st.booleans(),
        sample=st.sampled_from([None, None, 0, 1, 2]),
        tokens=st.integers(0, 9),
        prompt=st.integers(0, 9),
        times=st.sampled_from(times),
        first_call=st.integers(1, 4),
    )
    return st.lists(one, min_size=1, max_size=3)


@settings(max_examples=120, deadline=None)
@given(
    text=TEXTS,
    budget=st.integers(16, 300),
    n=st.integers(1, 3),
    minimum=st.sampled_from([0, 0, 20]),
    calls=st.sampled_from([None, None, 1, 2, 5]),
    form=FORMS,
    burst=BURSTS,
    specials=SPECIALS,
    broken=faults("delay", "disconnect", "garbage", "wrong_counts", "partial", "rate_limit"),
)
def test_whatever_goes_wrong_there_is_an_answer_or_an_error_that_says_what(
    text: str,
    budget: int,
    n: int,
    minimum: int,
    calls: int | None,
    form: ThinkingFormat,
    burst: int,
    specials: Sequence[str],
    broken: list[Fault],
) -> None:
    engine = babbler(text, burst=burst, specials=specials, faults=broken)
    if budget // n < LEAST:
        return
    outcome = think(short(engine, form), Budget(tokens=budget, min_thinking=minimum, calls=calls), n)
    if any(fault.kind == "wrong_counts" and fault.tokens for fault in broken):
        check_told(engine, outcome, n)
        assert outcome.total.generated >= engine.generated, "tokens were forgotten"
    else:
        check(engine, outcome, budget, n)
    if outcome.error is None:
        assert all(sample.answer for sample, _ in outcome.finished)
        assert all(sample.finish in ("stop", "length", "cancelled") for sample, _ in outcome.finished)
    else:
        assert isinstance(outcome.error, EngineError)
        assert str(outcome.error)


@settings(max_examples=25, deadline=None)
@given(text=TEXTS, n=st.integers(1, 3), form=FORMS, broken=faults("hang", "hang", "delay"))
def test_an_engine_that_falls_silent_hangs_nobody(text: str, n: int, form: ThinkingFormat, broken: list[Fault]) -> None:
    engine = babbler(text, faults=broken)
    outcome = think(short(engine, form), Budget(tokens=200, seconds=0.08), n)
    check(engine, outcome, 200, n)
    assert all(cost.seconds < 2 for _, cost in outcome.finished)
    if outcome.error is not None:
        assert isinstance(outcome.error, EngineTimeout | NoAnswer)
    if isinstance(outcome.error, EngineTimeout):
        assert "0.08 seconds" in str(outcome.error)


@settings(max_examples=80, deadline=None)
@given(
    text=TEXTS,
    after=st.integers(0, 120),
    n=st.integers(1, 3),
    wanted=st.booleans(),
    form=FORMS,
    burst=BURSTS,
)
def test_stopped_at_any_moment_it_ends_softly_and_counts_right(
    text: str, after: int, n: int, wanted: bool, form: ThinkingFormat, burst: int
) -> None:
    engine, stop = babbler(text, eos=False, burst=burst), asyncio.Event()
    babble, given_out = engine.reply, 0

    def until_stopped(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Iterator[int]:
        nonlocal given_out
        for token in babble(prefix, index, params):
            given_out += 1
            if given_out > after:
                stop.set()
            yield token  # type: ignore[misc]

    engine.reply = until_stopped
    outcome = think(replace(short(engine, form), stop=stop), 240, n, wanted)
    check(engine, outcome, 240, n)
    assert given_out <= after + burst * n, "it went on"
    if stop.is_set():
        assert outcome.error is None
        assert any(sample.finish == "cancelled" for sample, _ in outcome.finished)
    else:
        assert all(sample.finish == "length" for sample, _ in outcome.finished)


def test_a_sample_without_an_answer_ends_no_other() -> None:
    """Of two samples the first never says a word."""

    def source(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Iterator[int]:
        said = bytes(t for t in turn_of(prefix) if t < 256)
        mute = index == 0 and b"7" not in said
        yield from [ord(" ")] * 2000 if mute else [ord("7"), EOS]

    engine = ScriptedEngine(source)
    outcome = think(of(engine, FAMILIES["think-tags"]), 200, 2, think=False)
    check(engine, outcome, 200, 2)
    assert outcome.error is None
    assert sorted(bool(sample.answer.removeprefix("The answer is")) for sample, _ in outcome.finished) == [False, True]

"""A request stays within its bounds, whichever they are and however its engine behaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import faults
import pytest
import servers
from drive import (
    Outcome,
    Wasteful,
    Watched,
    answering,
    babbler,
    check,
    check_told,
    of,
    outcome_of,
    short,
    think,
    thinks,
    turn_of,
)

from ponder.chat.formats import FAMILIES, THINK_TAGS, ThinkingFormat
from ponder.chat.model import Price
from ponder.engine.remote import open_remote
from ponder.engine.scripted import EOS, TOKENIZER, Fault, ScriptedEngine
from ponder.engine.transport import Retries
from ponder.errors import (
    BudgetTooSmall,
    ContextOverflow,
    EngineDisconnected,
    EngineTimeout,
    GarbledReply,
    InputError,
)
from ponder.protocols import Chunk, SamplingParams
from ponder.strategies.budget import UNKNOWN_CONTEXT, think_within
from ponder.types import AnswerDelta, Budget, Event, ThinkingDelta, ToolCalled, ask

PONDER, ELICIT = FAMILIES["ponder"], FAMILIES["elicit"]
RAMBLE = "thinking and " * 100


# ---------------------------------------------------------------- the other bounds


def test_an_answer_that_ended_is_finished_even_without_further_calls() -> None:
    engine = answering(lambda turn: "4" if "</think>" in turn else RAMBLE)
    outcome = think(of(engine), Budget(tokens=200, calls=2))
    assert (outcome.sample.finish, outcome.sample.answer, outcome.total.calls) == ("stop", "4", 2)
    assert outcome.total.recomputed == 0, "the closing marker is computed once, and everything else was cached"


@pytest.mark.parametrize("form", [PONDER, THINK_TAGS, ELICIT], ids=lambda form: form.name)
@pytest.mark.parametrize("calls", [1, 2, 3, 4])
def test_calls_are_bounded_and_the_last_is_kept_for_the_answer(calls: int, form: ThinkingFormat) -> None:
    def reply(turn: str) -> str:
        done = "</think>" in turn or turn.endswith("The answer is")
        return " 1,234 of them." if done else form.open.removeprefix("<think>" * (form is PONDER)) + RAMBLE

    engine = answering(reply)
    outcome = think(of(engine, form), Budget(tokens=200, calls=calls))
    check(engine, outcome, 200)
    assert outcome.total.calls <= calls
    assert outcome.sample.answer.endswith("1,234 of them.")
    assert outcome.sample.finish == "stop"
    assert bool(outcome.sample.thinking) == (calls > 1)


@pytest.mark.parametrize(("calls", "n"), [(1, 3), (3, 3), (4, 3), (5, 3), (6, 3)])
def test_samples_share_their_calls(calls: int, n: int) -> None:
    engine = answering(lambda turn: "7" if "</think>" in turn else RAMBLE)
    outcome = think(of(engine), Budget(tokens=600, calls=calls), n)
    check(engine, outcome, 600, n)
    assert outcome.error is None
    assert outcome.total.calls <= calls
    assert all(sample.answer == "7" for sample, _ in outcome.finished)
    assert all(bool(sample.thinking) == (calls > n) for sample, _ in outcome.finished)


def test_calls_that_run_out_before_an_answer_are_named() -> None:
    engine = answering(lambda turn: "")
    outcome = think(of(engine), Budget(tokens=200, calls=1))
    assert isinstance(outcome.error, EngineTimeout)
    assert str(outcome.error) == "no answer came within 1 calls. allow more."


def test_time_closes_the_thinking_and_leaves_some_for_the_answer() -> None:
    seconds = 0.5
    engine = answering(
        lambda turn: "Seven it is." if "</think>" in turn else RAMBLE,
        faults=[Fault("delay", seconds=0.01, every=True, times=None)],
    )
    times: dict[type, float] = {}
    started = time.monotonic()

    async def timed() -> Any:
        async for event in think_within(of(engine), ask("?"), Budget(tokens=2000, seconds=seconds)):
            times.setdefault(type(event), time.monotonic() - started)
            yield event

    outcome = outcome_of(timed())
    assert outcome.error is None
    assert "Seven it is.".startswith(outcome.sample.answer)
    assert outcome.sample.thinking
    assert times[ThinkingDelta] < 0.7 * seconds < times[AnswerDelta] + 0.01
    assert outcome.total.seconds < 2 * seconds
    check(engine, outcome, 2000)


@pytest.mark.parametrize("thinker", [0, 1])
def test_time_that_is_up_for_thinking_is_not_up_for_samples_that_answer(thinker: int) -> None:
    """One sample thinks on, the other answers slowly: at 70 % of the time only the first is hurried."""

    def source(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Iterator[int | Fault]:
        closed = b"</think>" in bytes(b for b in turn_of(prefix) if b < 256)
        said = "7 and that is the end" if closed else RAMBLE if index == thinker else "x</think>7" + RAMBLE
        for token in TOKENIZER.encode(said):
            yield Fault("delay", seconds=0.02)
            yield token
        yield from [ord("7")] * 1000

    engine = ScriptedEngine(source)
    outcome = think(of(engine), Budget(tokens=4000, seconds=0.8), 2)
    check(engine, outcome, 4000, 2)
    assert outcome.error is None
    assert all(sample.answer for sample, _ in outcome.finished)
    assert all(sample.thinking for sample, _ in outcome.finished)
    answering_on = next(cost for sample, cost in outcome.finished if sample.index != thinker)
    assert answering_on.seconds > 0.7, "it was cut short"


def test_silence_without_end_is_named_with_the_seconds() -> None:
    engine = babbler(RAMBLE, faults=[Fault("hang", times=None)])
    outcome = think(of(engine), Budget(tokens=100, seconds=0.2))
    assert isinstance(outcome.error, EngineTimeout)
    assert str(outcome.error) == "no answer came within 0.2 seconds. allow more."
    assert engine.open_streams == 0
    assert outcome.total.seconds < 2


def test_silence_in_the_answer_leaves_what_there_is() -> None:
    engine = answering(lambda turn: "Seven it is" if "</think>" in turn else "Hm.</think>Seven it is")
    engine.faults = (Fault("hang", at=17),)
    engine._affected = [set()]
    outcome = think(of(engine), Budget(tokens=200, seconds=0.2))
    check(engine, outcome, 200)
    assert outcome.error is None
    assert (outcome.sample.answer, outcome.sample.finish) == ("Seven", "cancelled")


def test_a_tokenizer_that_hangs_is_bounded_too() -> None:
    class Silent(Watched):
        async def tokenize(self, text: str) -> list[int]:
            await asyncio.sleep(60)
            return []

    outcome = think(of(Silent(babbler("x"))), Budget(tokens=100, seconds=0.05))
    assert isinstance(outcome.error, EngineTimeout)
    assert "0.05 seconds" in str(outcome.error)


def test_dollars_buy_tokens_after_the_prompt() -> None:
    engine = babbler(RAMBLE)
    model = replace(of(engine), price=Price(prompt=1.0, cached=0.1, output=4.0))
    prompt = len(engine.tokenizer.encode(model.template.render(ask("What is 3 + 4?").messages))) + len("<think>\n") - 0
    outcome = think(model, Budget(dollars=(prompt + 4 * 80) / 1e6))
    check(engine, outcome, 80)
    assert outcome.total.tokens > 70
    assert outcome.total.dollars is not None
    assert outcome.total.dollars <= (prompt + 4 * 80) / 1e6 + 1e-12


def test_dollars_and_tokens_bound_together() -> None:
    model = replace(of(engine := babbler(RAMBLE)), price=Price(1.0, 0.1, 4.0))
    check(engine, think(model, Budget(dollars=1.0, tokens=60)), 60)
    check(
        engine := babbler(RAMBLE), think(replace(of(engine), price=Price(0, 0, 0)), Budget(dollars=1.0, tokens=60)), 60
    )


def test_too_few_dollars_are_too_small_a_budget() -> None:
    model = replace(of(babbler(RAMBLE)), price=Price(1.0, 0.1, 4.0))
    outcome = think(model, Budget(dollars=1e-6))
    assert isinstance(outcome.error, BudgetTooSmall)


def test_dollars_without_a_price_are_refused() -> None:
    outcome = think(of(babbler(RAMBLE)), Budget(tokens=100, dollars=0.01))
    assert isinstance(outcome.error, InputError)
    assert "0.01 dollars needs the model's price" in str(outcome.error)


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    engine = babbler(RAMBLE, context=40)
    outcome = think(of(engine), 100)
    assert isinstance(outcome.error, ContextOverflow)
    assert "the model's context 40" in str(outcome.error)
    assert engine.calls == 0


def test_the_context_bounds_what_the_budget_allows() -> None:
    engine = babbler(RAMBLE, context=200)
    outcome = think(of(engine), 1000)
    check(engine, outcome, 1000)
    assert len(outcome.sample.prompt_ids) + len(outcome.sample.ids) <= 200
    assert outcome.sample.answer


def test_an_unknown_context_bounds_nothing() -> None:
    engine = Watched(babbler(RAMBLE, context=100_000))
    engine.info = replace(engine.engine.info, context=0)
    question = ask("x" * (UNKNOWN_CONTEXT + 1000))
    outcome = think(of(engine), 100, question=question)
    assert outcome.error is None
    assert outcome.total.tokens <= 100


# ---------------------------------------------------------------- engines that misbehave


class Oversending(Watched):
    """Gives a chunk of many tokens, whatever the cap is."""

    async def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> Any:
        self.asked.append((tuple(prefix), n, params))
        stream = self.engine.sample(prefix, n, replace(params, max_tokens=params.max_tokens + 7))
        try:
            async for chunk in stream:
                yield chunk
        finally:
            await stream.aclose()


@pytest.mark.parametrize("text", ["ab cd ef gh " * 30, "漢字" * 100, "aé漢🤔" * 60])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("burst", [1, 4, 64])
def test_tokens_beyond_the_cap_are_left_out_and_counted(text: str, n: int, burst: int) -> None:
    engine = babbler(text, burst=burst)
    outcome = think(of(Oversending(engine)), 200 * n, n)
    assert outcome.error is None
    assert outcome.total.generated == engine.generated
    assert all(len(sample.ids) <= 200 for sample, _ in outcome.finished)
    check_told(engine, outcome, n)


@pytest.mark.parametrize("finish", ["length", "error", "cancelled"])
def test_an_engine_that_gives_nothing_is_not_asked_for_ever(finish: Any) -> None:
    class Empty(Watched):
        async def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> Any:
            self.asked.append((tuple(prefix), n, params))
            yield Chunk(0, finish=finish)

    engine = Empty(babbler("x"))
    outcome = think(of(engine), 100)
    assert isinstance(outcome.error, EngineDisconnected)
    assert "without a single token" in str(outcome.error)
    assert len(engine.asked) == 3
    assert outcome.sample.finish == "error"


def test_an_engine_that_ends_every_turn_at_once_is_not_asked_for_ever() -> None:
    class Mute(Watched):
        async def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> Any:
            self.asked.append((tuple(prefix), n, params))
            yield Chunk(0, finish="stop")

    engine = Mute(babbler("x"))
    outcome = think(of(engine), 100)
    assert isinstance(outcome.error, EngineDisconnected)
    assert len(engine.asked) < 10


def test_an_engine_that_never_says_length_is_left_at_its_cap() -> None:
    engine = babbler(RAMBLE)
    forgetful = Watched(engine, then=lambda chunk: replace(chunk, finish=None) if chunk.finish == "length" else chunk)
    outcome = think(of(forgetful), 100)
    check(engine, outcome, 100)
    assert outcome.error is None


def test_garbage_is_not_asked_for_twice() -> None:
    engine = babbler(RAMBLE, faults=[Fault("garbage", at=5)])
    outcome = think(of(engine), 100)
    check(engine, outcome, 100)
    assert isinstance(outcome.error, GarbledReply)
    assert (engine.calls, outcome.sample.finish) == (1, "error")
    assert outcome.sample.text, "what had come is told"


@pytest.mark.parametrize("n", [1, 2, 3])
def test_tokens_on_their_way_when_the_user_stops_are_counted(n: int) -> None:
    stop = asyncio.Event()
    engine = Wasteful(answering(thinks(PONDER, RAMBLE, RAMBLE)), 9)

    def stopping(chunk: Chunk) -> Chunk:
        if engine.generated > 10 * n:
            stop.set()
        return chunk

    engine.then = stopping
    outcome = think(replace(of(engine), stop=stop), 200 * n, n)
    assert stop.is_set()
    assert outcome.error is None
    assert outcome.total.generated == engine.generated + 9
    assert all(cost.tokens <= 200 for _, cost in outcome.finished)


def test_when_one_sample_fails_what_the_others_cost_is_told() -> None:
    def source(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Iterator[int | Fault]:
        closed = TOKENIZER.decode(turn_of(prefix)).decode().rstrip().endswith("</think>")
        if closed and not failed:
            failed.append(True)
            yield from b"ab"
            yield Fault("delay", seconds=0.05)
            yield Fault("garbage")
        for token in RAMBLE.encode():
            if closed:
                yield Fault("delay", seconds=0.01)
            yield token

    failed: list[bool] = []
    engine = Wasteful(ScriptedEngine(source), 9)
    outcome = think(of(engine), 300, 2)
    assert isinstance(outcome.error, GarbledReply)
    check_told(engine.engine, outcome, 2)
    assert engine.wasted == 9
    assert outcome.total.generated == engine.generated + 9
    assert all(sample.finish == "error" for sample, _ in outcome.finished)


def test_each_request_of_each_sample_draws_anew_and_repeatably() -> None:
    def seeds(seed: int | None) -> list[int | None]:
        engine = Watched(answering(thinks(PONDER, RAMBLE, "7")))
        think(replace(of(engine), params=SamplingParams(max_tokens=1, seed=seed)), 200, 2)
        return sorted((params.seed for _, _, params in engine.asked), key=lambda each: each or 0)

    assert seeds(1) == seeds(1)
    assert len(set(seeds(1))) == len(seeds(1)) > 4
    assert not set(seeds(1)) & set(seeds(2))
    assert set(seeds(None)) == {None}


def test_the_least_budget_of_all_still_answers() -> None:
    engine = babbler("7")
    outcome = think(short(engine, THINK_TAGS), 4)
    check(engine, outcome, 4)
    assert outcome.sample.answer == "7"


def test_tokens_of_a_sample_that_has_its_share_are_counted_and_not_kept() -> None:
    class Uneven(Watched):
        async def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> Any:
            if n == 1:
                async for chunk in super().sample(prefix, n, params):
                    yield chunk
                return
            most = params.max_tokens
            yield Chunk(0, (65,) * most, "A" * most)
            yield Chunk(0, (66,) * 5, "B" * 5, lost=2)
            yield Chunk(1, (67,) * most, "C" * most, finish="length")

    outcome = think(of(Uneven(babbler("x" * 500))), 200, 2)
    (first, cost), (second, _) = sorted(outcome.finished, key=lambda each: each[0].index)
    assert (set(first.thinking[:20]), set(second.thinking[:20])) == ({"A"}, {"C"})
    assert "B" not in first.text
    assert cost.cancelled == 7


def test_a_sample_that_waits_throws_away_what_its_request_still_gives() -> None:
    """Two samples share a request: the first closes too early, and what it says after that is not wanted."""

    def source(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Iterator[int]:
        turn = TOKENIZER.decode(turn_of(prefix))
        yield from (b"7" if turn.rstrip().endswith(b"</think>") else b"Hm.</think>no, no" if index == 0 else b"x" * 99)
        yield from [EOS] if b"Wait" in turn or b"</think>" in turn else []

    engine = ScriptedEngine(source)
    outcome = think(of(engine), Budget(tokens=600, min_thinking=10), 2)
    check(engine, outcome, 600, 2)
    first, cost = next(each for each in outcome.finished if each[0].index == 0)
    assert first.thinking.startswith("Hm.\nWait")
    assert "no, no" not in first.text.partition("Wait")[0]
    assert cost.cancelled >= len("</think>no, no")


def test_a_call_of_a_tool_is_an_answer() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call>'
    engine = answering(thinks(PONDER, f"Hm.</think>{call}", ""))
    question = replace(ask("What is 3 + 4?"), tools=({"name": "add"},))
    outcome = think(of(engine), 300, question=question)
    check(engine, outcome, 300)
    assert outcome.error is None
    (made,) = [event.call for event in outcome.events if isinstance(event, ToolCalled)]
    assert (made.name, made.arguments) == ("add", '{"a": 3}')
    assert (outcome.sample.tool_calls, outcome.sample.answer, outcome.sample.finish) == ((made,), "", "stop")


# ---------------------------------------------------------------- over real connections

KINDS = [servers.FakeVllm, servers.FakeLlamaServer, servers.FakeSGLang]


def over(server: servers.FakeServer, bounds: Budget, n: int = 1, stop_after: int | None = None) -> Outcome:
    """n samples of a server on the loopback; the user says stop after so many events."""

    async def run() -> AsyncIterator[Event]:
        async with server:
            engine = await open_remote(f"openai:{server.url}", retries=Retries(attempts=1))
            stop, seen = asyncio.Event(), 0
            try:
                async for event in think_within(replace(of(engine), stop=stop), ask("What is 3 + 4?"), bounds, n):
                    yield event
                    seen += 1
                    if seen == stop_after:
                        stop.set()
            finally:
                await engine.close()

    return outcome_of(run())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("said", ["so it goes on and on " * 20, "漢字🤔é" * 30])
def test_the_budget_holds_over_servers(kind: type[servers.FakeServer], n: int, said: str) -> None:
    server = kind((said,))
    outcome = over(server, Budget(tokens=150 * n), n)
    assert outcome.error is None
    assert outcome.total.tokens <= 150 * n
    for sample, _ in outcome.finished:
        assert said.startswith(sample.thinking[:5])
        assert sample.answer
        assert servers.decode(sample.ids).replace("\ufffd", "") == sample.text
    for request in server.asked[1:]:
        prefix = request.body.get("prompt", request.body.get("input_ids"))
        assert any(tuple(prefix) == (*s.prompt_ids, *s.ids)[: len(prefix)] for s, _ in outcome.finished)


@pytest.mark.parametrize("kind", KINDS)
def test_stop_ends_a_servers_work(kind: type[servers.FakeServer]) -> None:
    server = kind(("so it goes on and on " * 20,), faults=[faults.slowly(0.01)])
    outcome = over(server, Budget(tokens=300), stop_after=5)
    assert outcome.error is None
    assert outcome.sample.finish == "cancelled"
    assert outcome.sample.thinking.startswith("so")
    assert 5 <= outcome.total.generated < 100
    assert server.asked[0].left.is_set()


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_goes_away_is_asked_for_the_rest(kind: type[servers.FakeServer]) -> None:
    server = kind(("so it goes on and on " * 20,), faults=[faults.cut_after(20)])
    outcome = over(server, Budget(tokens=150))
    assert outcome.error is None
    assert outcome.sample.answer
    assert outcome.total.tokens <= 150
    assert len(outcome.sample.thinking) > 20

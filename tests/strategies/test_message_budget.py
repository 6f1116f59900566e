"""The budget where a server deals in messages: never over its tokens, always an answer or a typed failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import faults
import pytest
import servers
from drive import AT_MOST, QUESTION, Outcome, outcome_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.chat.formats import PONDER
from ponder.chat.model import Model, Price, model_of
from ponder.engine.remote import open_remote
from ponder.engine.scripted import EOS, Fault, ScriptedEngine
from ponder.engine.transport import Retries
from ponder.errors import (
    BudgetTooSmall,
    EngineDisconnected,
    EngineError,
    EngineTimeout,
    GarbledReply,
    InputError,
    NoAnswer,
    PonderError,
    Unsupported,
)
from ponder.protocols import Capabilities, ChatChunk, SamplingParams
from ponder.strategies.chain_of_thought import chain_of_thought
from ponder.strategies.message_budget import HURRY, reply_within
from ponder.types import AnswerDelta, Budget, Event, Message, Sample, ThinkingDelta

QUICK = Retries(attempts=2, base=0.01, cap=0.02, total=1.0)
HURRIED = HURRY.encode()


def talk(model: Model, budget: Budget | int, think: bool = True) -> Outcome:
    bounds = Budget(tokens=budget) if isinstance(budget, int) else budget
    return outcome_of(reply_within(model, QUESTION, bounds, think))


def talker(text: str, hurried: str = "4", **how: Any) -> ScriptedEngine:
    """A server that says `text`, and `hurried` where it is told to stop thinking."""
    engine = ScriptedEngine(lambda *asked: (), chat_only=True, **how)

    def source(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Iterator[int]:
        said = hurried if HURRIED in engine.tokenizer.decode(prefix) else text
        yield from said.encode()
        yield EOS

    engine.reply = source
    return engine


def check(outcome: Outcome) -> Sample:
    """What holds of every reply."""
    ((sample, cost),) = outcome.finished
    assert outcome.said(ThinkingDelta, 0).strip() == sample.thinking
    assert outcome.said(AnswerDelta, 0).strip() == sample.answer
    assert "".join(sample.text[span.start : span.end] for span in sample.spans) == sample.text
    assert "<think>" not in sample.answer
    assert "</think>" not in sample.answer
    assert not sample.exact
    assert (sample.ids, sample.prompt_ids) == ((), ())
    assert sample.finish != "error" or isinstance(outcome.error, EngineError)
    assert cost.calls >= 1
    return sample


# ---------------------------------------------------------------- over the scripted engine


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(["<think>", "</think>", "Wait. ", "é漢🤔", "7", " ", "\n", "<"]), max_size=40),
    hurried=st.sampled_from(["4", "", "  ", "<think>x</think>4"]),
    tokens=st.integers(2, 300),
    wanted=st.booleans(),
    calls=st.sampled_from([None, None, 1, 2]),
    cap=st.sampled_from([None, None, 0, 10]),
    burst=st.sampled_from([1, 3]),
)
def test_never_over_budget_and_every_token_counted(
    pieces: list[str], hurried: str, tokens: int, wanted: bool, calls: int | None, cap: int | None, burst: int
) -> None:
    engine = talker("".join(pieces), hurried, burst=burst)
    outcome = talk(model_of(engine), Budget(tokens=tokens, calls=calls, thinking=cap), wanted)
    sample = check(outcome)
    assert engine.generated <= tokens
    assert outcome.total.generated == engine.generated
    assert outcome.total.tokens <= tokens
    assert engine.open_streams == 0
    assert outcome.total.calls == engine.calls <= (calls or 2)
    if outcome.error is None:
        assert sample.answer
    else:
        assert isinstance(outcome.error, NoAnswer)
        assert not sample.answer


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(["delay", "disconnect", "garbage", "wrong_counts", "partial", "rate_limit"]),
    at=st.integers(0, 60),
    count=st.integers(0, 9),
    times=st.sampled_from([1, None]),
    tokens=st.integers(16, 120),
)
def test_whatever_goes_wrong_there_is_an_answer_or_an_error_that_says_what(
    kind: Any, at: int, count: int, times: int | None, tokens: int
) -> None:
    fault = Fault(kind, at=at, seconds=0.001, tokens=count, prompt=count, times=times)
    engine = talker("<think>" + "Hm. " * 20 + "</think>It is 4.", faults=[fault])
    outcome = talk(model_of(engine), tokens)
    sample = check(outcome)
    assert engine.open_streams == 0
    assert engine.generated <= tokens
    if outcome.error is None:
        assert sample.answer
    else:
        assert isinstance(outcome.error, EngineError)
        assert sample.finish == "error" or isinstance(outcome.error, NoAnswer)


def test_capabilities_say_that_the_guarantee_is_weaker() -> None:
    capabilities = talker("4").capabilities
    assert not capabilities.tokens
    assert capabilities.chat


def test_thinking_and_answer_are_told_apart_and_counted() -> None:
    engine = talker("<think>3 + 4</think>It is 7.")
    outcome = talk(model_of(engine), 200)
    sample = check(outcome)
    assert (sample.thinking, sample.answer, sample.finish) == ("3 + 4", "It is 7.", "stop")
    assert (outcome.total.thinking, outcome.total.calls) == (5, 1)
    assert outcome.total.generated == engine.generated


def test_thinking_without_end_is_followed_by_a_request_for_the_answer() -> None:
    engine = talker("<think>" + "Hm. " * 100, "4")
    asked = recording(engine)
    outcome = talk(model_of(engine), Budget(tokens=100, answer=30))
    sample = check(outcome)
    assert (sample.answer, sample.finish, outcome.total.calls) == ("4", "stop", 2)
    (first, most, thinking), (second, rest, thinking_again) = asked
    assert (most, thinking, thinking_again) == (70, True, False)
    assert rest == 100 - 70
    assert second[: len(first)] == first
    assert second[-2].role == "assistant"
    assert second[-2].text == sample.thinking, "the model sees what it thought"
    assert (second[-1].role, second[-1].text) == ("user", HURRY)
    assert outcome.total.generated == engine.generated == 70 + 2


def test_a_server_that_counts_more_than_it_shows_is_believed_in_both_requests() -> None:
    engine = talker("<think>" + "Hm. " * 100, "4", faults=[Fault("wrong_counts", tokens=5, times=None)])
    outcome = talk(model_of(engine), Budget(tokens=100, answer=40))
    assert outcome.total.generated == engine.generated + 10


def test_an_empty_reply_is_asked_for_again_and_then_given_up() -> None:
    engine = talker("", "")
    outcome = talk(model_of(engine), 100)
    check(outcome)
    assert isinstance(outcome.error, NoAnswer)
    assert (outcome.total.calls, engine.calls) == (2, 2)


def test_one_call_does_not_think() -> None:
    asked = recording(engine := talker("It is 4."))
    outcome = talk(model_of(engine), Budget(tokens=100, calls=1))
    assert check(outcome).answer == "It is 4."
    assert [(most, thinking) for _, most, thinking in asked] == [(100, False)]


def test_a_cap_of_no_thinking_does_not_think() -> None:
    asked = recording(engine := talker("It is 4."))
    talk(model_of(engine), Budget(tokens=100, thinking=0))
    assert [(most, thinking) for _, most, thinking in asked] == [(100, False)]


def test_a_cap_on_thinking_bounds_the_first_request() -> None:
    asked = recording(engine := talker("It is 4."))
    talk(model_of(engine), Budget(tokens=1000, thinking=50, answer=20))
    talk(model_of(engine), Budget(tokens=20_000))
    assert [most for _, most, _ in asked] == [70, 20_000 - 64]


def test_thinking_is_asked_for_in_words_where_nothing_is_known_of_the_model() -> None:
    engine = talker("It is 4.")
    asked = recording(engine)
    talk(model_of(engine), 100)
    talk(replace(model_of(engine), format=PONDER), 100)
    talk(model_of(engine), 100, think=False)
    assert ["step by step" in messages[-1].text for messages, _, _ in asked] == [True, False, False]


def test_a_budget_without_room_for_an_answer_is_refused() -> None:
    engine = talker("4")
    outcome = talk(model_of(engine), 1)
    assert isinstance(outcome.error, BudgetTooSmall)
    assert str(outcome.error) == "a budget of 1 tokens leaves no room for an answer. give at least 2."
    assert engine.calls == 0
    assert talk(model_of(engine), 1, think=False).sample.answer == "4"


def test_silence_without_end_is_named_with_the_seconds() -> None:
    engine = talker("4", faults=[Fault("hang", times=None)])
    outcome = talk(model_of(engine), Budget(tokens=100, seconds=0.2))
    check(outcome)
    assert isinstance(outcome.error, EngineTimeout)
    assert "within 0.2 seconds" in str(outcome.error)
    assert engine.open_streams == 0
    assert outcome.total.seconds < 2


def test_thinking_that_takes_too_long_is_broken_off_in_time_for_the_answer() -> None:
    engine = talker("<think>" + "Hm. " * 500, "4", faults=[Fault("delay", seconds=0.01, every=True)])
    outcome = talk(model_of(engine), Budget(tokens=4000, seconds=0.4))
    sample = check(outcome)
    assert outcome.error is None
    assert (sample.answer, outcome.total.calls) == ("4", 2)
    assert sample.thinking.startswith("Hm. Hm.")
    assert outcome.total.seconds < 2


def test_an_answer_that_takes_too_long_is_left_as_it_is() -> None:
    engine = talker("<think>Hm.</think>Four it is, and", faults=[Fault("hang", at=22)])
    outcome = talk(model_of(engine), Budget(tokens=400, seconds=0.2))
    sample = check(outcome)
    assert outcome.error is None
    assert (sample.answer, sample.finish, outcome.total.calls) == ("Four", "cancelled", 1)


@pytest.mark.parametrize("after", [0, 5, 12, 24])
def test_stop_ends_it_softly(after: int) -> None:
    stop = asyncio.Event()
    engine = talker("<think>Hm, hm.</think>Four it is, and more")
    whole, count = engine.reply, 0

    def counted(*asked: Any) -> Iterator[Any]:
        nonlocal count
        for token in whole(*asked):
            count += 1
            if count > after:
                stop.set()
            yield token

    engine.reply = counted
    outcome = talk(replace(model_of(engine), stop=stop), 100)
    sample = check(outcome)
    assert outcome.error is None
    assert sample.finish == "cancelled"
    assert (outcome.total.calls, engine.open_streams) == (1, 0)
    assert after < engine.generated <= after + len("</think>") + 1, "it went on"
    assert "Hm, hm.".startswith(sample.thinking)
    assert "Four it is, and more".startswith(sample.answer)


def test_dollars_bound_the_reply() -> None:
    price = Price(prompt=1.0, cached=0.1, output=10.0)
    engine = talker("<think>" + "Hm. " * 500, "4" * 500)
    dollars = 3000e-6
    outcome = talk(replace(model_of(engine), price=price), Budget(dollars=dollars))
    check(outcome)
    assert outcome.total.calls == 2
    assert outcome.total.dollars is not None
    assert 0 < outcome.total.dollars <= dollars

    outcome = talk(replace(model_of(engine), price=price), Budget(dollars=1e-6))
    assert isinstance(outcome.error, BudgetTooSmall)
    outcome = talk(model_of(engine), Budget(dollars=1.0))
    assert isinstance(outcome.error, InputError)


class Told:
    """An engine that gives these chunks; `waste` more were on their way when it was closed."""

    capabilities = Capabilities(tokens=False, chat=True)
    info = talker("").info

    def __init__(self, chunks: Sequence[ChatChunk], waste: int = 0) -> None:
        self.chunks, self.waste, self.undelivered = list(chunks), waste, 0

    def chat(self, *asked: Any) -> Told:
        return self

    def __aiter__(self) -> Told:
        return self

    async def __anext__(self) -> ChatChunk:
        return self.chunks.pop(0)

    async def aclose(self) -> None:
        self.undelivered = self.waste


def test_an_engine_that_keeps_what_was_not_read_is_paid_for_it() -> None:
    outcome = talk(model_of(Told([ChatChunk(0, answer="4", finish="stop")], waste=3)), 100)  # type: ignore[arg-type]
    assert (outcome.total.answer, outcome.total.cancelled) == (1, 3)


def test_an_engine_that_counts_less_than_it_showed_is_not_believed() -> None:
    shown = [ChatChunk(0, thinking="a"), ChatChunk(0, thinking="b"), ChatChunk(0, answer="c"), ChatChunk(0, answer="d")]
    for stated, thinking, believed in ((1, 9, (2, 2)), (10, 3, (3, 7)), (10, 99, (8, 2)), (10, None, (2, 8))):
        end = ChatChunk(0, finish="stop", completion_tokens=stated, thinking_tokens=thinking)
        cost = talk(model_of(Told([*shown, end])), 100).total  # type: ignore[arg-type]
        assert (cost.thinking, cost.answer) == believed


def test_the_strategy_takes_this_way_where_there_are_no_tokens() -> None:
    engine = talker("<think>Hm.</think>4")
    outcome = outcome_of(chain_of_thought()(QUESTION, model_of(engine), Budget(tokens=100)))
    assert check(outcome).answer == "4"
    assert outcome.events[-1].type == "best_answer"


def recording(engine: Any) -> list[tuple[Sequence[Message], int, bool | None]]:
    """What the engine is asked from now on: messages, cap, and whether to think."""
    asked: list[tuple[Sequence[Message], int, bool | None]] = []
    chat = engine.chat

    def recorded(messages: Sequence[Message], n: int, params: SamplingParams, think: bool | None = None) -> Any:
        asked.append((tuple(messages), params.max_tokens, think))
        return chat(messages, n, params, think)

    engine.chat = recorded
    return asked


# ---------------------------------------------------------------- over a chat server


def served(server: servers.FakeServer, budget: Budget | int, think: bool = True, **how: Any) -> Outcome:
    """A reply of a real server on the loopback."""
    bounds = Budget(tokens=budget) if isinstance(budget, int) else budget

    async def run() -> AsyncIterator[Event]:
        async with server:
            engine = await open_remote(f"openai:{server.url}", retries=QUICK, **how)
            try:
                async for event in reply_within(model_of(engine), QUESTION, bounds, think):
                    yield event
            finally:
                await engine.close()

    return outcome_of(run())


class Hurrying(servers.FakeServer):
    """Answers only when it is told to stop thinking."""

    def chat(self, body: Any) -> list[faults.Step]:
        hurried = body["messages"][-1]["content"] == HURRY
        self.replies = ("It is 4.",) if hurried else ("",)
        self.thinking = "" if hurried else "one two three four five six seven eight nine"
        return super().chat(body)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thinking_comes_in_its_own_field(name: str) -> None:
    server = servers.FakeServer(("It is 4.",), thinking="two and two", thinking_field=name)
    outcome = served(server, 100)
    sample = check(outcome)
    assert (sample.thinking, sample.answer, sample.finish) == ("two and two", "It is 4.", "stop")
    cost = outcome.total
    assert (cost.thinking, cost.answer, cost.prompt_computed, cost.prompt_cached, cost.calls) == (3, 3, 4, 3, 1)


def test_thinking_comes_in_tags_within_the_content() -> None:
    outcome = served(servers.FakeServer(("<think> two and two </think> It is 4.",)), 100)
    sample = check(outcome)
    assert (sample.thinking, sample.answer) == ("two and two", "It is 4.")
    assert outcome.total.generated == 8
    assert outcome.total.thinking >= 4


def test_a_server_that_only_thinks_is_asked_for_its_answer() -> None:
    server = Hurrying()
    outcome = served(server, Budget(tokens=12, answer=5))
    sample = check(outcome)
    assert (sample.thinking, sample.answer) == ("one two three four five six seven", "It is 4.")
    assert (outcome.total.calls, outcome.total.thinking, outcome.total.answer) == (2, 7, 3)
    caps = [request.body["max_completion_tokens"] for request in server.asked]
    assert caps == [7, 5]
    assert outcome.total.prompt == 14, "two requests, each with a prompt"


def test_a_server_that_gives_nothing_is_no_answer() -> None:
    outcome = served(servers.FakeServer(("",), thinking="hm"), 50)
    check(outcome)
    assert isinstance(outcome.error, NoAnswer)
    assert outcome.total.calls == 2


def test_counts_of_the_server_count_but_not_less_than_was_seen() -> None:
    def stated(count: int) -> faults.Fault:
        def change(event: dict[str, Any]) -> None:
            if event["usage"]:
                event["usage"]["completion_tokens"] = count

        return faults.edit(change)

    for count, believed in ((1, 4), (40, 40)):
        outcome = served(servers.FakeServer(("a b c d",), faults=[stated(count)]), 100)
        assert outcome.total.generated == believed


def test_a_server_that_goes_beyond_its_cap_is_cut() -> None:
    server = servers.FakeServer(("a b c d e f g h",))
    honest = server.chat
    server.chat = lambda body: honest({**body, "max_completion_tokens": 99})  # type: ignore[method-assign]
    outcome = served(server, Budget(tokens=5), think=False)
    assert check(outcome).answer == "a b c d e"


def test_a_server_that_hangs_is_given_up_after_the_seconds() -> None:
    server = servers.FakeServer(faults=[faults.hang(), faults.hang()])
    outcome = served(server, Budget(tokens=50, seconds=0.4))
    check(outcome)
    assert isinstance(outcome.error, EngineTimeout)
    assert server.asked[0].left.is_set()
    assert outcome.total.seconds < 3


def test_what_was_held_back_when_the_server_went_away_is_told() -> None:
    outcome = served(servers.FakeServer(("It is <4, I think",), faults=[faults.cut_after(4)]), 50)
    assert check(outcome).answer == "It is <4,"
    outcome = served(servers.FakeServer(("It is < 4",), faults=[faults.cut_after(4)]), 50)
    assert check(outcome).answer == "It is <"


def test_a_server_that_goes_away_leaves_what_it_had_said() -> None:
    outcome = served(servers.FakeServer(("It is 4, I think",), faults=[faults.cut_after(3)]), 50)
    sample = check(outcome)
    assert isinstance(outcome.error, EngineDisconnected)
    assert (sample.answer, sample.finish) == ("It is", "error")
    assert outcome.total.answer == 2, "what it had said costs"


def test_garbage_is_named() -> None:
    outcome = served(servers.FakeServer(faults=[faults.put(1, b"data: {nonsense\n\n")]), 50)
    assert isinstance(outcome.error, GarbledReply)


def test_a_stream_that_ends_too_early_is_no_finished_reply() -> None:
    outcome = served(servers.FakeServer(("It is 4, I think",), faults=[faults.end_after(3)]), 50)
    assert isinstance(outcome.error, EngineDisconnected)
    assert check(outcome).finish == "error"


def test_a_client_that_leaves_closes_its_connection() -> None:
    async def run() -> None:
        server = servers.FakeServer(("a b c d",), faults=[faults.hang(3)])
        async with server:
            engine = await open_remote(f"openai:{server.url}", retries=QUICK)
            events = reply_within(model_of(engine), QUESTION, Budget(tokens=50))
            await anext(events)
            await events.aclose()
            await asyncio.wait_for(server.asked[0].left.wait(), 5)
            await engine.close()

    asyncio.run(asyncio.wait_for(run(), AT_MOST))


def test_what_a_chat_server_cannot_do_is_an_error() -> None:
    async def run() -> AsyncIterator[Event]:
        async with servers.FakeServer() as server:
            engine = await open_remote(f"openai:{server.url}", retries=QUICK)
            model = replace(model_of(engine), params=SamplingParams(max_tokens=1, top_k=5))
            try:
                async for event in reply_within(model, QUESTION, Budget(tokens=50)):
                    yield event
            finally:
                await engine.close()

    outcome = outcome_of(run())
    assert isinstance(outcome.error, Unsupported)
    assert isinstance(outcome.error, PonderError)

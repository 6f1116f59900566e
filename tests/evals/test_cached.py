"""The cached engine: what is replayed is what was delivered, and only what is missing is asked for."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.chat.model import model_of
from ponder.engine.scripted import EOS, HEADER, TOKENIZER, Fault, Reply, ScriptedEngine, open_scripted, says
from ponder.errors import EngineDisconnected, EngineError, GarbledReply, StoreError
from ponder.evals.cached import Account, CachedEngine
from ponder.evals.identity import fingerprint, identity_of
from ponder.ops import store as store_module
from ponder.ops.results import Background
from ponder.protocols import Capabilities, ChatChunk, Chunk, LogProbs, SamplingParams
from ponder.solving import asolve
from ponder.strategies.naming import strategy_named
from ponder.types import Budget, SampleFinished, ToolCall, Trace, user

PREFIX = TOKENIZER.encode("<|im_start|>user\nhi<|im_end|>\n" + HEADER)
TEXTS = ("Five and two.", "It is seven, I think.", "7")
PARAMS = SamplingParams(200, seed=5)


class Counting(ScriptedEngine):
    """Notes which samples are begun, as (first, n) of each request."""

    def __init__(self, reply: Reply, **options: Any) -> None:
        self.asked: list[tuple[int, int]] = []
        self.lacks: dict[str, bool] = dict.fromkeys(options.pop("lacks", ()), False)
        super().__init__(reply, **options)

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, **self.lacks)

    def sample(self, prefix: Any, n: int, params: SamplingParams) -> Any:
        self.asked.append((params.first, n))
        return super().sample(prefix, n, params)


class Ahead:
    """A stream of an engine that had computed `ahead` tokens more when it was closed."""

    def __init__(self, stream: Any, ahead: int) -> None:
        self._stream, self._ahead, self._over, self.undelivered = stream, ahead, False, 0

    def __aiter__(self) -> Ahead:
        return self

    async def __anext__(self) -> Chunk:
        try:
            return await anext(self._stream)
        except StopAsyncIteration:
            self._over = True
            raise

    async def aclose(self) -> None:
        self.undelivered = 0 if self._over else self._ahead
        await self._stream.aclose()


class Eager(Counting):
    def sample(self, prefix: Any, n: int, params: SamplingParams) -> Any:
        return Ahead(super().sample(prefix, n, params), ahead=3)


def in_database(work: Callable[[Background], Awaitable[None]], path: Path | None = None) -> None:
    """Runs `work` with a database, a new one unless it says which."""

    async def run(place: Path) -> None:
        async with Background(place) as cache:
            await work(cache)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(asyncio.wait_for(run(path or Path(folder) / "ponder.db"), 30))


async def all_of(stream: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in stream]


async def read(stream: Any, most: int) -> list[Any]:
    """So many chunks, and then the reader leaves."""
    chunks = []
    async with aclosing(stream):
        async for chunk in stream:
            chunks.append(chunk)
            if len(chunks) == most:
                break
    return chunks


def texts(chunks: list[Chunk]) -> dict[int, str]:
    found: dict[int, str] = {}
    for chunk in chunks:
        found[chunk.index] = found.get(chunk.index, "") + chunk.text
    return found


def alone(chunks: list[Chunk], index: int) -> list[Chunk]:
    return [replace(c, prompt_computed=0, prompt_cached=0) for c in chunks if c.index == index]


# ---------------------------------------------------------------- replays


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.text(max_size=12), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 30),
    st.booleans(),
)
def test_a_repeat_is_replayed_exactly_and_costs_nothing(
    said: list[str], n: int, burst: int, most: int, probable: bool
) -> None:
    async def work(cache: Background) -> None:
        logprob = (lambda prefix, token: -len(prefix) / 7 - token) if probable else None
        engine = Counting(says(*said), burst=burst, logprob=logprob)
        params = SamplingParams(most, seed=1)
        first = await all_of(CachedEngine(engine, cache).sample(PREFIX, n, params))
        made, account = engine.generated, Account()
        assert await all_of(CachedEngine(engine, cache, account=account).sample(PREFIX, n, params)) == first
        assert (engine.asked, engine.generated) == ([(0, n)], made)
        assert account.counts == dict.fromkeys(account.counts, 0) | {"cached_samples": n, "cached_tokens": made}

    in_database(work)


def test_what_the_reader_gets_is_what_the_engine_gives() -> None:
    async def work(cache: Background) -> None:
        bare = await all_of(ScriptedEngine(says(*TEXTS)).sample(PREFIX, 3, PARAMS))
        account = Account()
        cached = CachedEngine(ScriptedEngine(says(*TEXTS)), cache, account=account)
        assert await all_of(cached.sample(PREFIX, 3, PARAMS)) == bare
        assert account.samples == 3
        assert account.tokens == sum(len(chunk.ids) for chunk in bare)

    in_database(work)


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 0.71},
        {"top_p": 0.9},
        {"top_k": 3},
        {"min_p": 0.1},
        {"seed": 6},
        {"max_tokens": 201},
        {"ignore_eos": True},
        {"until": "."},
        {"adapters": {}},
        {"first": 3},
        "prefix",
        "name",
        "context",
        "uri",
        "adapters",
    ],
    ids=str,
)
def test_whatever_decides_a_sample_is_in_its_key(other: Any) -> None:
    async def work(cache: Background) -> None:
        engine = Counting(says(*TEXTS))
        engine._info = replace(engine.info, metadata={"ponder.adapters": {"a": 1.0}})
        await all_of(CachedEngine(engine, cache).sample(PREFIX, 2, PARAMS))
        prefix, params = PREFIX, PARAMS
        if isinstance(other, dict):
            params = replace(PARAMS, **other)
        elif other == "prefix":
            prefix = [*PREFIX, 65]
        elif other == "uri":
            engine._uri = "scripted:another"
        else:
            changed: Any = {
                "name": {"name": "x"},
                "context": {"context": 4095},
                "adapters": {"metadata": {"ponder.adapters": {"a": 0.5}}},
            }
            engine._info = replace(engine.info, **changed[other])
        await all_of(CachedEngine(engine, cache).sample(prefix, 2, params))
        assert len(engine.asked) == 2

    in_database(work)


def test_adapters_that_are_on_by_default_and_named_are_the_same() -> None:
    async def work(cache: Background) -> None:
        engine = Counting(says(*TEXTS))
        engine._info = replace(engine.info, metadata={"ponder.adapters": {"a": 1.0}})
        await all_of(CachedEngine(engine, cache).sample(PREFIX, 2, PARAMS))
        await all_of(CachedEngine(engine, cache).sample(PREFIX, 2, replace(PARAMS, adapters={"a": 1.0})))
        assert len(engine.asked) == 1

    in_database(work)


def test_without_a_seed_nothing_is_kept() -> None:
    async def work(cache: Background) -> None:
        engine = Counting(says(*TEXTS))
        for _ in range(2):
            await all_of(CachedEngine(engine, cache).sample(PREFIX, 2, SamplingParams(200)))
        assert engine.asked == [(0, 2), (0, 2)]

    in_database(work)


def test_without_a_cache_everything_is_counted() -> None:
    engine, account = ScriptedEngine(says(*TEXTS)), Account()
    chunks = asyncio.run(all_of(CachedEngine(engine, None, account=account).sample(PREFIX, 2, PARAMS)))
    assert texts(chunks) == {0: TEXTS[0], 1: TEXTS[1]}
    assert (account.samples, account.tokens) == (2, engine.generated)


def test_it_is_kept_in_the_file_and_not_in_the_process(tmp_path: Path) -> None:
    async def work(cache: Background) -> None:
        chunks = await all_of(CachedEngine(engine, cache).sample(PREFIX, 2, PARAMS))
        seen.append([replace(chunk) for chunk in chunks])

    engine, seen = Counting(says(*TEXTS)), list[list[Chunk]]()
    in_database(work, tmp_path / "ponder.db")
    in_database(work, tmp_path / "ponder.db")
    assert seen[0] == seen[1]
    assert len(engine.asked) == 1


# ---------------------------------------------------------------- what is missing


def forget(path: Path, *keys: bytes) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for key in keys:
        assert connection.execute("DELETE FROM samples WHERE key = ?", (key,)).rowcount == 1
    connection.close()


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, 5)), st.booleans(), st.booleans())
def test_only_what_is_missing_is_asked_for(lost: set[int], numbers: bool, first: bool) -> None:
    async def work(cache: Background) -> None:
        engine = Counting(says(*TEXTS, "four", "five", "six"), lacks=() if numbers else ("first",))
        whole = await all_of(CachedEngine(engine, cache).sample(PREFIX, 6, params))
        key = CachedEngine(engine, cache)._numbered("sample", PREFIX, params)
        forget(cache._path, *map(key, lost))
        engine.asked.clear()
        account = Account()
        again = await all_of(CachedEngine(engine, cache, account=account).sample(PREFIX, 6, params))
        for index in range(6):
            assert alone(again, index) == alone(whole, index)
        if numbers:
            asked = [number - params.first for start, n in engine.asked for number in range(start, start + n)]
            assert asked == sorted(lost)
            assert all(
                start + n < after for (start, n), (after, _) in zip(engine.asked, engine.asked[1:], strict=False)
            )
        else:
            assert engine.asked == ([(0, max(lost) + 1)] if lost else [])
        assert account.cached_samples == 6 - len(lost)
        assert sum(chunk.prompt_computed > 0 for chunk in again) == 1  # the prompt counts once a request
        asked_again = len(engine.asked)
        await all_of(CachedEngine(engine, cache).sample(PREFIX, 6, params))
        assert len(engine.asked) == asked_again

    params = replace(PARAMS, first=2 if first and numbers else 0)
    in_database(work)


def test_a_larger_request_takes_the_smaller_one_along() -> None:
    async def work(cache: Background) -> None:
        engine = Counting(says(*TEXTS, "four", "five"))
        await all_of(CachedEngine(engine, cache).sample(PREFIX, 2, PARAMS))
        chunks = await all_of(CachedEngine(engine, cache).sample(PREFIX, 5, PARAMS))
        assert engine.asked == [(0, 2), (2, 3)]
        assert list(texts(chunks).values()) == [*TEXTS, "four", "five"]
        await all_of(CachedEngine(engine, cache).sample(PREFIX, 3, replace(PARAMS, first=2)))
        assert len(engine.asked) == 2

    in_database(work)


# ---------------------------------------------------------------- readers that leave


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 3), st.integers(1, 3))
def test_a_reader_that_left_leaves_again_at_the_same_place_for_nothing(
    n: int, most: int, burst: int, other_burst: int
) -> None:
    async def work(cache: Background) -> None:
        engine = Eager(says(*(TEXTS[i] + "é" * 20 for i in range(3))), burst=burst)
        account = Account()
        stream = CachedEngine(engine, cache, account=account).sample(PREFIX, n, PARAMS)
        chunks = await read(stream, most)
        assert stream.undelivered == 3
        assert account.tokens == sum(len(chunk.ids) for chunk in chunks) + 3
        again = CachedEngine(engine, cache).sample(PREFIX, n, PARAMS)
        assert await read(again, most) == chunks
        assert again.undelivered == 3
        assert engine.asked == [(0, n)]
        # Who wants more gets all of it, and what was read before once.
        engine.burst = other_burst
        whole = await all_of(CachedEngine(engine, cache).sample(PREFIX, n, PARAMS))
        bare = await all_of(ScriptedEngine(says(*(TEXTS[i] + "é" * 20 for i in range(3)))).sample(PREFIX, n, PARAMS))
        assert whole[: len(chunks)] == chunks
        assert texts(whole) == texts(bare)
        for index in range(n):
            assert [i for c in alone(whole, index) for i in c.ids] == [i for c in alone(bare, index) for i in c.ids]
        asked = len(engine.asked)
        assert await all_of(CachedEngine(engine, cache).sample(PREFIX, n, PARAMS)) == whole
        assert len(engine.asked) == asked

    in_database(work)


def test_a_sample_that_cannot_be_made_again_says_so() -> None:
    async def work(cache: Background) -> None:
        await read(CachedEngine(ScriptedEngine(says("Five and two.")), cache).sample(PREFIX, 1, PARAMS), 6)
        account = Account()
        drifted = CachedEngine(ScriptedEngine(says("Five or two.")), cache, account=account)
        with pytest.raises(EngineDisconnected, match="another sample from the same seed"):
            await all_of(drifted.sample(PREFIX, 1, PARAMS))
        short = CachedEngine(ScriptedEngine(says("Five")), cache)
        with pytest.raises(EngineDisconnected, match="another sample"):
            await all_of(short.sample(PREFIX, 1, PARAMS))

    in_database(work)


def test_cancelling_the_read_keeps_what_was_read() -> None:
    async def work(cache: Background) -> None:
        engine = Counting(says("Five and two."), faults=[Fault("hang", at=6)])
        stream = CachedEngine(engine, cache).sample(PREFIX, 1, PARAMS)
        chunks = [await anext(stream) for _ in range(6)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.1)
        await stream.aclose()
        assert engine.open_streams == 0
        assert await read(CachedEngine(engine, cache).sample(PREFIX, 1, PARAMS), 6) == chunks
        assert engine.asked == [(0, 1)]

    in_database(work)


def test_a_stream_that_is_closed_unread_asks_nothing() -> None:
    async def work(cache: Background) -> None:
        engine = Counting(says("7"))
        await CachedEngine(engine, cache).sample(PREFIX, 1, PARAMS).aclose()
        assert engine.asked == []

    in_database(work)


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize(("kind", "error"), [("disconnect", EngineDisconnected), ("garbage", GarbledReply)])
def test_of_a_failed_request_the_finished_samples_are_kept(kind: Any, error: type[EngineError]) -> None:
    async def work(cache: Background) -> None:
        engine = Counting(says("Five and two.", "7"), faults=[Fault(kind, at=12)])
        account = Account()
        with pytest.raises(error):
            await all_of(CachedEngine(engine, cache, account=account).sample(PREFIX, 2, PARAMS))
        assert isinstance(account.failure, error)
        chunks = await all_of(CachedEngine(engine, cache).sample(PREFIX, 2, PARAMS))
        assert texts(chunks) == {0: "Five and two.", 1: "7"}
        assert engine.asked == [(0, 2), (0, 1)]

    in_database(work)


@pytest.mark.parametrize("fault", [Fault("partial", at=4), Fault("disconnect")])
def test_a_stream_that_ends_too_early_is_a_failure_and_is_not_kept(fault: Fault) -> None:
    async def work(cache: Background) -> None:
        engine, account = Counting(says("Five and two."), faults=[fault]), Account()
        try:
            await all_of(CachedEngine(engine, cache, account=account).sample(PREFIX, 1, PARAMS))
        except EngineDisconnected:
            assert fault.kind == "disconnect"
        assert isinstance(account.failure, EngineDisconnected)
        await all_of(CachedEngine(engine, cache).sample(PREFIX, 1, PARAMS))
        assert engine.asked == [(0, 1), (0, 1)]

    in_database(work)


def test_what_a_closing_engine_cuts_off_is_not_kept() -> None:
    async def work(cache: Background) -> None:
        engine = Counting(says("Five and two."), faults=[Fault("hang", at=3)])
        stream = CachedEngine(engine, cache).sample(PREFIX, 1, PARAMS)
        for _ in range(3):
            await anext(stream)
        asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(engine.close()))
        assert [chunk.finish for chunk in await all_of(stream)] == ["cancelled"]
        fresh = Counting(says("Five and two."))
        assert texts(await all_of(CachedEngine(fresh, cache).sample(PREFIX, 1, PARAMS))) == {0: "Five and two."}

    in_database(work)


def test_a_sample_without_a_token_is_asked_for_again() -> None:
    class Mute(Counting):
        async def _one(self) -> AsyncIterator[Chunk]:
            yield Chunk(0, finish="length")

        def sample(self, prefix: Any, n: int, params: SamplingParams) -> Any:
            self.asked.append((params.first, n))
            return self._one()

    async def work(cache: Background) -> None:
        engine = Mute(says(""))
        for _ in range(2):
            await all_of(CachedEngine(engine, cache).sample(PREFIX, 1, PARAMS))
        assert len(engine.asked) == 2

    in_database(work)


def test_a_damaged_row_says_what_to_do() -> None:
    async def work(cache: Background) -> None:
        engine = ScriptedEngine(says("7"))
        await all_of(CachedEngine(engine, cache).sample(PREFIX, 1, PARAMS))
        connection = sqlite3.connect(cache._path, isolation_level=None)
        connection.execute("UPDATE samples SET chunks = x'00'")
        connection.close()
        with pytest.raises(StoreError, match="cannot be read") as caught:
            await all_of(CachedEngine(engine, cache).sample(PREFIX, 1, PARAMS))
        assert "--no-cache" in caught.value.mend

    in_database(work)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[[], sqlite3.Connection]]:
    """Another process's hand on the database."""
    held: list[sqlite3.Connection] = []

    def hold() -> sqlite3.Connection:
        held.append(sqlite3.connect(tmp_path / "ponder.db", isolation_level=None))
        held[-1].execute("BEGIN IMMEDIATE")
        return held[-1]

    yield hold
    for connection in held:
        connection.close()


def test_a_database_that_is_held_does_not_stop_the_loop(
    tmp_path: Path, holder: Callable[[], sqlite3.Connection]
) -> None:
    async def work(cache: Background) -> None:
        held = holder()
        asking = asyncio.ensure_future(all_of(CachedEngine(ScriptedEngine(says("7")), cache).sample(PREFIX, 1, PARAMS)))
        longest, last, until = 0.0, time.monotonic(), time.monotonic() + 0.5
        while time.monotonic() < until:
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        assert not asking.done()
        held.execute("ROLLBACK")
        assert texts(await asking) == {0: "7"}
        assert longest < 0.45

    in_database(work, tmp_path / "ponder.db")


def test_a_database_that_stays_held_is_a_store_error(
    tmp_path: Path, holder: Callable[[], sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(cache: Background) -> None:
        held = holder()
        engine = ScriptedEngine(says("7"))
        with pytest.raises(StoreError, match="held by another process"):
            await all_of(CachedEngine(engine, cache).sample(PREFIX, 1, PARAMS))
        assert engine.open_streams == 0
        held.execute("ROLLBACK")

    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    in_database(work, tmp_path / "ponder.db")


# ---------------------------------------------------------------- scores and messages


def test_scores_are_kept_with_what_they_took() -> None:
    class Scoring(ScriptedEngine):
        calls_of_score = 0

        async def score(self, ids: Any, start: int, params: SamplingParams | None = None) -> list[float]:
            self.calls_of_score += 1
            values = await super().score(ids, start, params)
            return LogProbs(values, 9) if start == 1 else values

    async def work(cache: Background) -> None:
        engine = Scoring(says("7"), logprob=lambda prefix, token: -len(prefix) / 3)
        account = Account()
        cached = CachedEngine(engine, cache, account=account)
        told = [await cached.score([65, 66, 67], start) for start in (1, 2, 1, 2)]
        assert told[0] == told[2] == [-1 / 3, -2 / 3]
        assert told[1] == told[3] == [-2 / 3]
        assert [getattr(each, "computed", None) for each in told] == [9, None, 9, None]
        assert engine.calls_of_score == 2
        assert (account.scored, account.cached_scored) == (3, 3)
        await cached.score([65, 66, 68], 1)
        assert engine.calls_of_score == 3

    in_database(work)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 30))
def test_messages_are_kept_like_tokens(most: int) -> None:
    async def work(cache: Background) -> None:
        engine = ScriptedEngine(says("<think>hm, é</think>It is 7."), chat_only=True)
        messages = [user("How many?")]
        part = await read(CachedEngine(engine, cache).chat(messages, 1, PARAMS), most)
        calls = engine.calls
        assert await read(CachedEngine(engine, cache).chat(messages, 1, PARAMS), most) == part
        assert engine.calls == calls
        account = Account()
        whole = await all_of(CachedEngine(engine, cache, account=account).chat(messages, 1, PARAMS))
        assert "".join(chunk.thinking for chunk in whole) == "hm, é"
        assert "".join(chunk.answer for chunk in whole) == "It is 7."
        bare = await all_of(engine.chat(messages, 1, PARAMS))
        assert (whole[-1].finish, whole[-1].completion_tokens) == ("stop", bare[-1].completion_tokens)
        assert account.tokens + account.cached_tokens >= bare[-1].completion_tokens
        calls = engine.calls
        assert await all_of(CachedEngine(engine, cache).chat(messages, 1, PARAMS)) == whole
        assert engine.calls == calls
        for other in (False, True):
            await all_of(CachedEngine(engine, cache).chat(messages, 1, PARAMS, other))
        await all_of(CachedEngine(engine, cache).chat([user("How much?")], 1, PARAMS))
        assert engine.calls == calls + 3

    in_database(work)


def test_tool_calls_come_back() -> None:
    class Calling(ScriptedEngine):
        async def _calls(self) -> AsyncIterator[ChatChunk]:
            self.calls += 1
            yield ChatChunk(0, tool_calls=(ToolCall("add", '{"a": 1}', "x"),))
            yield ChatChunk(0, finish="stop", completion_tokens=8, prompt_tokens=5)

        def chat(self, *asked: Any, **how: Any) -> Any:
            return self._calls()

    async def work(cache: Background) -> None:
        engine = Calling(says(""), chat_only=True)
        told = [await all_of(CachedEngine(engine, cache).chat([user("?")], 1, PARAMS)) for _ in range(2)]
        assert told[0] == told[1]
        assert engine.calls == 1

    in_database(work)


# ---------------------------------------------------------------- whole requests

THOUGHTS = ("I add 3 and 4. " * 4 + "That is 7.\nThe answer is 7.", "Hm.\nThe answer is 8.", "é ü " * 40)


def told(trace: Trace) -> Any:
    """What each sample was and cost. Which of two samples gets a word in first is the machine's mood."""
    finished = [event for event in trace.events if isinstance(event, SampleFinished)]
    return {each.sample.index: (each.sample, replace(each.cost, seconds=0.0)) for each in finished}


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(["vote(3)", "chain_of_thought('prompt')", "direct", "refine(2)", "best_of_n(2)"]),
    st.integers(20, 260),
    st.integers(0, 20),
)
def test_a_strategy_replays_to_the_same_trace(strategy: str, budget: int, least: int) -> None:
    async def work(cache: Background) -> None:
        def model(engine: Any) -> Any:
            opened = model_of(engine)
            return replace(opened, params=replace(opened.params, seed=3))

        async def solved(engine: Any) -> Trace:
            return await asolve(
                "What is 3 + 4?",
                model=model(engine),
                strategy=strategy_named(strategy),
                budget=Budget(budget, min_thinking=least),
            )

        engine = Counting(says(*THOUGHTS), specials=("<think>", "</think>"))
        first = await solved(CachedEngine(engine, cache))
        asked = len(engine.asked)
        again = await solved(CachedEngine(engine, cache))
        assert len(engine.asked) == asked
        assert told(again) == told(first)
        assert again.answer == first.answer
        assert replace(again.cost, seconds=0.0) == replace(first.cost, seconds=0.0)

    in_database(work)


def test_the_seconds_of_the_first_time_are_known() -> None:
    async def work(cache: Background) -> None:
        engine = ScriptedEngine(says("Five", "six"), faults=[Fault("delay", at=2, seconds=0.3)])
        await all_of(CachedEngine(engine, cache).sample(PREFIX, 2, PARAMS))
        account = Account()
        await all_of(CachedEngine(engine, cache, account=account).sample(PREFIX, 2, PARAMS))
        assert 0.2 < account.saved < 1  # of both samples, which ran side by side, once

    in_database(work)


# ---------------------------------------------------------------- who the model is


def test_a_file_is_told_by_what_is_in_it(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for size in (0, 5, 65_536, 65_537, 3_000_000, 20_000_000):
        one.write_bytes(bytes(size))
        other.write_bytes(bytes(size))
        assert fingerprint(one) == fingerprint(other)
        if size:
            other.write_bytes(bytes(size - 1) + b"x")
            assert fingerprint(one) != fingerprint(other)
            other.write_bytes(bytes(size - 1))
            assert fingerprint(one) != fingerprint(other)
    changed = bytearray(20_000_000)
    changed[9_000_000:9_400_000] = b"x" * 400_000  # a layer
    other.write_bytes(changed)
    assert fingerprint(one) != fingerprint(other)


def test_a_folder_is_told_by_its_files(tmp_path: Path) -> None:
    seen = set[str]()
    for name, text in (("a", "1"), ("b", "1"), ("a", "2"), ("b", "2")):
        (tmp_path / name).write_text(text)
        assert fingerprint(tmp_path) not in seen
        seen.add(fingerprint(tmp_path))
    (tmp_path / "c").mkdir()
    assert fingerprint(tmp_path) in seen


def test_a_model_is_the_same_wherever_its_file_lies(tmp_path: Path) -> None:
    async def work() -> None:
        for name in ("one", "other"):
            (tmp_path / name).write_text('{"version": 1, "otherwise": "7"}')
        one, other = [identity_of(await open_scripted(tmp_path / name)) for name in ("one", "other")]
        assert one == other
        (tmp_path / "other").write_text('{"version": 1, "otherwise": "8"}')
        assert identity_of(await open_scripted(tmp_path / "other")) != one

    asyncio.run(work())


def test_an_adapter_that_was_trained_further_is_another_model(tmp_path: Path) -> None:
    engine: Any = ScriptedEngine(says("7"))
    engine.adapters = (SimpleNamespace(name="mine", path=tmp_path / "adapter"),)
    (tmp_path / "adapter").write_text("before")
    before = identity_of(engine)
    (tmp_path / "adapter").write_text("after!")
    assert identity_of(engine) != before


def test_it_is_an_engine_that_closes_what_it_wraps() -> None:
    from ponder.protocols import Engine

    async def work() -> None:
        engine = ScriptedEngine(says("7"))
        cached = CachedEngine(engine, None)
        assert isinstance(cached, Engine)
        assert (cached.uri, cached.info, cached.capabilities) == (engine.uri, engine.info, engine.capabilities)
        assert await cached.detokenize(await cached.tokenize("hi<|im_end|>")) == "hi<|im_end|>"
        assert (await cached.tokenize("<|im_end|>"))[0] == EOS
        await cached.close()
        with pytest.raises(EngineError, match="closed"):
            await all_of(cached.sample(PREFIX, 1, PARAMS))

    asyncio.run(work())

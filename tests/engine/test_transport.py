"""The transport against real sockets: what is retried, what is not, how long it waits, what it says."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

import faults
import servers

from ponder.engine.remote_errors import Refused
from ponder.engine.sse import SseDecoder
from ponder.engine.transport import Retries, Transport, retry_after
from ponder.errors import (
    ContextOverflow,
    EngineDisconnected,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    GarbledReply,
    PonderError,
    RateLimited,
)

QUICK = Retries(attempts=3, base=0.01, cap=0.02, total=1.0)
ASK = {"messages": [], "model": "tiny"}


@asynccontextmanager
async def transport(
    silence: float = 2.0, first: float = 2.0, retries: Retries = QUICK, secret: str | None = None
) -> AsyncIterator[Transport]:
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    client = httpx.AsyncClient(timeout=None, trust_env=False, headers=headers, verify=False)
    wire = Transport(client, silence=silence, first=first, retries=retries, secret=secret)
    try:
        yield wire
    finally:
        await wire.close()


async def events_of(wire: Transport, url: str) -> list[dict[str, Any]]:
    return [event async for event in wire.stream(f"{url}/chat/completions", ASK)]


def answers(*faults: faults.Fault, **how: Any) -> tuple[list[dict[str, Any]], int]:
    """The events that arrive in the end, and how many requests that took."""

    async def run() -> tuple[list[dict[str, Any]], int]:
        async with servers.FakeServer(faults=faults) as server, transport(**how) as wire:
            return await events_of(wire, server.url), len(server.asked)

    return asyncio.run(run())


def failure(*faults: faults.Fault, **how: Any) -> tuple[PonderError, int, float]:
    """What is raised, how many requests were made, and how long it took."""

    async def run() -> tuple[PonderError, int, float]:
        async with servers.FakeServer(faults=faults) as server, transport(**how) as wire:
            began = time.monotonic()
            with pytest.raises(PonderError) as caught:
                await events_of(wire, server.url)
            return caught.value, len(server.asked), time.monotonic() - began

    return asyncio.run(run())


# ---------------------------------------------------------------- server-sent events

STREAM = (
    '\ufeffdata: {"a": "🤔é"}\n\n: ping\n\n:\n\ndata:{"b": 1}\r\n\r\nevent: x\rid: 7\rdata: {"c":\rdata: 2}\r\r'
    'retry: 5\n\nerror: {"code": 5}\n\ndata: [DONE]\n\ndata: {"unfinished": 1}'
).encode()
PAYLOADS = ['{"a": "🤔é"}', '{"b": 1}', '{"c":\n2}', '{"error": {"code": 5}}', "[DONE]", '{"unfinished": 1}']


def test_the_decoder_reads_every_form_of_event() -> None:
    decoder = SseDecoder()
    assert decoder.feed(STREAM) + decoder.flush() == PAYLOADS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_split_of_the_bytes_gives_the_same_payloads(places: list[int]) -> None:
    cuts = [0, *sorted(places), len(STREAM)]
    decoder = SseDecoder()
    found = [p for a, b in itertools.pairwise(cuts) for p in decoder.feed(STREAM[a:b])]
    assert found + decoder.flush() == PAYLOADS


def test_a_carriage_return_at_the_end_of_a_piece_is_not_an_event_of_its_own() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: 1\r") == []
    assert decoder.feed(b"\ndata: 2\r\n\r") == []
    assert decoder.feed(b"\n") == ["1\n2"]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.sampled_from([b"\n", b"\r\n"]))
def test_any_split_into_tcp_pieces_gives_the_same_events(cuts: list[int], line_end: bytes) -> None:
    plain, _ = answers()
    pieces, _ = answers(faults.split(cuts, line_end, b""))
    assert pieces == plain
    assert len(plain) == 3


# ---------------------------------------------------------------- retries


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_passing_failures_are_retried(status: int) -> None:
    events, asked = answers(faults.refuse(status), faults.refuse(status))
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert asked == 3


@pytest.mark.parametrize("fault", [faults.reset(), faults.cut_after(0)], ids=["before headers", "before body"])
def test_a_connection_that_breaks_before_the_first_byte_is_retried(fault: faults.Fault) -> None:
    events, asked = answers(fault, fault)
    assert len(events) == 3
    assert asked == 3


@pytest.mark.parametrize("status", [400, 404, 405, 409, 413, 422, 501])
def test_refusals_are_not_retried(status: int) -> None:
    error, asked, _ = failure(faults.refuse(status))
    assert isinstance(error, Refused)
    assert error.status == status
    assert not error.retryable
    assert asked == 1


def test_the_number_of_tries_is_bounded() -> None:
    error, asked, _ = failure(*[faults.refuse(503)] * 9)
    assert isinstance(error, EngineUnavailable)
    assert asked == 3
    error, asked, _ = failure(*[faults.reset()] * 9)
    assert isinstance(error, EngineDisconnected)
    assert asked == 3


def test_the_total_wait_is_bounded() -> None:
    patient = Retries(attempts=100, base=0.1, cap=0.1, total=0.2)
    error, asked, took = failure(*[faults.refuse(503)] * 100, retries=patient)
    assert isinstance(error, EngineUnavailable)
    assert 2 <= asked < 100
    assert took < 1.0


def test_nothing_is_retried_after_the_first_event() -> None:
    for count in (1, 2):
        error, asked, _ = failure(faults.cut_after(count))
        assert isinstance(error, EngineDisconnected)
        assert asked == 1


def test_backoff_grows_to_its_cap_and_is_jittered() -> None:
    retries = Retries(base=0.5, cap=4.0)
    for attempt, most in ((1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (9, 4.0)):
        pauses = [retries.pause(attempt, None) for _ in range(300)]
        assert 0 <= min(pauses) < most / 4
        assert most * 3 / 4 < max(pauses) <= most
    assert retries.pause(1, 7.0) == 7.0
    with pytest.raises(ValueError, match="at least 1"):
        Retries(attempts=0)


def test_retry_after_is_waited_for() -> None:
    began = time.monotonic()
    _, asked = answers(faults.refuse(429, retry_after="0.3"))
    assert asked == 2
    assert 0.3 <= time.monotonic() - began < 1.2


def test_a_retry_after_beyond_the_limit_is_raised_at_once() -> None:
    for status in (429, 503):
        error, asked, took = failure(faults.refuse(status, retry_after="30"))
        assert isinstance(error, RateLimited)
        assert error.after == 30
        assert "30 seconds" in str(error)
        assert asked == 1
        assert took < 0.5


def test_retry_after_is_read_as_seconds_and_as_a_date() -> None:
    assert retry_after({"retry-after": " 5 "}) == 5
    assert retry_after({"retry-after": "-1"}) == 0
    assert retry_after({"retry-after": formatdate(1_000_060, usegmt=True)}, now=1_000_000) == 60
    assert retry_after({"retry-after": formatdate(1_000_000, usegmt=True)}, now=1_000_060) == 0
    for nothing in ({}, {"retry-after": ""}, {"retry-after": "soon"}, {"retry-after": "inf"}):
        assert retry_after(nothing) is None


def test_an_exhausted_quota_is_not_waited_for() -> None:
    body = {"error": {"message": "no more", "code": "insufficient_quota"}}
    error, asked, _ = failure(faults.refuse(429, body))
    assert "no quota" in str(error)
    assert asked == 1


# ---------------------------------------------------------------- silence


def test_silence_before_the_first_event_has_its_own_limit() -> None:
    for fault in (faults.hang(), faults.hang(0), faults.put(0, faults.Wait(5))):
        error, asked, took = failure(fault, silence=9, first=0.3)
        assert isinstance(error, EngineTimeout)
        assert "0.3 seconds" in str(error)
        assert asked <= 1  # the server may be at work, asking again would make it worse; a busy one may not know yet
        assert 0.25 < took < 2


def test_pings_do_not_count_as_the_first_event() -> None:
    def pings(steps: list[faults.Step]) -> list[faults.Step]:
        return [step for _ in range(40) for step in (b": ping\n\n", faults.Wait(0.1))]

    error, _, took = failure(pings, silence=9, first=0.4)
    assert isinstance(error, EngineTimeout)
    assert took < 2


def test_silence_in_the_middle_is_a_timeout() -> None:
    error, asked, _ = failure(faults.hang(1), silence=0.3, first=9)
    assert isinstance(error, EngineTimeout)
    assert "0.3 seconds" in str(error)
    assert asked == 1


def test_a_slow_stream_that_never_falls_silent_is_none() -> None:
    events, _ = answers(faults.slowly(0.15), silence=0.4, first=0.4)
    assert len(events) == 3


# ---------------------------------------------------------------- what is not an answer


def test_a_web_page_is_recognised() -> None:
    error, _, _ = failure(faults.page())
    assert isinstance(error, GarbledReply)
    assert "/v1" in str(error)
    error, asked, _ = failure(*[faults.page(502, "Bad gateway")] * 3)
    assert "Bad gateway" in str(error)
    assert "<" not in str(error)
    assert asked == 3


@pytest.mark.parametrize("junk", [b"data: {oops\n\n", b"data: [1]\n\n", b"data: 5\n\n"])
def test_an_event_that_is_no_json_object_is_garbled(junk: bytes) -> None:
    error, asked, _ = failure(faults.put(1, junk))
    assert isinstance(error, GarbledReply)
    assert asked == 1


def test_an_event_cut_in_the_middle_is_a_disconnect() -> None:
    error, _, _ = failure(lambda steps: [steps[0], b'data: {"choices": [{"ind'])
    assert isinstance(error, EngineDisconnected)


def test_a_last_event_without_an_empty_line_counts() -> None:
    events, _ = answers(lambda steps: [b'data: {"x": 1}'])
    assert events == [{"x": 1}]


@pytest.mark.parametrize(
    "raw",
    [b'data: {"error": {"message": "out of memory", "code": 500}}\n\n', b'error: {"message": "out of memory"}\n\n'],
)
def test_an_error_among_the_events_is_raised(raw: bytes) -> None:
    error, asked, _ = failure(faults.put(1, raw))
    assert type(error) is EngineError
    assert "out of memory" in str(error)
    assert asked == 1


def test_an_answer_all_at_once_is_refused_and_its_error_shown() -> None:
    error, _, _ = failure(faults.whole({"choices": []}))
    assert isinstance(error, GarbledReply)
    assert "stream" in str(error)
    error, _, _ = failure(faults.whole({"error": "busy"}))
    assert type(error) is EngineError
    assert "busy" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "This model's maximum context length is 5 tokens.", "type": "BadRequestError"}},
        {"error": {"message": "too much", "type": "exceed_context_size_error"}},
        {"error": {"message": "too much", "code": "context_length_exceeded"}},
        {"object": "error", "message": "The input (9 tokens) is longer than the model's context length"},
        {"detail": "available context size exceeded"},
    ],
)
def test_an_overflow_is_told_from_other_refusals(body: dict[str, Any]) -> None:
    error, _, _ = failure(faults.refuse(400, body))
    assert isinstance(error, ContextOverflow)
    error, _, _ = failure(faults.put(1, b"data: " + json.dumps({"error": body.get("error", body)}).encode() + b"\n\n"))
    assert isinstance(error, ContextOverflow) or "detail" in body


def test_a_redirect_names_where_it_leads() -> None:
    error, _, _ = failure(faults.refuse(301, location="http://else/v1"))
    assert "http://else/v1" in str(error)


def test_messages_are_one_short_line() -> None:
    error, _, _ = failure(faults.refuse(400, {"error": {"message": "a\nb " * 500}}))
    assert "\n" not in str(error)
    assert len(str(error)) < 500
    error, _, _ = failure(faults.refuse(400, ["odd"]))
    assert "odd" in str(error)


def test_the_key_is_never_shown() -> None:
    key = "sk-very-secret"
    for fault in (
        faults.refuse(401, {"error": {"message": f"Incorrect API key provided: {key}"}}),
        faults.refuse(400, {"error": f"bad {key}"}),
        faults.put(0, f"data: oops {key}\n\n".encode()),
        faults.put(1, f'data: {{"error": {{"message": "{key}"}}}}\n\n'.encode()),
    ):
        error, _, _ = failure(fault, secret=key)
        assert key not in f"{error} {error!r} {vars(error)}"
        assert "***" in str(error) or "JSON" in str(error)


def test_nothing_there_is_said_in_one_line() -> None:
    async def run() -> None:
        async with servers.FakeServer() as server:
            pass
        async with transport() as wire:
            with pytest.raises(EngineUnavailable, match=rf"nothing answers at {server.root}\. start the server"):
                await wire.get(f"{server.url}/models")

    asyncio.run(run())


def test_json_of_another_shape_is_garbled() -> None:
    async def run() -> None:
        async with servers.FakeServer() as server, transport() as wire:
            server.post = lambda path, body: [1]  # type: ignore[method-assign]
            with pytest.raises(GarbledReply, match="list"):
                await wire.post(f"{server.url}/x", {})
            server._reply = lambda request: faults.Plain(200, b"nope")  # type: ignore[method-assign]
            with pytest.raises(GarbledReply, match="nope"):
                await wire.get(f"{server.url}/x")
            assert await wire.probe(f"{server.url}/x") == {}

    asyncio.run(run())


# ---------------------------------------------------------------- leaving


@pytest.mark.parametrize("after", [None, 0, 1])
def test_leaving_closes_the_connection_at_once(after: int | None) -> None:
    async def run() -> None:
        async with servers.FakeServer(faults=[faults.hang(after)]) as server, transport() as wire:

            async def read() -> None:
                async with aclosing(wire.stream(f"{server.url}/chat/completions", ASK)) as events:
                    async for _ in events:
                        pass

            task = asyncio.create_task(read())
            await asyncio.sleep(0.2)
            assert not server.asked[0].left.is_set()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(server.asked[0].left.wait(), 1)

    asyncio.run(run())


def test_what_follows_done_is_not_waited_for() -> None:
    began = time.monotonic()
    events, _ = answers(lambda steps: [*steps, faults.HANG], silence=9)
    assert len(events) == 3
    assert time.monotonic() - began < 3

"""Frames that decoders read back, and pings that cancel nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.engine.sse import SseDecoder
from ponder.server.sse import DONE, PING, frame, with_pings


@given(st.dictionaries(st.text(), st.text(), max_size=3), st.sampled_from(["", "message_stop"]))
def test_a_frame_is_read_back_whatever_is_in_it(data: dict[str, str], event: str) -> None:
    decoder = SseDecoder()
    read = decoder.feed(PING + frame(data, event) + PING + DONE)
    assert [json.loads(read[0]), read[1]] == [data, "[DONE]"]
    assert frame(data, event).startswith(b"event: message_stop\n" if event else b"data: ")


@pytest.mark.parametrize("number", [float("-inf"), float("inf"), float("nan")])
def test_what_is_no_number_in_json_is_null(number: float) -> None:
    assert frame({"logprob": number}) == b'data: {"logprob":null}\n\n'


def run_with(frames: AsyncIterator[bytes], seconds: float = 0.02) -> list[bytes]:
    async def drain() -> list[bytes]:
        return [each async for each in with_pings(frames, seconds)]

    return asyncio.run(drain())


def test_pings_while_it_is_silent_and_loses_nothing() -> None:
    async def frames() -> AsyncIterator[bytes]:
        for number in range(50):
            if number in (0, 20):
                await asyncio.sleep(0.07)
            yield b"%d" % number

    got = run_with(frames())
    assert [each for each in got if each != PING] == [b"%d" % number for number in range(50)]
    assert got[0] == PING
    assert got.count(PING) >= 4


def test_a_generator_may_hold_a_timeout_open() -> None:
    async def frames() -> AsyncIterator[bytes]:
        async with asyncio.timeout(5):  # fails where it is left in another task than it was entered
            yield b"a"
            await asyncio.sleep(0.05)
            yield b"b"

    assert [each for each in run_with(frames()) if each != PING] == [b"a", b"b"]


def test_errors_come_through_after_the_frames() -> None:
    async def frames() -> AsyncIterator[bytes]:
        yield b"a"
        raise KeyError("broken")

    async def drain() -> None:
        pinged = with_pings(frames(), 1)
        assert await anext(pinged) == b"a"
        with pytest.raises(KeyError, match="broken"):
            await anext(pinged)

    asyncio.run(drain())


def test_frames_that_are_cancelled_from_elsewhere_end_the_stream() -> None:
    async def frames() -> AsyncIterator[bytes]:
        yield b"a"
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run_with(frames())


def test_closing_it_closes_the_frames_at_once() -> None:
    closed = asyncio.Event()

    async def frames() -> AsyncIterator[bytes]:
        try:
            yield b"a"
            await asyncio.sleep(60)
        finally:
            closed.set()

    async def leave() -> float:
        began = asyncio.get_running_loop().time()
        pinged = with_pings(frames(), 0.01)
        assert await anext(pinged) == b"a"
        assert await anext(pinged) == PING
        await pinged.aclose()  # type: ignore[attr-defined]
        assert closed.is_set()
        return asyncio.get_running_loop().time() - began

    assert asyncio.run(leave()) < 0.5


def test_a_reader_that_takes_nothing_holds_the_frames_back() -> None:
    made = []

    async def frames() -> AsyncIterator[bytes]:
        for number in range(100):
            made.append(number)
            yield b"x"

    async def slow() -> None:
        pinged = with_pings(frames(), 1)
        await anext(pinged)
        await asyncio.sleep(0.02)
        assert len(made) <= 4
        await pinged.aclose()  # type: ignore[attr-defined]

    asyncio.run(slow())


def test_no_character_of_a_text_ends_a_line() -> None:
    text = "a\u0085b\u2028c\u2029d\né"
    made = frame({"text": text}).decode()
    assert made.splitlines() == [made.splitlines()[0], ""]
    assert json.loads(made.splitlines()[0].removeprefix("data: ")) == {"text": text}

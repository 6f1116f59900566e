"""Waiting for the next item of a stream, with a limit in time and a way out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from ponder.strategies.waiting import next_or_none


class Stream:
    """Gives 1, 2, 3 after `pause` seconds each; `closed` once it was cancelled or ended."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.given = 0
        self.closed = False

    async def items(self) -> AsyncIterator[int]:
        try:
            for item in (1, 2, 3):
                if self.pause:
                    await asyncio.sleep(self.pause)
                self.given = item
                yield item
        finally:
            self.closed = True


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


@pytest.mark.parametrize("limited", [False, True])
def test_items_come_in_order_until_the_end(limited: bool) -> None:
    async def work() -> None:
        items = Stream().items()
        limits = (asyncio.Event(), 10.0) if limited else (None, None)
        assert [await next_or_none(items, *limits) for _ in range(3)] == [1, 2, 3]
        with pytest.raises(StopAsyncIteration):
            await next_or_none(items, *limits)

    run(work())


def test_time_that_runs_out_cancels_the_read() -> None:
    async def work() -> None:
        stream = Stream(pause=30)
        started = time.monotonic()
        assert await next_or_none(stream.items(), None, 0.05) is None
        assert 0.04 < time.monotonic() - started < 5
        assert stream.closed

    run(work())


@pytest.mark.parametrize("timeout", [None, 10.0])
def test_stop_cancels_the_read(timeout: float | None) -> None:
    async def work() -> None:
        stream, stop = Stream(pause=30), asyncio.Event()
        asyncio.get_running_loop().call_later(0.02, stop.set)
        assert await next_or_none(stream.items(), stop, timeout) is None
        assert stream.closed

    run(work())


@pytest.mark.parametrize("over", ["stop", "time"])
def test_a_stream_that_is_always_ready_does_not_outrun_its_bounds(over: str) -> None:
    async def work() -> None:
        stream, stop = Stream(), asyncio.Event()
        if over == "stop":
            stop.set()
        assert await next_or_none(stream.items(), stop, 0.0 if over == "time" else None) is None
        assert stream.given == 0

    run(work())


def test_an_error_of_the_stream_is_passed_on() -> None:
    async def failing() -> AsyncIterator[int]:
        raise RuntimeError("gone")
        yield 1

    async def work() -> None:
        with pytest.raises(RuntimeError, match="gone"):
            await next_or_none(failing(), asyncio.Event(), 5)

    run(work())


def test_cancelling_the_waiter_cancels_the_read_and_leaves_no_task() -> None:
    async def work() -> None:
        stream, before = Stream(pause=30), asyncio.all_tasks()
        waiting = asyncio.create_task(next_or_none(stream.items(), asyncio.Event(), 60))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert stream.closed
        assert asyncio.all_tasks() == before

    run(work())


def test_an_item_that_was_read_for_a_reader_who_is_gone_is_told() -> None:
    async def work() -> None:
        stream, lost = Stream(), list[int]()
        reader = asyncio.ensure_future(next_or_none(stream.items(), asyncio.Event(), None, lost.append))
        while not stream.given:  # noqa: ASYNC110 (to the turn of the loop)
            await asyncio.sleep(0)
        reader.cancel()  # it has not run since
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert lost == [1]

    run(work())

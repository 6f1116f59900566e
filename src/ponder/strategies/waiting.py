"""Waiting for the next chunk of a stream, but no longer than there is time or the user wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def next_or_none(
    stream: AsyncIterator[T],
    stop: asyncio.Event | None,
    timeout: float | None,
    lost: Callable[[T], None] = lambda item: None,
) -> T | None:
    """The next item; None once `timeout` seconds are over or `stop` is set, with the read cancelled.

    `lost` is told of an item that had been read when its reader was cancelled. Raises StopAsyncIteration at the end
    of the stream.
    """
    if stop is None and timeout is None:
        return await anext(stream)
    # A stream that has items ready would win every race below.
    if (stop is not None and stop.is_set()) or (timeout is not None and timeout <= 0):
        return None
    reading = asyncio.ensure_future(_read(stream))
    stopping = None if stop is None else asyncio.ensure_future(stop.wait())
    waiting: set[asyncio.Future[Any]] = {f for f in (reading, stopping) if f is not None}
    handed_out = False
    try:
        await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        handed_out = reading.done()
        return reading.result() if handed_out else None
    finally:
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        if not handed_out and not reading.cancelled() and reading.exception() is None:
            lost(reading.result())


async def _read(stream: AsyncIterator[T]) -> T:
    return await anext(stream)

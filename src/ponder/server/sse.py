"""Server-sent events: frames, and comments that keep a silent connection open.

Source: the WHATWG HTML standard, "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from pydantic_core import to_json

from ponder.protocols import closing

DONE = b"data: [DONE]\n\n"
"""What ends a stream of OpenAI's chat and completions."""

PING = b": ping\n\n"
"""A comment, which every client skips."""

CONTENT_TYPE = "text/event-stream; charset=utf-8"

_LINE_ENDS = {each.encode(): f"\\u{ord(each):04x}".encode() for each in "\u0085\u2028\u2029"}


def frame(data: Any, event: str = "") -> bytes:
    """One event with `data` as JSON on one line, named `event` where the dialect names its events."""
    text = to_json(data, inf_nan_mode="null")
    if not text.isascii():  # some clients end a line at these
        for end, escaped in _LINE_ENDS.items():
            text = text.replace(end, escaped)
    return b"event: %s\ndata: %s\n\n" % (event.encode(), text) if event else b"data: %s\n\n" % text


async def with_pings(frames: AsyncIterator[bytes], seconds: float, ping: bytes = PING) -> AsyncIterator[bytes]:
    """The frames, and a `ping` whenever none came for `seconds`. Closing it closes `frames`.

    The frames are drawn in one task of their own: a generator must not be cancelled for a ping, and what it holds open
    (a timeout, a task group) has to be left in the task that entered it.
    """
    queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(1)
    pump = asyncio.create_task(_pump(frames, queue))
    try:
        while True:
            try:
                async with asyncio.timeout(seconds):
                    item = await queue.get()
            except TimeoutError:
                if pump.done() and queue.empty():  # cancelled by somebody else: there is nothing to wait for
                    raise asyncio.CancelledError from None
                yield ping
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)


async def _pump(frames: AsyncIterator[bytes], queue: asyncio.Queue[bytes | BaseException | None]) -> None:
    try:
        async with closing(frames) as items:
            async for item in items:
                await queue.put(item)
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)

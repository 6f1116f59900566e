"""A stream of OpenAI's chat or completions: chunks framed as they come, [DONE] at the end, or an error instead."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

from ponder.errors import PonderError
from ponder.protocols import closing
from ponder.server.events import ReplyEvent
from ponder.server.openai_failures import broken
from ponder.server.sse import DONE, frame


class Chunks(Protocol):
    """Makes chunks of events: of an event of stream `place`, at a good end, and of what was spent at any end."""

    def of(self, place: int, event: ReplyEvent) -> Iterable[dict[str, Any]]: ...

    def last(self) -> Iterable[dict[str, Any]]: ...

    def spent(self) -> Iterable[dict[str, Any]]: ...


async def framed(chunks: Chunks, streams: Sequence[AsyncIterator[ReplyEvent]]) -> AsyncIterator[bytes]:
    """The frames of one reply made of `streams`, one after the other. Closing it closes all of them.

    A failure is one frame with an error, after which nothing comes: a client must not take the reply for complete.
    """
    try:
        async with AsyncExitStack() as stack:
            for events in streams:
                await stack.enter_async_context(closing(events))
            for place, events in enumerate(streams):
                async for event in events:
                    for chunk in chunks.of(place, event):
                        yield frame(chunk)
        for chunk in (*chunks.last(), *chunks.spent()):
            yield frame(chunk)
        yield DONE
    except Exception as error:
        for chunk in chunks.spent():
            yield frame(chunk)
        yield frame(broken(error))
        if not isinstance(error, PonderError):
            raise  # a fault of the server's own belongs into its log

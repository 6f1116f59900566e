"""A stream of OpenAI's chat or completions: chunks framed as they come, [DONE] at the end, or an error instead."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

from ponder.errors import PonderError
from ponder.protocols import closing
from ponder.server.events import Progress, ReplyEvent
from ponder.server.openai_failures import broken
from ponder.server.sse import DONE, frame
from ponder.types import SampleFinished, to_dict

_TOKENS = ("ids", "prompt_ids", "mask", "logprobs")


class Chunks(Protocol):
    """Makes chunks of events: of an event of stream `place`, at a good end, and of what was spent at any end."""

    def of(self, place: int, event: ReplyEvent) -> Iterable[dict[str, Any]]: ...

    def last(self) -> Iterable[dict[str, Any]]: ...

    def spent(self) -> Iterable[dict[str, Any]]: ...


async def framed(
    chunks: Chunks, streams: Sequence[AsyncIterator[ReplyEvent]], progress: bool = False
) -> AsyncIterator[bytes]:
    """The frames of one reply made of `streams`, one after the other. Closing it closes all of them.

    A failure is one frame with an error, after which nothing comes: a client must not take the reply for complete.
    progress: with `ponder.progress` events, which clients of OpenAI's own pass over.
    """
    try:
        async with AsyncExitStack() as stack:
            for events in streams:
                await stack.enter_async_context(closing(events))
            for place, events in enumerate(streams):
                async for event in events:
                    if progress and isinstance(event, Progress):
                        yield frame(_lean(event), "ponder.progress")
                    if frames := [frame(chunk) for chunk in chunks.of(place, event)]:
                        yield b"".join(frames)
        yield b"".join([frame(chunk) for chunk in (*chunks.last(), *chunks.spent())]) + DONE
    except Exception as error:
        for chunk in chunks.spent():
            yield frame(chunk)
        yield frame(broken(error))
        if not isinstance(error, PonderError):
            raise  # a fault of the server's own belongs into its log


def _lean(progress: Progress) -> dict[str, Any]:
    """The event without the tokens of samples, which nobody looks at."""
    told = to_dict(progress.event)
    if isinstance(progress.event, SampleFinished):
        for name in _TOKENS:
            told["sample"].pop(name, None)
    return told

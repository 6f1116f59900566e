"""The official client of OpenAI's interface in front of bytes that a dialect wrote, without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import httpx2
import openai

from ponder.server.events import ReplyEvent
from ponder.server.failures import Refusal
from ponder.server.reply import Reply
from ponder.server.sse import CONTENT_TYPE


def client(body: bytes, kind: str = CONTENT_TYPE, status: int = 200) -> openai.OpenAI:
    """A client whose every request is answered with `body`."""
    transport = httpx2.MockTransport(lambda _: httpx2.Response(status, content=body, headers={"content-type": kind}))
    return openai.OpenAI(
        api_key="none", base_url="http://ponder/v1", max_retries=0, http_client=httpx2.Client(transport=transport)
    )


def whole_client(document: Any) -> openai.OpenAI:
    """A client whose every request is answered with a JSON document."""
    return client(json.dumps(document, allow_nan=False).encode(), "application/json")


async def streaming(events: Iterable[ReplyEvent | Exception]) -> AsyncIterator[ReplyEvent]:
    """The events as a backend tells them; an exception among them is raised."""
    for event in events:
        await asyncio.sleep(0)
        if isinstance(event, Exception):
            raise event
        yield event


def together(events: Iterable[ReplyEvent]) -> Reply:
    """The whole reply of some events."""
    reply = Reply()
    for event in events:
        reply.add(event)
    return reply


def refused(call: Callable[[], object]) -> Refusal | None:
    """The refusal that a call ends in, None where it ends well; any other error is raised."""
    try:
        call()
    except Refusal as refusal:
        return refusal
    return None


def drained(frames: AsyncIterator[bytes]) -> bytes:
    """All that a stream sends."""

    async def drain() -> bytes:
        return b"".join([frame async for frame in frames])

    return asyncio.run(drain())


def payloads(sent: bytes) -> list[Any]:
    """The data of each frame, decoded; [DONE] stays a text."""
    lines = [line.removeprefix("data: ") for line in sent.decode().split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]

"""Upstreams for the tests of the gateway: servers that say what they are told to, on real loopback sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from faults import Step
from servers import FakeServer

from ponder.server.backend import Backend
from ponder.server.events import ReplyEvent
from ponder.server.failures import Refusal
from ponder.server.reply import Reply
from ponder.server.request import Request
from ponder.server.upstream import Configuration, Retries, Upstream
from ponder.server.upstream_dialect import Dialect
from ponder.server.upstream_openai import OpenAI
from ponder.types import Budget, Message, Question, user


class Says(FakeServer):
    """Answers any POST with the next of its scripts, the last one for ever."""

    def __init__(self, *scripts: Sequence[Step], **more: Any) -> None:
        super().__init__(**more)
        self.scripts = [list(script) for script in scripts]

    def generate(self, path: str, body: Mapping[str, Any]) -> list[Step] | None:
        return self.scripts.pop(0) if len(self.scripts) > 1 else list(self.scripts[0])

    @property
    def connections(self) -> int:
        """Those that are open."""
        return len(self._tasks)


def request(*messages: Message, model: str = "tiny", **fields: Any) -> Request:
    """A request for the model of the fakes."""
    return Request("req_1", model, Question(messages or (user("hi"),), tools=fields.pop("tools", ())), **fields)


def upstream(url: str, dialect: Dialect | None = None, name: str = "up", **fields: Any) -> Upstream:
    """An upstream that waits for nothing between two tries."""
    more = {key: fields.pop(key) for key in ("clock", "media") if key in fields}
    settings = {"models": {"tiny": "tiny"}, "retries": Retries(base=0.01), "check": 0.0, **fields}
    return Upstream(name, Configuration(url, dialect or OpenAI(), **settings), **more)


class Heard:
    """What came of a request: events until the end or a refusal, and how long it took."""

    def __init__(self) -> None:
        self.events: list[ReplyEvent] = []
        self.refusal: Refusal | None = None
        self.seconds = 0.0

    @property
    def reply(self) -> Reply:
        """All of it put together."""
        reply = Reply()
        for event in self.events:
            reply.add(event)
        return reply


async def heard(
    backend: Backend,
    asked: Request | None = None,
    stop: asyncio.Event | None = None,
    seen: Callable[[ReplyEvent], Awaitable[None] | None] = lambda event: None,
) -> Heard:
    """Asks a backend and listens to the end."""
    found, began = Heard(), time.monotonic()
    try:
        async with aclosing(backend.reply(asked or request(), stop or asyncio.Event())) as events:  # type: ignore[type-var]
            async for event in events:
                found.events.append(event)
                waiting = seen(event)
                if waiting is not None:
                    await waiting
    except Refusal as refusal:
        found.refusal = refusal
    found.seconds = time.monotonic() - began
    await asyncio.sleep(0.01)  # the fakes close their connections, and run in the same loop
    return found


def chunk(
    delta: dict[str, Any] | None = None, finish: str | None = None, index: int = 0, **more: Any
) -> dict[str, Any]:
    """A chunk of OpenAI's chat."""
    return {"choices": [{"index": index, "delta": delta or {}, "finish_reason": finish}], **more}


def thinking(tokens: int) -> Budget:
    """A budget for thinking."""
    return Budget(thinking=tokens)

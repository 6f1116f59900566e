"""The server as an ASGI application: which path leads where, who may ask, and errors in each dialect's words."""

from __future__ import annotations

import asyncio
import re
import secrets
import sys
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from ponder.errors import PonderError
from ponder.protocols import closing
from ponder.server.desk import Desk
from ponder.server.events import Begun, ReplyEvent, Usage
from ponder.server.failures import Refusal
from ponder.server.http import Exchange, Receive, Scope, Send, check_headers
from ponder.server.local import refusal
from ponder.server.reply import Reply, collected
from ponder.server.request import Caller, Request
from ponder.server.sse import CONTENT_TYPE, PING

Handler = Callable[[Exchange, Mapping[str, str]], Awaitable[None]]


class Doors(Protocol):
    """Who may come in. `caller` raises Refusal, 401, for a secret that is none.

    `check` raises Refusal, 403, for who may not even see what needs no key.
    """

    def caller(self, headers: Mapping[str, str]) -> Caller: ...

    def check(self, headers: Mapping[str, str]) -> None: ...


class Open:
    """Lets everybody in: for a server that listens on this machine alone."""

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Nobody in particular."""
        return Caller()

    def check(self, headers: Mapping[str, str]) -> None:
        """Refuses nobody."""


@dataclass(frozen=True)
class Dialect:
    """How a kind of client speaks: `stream` gives the frames of a reply, `whole` its document, `failure` an error's."""

    name: str
    whole: Callable[[Request, Reply], Any]
    stream: Callable[[Request, AsyncIterator[ReplyEvent]], AsyncIterator[bytes]]
    failure: Callable[[Refusal, str], Any]
    ping: bytes = PING


@dataclass(frozen=True)
class Route:
    """A method and a path, with {names} for parts of it; a {name:path} may hold slashes.

    open: needs no key. probe: answered whoever asks, and under whatever name, for whoever watches over the server.
    """

    method: str
    path: str
    handler: Handler
    failure: Callable[[Refusal, str], Any]
    open: bool = False
    probe: bool = False
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        parts = re.sub(
            r"\\\{(\w+)(:path)?\\\}", lambda m: f"(?P<{m[1]}>{'.+' if m[2] else '[^/]+'})", re.escape(self.path)
        )
        object.__setattr__(self, "pattern", re.compile(parts))


class App:
    """Answers ASGI scopes by a table of routes."""

    def __init__(
        self, routes: Sequence[Route], failure: Callable[[Refusal, str], Any], doors: Doors | None = None
    ) -> None:
        self._routes = tuple(routes)
        self._plain = {(route.method, route.path): route for route in routes if "{" not in route.path}
        self._patterned = tuple(route for route in routes if "{" in route.path)
        self._failure = failure
        self._doors = doors or Open()
        self.on_close: list[Callable[[], Awaitable[None]]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI scope."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._http(Exchange(scope, receive, send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                for close in self.on_close:
                    await close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, exchange: Exchange) -> None:
        number = request_id()
        # The first is what OpenAI's clients read, the second what Anthropic's do.
        exchange.extra |= {"x-request-id": number, "request-id": number}
        exchange.scope["ponder.id"] = number
        failure = self._failure
        try:
            route, names = self._found(exchange)
            failure = route.failure
            check_headers(exchange.scope)
            exchange.scope["ponder.caller"] = self._let_in(route, exchange.headers)
            await route.handler(exchange, names)
        except PonderError as error:
            await fail(exchange, refusal(error), failure)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            broken = Refusal(500, "api_error", "the server failed on this request", "look into its log")
            await fail(exchange, broken, failure)

    def _let_in(self, route: Route, headers: Mapping[str, str]) -> Caller:
        if route.probe:
            return Caller()
        if route.open:
            self._doors.check(headers)
            return Caller()
        return self._doors.caller(headers)

    def _found(self, exchange: Exchange) -> tuple[Route, Mapping[str, str]]:
        method = "GET" if exchange.method == "HEAD" else exchange.method
        route = self._plain.get((method, exchange.path))
        if route is not None:
            return route, {}
        for each in self._patterned:
            if each.method == method and (found := each.pattern.fullmatch(exchange.path)):
                return each, found.groupdict()
        allowed = sorted({each.method for each in self._routes if each.pattern.fullmatch(exchange.path)})
        if allowed:
            exchange.extra["allow"] = ", ".join(allowed)
            raise Refusal(405, "invalid_request_error", f"{exchange.path} takes no {exchange.method}", allowed[0])
        raise Refusal(404, "not_found_error", f"there is nothing at {exchange.path[:200]}", "see /openapi.json")


async def fail(exchange: Exchange, refused: Refusal, failure: Callable[[Refusal, str], Any]) -> None:
    """Says what is wrong, in the words of a dialect, where nothing has been said yet."""
    if exchange.started:
        return
    headers = {} if refused.retry_after is None else {"retry-after": str(max(1, round(refused.retry_after)))}
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    await exchange.json(failure(refused, exchange.scope["ponder.id"]), refused.status, headers)


def request_id() -> str:
    """A new id: a client's own may come twice, and the ledger knows requests by theirs."""
    return f"req_{secrets.token_hex(12)}"


# ---------------------------------------------------------------- answering


async def respond(
    exchange: Exchange, desk: Desk, request: Request, dialect: Dialect, keep: Callable[[Reply], None] | None = None
) -> None:
    """Answers a request over an exchange whose body was read. `keep` gets the reply before its end is told.

    What goes wrong before the first event has a status of its own; after it a stream tells it as its last frame.
    """
    async with exchange.watched() as gone, aclosing(desk.answer(request, gone)) as events:
        first = await anext(events)
        if request.stream:
            whole = after(first, events)
            frames = dialect.stream(request, whole if keep is None else _kept(whole, keep))
            async with closing(frames):
                await exchange.stream(frames, CONTENT_TYPE, told(first), dialect.ping)
            return
        reply = await collected(events, first)
        if keep is not None:
            keep(reply)
        await exchange.json(dialect.whole(request, reply), headers={**told(first), **spent(reply.usage)})


async def _kept(events: AsyncIterator[ReplyEvent], keep: Callable[[Reply], None]) -> AsyncIterator[ReplyEvent]:
    reply = Reply()
    async for event in events:
        reply.add(event)
        if isinstance(event, Usage):
            keep(reply)
        yield event


async def after(first: ReplyEvent, events: AsyncIterator[ReplyEvent]) -> AsyncIterator[ReplyEvent]:
    """All events of an answer whose first one was read."""
    yield first
    async for event in events:
        yield event


async def gathered(streams: Sequence[AsyncGenerator[ReplyEvent, None]], most: int) -> list[Reply]:
    """The replies of several answers, `most` of them at work at once; where one is refused, the others end."""
    places = asyncio.Semaphore(most)

    async def one(events: AsyncGenerator[ReplyEvent, None]) -> Reply:
        async with places, aclosing(events):
            return await collected(events)

    tasks = [asyncio.create_task(one(each)) for each in streams]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def told(first: ReplyEvent) -> dict[str, str]:
    """What the headers say of a reply before it is there: who answers, and whether the budget is enforced."""
    if not isinstance(first, Begun):
        return {}
    return {"x-ponder-model": first.model, "x-ponder-backend": first.backend, "x-ponder-budget": first.hard}


def spent(usage: Usage | None) -> dict[str, str]:
    """What the headers say of what it cost."""
    if usage is None:
        return {}
    dollars = {} if usage.dollars is None else {"x-ponder-dollars": f"{usage.dollars:.9f}"}
    return {"x-ponder-tokens": str(usage.prompt + usage.completion), **dollars}

"""One exchange over ASGI: reading a bounded body, noticing that the client left, sending JSON or a stream.

Plain ASGI, since what wraps requests and responses hides disconnects. A client that reads so slowly that nothing moves
for `STALLED` seconds has left, too. One timer a stream looks after that and after pings, so that a piece which is sent
at once pays for neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from pydantic_core import to_json

from ponder.server.failures import Refusal

Scope = MutableMapping[str, Any]
Received = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Received]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MOST_BODY = 32 * 2**20
"""Bytes of a request; images come in it."""
MOST_HEADERS = 64 * 2**10
"""Bytes of all header lines."""
STALLED = 30.0
"""Seconds in which a client has to take something of what is sent."""
PING = 15.0
"""Seconds of silence after which a stream says that it is alive."""
SLOW_BODY = 60.0
"""Seconds in which a body has to have come."""


class Exchange:
    """One request and the response to it. `left`: the client has. `gone` is set then, and by whoever else ends the
    work: what there is of an answer is still sent."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive, self._send = receive, send
        self.gone = asyncio.Event()
        self.started = self.left = False
        self._lookout: Lookout | None = None
        self.headers: dict[str, str] = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        self.extra: dict[str, str] = {}

    @property
    def path(self) -> str:
        """The path that was asked for."""
        return str(self.scope["path"])

    @property
    def method(self) -> str:
        """GET, POST, ..."""
        return str(self.scope["method"])

    @property
    def query(self) -> Mapping[str, str]:
        """The query string, the last value of each name."""
        from urllib.parse import parse_qsl

        return dict(parse_qsl(self.scope.get("query_string", b"").decode("latin-1")))

    async def body(self, most: int = MOST_BODY) -> bytes:
        """The whole body. Raises Refusal: 413 beyond `most` bytes received, 408 where it does not come."""
        length = self.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise _too_large(most)
        try:
            async with asyncio.timeout(SLOW_BODY):
                return await self._body(most)
        except TimeoutError:
            self.extra["connection"] = "close"  # the rest of it would be waited for
            raise Refusal(408, "invalid_request_error", "the body of the request did not come", "send it") from None

    async def _body(self, most: int) -> bytes:
        parts, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._leave()
                raise Refusal(499, "invalid_request_error", "the client left while it sent its request")
            part = message.get("body", b"")
            size += len(part)
            if size > most:
                raise _too_large(most)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[asyncio.Event]:
        """Inside it, `gone` is set as soon as the client leaves. Only after the body was read."""
        watching = asyncio.create_task(self._watch())
        try:
            yield self.gone
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        self.left = True
        self.gone.set()

    # ------------------------------------------------------------ sending

    async def json(self, document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Sends a document whole."""
        await self.data(to_json(document, inf_nan_mode="null"), "application/json", status, headers)

    async def data(self, body: bytes, kind: str, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Sends bytes whole."""
        await self._start(status, {"content-type": kind, "content-length": str(len(body)), **(headers or {})})
        await self._put(body, more=False)

    async def stream(
        self,
        pieces: AsyncIterator[bytes],
        kind: str = "text/event-stream",
        headers: Mapping[str, str] | None = None,
        ping: bytes = b"",
    ) -> None:
        """Sends pieces as they come, and `ping` in long silences. Once the client has left they are read to the end and
        sent nowhere."""
        usual = {"content-type": kind, "cache-control": "no-cache", "x-accel-buffering": "no"}
        self._lookout = lookout = Lookout(self._send, ping)
        try:
            await self._start(200, {**usual, **(headers or {})})
            async for piece in pieces:
                await self._put(piece, more=True)
            await self._put(b"", more=False)
        finally:
            lookout.end()

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True
        lines = [*headers.items(), *self.extra.items()]
        await self._push({"type": "http.response.start", "status": status, "headers": _encoded(lines)})

    async def _put(self, body: bytes, more: bool) -> None:
        await self._push({"type": "http.response.body", "body": body, "more_body": more})

    async def _push(self, message: MutableMapping[str, Any]) -> None:
        if self.left:
            return
        try:
            await (self._send if self._lookout is None else self._lookout.send)(message)
        except (TimeoutError, OSError):
            self._leave()


class Lookout:
    """Looks at a stream of the current task from time to time: breaks silence by pings, and gives up a client that
    takes nothing. `send` raises TimeoutError for one."""

    def __init__(self, send: Send, ping: bytes) -> None:
        self._send, self._ping = send, ping
        self._loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._sending = self._stuck = False
        self._moved = self._loop.time()
        self._pinging: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(min(PING, STALLED), self._look)

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Sends it."""
        self._sending, self._moved = True, self._loop.time()
        try:
            await self._send(message)
        except asyncio.CancelledError:
            if self._stuck and self._task.uncancel() <= self._cancelling:
                raise TimeoutError from None
            raise
        finally:
            self._sending, self._moved = False, self._loop.time()

    def end(self) -> None:
        """Looks no more."""
        self._timer.cancel()
        self._ping = b""

    def _look(self) -> None:
        patience, quiet = STALLED if self._sending else PING, self._loop.time() - self._moved
        if quiet >= patience and self._sending:
            self._stuck = True
            self._task.cancel()
            return
        if quiet >= patience:
            self._moved, quiet = self._loop.time(), 0.0
            self._pinging = self._loop.create_task(self._say())
        self._timer = self._loop.call_later(max(0.001, min(STALLED, PING, patience - quiet)), self._look)

    async def _say(self) -> None:
        if self._ping:
            with suppress(OSError, RuntimeError):  # the stream ended while this one waited
                await self._send({"type": "http.response.body", "body": self._ping, "more_body": True})


def _encoded(lines: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), _one_line(value).encode("latin-1", "replace")) for name, value in lines]


def _one_line(value: str) -> str:
    """A header's value cannot begin another header."""
    return value if value.isprintable() else "".join(each for each in value if each.isprintable())


def _too_large(most: int) -> Refusal:
    return Refusal(413, "invalid_request_error", f"the request is larger than {most >> 20} MiB", "send less")


def check_headers(scope: Scope) -> None:
    """Raises Refusal, 431, for header lines that are too long."""
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADERS:
        raise Refusal(431, "invalid_request_error", f"the headers are longer than {MOST_HEADERS} bytes", "send less")

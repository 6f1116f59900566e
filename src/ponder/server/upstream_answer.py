"""The answer of an upstream as it comes: status and headers, then pieces of a body, within bounds of time and size."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

import httptools

MOST_HEAD = 64 * 2**10
"""Bytes of a status line and headers."""
MOST_BODY = 32 * 2**20
"""Bytes of a body that is read whole."""
MOST_UNREAD = 256 * 2**10
"""Bytes that wait for a slow reader before the server is made to wait."""

Kind = Literal["unreachable", "broken", "silent", "garbled", "cut"]


class WireError(Exception):
    """What went wrong between here and the server. Only what is `unreachable` was surely never sent."""

    def __init__(self, kind: Kind, problem: str) -> None:
        super().__init__(problem)
        self.kind, self.problem = kind, problem


@dataclass(frozen=True)
class Timeouts:
    """Seconds: for a connection, until the first byte of a body, between two bytes."""

    connect: float = 10.0
    first: float = 600.0
    silence: float = 120.0


class Carrier(Protocol):
    """The connection that an answer comes over."""

    def free(self, reusable: bool) -> None:
        """Nobody reads the answer any more."""
        ...

    def hold(self, on: bool) -> None:
        """Makes the server wait, or go on."""
        ...


def words_of(error: BaseException) -> str:
    """What an error says."""
    strerror = getattr(error, "strerror", None)
    return str(strerror or error or type(error).__name__)


class Answer:
    """The answer to one request: status and headers, then pieces of its body."""

    def __init__(self, connection: Carrier, timeouts: Timeouts) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.heard = False
        self._connection: Carrier | None = connection
        self._timeouts = timeouts
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: deque[bytes] = deque()
        self._unread = self._head = self._lines = 0
        self._held = self._complete = self._begun = self._reusable = False
        self._error: WireError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._patience = timeouts.first
        self._timer = self._loop.call_later(self._patience, self._late)

    # ------------------------------------------------------------ reading

    @property
    def kind(self) -> str:
        """Its content type, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def begun(self) -> None:
        """Waits for status and headers. Raises WireError."""
        while not self._begun:
            await self._wait()

    async def piece(self) -> bytes:
        """Some bytes of the body, all that are there; none at its end. Raises WireError."""
        while not self._pieces:
            if self._complete:
                return b""
            await self._wait()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._unread = 0
        if self._held and self._connection is not None:
            self._held = False
            self._heard_at = self._loop.time()
            self._connection.hold(False)
        return data

    async def read(self, most: int = MOST_BODY) -> bytes:
        """The whole body. Raises WireError, also for more than `most` bytes."""
        parts, size = [], 0
        while part := await self.piece():
            size += len(part)
            if size > most:
                raise WireError("garbled", f"the body is longer than {most} bytes")
            parts.append(part)
        return b"".join(parts)

    def hurry(self, seconds: float) -> None:
        """Waits no longer than this for what is left of the body."""
        self._patience = seconds
        if not self._complete:
            self._timer.cancel()
            self._timer = self._loop.call_later(seconds, self._late)

    def close(self) -> None:
        """Ends the exchange: the connection is kept if all of it came, and closed at once if not."""
        self._timer.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.free(self._complete and self._reusable and not self._held)

    def abort(self) -> None:
        """Ends the exchange now, from outside: whoever reads gets a WireError of the kind "cut"."""
        if not self._complete:
            self._fail(WireError("cut", "ended here"))

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._error is not None and not self._pieces:
            raise self._error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: WireError) -> None:
        if self._error is None and not self._complete:
            self._error = error
            self._wake()
            self.close()

    def _late(self) -> None:
        """The timer is set once for the patience of an answer, and looks then whether something came meanwhile."""
        left = self._heard_at + self._patience - self._loop.time()
        if self._held:  # it is the reader that is slow
            left = self._patience
        if left > 0.001:
            self._timer = self._loop.call_later(left, self._late)
        else:
            self._fail(WireError("silent", f"silent for {self._patience:g} s"))

    # ------------------------------------------------------------ told by the connection

    def feed(self, data: bytes) -> None:
        """Bytes from the server."""
        if self._complete:  # more than was asked for
            self._reusable = False
            return
        self.heard = True
        self._heard_at = self._loop.time()
        if not self._begun:
            self._head += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(WireError("garbled", f"no HTTP: {words_of(error) or 'it cannot be read'}"))
            return
        if (not self._begun and self._head > MOST_HEAD) or self._lines > MOST_HEAD:
            self._fail(WireError("garbled", f"headers longer than {MOST_HEAD} bytes"))

    def ended(self, error: Exception | None) -> None:
        """The connection is gone."""
        endless = not {"content-length", "transfer-encoding"} & self.headers.keys()
        if self._begun and endless and error is None and not self._complete:
            self.on_message_complete()
        why = "in the middle of its answer" if self.heard else "without an answer"
        self._fail(WireError("broken", f"the connection ended {why}"))

    # ------------------------------------------------------------ told by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line. A second answer, which nobody asked for, is never taken for a part of this one."""
        if self._complete:
            self._reusable = False
            return
        self._lines += len(name) + len(value)
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """All of them."""
        if self._complete:
            self._reusable = False
            return
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers.clear()
            return
        self._begun = True
        self._wake()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._complete:
            return
        if self._patience == self._timeouts.first != self._timeouts.silence:
            self._patience = self._timeouts.silence
            self._timer.cancel()
            self._timer = self._loop.call_later(self._patience, self._late)
        self._pieces.append(body)
        self._unread += len(body)
        if self._unread > MOST_UNREAD and not self._held and self._connection is not None:
            self._held = True
            self._connection.hold(True)
        self._wake()

    def on_message_complete(self) -> None:
        """The end of the body."""
        if self.status >= 200 and not self._complete:
            self._reusable = self._parser.should_keep_alive()
            self._complete = True
            self._timer.cancel()
            self._wake()

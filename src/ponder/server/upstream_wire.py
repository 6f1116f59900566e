"""HTTP/1.1 to one server, for upstreams: kept connections, bounded times and sizes, and an end at any moment.

A thin client over asyncio and httptools, since a gateway pays for its client with every request. It follows no
redirects, asks for no compression, uses no proxy, and verifies certificates. Secrets are in no repr and in no message.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from ponder.errors import InputError
from ponder.server.upstream_answer import MOST_BODY, Answer, Timeouts, WireError, words_of

MOST_IDLE = 64
"""Connections that are kept for the next requests."""
IDLE = 4.0
"""Seconds that a connection is kept: less than servers keep theirs, for a request on one that the server is closing is
lost, and nobody can tell whether it was begun."""


class Cut:
    """Ends what is under way, whatever it waits for. `reason` says why; the first one stays."""

    def __init__(self) -> None:
        self.reason = ""
        self._action: Callable[[], object] | None = None

    def now(self, reason: str) -> None:
        """Ends it."""
        if not self.reason:
            self.reason = reason
            if self._action is not None:
                self._action()

    def on(self, action: Callable[[], object] | None) -> None:
        """What has to be done to end what is under way now."""
        self._action = action
        if self.reason and action is not None:
            action()

    async def pause(self, seconds: float) -> bool:
        """Sleeps; whether it came to its end."""
        ended = asyncio.Event()
        self.on(ended.set)
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        except TimeoutError:
            return not self.reason
        finally:
            self.on(None)
        return False


@dataclass(frozen=True)
class Address:
    """Where a server is. Raises InputError for what is no address of one."""

    url: str
    secure: bool = field(init=False)
    host: str = field(init=False)
    port: int = field(init=False)
    path: str = field(init=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise InputError("an upstream's url is no address", "write http://HOST:PORT/v1") from None
        sound = parts.scheme in ("http", "https") and host and self.url.isascii() and self.url.isprintable()
        if not sound or " " in self.url:
            raise InputError(f"{self.url.rpartition('@')[2]!r} is no address", "write http://HOST:PORT/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InputError(
                f"the url of {host} holds more than a place", "put a key into key_env, and leave the rest out"
            )
        values = {"secure": parts.scheme == "https", "host": host, "path": parts.path.rstrip("/")}
        values["port"] = port or (443 if values["secure"] else 80)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def authority(self) -> str:
        """Host and port, as the header `host` has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


class Wire:
    """Requests to one server. headers: sent with each, the key among them. ca: a file of certificates to trust. pinned:
    the address to connect to, in place of looking the host up."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeouts: Timeouts | None = None,
        ca: Path | None = None,
        pinned: str = "",
    ) -> None:
        self.address = Address(url)
        self._place = pinned or self.address.host
        self.timeouts = timeouts or Timeouts()
        lines = {"host": self.address.authority, "user-agent": "ponder", **(headers or {})}
        self._head = "".join(f"{name}: {_one_line(value)}\r\n" for name, value in lines.items()).encode("latin-1")
        self._tls = _tls(ca) if self.address.secure else None
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()

    def __repr__(self) -> str:
        return f"Wire({self.address.url!r})"

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        cut: Cut | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer to a request, as soon as its headers are there; the caller closes it. Raises WireError.

        path: after the path of the address, or from its root where it begins with "//".
        """
        cut = cut or Cut()
        connection = self._kept() or await self._connected(cut)
        answer = connection.send(self._request(method, path, body, headers or {}), self.timeouts)
        cut.on(answer.abort)
        try:
            await answer.begun()
        except BaseException:
            answer.close()
            raise
        return answer

    async def fetch(self, method: str, path: str, body: bytes = b"", most: int = MOST_BODY) -> tuple[int, bytes]:
        """Status and whole body of a small exchange. Raises WireError."""
        answer = await self.ask(method, path, body)
        try:
            return answer.status, await answer.read(most)
        finally:
            answer.close()

    async def close(self) -> None:
        """Closes every connection; what is under way fails."""
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)

    # ------------------------------------------------------------ connections

    def _kept(self) -> Connection | None:
        """The connection that was used last, if it is still good. The older ones are closed as they grow old."""
        now = asyncio.get_running_loop().time()
        while self._idle and (self._idle[0].closed or now - self._idle[0].since > IDLE):
            self._idle.popleft().abort()
        while self._idle:
            connection = self._idle.pop()
            if connection.idle:
                return connection
            connection.abort()
        return None

    async def _connected(self, cut: Cut) -> Connection:
        loop, address = asyncio.get_running_loop(), self.address
        name = address.host if self._tls else None
        connecting = asyncio.ensure_future(
            loop.create_connection(
                lambda: Connection(self), self._place, address.port, ssl=self._tls, server_hostname=name
            )
        )
        cut.on(connecting.cancel)
        try:
            async with asyncio.timeout(self.timeouts.connect):
                _, connection = await connecting
        except TimeoutError:
            raise WireError("unreachable", f"no connection within {self.timeouts.connect:g} s") from None
        except ssl.SSLError as error:
            raise WireError("unreachable", f"TLS failed: {error.reason or 'no secure connection'}") from None
        except OSError as error:
            raise WireError("unreachable", words_of(error)) from None
        except asyncio.CancelledError:
            if cut.reason:
                raise WireError("cut", cut.reason) from None
            raise
        finally:
            cut.on(None)
        return connection

    def opened(self, connection: Connection) -> None:
        """Told by a connection that it is there."""
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        """Told by a connection that it is no more."""
        self._open.discard(connection)

    def keep(self, connection: Connection) -> None:
        """Takes a connection back whose exchange is complete."""
        if len(self._idle) < MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.abort()

    def _request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        target = path[1:] if path.startswith("//") else self.address.path + path
        more = "".join(f"{name}: {_one_line(value)}\r\n" for name, value in headers.items())
        kind = "content-type: application/json\r\n" if body and "content-type" not in headers else ""
        length = f"content-length: {len(body)}\r\n" if body or method != "GET" else ""
        return b"".join(
            (f"{method} {target} HTTP/1.1\r\n".encode(), self._head, f"{more}{kind}{length}\r\n".encode(), body)
        )


def _tls(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"{ca} holds no certificates: {words_of(error)}", "name a file in PEM") from None


def _one_line(value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise InputError("a header holds a character that no header has", "mend the key, or the headers")
    return value


class Connection(asyncio.Protocol):
    """One connection, with one exchange at a time."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self.since = 0.0

    @property
    def closed(self) -> bool:
        """Whether no request can be sent over it."""
        return self._transport is None or self._transport.is_closing()

    @property
    def idle(self) -> bool:
        """Whether it can be used again. What can be read on it before it was asked anything is the end of it, which
        asyncio may not have told yet."""
        if self._transport is None or self._transport.is_closing():
            return False
        looking = select.poll() if hasattr(select, "poll") else None
        if looking is None:  # there is none on Windows
            return True
        looking.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not looking.poll(0)

    def send(self, request: bytes, timeouts: Timeouts) -> Answer:
        """Sends a request; its answer comes."""
        assert self._transport is not None
        assert self._answer is None
        self._answer = Answer(self, timeouts)
        self._transport.write(request)
        return self._answer

    def free(self, reusable: bool) -> None:
        """Told by the answer that nobody reads it any more."""
        self._answer = None
        if reusable and not self.closed:
            self.since = asyncio.get_running_loop().time()
            self._wire.keep(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Closes it at once, whatever has not been sent."""
        if self._transport is not None:
            self._transport.abort()

    def hold(self, on: bool) -> None:
        """Makes the server wait, or go on."""
        if not self.closed:
            assert self._transport is not None
            self._transport.pause_reading() if on else self._transport.resume_reading()

    # ------------------------------------------------------------ told by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """There it is."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, and no subclass of it
        self._wire.opened(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer; ones that nobody asked for end the connection."""
        if self._answer is None:
            self.abort()
        else:
            self._answer.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._transport = None
        self._wire.lost(self)
        if self._answer is not None:
            self._answer.ended(exc)

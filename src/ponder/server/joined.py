"""Writes of one turn of the event loop as one.

uvicorn writes a response's head, each piece of its body and its end one by one, and each write is a call of the system
that may wake the client up for a few bytes. What is written before the loop turns goes out together here: nothing is
held back that waits for anything.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST = 64 * 2**10
"""Bytes that are gathered; more goes out at once, so that a slow reader is noticed."""


class Joined:
    """A transport whose writes wait for the end of the turn, or for `flush`."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []
        self._size = 0
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Sends it soon."""
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > MOST:
            self.flush()

    def flush(self) -> None:
        """Sends what waits."""
        if self._parts:
            data, self._size = b"".join(self._parts), 0
            self._parts.clear()
            if not self._transport.is_closing():
                self._transport.write(data)

    def close(self) -> None:
        """Sends what waits, then ends the connection."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class JoinedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with such a transport. A whole response goes out at its end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio once."""
        super().connection_made(cast(asyncio.Transport, Joined(transport)))

    def on_response_complete(self) -> None:
        """Called by uvicorn at the end of each response."""
        cast(Joined, self.transport).flush()
        super().on_response_complete()

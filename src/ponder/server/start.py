"""`ponder serve` put together: models, desk, books, watches, routes, and a server that drains before it ends."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from ponder.errors import InputError
from ponder.server.joined import JoinedProtocol

DRAIN = 30.0
"""Seconds that requests at work have to end in once the server is told to stop."""
KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than most proxies keep theirs, so that they close it."""
GARBAGE = (20_000, 20, 50)
"""Objects, and rounds, between two looks for cycles: a request makes about a thousand objects and hardly a cycle."""


class Server(uvicorn.Server):
    """uvicorn, which tells when it takes connections, and the desk of a signal: the first drains, the second stops."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[bool], None], ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_signal, self._ready = on_signal, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn once; after it, connections are taken."""
        await super().startup(sockets)
        if not self.should_exit:
            gc.collect()
            gc.freeze()  # what is there now stays: looking through it again and again would delay requests
            gc.set_threshold(*GARBAGE)
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn in its loop, once for each signal. It would raise the signal again once it has served, and
        the process would die of it before anything is closed."""
        self._on_signal(self.should_exit or sig == signal.SIGINT)
        self.should_exit = True


def configured(app: Any, host: str, port: int) -> uvicorn.Config:
    """How uvicorn runs: no access log (telemetry has its own), no header that names the software."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=JoinedProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        backlog=1024,
        timeout_graceful_shutdown=None,
    )


def check_bind(host: str, keys: bool) -> None:
    """Raises InputError where a server without keys would listen beyond this machine."""
    if not keys and not loopback(host):
        raise InputError(
            f"a server on {host} without keys answers everybody who can reach it",
            "make a key with: ponder keys add NAME, or listen on 127.0.0.1",
        )


def loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


async def run(
    app: Any,
    host: str,
    port: int,
    on_signal: Callable[[bool], None],
    ready: Callable[[int], None],
    stopped: asyncio.Event | None = None,
) -> None:
    """Serves until a signal, or until `stopped` is set. Raises InputError where the address is taken.

    `on_signal(hurry)`: drain, or stop at once. `ready(port)` is called once connections are taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio switches Nagle's algorithm off: without it, a reply waits 40 ms for an ACK.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
    except OSError as error:
        listening.close()
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror}", "choose another --port, or stop what listens there"
        ) from None
    server = Server(configured(app, host, port), on_signal, lambda: ready(listening.getsockname()[1]))
    waiting = asyncio.create_task(_stop(server, stopped)) if stopped is not None else None
    try:
        await server.serve(sockets=[listening])
    finally:
        listening.close()
        if waiting is not None:
            waiting.cancel()


async def _stop(server: Server, stopped: asyncio.Event) -> None:
    await stopped.wait()
    server.handle_exit(signal.SIGTERM, None)

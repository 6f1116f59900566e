"""A server of ours in a thread of its own, on real sockets, for clients of any kind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ponder.server.app import App
from ponder.server.start import run


class Serving:
    """An app that is being served. `on_loop` runs something in its event loop."""

    def __init__(self, make: Callable[[], Awaitable[tuple[App, Callable[[bool], None]]]]) -> None:
        self._make = make
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self.port = 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._server: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def on_loop(self, work: Callable[[], Any]) -> Any:
        async def done() -> Any:
            return work()

        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(done(), self.loop).result(30)

    def __enter__(self) -> Serving:
        self._thread.start()
        assert self._ready.wait(60)
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive(), "the server did not end"

    def _work(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
            self._ready.set()

    async def _serve(self) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app, on_signal = await self._make()

        def ready(port: int) -> None:
            self.port = port
            self._ready.set()

        serving = asyncio.create_task(run(app, "127.0.0.1", 0, on_signal, ready, stopped=self._stop))
        await serving


@contextmanager
def served(make: Callable[[], Awaitable[tuple[App, Callable[[bool], None]]]]) -> Iterator[Serving]:
    """Serves what `make` makes in the loop that serves it."""
    with Serving(make) as server:
        yield server

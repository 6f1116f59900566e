"""What ends a request at an upstream from outside, the client that left and the time that is up, and what its breaker
learns of it. Both kinds of requests have them: those for an answer (`upstream_run`) and all others (`upstream_job`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from ponder.server.failures import Refusal
from ponder.server.request import Request
from ponder.server.upstream_breaker import Breaker
from ponder.server.upstream_failures import its_own_fault
from ponder.server.upstream_wire import Cut


class Until:
    """The bounds of one request. `cut` is what they end it by: "stopped", or "deadline"."""

    def __init__(self, request: Request, stop: asyncio.Event) -> None:
        self.cut = Cut()
        self._stop, self._loop = stop, asyncio.get_running_loop()
        bounds = [each for each in (request.deadline, request.budget.seconds) if each is not None]
        self._end = self._loop.time() + min(bounds) if bounds else None

    @property
    def left(self) -> float:
        """Seconds."""
        return float("inf") if self._end is None else self._end - self._loop.time()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """While it lasts, what is under way is ended from outside."""
        watching = asyncio.create_task(self._stop.wait())
        watching.add_done_callback(lambda task: None if task.cancelled() else self.cut.now("stopped"))
        timer = None if self._end is None else self._loop.call_at(self._end, self.cut.now, "deadline")
        try:
            yield
        finally:
            watching.cancel()
            if timer is not None:
                timer.cancel()


def learned(breaker: Breaker, whole: bool, cut: bool, refusal: Refusal | None) -> None:
    """Tells the breaker, once, what came of a request that it let through."""
    if whole:
        breaker.succeeded()
    elif refusal is None or cut or refusal.status == 429:
        breaker.abandoned()
    elif its_own_fault(refusal):
        breaker.failed(refusal.code or refusal.kind)
    else:
        breaker.succeeded()

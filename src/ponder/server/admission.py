"""Who may run now: a bound on requests at work, a queue that is fair among keys, and a clear no when it is full.

    of all keys with a waiting request, the one that has the fewest at work goes next; among those, the one whose
    last turn is longest ago

So a key with a hundred requests waiting delays a key with one by one turn, not by a hundred. A full queue answers
503 with the seconds after which a place is to be expected:

    retry after = (waiting + 1) / running limit * mean seconds of a request

Source: max-min fairness, Bertsekas and Gallager, Data Networks (1992), section 6.5.2.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ponder.server.failures import Refusal, limited, overloaded

MEMORY = 0.1
"""Weight of the newest request in the mean of seconds."""


@dataclass
class _Key:
    """The requests of one key. turn: when its last one was let in."""

    running: int = 0
    turn: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Admission:
    """Lets at most `running` requests work at once, and `waiting` wait; of one key at most `of_key` in both."""

    def __init__(self, running: int = 64, waiting: int = 256, of_key: int | None = None) -> None:
        if running < 1 or waiting < 0 or (of_key is not None and of_key < 1):
            raise ValueError("at least 1 running, 0 waiting and 1 of a key")
        self.limit, self.room, self.of_key = running, waiting, of_key
        self.running = self.waiting = 0
        self._keys: dict[str, _Key] = {}
        self._turns = itertools.count(1)
        self._seconds = 1.0
        self._closed = False

    @asynccontextmanager
    async def place(self, key: str, gone: asyncio.Event | None = None) -> AsyncIterator[float]:
        """A place among the running; gives the seconds that were waited.

        Raises Refusal: 503 where the queue is full or the server drains, 429 where the key has its share already, 499
        once `gone` is set before its turn.
        """
        began = time.monotonic()
        await self._enter(key, gone)
        entered = time.monotonic()
        try:
            yield entered - began
        finally:
            self._seconds += MEMORY * (time.monotonic() - entered - self._seconds)
            self._leave(key)

    def close(self) -> None:
        """Lets nobody in any more: those that wait are refused, those at work go on."""
        self._closed = True
        for each in self._keys.values():
            for future in each.waiting:
                if not future.done():
                    future.set_exception(self._draining())

    @property
    def closed(self) -> bool:
        """Whether nobody is let in any more."""
        return self._closed

    @property
    def retry_after(self) -> float:
        """Seconds after which a place is to be expected."""
        return max(1.0, math.ceil((self.waiting + 1) / self.limit * self._seconds))

    async def _enter(self, key: str, gone: asyncio.Event | None) -> None:
        if self._closed:
            raise self._draining()
        if gone is not None and gone.is_set():
            raise _left()
        mine = self._keys.setdefault(key, _Key())
        if self.of_key is not None and mine.running + len(mine.waiting) >= self.of_key:
            raise limited(f"this key has {self.of_key} requests at work or waiting", self.retry_after, "concurrency")
        if self.running < self.limit and not self.waiting:
            self._let_in(mine)
            return
        if self.waiting >= self.room:
            self._forget(key)
            raise overloaded(f"{self.running} requests are at work and {self.waiting} wait", self.retry_after)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        mine.waiting.append(future)
        self.waiting += 1
        leaving = asyncio.create_task(_cancel_once(gone, future)) if gone is not None else None
        try:
            await future
        except BaseException as error:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._leave(key)  # the place was given, and nobody is there to take it
            elif future in mine.waiting:
                mine.waiting.remove(future)
                self.waiting -= 1
                self._forget(key)
            if isinstance(error, asyncio.CancelledError) and gone is not None and gone.is_set():
                raise _left() from None
            raise
        finally:
            if leaving is not None:
                leaving.cancel()

    def _let_in(self, mine: _Key) -> None:
        mine.running += 1
        mine.turn = next(self._turns)
        self.running += 1

    def _leave(self, key: str) -> None:
        self._keys[key].running -= 1
        self.running -= 1
        self._forget(key)
        while self.waiting and self.running < self.limit and not self._closed:
            waiting = [each for each in self._keys.values() if each.waiting]
            chosen = min(waiting, key=lambda each: (each.running, each.turn))
            future = chosen.waiting.popleft()
            self.waiting -= 1
            if not future.done():  # one whose request went away takes no place
                self._let_in(chosen)
                future.set_result(None)

    def _forget(self, key: str) -> None:
        mine = self._keys.get(key)
        if mine is not None and not mine.running and not mine.waiting:
            del self._keys[key]

    def _draining(self) -> Exception:
        return overloaded("the server is shutting down", 1.0)


async def _cancel_once(gone: asyncio.Event, future: asyncio.Future[None]) -> None:
    await gone.wait()
    future.cancel()


def _left() -> Refusal:
    return Refusal(499, "invalid_request_error", "the client left before its turn")

"""The newest requests, for pages: what has ended, when, and what of it a caller may see."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ponder.ops.finished import Finished
from ponder.server.request import Caller

MOST = 500
"""Requests that pages can look back on."""


@dataclass(frozen=True)
class Entry:
    """A request that has ended. number: from 1 on, in the order of their ends. when: seconds since 1970."""

    number: int
    when: float
    request: Finished

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return {"number": self.number, "when": self.when, "ok": self.request.succeeded, **self.request.fields()}


class Feed:
    """A ring of requests: `finished` is a listener of `watching.Telling`."""

    def __init__(self, most: int = MOST, clock: Callable[[], float] = time.time) -> None:
        self._ring: deque[Entry] = deque(maxlen=most)
        self._clock = clock
        self.last = 0
        """The number of the newest request."""

    def finished(self, request: Finished) -> None:
        """Takes in a request."""
        self.last += 1
        self._ring.append(Entry(self.last, self._clock(), request))

    def after(self, number: int, caller: Caller) -> list[Entry]:
        """Those after a number, in their order. Who has a key sees its own requests."""
        if number >= self.last:
            return []
        return [each for each in self._ring if each.number > number and _sees(caller, each.request)]


def _sees(caller: Caller, request: Finished) -> bool:
    return not caller.key or caller.key == request.key_id

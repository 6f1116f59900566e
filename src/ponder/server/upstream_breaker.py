"""A circuit breaker: an upstream that keeps failing is left alone for a while, then tried with one request.

    closed     requests pass; opens after `failures` in a row, or once a share `rate` of the last `window` has failed
    open       nothing passes for `pause` seconds, doubled each time up to `longest`
    half-open  one request passes: its success closes, its failure opens again

Sources: Nygard, Release It! (2007), section 5.2, for the three states; the share of failures in a window beside the
count in a row is that of Hystrix (2012).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True)
class BreakerSettings:
    """When to open, and for how long, in seconds."""

    failures: int = 5
    rate: float = 0.5
    window: int = 20
    pause: float = 5.0
    longest: float = 60.0

    def __post_init__(self) -> None:
        if self.failures < 1 or self.window < 1 or not 0 < self.rate <= 1 or not 0 < self.pause <= self.longest:
            raise ValueError(f"no breaker works with {self}")


class Breaker:
    """Told of each request: `enter`, and then one of `succeeded`, `failed`, `abandoned`."""

    def __init__(self, settings: BreakerSettings | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings or BreakerSettings()
        self._clock = clock
        self._recent: deque[bool] = deque(maxlen=self._settings.window)
        self._row = 0
        self._until: float | None = None
        self._pause = self._settings.pause
        self._trying = False
        self._changed = time.time()
        self.error = ""
        """What the last failure was, in a word."""

    @property
    def state(self) -> State:
        """What it does with the next request."""
        if self._until is None:
            return "closed"
        return "open" if self._trying or self._clock() < self._until else "half-open"

    @property
    def since(self) -> float:
        """When that state began, in seconds since 1970."""
        return self._changed + (self._pause if self.state == "half-open" else 0.0)

    @property
    def left(self) -> float:
        """Seconds until a request may pass, 0 where one may now."""
        if self._until is None:
            return 0.0
        return max(0.0, self._until - self._clock()) or (self._settings.pause if self._trying else 0.0)

    def enter(self) -> bool:
        """Whether a request may pass; while half-open the first may, and the others wait for what comes of it."""
        state = self.state
        if state == "half-open":
            self._trying = True
        return state != "open"

    def succeeded(self) -> None:
        """The upstream did what it should."""
        if self._until is not None and not self._trying:
            return  # one that was under way when it opened
        if self._until is not None:
            self._changed = time.time()
        self._until, self._trying, self._row = None, False, 0
        self._pause = self._settings.pause
        self._recent.append(True)

    def failed(self, error: str = "") -> None:
        """The upstream failed."""
        self.error = error
        if self._until is not None:
            if self._trying:
                self._open(min(2 * self._pause, self._settings.longest))
            return  # of those that were under way when it opened nothing new is learned
        self._row += 1
        self._recent.append(False)
        full = len(self._recent) == self._settings.window
        bad = self._recent.count(False) >= self._settings.rate * self._settings.window
        if self._row >= self._settings.failures or (full and bad):
            self._open(self._pause)

    def abandoned(self) -> None:
        """Nothing was learned: the client left, or the request itself was wrong before it was sent."""
        self._trying = False

    def _open(self, pause: float) -> None:
        self._pause = pause
        self._until, self._changed = self._clock() + pause, time.time()
        self._trying = False
        self._row = 0
        self._recent.clear()

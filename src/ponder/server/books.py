"""The desk's books: reservations and settlements in the ledger, at the prices that are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from ponder.ops.ledger import Ledger
from ponder.ops.ledger_values import Reservation, Settlement
from ponder.ops.limits import Limit, LimitReached
from ponder.ops.metrics import Metrics
from ponder.ops.prices import LOCAL, Prices, Rate
from ponder.server.backend import Served
from ponder.server.desk import Tally
from ponder.server.events import Usage
from ponder.server.failures import limited
from ponder.server.request import Caller, Request

LONGEST = 600.0
"""Seconds that a request may take at most, where one's own machine is paid by the second."""

MOST_TOKENS = 10**9
"""Of one request: what an upstream says beyond it is no count."""

Limits = tuple[tuple[Limit, ...], tuple[Limit, ...]]
"""Those of a key, and those of its project."""


@dataclass(frozen=True)
class _Open:
    reservation: Reservation
    rate: Rate | None


class LedgerBooks:
    """Reserves and settles in a ledger. limits_of: the limits of who asks."""

    def __init__(
        self,
        ledger: Ledger,
        prices: Prices,
        limits_of: Callable[[Caller], Limits] = lambda caller: ((), ()),
        metrics: Metrics | None = None,
    ) -> None:
        self._ledger, self._prices, self._limits_of, self._metrics = ledger, prices, limits_of, metrics
        self._open: dict[str, _Open] = {}

    def reserve(self, request: Request, served: Served, most: Usage) -> str:
        """Puts the worst case aside. Raises Refusal, 429, where a limit is reached."""
        rate = self._rate(served)
        limits, project_limits = self._limits_of(request.caller)
        version = request.prompt
        reservation = Reservation(
            request.id,
            key=request.caller.key,
            project=request.caller.project,
            model=served.name,
            backend=served.backend,
            strategy=request.strategy,
            prompt=f"{version.name}@{version.version}" if version else "",
            tokens_most=most.prompt + most.completion,
            micro_most=_most(rate, served, most),
            limits=limits,
            project_limits=project_limits,
        )
        try:
            self._timed("reserve", lambda: self._ledger.reserve(reservation))
        except LimitReached as reached:
            if self._metrics:
                self._metrics.limit_hit(f"{reached.limit.unit}/{reached.limit.window}")
            code = "insufficient_quota" if reached.limit.unit == "USD" else "rate_limit_exceeded"
            raise limited(str(reached), reached.retry_after, code) from None
        self._open[request.id] = _Open(reservation, rate)
        return request.id

    def settle(self, booking: str, tally: Tally) -> None:
        """Books what was used. What nobody could count stays reserved, and counts with its worst case."""
        held = self._open.pop(booking)
        usage = tally.usage
        if usage is None:
            self._timed("settle", lambda: self._ledger.give_up(booking, 0))
            return
        micro = self._micro(held, usage)
        cut = tally.disconnected or not tally.reasons or "cancelled" in tally.reasons
        settlement = Settlement(
            prompt=_count(usage.prompt),
            cached=min(_count(usage.cached), _count(usage.prompt)),
            completion=_count(usage.completion),
            reasoning=min(_count(usage.reasoning), _count(usage.completion)),
            micro=micro,
            state="partial" if cut else "done",
        )
        self._timed("settle", lambda: self._ledger.settle(booking, 0, settlement))

    def void(self, booking: str) -> None:
        """Nothing was sent."""
        self._open.pop(booking, None)
        self._timed("void", lambda: self._ledger.void(booking, 0))

    def priced(self, booking: str, usage: Usage) -> Usage:
        """The usage with what it comes to, before it is settled."""
        micro = self._micro(self._open[booking], usage)
        return usage if micro is None else replace(usage, dollars=micro / 1e6)

    # ------------------------------------------------------------ prices

    def _rate(self, served: Served) -> Rate | None:
        own = served.prompt_price, served.cached_price, served.output_price
        if any(price is not None for price in own):
            prompt, cached, output = (Decimal(str(price or 0)) for price in own)
            return Rate(prompt, cached, output, prompt)
        provider = LOCAL if served.backend == "local" else str(served.details.get("provider", served.backend))
        return self._prices.rate(provider, str(served.details.get("model", served.name)))

    def _micro(self, held: _Open, usage: Usage) -> int | None:
        # A route has asked several at prices of their own, and reserved at the highest.
        if usage.dollars is not None and (held.rate is None or usage.extra.get("attempts")):
            return math.ceil(usage.dollars * 1e6 - 1e-6)
        if held.rate is None:
            return None
        cost = usage.cost
        return held.rate.micro(usage.prompt, usage.cached, usage.completion, seconds=cost.seconds, flops=cost.flops)

    def _timed(self, operation: Literal["reserve", "settle", "void"], work: Callable[[], object]) -> None:
        if self._metrics is None:
            work()
            return
        with self._metrics.ledger(operation):
            work()


def _most(rate: Rate | None, served: Served, most: Usage) -> int | None:
    if rate is None:
        return None
    parameters = served.details.get("parameters")
    flops = 2.0 * parameters * (most.prompt + most.completion) if isinstance(parameters, int) else None
    return rate.most(most.prompt, most.completion, seconds=LONGEST, flops=flops)


def _count(tokens: int) -> int:
    """An upstream may say anything."""
    return min(max(0, tokens), MOST_TOKENS)

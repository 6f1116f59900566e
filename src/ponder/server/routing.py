"""Backends made of others: one model name, several places that may answer for it.

    fallback("gpt", (a, b))             a, and b where a cannot
    weighted("gpt", {a: 3, b: 1})       three of four requests to a
    cheapest_first("gpt", (a, b))       by what the request may cost at each

A request goes on to the next place only before its first event: what has begun is never begun again elsewhere. What
every attempt used is told with the usage, in `Usage.extra["attempts"]`.

Weights are dealt out smoothly, as nginx does: each place gains its weight, the one with most is taken and gives back
the sum of all, so that of any sum(weights) requests in a row each place has its share, evenly spread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from ponder.ops.prices import Rate
from ponder.protocols import closing
from ponder.server.backend import Backend, Served
from ponder.server.events import Begun, ReplyEvent, Usage
from ponder.server.failures import Refusal
from ponder.server.request import Request
from ponder.server.upstream_attempts import attempt, attempts_of, total, without_answer
from ponder.server.upstream_dialect import prompt_tokens

USUAL_TOKENS = 1024
"""Tokens that an answer is taken for where the client bounds none, to compare prices."""

Rates = Callable[[Served], Rate | None]
"""What a model costs, None where that is unknown."""


@dataclass(frozen=True)
class Target:
    """A place that may answer: a backend, and what the model is called there."""

    backend: Backend
    model: str

    @property
    def served(self) -> Served:
        """What the backend says of it."""
        found = (served for served in self.backend.models() if served.name == self.model)
        return next(found, Served(self.model, self.backend.name))

    @property
    def open(self) -> bool:
        """Whether its breaker lets nothing through."""
        breaker = getattr(self.backend, "breaker", None)
        return breaker is not None and breaker.state == "open"


Order = Callable[[Request, Sequence[Target]], Sequence[Target]]
"""In which order places are asked for a request."""


def own_rate(served: Served) -> Rate | None:
    """The prices that a backend states itself."""
    own = served.prompt_price, served.cached_price, served.output_price
    if all(price is None for price in own):
        return None
    prompt, cached, output = (Decimal(str(price or 0)) for price in own)
    return Rate(prompt, prompt if served.cached_price is None else cached, output, prompt)


# ---------------------------------------------------------------- orders


def fallback(model: str, targets: Sequence[Target], rates: Rates = own_rate) -> Route:
    """As they are given."""
    return Route(model, targets, lambda request, places: places, rates)


def weighted(model: str, weights: Mapping[Target, int], rates: Rates = own_rate) -> Route:
    """By weight; where the one whose turn it is cannot answer, the others by their weights."""
    return Route(model, tuple(weights), _Weights(weights), rates)


def cheapest_first(model: str, targets: Sequence[Target], rates: Rates = own_rate) -> Route:
    """By what the request costs at each, those of unknown price last."""

    def order(request: Request, places: Sequence[Target]) -> Sequence[Target]:
        return sorted(places, key=lambda target: _price(request, rates(target.served)))

    return Route(model, targets, order, rates)


class _Weights:
    def __init__(self, weights: Mapping[Target, int]) -> None:
        if not weights or any(weight < 1 for weight in weights.values()):
            raise ValueError("weights must be at least 1")
        self._weights = dict(weights)
        self._gained = dict.fromkeys(weights, 0)

    def __call__(self, request: Request, targets: Sequence[Target]) -> Sequence[Target]:
        ready = [target for target in targets if not target.open] or list(targets)
        for target in ready:
            self._gained[target] += self._weights[target]
        chosen = max(ready, key=lambda target: self._gained[target])
        self._gained[chosen] -= sum(self._weights[target] for target in ready)
        rest = sorted((target for target in targets if target is not chosen), key=lambda each: -self._weights[each])
        return [chosen, *rest]


def _price(request: Request, rate: Rate | None) -> float:
    if rate is None:
        return float("inf")
    micro = rate.micro(prompt_tokens(request), 0, (request.budget.tokens or USUAL_TOKENS) * request.n)
    return float("inf") if micro is None else float(micro)


# ---------------------------------------------------------------- routes


@dataclass
class Attempts:
    """What was tried for one request, and since when."""

    rates: Rates
    began: float = field(default_factory=time.monotonic)
    entries: list[dict[str, Any]] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    lost: bool = False
    """One of them may have made tokens that nobody counted."""
    counted: bool = False
    """One of them told what it used."""

    def refused(self, target: Target, request: Request, refusal: Refusal) -> None:
        """An attempt that gave nothing; where it may have been begun, its prompt counts."""
        self.lost = self.lost or refusal.lost
        usage = without_answer(request, refusal.lost)
        self.usages.append(usage)
        self.entries.append(self._priced(target, attempt(target.backend.name, target.model, usage, str(refusal))))

    def add(self, target: Target, usage: Usage, error: str = "") -> None:
        """An attempt that gave a usage."""
        self.counted = True
        self.usages.append(usage)
        entries = attempts_of(usage, target.backend.name, target.model, error)
        self.entries += [self._priced(target, entry) for entry in entries]

    def failed(self, refusal: Refusal) -> Refusal:
        """The last one, which tells for all of them whether something was lost."""
        refusal.lost = refusal.lost or self.lost
        return refusal

    def total(self) -> Usage:
        """All of them, each entry by itself in `extra`."""
        return total(self.usages, self.entries)

    def _priced(self, target: Target, entry: dict[str, Any]) -> dict[str, Any]:
        rate = self.rates(target.served) if entry["dollars"] is None else None
        micro = rate.micro(entry["prompt"], entry["cached"], entry["completion"]) if rate else None
        return entry if micro is None else entry | {"dollars": micro / 1e6}

    def narrowed(self, request: Request, target: Target) -> Request | None:
        """The request as this target gets it, with the time that is left; None where there is none."""
        spent = time.monotonic() - self.began
        deadline = None if request.deadline is None else request.deadline - spent
        seconds = None if request.budget.seconds is None else request.budget.seconds - spent
        if any(each is not None and each <= 0 for each in (deadline, seconds)):
            return None
        budget = request.budget if seconds is None else replace(request.budget, seconds=seconds)
        return replace(request, model=target.model, deadline=deadline, budget=budget)


class Route:
    """A `backend.Backend` over several places, asked in turn. It closes none of them."""

    def __init__(self, model: str, targets: Sequence[Target], order: Order, rates: Rates = own_rate) -> None:
        if not targets:
            raise ValueError("a route needs a place to go to")
        self.name = model
        self.targets = tuple(targets)
        self._order, self._rates = order, rates

    def models(self) -> tuple[Served, ...]:
        """The one model, as long and as dear as the longest and dearest of its places."""
        return (served_as(self.name, self.targets, self._rates),)

    async def count(self, request: Request) -> int:
        """As the first of the places that can count does."""
        return await counted(self.targets, request)

    async def close(self) -> None:
        """The places are closed by whoever opened them."""

    async def reply(self, request: Request, stop: asyncio.Event) -> AsyncGenerator[ReplyEvent, None]:
        """See `backend.Backend`."""
        attempts, last = Attempts(self._rates), None
        for target in self._sorted(request):
            narrowed = attempts.narrowed(request, target)
            if narrowed is None:
                break
            begun = False
            try:
                async with closing(target.backend.reply(narrowed, stop)) as events:
                    async for event in events:
                        begun = True
                        yield self._told(event, target, attempts)
                return
            except Refusal as refusal:
                if begun or stop.is_set() or not moves_on(refusal):
                    raise attempts.failed(refusal) from None
                last = refusal
                attempts.refused(target, request, refusal)
        late = Refusal(504, "timeout_error", f"no time was left for {self.name}", "allow more", code="timeout")
        raise attempts.failed(last or late)

    def _sorted(self, request: Request) -> list[Target]:
        """Those that are open come last: where nothing else can answer, one of them may be ready to be tried."""
        order = list(self._order(request, self.targets))
        return sorted(order, key=lambda target: target.open)

    def _told(self, event: ReplyEvent, target: Target, attempts: Attempts) -> ReplyEvent:
        if isinstance(event, Begun):
            return replace(event, model=self.name)
        if isinstance(event, Usage):
            attempts.add(target, event)
            return attempts.total()
        return event


def moves_on(refusal: Refusal) -> bool:
    """Whether another place may do better: not where the request itself is wrong."""
    return refusal.status in (404, 408, 429) or refusal.status >= 500 or refusal.code == "context_length_exceeded"


def served_as(model: str, targets: Sequence[Target], rates: Rates) -> Served:
    """What clients see of several places under one name. Its prices are the highest, so that enough is reserved."""
    all_served = [target.served for target in targets]
    contexts = [served.context for served in all_served]
    known = [rate for served in all_served if (rate := rates(served)) is not None]
    priced = len(known) == len(all_served)
    return Served(
        model,
        model,
        max(contexts) if all(contexts) else 0,
        images=any(served.images for served in all_served),
        audio=any(served.audio for served in all_served),
        prompt_price=float(max(rate.prompt for rate in known)) if priced else None,
        cached_price=float(max(rate.cached for rate in known)) if priced else None,
        output_price=float(max(rate.output for rate in known)) if priced else None,
        details={"targets": [f"{target.backend.name}/{target.model}" for target in targets]},
    )


async def counted(targets: Sequence[Target], request: Request) -> int:
    """Tokens of a prompt, by the first place that can count. Raises Refusal where none can."""
    last: Refusal | None = None
    for target in targets:
        try:
            return await target.backend.count(replace(request, model=target.model))
        except Refusal as refusal:
            last = refusal
    assert last is not None
    raise last

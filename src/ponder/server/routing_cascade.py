"""A cascade of backends: a small model answers, and a large one is asked where the small one is not sure enough.

    answer = small(x)   where   c(x) >= threshold,   else   large(x)

with the confidence c of the small model's answer: its mean probability a token, exp(mean log-probability), or what a
verifier says of it. `ponder.strategies.cascade` does the same over engines; backends deal in events, not in samples,
and one of them may be a server that knows no strategies. A choice is shown once it is made, so nothing of an answer
that is not good enough is seen.

Source: Chen, Zaharia and Zou, FrugalGPT (2023), section 3.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from ponder.errors import PonderError
from ponder.protocols import Verifier, closing
from ponder.server.backend import Served
from ponder.server.events import Begun, ReplyEvent, Usage
from ponder.server.failures import Refusal, invalid
from ponder.server.reply import Reply
from ponder.server.request import Request
from ponder.server.routing import Attempts, Rates, Target, counted, own_rate, served_as
from ponder.types import Sample


class Cascade:
    """A `backend.Backend` over two. verifier: None takes the tokens' probability. share: of the time, the small model's
    part at most."""

    def __init__(
        self,
        model: str,
        small: Target,
        large: Target,
        *,
        threshold: float,
        verifier: Verifier | None = None,
        share: float = 0.5,
        rates: Rates = own_rate,
    ) -> None:
        if math.isnan(threshold) or not 0 < share < 1:
            raise ValueError(f"no cascade works with threshold={threshold}, share={share}")
        self.name = model
        self._small, self._large, self._rates = small, large, rates
        self._threshold, self._verifier, self._share = threshold, verifier, share

    def models(self) -> tuple[Served, ...]:
        """The one model."""
        served = served_as(self.name, (self._small, self._large), self._rates)
        # Both may have to be paid: what is reserved must be enough for the two.
        both = [rate for target in (self._small, self._large) if (rate := self._rates(target.served)) is not None]
        if len(both) < 2:
            return (served,)
        prompt, cached, output = (
            float(sum(getattr(rate, name) for rate in both)) for name in ("prompt", "cached", "output")
        )
        return (replace(served, prompt_price=prompt, cached_price=cached, output_price=output),)

    async def count(self, request: Request) -> int:
        """As the first of the two that can count does."""
        return await counted((self._small, self._large), request)

    async def close(self) -> None:
        """The two are closed by whoever opened them."""

    async def reply(self, request: Request, stop: asyncio.Event) -> AsyncGenerator[ReplyEvent, None]:
        """See `backend.Backend`."""
        if request.job is not None:
            raise invalid(f"{self.name} is a cascade, which gives answers alone", "ask one of its models", "model")
        if request.n > 1:
            raise invalid(f"{self.name} is a cascade, which gives one choice", "ask for one", "n")
        attempts = Attempts(self._rates)
        events, failure = await self._tried(request, attempts, stop)
        if failure is None and (stop.is_set() or await self._confidence(request, events) >= self._threshold):
            for event in events:
                yield self._told(event)
            yield attempts.total()
            return
        begun = False
        try:
            narrowed = attempts.narrowed(request, self._large)
            if narrowed is None:
                raise Refusal(504, "timeout_error", f"no time was left for {self.name}", "allow more", code="timeout")
            async with closing(self._large.backend.reply(narrowed, stop)) as answer:
                async for event in answer:
                    begun = True
                    if isinstance(event, Usage):
                        attempts.add(self._large, event)
                        event = attempts.total()
                    yield self._told(event)
        except Refusal as refusal:
            if begun:
                raise
            if failure is not None and attempts.counted:  # the small one's tokens are paid for
                attempts.refused(self._large, request, refusal)
                yield Begun(self.name, self._small.backend.name)
                yield attempts.total()
            if failure is not None:
                raise attempts.failed(refusal) from None
            attempts.refused(self._large, request, refusal)
            for event in events:  # the small one's answer is better than none
                yield self._told(event)
            yield attempts.total()

    async def _tried(
        self, request: Request, attempts: Attempts, stop: asyncio.Event
    ) -> tuple[list[ReplyEvent], Refusal | None]:
        """The small model's answer but for its usage, and why there is none."""
        events: list[ReplyEvent] = []
        asked = self._asked(request)
        try:
            async with closing(self._small.backend.reply(asked, stop)) as answer:
                async for event in answer:
                    if isinstance(event, Usage):
                        attempts.add(self._small, event)
                    else:
                        events.append(event)
        except Refusal as refusal:
            if not any(isinstance(event, Begun) for event in events):
                attempts.refused(self._small, request, refusal)
            elif attempts.entries:
                attempts.entries[-1]["error"] = str(refusal)
            return events, refusal
        return events, None

    def _asked(self, request: Request) -> Request:
        deadline = min((each for each in (request.deadline, request.budget.seconds) if each is not None), default=None)
        sampling = request.sampling
        if self._verifier is None and sampling.logprobs is None:
            sampling = replace(sampling, logprobs=0)
        share = None if deadline is None else deadline * self._share
        budget = request.budget if share is None else replace(request.budget, seconds=share)
        return replace(request, model=self._small.model, deadline=share, sampling=sampling, budget=budget)

    async def _confidence(self, request: Request, events: Sequence[ReplyEvent]) -> float:
        """Of a whole answer; of what was cut short, or cannot be told, it is nothing."""
        reply = Reply()
        for event in events:
            reply.add(event)
        choice = reply.choices.get(0)
        if choice is None or choice.reason not in ("stop", "tool_calls"):
            return -math.inf
        if self._verifier is not None:
            sample = Sample(0, choice.content, thinking=choice.reasoning, answer=choice.content, exact=False)
            try:
                return (await self._verifier(request.question, sample)).value
            except PonderError:
                return -math.inf
        known = [token.logprob for token in choice.tokens if not math.isnan(token.logprob)]
        return math.exp(sum(known) / len(known)) if known else -math.inf

    def _told(self, event: ReplyEvent) -> ReplyEvent:
        return replace(event, model=self.name) if isinstance(event, Begun) else event

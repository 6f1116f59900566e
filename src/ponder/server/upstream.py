"""One server as a backend: its models, its health, its breaker, and what is safe to try again.

    breaker -> request (tried again where nothing was begun) -> first event -> events -> usage

Tried again is only what was surely never begun: a connection that failed, and a status 429, 503 or 529 that says when
to come back. Once a request is with the server nothing sends it a second time, since its tokens are paid for.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ponder.server.backend import Served
from ponder.server.events import ReplyEvent
from ponder.server.failures import Refusal, unknown_model
from ponder.server.public import name_of
from ponder.server.request import Request
from ponder.server.upstream_answer import Answer, Timeouts, WireError
from ponder.server.upstream_breaker import Breaker, BreakerSettings
from ponder.server.upstream_dialect import Ask, Dialect
from ponder.server.upstream_failures import BUSY, of_status, of_wire, one_line, retry_after
from ponder.server.upstream_fan import fanned
from ponder.server.upstream_job import Job
from ponder.server.upstream_run import Run
from ponder.server.upstream_wire import Cut, Wire

MOST_ERROR = 64 * 2**10
"""Bytes of an error's body that are read."""


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens."""

    prompt: float
    output: float
    cached: float | None = None


@dataclass(frozen=True)
class Retries:
    """At most `attempts` tries, pauses of up to `base * 2**k` seconds; a Retry-After beyond `patience` is told on."""

    attempts: int = 3
    base: float = 0.25
    patience: float = 5.0


@dataclass(frozen=True)
class Configuration:
    """How an upstream is spoken to. models: the names that clients use, and what the upstream calls them; empty for
    all that it lists. key: the secret itself, in no repr. check: seconds between two looks at its health, 0 for none.
    """

    url: str
    dialect: Dialect
    key: str = field(default="", repr=False)
    models: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, Price] = field(default_factory=dict)
    timeouts: Timeouts = field(default_factory=Timeouts)
    retries: Retries = field(default_factory=Retries)
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
    health: str = "/models"
    check: float = 15.0
    context: int = 0
    ca: Path | None = None


class Upstream:
    """A `backend.Backend`. media: makes addresses of images into data, for servers that want bytes."""

    def __init__(
        self,
        name: str,
        configuration: Configuration,
        *,
        clock: Callable[[], float] = time.monotonic,
        media: Callable[[Request], Awaitable[Request]] | None = None,
    ) -> None:
        self.name, self.configuration = name, configuration
        self.dialect = configuration.dialect
        self.breaker = Breaker(configuration.breaker, clock)
        self.media = media
        self.healthy: bool | None = None
        """What the last look at its health found; None before the first."""
        headers = self.dialect.headers(configuration.key)
        self._wire = Wire(configuration.url, headers=headers, timeouts=configuration.timeouts, ca=configuration.ca)
        self._models: dict[str, Served] = {}
        self._names = dict(configuration.models)
        self._contexts: Mapping[str, int] = {}
        self._looking: asyncio.Task[None] | None = None
        self._list()

    def __repr__(self) -> str:
        return f"Upstream({self.name!r}, {self.configuration.url!r})"

    # ------------------------------------------------------------ models and health

    def models(self) -> tuple[Served, ...]:
        """Those that are configured, or else those that the server listed last."""
        return tuple(self._models.values())

    async def start(self) -> None:
        """Looks once at the server's models and health, and from then on again and again."""
        await self.look()
        if self.configuration.check and self._looking is None:
            self._looking = asyncio.create_task(self._keep_looking())

    async def look(self) -> bool:
        """Whether the server is there. Its list of models is taken over where it gives one."""
        try:
            async with asyncio.timeout(self.configuration.timeouts.connect + 10):
                status, body = await self._wire.fetch("GET", self.configuration.health)
        except (WireError, TimeoutError):
            status, body = 0, b""
        # 401 to 405: something is there; whether it serves is for requests to find out.
        self.healthy = status == 200 or 401 <= status <= 405
        if not self.healthy and self.breaker.state == "closed":
            self.breaker.failed("unhealthy" if status else "upstream_unreachable")
        with suppress(ValueError, RecursionError):
            document = json.loads(body) if status == 200 else None
            if isinstance(document, dict) and (found := self.dialect.listed(document)):
                self._contexts = found
                self._list()
        return self.healthy

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self.configuration.check * random.uniform(0.8, 1.2))
            await self.look()

    def _list(self) -> None:
        configured = self.configuration.models
        self._names = dict(configured) or {name_of(name): name for name in self._contexts}
        self._models = {name: self._served(name, upstream) for name, upstream in self._names.items()}

    def _served(self, name: str, upstream: str) -> Served:
        price = self.configuration.prices.get(name) or self.configuration.prices.get(upstream)
        # Clients see the details: an address inside is nothing for them, and has no public price.
        public = self.configuration.url if self.configuration.url.startswith("https:") else ""
        provider = self.dialect.provider or public
        return Served(
            name,
            self.name,
            self.configuration.context or self._contexts.get(upstream, 0),
            owned_by=self.name,
            prompt_price=price.prompt if price else None,
            cached_price=(price.prompt if price.cached is None else price.cached) if price else None,
            output_price=price.output if price else None,
            details={"model": upstream, **({"provider": provider} if provider else {})},
        )

    def upstream_model(self, request: Request) -> str:
        """What the server calls the model. Raises Refusal, 404."""
        name = request.model or next(iter(self._names), "")
        if name not in self._names:
            raise unknown_model(name, f"{self.name} has {', '.join(list(self._names)[:8]) or 'none at the moment'}")
        return self._names[name]

    # ------------------------------------------------------------ answers

    def reply(self, request: Request, stop: asyncio.Event) -> AsyncGenerator[ReplyEvent, None]:
        """See `backend.Backend`."""
        if request.job is not None:
            return Job(self, request, stop).events()
        if request.n > 1 and not self.dialect.several:
            return fanned(request, stop, lambda each, over: Run(self, each, over).events(), self.name)
        return Run(self, request, stop).events()

    async def count(self, request: Request) -> int:
        """As the server counts. Raises Refusal: 501 where it does not."""
        model = self.upstream_model(request)
        ask = self.dialect.counting(request, model)
        if ask is None:
            raise Refusal(501, "api_error", f"the upstream {self.name} counts no tokens", "ask the server itself")
        cut = Cut()
        answer = await self.sent(ask, cut)
        try:
            document = json.loads(await answer.read())
        except WireError as error:
            raise of_wire(self.name, error) from None
        except (ValueError, RecursionError):
            document = None
        finally:
            answer.close()
        found = self.dialect.counted(document) if isinstance(document, dict) else None
        if found is None:
            raise Refusal(502, "api_error", f"the upstream {self.name} gave no count", "ask again later")
        return found

    async def close(self) -> None:
        """Closes every connection."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._wire.close()

    async def sent(self, ask: Ask, cut: Cut, left: Callable[[], float] = lambda: float("inf")) -> Answer:
        """The answer with status 200 to a request, tried again where that is safe and `left()` seconds are enough.

        Raises Refusal, and WireError of the kind "cut".
        """
        retries, data = self.configuration.retries, ask.data
        for number in range(1, retries.attempts + 1):
            try:
                answer = await self._wire.ask("POST", ask.path, data, cut, ask.headers)
            except WireError as error:
                if error.kind == "cut" or (cut.reason and error.kind != "unreachable"):
                    raise WireError("cut", cut.reason) from None
                refused, after = of_wire(self.name, error), None
                again = error.kind == "unreachable"
            else:
                if answer.status == 200:
                    return answer
                refused, after = await self._refused(answer)
                again = answer.status in BUSY and after is not None and after <= retries.patience
            pause = random.uniform(0.5, 1) * retries.base * 2.0 ** (number - 1) if after is None else after
            if not again or number == retries.attempts or pause >= left():
                raise refused
            if not await cut.pause(pause):
                raise WireError("cut", cut.reason)
        raise AssertionError("a last try returns or raises")

    async def _refused(self, answer: Answer) -> tuple[Refusal, float | None]:
        after = retry_after(answer.headers)
        message = ""
        try:
            with suppress(WireError, ValueError, RecursionError):
                message = self.dialect.failed(json.loads(await answer.read(MOST_ERROR)))
        finally:
            answer.close()
        if 300 <= answer.status < 400:
            message = "it has moved, and redirects are not followed: correct its url"
        return of_status(self.name, answer.status, self.scrubbed(message), after), after

    def scrubbed(self, text: str) -> str:
        """What the server said, fit for a client."""
        return one_line(text, self.configuration.key)

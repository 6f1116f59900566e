"""The way of a request through the server: backend, place, reservation, answer, settlement, record.

    find -> reserve -> place -> reply -> settle -> tell

What may be spent is reserved before anything is sent, and what was spent is settled whatever happens: an answer, an
error, a client that left. So the ledger never learns of tokens too late, and never forgets any.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ponder.server.admission import Admission
from ponder.server.backend import Backend, Served
from ponder.server.events import Begun, Content, Ended, Reasoning, ReplyEvent, Usage
from ponder.server.failures import Refusal, unknown_model
from ponder.server.request import Request


@dataclass
class Tally:
    """What is known of a request at any moment: for the ledger, the metrics and the record of it."""

    request: Request
    arrived: float
    backend: str = ""
    begun: Begun | None = None
    usage: Usage | None = None
    reasons: list[str] = field(default_factory=list)
    waited: float = 0.0
    first: float | None = None
    last: float | None = None
    pieces: int = 0
    ended: float | None = None
    failure: Refusal | None = None
    disconnected: bool = False
    answer: str = ""
    thinking: str = ""
    """Of the first choice."""

    def see(self, event: ReplyEvent) -> None:
        """Takes an event in."""
        if isinstance(event, Begun):
            self.begun = event
        elif isinstance(event, Usage):
            self.usage = event
        elif isinstance(event, Ended):
            self.reasons.append(event.reason)
        elif isinstance(event, (Reasoning, Content)):
            self.last = time.monotonic()
            self.first = self.first or self.last
            self.pieces += 1
            if event.choice == 0 and isinstance(event, Content):
                self.answer += event.text
            elif event.choice == 0:
                self.thinking += event.text


class Books(Protocol):
    """The ledger, as the desk needs it. Raises Refusal where a limit is reached."""

    def reserve(self, request: Request, served: Served, most: Usage) -> str: ...

    def priced(self, booking: str, usage: Usage) -> Usage: ...

    def settle(self, booking: str, tally: Tally) -> None: ...

    def void(self, booking: str) -> None: ...


class Watch(Protocol):
    """Metrics, spans, logs and records of requests."""

    def arrived(self, tally: Tally) -> None: ...

    def finished(self, tally: Tally) -> None: ...

    def flush(self) -> None: ...


class Desk:
    """Answers requests. `most_tokens` bounds a reply of a client that states no bound, in what is reserved for it."""

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        admission: Admission | None = None,
        books: Books | None = None,
        watches: Iterable[Watch] = (),
        most_tokens: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backends = tuple(backends)
        self.admission = admission or Admission()
        self._books, self._watches, self._clock = books, tuple(watches), clock
        self._most_tokens = most_tokens
        self._stops: set[asyncio.Event] = set()
        self._stopped = False

    # ------------------------------------------------------------ models

    def models(self) -> dict[str, tuple[Backend, Served]]:
        """Every model that is served now, by name; where two backends serve one, the first has it."""
        found: dict[str, tuple[Backend, Served]] = {}
        for backend in self.backends:
            for served in backend.models():
                found.setdefault(served.name, (backend, served))
        return found

    def find(self, model: str) -> tuple[Backend, Served]:
        """Who answers for a model; the first where none is named. Raises Refusal, 404, for one that is not there."""
        for backend in self.backends:
            for served in backend.models():
                if served.name == model or not model:
                    return backend, served
        known = self.models()
        if not known:
            raise Refusal(
                503, "overloaded_error", "no model is there at the moment", "ask again later", retry_after=5.0
            )
        raise unknown_model(model, f"ask for one of {', '.join(list(known)[:8])}, or see /v1/models")

    # ------------------------------------------------------------ answers

    async def answer(self, request: Request, gone: asyncio.Event) -> AsyncGenerator[ReplyEvent, None]:
        """The events of an answer. Raises Refusal. Once `gone` is set, the work ends, and the rest is accounted for."""
        tally, sent = Tally(request, self._clock()), False
        with self._watched(tally, gone):
            backend, served = self.find(request.model)
            tally.backend = served.backend
            booking = self._books.reserve(request, served, self._worst(request, served)) if self._books else ""
            try:
                async with self.admission.place(request.caller.key, gone) as waited:
                    tally.waited, sent = waited, True
                    async with aclosing(backend.reply(request, gone)) as events:  # type: ignore[type-var]  # generators all
                        async for event in events:
                            if isinstance(event, Usage) and self._books:
                                event = self._books.priced(booking, event)
                            tally.see(event)
                            yield event
            except Refusal as refusal:
                sent = sent and (tally.begun is not None or tally.usage is not None or refusal.lost)
                raise
            finally:
                tally.disconnected = gone.is_set() and not self._stopped
                if self._books:
                    if sent:
                        self._books.settle(booking, tally)
                    else:
                        self._books.void(booking)

    @contextmanager
    def _watched(self, tally: Tally, gone: asyncio.Event) -> Iterator[None]:
        """Tells of a request that has arrived, and once it has ended, of what came of it."""
        for watch in self._watches:
            watch.arrived(tally)
        self._stops.add(gone)
        try:
            yield
        except Refusal as refusal:
            tally.failure = refusal
            raise
        except Exception:
            tally.failure = Refusal(500, "api_error", "the server failed on this request")
            raise
        finally:
            self._stops.discard(gone)
            tally.ended = self._clock()
            asyncio.get_running_loop().call_soon(self._tell, tally)  # the client need not wait for it

    def _tell(self, tally: Tally) -> None:
        for watch in self._watches:
            watch.finished(tally)

    def flush(self) -> None:
        """Has everything written that is known of requests that have ended."""
        for watch in self._watches:
            watch.flush()

    def _worst(self, request: Request, served: Served) -> Usage:
        """The most that a request may come to: every byte of its prompt a token, every bound reached."""
        prompt = sum(len(part) for part in _texts(request)) + len(request.raw_ids)
        prompt += 64 * (len(request.question.messages) + 1)
        if served.context:
            prompt = min(prompt, served.context)
        tokens = request.budget.tokens or (request.budget.thinking or 0) + self._most_tokens
        if served.context:
            tokens = min(tokens, served.context)
        return Usage(prompt=prompt, completion=tokens * request.n)

    def drain(self, seconds: float) -> None:
        """Lets nobody in any more, and ends the work of those that are still there after `seconds`."""
        self.admission.close()
        loop = asyncio.get_running_loop()
        loop.call_later(max(0.0, seconds), self.stop)

    def stop(self) -> None:
        """Ends all work; each request gets what there is of its answer."""
        self._stopped = True
        for gone in list(self._stops):
            gone.set()

    async def close(self) -> None:
        """Closes the backends."""
        await asyncio.sleep(0)  # for the last that have ended to be told
        self.flush()
        await asyncio.gather(*(backend.close() for backend in self.backends), return_exceptions=True)


def _texts(request: Request) -> Iterable[bytes]:
    """Everything of a request that may become tokens."""
    if request.raw is not None:
        yield request.raw.encode("utf-8", "replace")
    for message in request.question.messages:
        for part in message.parts:
            for value in vars(part).values():
                if isinstance(value, str):
                    yield value.encode("utf-8", "replace")
    for tool in request.question.tools:
        yield _plain(tool)


def _plain(value: Mapping[str, Any]) -> bytes:
    import json

    return json.dumps(value, default=str).encode()

"""One request at one upstream, from the first byte that is sent to the usage."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from ponder.server.events import Begun, Ended, Reasoning, ReplyEvent, Usage
from ponder.server.failures import Refusal, invalid
from ponder.server.request import Request
from ponder.server.upstream_answer import Answer, WireError
from ponder.server.upstream_attempts import attempt, total
from ponder.server.upstream_dialect import Ask, Failed, Reading
from ponder.server.upstream_failures import cut_off, garbled, late, of_status, of_wire, resting
from ponder.server.upstream_sse import SseReader, TooLong
from ponder.server.upstream_until import Until, learned

if TYPE_CHECKING:
    from ponder.server.upstream import Upstream

_PLAIN = ("", "auto", "direct", "chain_of_thought")
"""Strategies that are one request."""
_AFTER_END = 0.5
"""Seconds that a server has to close its stream in, once it has said that it is at the end."""


class Run:
    """Answers one request. `stop` ends it at once, the deadline when it comes."""

    def __init__(self, upstream: Upstream, request: Request, stop: asyncio.Event) -> None:
        self._upstream, self._request = upstream, request
        self._name = upstream.name
        self._until = Until(request, stop)
        self._cut = self._until.cut
        self._begun = self._done = self._entered = self._whole = False
        self._parts: list[Usage] = []
        self._reading: Reading | None = None

    async def events(self) -> AsyncGenerator[ReplyEvent, None]:
        """The events of the answer; see `backend.Backend`."""
        with self._until.ending():
            try:
                request, ask = await self._asked()
                reading = self._reading = self._upstream.dialect.reading(request)
                async with aclosing(self._read(ask, reading)) as events:
                    async for event in events:
                        yield event
                if ask.limit is not None and self._over(reading, ask.limit) and not self._cut.reason:
                    async with aclosing(self._closed(request, reading)) as events:
                        async for event in events:
                            yield event
                for event in self._end():
                    yield event
            except Refusal as refusal:
                self._learn(refusal)
                if self._begun:
                    yield self._usage(str(refusal))
                raise
            finally:
                self._learn(None)
        yield self._usage()

    # ------------------------------------------------------------ the answer

    async def _asked(self) -> tuple[Request, Ask]:
        """The request as the upstream takes it, and in its words. Raises Refusal."""
        upstream, request = self._upstream, self._request
        if request.strategy not in _PLAIN:
            problem = f"{request.model} is served by {self._name}, and no strategies run over it"
            raise invalid(problem, "leave strategy out, or ask a model of ponder's own", "strategy")
        model = upstream.upstream_model(request)
        if upstream.media is not None:
            request = await upstream.media(request)
        ask = upstream.dialect.ask(request, model)
        if not upstream.breaker.enter():
            raise resting(self._name, upstream.breaker.left)
        self._entered = True
        return request, ask

    async def _closed(self, request: Request, reading: Reading) -> AsyncGenerator[ReplyEvent, None]:
        """The answer after a thinking that was cut."""
        upstream = self._upstream
        model = upstream.upstream_model(request)
        self._parts.append(self._counted(reading))
        closed = upstream.dialect.closed(request, model, "".join(reading.heard.text), self._parts[0].completion)
        assert closed is not None, "a dialect that sets a limit can go on from it"
        reading = self._reading = upstream.dialect.reading(request)
        async with aclosing(self._read(closed, reading)) as events:
            async for event in events:
                if not isinstance(event, Reasoning):  # the budget for it is spent
                    yield event

    async def _read(self, ask: Ask, reading: Reading) -> AsyncGenerator[ReplyEvent, None]:
        """The events of one request; ends early where its limit of thinking is reached."""
        try:
            answer = await self._upstream.sent(ask, self._cut, lambda: self._until.left)
            with closing(answer):
                reader = self._reader(answer)
                while True:
                    piece = await (answer.read() if reader is None else answer.piece())
                    for document in self._documents(answer, reader, piece):
                        events = reading.take(document)
                        if not self._begun:
                            self._begun = True
                            if self._upstream.breaker.state != "closed":  # it has been tried, and answers
                                self._upstream.breaker.succeeded()
                            yield Begun(self._request.model, self._name, ask.hard)
                        used = 0 if ask.limit is None or reading.heard.answering else self._thought(reading)
                        if ask.limit is None or used <= ask.limit:
                            for event in events:
                                yield event
                        if ask.limit is not None and self._over(reading, ask.limit):
                            return
                    if reader is None or not piece:
                        return
        except Failed as failed:
            message = self._upstream.scrubbed(failed.message)
            raise of_status(self._name, failed.status or 500, message) from None
        except WireError as error:
            if error.kind == "cut" or self._cut.reason:
                return
            if not self._done and len(reading.heard.ended) < self._request.n:
                raise of_wire(self._name, error) from None

    def _over(self, reading: Reading, limit: int) -> bool:
        """Whether the thinking has come to its limit, and the answer has not begun."""
        return not reading.heard.answering and not reading.heard.ended and self._thought(reading) >= limit

    @staticmethod
    def _thought(reading: Reading) -> int:
        """Tokens until now: as the server counts them with every event, else a piece for a token at the least."""
        counted = reading.usage()
        return max(reading.heard.thoughts, counted.completion if counted is not None else 0)

    def _reader(self, answer: Answer) -> SseReader | None:
        """What reads a stream; None where the server answers whole."""
        if answer.kind == "application/json":
            return None
        if answer.kind != "text/event-stream":
            raise garbled(self._name, f"answered with {answer.kind[:60] or 'nothing'!r}, no stream of events")
        return SseReader()

    def _documents(self, answer: Answer, reader: SseReader | None, piece: bytes) -> Iterator[Mapping[str, Any]]:
        """What became complete with a piece; with an empty one, what the end completes."""
        if reader is None:
            yield self._parsed(piece)
            return
        try:
            payloads = reader.feed(piece) if piece else reader.rest()
        except TooLong:
            raise garbled(self._name, "sent an event that is too long") from None
        for payload in payloads:
            if payload.strip() == b"[DONE]":
                self._done = True
                answer.hurry(_AFTER_END)
            elif not self._done:
                yield self._parsed(payload)

    def _parsed(self, payload: bytes) -> Mapping[str, Any]:
        try:
            document = document_of(payload)
        except (ValueError, RecursionError):
            raise garbled(self._name, "sent what is no JSON") from None
        if isinstance(document, list) and len(document) == 1:  # errors of Gemini come in a list
            document = document[0]
        if not isinstance(document, dict):
            raise garbled(self._name, "sent JSON that is no object")
        return document

    # ------------------------------------------------------------ the end

    def _end(self) -> list[ReplyEvent]:
        """What is left to say once all has come. Raises Refusal where the answer is not whole."""
        assert self._reading is not None
        heard, n = self._reading.heard, self._request.n
        left = [number for number in range(n) if number not in heard.ended]
        if self._cut.reason:
            if not self._begun and self._cut.reason == "deadline":
                raise late(self._name)
            begun: list[ReplyEvent] = [] if self._begun else [Begun(self._request.model, self._name)]
            return [*begun, *(Ended("cancelled", number) for number in left)]
        if not heard.seen:
            raise cut_off(self._name, "ended without an answer")
        if missing := [number for number in left if number not in heard.seen]:
            raise cut_off(self._name, f"gave {n - len(missing)} of {n} choices")
        if left and not self._done:
            raise cut_off(self._name, "ended in the middle of its answer")
        self._whole = True
        return [Ended("stop", number) for number in left]

    def _learn(self, refusal: Refusal | None) -> None:
        """Tells the breaker once what came of it."""
        if self._entered:
            self._entered = False
            learned(self._upstream.breaker, self._whole, bool(self._cut.reason), refusal)

    def _usage(self, error: str = "") -> Usage:
        """What it came to, the requests of a thinking that was cut together."""
        parts = [*self._parts]
        if self._reading is not None:
            parts.append(self._counted(self._reading))
        if len(parts) == 1:
            return parts[0]
        attempts = [attempt(self._name, self._request.model, part) for part in parts]
        if error and attempts:
            attempts[-1]["error"] = error
        return total(parts, attempts)

    def _counted(self, reading: Reading) -> Usage:
        """As the server counts, or as it can be guessed."""
        return reading.usage() or reading.heard.estimated(self._request)


def document_of(payload: bytes) -> Any:
    """JSON of an upstream, in a quarter of the time that `json` takes. Raises ValueError, RecursionError.

    Half of a surrogate pair, which some servers write as an escape, is no character and would break what is sent on.
    """
    try:
        return from_json(payload)
    except ValueError:
        if b"\\ud" not in payload.lower():
            raise
    return from_json(json.dumps(json.loads(payload), ensure_ascii=False).encode("utf-8", "replace"))

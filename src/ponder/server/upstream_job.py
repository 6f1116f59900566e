"""One request at one upstream whose answer is no text in tokens: vectors of texts, or what is handed on as it came.

    breaker -> request (tried again where nothing was begun) -> Begun -> Vectors | Piece* -> Ended -> Usage

What is handed back is looked at in passing, for the usage that some servers tell in it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from ponder.server.events import Begun, Ended, Piece, ReplyEvent, Usage, Vectors
from ponder.server.failures import Refusal, invalid
from ponder.server.request import Embedding, Handed, Request
from ponder.server.upstream_answer import MOST_BODY, Answer, WireError
from ponder.server.upstream_dialect import Ask, count_of, object_of, prompt_tokens, spent
from ponder.server.upstream_failures import garbled, late, of_wire, resting
from ponder.server.upstream_sse import SseReader, TooLong
from ponder.server.upstream_until import Until, learned
from ponder.server.upstream_vectors import vector_of

if TYPE_CHECKING:
    from ponder.server.upstream import Upstream

MOST_VECTORS = 256 * 2**20
"""Bytes of an answer with vectors: 2,048 of 4,096 numbers are 200 MB as text."""


class Job:
    """Does one request with a `Request.job`."""

    def __init__(self, upstream: Upstream, request: Request, stop: asyncio.Event) -> None:
        self._upstream, self._request = upstream, request
        self._until = Until(request, stop)
        self._begun = False
        self._usage: Usage | None = None

    async def events(self) -> AsyncGenerator[ReplyEvent, None]:
        """The events of the answer; see `backend.Backend`."""
        upstream, cut = self._upstream, self._until.cut
        ask = self._ask()
        if not upstream.breaker.enter():
            raise resting(upstream.name, upstream.breaker.left)
        whole, refused = False, None
        try:
            with self._until.ending():
                async with aclosing(self._answered(ask)) as events:
                    async for event in events:
                        yield event
            whole = not cut.reason
        except Refusal as refusal:
            refused = refusal
            if self._begun:
                yield self._spent()
            raise
        finally:
            learned(upstream.breaker, whole, bool(cut.reason), refused)
        if not self._begun:
            if cut.reason == "deadline":
                raise late(upstream.name)
            yield Begun(self._request.model, upstream.name)
        yield Ended("stop" if whole else "cancelled")
        yield self._spent()

    def _ask(self) -> Ask:
        upstream, request, job = self._upstream, self._request, self._request.job
        model = upstream.upstream_model(request)
        if not isinstance(job, Handed):
            return upstream.dialect.embedding(request, model)
        if not upstream.dialect.hands:
            problem = f"{request.model} is behind a server that has no {job.path}"
            raise invalid(problem, "ask a model of an upstream with the openai dialect", "model")
        return Ask(job.path, {}, headers={"content-type": job.kind}, content=job.body(model))

    async def _answered(self, ask: Ask) -> AsyncGenerator[ReplyEvent, None]:
        try:
            answer = await self._upstream.sent(ask, self._until.cut, lambda: self._until.left)
            try:
                work = self._vectors if isinstance(self._request.job, Embedding) else self._pieces
                async with aclosing(work(answer)) as events:
                    async for event in events:
                        yield event
            finally:
                answer.close()
        except WireError as error:
            if error.kind != "cut" and not self._until.cut.reason:
                raise of_wire(self._upstream.name, error) from None

    def _begin(self) -> Begun:
        self._begun = True
        return Begun(self._request.model, self._upstream.name)

    # ------------------------------------------------------------ vectors

    async def _vectors(self, answer: Answer) -> AsyncGenerator[ReplyEvent, None]:
        body, job, name = await answer.read(MOST_VECTORS), self._request.job, self._upstream.name
        assert isinstance(job, Embedding)
        try:
            document = from_json(body)
        except (ValueError, RecursionError):
            raise garbled(name, "sent what is no JSON") from None
        found, tokens = self._upstream.dialect.embedded(object_of(document))
        rows = [vector for value in found if (vector := vector_of(value)) is not None]
        if len(rows) != len(job.inputs) or len(found) != len(rows):
            raise garbled(name, f"gave {len(rows)} of {len(job.inputs)} vectors")
        yield self._begin()
        yield Vectors(tuple(rows))
        if tokens is not None:
            self._usage = spent(tokens, 0, 0, 0)

    # ------------------------------------------------------------ what is handed back

    async def _pieces(self, answer: Answer) -> AsyncGenerator[ReplyEvent, None]:
        yield self._begin()
        yield Piece(b"", answer.headers.get("content-type", "application/octet-stream"))
        look = _Look(answer.kind)
        while data := await answer.piece():
            look.at(data)
            yield Piece(data)
        self._usage = look.usage()

    def _spent(self) -> Usage:
        """As the server counts; of what is handed on and not counted, nothing is known but that it was asked for."""
        if self._usage is not None:
            return self._usage
        if isinstance(self._request.job, Embedding):
            return spent(prompt_tokens(self._request), 0, 0, 0, estimated=True)
        return spent(0, 0, 0, 0)


class _Look:
    """Looks for the usage in what passes: in a JSON document, or in the last event that has one."""

    def __init__(self, kind: str) -> None:
        self._reader = SseReader() if kind == "text/event-stream" else None
        self._parts: list[bytes] | None = [] if kind == "application/json" else None
        self._size = 0
        self._found: Any = None

    def at(self, data: bytes) -> None:
        """Takes a piece in."""
        self._size += len(data)
        if self._parts is not None:
            self._parts.append(data)
            self._parts = self._parts if self._size <= MOST_BODY else None
        if self._reader is not None:
            try:
                for payload in self._reader.feed(data):
                    self._read(payload)
            except TooLong:
                self._reader = None

    def usage(self) -> Usage | None:
        """What was told; None where nothing was, and for seconds of sound, which are no tokens."""
        if self._parts is not None:
            self._read(b"".join(self._parts))
        told = object_of(self._found)
        prompt = count_of(told.get("input_tokens")) or count_of(told.get("prompt_tokens"))
        completion = count_of(told.get("output_tokens")) or count_of(told.get("completion_tokens"))
        return spent(prompt, 0, completion, 0) if prompt or completion else None

    def _read(self, payload: bytes) -> None:
        if b'"usage"' in payload:
            try:
                self._found = object_of(json.loads(payload)).get("usage") or self._found
            except (ValueError, RecursionError):
                return

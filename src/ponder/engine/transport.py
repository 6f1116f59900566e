"""HTTP for the remote engine: server-sent events, retries of what is safe to retry, errors in one line.

Safe to retry is what cannot have been answered yet: a refused or reset connection and the statuses of
an overloaded server, all before the first byte of an answer. After that byte nothing is sent twice,
since its tokens are already paid for.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from ponder.engine.remote_errors import (
    RETRIED,
    Refused,
    broken,
    come_back,
    explain,
    failure_in_stream,
    not_json,
    silent,
    unreachable,
)
from ponder.engine.sse import SseDecoder
from ponder.errors import EngineDisconnected, EngineError, EngineUnavailable, GarbledReply, RateLimited

if TYPE_CHECKING:
    import httpx

_ERROR_BYTES = 65_536  # of an error's body are read at most; the rest would not fit into a line anyway


@dataclass(frozen=True)
class Retries:
    """How patiently to retry: exponential backoff with full jitter.

    At most `attempts` tries, sleeping at random up to `base * 2**k` seconds, never more than `cap` at
    once nor `total` together. A Retry-After is obeyed as it stands if it fits into `total`, otherwise
    `RateLimited` is raised at once, so that the caller can decide.
    """

    attempts: int = 5
    base: float = 0.5
    cap: float = 8.0
    total: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")

    def pause(self, attempt: int, after: float | None) -> float:
        """Seconds to wait after try number `attempt` (from 1)."""
        if after is not None:
            return after
        return random.uniform(0, min(self.cap, self.base * 2.0 ** (attempt - 1)))


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as an HTTP date; None without one."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    with suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if seconds < float("inf") else None
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - (time.time() if now is None else now))
    return None


class _Later(Exception):
    """A failure that may pass: what to raise if it does not, and how long the server asked to wait."""

    def __init__(self, failure: EngineError, after: float | None = None) -> None:
        self.failure = failure
        self.after = after


class _Reply:
    """The body of a good response, piece by piece. The first piece has arrived already."""

    def __init__(self, url: str, response: httpx.Response, pieces: AsyncIterator[bytes], deadline: float) -> None:
        self.url = url
        self.deadline = deadline  # of the first event, on the monotonic clock
        self.kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._response = response
        self._pieces = pieces
        self.head = b""

    async def piece(self, seconds: float, waited: float | None = None) -> bytes:
        """Some bytes, none at the end. `waited` is the patience to name if `seconds` are what is left of it."""
        import httpx

        if self.head:
            head, self.head = self.head, b""
            return head
        try:
            async with asyncio.timeout(seconds):
                return await anext(self._pieces, b"")
        except TimeoutError:
            raise silent(self.url, seconds if waited is None else waited) from None
        except httpx.HTTPError as error:
            raise broken(self.url, str(error)) from None

    async def close(self) -> None:
        await self._response.aclose()


class Transport:
    """Requests to one server.

    `silence` bounds the seconds between two bytes, `first` those before the first event of a stream.
    `secret` is cut out of every message.
    """

    def __init__(
        self, client: httpx.AsyncClient, *, silence: float, first: float, retries: Retries, secret: str | None = None
    ) -> None:
        self._client = client
        self._silence = silence
        self._first = first
        self._secret = secret
        self._retries = retries
        self.fresh_connections = False
        """Whether each request opens a connection of its own."""

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.aclose()

    async def get(self, url: str, *, patient: bool = True) -> Any:
        """The JSON at `url`. An impatient request gives up at once where nothing listens."""
        return await self._json("GET", url, None, patient)

    async def probe(self, url: str) -> dict[str, Any]:
        """The JSON object at `url`; an empty one where the server has none there, whatever it says instead."""
        with suppress(Refused, GarbledReply):
            found = await self.get(url)
            if isinstance(found, dict):
                return found
        return {}

    async def post(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that answers `body`. Raises GarbledReply for anything else."""
        found = await self._json("POST", url, body, True)
        if not isinstance(found, dict):
            raise GarbledReply(f"{url} answered with a {type(found).__name__}, not with an object")
        return found

    async def stream(self, url: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The events that answer `body`, up to `[DONE]` or the end. Closing it closes the connection at once.

        Raises EngineError for an error among the events, GarbledReply for one that is not a JSON object,
        EngineTimeout after too long a silence, EngineDisconnected if the connection breaks.
        """
        reply = await self._open("POST", url, body, self._first, True)
        try:
            await self._check_stream(reply)
            decoder = SseDecoder()
            begun = done = ended = False
            while not (done or ended):
                piece = await self._next(reply, begun)
                ended = not piece
                for payload in decoder.flush() if ended else decoder.feed(piece):
                    done = payload.strip() == "[DONE]"
                    if done:
                        break
                    yield self._event(url, payload, cut=ended)
                    begun = True
            if done:
                # Reading to the end of the body lets the connection be used again.
                with suppress(EngineError):
                    while await reply.piece(1.0):
                        pass
        finally:
            await reply.close()

    async def _next(self, reply: _Reply, begun: bool) -> bytes:
        if begun:
            return await reply.piece(self._silence)
        return await reply.piece(max(0.0, reply.deadline - time.monotonic()), waited=self._first)

    async def _json(self, method: str, url: str, body: Mapping[str, Any] | None, patient: bool) -> Any:
        reply = await self._open(method, url, body, self._silence, patient)
        try:
            data = bytearray()
            while piece := await reply.piece(self._silence):
                data += piece
        finally:
            await reply.close()
        try:
            return json.loads(data)
        except ValueError:
            raise not_json(url, bytes(data), self._secret) from None

    async def _open(
        self, method: str, url: str, body: Mapping[str, Any] | None, patience: float, patient: bool
    ) -> _Reply:
        """A good reply whose body has begun, after as many tries as that takes."""
        retries = self._retries
        waited = 0.0
        for attempt in itertools.count(1):
            try:
                return await self._attempt(method, url, body, patience)
            except _Later as later:
                failure, after = later.failure, later.after
            if after is not None and waited + after > retries.total and not isinstance(failure, RateLimited):
                failure = RateLimited(failure.problem, come_back(after), after)
            pause = retries.pause(attempt, after)
            refused = isinstance(failure, EngineUnavailable) and not patient
            if refused or attempt >= retries.attempts or waited + pause > retries.total:
                raise failure
            await asyncio.sleep(pause)
            waited += pause
        raise AssertionError("unreachable")

    async def _attempt(self, method: str, url: str, body: Mapping[str, Any] | None, patience: float) -> _Reply:
        import httpx

        headers = {"Connection": "close"} if self.fresh_connections else {}
        request = self._client.build_request(method, url, json=body, headers=headers)
        deadline = time.monotonic() + patience
        try:
            async with asyncio.timeout(patience):
                response = await self._client.send(request, stream=True)
        except TimeoutError:
            raise silent(url, patience) from None
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise _Later(unreachable(url)) from None
        except httpx.HTTPError as error:
            raise _Later(broken(url, str(error))) from None
        reply = _Reply(url, response, response.aiter_bytes(), deadline)
        try:
            if response.status_code >= 300:
                await self._refuse(reply, response)
            reply.head = await reply.piece(max(0.0, deadline - time.monotonic()), waited=patience)
        except EngineDisconnected as error:
            await reply.close()
            raise _Later(error) from None
        except BaseException:
            await reply.close()
            raise
        return reply

    async def _refuse(self, reply: _Reply, response: httpx.Response) -> None:
        """Raises what an error status means."""
        data = bytearray()
        with suppress(EngineError):
            while len(data) < _ERROR_BYTES and (piece := await reply.piece(5.0)):
                data += piece
        after = retry_after(response.headers)
        failure = explain(
            reply.url,
            response.status_code,
            bytes(data),
            after=after,
            location=response.headers.get("location"),
            secret=self._secret,
        )
        if response.status_code in RETRIED and isinstance(failure, EngineError) and failure.retryable:
            raise _Later(failure, after)
        raise failure

    def _event(self, url: str, payload: str, cut: bool) -> dict[str, Any]:
        try:
            event = json.loads(payload)
        except ValueError:
            raise broken(url) if cut else not_json(url, payload.encode(), self._secret) from None
        if not isinstance(event, dict):
            raise GarbledReply(f"{url} sent an event that is not an object, but a {type(event).__name__}")
        if event.get("error"):
            raise failure_in_stream(url, payload.encode(), self._secret)
        return event

    async def _check_stream(self, reply: _Reply) -> None:
        if reply.kind == "text/html" or reply.head.lstrip()[:1] == b"<":
            raise not_json(reply.url, b"<")
        if reply.kind == "application/json":
            data = bytearray()
            while len(data) < _ERROR_BYTES and (piece := await reply.piece(self._silence)):
                data += piece
            with suppress(ValueError):
                json.loads(data)
                self._event(reply.url, data.decode("utf-8", "replace"), cut=False)
            raise GarbledReply(f"{reply.url} answered all at once, not with a stream", "use a server that can stream")

"""The paths of OpenAI's dialect that give no answer in words: vectors of texts, and sounds.

POST /v1/embeddings             texts or token ids  ->  vectors
POST /v1/audio/transcriptions   a sound in a form   ->  what the upstream says of it
POST /v1/audio/speech           a text in JSON      ->  the sound that the upstream makes
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from ponder.server import openai_audio, openai_embeddings
from ponder.server.app import Route, spent, told
from ponder.server.desk import Desk
from ponder.server.events import Begun, Piece, ReplyEvent, Usage, Vectors
from ponder.server.failures import Refusal, overloaded
from ponder.server.http import Exchange
from ponder.server.openai_failures import failure
from ponder.server.request import Request
from ponder.server.sse import PING


@dataclass(frozen=True)
class Jobs:
    """asked: a request with who asks it."""

    desk: Desk
    asked: Callable[[Exchange, Request], Request]

    def routes(self) -> tuple[Route, ...]:
        """All of them."""
        return (
            Route("POST", "/v1/embeddings", self.embeddings, failure),
            Route("POST", "/v1/audio/transcriptions", self.transcriptions, failure),
            Route("POST", "/v1/audio/speech", self.speech, failure),
        )

    async def embeddings(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """POST /v1/embeddings: vectors of texts."""
        read = openai_embeddings.read(await exchange.body(), exchange.headers, str(exchange.scope["ponder.id"]))
        request = self.asked(exchange, read)
        begun: Begun | None = None
        found: Vectors | None = None
        usage = Usage()
        async with exchange.watched() as gone, aclosing(self.desk.answer(request, gone)) as events:
            async for event in events:
                if isinstance(event, Begun):
                    begun = event
                elif isinstance(event, Vectors):
                    found = event
                elif isinstance(event, Usage):
                    usage = event
            if found is None:
                raise _ended()
            document = openai_embeddings.whole(request, found.rows, usage.prompt)
            await exchange.json(document, headers={**(told(begun) if begun else {}), **spent(usage)})

    async def transcriptions(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """POST /v1/audio/transcriptions: what is said in a sound."""
        await self._handed(exchange, openai_audio.transcription)

    async def speech(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """POST /v1/audio/speech: a text as a sound."""
        await self._handed(exchange, openai_audio.speech)

    async def _handed(self, exchange: Exchange, read: Callable[[bytes, Mapping[str, str], str], Request]) -> None:
        body = await exchange.body()
        request = self.asked(exchange, read(body, exchange.headers, str(exchange.scope["ponder.id"])))
        async with exchange.watched() as gone, aclosing(self.desk.answer(request, gone)) as events:
            begun, first = await anext(events), await anext(events)
            if not isinstance(first, Piece):
                async for _ in events:  # to its end, so that it is settled
                    pass
                raise _ended()
            ping = PING if first.kind.startswith("text/event-stream") else b""
            await exchange.stream(_data(first, events), first.kind, told(begun), ping)


async def _data(first: Piece, events: AsyncIterator[ReplyEvent]) -> AsyncIterator[bytes]:
    if first.data:
        yield first.data
    async for event in events:
        if isinstance(event, Piece) and event.data:
            yield event.data


def _ended() -> Refusal:
    return overloaded("the work was ended before it was done", 1.0)

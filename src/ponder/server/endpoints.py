"""The paths of the server: each reads a dialect, asks the desk, and answers in the same dialect."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ponder.ops.metrics import Metrics
from ponder.ops.prompts import Prompts
from ponder.protocols import closing
from ponder.server import (
    anthropic,
    anthropic_reply,
    openai_chat,
    openai_completions,
    openai_failures,
    openai_models,
    openai_responses,
)
from ponder.server.app import Dialect, Route, after, gathered, respond, spent, told
from ponder.server.desk import Desk
from ponder.server.failures import Refusal, invalid
from ponder.server.http import Exchange
from ponder.server.jobs import Jobs
from ponder.server.openai_wire import Wire, total
from ponder.server.prompt_of import with_prompt
from ponder.server.public import public
from ponder.server.reply import Reply
from ponder.server.request import Request
from ponder.server.responses_store import ResponsesStore
from ponder.server.signatures import Signer
from ponder.server.sse import CONTENT_TYPE, PING
from ponder.server.tokens import Tokens

SIDE_BY_SIDE = 16
"""Prompts of one request that are at work at once; its others wait outside the queue, in nobody's way."""


@dataclass(frozen=True)
class Endpoints:
    """What the paths need: the desk, the wire of OpenAI's dialects, and the secret that signs thinking."""

    desk: Desk
    wire: Wire
    signer: Signer
    metrics: Metrics | None = None
    responses: ResponsesStore | None = None
    prompts: Prompts | None = None

    def routes(self) -> tuple[Route, ...]:
        """All of them."""
        openai, anthropic_failure = openai_failures.failure, anthropic_reply.failure
        return (
            Route("POST", "/v1/chat/completions", self.chat, openai),
            Route("POST", "/v1/completions", self.completions, openai),
            Route("POST", "/v1/responses", self.respond, openai),
            Route("GET", "/v1/responses/{id}", self.response, openai),
            Route("DELETE", "/v1/responses/{id}", self.delete_response, openai),
            Route("GET", "/v1/responses/{id}/input_items", self.input_items, openai),
            *Jobs(self.desk, self._asked).routes(),
            Route("GET", "/v1/models", self.models, openai),
            Route("GET", "/v1/models/{id:path}", self.model, openai),
            Route("POST", "/v1/messages", self.messages, anthropic_failure),
            Route("POST", "/v1/messages/count_tokens", self.count_tokens, anthropic_failure),
            *Tokens(self.desk).routes(),
            Route("GET", "/health", self.health, openai, open=True, probe=True),
            Route("GET", "/ready", self.ready, openai, open=True, probe=True),
            Route("GET", "/metrics", self.scrape, openai, open=True),
        )

    # ------------------------------------------------------------ OpenAI

    async def chat(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """POST /v1/chat/completions"""
        request = self._asked(exchange, openai_chat.read(await exchange.body(), exchange.headers, _id(exchange)))
        dialect = Dialect(
            "openai",
            partial(openai_chat.whole, wire=self.wire),
            partial(openai_chat.stream, wire=self.wire),
            openai_failures.failure,
        )
        await respond(exchange, self.desk, request, dialect)

    async def completions(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """POST /v1/completions: a request for each prompt, side by side."""
        read = openai_completions.read(await exchange.body(), exchange.headers, _id(exchange))
        requests = [self._asked(exchange, request) for request in read]
        async with exchange.watched() as gone:
            streams = [self.desk.answer(request, gone) for request in requests]
            if requests[0].stream:  # one prompt after the other: one that waits for its turn to be told holds no place
                async with aclosing(streams[0]) as events:
                    first = await anext(events)
                    frames = openai_completions.stream(requests, [after(first, events), *streams[1:]], self.wire)
                    async with closing(frames):
                        await exchange.stream(frames, CONTENT_TYPE, told(first), PING)
                return
            replies = await gathered(streams, SIDE_BY_SIDE)
            whole = openai_completions.whole(requests, replies, self.wire)
            usage = total([reply.usage for reply in replies])
            headers = told(replies[0].begun) if replies[0].begun else {}
            await exchange.json(whole, headers={**headers, **spent(usage)})

    async def respond(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """POST /v1/responses"""
        body, owner, store = await exchange.body(), exchange.scope["ponder.caller"].key, self.responses
        before = openai_responses.previous_id(body)
        previous = self._kept().chain(before, owner) if before else None
        read = openai_responses.read(body, exchange.headers, _id(exchange), previous, self.signer)
        request = self._asked(exchange, read)
        wire = openai_responses.wire_of(body, self.signer, int(time.time()))

        def keep(reply: Reply) -> None:
            if store is not None and request.store:
                inputs = openai_responses.input_items(body, _id(exchange), previous, self.signer)
                whole = openai_responses.whole(request, reply, wire)
                store.put(whole, inputs, openai_responses.outputs(request, reply, wire), owner)

        dialect = Dialect(
            "responses",
            partial(openai_responses.whole, wire=wire),
            partial(openai_responses.stream, wire=wire),
            openai_failures.failure,
        )
        await respond(exchange, self.desk, request, dialect, keep)

    async def response(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /v1/responses/{id}"""
        await exchange.json(self._kept().get(names["id"], exchange.scope["ponder.caller"].key))

    async def delete_response(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """DELETE /v1/responses/{id}"""
        await exchange.json(self._kept().delete(names["id"], exchange.scope["ponder.caller"].key))

    async def input_items(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /v1/responses/{id}/input_items"""
        query, limit = exchange.query, exchange.query.get("limit", "20")
        if not limit.isascii() or not limit.isdigit():
            raise invalid(f"limit must be a number, not {limit!r}", param="limit")
        owner, order, place = exchange.scope["ponder.caller"].key, query.get("order", "desc"), query.get("after")
        await exchange.json(self._kept().input_items(names["id"], owner, int(limit[:9]), order, place))

    def _kept(self) -> ResponsesStore:
        if self.responses is None:
            raise Refusal(404, "not_found_error", "this server keeps no responses", "serve without --no-store")
        return self.responses

    async def models(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /v1/models, in the words of the dialect whose version the client names, else in OpenAI's."""
        found = [public(served) for _, served in self.desk.models().values()]
        listed = anthropic_reply.models if _is_anthropic(exchange) else openai_models.listed
        await exchange.json(listed(found))

    async def model(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /v1/models/{id}"""
        one = anthropic_reply.model if _is_anthropic(exchange) else openai_models.one
        await exchange.json(one(public(self.desk.find(names["id"])[1])))

    # ------------------------------------------------------------ Anthropic

    async def messages(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """POST /v1/messages"""
        body = await exchange.body()
        read = anthropic.read(body, exchange.headers, _id(exchange), self.signer, upstream=self._upstream)
        request = self._asked(exchange, read)
        dialect = Dialect(
            "anthropic",
            partial(anthropic_reply.whole, signer=self.signer),
            partial(anthropic_reply.stream, signer=self.signer),
            anthropic_reply.failure,
            anthropic.PING,
        )
        await respond(exchange, self.desk, request, dialect)

    async def count_tokens(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """POST /v1/messages/count_tokens"""
        body = await exchange.body()
        read = anthropic.read(
            body, exchange.headers, _id(exchange), self.signer, counting=True, upstream=self._upstream
        )
        request = self._asked(exchange, read)
        backend, _ = self.desk.find(request.model)
        await exchange.json(anthropic_reply.counted(await backend.count(request)))

    # ------------------------------------------------------------ the server itself

    async def health(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /health: the process is alive."""
        await exchange.json({"status": "ok"})

    async def ready(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /ready: requests are taken, and a model is there."""
        if self.desk.admission.closed or not self.desk.models():
            raise Refusal(503, "overloaded_error", "the server takes no requests at the moment", retry_after=1.0)
        queue = self.desk.admission
        state: dict[str, Any] = {"status": "ready", "running": queue.running, "waiting": queue.waiting}
        await exchange.json(state)

    async def scrape(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /metrics: for Prometheus."""
        if self.metrics is None:
            raise Refusal(404, "not_found_error", "this server keeps no metrics")
        await exchange.data(self.metrics.exposition(), "text/plain; version=0.0.4; charset=utf-8")

    def _upstream(self, model: str) -> bool:
        """Whether somebody else's server answers for a model, and may have signed its thinking."""
        found = self.desk.models().get(model)
        return found is not None and found[1].backend != "local"

    def _asked(self, exchange: Exchange, request: Request) -> Request:
        trace: dict[str, str] = {
            name: exchange.headers[name] for name in ("traceparent", "tracestate") if name in exchange.headers
        }
        asked = replace(request, caller=exchange.scope["ponder.caller"], trace=trace)
        return asked if self.prompts is None else with_prompt(asked, self.prompts)


def _is_anthropic(exchange: Exchange) -> bool:
    return "anthropic-version" in exchange.headers


def _id(exchange: Exchange) -> str:
    return str(exchange.scope["ponder.id"])

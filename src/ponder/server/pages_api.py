"""What the pages ask for under /api/: models, requests, costs, traces, prompts and curves as JSON, and a live stream.

    GET /api/models           models, strategies, and what the server is about
    GET /api/costs            ?days=30: by model, key, prompt, strategy and day
    GET /api/traces           ?search=, ?state=, ?limit=; /api/traces/{id}
    GET /api/prompts          their versions and labels; /api/prompt?name= with the texts
    GET /api/studies          ; /api/study?id= with its points
    GET /api/state            upstreams, and the alarms of drift that stand
    POST /api/drift/restart   {"model": "...", "prompt": "..."}: ends the alarms of these
    GET /api/live             server-sent events: `requests` that have ended, and the `state` of the server

Who asks with a key is told of what that key asked for. A server without keys listens to its machine alone and tells
everything, as `doors.Nearby` keeps foreign pages out.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from ponder.protocols import closing
from ponder.server import openai_models, pages_data
from ponder.server.desk import Desk
from ponder.server.failures import Refusal, invalid
from ponder.server.http import Exchange
from ponder.server.pages_feed import Feed
from ponder.server.pages_state import Condition
from ponder.server.public import public
from ponder.server.request import EFFORT_TOKENS, Caller
from ponder.server.sse import CONTENT_TYPE, PING, frame
from ponder.types import TraceState

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}
TICK = 0.5
"""Seconds between two looks for what is new."""
MOST_LIVE = 64
"""Live streams at once."""
MOST_DAYS = 3660.0
MOST_WRITTEN = 16 * 2**10
"""Bytes of what a page sends."""

STRATEGIES: Mapping[str, str] = {
    "auto": "the server chooses, question by question",
    "direct": "answers at once",
    "chain_of_thought": "thinks once, then answers",
    "vote(8)": "eight chains of thought, the most frequent answer",
    "vote(8, risk=0.05)": "a vote that stops once it is decided",
    "allocate(4)": "four samples, and more where they disagree",
    "best_of_n(8)": "eight samples, the one that a verifier likes best",
    "beam_search(4, 2)": "the best beams go on, step by step",
    "diverse_tree_search(4, 2)": "the best step in each of several subtrees",
    "tree_search(16)": "a tree of steps, grown where it is promising",
    "refine(2)": "answers, then looks at the answer again",
    "mixture(4, 2)": "several chains of refinement side by side",
    "early_exit(32)": "thinks until the answer has settled",
    "budget_forcing(256)": "thinks for at least so many tokens",
}
"""Strategies to choose from, and what they are."""


class Api:
    """Answers the pages. home: the folder of the databases. studies: folders with studies of ponder curve."""

    def __init__(
        self, desk: Desk, feed: Feed, home: Path, studies: Sequence[Path] = (), condition: Condition | None = None
    ) -> None:
        self._desk, self._feed, self._home, self._studies = desk, feed, home, tuple(studies)
        self._condition = condition or Condition()
        self._began = time.time()
        self._live = 0

    # ------------------------------------------------------------ models and requests

    async def models(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /api/models"""
        caller = asker(exchange)
        served = [openai_models.one(public(each)) for _, each in self._desk.models().values()]
        strategies = [{"name": name, "about": about} for name, about in STRATEGIES.items()]
        document = {
            "models": served,
            "strategies": strategies,
            "efforts": dict(EFFORT_TOKENS),
            "key": caller.name,
            "since": self._began,
        }
        await self._send(exchange, document)

    async def costs(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /api/costs"""
        caller, days = asker(exchange), number(exchange, "days", 30.0, MOST_DAYS)
        await self._send(exchange, await asyncio.to_thread(pages_data.costs, self._home, caller, days))

    async def state(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /api/state"""
        asker(exchange)
        await self._send(exchange, self._state())

    async def restart(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """POST /api/drift/restart"""
        asker(exchange)
        own_page(exchange)
        asked = fields(await exchange.body(MOST_WRITTEN), "model", "prompt")
        self._condition.restart(asked["model"], asked["prompt"])
        await self._send(exchange, self._state())

    def _state(self) -> dict[str, Any]:
        queue = self._desk.admission
        told = {"running": queue.running, "waiting": queue.waiting, "open": not queue.closed}
        return {**told, **self._condition.document()}

    async def live(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /api/live: all requests that are remembered, then each as it ends; and how many are at work."""
        caller = asker(exchange)
        if self._live >= MOST_LIVE:
            raise Refusal(503, "overloaded_error", f"{MOST_LIVE} pages are watching already", "close one")
        await exchange.body()
        self._live += 1
        try:
            async with exchange.watched() as gone, closing(self._frames(caller, gone)) as frames:
                await exchange.stream(frames, CONTENT_TYPE, {**HEADERS, "cache-control": "no-store"}, PING)
        finally:
            self._live -= 1

    async def _frames(self, caller: Caller, gone: asyncio.Event) -> AsyncIterator[bytes]:
        seen, told = 0, dict[str, Any]()
        admission = self._desk.admission
        while not gone.is_set():
            new, seen = self._feed.after(seen, caller), self._feed.last
            if new or not told:
                yield frame([each.document() for each in new], "requests")
            state = self._state()
            if state != told:
                yield frame(state, "state")
                told = state
            if admission.closed:  # a page that watches must not keep the server from ending
                return
            await asyncio.sleep(TICK)

    # ------------------------------------------------------------ traces

    async def traces(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /api/traces"""
        caller, query = asker(exchange), exchange.query
        state: Any = query.get("state") or None
        if state not in (None, *get_args(TraceState)):
            raise invalid("there is no such state", f"choose one of {', '.join(get_args(TraceState))}", "state")
        limit = int(number(exchange, "limit", 50.0, pages_data.MOST_TRACES))
        search = query.get("search", "")[:200]
        self._desk.flush()
        await self._send(exchange, await asyncio.to_thread(pages_data.traces, self._home, caller, search, state, limit))

    async def trace(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /api/traces/{id}"""
        caller = asker(exchange)
        self._desk.flush()
        await self._send(exchange, await asyncio.to_thread(pages_data.trace, self._home, caller, names["id"]))

    # ------------------------------------------------------------ prompts

    async def prompts(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /api/prompts"""
        asker(exchange)
        await self._send(exchange, await asyncio.to_thread(pages_data.prompts, self._home))

    async def prompt(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /api/prompt"""
        asker(exchange)
        name = exchange.query.get("name", "")
        await self._send(exchange, await asyncio.to_thread(pages_data.prompt, self._home, name))

    # ------------------------------------------------------------ curves

    async def studies(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /api/studies"""
        asker(exchange)
        await self._send(exchange, await asyncio.to_thread(pages_data.studies, self._home, self._studies))

    async def study(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /api/study"""
        asker(exchange)
        id = exchange.query.get("id", "")
        await self._send(exchange, await asyncio.to_thread(pages_data.study, self._home, self._studies, id))

    async def _send(self, exchange: Exchange, document: Any) -> None:
        await exchange.json(document, headers=HEADERS)


def asker(exchange: Exchange) -> Caller:
    """Who asks: `doors` have let them in."""
    caller: Caller = exchange.scope["ponder.caller"]
    return caller


def own_page(exchange: Exchange) -> None:
    """Raises Refusal, 403, where a page that is not of this server would change something without a key."""
    caller, origin = asker(exchange), exchange.headers.get("origin")
    if caller.key or origin is None:
        return
    if urlsplit(origin).netloc.lower() != exchange.headers.get("host", "").lower():
        raise Refusal(403, "permission_error", "pages of another server may not change this one", "use its own pages")


def fields(body: bytes, *names: str) -> dict[str, str]:
    """The texts of a JSON object, "" for those that it leaves out. Raises Refusal."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or unlike(document, names):
        raise invalid("the body is no JSON object of these texts: " + ", ".join(names), "send one")
    return {name: document.get(name, "") for name in names}


def unlike(document: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether there are other fields, or what is no text."""
    return any(name not in names or not isinstance(value, str) for name, value in document.items())


def number(exchange: Exchange, name: str, default: float, most: float) -> float:
    """A number of the query, from 0 to `most`. Raises Refusal."""
    text = exchange.query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:  # as NaN is not, either
        raise invalid(f"{name} must be a number from 0 to {most:g}", "correct it", name)
    return value

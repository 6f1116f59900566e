"""The pages of the server: a playground, a dashboard, traces, prompts and curves, as files that need no build.

What can be asked for is a table of names that is made once, so no path leads out of it. The pages run no script and
load nothing but these files (Content-Security-Policy), and turn no text into markup (Trusted Types).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ponder import paths
from ponder.server import openai_failures
from ponder.server.app import Route
from ponder.server.desk import Desk
from ponder.server.failures import Refusal
from ponder.server.http import Exchange
from ponder.server.pages_api import Api
from ponder.server.pages_feed import Feed
from ponder.server.pages_state import Condition

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # kept, and asked about by its ETag
}
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class File:
    """A file of the pages."""

    body: bytes
    kind: str
    etag: str


def table() -> dict[str, File]:
    """All files by their names."""
    found = {}
    for each in (files("ponder.server") / "pages").iterdir():
        kind = KINDS.get(Path(each.name).suffix)
        if kind is not None and each.is_file():
            body = each.read_bytes()
            found[each.name] = File(body, kind, f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"')
    return found


class Pages:
    """Serves the files."""

    def __init__(self) -> None:
        self._files = table()

    async def index(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /"""
        await self._send(exchange, "index.html")

    async def file(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /pages/{name}"""
        await self._send(exchange, names["name"])

    async def _send(self, exchange: Exchange, name: str) -> None:
        found = self._files.get(name)
        if found is None:
            raise Refusal(404, "not_found_error", f"there is no page {name[:100]!r}", "see /")
        headers = {**HEADERS, "etag": found.etag}
        known = exchange.headers.get("if-none-match", "")
        if found.etag in (each.strip().removeprefix("W/") for each in known.split(",")):
            await exchange.data(b"", found.kind, 304, headers)
        else:
            await exchange.data(found.body, found.kind, 200, headers)


def routes(
    desk: Desk,
    feed: Feed,
    *,
    home: Path | None = None,
    studies: Sequence[Path] | None = None,
    condition: Condition | None = None,
) -> tuple[Route, ...]:
    """The routes of the pages and of what they ask for. `feed.finished` has to be a listener of `watching.Telling`.

    home: the folder of the databases. studies: folders with studies, by default `studies` in `home`. condition: what is
    told of upstreams and drift.
    """
    home = paths.home() if home is None else home
    pages = Pages()
    api = Api(desk, feed, home, (home / "studies",) if studies is None else studies, condition)
    failure = openai_failures.failure
    asked = {
        "models": api.models,
        "costs": api.costs,
        "state": api.state,
        "live": api.live,
        "traces": api.traces,
        "traces/{id}": api.trace,
        "prompts": api.prompts,
        "prompt": api.prompt,
        "studies": api.studies,
        "study": api.study,
    }
    return (
        Route("GET", "/", pages.index, failure, open=True),
        Route("GET", "/pages/{name}", pages.file, failure, open=True),
        *(Route("GET", f"/api/{path}", handler, failure) for path, handler in asked.items()),
        Route("POST", "/api/drift/restart", api.restart, failure),
    )

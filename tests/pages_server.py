"""A server with pages for tests: a scripted engine behind the real desk, ledger, traces and routes.

with pages(home, "<think>2 + 2</think>4") as server:
    Browser(server.url)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from serving import Serving, served

from ponder.chat.model import model_of
from ponder.engine._script import Fault
from ponder.engine.scripted import Reply, ScriptedEngine, says
from ponder.ops.keys import Keys
from ponder.ops.ledger import Ledger
from ponder.ops.prices import Prices
from ponder.ops.store import Store
from ponder.server import openai_failures, pages
from ponder.server.app import App, Route
from ponder.server.books import LedgerBooks
from ponder.server.desk import Desk
from ponder.server.doors import Keyed, Nearby
from ponder.server.endpoints import Endpoints
from ponder.server.local import Local
from ponder.server.openai_wire import Wire
from ponder.server.pages_feed import Feed
from ponder.server.pages_state import Condition
from ponder.server.signatures import Signer
from ponder.server.traces import Traces
from ponder.server.watching import Telling

MODEL = "ponder-135m"


@contextmanager
def pages_of(
    home: Path,
    *texts: str,
    reply: Reply | None = None,
    faults: Sequence[Fault] = (),
    keys: bool = False,
    more: Sequence[Route] = (),
    on_made: Callable[[Desk, Feed], None] = lambda desk, feed: None,
    condition: Condition | None = None,
) -> Iterator[Serving]:
    """Serves the pages over an engine that says `texts`, or what `reply` gives. more: routes in the place of others."""

    async def make() -> tuple[App, Callable[[bool], None]]:
        stack = ExitStack()
        ledger = stack.enter_context(Ledger.open(home / "ledger.db"))
        store = stack.enter_context(Store.open(home / "ponder.db"))
        doors = Keyed(stack.enter_context(Keys.open(home / "ledger.db"))) if keys else Nearby()
        feed = Feed()
        backend = Local(model_of(ScriptedEngine(reply or says(*texts), faults=list(faults))), name=MODEL)
        books = LedgerBooks(ledger, Prices.read())
        desk = Desk([backend], books=books, watches=[Telling(feed.finished), Traces(store)])
        on_made(desk, feed)
        endpoints = Endpoints(desk, Wire(), Signer(b"x" * 32))
        routes = (*endpoints.routes(), *pages.routes(desk, feed, home=home, condition=condition), *more)
        app = App(routes, openai_failures.failure, doors)

        async def close() -> None:
            await desk.close()
            stack.close()

        app.on_close.append(close)
        return app, lambda hurry: desk.drain(0.0 if hurry else 5.0)

    with served(make) as server:
        yield server


def question(text: str) -> dict[str, Any]:
    """A body of a chat."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}

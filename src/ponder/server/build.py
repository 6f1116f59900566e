"""The server put together from its settings, and run until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import ponder
from ponder import paths
from ponder.chat.model import model_of
from ponder.engine import open_engine
from ponder.errors import InputError, PonderError
from ponder.ops.drift import Drift
from ponder.ops.finished import Finished
from ponder.ops.keys import Keys
from ponder.ops.ledger import Ledger
from ponder.ops.log import Log
from ponder.ops.metrics import Metrics
from ponder.ops.prices import Prices
from ponder.ops.prompts import Prompts
from ponder.ops.spans import spans_from_environment
from ponder.ops.store import Store
from ponder.server import openai_failures, pages
from ponder.server.admission import Admission
from ponder.server.app import App
from ponder.server.backend import Backend
from ponder.server.books import LedgerBooks
from ponder.server.config import Config, opened
from ponder.server.desk import Desk
from ponder.server.doors import Keyed, Nearby
from ponder.server.endpoints import Endpoints
from ponder.server.local import Local
from ponder.server.openai_wire import Wire
from ponder.server.openapi import with_document
from ponder.server.pages_feed import Feed
from ponder.server.pages_state import Condition
from ponder.server.responses_store import ResponsesStore
from ponder.server.signatures import Signer
from ponder.server.start import check_bind, run
from ponder.server.traces import Traces
from ponder.server.upstream import Upstream
from ponder.server.watching import Telling
from ponder.strategies.policy import Policy, load

FIELDS = ("reasoning_content", "reasoning", "both")
RECOVER = 60.0
"""Seconds between two looks for reservations of processes that have died."""


@dataclass(frozen=True)
class Settings:
    """What `ponder serve` was told. keys: None asks for them where there are any. config: upstreams and routes."""

    models: tuple[str, ...] = ("ponder-135m",)
    adapters: tuple[str, ...] = ()
    policy: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8333
    keys: bool | None = None
    running: int = 64
    waiting: int = 256
    drain: float = 30.0
    store: bool = True
    reasoning_field: str = "reasoning_content"
    log: Path | None = None
    config: Config | None = None

    def __post_init__(self) -> None:
        if self.reasoning_field not in FIELDS:
            raise InputError(f"{self.reasoning_field!r} is no field for thinking", f"choose one of {', '.join(FIELDS)}")


@dataclass(frozen=True)
class Built:
    """A server that is ready to be run."""

    app: App
    desk: Desk
    drain: float

    def on_signal(self, hurry: bool) -> None:
        """Lets nobody in any more; ends the work at once, or when its time is up."""
        self.desk.drain(0.0 if hurry else self.drain)


@contextlib.asynccontextmanager
async def built(settings: Settings) -> AsyncIterator[Built]:
    """Everything opened, and closed in the end."""
    async with contextlib.AsyncExitStack() as stack:
        keys = stack.enter_context(Keys.open())
        asks = keys.any() if settings.keys is None else settings.keys
        check_bind(settings.host, asks)
        policy = None if settings.policy is None else load(settings.policy)
        ledger = stack.enter_context(Ledger.open(background=True))
        ledger.recover()
        every = await _backends(settings, policy, stack)
        metrics = Metrics([served.name for each in every for served in each.models()])
        doors = Keyed(keys) if asks else Nearby()
        limits = doors.limits if isinstance(doors, Keyed) else (lambda caller: ((), ()))
        log = None if settings.log is None else Log(None if str(settings.log) == "-" else settings.log)
        if log is not None:
            stack.callback(log.close)
        drift = _drift(stack)
        spans = spans_from_environment(version=ponder.__version__)
        stack.callback(spans.close)
        metrics.watch("spans_dropped", "Spans that no collector took.", lambda: spans.dropped)

        def drifting(finished: Finished) -> None:
            if drift.add(finished):
                metrics.drift(drift.state())

        admission = Admission(settings.running, settings.waiting)
        upstreams = [each for each in every if isinstance(each, Upstream)]
        condition = Condition(upstreams, drift, lambda: metrics.drift(drift.state()))
        metrics.queue(lambda: admission.running, lambda: admission.waiting)
        metrics.upstreams(condition.states)
        metrics.drift(drift.state())
        feed = Feed()
        telling = Telling(metrics.finished, drifting, feed.finished, *([log.finished] if log else []), spans=spans)
        traces = Traces(stack.enter_context(Store.open(background=True))) if settings.store else None
        desk = Desk(
            every,
            admission=admission,
            books=LedgerBooks(ledger, Prices.read(), limits, metrics),
            watches=[telling, *([traces] if traces else [])],
        )
        stack.callback(desk.flush)
        responses = stack.enter_context(ResponsesStore.open()) if settings.store else None
        wire = Wire(settings.reasoning_field)  # type: ignore[arg-type]  # checked by the settings
        prompts = stack.enter_context(contextlib.closing(Prompts.open()))
        endpoints = Endpoints(desk, wire, Signer(_secret()), metrics, responses, prompts)
        app = App(
            with_document([*endpoints.routes(), *pages.routes(desk, feed, condition=condition)]),
            openai_failures.failure,
            doors,
        )
        recovering = asyncio.create_task(_recover(ledger))
        stack.callback(recovering.cancel)
        yield Built(app, desk, settings.drain)


def _drift(stack: contextlib.AsyncExitStack) -> Drift:
    """The alarms of drift as they stood, and are kept when the server ends."""
    path = paths.home() / "drift.json"
    drift = Drift.load(path) if path.exists() else Drift()

    def save() -> None:
        with contextlib.suppress(PonderError):
            drift.save(path)

    stack.callback(save)
    return drift


async def _backends(settings: Settings, policy: Policy | None, stack: contextlib.AsyncExitStack) -> tuple[Backend, ...]:
    """Routes first, which may have the name of a model; then this machine's models, and upstreams."""
    own = tuple([await _local(name, settings, policy) for name in settings.models])
    for each in own:
        stack.push_async_callback(each.close)
    if settings.config is None:
        return own
    others = await opened(settings.config, own)
    stack.push_async_callback(others.close)
    return (*others.routes, *own, *others.upstreams)


async def _local(name: str, settings: Settings, policy: Policy | None) -> Backend:
    engine = await open_engine(name, adapters=settings.adapters)
    return Local(model_of(engine), policy=policy)


async def _recover(ledger: Ledger) -> None:
    while True:
        await asyncio.sleep(RECOVER)
        with contextlib.suppress(PonderError):
            ledger.recover()


def _secret() -> bytes:
    """What thinking is signed with: made once, and readable by its owner alone."""
    path = paths.home() / "signing.key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        made.touch(mode=0o600)
        made.write_bytes(secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):  # another server made one meanwhile, which both then use
            os.link(made, path)
        made.unlink()
    return path.read_bytes()


def serving(settings: Settings, told: Callable[[str], None]) -> None:
    """Runs the server until a signal ends it; tells where it listens."""
    began = time.monotonic()

    async def work() -> None:
        async with built(settings) as server:

            def ready(port: int) -> None:
                names = ", ".join(server.desk.models())
                seconds = time.monotonic() - began
                told(f"serving {names} at http://{settings.host}:{port} after {seconds:.1f} s, Ctrl-C ends it")

            await run(server.app, settings.host, settings.port, server.on_signal, ready)

    try:
        import uvloop
    except ImportError:  # there is none for Windows
        asyncio.run(work())
    else:
        uvloop.run(work())

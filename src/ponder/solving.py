"""The first sentence: question -> engine (tokens) -> strategy -> answer, with its cost.

import ponder
print(ponder.solve("What is 3 + 4 * 5?", budget=1000))
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
import weakref
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import ponder
from ponder.chat.model import Model, model_of
from ponder.engine import open_engine
from ponder.errors import InputError, PonderError
from ponder.ops.replay import rebuild
from ponder.protocols import SamplingParams, Strategy
from ponder.strategies.chain_of_thought import chain_of_thought
from ponder.types import Budget, Done, Event, Message, Provenance, Question, Trace, TraceState, ask

if TYPE_CHECKING:
    from ponder.ops.store import Store

DEFAULT_MODEL = "ponder-135m"

Asked = str | Question | Sequence[Message]


async def stream(
    question: Asked,
    *,
    model: str | Model = DEFAULT_MODEL,
    strategy: Strategy | None = None,
    budget: int | Budget | None = None,
    store: Store | None = None,
) -> AsyncIterator[Event]:
    """Everything that happens while `question` is answered; the last event is `Done` with the trace.

    `budget` in tokens, or a `Budget`. With a `store`, each event is on disk before it is handed out.
    Where solving fails, what there is is stored as "failed" and the error is raised.
    """
    asked = _checked(question)
    opened = model if isinstance(model, Model) else await open_model(model)
    chosen = strategy or chain_of_thought()
    bounds = Budget(tokens=budget) if isinstance(budget, int) else budget or Budget()
    trace, events, started = _begin(asked, opened, chosen, bounds), list[Event](), time.monotonic()
    recorder = store.begin(trace) if store else None
    state: TraceState = "interrupted"
    try:
        async for event in chosen(asked, opened, bounds):
            events.append(event)
            if recorder:
                recorder.record(event)
            yield event
        if opened.stop is None or not opened.stop.is_set():
            state = "done"
    except PonderError as error:
        state, trace = "failed", replace(trace, error=str(error))
        raise
    finally:
        trace = replace(rebuild(trace, events), state=state)
        trace = replace(trace, cost=replace(trace.cost, seconds=time.monotonic() - started))
        if recorder:
            recorder.finish(trace)
    yield Done(trace)


async def asolve(question: Asked, **options: object) -> Trace:
    """The trace of answering `question`: `.answer`, `.thinking`, `.cost`. Options as of `stream`."""
    async for event in stream(question, **options):  # type: ignore[arg-type]
        if isinstance(event, Done):
            return event.trace
    raise AssertionError("a stream ends with Done")


def solve(question: Asked, **options: object) -> Trace:
    """`asolve` for code that is not asynchronous. Models stay open from call to call."""
    if not hasattr(_local, "runner"):
        _local.runner = asyncio.Runner()
    runner: asyncio.Runner = _local.runner
    return runner.run(asolve(question, **options))


_local = threading.local()
_open: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Model]] = weakref.WeakKeyDictionary()


async def open_model(
    uri: str = DEFAULT_MODEL, *, adapters: Sequence[str] = (), params: SamplingParams | None = None
) -> Model:
    """The model behind `uri` (see `engine.open_engine`), opened once an event loop."""
    known = _open.setdefault(asyncio.get_running_loop(), {})
    key = "\0".join((uri, *adapters))
    if key not in known:
        known[key] = model_of(await open_engine(uri, adapters=adapters))
    return replace(known[key], params=params) if params else known[key]


def _checked(question: Asked) -> Question:
    asked = ask(question if isinstance(question, str | Question) else list(question))
    if not any(message.parts for message in asked.messages) or not (asked.text.strip() or len(asked.messages) > 1):
        raise InputError("the question is empty", 'ask something: ponder ask "What is 3 + 4 * 5?"')
    return asked


def _begin(question: Question, model: Model, strategy: Strategy, budget: Budget) -> Trace:
    capabilities = model.engine.capabilities
    provenance = Provenance(
        model=model.engine.info.name
        if capabilities.chat
        else str(model.engine.info.metadata.get("ponder.name", model.name)),
        adapters=model.params.adapters or dict.fromkeys(capabilities.adapters, 1.0),
        strategy=getattr(strategy, "name", getattr(strategy, "__qualname__", "custom").split(".")[0]),
        settings={"temperature": model.params.temperature, "top_p": model.params.top_p, "top_k": model.params.top_k},
        seed=model.params.seed,
        software=f"ponder {ponder.__version__}",
    )
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Trace(uuid.uuid4().hex, question, provenance=provenance, budget=budget, state="running", created=now)

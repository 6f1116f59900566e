"""The first sentence: question -> engine (tokens) -> strategy -> answer, with its cost.

    import ponder
    print(ponder.solve("What is 3 + 4 * 5?", budget=1000).answer)

`stream` is the implementation; `asolve` and `solve` run it.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import random
import threading
import time
import uuid
import weakref
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import ponder
from ponder.chat.model import Model, model_of
from ponder.engine import open_engine
from ponder.errors import InputError
from ponder.ops.replay import rebuild
from ponder.protocols import SamplingParams, Strategy, closing
from ponder.strategies.chain_of_thought import chain_of_thought
from ponder.strategies.pool import drawing
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
    prompt_version: str | None = None,
) -> AsyncGenerator[Event, None]:
    """Everything that happens while `question` is answered; the last event is `Done` with the trace.

    `budget` in tokens, or a `Budget`. With a `store`, each event is on disk before it is handed out.
    `prompt_version` is the stored prompt that stands in `question`, such as "support@3": the trace names it.
    Where solving fails, what there is is stored as "failed" and the error is raised. Closing the stream
    early, or setting the model's `stop`, ends the work and leaves a trace that is "interrupted".
    """
    asked = _checked(question)
    chosen = strategy or chain_of_thought()
    opened = _seeded(drawing(model if isinstance(model, Model) else await open_model(model), chosen))
    bounds = Budget(tokens=budget) if isinstance(budget, int) else budget or Budget()
    trace, events, started = _begin(asked, opened, chosen, bounds, prompt_version), list[Event](), time.monotonic()
    recorder = store.begin(trace) if store else None
    state: TraceState = "interrupted"
    try:
        async with closing(chosen(asked, opened, bounds)) as happening:
            async for event in happening:
                events.append(event)
                if recorder:
                    recorder.record(event)
                yield event
        if opened.stop is None or not opened.stop.is_set():
            state = "done"
    except Exception as error:
        state, trace = "failed", replace(trace, error=str(error) or type(error).__name__)
        raise
    finally:
        trace = replace(rebuild(trace, events), state=state)
        trace = replace(trace, cost=replace(trace.cost, seconds=time.monotonic() - started))
        if recorder:
            recorder.finish(trace)
    yield Done(trace)


async def asolve(question: Asked, **options: Any) -> Trace:
    """The trace of answering `question`: `.answer`, `.thinking`, `.cost`. Options as of `stream`."""
    async with aclosing(stream(question, **options)) as events:
        async for event in events:
            if isinstance(event, Done):
                return event.trace
    raise AssertionError("a stream ends with Done")


def solve(question: Asked, *, store: Store | None = None, **options: Any) -> Trace:
    """`asolve` for code that is not asynchronous, from any thread. Models stay open from call to call."""
    background = _background()
    if threading.current_thread() is background.thread:
        raise RuntimeError("solve() here would wait for itself: use `await asolve()`")
    future = asyncio.run_coroutine_threadsafe(_solve(question, store, options), background.loop)
    try:
        return future.result()
    except BaseException:  # Ctrl-C, say: nobody waits for the answer any more
        future.cancel()
        raise


async def _solve(question: Asked, store: Store | None, options: dict[str, Any]) -> Trace:
    if store is None:
        return await asolve(question, **options)
    with type(store).open(store.path) as mine:  # a store belongs to the thread that opened it
        return await asolve(question, store=mine, **options)


# ---------------------------------------------------------------- models that stay open


_open: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Model]] = weakref.WeakKeyDictionary()
_opening: dict[tuple[int, str], asyncio.Task[None]] = {}


async def open_model(
    uri: str = DEFAULT_MODEL, *, adapters: Sequence[str] = (), params: SamplingParams | None = None
) -> Model:
    """The model behind `uri` (see `engine.open_engine`), opened once an event loop."""
    loop = asyncio.get_running_loop()
    known, key = _open.setdefault(loop, {}), "\0".join((uri, *adapters))
    if key not in known:
        # Requests that come while a model is being opened wait for that instead of loading it again.
        place = (id(loop), key)
        if place not in _opening:
            _opening[place] = asyncio.ensure_future(_open_into(known, key, uri, adapters))
            _opening[place].add_done_callback(lambda _: _opening.pop(place))
        await asyncio.shield(_opening[place])
    return replace(known[key], params=params) if params else known[key]


async def _open_into(known: dict[str, Model], key: str, uri: str, adapters: Sequence[str]) -> None:
    known[key] = model_of(await open_engine(uri, adapters=adapters))


@dataclass
class _Background:
    """The event loop behind `solve`, in a thread of its own.

    So all threads share what is open, and code inside a running loop, as in a notebook, can call it too.
    """

    pid: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self.thread = threading.Thread(target=lambda: asyncio.run(_serve(ready)), name="ponder-solve", daemon=True)
        self.thread.start()
        self.loop, self._over = ready.result()
        atexit.register(self._end)

    def _end(self) -> None:
        if self.pid == os.getpid():
            self.loop.call_soon_threadsafe(self._over.set)
            self.thread.join(timeout=5)


async def _serve(ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    ready.set_result((loop, over))
    await over.wait()
    for model in _open.get(loop, {}).values():
        await model.engine.close()


_lock = threading.Lock()
_running: _Background | None = None


def _background() -> _Background:
    global _running
    with _lock:
        # A forked child has inherited the object, but no thread runs there.
        if _running is None or _running.pid != os.getpid():
            _running = _Background()
        return _running


# ---------------------------------------------------------------- the beginning of a trace


def _checked(question: Asked) -> Question:
    asked = ask(question if isinstance(question, str | Question) else list(question))
    if not any(message.parts for message in asked.messages) or not (asked.text.strip() or len(asked.messages) > 1):
        raise InputError("the question is empty", 'ask something: ponder ask "What is 3 + 4 * 5?"')
    return asked


def _seeded(model: Model) -> Model:
    """The model with a seed drawn, where none was given, so that the trace can tell it."""
    if model.params.seed is not None:
        return model
    return replace(model, params=replace(model.params, seed=random.getrandbits(63)))


def _adapters(model: Model) -> dict[str, float]:
    """Scales of the adapters in force: those that the request names, else those that the engine was opened with."""
    if model.params.adapters is not None:
        return dict(model.params.adapters)
    return dict(model.engine.info.metadata.get("ponder.adapters", {}))


def _begin(question: Question, model: Model, strategy: Strategy, budget: Budget, prompt_version: str | None) -> Trace:
    capabilities = model.engine.capabilities
    provenance = Provenance(
        model=model.engine.info.name
        if capabilities.chat
        else str(model.engine.info.metadata.get("ponder.name", model.name)),
        adapters=_adapters(model),
        strategy=getattr(strategy, "__qualname__", type(strategy).__name__).split(".<locals>")[0],
        settings={"temperature": model.params.temperature, "top_p": model.params.top_p, "top_k": model.params.top_k},
        prompt_version=prompt_version,
        seed=model.params.seed,
        software=f"ponder {ponder.__version__}",
    )
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Trace(uuid.uuid4().hex, question, provenance=provenance, budget=budget, state="running", created=now)

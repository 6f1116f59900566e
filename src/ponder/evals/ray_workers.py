"""Questions fanned out over a Ray cluster: each worker opens the model by its uri, and the driver alone writes.

    workers = RayWorkers("openai:http://10.0.0.5:8000/v1#qwen3")
    run = await evaluate(task, model, setting, store=store, workers=workers)

There is one worker a node, an actor, and a question goes to the one that has fewest. A worker holds the samples that
end in memory, and hands them over with the next result, so what a killed worker had in hand is paid for again: its
questions are asked of the others, and of itself once Ray has started it anew. Without a cluster that runs, Ray
starts one on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ponder import errors
from ponder.chat.model import Price, model_of
from ponder.errors import EngineDisconnected, EngineError, InputError, MissingExtra, PonderError
from ponder.evals.cached import Account
from ponder.evals.inquiry import Inquiry
from ponder.evals.results import Setting
from ponder.evals.run import Handed
from ponder.protocols import SamplingParams, Verifier
from ponder.tasks import Task

ATTEMPTS = 4
"""How many workers may die of one question before the run gives up."""

Rows = dict[bytes, tuple[bool, bytes]]


class Memory:
    """Samples in memory, in the shape of `ops.results.Background`, until they are handed over."""

    def __init__(self) -> None:
        self._rows: Rows = {}

    async def do(self, work: Any) -> Any:
        return work(self)

    def keep(self, rows: Rows) -> None:
        self._rows |= {key: row for key, row in rows.items() if not self._rows.get(key, (False,))[0]}

    def kept(self, keys: Iterable[bytes]) -> Rows:
        return {key: self._rows[key] for key in keys if key in self._rows}

    def handed_over(self) -> Rows:
        """All there is, which is forgotten here."""
        rows, self._rows = self._rows, {}
        return rows


@dataclass(frozen=True)
class Order:
    """What a worker has to know."""

    uri: str
    adapters: tuple[str, ...]
    params: SamplingParams
    price: Price | None
    setting: Setting
    task: Task
    seed: int
    selectors: Mapping[str, Verifier]


class Worker:
    """One process of the cluster. Errors are handed over as values: Ray's own wrapping would hide their kind."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._memory = Memory()
        self._opening: asyncio.Task[Inquiry] | None = None

    async def opened(self) -> dict[str, Any]:
        """Who runs here, and which model it has opened."""
        try:
            return {"pid": os.getpid(), "identity": (await self._inquiry()).identity}
        except PonderError as error:
            return {"error": _told(error)}

    async def ask(self, name: str, repetition: int) -> dict[str, Any]:
        """What comes out of a question, and what was paid for it."""
        account, told = Account(), dict[str, Any]()
        try:
            told["answered"] = await (await self._inquiry()).ask(name, repetition, account)
        except PonderError as error:
            told["error"] = _told(error)
        return told | {"counts": account.counts, "rows": self._memory.handed_over()}

    async def _inquiry(self) -> Inquiry:
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> Inquiry:
        from ponder.engine import open_engine

        order = self._order
        model = model_of(await open_engine(order.uri, adapters=order.adapters), order.price)
        model = replace(model, params=order.params)
        return Inquiry(order.task, model, order.setting, order.seed, order.selectors, cache=self._memory)


@dataclass
class RayWorkers:
    """Workers on the Ray cluster at `address` (None: RAY_ADDRESS, the one on this machine, or else a new one).

    `uri` and `adapters` name the model as `open_engine` takes them; `options` are Ray's for each worker, such as
    {"num_gpus": 1}. A file has to lie at the same path on every node.
    """

    uri: str
    adapters: Sequence[str] = ()
    address: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    _ray: Any = None
    _began: bool = False
    _actors: list[Any] = field(default_factory=list)
    _busy: Counter[int] = field(default_factory=Counter)

    async def start(self, inquiry: Inquiry) -> None:
        """Starts a worker on each node and waits until all have opened the model.

        Raises MissingExtra without Ray, EngineError where no worker starts, InputError where one has another model.
        """
        self._ray = _ray()
        await asyncio.to_thread(self._connect)
        order = Order(
            _absolute(self.uri),
            tuple(self.adapters),
            inquiry.model.params,
            inquiry.model.price,
            inquiry.setting,
            inquiry.task,
            inquiry.seed,
            inquiry.selectors,
        )
        self._actors = [self._actor(node, order) for node in self._nodes()]
        for told in await asyncio.gather(*(self._call(actor.opened.remote()) for actor in self._actors)):
            if "error" in told:
                raise _error(told["error"])
            if told["identity"] != inquiry.identity:
                raise InputError("a worker has opened another model than this process", "give all nodes the same files")

    async def ask(self, name: str, repetition: int) -> Handed:
        """Asks the worker that has fewest questions. Where it dies of it, another one is asked, but not for ever."""
        for attempt in range(ATTEMPTS):
            place = min(range(len(self._actors)), key=lambda place: self._busy[place])
            self._busy[place] += 1
            try:
                told = await self._call(self._actors[place].ask.remote(name, repetition))
            except self._ray.exceptions.RayActorError:
                # It is started anew, which takes a moment in which it would refuse everything.
                self._busy[place] += 1
                asyncio.get_running_loop().call_later(1.0 + attempt, self._calm, place)
                continue
            finally:
                self._calm(place)
            error = _error(told["error"]) if "error" in told else None
            return Handed(told.get("answered"), error, told["rows"], told["counts"])
        return Handed(error=EngineDisconnected(f"{ATTEMPTS} workers died of the question {name!r}", "see Ray's logs"))

    async def close(self) -> None:
        """Ends the workers, and Ray where it was started here."""
        if self._ray is None:
            return
        for actor in self._actors:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)
        self._actors.clear()
        if self._began:
            await asyncio.to_thread(self._ray.shutdown)

    async def _call(self, reference: Any) -> Any:
        try:
            return await reference
        except asyncio.CancelledError:  # nobody wants it any more
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(reference)
            raise

    def _connect(self) -> None:
        if self._ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self._ray.init(self.address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise EngineError(f"Ray cannot be reached: {reason}", "look at RAY_ADDRESS, or start Ray there") from None
        self._began = True
        # It would tell of workers that died on standard output, which is for what the run came to.
        worker: Any = importlib.import_module("ray._private.worker")
        worker._worker_logs_enabled = False

    def _nodes(self) -> list[str]:
        nodes = [each["NodeID"] for each in self._ray.nodes() if each["Alive"] and each["Resources"].get("CPU")]
        if not nodes:
            raise EngineError("the Ray cluster has no node with a processor", "add one")
        return nodes

    def _actor(self, node: str, order: Order) -> Any:
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        where = strategies.NodeAffinitySchedulingStrategy(node, soft=True)  # elsewhere, should the node be gone
        options = {"num_cpus": 1, "max_restarts": -1, "scheduling_strategy": where, **self.options}
        return self._ray.remote(Worker).options(**options).remote(order)

    def _calm(self, place: int) -> None:
        self._busy[place] -= 1


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise MissingExtra("--on ray needs Ray", "Run: pip install 'ponder[ray]'") from None


def _absolute(uri: str) -> str:
    """The uri with the whole path of a local file: workers have working folders of their own."""
    kind, colon, rest = uri.rpartition(":")
    path = Path(rest)
    return f"{kind}{colon}{path.absolute()}" if path.exists() else uri


def _told(error: PonderError) -> tuple[str, str, str, float | None]:
    return type(error).__name__, error.problem, error.mend, getattr(error, "after", None)


def _error(told: tuple[str, str, str, float | None]) -> PonderError:
    name, problem, mend, after = told
    kind: Any = getattr(errors, name, EngineError)
    error: PonderError = kind(problem, mend, after) if kind is errors.RateLimited else kind(problem, mend)
    return error

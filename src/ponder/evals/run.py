"""An evaluation: every question of a task asked under one setting (`inquiry.py`), and kept as soon as it is done.

What a run has done is read back when it is started again: finished results as they are, samples of unfinished
questions from the cache (`cached.py`).
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, TypeVar

from ponder.chat.model import Model
from ponder.errors import EngineError, InputError, PonderError, StoreError
from ponder.evals.cached import Account
from ponder.evals.identity import identity_of
from ponder.evals.inquiry import Answered, Inquiry
from ponder.evals.results import Result, Run, Setting
from ponder.evals.statistics import Difference, paired_difference
from ponder.ops.results import Background, Results
from ponder.ops.store import Store
from ponder.protocols import Verifier
from ponder.tasks import Task
from ponder.types import Trace, from_dict, from_json, to_dict, to_json

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with the number of results that are done, and of all."""

RETRIES = 2
"""How often a question is asked again after the engine failed."""

PAUSES = (0.5, 2.0)
"""Seconds before each of these, where a server says no other."""

_VERSION = 1


@dataclass(frozen=True)
class Handed:
    """What another process hands over: an answer or an error, the samples that ended there, and what it paid."""

    answered: Answered | None = None
    error: PonderError | None = None
    rows: Mapping[bytes, tuple[bool, bytes]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


class Workers(Protocol):
    """Processes that ask questions."""

    async def start(self, inquiry: Inquiry) -> None:
        """Called once, before any question. Raises InputError where a worker has another model."""
        ...

    async def ask(self, name: str, repetition: int) -> Handed:
        """Asks a question; cancelling it ends the work."""
        ...

    async def close(self) -> None:
        """Ends the processes."""
        ...


async def evaluate(
    task: Task,
    model: Model,
    setting: Setting,
    *,
    seeds: int = 1,
    seed: int = 0,
    at_once: int = 8,
    store: Store | None = None,
    progress: Progress | None = None,
    stop: asyncio.Event | None = None,
    selectors: Mapping[str, Verifier] | None = None,
    account: Account | None = None,
    traces: bool = False,
    workers: Workers | None = None,
) -> Run:
    """All questions of `task`, each asked `seeds` times, `at_once` of them at a time.

    With a `store`, each result is on disk before the next question begins, samples are never paid for twice, and
    the same call goes on where an earlier one ended, however that did; `traces` keeps the traces too. `selectors`
    score every sample, for best-of-N from the pool. `account` is told what was paid now. Once `stop` is set, what
    runs is cut short, and the run comes back with what is done. `workers` ask in other processes (`ray_workers.py`).

    Where a model gives no answer (NoAnswer, BudgetTooSmall, ContextOverflow, or a bound in seconds or calls that ran
    out), that is a wrong result. Where the engine fails, the question is asked again, twice at most; then its
    EngineError is raised, and what is done is kept. Raises InputError for a setting or verifier that cannot be,
    StoreError where the database cannot be written.
    """
    if seeds < 1 or at_once < 1:
        raise InputError(f"seeds={seeds} and at_once={at_once} cannot be", "give at least 1 of each")
    run = Run(
        run_id(task, model, setting, seeds=seeds, seed=seed, selectors=selectors),
        task.name,
        str(model.engine.info.metadata.get("ponder.name", model.name)),
        setting,
        (),
        seeds,
        model.params.temperature,
        task.sha256,
        model.engine.uri.partition(":")[0],
    )
    inquiry = Inquiry(task, model, setting, seed, selectors or {}, stop)
    job = _Job(run, inquiry, account or Account(), progress, traces, workers)
    async with AsyncExitStack() as stack:
        if store is not None:
            await job.begin(await stack.enter_async_context(Background(store.path)))
        job.tell()
        waiting = iter([place for place in job.places if place not in job.done])
        if workers is not None and len(job.done) < len(job.places):
            stack.push_async_callback(workers.close)
            await _unless(stop, workers.start(inquiry))
        await _together([job.work(waiting) for _ in range(at_once)])
    ordered = [(name, repetition) for name in inquiry.questions for repetition in range(seeds)]
    return replace(run, results=tuple(job.done[place] for place in ordered if place in job.done))


# ---------------------------------------------------------------- what decides a run


def run_id(
    task: Task,
    model: Model,
    setting: Setting,
    *,
    seeds: int = 1,
    seed: int = 0,
    selectors: Mapping[str, Verifier] | None = None,
) -> str:
    """A hash of everything that decides the results."""
    params = {
        name: value for name, value in asdict(model.params).items() if name not in ("seed", "max_tokens", "first")
    }
    document = {
        "version": _VERSION,
        "task": task.sha256,
        "questions": [to_dict(question) for question in task.questions],
        "verifier": task.verifier,
        "model": identity_of(model.engine),
        "params": params,
        "price": model.price and asdict(model.price),
        "setting": to_dict(setting),
        "seeds": [seeds, seed],
        "selectors": sorted(selectors or {}),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- asking


@dataclass
class _Job:
    """A run under way: what is done, and where it is kept."""

    run: Run
    inquiry: Inquiry
    account: Account
    progress: Progress | None
    traces: bool
    workers: Workers | None
    database: Background | None = None
    done: dict[tuple[str, int], Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.places = [(name, repetition) for repetition in range(self.run.seeds) for name in self.inquiry.questions]

    def tell(self) -> None:
        if self.progress is not None:
            self.progress(len(self.done), len(self.places))

    async def begin(self, database: Background) -> None:
        """Begins the run in the database, or takes from there what is done of it."""
        self.database = self.inquiry.cache = database
        run = self.run
        document = json.dumps({"run": to_dict(run), "questions": list(self.inquiry.questions)})
        await database.do(
            lambda results: results.begin_run(run.id, run.task, run.model, run.setting.strategy, document)
        )
        rows = await database.do(lambda results: results.results_of(run.id))
        self.done = {place: _result(run.id, text) for place, text in rows.items()}

    async def work(self, waiting: Iterator[tuple[str, int]]) -> None:
        """Asks one question after the other, until there is none left or the user said stop."""
        for name, repetition in waiting:
            if self.inquiry.stopped or (answered := await self._asked(name, repetition)) is None:
                return
            await self._keep(*answered)

    async def _keep(self, result: Result, trace: Trace) -> None:
        kept = trace if self.traces and self.database is not None and trace.id else None
        result = replace(result, trace=kept.id if kept else "")
        if self.database is not None:
            text, run = to_json(result), self.run.id
            await self.database.do(lambda results: results.add_result(run, result.question, result.seed, text, kept))
        self.done[result.question, result.seed] = result
        self.tell()

    async def _asked(self, name: str, repetition: int) -> Answered | None:
        """The result of a question and its trace, None where it was stopped. Raises EngineError after RETRIES."""
        for pause in (*PAUSES[:RETRIES], None):
            account = Account()
            try:
                return await self._once(name, repetition, account)
            except EngineError as error:
                if self.inquiry.stopped:
                    return None
                if not error.retryable or pause is None:
                    raise
                seconds = getattr(error, "after", None) or pause
            finally:
                self.account.add(account)
            await _unless(self.inquiry.stop, asyncio.sleep(seconds))
        raise AssertionError("the last attempt returns or raises")

    async def _once(self, name: str, repetition: int, account: Account) -> Answered | None:
        if self.workers is None:
            return await self.inquiry.ask(name, repetition, account)
        handed = await _unless(self.inquiry.stop, self.workers.ask(name, repetition))
        if handed is None:
            return None
        account.count(handed.counts)
        if self.database is not None and handed.rows:
            await self.database.do(lambda results: results.keep(handed.rows))
        if handed.error is not None:
            raise handed.error
        return handed.answered


async def _unless(stop: asyncio.Event | None, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` gives; None once `stop` is set, with the work cancelled."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait()) if stop is not None else None
    try:
        await asyncio.wait({working, stopping} if stopping else {working}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for each in (working, stopping):
            if each is not None:
                each.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def _together(works: list[Coroutine[Any, Any, None]]) -> None:
    """Runs all; the first error ends the others, and is raised once they have ended."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# ---------------------------------------------------------------- runs that were kept


@dataclass(frozen=True)
class Comparison:
    """One run against another on the questions of both: the difference of their means, and tokens against tokens.

    `tokens` is None where the other run spent none.
    """

    difference: Difference
    tokens: float | None


def kept_run(store: Store, prefix: str) -> Run:
    """The run whose id is or begins with `prefix`, as far as it got. Raises InputError if there is none such."""
    results = Results(store)
    found, text = results.run(prefix)
    rows = {place: _result(found, document) for place, document in results.results_of(found).items()}
    document = _read(found, lambda: json.loads(text))
    run: Run = _read(found, lambda: from_dict(Run, document["run"]))
    places = [(name, repetition) for name in document["questions"] for repetition in range(run.seeds)]
    return replace(run, results=tuple(rows[place] for place in places if place in rows))


def engines_of(store: Store, task: Task, model: str, strategies: Collection[str]) -> set[str]:
    """Kinds of the engines that kept runs of these questions were begun on, with that model and one of `strategies`.

    Runs of other engines than the one that is open now are other runs: this tells which one to open, to go on.
    """
    results, names = Results(store), [str(question.metadata.get("id", i)) for i, question in enumerate(task.questions)]
    found: set[str] = set()
    for each in results.runs():
        if each.task == task.name and each.model == model and each.strategy in strategies:
            document = _read(each.id, functools.partial(json.loads, results.run(each.id)[1]))
            if document["run"].get("sha256") == task.sha256 and document["questions"] == names:
                found.add(document["run"].get("engine", ""))
    return found - {""}


def compare(run: Run, other: Run) -> Comparison:
    """`run` minus `other`, paired by question. Raises InputError where they were not asked the same."""
    if run.sha256 != other.sha256:
        raise InputError(
            f"the runs {run.id[:10]} and {other.id[:10]} are of different tasks", "compare two runs of one file"
        )
    names = set(other.questions)
    common = [name for name in run.questions if name in names]
    if not common:
        raise InputError(f"the runs {run.id[:10]} and {other.id[:10]} have no question in common", "ask both the same")
    mine, theirs = [_by_question(each, common) for each in (run, other)]
    difference = paired_difference(
        [[result.correct for result in mine[name]] for name in common],
        [[result.correct for result in theirs[name]] for name in common],
    )
    spent, against = [
        sum(sum(result.cost.tokens for result in each[name]) / len(each[name]) for name in common)
        for each in (mine, theirs)
    ]
    return Comparison(difference, spent / against if against else None)


def _by_question(run: Run, names: list[str]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {name: [] for name in names}
    for result in run.results:
        if result.question in found:
            found[result.question].append(result)
    return found


def _result(run: str, text: str) -> Result:
    result: Result = _read(run, lambda: from_json(Result, text))
    return result


def _read(run: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise StoreError(
            f"the run {run[:10]} cannot be read: {reason}", "read it with the ponder that wrote it, or remove it"
        ) from error

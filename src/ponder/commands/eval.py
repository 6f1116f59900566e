"""`ponder eval`: how often a model is right on a file of questions, and what that costs."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ponder.commands import asking, evaluating
from ponder.commands.asking import Asking
from ponder.errors import EngineError, InputError

if TYPE_CHECKING:
    from ponder.chat.model import Model
    from ponder.evals.cached import Account
    from ponder.evals.results import Result, Run, Setting
    from ponder.evals.run import Comparison, Workers
    from ponder.ops.store import Store
    from ponder.tasks import Task

RUN = re.compile(r"[0-9a-f]{4,64}")
"""What may be the beginning of a run's id: no strategy is called so."""


class On(StrEnum):
    """Where questions are asked, if not in this process."""

    ray = "ray"


SHOWN = 10
"""Digits of an id that are printed."""

SPENT = ("thinking", "answer", "verifier", "probe", "cancelled", "written")
PROMPT = ("prompt_computed", "prompt_cached", "recomputed")


def evaluate(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Questions with answers: JSONL, JSON, CSV, XML, hf: or reasoning-gym:")
    ],
    model: asking.ModelOption = asking.DEFAULT_MODEL,
    strategy: Annotated[
        str,
        asking.STRATEGY,
    ] = "chain_of_thought",
    budget: Annotated[
        int, typer.Option("--budget", "-b", help="Tokens for each question, all its samples together.")
    ] = asking.DEFAULT_BUDGET,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="RUN|NAME", help="Compare with a run by its id, or with another strategy."),
    ] = None,
    limit: evaluating.LimitOption = None,
    sample_seed: evaluating.SampleSeedOption = None,
    seeds: evaluating.SeedsOption = 1,
    seed: Annotated[int, typer.Option("--seed", help="Of the run: another one draws other samples.")] = 0,
    at_once: evaluating.AtOnceOption = None,
    verifier: evaluating.VerifierOption = None,
    format: evaluating.FormatOption = None,
    adapter: asking.AdapterOption = None,
    temperature: asking.TemperatureOption = None,
    price: asking.PriceOption = None,
    traces: evaluating.TracesOption = False,
    on: Annotated[
        On | None, typer.Option("--on", help="Ask on a Ray cluster, a worker on each node; needs ponder[ray].")
    ] = None,
    as_json: evaluating.JsonOption = False,
    no_cache: evaluating.NoCacheOption = False,
) -> None:
    """Evaluate a model on a file of questions: accuracy with its interval, and what it cost.

    What is done is kept: the same command goes on after Ctrl-C or a crash, and pays for no sample twice.

    ponder eval questions.jsonl --strategy 'vote(8)' --budget 2000 --limit 100
    ponder eval questions.jsonl --strategy 'vote(8)' --against chain_of_thought
    """
    from ponder.evals.results import Setting
    from ponder.types import Budget

    try:
        bounds = Budget(budget)
    except ValueError as error:
        raise InputError(str(error), "see ponder eval --help") from None
    task = evaluating.task_of(file, format, verifier, limit, sample_seed)
    options = Asking(model, tuple(adapter or ()), temperature, None, price, not no_cache, as_json)

    async def work(stop: asyncio.Event) -> None:
        with asking.opened_store(options) as store:
            other = _kept(store, against)
            if on is None:
                opened = await evaluating.open_for(options, stop, store, task, [strategy], seeds, at_once)
            else:  # each node asks a few of the questions
                opened = await asking.open_asked(options, stop)
            workers = _workers(on, options)
            evaluation = _Evaluation(task, opened, store, stop, seeds, seed, at_once, traces, workers)
            try:
                run = await evaluation.run(Setting(strategy, bounds))
                if against is not None and other is None:
                    other = await evaluation.run(Setting(against, bounds))
            finally:
                await opened.engine.close()
        _report(task, run, other, evaluation.account, as_json)

    asking.run(work)


def _kept(store: Store | None, against: str | None) -> Run | None:
    """The run that --against names; None where it names a strategy, which is checked before anything is paid."""
    if against is None:
        return None
    if RUN.fullmatch(against):
        from ponder.evals.run import kept_run

        if store is None:
            raise InputError("--no-cache looks up no run", "drop it, or give a strategy to --against")
        return kept_run(store, against)
    from ponder.strategies.naming import strategy_named

    strategy_named(against)
    return None


def _workers(on: On | None, options: Asking) -> Workers | None:
    if on is None:
        return None
    from ponder.evals.ray_workers import RayWorkers

    return RayWorkers(options.model, options.adapters)


class _Evaluation:
    """Runs of several settings of one model on one task, and what was paid for them."""

    def __init__(
        self,
        task: Task,
        model: Model,
        store: Store | None,
        stop: asyncio.Event,
        seeds: int,
        seed: int,
        at_once: int | None,
        traces: bool,
        workers: Workers | None,
    ) -> None:
        from ponder.evals.cached import Account

        self.account = Account()
        self._task, self._model, self._store, self._stop = task, model, store, stop
        self._seeds, self._seed, self._at_once, self._traces = seeds, seed, at_once, traces
        self._workers = workers
        self._done = self._all = 0

    async def run(self, setting: Setting) -> Run:
        """The whole run. Raises `Stopped` where the user ended it before."""
        from ponder.evals.run import evaluate

        with evaluating.progress_bar(setting.strategy) as show:

            def told(done: int, total: int) -> None:
                self._done, self._all = done, total
                show(done, total)

            try:
                run = await evaluate(
                    self._task,
                    self._model,
                    setting,
                    seeds=self._seeds,
                    seed=self._seed,
                    at_once=evaluating.questions_at_once(self._model, setting.strategy, self._at_once),
                    store=self._store,
                    progress=told,
                    stop=self._stop,
                    account=self.account,
                    traces=self._traces,
                    workers=self._workers,
                )
            except EngineError as error:
                raise EngineError(error.problem, f"{error.mend or 'look at the engine'}; {self._so_far}") from None
        if len(run.results) < self._all:
            raise asking.Stopped("stopped", self._so_far)
        return run

    @property
    def _so_far(self) -> str:
        if self._store is None:
            return f"{self._done} of {self._all} results were done, and are lost with --no-cache"
        return f"{self._done} of {self._all} results are kept: the same command goes on from there"


# ---------------------------------------------------------------- what came out


def _report(task: Task, run: Run, other: Run | None, account: Account, as_json: bool) -> None:
    from ponder.evals.run import compare

    comparison = None if other is None else compare(run, other)
    told = summary(task, run)
    told["paid now"] = account.counts
    if other is not None and comparison is not None:
        told["against"] = _against(other, comparison)
    if as_json:
        print(json.dumps(told, ensure_ascii=False))
    else:
        _print(told)


def summary(task: Task, run: Run) -> dict[str, Any]:
    """A run in numbers: accuracies with their intervals, the floor, and the mean cost of an answer."""
    from ponder.tasks import constant_floor

    answer, share = constant_floor(task)
    return {
        "version": 1,
        "run": run.id,
        "task": run.task,
        "model": run.model,
        "engine": run.engine,
        "strategy": run.setting.strategy,
        "budget": run.setting.budget.tokens,
        "temperature": run.temperature,
        "verifier": task.verifier,
        "questions": len(run.questions),
        "seeds": run.seeds,
        "accuracy": _mean(run.results, lambda result: result.correct),
        "lenient": _mean(run.results, lambda result: result.lenient),
        "coverage": _mean(run.results, _covered),
        "floor": {"answer": answer, "value": share},
        "kinds": _kinds(run),
        "errors": dict(Counter((result.error or "").partition(":")[0] for result in run.results if result.error)),
        "cost": _cost(run),
    }


def _covered(result: Result) -> float:
    """Whether any of the samples is right."""
    return float(any(sample.correct >= 0.5 for sample in result.samples))


def _mean(results: Sequence[Result], value: Any) -> dict[str, Any]:
    """The mean over questions with its interval of 95 %, in which repetitions of a question count once."""
    from ponder.evals.statistics import mean_interval

    by_question: dict[str, list[float]] = {}
    for result in results:
        by_question.setdefault(result.question, []).append(value(result))
    mean = mean_interval(list(by_question.values()))
    return {"value": mean.value, "low": mean.interval.low, "high": mean.interval.high, "questions": mean.n}


def _kinds(run: Run) -> dict[str, Any]:
    """The accuracy of each kind of question, where there are several."""
    by_kind: dict[str, list[Result]] = {}
    for result in run.results:
        by_kind.setdefault(result.kind, []).append(result)
    if len(by_kind) < 2:
        return {}
    return {kind: _mean(by_kind[kind], lambda result: result.correct) for kind in sorted(by_kind)}


def _cost(run: Run) -> dict[str, float | None]:
    """What an answer cost on average; None where it is not known."""
    cost, n = run.cost, len(run.results)
    names = ("tokens", *SPENT, *PROMPT, "calls", "seconds", "flops", "dollars")
    return {name: None if (total := getattr(cost, name)) is None else total / n for name in names}


def _against(other: Run, comparison: Comparison) -> dict[str, Any]:
    found = comparison.difference
    return {
        "run": other.id,
        "model": other.model,
        "strategy": other.setting.strategy,
        "budget": other.setting.budget.tokens,
        "questions": found.n,
        "difference": {"value": found.value, "low": found.interval.low, "high": found.interval.high},
        "better": found.better,
        "worse": found.worse,
        "mcnemar": found.p_value,
        "tokens": comparison.tokens,
    }


# ---------------------------------------------------------------- for people


def _print(told: dict[str, Any]) -> None:
    from rich.text import Text

    from ponder.commands.terminal import console, plain

    screen = console()
    setting = f"{told['task']} · {told['model']} · {told['strategy']} · {told['budget']} tokens a question"
    screen.print(Text(plain(setting), style="bold"), soft_wrap=True)
    for label, value in _lines(told):
        screen.print(Text(f"{label:<10}").append(plain(value)), soft_wrap=True)
    if told["kinds"]:
        _print_kinds(told["kinds"])


def _lines(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    n, seeds = told["questions"], told["seeds"]
    times = f", each asked {seeds} times" if seeds > 1 else ""
    yield "accuracy", f"{_percent(told['accuracy'])} of {n} questions{times}"
    yield "lenient", f"{_percent(told['lenient'])} where an unmarked answer counts, too"
    yield "coverage", f"{_percent(told['coverage'])} with any sample right"
    yield "floor", f"{told['floor']['value']:.1%} for always answering {told['floor']['answer']!r}"
    for name, count in told["errors"].items():
        yield "no answer", f"{count} ({name}), counted as wrong"
    yield from _cost_lines(told["cost"])
    paid = told["paid now"]
    yield (
        "paid now",
        f"{paid['tokens']:,} tokens in {paid['samples']:,} samples and continuations; "
        f"{paid['cached_tokens']:,} tokens in {paid['cached_samples']:,} from the cache",
    )
    yield "run", told["run"][:SHOWN]
    if "against" in told:
        yield from _against_lines(told["against"])


def _cost_lines(cost: dict[str, float | None]) -> Iterator[tuple[str, str]]:
    parts = [f"{cost[name]:,.1f} {name}" for name in SPENT if cost[name]]
    prompt = [f"{cost[name]:,.1f} {name.removeprefix('prompt_')}" for name in PROMPT if cost[name]]
    yield "tokens", f"{cost['tokens']:,.1f} an answer: {', '.join(parts)}; prompt {', '.join(prompt) or '0'}"
    flops = "FLOPs unknown" if cost["flops"] is None else f"{cost['flops']:.3g} FLOPs"
    dollars = "" if cost["dollars"] is None else f" · ${cost['dollars']:.6f}"
    yield "compute", f"{flops} · {cost['seconds']:.2f} s{dollars}"


def _against_lines(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    difference = told["difference"]
    yield "against", f"{told['strategy']} · {told['model']} · {told['budget']} tokens · run {told['run'][:SHOWN]}"
    low, high = 100 * difference["low"], 100 * difference["high"]
    points = f"{100 * difference['value']:+.1f} points [{low:+.1f}, {high:+.1f}] on {told['questions']} questions"
    p = "" if told["mcnemar"] is None else f" · McNemar p = {told['mcnemar']:.3g}"
    yield "", f"{points} · {told['better']} better, {told['worse']} worse{p}"
    if told["tokens"] is not None:
        yield "", f"{told['tokens']:.2f} times its tokens"


def _percent(mean: dict[str, Any]) -> str:
    return f"{mean['value']:.1%} [{100 * mean['low']:.1f}, {100 * mean['high']:.1f}]"


def _print_kinds(kinds: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from ponder.commands.terminal import console, plain

    table = Table("kind", "accuracy", "questions", box=SIMPLE_HEAD)
    table.columns[2].justify = "right"
    for kind, mean in kinds.items():
        table.add_row(Text(plain(kind) or "(none)"), _percent(mean).replace("[", r"\["), str(mean["questions"]))
    console().print(table)

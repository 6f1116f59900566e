"""`ponder curve`: what thinking buys a model on a task, as curves, a policy and a page."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ponder.commands import asking, evaluating
from ponder.commands.asking import Asking
from ponder.commands.measuring import Measuring, Plan
from ponder.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from ponder.evals.cached import Account
    from ponder.evals.statistics import Interval
    from ponder.evals.study import Measurement, Study
    from ponder.strategies.policy import Policy

POOLED = ("vote", "best_of_n")
"""Strategies whose curves follow from one pool of samples; with settings of their own they are run as any other."""


def curve(
    file: evaluating.FileArgument,
    model: asking.ModelOption = asking.DEFAULT_MODEL,
    strategies: Annotated[
        str,
        typer.Option(
            "--strategies",
            "-s",
            metavar="NAMES",
            help="What is measured: vote and best_of_n from one pool of samples, any other at each budget.",
        ),
    ] = "direct,chain_of_thought,vote,best_of_n",
    budgets: Annotated[
        str,
        typer.Option("--budgets", "-b", metavar="A..B|A,B", help="Tokens a question: doubled from A to B, or a list."),
    ] = "64..1024",
    samples: Annotated[int, typer.Option("--samples", "-n", help="Samples a question in the pool.")] = 32,
    share: Annotated[
        int | None, typer.Option("--share", help="Tokens for a sample of the pool; by default what a pilot needs.")
    ] = None,
    risk: Annotated[float, typer.Option("--risk", help="Of a vote that stops early: that its leader is wrong.")] = 0.05,
    selector: Annotated[
        list[str] | None,
        typer.Option(
            "--selector", metavar="VERIFIER", help="Selects among the pool's samples, beside arithmetic_steps; several."
        ),
    ] = None,
    limit: evaluating.LimitOption = None,
    sample_seed: evaluating.SampleSeedOption = None,
    seed: evaluating.SeedOption = 0,
    at_once: evaluating.AtOnceOption = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Gets curve.json, policy.toml, curve.png, report.html."),
    ] = Path("curve"),
    verifier: evaluating.VerifierOption = None,
    format: evaluating.FormatOption = None,
    adapter: asking.AdapterOption = None,
    temperature: asking.TemperatureOption = None,
    price: asking.PriceOption = None,
    no_plots: Annotated[bool, typer.Option("--no-plots", help="Draw no picture and no page.")] = False,
    as_json: evaluating.JsonOption = False,
    no_cache: evaluating.NoCacheOption = False,
) -> None:
    """Measure accuracy against compute, and recommend how much thinking to buy.

    What is done is kept: the same command goes on after Ctrl-C or a crash, and pays for no sample twice.

    ponder curve questions.jsonl --samples 32 --budgets 64..512 --limit 100
    ponder ask --policy curve/policy.toml --effort high "..."
    """
    plan = _plan(strategies, budgets, samples, share, risk, selector or [])
    if at_once is not None and at_once < 1:
        raise InputError(f"--at-once {at_once} asks nothing", "give at least 1")
    _check_extras(no_plots)
    task = evaluating.task_of(file, format, verifier, limit, sample_seed)
    evaluating.make_folder(output)
    options = Asking(model, tuple(adapter or ()), temperature, None, price, not no_cache, as_json)

    async def work(stop: asyncio.Event) -> None:
        with asking.opened_store(options) as store:
            opened = await evaluating.open_for(options, stop, store, task, plan.all, at_once=at_once)
            try:
                measuring = Measuring(task, opened, store, stop, plan, seed, at_once, quiet=as_json)
                study = await measuring.study()
            finally:
                await opened.engine.close()
        _finish(study, output, no_plots, as_json, measuring.account)

    asking.run(work)


# ---------------------------------------------------------------- what is to be measured


def _plan(
    strategies: str, budgets: str, samples: int, share: int | None, risk: float, selectors: Sequence[str]
) -> Plan:
    """The plan that the options make, checked before anything is paid for. Raises InputError."""
    from ponder.strategies.naming import strategy_named
    from ponder.strategies.pool import LEAST_SHARE
    from ponder.verifiers.naming import verifier_named

    names = list(dict.fromkeys(evaluating.split_expressions(strategies)))
    if not names:
        raise InputError("--strategies names none", "give some, such as direct,vote")
    for each in names:
        strategy_named(each)
    for each in selectors:
        verifier_named(each)
    if samples < 2:
        raise InputError(f"--samples {samples} is no pool", "give at least 2, better 32")
    if share is not None and share < LEAST_SHARE:
        raise InputError(f"--share {share} is less than a sample gets", f"give at least {LEAST_SHARE}")
    if not 0 < risk < 0.5:
        raise InputError(f"--risk {risk:g} is no risk of a wrong leader", "give one between 0 and 0.5, such as 0.05")
    run = tuple(each for each in names if each not in POOLED)
    return Plan(run, _budgets(budgets), samples if len(run) < len(names) else None, share, risk, tuple(selectors))


def _budgets(text: str) -> tuple[int, ...]:
    """`128..1024` is 128, 256, 512, 1024; or a list. Raises InputError."""
    first, dots, last = text.partition("..")
    try:
        if dots:
            low, high = int(first), int(last)
            found = [low * 2**power for power in range(64) if 0 < low * 2**power <= high]
        else:
            found = [int(each) for each in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise InputError(f"--budgets {text!r} says nothing", "give tokens, such as 64..1024 or 64,256,1024")
    return tuple(sorted(set(found)))


def _check_extras(no_plots: bool) -> None:
    missing = [name for name in ("matplotlib", "plotly") if importlib.util.find_spec(name) is None]
    if missing and not no_plots:
        raise MissingExtra(
            f"the picture and the page need {' and '.join(missing)}", "pip install 'ponder[plots]', or give --no-plots"
        )


# ---------------------------------------------------------------- what came out


def _finish(study: Study, folder: Path, no_plots: bool, as_json: bool, account: Account) -> None:
    """Writes the files, and prints what they say in short."""
    from ponder.evals import plot, recommend, report
    from ponder.evals.study import dump
    from ponder.strategies import policy as policies

    policy, problem = None, None
    try:
        policy = recommend.recommend(study)
    except InputError as error:
        problem = str(error)
    files = [folder / "curve.json"]
    dump(study, files[0])
    if policy is not None:
        files.append(folder / "policy.toml")
        policies.dump(policy, files[-1])
    if not no_plots:
        files += [folder / "curve.png", folder / "report.html"]
        plot.draw(study, files[-2])
        report.write(study, files[-1], policy)
    if as_json:
        told = _summary(study, policy) | {"problem": problem, "paid now": account.counts}
        print(json.dumps(told | {"files": list(map(str, files))}, ensure_ascii=False))
    else:
        _print(study, policy, problem)
        print("\n" + "\n".join(map(str, files)))


def _summary(study: Study, policy: Policy | None) -> dict[str, Any]:
    """A study and its policy without the scores of single questions."""
    frontier = {id(point) for point in study.frontier()}
    gap = study.gap and {
        "coverage": study.gap.coverage,
        "selected": study.gap.selected,
        **_interval(study.gap.difference.value, study.gap.difference.interval),
    }
    return {
        "version": 1,
        "task": study.task,
        "model": study.model,
        "questions": len(study.questions),
        "floor": {"answer": study.floor_answer, "value": study.floor},
        "points": [
            {"series": series.name, **_point(point), "frontier": id(point) in frontier}
            for series in study.series
            for point in series.points
        ],
        "gap": gap,
        "gains": {
            series.name: {**_interval(series.gain.value, series.gain.interval), "from": series.gain.tokens}
            for series in study.series
            if series.gain
        },
        "policy": policy and asdict(policy),
        "notes": list(study.notes),
    }


def _point(point: Measurement) -> dict[str, Any]:
    setting = point.setting
    return {
        "label": point.label,
        "strategy": setting and setting.strategy,
        "budget": setting and setting.budget.tokens,
        "accuracy": _interval(point.accuracy, point.interval),
        **point.spent._asdict(),
    }


def _interval(value: float, interval: Interval) -> dict[str, float]:
    return {"value": value, "low": interval.low, "high": interval.high}


def _print(study: Study, policy: Policy | None, problem: str | None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from ponder.commands.terminal import console, plain

    screen = console()
    frontier = {id(point) for point in study.frontier()}
    title = f"{study.task} · {study.model} · {len(study.questions):,} questions"
    screen.print(Text(plain(title), style="bold"), soft_wrap=True)
    table = Table("", "setting", "accuracy", "95% interval", "tokens", box=SIMPLE_HEAD)
    for column in table.columns[2:]:
        column.justify = "right"
    for point in [point for series in study.series for point in series.points]:
        low, high = point.interval
        cells = (f"{point.accuracy:.1%}", f"{100 * low:.1f} to {100 * high:.1f}", f"{point.spent.tokens:,.0f}")
        mark = "*" if id(point) in frontier else ""
        table.add_row(mark, Text(plain(point.label)), *cells)
    screen.print(table)
    for line in _lines(study, policy, problem):
        screen.print(Text(plain(line)), soft_wrap=True)


def _lines(study: Study, policy: Policy | None, problem: str | None) -> Iterator[str]:
    yield f"* on the frontier · the best constant answer gets {study.floor:.1%}"
    if study.gap is not None:
        difference = study.gap.difference
        low, high = 100 * difference.interval.low, 100 * difference.interval.high
        yield (
            f"a perfect verifier would add {100 * difference.value:.1f} points [{low:.1f}, {high:.1f}]: "
            f"{study.gap.coverage} over {study.gap.selected}"
        )
    yield from study.notes
    if problem is not None:
        yield f"no policy: {problem}"
    for name, effort in policy.efforts.items() if policy else ():
        assert effort.accuracy is not None
        assert effort.interval is not None
        low, high = (100 * end for end in effort.interval)
        yield ""
        setting = f"{effort.strategy} within {effort.budget:,} tokens"
        yield f"{name:<7} {setting}: {effort.accuracy:.1%} [{low:.1f}, {high:.1f}]"
        yield f"        {effort.why}"

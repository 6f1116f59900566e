"""How `ponder prompts eval` and the gate of `ponder prompts tag` ask: their options, the runs, and what is printed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ponder.commands import asking, evaluating
from ponder.commands.terminal import console, plain
from ponder.errors import InputError

if TYPE_CHECKING:
    from ponder.evals.prompt_gate import Verdict, Version
    from ponder.evals.results import Run
    from ponder.ops.prompt import Prompt
    from ponder.tasks import Task

TASK_HELP = "Questions with answers: JSONL, JSON, CSV, XML, hf: or reasoning-gym:"
MARGIN = 2.0
"""Points of a hundred, as `ponder.evals.prompt_gate.MARGIN` has it."""

StrategyOption = Annotated[str, asking.STRATEGY]
BudgetOption = Annotated[
    int, typer.Option("--budget", "-b", help="Tokens for each question, all its samples together.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the runs: another one draws other samples.")]
MarginOption = Annotated[
    float, typer.Option("--margin", metavar="POINTS", help="How many points of a hundred worse it may be.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="What fills a blank of the prompt; again for more."),
]


@dataclass(frozen=True)
class Measuring:
    """The options that both commands have in common."""

    model: str = asking.DEFAULT_MODEL
    strategy: str = "chain_of_thought"
    budget: int = asking.DEFAULT_BUDGET
    limit: int | None = None
    sample_seed: int | None = None
    seeds: int = 1
    seed: int = 0
    at_once: int | None = None
    verifier: str | None = None
    format: str | None = None
    temperature: float | None = None
    price: str | None = None
    margin: float = MARGIN
    values: tuple[str, ...] = ()
    cache: bool = True
    traces: bool = False


def measured(candidate: Prompt, current: Prompt | None, task: str, options: Measuring) -> Verdict:
    """Asks the questions with either version, as far as that was not done before, and compares."""
    from ponder.commands.asking import Asking
    from ponder.commands.eval import _Evaluation
    from ponder.evals.prompt_gate import weigh
    from ponder.evals.results import Setting
    from ponder.types import Budget

    try:
        bounds = Budget(options.budget)
    except ValueError as error:
        raise InputError(str(error), "see ponder prompts eval --help") from None
    values = values_of(options.values)
    questions = evaluating.task_of(task, options.format, options.verifier, options.limit, options.sample_seed)
    chosen = Asking(options.model, (), options.temperature, None, options.price, options.cache, True)
    verdicts: list[Verdict] = []

    async def work(stop: asyncio.Event) -> None:
        with asking.opened_store(chosen) as store:
            opened = await evaluating.open_for(
                chosen, stop, store, questions, [options.strategy], options.seeds, options.at_once
            )

            async def ask(asked: Task) -> Run:
                rest = (options.seeds, options.seed, options.at_once, options.traces, None)
                return await _Evaluation(asked, opened, store, stop, *rest).run(Setting(options.strategy, bounds))

            try:
                verdicts.append(await weigh(ask, questions, candidate, current, values, options.margin / 100))
            finally:
                await opened.engine.close()

    asking.run(work)
    return verdicts[0]


def values_of(texts: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """What --set gives. Raises InputError."""
    values: dict[str, Any] = {}
    for text in texts:
        name, found, value = text.partition("=")
        if not found or not name or name in values:
            raise InputError(f"--set {text[:60]!r} fills no blank", "give each once, such as --set product=ponder")
        values[name] = value
    return values


# ---------------------------------------------------------------- for people


def show(verdict: Verdict) -> None:
    """Prints accuracies, costs and the comparison."""
    from rich.text import Text

    screen = console()
    title = f"{verdict.task} · {verdict.model} · {verdict.strategy}"
    screen.print(Text(plain(title), style="bold"), soft_wrap=True)
    versions = [each for each in (verdict.candidate, verdict.current) if each is not None]
    width = max(10, *(len(each.prompt) + 2 for each in versions))
    for version in versions:
        screen.print(Text(f"{version.prompt:<{width}}{_line(version)}"), soft_wrap=True)
    if verdict.figures:
        screen.print(Text(f"{'difference':<{width}} {plain(verdict.figures)}"), soft_wrap=True)
        said = "is no worse within the margin" if verdict.passed else "is not shown to be no worse within the margin"
        screen.print(Text(f"{verdict.candidate.prompt} {said}"), soft_wrap=True)


def _line(version: Version) -> str:
    mean = version.accuracy
    low, high = 100 * mean.interval.low, 100 * mean.interval.high
    dollars = "" if version.dollars is None else f" · ${version.dollars:.6f}"
    return (
        f"{mean.value:.1%} [{low:.1f}, {high:.1f}] of {mean.n} questions · {version.tokens:,.1f} tokens an answer"
        f"{dollars} · run {version.run[:10]}"
    )


def print_json(document: Mapping[str, Any] | list[Any]) -> None:
    """One document of JSON."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))

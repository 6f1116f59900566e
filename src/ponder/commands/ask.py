"""`ponder ask`: one question, one answer, and what it cost."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ponder.commands import asking
from ponder.commands.asking import Asking, Think
from ponder.commands.terminal import Display, complain, console, plain
from ponder.errors import InputError, PonderError

if TYPE_CHECKING:
    from ponder.chat.model import Model
    from ponder.ops.store import Store
    from ponder.protocols import Strategy
    from ponder.types import Budget, Question, Trace


def ask(
    context: typer.Context,
    question: Annotated[
        str | None, typer.Argument(help="The question; text piped in or in files comes below it.")
    ] = None,
    model: asking.ModelOption = asking.DEFAULT_MODEL,
    budget: asking.BudgetOption = asking.DEFAULT_BUDGET,
    think: asking.ThinkOption = Think.auto,
    no_think: asking.NoThinkOption = False,
    strategy: Annotated[
        str | None,
        asking.STRATEGY,
    ] = None,
    effort: asking.EffortOption = None,
    policy: asking.PolicyOption = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Direct, step by step, and trained thinking side by side.")
    ] = False,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", metavar="FILE", help="A text file to ask about; several may be given."),
    ] = None,
    adapter: asking.AdapterOption = None,
    thinking: Annotated[int | None, typer.Option("--thinking", help="At most so many tokens of thinking.")] = None,
    min_thinking: Annotated[int, typer.Option("--min-thinking", help="At least so many tokens of thinking.")] = 0,
    answer: Annotated[
        int | None, typer.Option("--answer", help="Tokens of the budget kept back for the answer.")
    ] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="At most so many seconds.")] = None,
    dollars: Annotated[float | None, typer.Option("--dollars", help="At most so many dollars; needs --price.")] = None,
    temperature: asking.TemperatureOption = None,
    seed: asking.SeedOption = None,
    system: asking.SystemOption = None,
    price: asking.PriceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole trace as JSON.")] = False,
    quiet: asking.QuietOption = False,
    no_store: asking.NoStoreOption = False,
) -> None:
    """Ask a question: the model thinks, then answers, within the budget.

    Thinking and cost go to standard error, the answer to standard output. Ctrl-C stops and keeps
    what there is.
    """
    from ponder.types import Budget

    chosen = asking.strategy_of(think, no_think)
    wanted = asking.wanted_of(context, policy, effort, budget)
    if wanted is not None:
        chosen, budget = wanted.strategy, wanted.tokens
    if strategy is not None:
        if compare or no_think or think is not Think.auto:
            raise InputError("--strategy says how to think already", "drop --think, --no-think and --compare")
        from ponder.strategies.naming import strategy_named

        chosen = strategy_named(strategy)
    if compare and (no_think or think is not Think.auto):
        raise InputError("--compare tries every way of thinking", "drop --think and --no-think")
    asking.check_finite(seconds=seconds, dollars=dollars)
    if dollars is not None and price is None:
        raise InputError("--dollars needs a price", "give one, such as --price 0.15,0.60")
    try:
        bounds = Budget(budget, seconds, dollars, None, answer, thinking, min_thinking)
    except ValueError as error:
        raise InputError(str(error), "see ponder ask --help") from None
    asked = _question(question, file or [], system)
    options = Asking(model, tuple(adapter or ()), temperature, seed, price, not no_store, quiet or as_json)

    async def work(stop: asyncio.Event) -> None:
        with asking.opened_store(options) as store:
            opened = await asking.open_asked(options, stop)
            try:
                if wanted is not None and not options.quiet:
                    wanted.check(opened)
                if compare:
                    await _compare(asked, opened, bounds, store, as_json, quiet)
                else:
                    await _ask(asked, opened, chosen, bounds, store, as_json, quiet)
            finally:
                await opened.engine.close()
        if stop.is_set():
            raise typer.Exit(asking.STOPPED)

    asking.run(work)


def _question(question: str | None, files: list[Path], system: str | None) -> Question:
    from ponder import types

    piped = asking.read_input(files, stdin=_has_input())
    text = "\n\n".join(each for each in (question or "", piped) if each.strip())
    asking.check_text(text + (system or ""), "the question")
    if not text.strip():
        raise InputError("the question is empty", 'ask something: ponder ask "What is 3 + 4 * 5?"')
    messages = (types.user(text),)
    return types.ask([types.system(system), *messages] if system else list(messages))


def _has_input() -> bool:
    """Whether standard input is a pipe or a file: a terminal, a service's closed or empty input is no question."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


async def _ask(
    question: Question,
    model: Model,
    strategy: Strategy,
    budget: Budget,
    store: Store | None,
    as_json: bool,
    quiet: bool,
) -> None:
    from ponder.types import to_json

    display = Display(quiet, several=getattr(strategy, "several", False))
    show = asking.ignore if as_json else display.show
    try:
        trace = await asking.solved(question, model, strategy, budget, store, show)
    finally:
        display.end()
    if as_json:
        print(to_json(trace))


async def _compare(
    question: Question, model: Model, budget: Budget, store: Store | None, as_json: bool, quiet: bool
) -> None:
    from ponder.strategies.chain_of_thought import chain_of_thought
    from ponder.strategies.direct import direct
    from ponder.types import to_dict

    ways = {"direct": direct(), "step by step": chain_of_thought("prompt")}
    if model.format.trained:
        ways["trained thinking"] = chain_of_thought("trained")
    traces: dict[str, Trace] = {}
    for name, strategy in ways.items():
        display = Display()
        show = asking.ignore if as_json or quiet else display.show
        if not (as_json or quiet):
            print(f"— {name}", file=sys.stderr)
        try:
            traces[name] = await asking.solved(question, model, strategy, budget, store, show)
        except PonderError as error:
            if not traces and name == list(ways)[-1]:
                raise
            complain(f"{name}: {error}")
        finally:
            display.end()
        if model.stop is not None and model.stop.is_set():
            break
    if as_json:
        print(json.dumps({name: to_dict(trace) for name, trace in traces.items()}, ensure_ascii=False))
    else:
        _print_comparison(traces)


def _print_comparison(traces: dict[str, Trace]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    # Tokens of thinking, answer and prompt; without borders there is room for the answer.
    table = Table("way", "answer", "thought", "said", "prompt", "seconds", box=SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
    for name, trace in traces.items():
        cost = trace.cost
        cells = (cost.thinking, cost.answer, cost.prompt, f"{cost.seconds:.1f}")
        # As Text: what a model wrote in square brackets is no markup.
        table.add_row(name, Text(_short(plain(trace.answer))), *map(str, cells))
    console().print(table)


def _short(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"

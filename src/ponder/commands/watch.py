"""`ponder train watch`: how far a run is, from its folder alone, while it goes on or after."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ponder.commands.terminal import console, plain

if TYPE_CHECKING:
    from rich.console import RenderableType

LINES = 8
INTERVAL = 1.0
RECENT = 20
"""Steps over which speed and time left are taken."""
COLUMNS = ("loss", "reward", "accuracy", "length", "kl", "gradient_norm", "seconds")


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a training run.")],
    once: Annotated[bool, typer.Option("--once", help="Show how it is now, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print how it is now as one JSON document.")] = False,
) -> None:
    """Watch a training run: rate, loss, reward, length, time left, and its last steps.

    On a terminal it is shown until the run ends, or Ctrl-C, which leaves the run alone; elsewhere once.

    ponder train watch runs/first
    ponder train watch runs/first --json
    """
    told = look(run)
    if as_json:
        print(json.dumps(told))
    elif once or not sys.stdout.isatty():
        console().print(_drawn(told))
    else:
        _follow(run, told)


def _follow(run: Path, told: dict[str, Any]) -> None:
    from rich.live import Live

    with Live(_drawn(told), console=console(), auto_refresh=False) as live:
        while told["state"] == "running":
            time.sleep(INTERVAL)
            told = look(run)
            live.update(_drawn(told), refresh=True)


def look(run: Path) -> dict[str, Any]:
    """How a run is: its state, step, speed, time left in seconds (None where unknown), and its last lines.

    States: running, finished, stopped. Raises InputError for a folder that holds no run.
    """
    from ponder.train.folder import facts

    return facts(run, LINES, RECENT)


def _drawn(told: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text(plain(f"{told['run']} · {told['kind']} · {told['state']}"), style="bold")
    names = [name for name in COLUMNS if any(name in line for line in told["lines"])]
    table = Table("step", *(name.replace("_", " ") for name in names), box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for line in told["lines"]:
        table.add_row(str(line["step"]), *(f"{line[name]:.4g}" if name in line else "–" for name in names))
    return Group(head, Text(_summary(told)), table)


def _summary(told: dict[str, Any]) -> str:
    words = [f"step {told['step']:,}" + (f" of {told['steps']:,}" if told["steps"] else "")]
    if told["steps_per_minute"]:
        words.append(f"{told['steps_per_minute']:.3g} steps a minute")
    if told["tokens_per_second"]:
        words.append(f"{told['tokens_per_second']:,.0f} tokens/s")
    if told["seconds_left"] is not None and told["state"] == "running":
        words.append(f"{_clock(told['seconds_left'])} left")
    return " · ".join(words)


def _clock(seconds: float) -> str:
    """1:02:03"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

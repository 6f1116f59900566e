"""What `ponder train` shows while it works, and who of several processes shows it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping

import typer

from ponder.commands.terminal import complain
from ponder.errors import MissingExtra, PonderError

Show = Callable[[int, int, Mapping[str, float]], None]
MEASURED = ("loss", "reward", "accuracy", "length")
"""What is worth a place beside the bar, where a run measures it."""


def require_packages() -> None:
    """Raises MissingExtra unless the packages for training are installed; loads none of them."""
    for package in ("torch", "transformers", "peft", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(f"training needs the package {package}", "Run: pip install 'ponder[train]'")


@contextlib.contextmanager
def one_voice() -> Iterator[bool]:
    """Whether this process speaks: of those that torchrun started, the first. The others end with their codes alone."""
    speaks = os.environ.get("RANK", "0") == "0"
    try:
        yield speaks
    except PonderError as error:
        if speaks:
            raise
        raise typer.Exit(error.exit_code) from None


def tell(line: str) -> None:
    """A line of the run, on standard error."""
    complain(line)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Show]:
    """A bar with what a run measures, on a terminal's standard error; nothing anywhere else."""
    from rich.console import Console

    console = Console(stderr=True, color_system=None if os.environ.get("NO_COLOR") else "auto")
    if not console.is_terminal or os.environ.get("RANK", "0") != "0":
        yield lambda step, steps, values: None
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(bar_width=20),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[measured]}", markup=False),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, transient=True) as display:
        tasks: list[bars.TaskID] = []

        def show(step: int, steps: int, values: Mapping[str, float]) -> None:
            # What was done before must not count into the rate, hence the start at the step before.
            tasks.extend([] if tasks else [display.add_task(title, total=steps, completed=step - 1, measured="")])
            display.update(tasks[0], completed=step, measured=measured(values))

        yield show


def measured(values: Mapping[str, float]) -> str:
    """The values of a step in a few words."""
    seconds, tokens = values.get("seconds", 0.0), values.get("tokens", 0.0)
    words = [f"{name} {values[name]:.4g}" for name in MEASURED if name in values]
    words += [f"{tokens / seconds:,.0f} tokens/s"] if seconds > 0 and tokens else []
    return " · ".join(words)

"""What `eval`, `curve` and `route` share: options, the questions, a progress bar, a folder for what comes out."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ponder.commands import asking
from ponder.errors import InputError

if TYPE_CHECKING:
    from ponder.chat.model import Model
    from ponder.commands.asking import Asking
    from ponder.evals.run import Progress
    from ponder.ops.store import Store
    from ponder.tasks import Task

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Questions with answers: JSONL, JSON, CSV or XML.")]
LimitOption = Annotated[int | None, typer.Option("--limit", help="At most so many questions, the first ones.")]
SampleSeedOption = Annotated[
    int | None, typer.Option("--sample-seed", help="With --limit: random ones, the same for the same seed.")
]
SeedsOption = Annotated[int, typer.Option("--seeds", help="How often each question is asked.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the runs: another one draws other samples.")]
AtOnceOption = Annotated[
    int | None,
    typer.Option(
        "--at-once", help="Questions side by side; by default 8, on hf: what keeps it busy.", show_default=False
    ),
]
VerifierOption = Annotated[
    str | None, typer.Option("--verifier", metavar="NAME", help="How answers are compared; else as the file says.")
]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="The format of the file, where it is not recognised.")
]
TracesOption = Annotated[bool, typer.Option("--traces", help="Keep the trace of every answer, too.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
NoCacheOption = Annotated[
    bool, typer.Option("--no-cache", "--no-store", help="Keep and take nothing: no results, no samples.")
]


def task_of(
    file: str | Path, format: str | None, verifier: str | None, limit: int | None, sample_seed: int | None
) -> Task:
    """The questions that the options name. Raises InputError."""
    from ponder.tasks import load

    if sample_seed is not None and limit is None:
        raise InputError("--sample-seed draws some of the questions", "say how many with --limit")
    return load(file, format=format, verifier=verifier, limit=limit, seed=sample_seed)


def split_expressions(text: str) -> list[str]:
    """The expressions of a list, which is split at its commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in "([{") - (letter in ")]}") if not quote else 0
        if letter == "," and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def make_folder(path: Path) -> None:
    """Makes the folder now: after hours of measuring would be late to hear that it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}", "give another --output") from None


async def open_for(
    options: Asking,
    stop: asyncio.Event,
    store: Store | None,
    task: Task,
    strategies: Sequence[str],
    seeds: int = 1,
    at_once: int | None = None,
) -> Model:
    """Opens the model on the engine that is the faster for so much work, or on which it was begun, and says which.

    Raises what `asking.open_asked` and `engine.many.chosen` do.
    """
    from ponder.engine import catalogue, many
    from ponder.evals.run import engines_of

    if at_once is not None and at_once < 1:
        raise InputError(f"--at-once {at_once} asks nothing", "give at least 1")
    work = many.Work(seeds * len(task.questions), max(map(side_by_side, strategies)), at_once)
    begun: set[str] = set()
    if store is not None and catalogue.find(options.model) is not None:
        begun = engines_of(store, task, options.model, strategies)
    uri, why = await asyncio.to_thread(many.chosen, options.model, work, begun)  # importing torch takes seconds
    if why:
        print(f"ponder: {why}", file=sys.stderr)
    return await asking.open_asked(replace(options, model=uri), stop)


def side_by_side(strategy: str) -> int:
    """Samples of one question that run side by side. Raises InputError for what is no strategy."""
    from ponder.strategies.naming import strategy_named

    return int(getattr(strategy_named(strategy), "at_once", 1))


def questions_at_once(model: Model, strategy: str, wanted: int | None) -> int:
    """Questions to ask side by side, where nobody says how many: what keeps the engine busy."""
    from ponder.engine import many

    return many.questions_at_once(model.engine.uri, side_by_side(strategy), wanted)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A progress bar on a terminal's standard error, nothing anywhere else."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    from rich import progress as bars

    class Rate(bars.ProgressColumn):
        def render(self, task: bars.Task) -> str:
            return f"{task.speed * 60:.1f} a minute" if task.speed else ""

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        Rate(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, transient=True) as display:
        tasks: list[bars.TaskID] = []

        def show(done: int, total: int) -> None:
            # What was done before must not count into the rate, hence the start at `done`.
            tasks.extend([] if tasks else [display.add_task(title, total=total, completed=done)])
            display.update(tasks[0], completed=done, total=total)

        yield show

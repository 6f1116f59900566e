"""A progress bar for downloads: drawn on a terminal's standard error, nothing anywhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ponder.engine.download import Progress, silent


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A `Progress` to hand to `resolve` and `pull`. The bar comes with its first call and goes at the end."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield silent
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    display = bars.Progress(*columns, console=console, transient=True)
    tasks: dict[str, bars.TaskID] = {}

    def report(what: str, done: int, total: int | None) -> None:
        display.start()
        if what not in tasks:
            # What was resumed must not count into the rate, hence the start at `done`.
            tasks[what] = display.add_task(what, total=total, completed=done)
        display.update(tasks[what], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            display.stop()

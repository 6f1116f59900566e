"""The folder of a training run: what it was asked, what it measured, and what it needs to go on.

    RUN/recipe.toml      what was asked for
    RUN/metrics.jsonl    one line a step, and what is told of the whole run on lines of their own
    RUN/rollouts/        samples, a file for each part of a step (see `rollout`)
    RUN/checkpoints/     see `checkpoint`
    RUN/model/           the result

A step's line is written before its checkpoint; a run that is resumed drops the lines after its checkpoint, and
writes them again as it repeats those steps, bit for bit on the same machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ponder.errors import InputError, TrainingError

METRICS = "metrics.jsonl"
Values = Mapping[str, float]


class Tracker(Protocol):
    """Where else the metrics go: TensorBoard, say."""

    def log(self, step: int, values: Values) -> None: ...
    def close(self) -> None: ...


@dataclass
class Run:
    """A run's folder, open for writing.

    shown: is told each step's number and values, to draw progress. stopping: asked after each step whether to stop.
    speaks: False in all but the first of several processes, which then write nothing.
    """

    folder: Path
    trackers: list[Tracker] = field(default_factory=list)
    shown: Callable[[int, int, Values], None] = lambda step, steps, values: None
    told: Callable[[str], None] = lambda line: None
    stopping: Callable[[], bool] = lambda: False
    speaks: bool = True

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def log(self, step: int, steps: int, values: Values) -> None:
        """Writes the values of a step."""
        if not self.speaks:
            return
        self._append({"step": step, "time": round(time.time(), 3), **values})
        for tracker in self.trackers:
            tracker.log(step, values)
        self.shown(step, steps, values)

    def note(self, **facts: Any) -> None:
        """Writes facts of the whole run: hardware, versions, counts of data."""
        if self.speaks:
            self._append({"note": facts})

    def keep_until(self, step: int) -> None:
        """Drops the lines of steps after `step`, and a last line that was cut short."""
        path = self.folder / METRICS
        if not self.speaks or not path.exists():
            return
        kept = [line for line in _lines(path) if line.get("step", 0) <= step]
        part = path.with_suffix(".part")
        with writing(part):
            part.write_text("".join(json.dumps(line) + "\n" for line in kept))
            os.replace(part, path)

    def close(self) -> None:
        """Closes the trackers."""
        for tracker in self.trackers:
            tracker.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        path = self.folder / METRICS
        with writing(path), path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """The steps that a run has logged. Raises InputError for a folder that holds no run."""
    path = folder / METRICS
    if not path.is_file():
        raise InputError(f"{folder} holds no training run", "Give the folder that `ponder train` named")
    return [line for line in _lines(path) if "step" in line]


def notes_of(folder: Path) -> dict[str, Any]:
    """The facts that a run has noted, later ones over earlier ones."""
    facts: dict[str, Any] = {}
    for line in _lines(folder / METRICS):
        facts |= line.get("note", {})
    return facts


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # cut short by a crash
            line = json.loads(text)
            if isinstance(line, dict):
                yield line


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes the folder of `path`, and turns a disk that is full into one line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written: {error.strerror}", "Free disk space and resume: the last checkpoint is whole"
        ) from None

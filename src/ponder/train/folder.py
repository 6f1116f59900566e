"""A run's folder seen from outside, also while it is trained in: whether somebody is, and how far it is.

Loads no torch: who watches a run waits for nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ponder.errors import InputError, TrainingError
from ponder.train.run import notes_of, steps_of, writing

if TYPE_CHECKING:
    from filelock import FileLock

RECIPE, RESULT, LOCK = "recipe.toml", "model", ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Raises InputError where another process trains in the folder, TrainingError where it cannot be written."""
    from filelock import FileLock

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no folder", "Give another --run")
    lock = FileLock(folder / LOCK)
    with writing(folder / LOCK):
        taken = _taken(lock)
    if not taken:
        raise InputError(f"another process trains in {folder}", "Wait for it, or give another --run")
    try:
        yield
    finally:
        lock.release()


def _taken(lock: FileLock) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def running(folder: Path) -> bool:
    """Whether a process trains in the folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with locked(folder):
            return False
    except (InputError, TrainingError):
        return True


def facts(folder: Path, lines: int, recent: int) -> dict[str, Any]:
    """How a run is: its state, step, speed over the last `recent` steps, seconds left, and its last `lines` lines."""
    if not (folder / RECIPE).is_file():
        raise InputError(f"{folder} holds no training run", "Give the folder that `ponder train` named")
    with contextlib.suppress(InputError):  # it has just begun
        found, notes = steps_of(folder), notes_of(folder)
        return _facts(folder, found, notes, lines, recent)
    return _facts(folder, [], {}, lines, recent)


def _facts(folder: Path, found: list[dict[str, Any]], notes: dict[str, Any], lines: int, recent: int) -> dict[str, Any]:
    late = found[-recent:]
    seconds = fmean(line.get("seconds", 0.0) for line in late) if late else 0.0
    tokens = fmean(line.get("tokens", 0.0) for line in late) if late else 0.0
    step, steps = (found[-1]["step"] if found else 0), notes.get("steps")
    alive = running(folder)
    return {
        "version": 1,
        "run": str(folder),
        "kind": notes.get("kind", "training"),
        "state": "running" if alive else "finished" if (folder / RESULT).is_dir() else "stopped",
        "step": step,
        "steps": steps,
        "steps_per_minute": 60 / seconds if seconds else None,
        "tokens_per_second": tokens / seconds if seconds else None,
        "seconds_left": (steps - step) * seconds if steps and seconds else None,
        "lines": found[-lines:],
    }

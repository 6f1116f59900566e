"""Checkpoints that are whole or not there: written beside, checked by hash, moved into place.

    CHECKPOINTS/step-00000100/   training.safetensors   weights (float32 masters) and moments, by name
                                 state.json             step, position in the data, whatever else a trainer needs
                                 manifest.json          sizes and SHA-256 of the others, written last

A run goes on from the newest one that is intact. Random numbers need no saving: every one is drawn from a seed that
is made of the run's seed and the step (`seeded`), so a run that was resumed draws what it would have drawn.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ponder.errors import TrainingError

FILES = ("training.safetensors", "state.json")
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after `step`."""

    path: Path
    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 2) -> Path:
    """Writes a checkpoint into `folder`, and drops all but the newest `keep`.

    Raises TrainingError where it cannot be written; then nothing half-written stays, and older ones do.
    """
    from safetensors.torch import save_file

    target = folder / f"step-{step:08d}"
    part = folder / f".{target.name}.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file(dict(tensors), part / FILES[0])
        (part / FILES[1]).write_text(json.dumps({"step": step, **state}))
        (part / MANIFEST).write_text(json.dumps({name: _fingerprint(part / name) for name in FILES}))
        for path in part.iterdir():
            _to_disk(path)
        if target.exists():  # a run that was resumed comes by again
            shutil.rmtree(target)
        os.replace(part, target)
        _to_disk(folder)
    except Exception as error:  # safetensors has an error of its own for a full disk
        shutil.rmtree(part, ignore_errors=True)
        older = _steps(folder)
        kept = f"the last one, {older[-1].name}, is whole" if older else "there is none before it"
        raise TrainingError(
            f"the checkpoint of step {step} cannot be written to {folder}: {_why(error)}",
            f"Free disk space and resume: {kept}",
        ) from None
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and a line for each newer one that is not."""
    damaged: list[str] = []
    for path in reversed(_steps(folder)):
        try:
            return load(path), damaged
        except TrainingError as error:
            damaged.append(str(error))
    return None, damaged


def load(path: Path) -> Checkpoint:
    """The checkpoint at `path`. Raises TrainingError where a file is missing, cut short or changed."""
    from safetensors.torch import load_file

    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name in FILES:
            if _fingerprint(path / name) != manifest.get(name):
                raise TrainingError(f"{path / name} is not what was written: it was cut short or changed")
        state = json.loads((path / FILES[1]).read_text())
        return Checkpoint(path, int(state["step"]), load_file(path / FILES[0]), state)
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(f"{path} is no whole checkpoint: {_why(error)}", "Resume from an older one") from None


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _fingerprint(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Inside, PyTorch's random numbers come from a seed made of `numbers`, such as the run's seed and the step."""
    text = ",".join(str(number) for number in numbers)
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield

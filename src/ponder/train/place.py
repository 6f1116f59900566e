"""The folder of a run, opened for training: one process at a time, one recipe for good."""

from __future__ import annotations

import contextlib
import os
import platform
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from ponder.errors import InputError
from ponder.train import recipe_file as recipes
from ponder.train.adapters import trainable
from ponder.train.devices import Devices, find_devices
from ponder.train.folder import LOCK, RECIPE, RESULT, locked
from ponder.train.interrupt import Interrupts
from ponder.train.kinds import Dataset
from ponder.train.page import PageTracker
from ponder.train.recipe import Recipe
from ponder.train.run import METRICS, Run, Values, notes_of, writing
from ponder.train.track import trackers
from ponder.train.trainer import Trainer

__all__ = ["RESULT", "devices_of", "kept_recipe", "note", "opened"]

PACKAGES = ("ponder", "torch", "transformers", "peft")


@contextlib.contextmanager
def devices_of(recipe: Recipe, device: str | None) -> Iterator[Devices]:
    """This process and its device, leaving the others at the end as it found them."""
    import torch.distributed

    joined = torch.distributed.is_initialized()
    devices = find_devices(recipe.sharing, device)
    try:
        yield devices
    finally:
        if torch.distributed.is_initialized() and not joined:
            torch.distributed.destroy_process_group()


@contextlib.contextmanager
def opened(
    recipe: Recipe,
    folder: Path,
    devices: Devices,
    interrupts: Interrupts,
    shown: Callable[[int, int, Values], None],
    told: Callable[[str], None],
) -> Iterator[Run]:
    """The run in `folder`, new or taken up again. Only the first of several processes writes.

    Raises InputError where the folder holds something else, or a run of another recipe, or is in use.
    """
    if not devices.first:
        yield Run(folder, stopping=interrupts.stopping, speaks=False)
        return
    with locked(folder):
        _keep_recipe(recipe, folder)
        run = Run(folder, [], interrupts.after(shown), told, interrupts.stopping)
        run.trackers += [*trackers(recipe, folder), PageTracker(folder, recipe.save_every)]
        try:
            yield run
        finally:
            run.close()


def kept_recipe(folder: Path) -> Recipe:
    """The recipe that the run in `folder` was begun with. Raises InputError where there is no run."""
    path = folder / RECIPE
    try:
        return recipes.read(tomllib.loads(path.read_text("utf-8")), str(path))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no training run", "Give the folder that `ponder train` named") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", "Start anew in another folder") from None


def _keep_recipe(recipe: Recipe, folder: Path) -> None:
    path = folder / RECIPE
    if path.exists():
        changed = recipes.difference(kept_recipe(folder), recipe)
        if changed:
            raise InputError(f"the run in {folder} was begun with {changed}", "Give that again, or another --run")
        return
    if (folder / METRICS).exists() or any(
        entry.name not in (LOCK, path.with_suffix(".part").name) for entry in folder.iterdir()
    ):
        raise InputError(f"{folder} holds other files", "Give another --run: a folder that is new or empty")
    part = path.with_suffix(".part")
    with writing(path):
        part.write_text(recipes.dump(recipe), "utf-8")
        os.replace(part, path)


def note(run: Run, recipe: Recipe, trainer: Trainer, data: Dataset) -> None:
    """Writes down the facts of the run. Raises InputError where it was begun with other data."""
    facts = data.facts
    before = notes_of(run.folder).get("data") if (run.folder / METRICS).exists() else None
    if before is not None and before["sha256"] != facts["sha256"]:
        raise InputError(f"the data of the run in {run.folder} has changed", "Give back what it was, or another --run")
    trained = sum(parameter.numel() for _, parameter in trainable(trainer.model))
    whole = sum(parameter.numel() for parameter in trainer.model.parameters())
    known = {"kind": recipe.kind, "steps": trainer.schedule.steps, "data": facts}
    known |= {"parameters": {"trained": trained, "all": whole}, "machine": machine(trainer.devices)}
    run.note(**known)


def machine(devices: Devices) -> dict[str, Any]:
    """What a run ran on, and with which versions."""
    import torch

    cuda = devices.device.type == "cuda"
    name = torch.cuda.get_device_name(devices.device) if cuda else platform.processor() or platform.machine()
    versions = {each: metadata.version(each) for each in PACKAGES}
    return {"device": name, "processes": devices.world, "threads": torch.get_num_threads(), "versions": versions}

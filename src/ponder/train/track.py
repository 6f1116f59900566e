"""Where metrics go beside the run's own folder: TensorBoard, Weights & Biases. Loaded only where a recipe asks."""

from __future__ import annotations

import importlib.util
import math
from importlib import import_module
from pathlib import Path
from typing import Any

from ponder.errors import MissingExtra, TrainingError
from ponder.train.recipe import Recipe
from ponder.train.run import Tracker, Values


def trackers(recipe: Recipe, folder: Path) -> list[Tracker]:
    """Those that the recipe asks for. Raises MissingExtra where a package is missing."""
    found: list[Tracker] = []
    if recipe.track.tensorboard:
        found.append(TensorBoard(folder / "tensorboard"))
    if recipe.track.wandb is not None:
        found.append(WeightsAndBiases(recipe.track.wandb, recipe, folder))
    return found


class TensorBoard:
    """Scalars as event files in a folder: `tensorboard --logdir FOLDER` shows them.

    A run that was resumed repeats steps: the first step that comes purges those from there on.
    """

    def __init__(self, folder: Path) -> None:
        _require("tensorboard", "tensorboard = true", "pip install 'ponder[tracking]'")
        self._folder = folder
        self._writer: Any = None

    def log(self, step: int, values: Values) -> None:
        """Adds the values of a step."""
        try:
            if self._writer is None:
                module = import_module("torch.utils.tensorboard")
                self._writer = module.SummaryWriter(str(self._folder), purge_step=step)
            for name, value in values.items():
                if math.isfinite(value):
                    self._writer.add_scalar(name, value, step)
        except OSError as error:
            raise TrainingError(
                f"{self._folder} cannot be written: {error.strerror}", "Free disk space and resume"
            ) from None

    def close(self) -> None:
        """Writes what is left."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """A run of a project there, or on this disk where its own variable WANDB_MODE says "offline".

    Its name is made of the folder's, so a run that is resumed goes on there, too.
    """

    def __init__(self, project: str, recipe: Recipe, folder: Path) -> None:
        _require("wandb", f'wandb = "{project}"', "pip install wandb")
        self._run: Any = import_module("wandb").init(
            project=project,
            dir=str(folder),
            name=folder.name,
            id=f"{folder.name}-{recipe.seed}",
            resume="allow",
            config=recipe.model_dump(mode="json", exclude_none=True),
        )

    def log(self, step: int, values: Values) -> None:
        """Adds the values of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()


def _require(package: str, setting: str, command: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(f"{setting} needs the package {package}", f"Run: {command}")

"""What a run has come to: the trained weights of its last checkpoint, or of any, as files that engines open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from ponder.engine.torch_load import Loaded
from ponder.errors import InputError, TrainingError
from ponder.train import checkpoint, start
from ponder.train.checkpoint import Checkpoint
from ponder.train.devices import Devices
from ponder.train.export import to_peft, to_safetensors
from ponder.train.place import RESULT, kept_recipe
from ponder.train.recipe import Recipe
from ponder.train.run import Run

if TYPE_CHECKING:
    from peft import PeftModel


def there(folder: Path) -> bool:
    """Whether the run in `folder` has come to its end."""
    return (folder / RESULT).is_dir()


def keep(recipe: Recipe, run: Run, devices: Devices) -> None:
    """Writes the result of a run that has come to its end: an adapter as PEFT has it, or a whole model."""
    if devices.first:
        found = last(run.folder)
        model = trained(recipe, found)
        if start.adapted(recipe):
            to_peft(cast("PeftModel", model.model), run.folder / RESULT, metadata=model.metadata)
        else:
            to_safetensors(model.model, model.tokenizer, run.folder / RESULT, metadata=model.metadata)
    devices.wait()


def trained(recipe: Recipe, found: Checkpoint) -> Loaded:
    """The model with the weights of a checkpoint, on the CPU."""
    model = start.loaded(recipe)
    start.put(model, found.tensors)
    return model


def last(folder: Path) -> Checkpoint:
    """The newest whole checkpoint of a run. Raises TrainingError where there is none."""
    found, damaged = checkpoint.newest(folder / "checkpoints")
    if found is None:
        raise TrainingError(damaged[0] if damaged else f"{folder} has no checkpoint yet", "Train it further")
    return found


def opened(path: Path) -> tuple[Recipe, Checkpoint]:
    """The recipe and the checkpoint of a run's folder (its newest), or of one of its checkpoints.

    Raises InputError for another folder, TrainingError for a checkpoint that is not whole.
    """
    if path.parent.name == "checkpoints" and path.is_dir():
        return kept_recipe(path.parents[1]), checkpoint.load(path)
    if not (path / "recipe.toml").is_file():
        raise InputError(
            f"{path} is neither a training run nor a checkpoint of one", "Give RUN or RUN/checkpoints/step-..."
        )
    return kept_recipe(path), last(path)

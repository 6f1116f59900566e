"""The second sentence: traces -> dataset -> train -> checkpoint -> engine again.

    improve(recipe, Path("runs/cold_start"))        then: open_engine("hf:runs/cold_start/model")

The same call goes on where a run was stopped or killed, and does nothing where it has come to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ponder.train import estimate, kinds, kinds_distill, kinds_dpo, kinds_grpo, kinds_reward, place, result, start
from ponder.train.interrupt import Interrupts
from ponder.train.kinds import Kind, Lesson
from ponder.train.recipe import Recipe
from ponder.train.run import Values

KINDS: dict[str, Kind] = {
    "sft": Kind(kinds.example_rows, kinds.sft),
    "grpo": Kind(kinds_grpo.questions, kinds_grpo.train),
    "reward": Kind(kinds_reward.rows, kinds_reward.train),
    "distill": Kind(kinds_distill.rows, kinds_distill.train),
    "dpo": Kind(kinds_dpo.pairs, kinds_dpo.train),
}
"""What each kind of recipe learns from, and how."""


def improve(
    recipe: Recipe,
    folder: Path,
    *,
    shown: Callable[[int, int, Values], None] = lambda step, steps, values: None,
    told: Callable[[str], None] = lambda line: None,
    device: str | None = None,
) -> Path:
    """Trains as `recipe` says, in `folder`; gives the folder of the result: a PEFT adapter, or a whole model.

    shown: is told each step's number, how many there are, and its values; told: what else is worth a line. Ctrl-C and
    SIGTERM stop it after its step. Raises InputError for a recipe, data or a folder that cannot be used, TrainingError
    where training cannot go on, Stopped where it was stopped; everything but the step under way is kept then.
    """
    kind = KINDS[recipe.kind]
    with place.devices_of(recipe, device) as devices:
        interrupts = Interrupts(alone=devices.world == 1)
        with place.opened(recipe, folder, devices, interrupts, shown, told) as run:
            if result.there(folder):
                return folder / place.RESULT
            model = start.loaded(recipe, devices.device)
            data = kind.data(recipe, model)
            trainer = start.trainer_of(recipe, model, devices, run, start.steps_of(recipe, len(data.items)))
            place.note(run, recipe, trainer, data)
            with interrupts.heeded(trainer):
                kind.train(Lesson(recipe, model, trainer, data))
            result.keep(recipe, run, devices)
    return folder / place.RESULT


def planned(recipe: Recipe, device: str | None = None) -> dict[str, Any]:
    """What `improve` would do: counts of data, steps, parameters, bytes of memory. Raises as it does."""
    with place.devices_of(recipe, device) as devices:
        model = start.loaded(recipe, devices.device)
        data = KINDS[recipe.kind].data(recipe, model)
        return estimate.plan(recipe, model, data, devices, start.steps_of(recipe, len(data.items)))

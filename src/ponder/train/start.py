"""What a training run starts from: the weights that a recipe names, its trainer, and at the end its result.

A checkpoint holds what was trained and nothing else. Put onto the start, which the recipe makes again, it gives the
trained model: so the result of a run and an export of any of its checkpoints are made in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ponder.engine import catalogue
from ponder.engine.download import Progress, silent
from ponder.engine.torch_load import Loaded, load, require_packages, seeded
from ponder.engine.torch_lora import with_adapter
from ponder.engine.weights import METADATA_KEYS, packaged_path
from ponder.errors import InputError, TrainingError
from ponder.train.adapters import trainable, with_lora
from ponder.train.devices import Devices
from ponder.train.interrupt import InterruptibleOptimizer
from ponder.train.optimizer import Schedule
from ponder.train.recipe import OWN, NewModel, Recipe
from ponder.train.run import Run
from ponder.train.trainer import Trainer

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

ADAPTER = "default"
THINKING, TEMPERATURE = METADATA_KEYS


def loaded(recipe: Recipe, device: torch.device | str = "cpu", progress: Progress = silent) -> Loaded:
    """The model to be trained: what is to change requires gradients, and nothing else does.

    Raises InputError for a recipe that does not fit its model, and what `load` and `with_adapter` raise.
    """
    require_packages()
    start = _new(recipe, recipe.model) if isinstance(recipe.model, NewModel) else _known(recipe, recipe.model, progress)
    if recipe.thinking is not None:
        start = replace(start, metadata={**start.metadata, THINKING: _format(recipe.thinking)})
    start.model.to(device)  # type: ignore[arg-type]  # transformers wraps torch's method, and loses its types
    return start


def steps_of(recipe: Recipe, items: int) -> int:
    """Steps of the optimiser for so many items of data. Raises InputError for a warmup that is longer."""
    if recipe.steps is not None:
        return recipe.steps
    assert recipe.epochs is not None
    return max(1, math.ceil(recipe.epochs * items / recipe.size))


def trainer_of(recipe: Recipe, start: Loaded, devices: Devices, run: Run, steps: int) -> Trainer:
    """The trainer of a run of `steps` steps."""
    import torch

    told = recipe.optimizer
    optimizer = InterruptibleOptimizer(
        trainable(start.model), betas=told.betas, epsilon=told.epsilon, decay=told.decay, clip=told.clip
    )
    return Trainer(
        start.model,
        optimizer,
        Schedule(told.rate, steps, told.warmup, told.schedule, told.floor),
        devices,
        run,
        tokens=recipe.tokens,
        seed=recipe.seed,
        precision=getattr(torch, recipe.precision),
        save_every=recipe.save_every,
        keep=recipe.keep,
    )


def put(start: Loaded, tensors: Mapping[str, Tensor]) -> None:
    """Puts a checkpoint's weights into the model. Raises TrainingError where they are those of another."""
    import torch

    with torch.no_grad():
        for name, parameter in trainable(start.model):
            saved = tensors.get(f"weight.{name}")
            if saved is None or saved.shape != parameter.shape:
                raise TrainingError(f"the checkpoint does not fit the model at {name}", "Give the run that made it")
            parameter.copy_(saved)
    start.model.eval()


def adapted(recipe: Recipe) -> bool:
    """Whether the result is an adapter, not a whole model."""
    return not recipe.full


# ---------------------------------------------------------------- where weights are from


def _known(recipe: Recipe, name: str, progress: Progress) -> Loaded:
    own = catalogue.find(name)
    if recipe.adapter == OWN:
        if own is None or own.adapter is None:
            raise InputError(f"{name} comes with no adapter of its own", "Give the path of one, or a [lora] table")
        base = load(own.base.name, dtype=recipe.weights, progress=progress)
        model = with_adapter(base.model, packaged_path(own.adapter), name=ADAPTER, trainable=True)
        metadata = {THINKING: dict(own.adapter.thinking), TEMPERATURE: own.adapter.temperature}
        return replace(base, model=model, source=f"{base.source}, and {own.adapter.source}", metadata=metadata)
    start = load(name, dtype=recipe.weights, seed=recipe.seed, progress=progress)
    comes_adapted = hasattr(start.model, "peft_config")
    if comes_adapted and not recipe.full:
        mend = 'Set adapter = "own" to train that on' if own else "Name its base as model, and it as adapter"
        raise InputError(f"{name} comes with an adapter, and one alone can be trained", mend)
    if comes_adapted:
        start = replace(start, model=cast("PeftModel", start.model).merge_and_unload())
    return _to_train(recipe, start)


def _to_train(recipe: Recipe, start: Loaded) -> Loaded:
    if recipe.full:
        start.model.requires_grad_(True)
        return start
    if recipe.lora is not None:
        told = recipe.lora
        model = with_lora(
            start.model, told.rank, told.alpha, told.targets, told.dropout, name=ADAPTER, seed=recipe.seed
        )
    else:
        assert recipe.adapter is not None
        model = with_adapter(start.model, recipe.adapter, name=ADAPTER, trainable=True)
    return replace(start, model=model)


def _new(recipe: Recipe, told: NewModel) -> Loaded:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer, metadata = _tokenizer(told.tokenizer)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        hidden_size=told.hidden,
        intermediate_size=told.feed_forward or 4 * told.hidden,
        num_hidden_layers=told.layers,
        num_attention_heads=told.heads,
        num_key_value_heads=told.groups or told.heads,
        max_position_embeddings=told.context,
        tie_word_embeddings=told.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    with seeded(recipe.seed):
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(config, dtype=recipe.weights)
    return Loaded(model, tokenizer, f"new weights (seed {recipe.seed})", metadata=metadata)


def _tokenizer(name: str) -> tuple[Any, Mapping[str, Any]]:
    """The tokenizer of a model, or the one in a folder that may hold nothing else."""
    from transformers import PreTrainedTokenizerFast

    path = Path(name).expanduser()
    if (path / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True), {}
    found = load(name)
    return found.tokenizer, found.metadata


def _format(name: str) -> dict[str, Any]:
    from ponder.chat.formats import FAMILIES

    if name not in FAMILIES:
        raise InputError(f"thinking = {name!r} is no format of thinking", f"Choose from {', '.join(FAMILIES)}")
    return {"name": name}

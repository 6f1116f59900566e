"""What a recipe would do, before it is done: data, tokens, parameters, and about how much memory it takes.

    weights + masters + gradients + moments + activations of one micro-batch + logits of one piece

Activations are counted as a decoder of the Llama line keeps them for its backward pass, without recomputation: an
estimate, from which kernels and allocators differ.
"""

from __future__ import annotations

from typing import Any

import torch

from ponder.engine.torch_load import Loaded
from ponder.train.adapters import trainable
from ponder.train.devices import Devices
from ponder.train.kinds import Dataset
from ponder.train.recipe import Recipe
from ponder.train.scorer import PIECE


def plan(recipe: Recipe, model: Loaded, data: Dataset, devices: Devices, steps: int) -> dict[str, Any]:
    """What a run would take, in plain numbers; memory in bytes, of each device."""
    trained = sum(parameter.numel() for _, parameter in trainable(model.model))
    whole = sum(parameter.numel() for parameter in model.model.parameters())
    return {
        "kind": recipe.kind,
        "model": model.source,
        "steps": steps,
        "epochs": steps * recipe.size / len(data.items) if len(data.items) else 0.0,
        "batch": recipe.size,
        "data": data.counts,
        "parameters": {"trained": trained, "all": whole},
        "device": str(devices.device),
        "processes": devices.world,
        "memory": memory(recipe, model, devices),
    }


def memory(recipe: Recipe, model: Loaded, devices: Devices) -> dict[str, int]:
    """Bytes on each device, by what they are for, and their sum."""
    trained = [parameter for _, parameter in trainable(model.model)]
    count = sum(parameter.numel() for parameter in trained)
    narrow = sum(parameter.numel() for parameter in trained if parameter.dtype != torch.float32)
    shards = devices.world if recipe.sharing == "fsdp" else 1
    parts = {
        "weights": sum(each.numel() * each.element_size() for each in model.model.parameters()) // shards,
        "masters": 4 * narrow // shards,
        "gradients": 4 * count // shards,
        "moments": 8 * count // shards,
        "activations": _activations(recipe, model),
        "logits": 3 * 4 * min(PIECE, recipe.tokens) * _config(model).vocab_size,
    }
    return {**parts, "all": sum(parts.values())}


def _activations(recipe: Recipe, model: Loaded) -> int:
    """Of a layer: what its two norms, seven products, rotation, attention and gate read again on the way back."""
    config = _config(model)
    size = 4 if recipe.precision == "float32" else 2
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, groups * head
    # Norms compute in float32, whatever the products do, and their results are kept in both types.
    norms = 2 * config.hidden_size * (2 * 4 + size)
    a_token = norms + size * (4 * queries + 6 * keys + 5 * config.intermediate_size)
    if not recipe.full:
        rank = recipe.lora.rank if recipe.lora is not None else 16
        a_token += size * (7 * rank + 2 * config.hidden_size + config.intermediate_size)
    tokens = recipe.tokens if recipe.kind == "grpo" else min(recipe.tokens, recipe.size * recipe.longest)
    return int(tokens * config.num_hidden_layers * a_token)


def _config(model: Loaded) -> Any:
    given: Any = model.model
    return (given.get_base_model() if hasattr(given, "get_base_model") else given).config

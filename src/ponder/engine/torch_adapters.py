"""The low-rank adapters of peft inside a model, chosen for a request and not for the model.

A model in training belongs to its trainer: which adapters it has switched on is read here, and put back where a
forward pass of the model itself cannot do without a change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def adapters_of(model: nn.Module) -> dict[str, float]:
    """Names of the model's adapters, each with 1 where it is switched on and 0 where it is not."""
    found: dict[str, float] = {}
    for layer in _layers(model):
        active = [] if layer.disable_adapters else layer.active_adapters
        for name in layer.lora_A:
            found[name] = max(found.get(name, 0.0), float(name in active))
    return found


def is_plain(model: nn.Module) -> bool:
    """Whether all that peft has added are products of A and B beside linear layers."""
    for module in model.modules():
        if hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
            return False
        if not hasattr(module, "base_layer"):
            continue
        rest = [getattr(module, name, None) for name in ("lora_magnitude_vector", "lora_embedding_A", "lora_variant")]
        linear = isinstance(module.base_layer, nn.Linear) and hasattr(module, "lora_A")
        if not linear or any(rest) or any(getattr(module, "lora_bias", {}).values()):
            return False
    return True


def low_rank(module: Any, scales: Mapping[str, float]) -> list[tuple[Tensor, Tensor, float]]:
    """(A (r, in), B (out, r), scale) of the adapters of one linear module that are to be on, as `scales` has them."""
    if not hasattr(module, "lora_A"):
        return []
    merged = set(module.merged_adapters)
    chosen = [name for name in module.lora_A if scales.get(name) and name not in merged]
    return [(module.lora_A[n].weight, module.lora_B[n].weight, module.scaling[n] * scales[n]) for n in chosen]


@contextmanager
def evaluating(model: nn.Module, scales: Mapping[str, float]) -> Iterator[None]:
    """The model without dropout and with these adapters. Afterwards it is as it was."""
    layers = _layers(model)
    before = [(layer._active_adapter, layer._disable_adapters, dict(layer.scaling)) for layer in layers]
    training = [module for module in model.modules() if module.training]
    try:
        for layer in layers:
            layer._active_adapter = [name for name in layer.lora_A if scales.get(name)]
            layer._disable_adapters = False
            for name in layer._active_adapter:
                layer.scaling[name] *= scales[name]
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
        for layer, (active, disabled, scaling) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled
            layer.scaling.update(scaling)


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "lora_A")]

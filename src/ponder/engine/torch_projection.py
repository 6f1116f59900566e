"""The linear parts of a model for inference: adapters added, neighbours joined, weights living or copied.

    y = x W^T + b + sum_i s_i x A_i^T B_i^T

Modules with the same input are one product: their weights lie side by side in one matrix, of which the modules'
own weights become views, so that an optimiser's step in place changes both. Copies are kept only where they must be:
for arithmetic narrower than the weights, for adapters that are folded in, and for the packed order that oneDNN's
product of bfloat16 reads fastest on a processor.

Source: Hu et al., LoRA (2021), section 4.1.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_ROWS = 64
"""Rows of the inputs that the packed order is chosen for."""


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights of this kind can be packed here."""
    return device.type == "cpu" and dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def narrowest(device: torch.device) -> torch.dtype:
    """The type that the device computes in fastest, of those that models are used in."""
    narrow = packs(device, torch.bfloat16) if device.type == "cpu" else device.type != "cuda" or _bf16_on_cuda()
    return torch.bfloat16 if narrow else torch.float32


def _bf16_on_cuda() -> bool:
    return bool(torch.cuda.is_bf16_supported())


def _living(bases: Sequence[Any]) -> Tensor:
    """The modules' weights as one matrix, of which they are views from now on, so that both are one and the same.

    Where they are so already, for another decoder perhaps, nothing moves: that one goes on reading what lives.
    """
    parts = [base.weight.detach() for base in bases]
    if not _adjacent(parts):
        joined: Tensor = torch.cat(parts)
        for base, part in zip(bases, joined.split([len(part) for part in parts]), strict=True):  # type: ignore[no-untyped-call]
            base.weight.data = part
        return joined
    whole: Tensor = parts[0].as_strided((sum(len(part) for part in parts), parts[0].shape[1]), parts[0].stride())
    return whole


def _adjacent(parts: Sequence[Tensor]) -> bool:
    """Whether the parts lie one after another in one piece of memory."""
    memory, begin = parts[0].untyped_storage().data_ptr(), parts[0].data_ptr()
    for part in parts:
        if not part.is_contiguous() or part.untyped_storage().data_ptr() != memory or part.data_ptr() != begin:
            return len(parts) == 1
        begin += part.numel() * part.element_size()
    return True


def _packed(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
    return packed


@dataclass
class Projection:
    """x -> x W^T + b + sum_i s_i x A_i^T B_i^T, over one linear module or several with the same input side by side.

    `low_rank` holds (A (r, in), B (out, r), scale, first output) of the adapters in force. `pack` keeps a copy in the
    order in which the processor's matrix product reads it, where `packs` says that it has one.
    """

    modules: Sequence[nn.Module]
    dtype: torch.dtype
    fold: bool
    pack: bool = False
    weight: Tensor = field(init=False)
    bias: Tensor | None = field(init=False, default=None)
    low_rank: list[tuple[Tensor, Tensor, float, int]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._copy: Tensor | None = None
        self.refresh()

    def refresh(self) -> None:
        """Finds the weights in force; renews the copy, where there is one, in its place."""
        bases: list[Any] = [getattr(module, "base_layer", module) for module in self.modules]
        parts = [base.weight.detach() for base in bases]
        starts = [0, *itertools.accumulate(len(part) for part in parts)]
        self.low_rank = [
            (a, b, scale, start)
            for module, start in zip(self.modules, starts, strict=False)
            for a, b, scale in low_rank(module)
        ]
        if any(base.bias is not None for base in bases):
            zeros = [part.new_zeros(len(part)) for part in parts]
            biases = [
                none if base.bias is None else base.bias.detach() for base, none in zip(bases, zeros, strict=True)
            ]
            bias = torch.cat(biases).to(self.dtype)
            self.bias = bias if self.bias is None else self.bias.copy_(bias)
        folding = bool(self.fold and self.low_rank)
        if self.pack:
            self.weight = _packed(self._filled(None, parts, folding))
        elif folding or any(part.dtype != self.dtype for part in parts):
            self._copy = self.weight = self._filled(self._copy, parts, folding)
        else:
            self.weight = _living(bases)
        if folding:
            self.low_rank = []

    def _filled(self, copy: Tensor | None, parts: Sequence[Tensor], folding: bool) -> Tensor:
        """The parts below one another in `copy`, or in new memory; with the adapters added where they are folded in."""
        if copy is None:
            shape = (sum(len(part) for part in parts), parts[0].shape[1])
            copy = torch.empty(shape, dtype=self.dtype, device=parts[0].device)
        start = 0
        for part in parts:
            whole = part
            for a, b, scale, first in self.low_rank if folding else ():
                if first == start:
                    wide = torch.promote_types(part.dtype, torch.float32)
                    whole = whole.to(wide) + scale * (b.detach().to(wide) @ a.detach().to(wide))
            copy[start : start + len(part)].copy_(whole)
            start += len(part)
        return copy

    def tensors(self) -> list[Tensor]:
        """What a product reads. A packed weight is left out, since it has no address."""
        found = [] if self.pack else [self.weight]
        found += [] if self.bias is None else [self.bias]
        return found + [tensor for a, b, _, _ in self.low_rank for tensor in (a, b)]

    def __call__(self, x: Tensor) -> Tensor:
        if self.pack:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        else:
            y = functional.linear(x, self.weight, self.bias)
        for a, b, scale, start in self.low_rank:
            inner = functional.linear(x, a.detach().to(x.dtype))
            y[..., start : start + b.shape[0]] += scale * functional.linear(inner, b.detach().to(x.dtype))
        return y


def low_rank(module: Any) -> list[tuple[Tensor, Tensor, float]]:
    """(A, B, scale) of the adapters that are switched on in a linear module of peft, none for a plain one."""
    if not hasattr(module, "lora_A") or getattr(module, "disable_adapters", False):
        return []
    merged = set(getattr(module, "merged_adapters", ()))
    names = [name for name in module.active_adapters if name in module.lora_A and name not in merged]
    return [(module.lora_A[n].weight, module.lora_B[n].weight, float(module.scaling[n])) for n in names]

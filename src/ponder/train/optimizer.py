"""AdamW on float32 masters, whatever type the model keeps its weights in.

    m = b1 m + (1 - b1) g ;  v = b2 v + (1 - b2) g^2 ;  w = w - rate (m' / (sqrt(v') + eps) + decay w)

A weight in bfloat16 cannot take a step smaller than 1/256 of itself, and a sum of gradients in bfloat16 loses the
small ones: so each such weight has a float32 master and a float32 gradient, and is rounded from the master after
each step. The model's own tensors are written in place: whoever reads them, as the sampler does, has the new ones.

Sources: Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019); Micikevicius et al., Mixed Precision
Training (2018), section 3.1, master copies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ponder.errors import InputError, TrainingError
from ponder.train.devices import distributed_like, whole

Kind = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """The learning rate of step 1, 2, ..., `steps`: `warmup` steps up to `peak`, then down to `floor` times it."""

    peak: float
    steps: int
    warmup: int = 0
    kind: Kind = "constant"
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not self.peak > 0:
            raise InputError(f"a learning rate of {self.peak} teaches nothing", "Give one above 0, such as 1e-4")
        if self.warmup >= self.steps and self.warmup:
            raise InputError(f"warmup={self.warmup} leaves none of {self.steps} steps", "Lower it, or raise steps")

    def at(self, step: int) -> float:
        """The rate of step `step`, which counts from 1."""
        if step <= self.warmup:
            return self.peak * step / self.warmup
        if self.kind == "constant":
            return self.peak
        gone = (step - 1 - self.warmup) / max(1, self.steps - self.warmup)
        left = 1 - gone if self.kind == "linear" else (1 + math.cos(math.pi * gone)) / 2
        return self.peak * (self.floor + (1 - self.floor) * left)


class Optimizer:
    """AdamW over named parameters. `collect` after each backward pass, `step` once all of a batch is in.

    decay: weight decay, of matrices alone. clip: the largest norm of the whole gradient; None for no bound.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[str, nn.Parameter]],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        decay: float = 0.0,
        clip: float | None = 1.0,
    ) -> None:
        if not parameters:
            raise InputError("nothing of the model is to be trained", "Add a [lora] table, or set full = true")
        self._clip = clip
        self._settings: dict[str, Any] = {"betas": betas, "eps": epsilon}
        self._decay = decay
        self._hold(parameters)

    def _hold(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        self._parameters = list(parameters)
        self._masters = {
            name: p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for name, p in self._parameters
        }
        masters = list(self._masters.values())
        groups = [
            {"params": [p for p in masters if p.ndim > 1], "weight_decay": self._decay},
            {"params": [p for p in masters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        # In one pass over the weights: on a processor 8 times as fast. Shards have no such kernel everywhere.
        fused = not any(hasattr(p, "device_mesh") for p in masters)
        self._adam = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=0.0, fused=fused or None, **self._settings
        )

    def follow(self, model: nn.Module) -> None:
        """Takes the parameters of the same names that `model` has now: sharding puts new ones in place of the old.

        To be called before the first step: moments are not taken along.
        """
        now = dict(model.named_parameters())
        if any(now.get(name, p) is not p for name, p in self._parameters):
            self._hold([(name, now.get(name, p)) for name, p in self._parameters])

    def collect(self) -> None:
        """Adds the gradients of weights that have masters to their masters', in float32."""
        for name, p in self._parameters:
            master = self._masters[name]
            if master is not p and p.grad is not None:
                grad = p.grad.float()
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                p.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> float:
        """One step at learning rate `rate`; gives the norm of the gradient before it was clipped.

        Raises TrainingError, with all weights as they were, where the gradient is not finite, or there is none.
        """
        masters = [p for p in self._masters.values() if p.grad is not None]
        if not masters:
            raise TrainingError(
                "no weight that is to be trained has a gradient", "Train weights that the loss depends on"
            )
        norm = float(whole(nn.utils.get_total_norm([p.grad for p in masters if p.grad is not None])))
        if not math.isfinite(norm):
            self.forget()
            raise TrainingError(
                f"the gradient is not finite (its norm is {norm})",
                "Lower the learning rate or the clip, and go on from the last checkpoint: the weights are as before",
            )
        if self._clip is not None and norm > self._clip:
            for p in masters:
                assert p.grad is not None
                p.grad.mul_(self._clip / (norm + 1e-6))
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        self.forget()
        for name, p in self._parameters:
            if self._masters[name] is not p:
                p.copy_(self._masters[name])
        return norm

    def forget(self) -> None:
        """Drops the gradients."""
        for name, p in self._parameters:
            p.grad = None
            self._masters[name].grad = None

    # ------------------------------------------------------------ what a checkpoint holds

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on beside the gradients, by name, whole and on the CPU."""
        tensors: dict[str, Tensor] = {}
        for name, master in self._masters.items():
            tensors[f"weight.{name}"] = _kept(master)
            for key, value in self._adam.state.get(master, {}).items():
                tensors[f"{key}.{name}"] = _kept(torch.as_tensor(value))
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up a `state`. Raises TrainingError where it is that of another model."""
        for name, p in self._parameters:
            master, saved = self._masters[name], tensors.get(f"weight.{name}")
            if saved is None or saved.shape != master.shape:
                raise TrainingError(
                    f"the checkpoint does not fit the model: {name} is "
                    + ("missing" if saved is None else f"{tuple(saved.shape)}, not {tuple(master.shape)}"),
                    "Resume with the recipe that made it",
                )
            master.copy_(distributed_like(saved, master))
            if master is not p:
                p.copy_(master)
            self._restore_moments(master, name, tensors)

    def _restore_moments(self, master: nn.Parameter, name: str, tensors: Mapping[str, Tensor]) -> None:
        keys = ("step", "exp_avg", "exp_avg_sq")
        if f"exp_avg.{name}" not in tensors:  # the parameter had no gradient yet
            self._adam.state.pop(master, None)
            return
        state: dict[str, Any] = {}
        for key in keys:
            value = tensors[f"{key}.{name}"]
            state[key] = value.clone() if key == "step" else distributed_like(value, master).clone()
        if self._adam.param_groups[0].get("fused"):
            state["step"] = state["step"].to(master.device)
        self._adam.state[master] = state


def _kept(tensor: Tensor) -> Tensor:
    return whole(tensor.detach()).to("cpu", copy=True).contiguous()

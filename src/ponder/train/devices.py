"""One device or several: what of a step is shared out, and what is summed.

    torchrun --nproc-per-node 2 -m ponder train grpo recipe.toml

Every process holds the same batch and computes its share of the micro-batches. `ddp` keeps the whole model in each
process and sums gradients (DistributedDataParallel); `fsdp` keeps a shard of each weight in each (fully_shard, FSDP2)
and gathers a layer when it computes. A loss is a sum over tokens whose divisors are already in their weights, so
gradients are summed, not averaged, and the result is what one process would have got.

Sources: Li et al., PyTorch Distributed (2020); Zhao et al., PyTorch FSDP (2023).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from ponder.errors import InputError
from ponder.train.rows import Pack

Sharing = Literal["ddp", "fsdp"]
T = TypeVar("T")


@dataclass(frozen=True)
class Devices:
    """This process among `world`, and its device."""

    device: torch.device
    rank: int = 0
    world: int = 1
    sharing: Sharing = "ddp"

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def wrap(self, model: nn.Module, precision: torch.dtype = torch.float32) -> nn.Module:
        """The model as this process computes it."""
        if self.world == 1:
            return model
        if self.sharing == "ddp":
            narrow = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32]
            if narrow:
                raise InputError(
                    f"{narrow[0]} is trained in half precision, which several processes cannot sum exactly",
                    'Set weights = "float32"',
                )
            return nn.parallel.DistributedDataParallel(
                model, device_ids=[self.device] if self.device.type == "cuda" else None
            )
        return _sharded(model, precision)

    def share(self, packs: Sequence[Pack]) -> list[Pack]:
        """The micro-batches of this process: as many in each, since each of them takes all processes.

        Where they do not come out even, some compute one without weight.
        """
        if self.world == 1:
            return list(packs)
        padded = list(packs)
        while len(padded) % self.world:
            padded.append(_weightless(packs[-1]))
        return padded[self.rank :: self.world]

    def unsynchronised(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """In this context gradients stay in this process, unless the micro-batch is the `last` of a step."""
        if last or not isinstance(model, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return model.no_sync()

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each value summed over all processes, which must have the same names."""
        if self.world == 1:
            return dict(values)
        names = sorted(values)
        summed = torch.tensor([values[name] for name in names], dtype=torch.float64, device=self.device)
        distributed.all_reduce(summed)
        return dict(zip(names, summed.tolist(), strict=True))

    def gathered(self, mine: Sequence[T]) -> list[T]:
        """The items of all processes, dealt out as `dealt` does, in their order."""
        if self.world == 1:
            return list(mine)
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, list(mine))
        total = sum(len(part) for part in parts)
        return [parts[at % self.world][at // self.world] for at in range(total)]

    def dealt(self, items: Sequence[T]) -> list[T]:
        """This process's share of `items`."""
        return list(items[self.rank :: self.world])

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            distributed.barrier()

    def agreed(self, flag: bool) -> bool:
        """Whether any process says so."""
        return bool(self.sums({"flag": float(flag)})["flag"])


def _weightless(pack: Pack) -> Pack:
    return replace(pack, values={name: torch.zeros_like(value) for name, value in pack.values.items()}, rows=())


def find_devices(sharing: Sharing = "ddp", device: str | None = None) -> Devices:
    """This process and its device, as torchrun set them up; one process alone where it did not."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if world == 1:
        return Devices(torch.device(kind))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(place)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    return Devices(place, distributed.get_rank(), distributed.get_world_size(), sharing)


def _sharded(model: nn.Module, precision: torch.dtype) -> nn.Module:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
    inner: Any = cast(Any, model.causal).model
    for layer in inner.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    return model


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be in shards, in one piece."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def distributed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor in one piece, cut up as `like` is, on its device and in its type."""
    if hasattr(like, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        shards: Any = like
        placed = tensor.to(like.dtype).to(shards.device_mesh.device_type)
        return distribute_tensor(placed, shards.device_mesh, shards.placements)
    return tensor.to(device=like.device, dtype=like.dtype)

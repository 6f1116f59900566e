"""What every trainer does with a batch: pack it, compute it in micro-batches, take a step, log it, save it.

    for step in trainer.steps():
        trainer.update(rows, reduce, loss)

`loss` gives a sum over the tokens of a micro-batch whose divisors are already in it: adding up micro-batches, or
processes, gives the loss of the whole batch whatever the split.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ponder.errors import TrainingError
from ponder.train import checkpoint
from ponder.train.devices import Devices
from ponder.train.optimizer import Optimizer, Schedule
from ponder.train.rows import Pack, Row, packed
from ponder.train.run import Run
from ponder.train.scorer import Reduce, Scorer, over_tokens

Loss = Callable[[Tensor, Pack], tuple[Tensor, Mapping[str, Tensor]]]
"""From what `reduce` gave, put at its tokens (tokens, ...), to the loss and to sums worth logging."""


class Stopped(TrainingError):
    """Somebody asked the run to stop; its state is saved."""

    exit_code = 130


@dataclass
class Trainer:
    """A model in training.

    tokens: of a micro-batch. save_every: steps between checkpoints, 0 for none but the last. state: what a trainer
    wants kept in checkpoints, and finds here after a resume; plain JSON.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    devices: Devices
    run: Run
    tokens: int = 8192
    seed: int = 0
    precision: torch.dtype = torch.float32
    save_every: int = 0
    keep: int = 2
    state: dict[str, Any] = field(default_factory=dict)
    step: int = 0

    def __post_init__(self) -> None:
        self.scorer = Scorer(self.model, self.precision)
        self._wrapped = self.devices.wrap(self.scorer, self.precision)
        self.optimizer.follow(self.model)
        self._values: dict[str, float] = {}
        self._saved = 0
        self._moved = False

    @property
    def saved(self) -> int:
        """The step of the last checkpoint, 0 where there is none."""
        return self._saved

    # ------------------------------------------------------------ the loop

    def steps(self) -> Iterator[int]:
        """The numbers of the steps to take, from where the run stands. Raises Stopped where it was asked to stop."""
        self._resume()
        while self.step < self.schedule.steps:
            started = time.perf_counter()
            self._values, self._moved = {}, False
            with checkpoint.seeded(self.seed, self.step + 1, self.devices.rank):
                yield self.step + 1
            self.step += 1
            self._values.setdefault("seconds", time.perf_counter() - started)
            self.run.log(self.step, self.schedule.steps, self._values)
            stop = self.devices.agreed(self.run.stopping())
            due = self.save_every and self.step % self.save_every == 0
            if due or stop or self.step == self.schedule.steps:
                self.save()
            if stop and self.step < self.schedule.steps:
                raise Stopped(f"stopped after step {self.step} of {self.schedule.steps}", "The same command goes on")

    def log(self, **values: float) -> None:
        """Adds values to the line of the step under way."""
        self._values |= values

    def update(self, rows: Sequence[Row], reduce: Callable[[Pack], Reduce], loss: Loss) -> dict[str, float]:
        """One step of the optimiser on a batch; gives the sums of `loss`, over all micro-batches and processes.

        Nothing to learn from (no rows) takes no step. Raises TrainingError for a loss or gradient that is not finite:
        a checkpoint of the last whole step is then saved, unless earlier updates of this one have moved the weights.
        """
        self.model.train()
        rows = [row for row in rows if row.learnt]
        if not rows:
            return {}
        sums: dict[str, float] = defaultdict(float)
        shares = self.devices.share(packed(rows, self.tokens))
        for number, pack in enumerate(shares):
            pack = pack.to(self.devices.device)
            with self.devices.unsynchronised(self._wrapped, last=number == len(shares) - 1):
                value, counted = loss(over_tokens(pack, self._wrapped(pack, reduce(pack))), pack)
                # Processes' gradients are averaged. A micro-batch that only keeps them in step counts nothing.
                (value * (self.devices.world if pack.rows else 0)).backward()  # type: ignore[no-untyped-call]
            self.optimizer.collect()
            for name, tensor in {"loss": value.detach(), **counted}.items():
                sums[name] += float(tensor) if pack.rows else 0.0
        totals = self.devices.sums(sums)
        try:
            if not math.isfinite(totals["loss"]):
                self.optimizer.forget()
                raise TrainingError(
                    f"the loss is not finite ({totals['loss']})", "Lower the learning rate; the weights are as before"
                )
            norm = self.optimizer.step(self.schedule.at(self.step + 1))
        except TrainingError as error:
            if not self._moved:
                self.save()
            raise TrainingError(f"step {self.step + 1}: {error.problem}", error.mend) from None
        self._moved = True
        self.log(loss=totals["loss"], gradient_norm=norm, rate=self.schedule.at(self.step + 1))
        self._count(rows)
        return totals

    def _count(self, rows: Sequence[Row]) -> None:
        self._values["tokens"] = self._values.get("tokens", 0) + sum(len(row) for row in rows)
        self._values["learnt"] = self._values.get("learnt", 0) + sum(row.learnt for row in rows)
        if self.devices.device.type == "cuda":
            self._values["peak_memory"] = float(torch.cuda.max_memory_allocated(self.devices.device))

    @torch.no_grad()
    def scored(self, rows: Sequence[Row], reduce: Callable[[Pack], Reduce]) -> list[Tensor]:
        """`reduce` at each row's tokens (len(row), ...), 0 where nothing is learnt; on the CPU, without gradients."""
        self.model.eval()
        found: list[Tensor] = [torch.zeros(len(row)) for row in rows]
        mine: list[tuple[int, Tensor]] = []
        for pack in self.devices.share(packed(rows, self.tokens)) if rows else ():
            pack = pack.to(self.devices.device)
            values = over_tokens(pack, self._wrapped(pack, reduce(pack))).cpu()
            mine += zip(pack.rows, torch.split(values, pack.lengths.tolist()), strict=False)
        self.model.train()
        for at, value in self._everyones(mine):
            found[at] = value
        return found

    def _everyones(self, mine: list[tuple[int, Tensor]]) -> list[tuple[int, Tensor]]:
        if self.devices.world == 1:
            return mine
        parts: list[Any] = [None] * self.devices.world
        torch.distributed.all_gather_object(parts, mine)
        return [item for part in parts for item in part]

    # ------------------------------------------------------------ keeping

    def save(self) -> None:
        """Saves a checkpoint of the last finished step, where that has none yet."""
        if self._saved == self.step != 0:
            return
        tensors = self.optimizer.state()  # every process takes part in putting shards together
        if self.devices.first:
            checkpoint.save(self.run.checkpoints, self.step, tensors, {"trainer": self.state}, self.keep)
        self._saved = self.step
        self.devices.wait()

    def _resume(self) -> None:
        found, damaged = checkpoint.newest(self.run.checkpoints)
        for line in damaged:
            self.run.told(f"{line}; an older one is taken")
        if found is None:
            if damaged:
                raise TrainingError(f"no checkpoint of {self.run.folder} is whole", "Start anew in another folder")
            self.run.keep_until(0)
            return
        self.optimizer.restore(found.tensors)
        self.step = self._saved = found.step
        self.state = dict(found.state.get("trainer", {}))
        self.run.keep_until(self.step)
        if self.step and self.step < self.schedule.steps:
            self.run.told(f"going on after step {self.step}")

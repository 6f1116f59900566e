"""One of the processes of test_devices.py: trains the same runs by each way to share them, and writes what came out."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from train.trained import random_rows, small, steps_without_times, trainer_in

from ponder.train.devices import Devices, find_devices
from ponder.train.distill import distill
from ponder.train.dpo import Pair, dpo
from ponder.train.scorer import at_targets
from ponder.train.sft import sft
from ponder.train.teacher import Divergence, Present, Stored, store
from ponder.train.trainer import Stopped, Trainer


def outcome(folder: Path, devices: Devices) -> dict[str, Any]:
    """What each kind of run came to."""
    rows = random_rows(13)

    def trainer(name: str, **more: Any) -> Trainer:
        made = trainer_in(folder / name, devices=devices, **({"tokens": 60, "steps": 2} | more))
        made.run.speaks = devices.first
        return made

    plain = trainer("sft", steps=4)
    sft(plain, rows, 7)
    pairs = [Pair(row.ids, [*row.ids[:5], 2], [*row.ids[:3], 2]) for row in rows if len(row) < 20]
    dpo(trainer("dpo"), pairs, 5)
    distill(trainer("distill"), rows, 5, Present(small(seed=5), Divergence("reverse")))
    found = {"state": plain.optimizer.state(), "scores": plain.scored(rows, at_targets)}
    kinds = ("sft", "dpo", "distill")
    devices.wait()
    found["lines"] = {kind: steps_without_times(folder / kind) for kind in kinds}
    found["resumed"] = stopped(trainer, rows)
    stored(trainer, rows, folder)
    return found


def stopped(trainer: Any, rows: Any) -> dict[str, Any]:
    """A run that stopped half way, and went on."""
    first = trainer("stopped", steps=4)
    first.run.stopping = lambda: first.step >= 2
    with contextlib.suppress(Stopped):
        sft(first, rows, 7)
    again = trainer("stopped", steps=4)
    sft(again, rows, 7)
    return {"step": again.step, "state": again.optimizer.state()}


def stored(trainer: Any, rows: Any, folder: Path) -> None:
    """A stored teacher has no values for a micro-batch that only keeps processes in step."""
    devices = trainer("top").devices
    if devices.first:
        store(small(seed=5), rows, 4, folder / "four")
    devices.wait()
    distill(trainer("stored"), rows, 5, Stored(folder / "four", rows))


def main(folder: Path, sharings: list[str]) -> None:
    for sharing in sharings:
        devices = find_devices(sharing, "cpu")  # type: ignore[arg-type]
        found = outcome(folder / sharing, devices)
        if devices.first:
            torch.save(found, folder / f"{sharing}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    torch.distributed.destroy_process_group()

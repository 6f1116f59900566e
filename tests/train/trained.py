"""What the tests of trainers share: small random rows, and a trainer of a tiny model in a folder."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_model
from torch import Tensor

from ponder.train.devices import Devices, find_devices
from ponder.train.optimizer import Optimizer, Schedule
from ponder.train.rows import Row
from ponder.train.run import Run, steps_of
from ponder.train.sft import sft
from ponder.train.trainer import Trainer

# Two threads that wait for each other are many times slower than one where other work takes a core.
torch.set_num_threads(1)

WORDS = 64
"""The vocabulary of `small`, whose models compute faster still than others of `tiny`."""

TIMES = ("time", "seconds")


def small(kind: str = "llama", seed: int = 0, **config: Any) -> Any:
    """A tiny model of few words."""
    shape = {"vocab_size": WORDS, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
    return tiny_model(kind, seed=seed, **(shape | config))


def smaller(seed: int = 0, **config: Any) -> Any:
    """One layer and 16 words, for what takes many steps."""
    shape = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    return small(seed=seed, **(shape | config))


def random_rows(count: int, seed: int = 1, shortest: int = 5, longest: int = 30, words: int = WORDS) -> list[Row]:
    """Rows of random ids, the first third of each being a prompt."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for size in torch.randint(shortest, longest, (count,), generator=draw).tolist():
        ids = torch.randint(words, (size,), generator=draw).tolist()
        rows.append(Row(ids, [at >= size // 3 for at in range(size)]))
    return rows


def trainer_in(
    folder: Path,
    model: Any = None,
    *,
    steps: int = 4,
    rate: float = 1e-3,
    warmup: int = 1,
    devices: Devices | None = None,
    **more: Any,
) -> Trainer:
    """A trainer of all of a model that may be trained."""
    model = small() if model is None else model
    optimizer = Optimizer([(name, p) for name, p in model.named_parameters() if p.requires_grad])
    schedule = Schedule(rate, steps, warmup if warmup < steps else 0, "cosine")
    settings = {"tokens": 100, "save_every": 1} | more
    return Trainer(model, optimizer, schedule, devices or find_devices(), Run(folder), **settings)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of the weights of a model in training, whole."""
    state = trainer.optimizer.state()
    return {name.removeprefix("weight."): value.clone() for name, value in state.items() if name.startswith("weight.")}


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Inside, the kernel lets no file grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def killed_run(folder: Path) -> Trainer:
    """A run of bfloat16 weights and a dropout, so that masters and random numbers have to come back too."""
    trainer = trainer_in(folder, small(attention_dropout=0.1, dtype=torch.bfloat16), steps=10, tokens=70)
    sft(trainer, random_rows(9), 4)
    return trainer


def steps_without_times(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's steps, but for what is another one each time."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in steps_of(folder)]

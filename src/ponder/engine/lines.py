"""What the scheduler deals in: requests, the sequences of the cache, and the lines that samples share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ponder.engine.guide import Guide
from ponder.engine.sampling import Sampling
from ponder.errors import PonderError

Logits = npt.NDArray[np.float32]

Row = tuple[int, int, float, *tuple[list[tuple[int, float]], ...]]
"""(index of a sample, id, logprob), and the likeliest tokens at this place where they were asked for."""

Rows = Sequence[tuple[int, int, int, bool]]
"""(token, position, sequence, whether its logits are wanted)."""


@dataclass
class Slot:
    """A sequence of the cache: `tokens` are computed, with `adapters` switched on."""

    number: int
    tokens: list[int] = field(default_factory=list)
    adapters: tuple[float, ...] = ()
    busy: bool = False
    used: int = 0


@dataclass
class Sample:
    """One of a request's: its number, its own random numbers, and how many tokens it has said."""

    index: int
    random: np.random.Generator
    count: int = 0


@dataclass(eq=False)
class Line:
    """Samples of a request that have said the same so far, in one sequence; `next` is said and not yet computed."""

    request: Request
    slot: Slot
    next: int
    samples: list[Sample]
    guide: Guide | None = None


@dataclass
class Way:
    """Samples that have drawn the same token and go on; `guide` knows of it."""

    token: int
    guide: Guide | None
    samples: list[Sample] = field(default_factory=list)


@dataclass
class Drawn:
    """What the samples of a request said in a step: rows and (index, finish); or why they cannot go on."""

    tokens: list[Row] = field(default_factory=list)
    finishes: list[tuple[int, str]] = field(default_factory=list)
    error: PonderError | None = None


@dataclass
class Request:
    """n continuations of `prefix`. `emit(tokens, finishes)` gets `Row`s and (index, finish).

    `guide` is what its samples begin with. `top`: how many of the likeliest tokens a row tells.
    """

    key: int
    prefix: list[int]
    n: int
    max_tokens: int
    sampling: Sampling
    adapters: tuple[float, ...]
    emit: Callable[[list[Row], list[tuple[int, str]]], None]
    fail: Callable[[PonderError], None]
    prompt: Callable[[int, int], None]
    pauses: Callable[[int], bool] = lambda token: False
    """Whether a sample ends after this token, to be continued."""
    guide: Guide | None = None
    top: int = 0
    holder: Slot | None = None
    logits: Logits | None = None
    started: int = 0
    running: int = 0
    cancelled: bool = False

    @property
    def over(self) -> bool:
        """Nothing of it runs, and nothing more will."""
        return self.running == 0 and (self.cancelled or self.started == self.n)

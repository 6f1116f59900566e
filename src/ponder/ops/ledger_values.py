"""What goes into the ledger and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ponder.ops.limits import Limit, Unit
from ponder.ops.money import MOST

Attempt = tuple[str, int, int]
"""Request, number of the attempt, sample."""
State = Literal["reserved", "done", "partial", "failed", "void", "unknown"]
By = Literal["model", "key", "project", "strategy", "prompt", "backend", "day", "all"]


@dataclass(frozen=True)
class Reservation:
    """The worst case of one attempt at one sample of a request, before it is sent.

    tokens_most: prompt and reply together. micro_most: micro-dollars, None where no price is known; a limit in dollars
    then refuses it. limits: those of the key; project_limits: those of its project. prompt: a stored prompt's name and
    version, such as "support@3".
    """

    request: str
    attempt: int = 0
    sample: int = 0
    key: str = ""
    project: str = ""
    model: str = ""
    backend: str = ""
    strategy: str = ""
    prompt: str = ""
    tokens_most: int = 0
    micro_most: int | None = None
    limits: tuple[Limit, ...] = ()
    project_limits: tuple[Limit, ...] = ()

    @property
    def columns(self) -> tuple[str | int | None, ...]:
        """What is stored of it and must not change."""
        return (
            *(self.request, self.attempt, self.sample, self.key, self.project, self.model, self.backend),
            *(self.strategy, self.prompt, self.tokens_most, self.micro_most),
        )

    def __post_init__(self) -> None:
        _check_amounts(self.tokens_most, self.micro_most or 0)


@dataclass(frozen=True)
class Settlement:
    """What an attempt did use. prompt: tokens, `cached` of them not computed anew; completion: tokens, `reasoning` of
    them thinking. micro: micro-dollars, None where no price is known. state: "partial" was cut off; "void" was never
    sent, and nothing can have been used. Raises ValueError for counts that are no amounts."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0
    micro: int | None = None
    state: Literal["done", "partial", "failed", "void"] = "done"

    @property
    def columns(self) -> tuple[str | int | None, ...]:
        """What is stored of it and must not change."""
        return (self.state, self.prompt, self.cached, self.completion, self.reasoning, self.micro)

    def __post_init__(self) -> None:
        _check_amounts(self.prompt, self.cached, self.completion, self.reasoning, self.micro or 0)
        if self.state == "void" and (self.prompt or self.completion or self.micro):
            raise ValueError("what was never sent has used nothing")


@dataclass(frozen=True)
class Entry:
    """One attempt as the ledger has it. created, settled: seconds since 1970. charged_*: what counts against limits."""

    request: str
    attempt: int
    sample: int
    created: float
    state: State
    key: str
    project: str
    model: str
    backend: str
    strategy: str
    prompt_name: str
    tokens_most: int
    micro_most: int | None
    charged_requests: int
    charged_tokens: int
    charged_micro: int
    prompt: int
    cached: int
    completion: int
    reasoning: int
    micro: int | None
    settled: float | None


@dataclass(frozen=True)
class Total:
    """What the entries of one model, key, ... come to; void ones are left out.

    attempts: all of them, of which `open` are under way, `unknown` were lost with their process, `failed` failed, and
    `unpriced` were settled without a price. Tokens and `micro` are those of settled attempts; open_micro and
    unknown_micro are what the others are charged with.
    """

    name: str
    requests: int
    attempts: int
    open: int
    unknown: int
    failed: int
    unpriced: int
    prompt: int
    cached: int
    completion: int
    reasoning: int
    micro: int
    open_micro: int
    unknown_micro: int


@dataclass(frozen=True)
class Spent:
    """What counts against limits, reservations included. tokens: of prompts and replies; micro: micro-dollars."""

    requests: int = 0
    tokens: int = 0
    micro: int = 0

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.requests - other.requests, self.tokens - other.tokens, self.micro - other.micro)

    def of(self, unit: Unit) -> int:
        """The one that a limit of this unit bounds."""
        return {"USD": self.micro, "requests": self.requests, "tokens": self.tokens}[unit]


def _check_amounts(*amounts: int) -> None:
    for amount in amounts:
        if not 0 <= amount <= MOST:
            raise ValueError(f"{amount} is no amount: it must be from 0 to {MOST}")

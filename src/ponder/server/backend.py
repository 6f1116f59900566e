"""Who answers: the embedded model, a strategy over it, or an upstream. A protocol, not a base class."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ponder.server.events import ReplyEvent
from ponder.server.request import Request


@dataclass(frozen=True)
class Served:
    """A model as clients see it. context: tokens, 0 where unknown. owned_by: who runs it. dollars per million tokens,
    None where unknown."""

    name: str
    backend: str
    context: int = 0
    owned_by: str = "ponder"
    created: int = 0
    images: bool = False
    audio: bool = False
    prompt_price: float | None = None
    cached_price: float | None = None
    output_price: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """Answers requests for the models that it serves. Closing the iterator of `reply` ends the work within 200 ms."""

    @property
    def name(self) -> str: ...

    def models(self) -> tuple[Served, ...]: ...

    def reply(self, request: Request) -> AsyncIterator[ReplyEvent]:
        """The events of an answer. Raises `failures.Refusal` for what this backend cannot do, before `Begun`."""
        ...

    async def count(self, request: Request) -> int:
        """Tokens of the prompt of a request."""
        ...

    async def close(self) -> None: ...

"""Who answers: the embedded model, a strategy over it, or an upstream. A protocol, not a base class."""

from __future__ import annotations

import asyncio
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
    """Answers requests for the models that it serves."""

    @property
    def name(self) -> str: ...

    def models(self) -> tuple[Served, ...]: ...

    def reply(self, request: Request, stop: asyncio.Event) -> AsyncIterator[ReplyEvent]:
        """The events of an answer; the last one is a `Usage`, also where it raises after `Begun`.

        Once `stop` is set (the client left, the server drains) the work ends within 200 ms, and the rest of the events
        tells what there was. Raises `failures.Refusal` for what this backend cannot do, before `Begun`.
        """
        ...

    async def count(self, request: Request) -> int:
        """Tokens of the prompt of a request."""
        ...

    async def close(self) -> None: ...

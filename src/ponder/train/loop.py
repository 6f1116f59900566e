"""One event loop for a training process: engines and verifiers that were opened in it stay open from step to step."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_runner: asyncio.Runner | None = None


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, on the loop that all of training shares. Not from inside a running loop."""
    global _runner
    if _runner is None:
        _runner = asyncio.Runner()
    return _runner.run(work)

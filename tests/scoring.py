"""One sample scored by a verifier."""

from __future__ import annotations

import asyncio
from typing import Any

from ponder.protocols import Verifier
from ponder.types import Question, Sample, Score, user


def score(verifier: Verifier, answer: str, reference: str | None = None, text: str = "?", **more: Any) -> Score:
    sample = Sample(0, answer, answer=answer, thinking=more.pop("thinking", ""))

    async def run() -> Score:
        return await verifier(Question((user(text),), reference=reference, metadata=more), sample)

    return asyncio.run(run())

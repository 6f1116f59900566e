"""What several attempts at one request came to: each by itself, for the books, and all together.

`Usage.extra["attempts"]` holds one entry for each request that went out: who was asked, what was used, what failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ponder.server.events import Usage
from ponder.server.request import Request
from ponder.server.upstream_dialect import prompt_tokens
from ponder.types import Cost


def attempt(backend: str, model: str, usage: Usage | None, error: str = "") -> dict[str, Any]:
    """One entry. dollars: None where no price is known."""
    used = usage or Usage(dollars=0.0)
    entry: dict[str, Any] = {
        "backend": backend,
        "model": model,
        "prompt": used.prompt,
        "cached": used.cached,
        "completion": used.completion,
        "reasoning": used.reasoning,
        "estimated": used.estimated,
        "dollars": used.dollars,
    }
    return entry | ({"error": error} if error else {})


def without_answer(request: Request, lost: bool) -> Usage:
    """What one is booked with that told no usage: where it may have made tokens its prompt counts, else nothing."""
    return Usage(prompt=prompt_tokens(request), estimated=True) if lost else Usage(dollars=0.0)


def attempts_of(usage: Usage, backend: str, model: str, error: str = "") -> list[dict[str, Any]]:
    """The entries of a usage: those that it has, else the one that it is."""
    found = usage.extra.get("attempts")
    if isinstance(found, list) and found:
        return [*found[:-1], found[-1] | ({"error": error} if error else {})]
    return [attempt(backend, model, usage, error)]


def total(usages: Sequence[Usage], attempts: Sequence[dict[str, Any]]) -> Usage:
    """All of them together. dollars: None where one of them has none."""
    merged = Usage()
    cost, dollars = Cost(), 0.0
    known = all(entry["dollars"] is not None for entry in attempts)
    for entry in attempts:
        dollars += entry["dollars"] or 0.0
    extra: dict[str, Any] = {}
    for usage in usages:
        cost += usage.cost
        extra |= usage.extra
        merged = replace(
            merged,
            prompt=merged.prompt + usage.prompt,
            cached=merged.cached + usage.cached,
            completion=merged.completion + usage.completion,
            reasoning=merged.reasoning + usage.reasoning,
            estimated=merged.estimated or usage.estimated,
            trace=usage.trace or merged.trace,
        )
    return replace(
        merged, cost=cost, dollars=dollars if known and attempts else None, extra={**extra, "attempts": list(attempts)}
    )

"""What OpenAI's chat and completions have in common on their way out: usage, log-probabilities, reasons, names."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ponder.server.events import Begun, Reason, Token, Usage
from ponder.server.reply import Choice
from ponder.server.request import Request

LEAST_LOGPROB = -9999.0
"""What OpenAI writes for a probability of 0, since JSON has no infinity."""

FINISH: Mapping[Reason, str] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "refusal": "content_filter",
    "cancelled": "length",
}
"""The reasons in OpenAI's words. It has none for an answer that was cut by a deadline: it is cut, not complete."""


@dataclass(frozen=True)
class Wire:
    """How replies are written. reasoning_field: what thinking is called in messages; servers differ, clients too.
    clock: seconds since 1970, for `created`. system_fingerprint: of the server and its weights."""

    reasoning_field: Literal["reasoning_content", "reasoning", "both"] = "reasoning_content"
    clock: Callable[[], float] = time.time
    system_fingerprint: str | None = None

    def reasoning(self, text: str) -> dict[str, str]:
        """Thinking under its name or names."""
        names = ("reasoning_content", "reasoning") if self.reasoning_field == "both" else (self.reasoning_field,)
        return dict.fromkeys(names, text)

    def head(self, request: Request, begun: Begun | None, kind: str, prefix: str) -> dict[str, Any]:
        """The fields that every document and every chunk of a reply begins with."""
        return {
            "id": prefix + request.id.removeprefix(prefix),
            "object": kind,
            "created": int(self.clock()),
            "model": begun.model if begun else request.model,
            "system_fingerprint": self.system_fingerprint,
        }


PLAIN = Wire()
"""How replies are written unless somebody says otherwise."""


def finish_of(choice: Choice) -> str:
    """Why a choice ended. One that never did was cut: it must not pass for a complete one."""
    return FINISH[choice.reason or "cancelled"]


def call_id(request: Request, choice: int, number: int, id: str) -> str:
    """The id of a tool call, made from its place where the model gave none, so that a stream has the same."""
    place = f"{request.id}/{choice}/{number}".encode()
    return id or f"call_{hashlib.blake2b(place, digest_size=12).hexdigest()}"


def usage_of(request: Request, usage: Usage | None) -> dict[str, Any] | None:
    """Tokens as OpenAI counts them, all choices and all samples together; None where nobody counted."""
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
        "ponder": spent(request, usage),
    }


def spent(request: Request, usage: Usage) -> dict[str, Any]:
    """What it all cost, as ponder counts: no client of OpenAI's needs it."""
    trace = usage.trace
    strategy = request.strategy if request.strategy != "auto" else ""
    return {
        "cost": {name: _number(value) for name, value in vars(usage.cost).items()},
        "dollars": _number(usage.dollars),
        "strategy": strategy or (trace.provenance.strategy if trace else "") or None,
        "samples": len(trace.samples) if trace else None,
        "estimated": usage.estimated,
    }


def told(request: Request, begun: Begun | None, usage: Usage | None) -> dict[str, Any]:
    """The `ponder` object of a whole reply: who answered, how firm the budget was, and what it cost."""
    return {
        "backend": begun.backend if begun else None,
        "thinking_budget": begun.hard if begun else None,
        "trace": usage.trace.id if usage and usage.trace else None,
        **(spent(request, usage) if usage else {}),
    }


def total(usages: Sequence[Usage | None]) -> Usage | None:
    """What several requests cost together; None where one of them was not counted."""
    if len(usages) == 1:
        return usages[0]
    sum_ = Usage(dollars=0.0)
    for usage in usages:
        if usage is None:
            return None
        sum_ = Usage(
            sum_.prompt + usage.prompt,
            sum_.cached + usage.cached,
            sum_.completion + usage.completion,
            sum_.reasoning + usage.reasoning,
            sum_.estimated or usage.estimated,
            sum_.cost + usage.cost,
            None if sum_.dollars is None or usage.dollars is None else sum_.dollars + usage.dollars,
        )
    return sum_


def logprob_of(token: Token) -> float | None:
    """The log-probability of a token as JSON can hold it."""
    return None if math.isnan(token.logprob) else max(token.logprob, LEAST_LOGPROB)


def _number(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None

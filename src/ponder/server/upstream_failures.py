"""What a client is told when an upstream fails: whose fault it was, in one line, without a secret.

What is wrong with the request itself goes back as the upstream said it. What is wrong between this server and the
upstream (its key, its address) is this server's failure, and no client can mend it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime

from ponder.server.failures import Refusal
from ponder.server.upstream_answer import WireError

LONGEST_LINE = 500
"""Characters of what an upstream said."""
BUSY = (429, 503, 529)
"""Statuses that ask to come back later."""


def of_status(name: str, status: int, message: str, after: float | None = None) -> Refusal:
    """What an error status of upstream `name` means to the client."""
    said = f": {message}" if message else ""
    problem = f"the upstream {name} answered {status}{said}"
    if status in (400, 404, 405, 413, 422):
        kind = "not_found_error" if status == 404 else "invalid_request_error"
        code = "context_length_exceeded" if _too_long(message) else None
        return Refusal(404 if status == 404 else 413 if status == 413 else 400, kind, problem, code=code)
    if status in (401, 403):
        return Refusal(
            502, "api_error", f"the upstream {name} refuses this server's key", "mend it", code="upstream_key"
        )
    if status == 402:
        return Refusal(502, "api_error", f"the upstream {name} wants to be paid", "", code="upstream_quota")
    if status == 429:
        return Refusal(429, "rate_limit_error", problem, "ask again later", code="upstream_busy", retry_after=after)
    if status in (408, 504):
        return Refusal(504, "timeout_error", problem, "ask again later", code="timeout", lost=True)
    if status in (503, 529):
        return Refusal(
            503, "overloaded_error", problem, "ask again later", code="upstream_busy", retry_after=after or 1.0
        )
    return Refusal(502, "api_error", problem, "ask again later", code="upstream_failed", lost=True)


def of_wire(name: str, error: WireError) -> Refusal:
    """What a failure between here and upstream `name` means to the client."""
    problem = f"the upstream {name} failed: {error.problem}"
    if error.kind == "unreachable":
        return Refusal(
            503, "overloaded_error", problem, "ask again later", code="upstream_unreachable", retry_after=1.0
        )
    if error.kind == "silent":
        return Refusal(504, "timeout_error", problem, "ask again later", code="timeout", lost=True)
    return Refusal(502, "api_error", problem, "ask again later", code="upstream_failed", lost=True)


def garbled(name: str, problem: str) -> Refusal:
    """The upstream said what cannot be understood."""
    return Refusal(
        502, "api_error", f"the upstream {name} {problem}", "look at its url", code="upstream_garbled", lost=True
    )


def cut_off(name: str, problem: str) -> Refusal:
    """The upstream ended too early."""
    return Refusal(502, "api_error", f"the upstream {name} {problem}", "ask again", code="upstream_failed", lost=True)


def late(name: str) -> Refusal:
    """The deadline came before anything else."""
    problem = f"the deadline came before the upstream {name} said anything"
    return Refusal(504, "timeout_error", problem, "allow more time", code="timeout", lost=True)


def resting(name: str, after: float) -> Refusal:
    """The breaker of an upstream is open."""
    problem = f"the upstream {name} has failed too often and is left alone"
    return Refusal(
        503, "overloaded_error", problem, "ask again later", code="upstream_open", retry_after=max(after, 0.1)
    )


def its_own_fault(refusal: Refusal) -> bool:
    """Whether a refusal tells of an upstream that is ill, rather than of a request that is wrong or of a limit."""
    return refusal.status in (500, 502, 503, 504) and refusal.code not in ("upstream_key", "upstream_quota")


def one_line(text: str, secret: str = "") -> str:
    """What an upstream said on one line that is not too long, its key cut out."""
    if secret:
        text = text.replace(secret, "***")
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 3]}..."


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; None without one."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    with suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if seconds < 1e9 else None
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _too_long(message: str) -> bool:
    lowered = message.lower()
    return "context length" in lowered or "context window" in lowered or "prompt is too long" in lowered

"""What a server's refusal means, in one line with its mend. No message ever holds the API key."""

from __future__ import annotations

import json
import re

from ponder.errors import (
    ContextOverflow,
    EngineDisconnected,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    GarbledReply,
    PonderError,
    RateLimited,
)

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that mean "later", not "no"."""

_CONTEXT = re.compile(
    r"context.?(length|size|window)|maximum context|longer than the model|prompt is too long", re.IGNORECASE
)


class Refused(EngineError):
    """The server answered with an error status; `param` names the field it disliked, where it said so."""

    def __init__(
        self,
        problem: str,
        mend: str = "",
        *,
        status: int,
        message: str = "",
        param: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(problem, mend)
        self.status = status
        self.message = message
        self.param = param
        self.retryable = retryable


def explain(
    url: str, status: int, data: bytes, *, after: float | None, location: str | None, secret: str | None
) -> PonderError:
    """The error for a reply of `status` with the body `data`, which asks to come back `after` seconds."""
    message, param, code = _complaint(data, secret)
    said = f": {message}" if message else ""
    if status < 400:
        return Refused(f"{url} redirects to {location}", "use that address", status=status)
    if status in (401, 403):
        problem = f"{url} refused the API key ({status}){said}"
        return Refused(problem, "set OPENAI_API_KEY", status=status, message=message, param=param)
    if status in (400, 413, 422, 500) and (_CONTEXT.search(message) or "context" in code):
        return _overflow(message)
    if "insufficient_quota" in code:
        return Refused(f"{url} has no quota left{said}", "top up the account", status=status, message=message)
    if status == 429:
        return RateLimited(f"{url} is limiting the rate{said}", come_back(after), after)
    if status in (502, 503):
        return EngineUnavailable(f"{url} is not ready ({status}){said}", "wait until the server has started")
    problem = f"{url} answered {status}{said}"
    return Refused(problem, status=status, message=message, param=param, retryable=status in RETRIED)


def failure_in_stream(url: str, data: bytes, secret: str | None) -> PonderError:
    """The error for an error object that came instead of the next event."""
    message, _, code = _complaint(data, secret)
    if "context" in code:
        return _overflow(message)
    return given_up(message, f"{url} failed while it was answering")


def given_up(message: str, problem: str = "the server gave up") -> PonderError:
    """The error for a server that says in words why it stops."""
    return _overflow(message) if _CONTEXT.search(message) else EngineError(f"{problem}: {message}")


def come_back(after: float | None) -> str:
    """The mend of a rate limit."""
    return "try again later" if after is None else f"try again in {after:.0f} seconds"


def unreachable(url: str) -> EngineUnavailable:
    """Nothing listens at `url`."""
    return EngineUnavailable(
        f"nothing answers at {'/'.join(url.split('/')[:3])}", "start the server or correct the address"
    )


def silent(url: str, seconds: float) -> EngineTimeout:
    """Not a byte came for so long."""
    return EngineTimeout(f"{url} was silent for {seconds:g} seconds", "raise the timeout or look at the server's load")


def broken(url: str, why: str = "") -> EngineDisconnected:
    """The connection ended before the reply did."""
    said = f" ({one_line(why, 120)})" if why else ""
    return EngineDisconnected(f"{url} broke the connection{said}", "try again, or look at the server's log")


def not_json(url: str, data: bytes, secret: str | None = None) -> GarbledReply:
    """The server said something else than JSON."""
    text = _scrub(data.decode("utf-8", "replace"), secret)
    if text.lstrip()[:1] == "<":
        return GarbledReply(f"{url} answered with a web page, not with JSON", "correct the address; most end in /v1")
    return GarbledReply(f"{url} answered with something that is not JSON: {one_line(text, 80)!r}")


def one_line(text: str, most: int = 300) -> str:
    """`text` on one line of at most `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _overflow(message: str) -> ContextOverflow:
    said = f": {message}" if message else ""
    return ContextOverflow(f"prompt and answer do not fit into the model's context{said}", "shorten the prompt")


def _scrub(text: str, secret: str | None) -> str:
    return text.replace(secret, "***") if secret else text


def _complaint(data: bytes, secret: str | None) -> tuple[str, str | None, str]:
    """Message, parameter and code out of the body of an error, in the shapes that servers use."""
    try:
        body = json.loads(data)
    except ValueError:
        text = data.decode("utf-8", "replace")
        title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        page = title[1] if title else "a web page" if text.lstrip()[:1] == "<" else text
        return one_line(_scrub(page, secret)), None, ""
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return one_line(_scrub(str(error), secret)), None, ""
    message = error.get("message") or error.get("detail") or json.dumps(error)
    param = error.get("param")
    code = f"{error.get('code') or ''} {error.get('type') or ''}"
    return one_line(_scrub(str(message), secret)), param if isinstance(param, str) else None, code

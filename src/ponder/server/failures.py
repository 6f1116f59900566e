"""What a client is told when its request cannot be answered; each dialect has its own form for it."""

from __future__ import annotations

from ponder.errors import PonderError


class Refusal(PonderError):
    """A request that is not answered: an HTTP status, a kind, one line that says what is wrong and what mends it.

    kind: invalid_request_error, authentication_error, permission_error, not_found_error, rate_limit_error,
    insufficient_quota, overloaded_error, timeout_error, api_error. param: the field that is wrong. code: a short word.
    retry_after: seconds. lost: an upstream was asked and may have made tokens that nobody counted.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        problem: str,
        mend: str = "",
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        lost: bool = False,
    ) -> None:
        super().__init__(problem, mend)
        self.status, self.kind, self.param, self.code, self.retry_after = status, kind, param, code, retry_after
        self.lost = lost


def invalid(problem: str, mend: str = "", param: str | None = None, code: str | None = None) -> Refusal:
    """400: the request itself is wrong."""
    return Refusal(400, "invalid_request_error", problem, mend, param=param, code=code)


def unknown_model(model: str, known: str) -> Refusal:
    """404: no such model."""
    return Refusal(404, "not_found_error", f"there is no model {model!r}", known, param="model", code="model_not_found")


def overloaded(problem: str, retry_after: float) -> Refusal:
    """503: the server admits no more for now."""
    return Refusal(503, "overloaded_error", problem, "ask again later", code="overloaded", retry_after=retry_after)


def limited(problem: str, retry_after: float | None, code: str = "rate_limit_exceeded") -> Refusal:
    """429: a key's limit is reached."""
    kind = "insufficient_quota" if code == "insufficient_quota" else "rate_limit_error"
    return Refusal(429, kind, problem, "ask again later", code=code, retry_after=retry_after)

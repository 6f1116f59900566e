"""What goes wrong in the words of OpenAI: {"error": {message, type, param, code}}."""

from __future__ import annotations

from typing import Any

from ponder.server.failures import Refusal
from ponder.server.in_turn import as_refusal


def failure(refused: Refusal, id: str = "") -> dict[str, Any]:
    """The body of an error; the id of the request goes into a header."""
    return {"error": {"message": str(refused), "type": refused.kind, "param": refused.param, "code": refused.code}}


def broken(error: Exception) -> dict[str, Any]:
    """The body of an error in the middle of a stream. Of what is no error for clients it says nothing."""
    return failure(as_refusal(error))

"""Errors as the official client raises them."""

from __future__ import annotations

import json

import openai
import pytest
from openai_client import client

from ponder.errors import EngineTimeout
from ponder.server.failures import Refusal, invalid, limited, overloaded, unknown_model
from ponder.server.openai_failures import broken, failure


@pytest.mark.parametrize(
    ("refused", "kind", "param", "code"),
    [
        (invalid("n: must be at least 1, not 0", param="n"), openai.BadRequestError, "n", None),
        (unknown_model("x", "choose from m"), openai.NotFoundError, "model", "model_not_found"),
        (limited("spent", None, "insufficient_quota"), openai.RateLimitError, None, "insufficient_quota"),
        (overloaded("full", 2), openai.InternalServerError, None, "overloaded"),
        (Refusal(401, "authentication_error", "no such key"), openai.AuthenticationError, None, None),
    ],
)
def test_the_client_raises_what_it_was_told(
    refused: Refusal, kind: type[openai.APIStatusError], param: str | None, code: str | None
) -> None:
    body = json.dumps(failure(refused, "r1")).encode()
    with pytest.raises(kind) as caught:
        client(body, "application/json", refused.status).models.list()
    error = caught.value
    assert (error.param, error.code, error.type) == (param, code, refused.kind)
    assert refused.problem in error.message
    assert set(failure(refused)["error"]) == {"message", "type", "param", "code"}


def test_what_is_no_error_for_clients_is_not_told() -> None:
    assert broken(EngineTimeout("silent for 5 s", "ask again"))["error"]["type"] == "timeout_error"
    told = broken(KeyError("sk-secret"))["error"]
    assert told["type"] == "api_error"
    assert "sk-secret" not in json.dumps(told)

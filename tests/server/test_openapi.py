"""The OpenAPI document describes what the server does: nothing it says is wrong, and nothing it leaves out happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from service import answers, service
from serving import Serving

from ponder.server import anthropic, openai_chat, openai_completions, openai_embeddings, openai_fields, openai_responses
from ponder.server.openapi_requests import requests

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
ENDLESS = "/api/live"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PONDER_HOME", str(tmp_path_factory.mktemp("openapi")))
        with service(lambda: [answers({}, name="m", burst=64)]) as serving:
            yield serving


@pytest.fixture(scope="module")
def document(server: Serving) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return found


def test_it_is_a_sound_document(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    used = set(json.dumps(document).split('"#/components/schemas/')[1:])
    assert {each.partition('"')[0] for each in used} == set(document["components"]["schemas"])
    ids = [each["operationId"] for path in document["paths"].values() for each in path.values()]
    assert len(ids) == len(set(ids))


def test_every_field_that_a_dialect_reads_is_told() -> None:
    shared = {*openai_fields.READ, *openai_fields.WITHOUT_EFFECT, *openai_fields.NEUTRAL}
    told = {name: set(schema["properties"]) for name, schema in requests().items()}
    assert told["ChatRequest"] == shared | set(openai_chat.READ)
    assert told["CompletionRequest"] == shared | set(openai_completions.READ)
    assert told["MessageRequest"] == {*anthropic.READ, *anthropic.WITHOUT_EFFECT}
    assert told["EmbeddingRequest"] == set(openai_embeddings.READ)
    read = {*openai_responses.READ, *openai_responses.WITHOUT_EFFECT, *openai_responses.REFUSED}
    assert told["ResponseRequest"] == read


def test_the_page_on_serving_names_every_path_for_clients(document: dict[str, Any]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    for path in document["paths"]:
        assert path in page or path.startswith(("/api/", "/pages/")) or path == "/", path


def explore(document: dict[str, Any], url: str, mode: GenerationMode, examples: int) -> int:
    """Sends what hypothesis makes of the document, and checks each answer against it. How many were sent."""
    sent = 0
    schema = schemathesis.openapi.from_dict(document)
    with httpx.Client(base_url=url, timeout=20) as client:
        for found in schema.get_all_operations():
            operation = found.ok()
            if operation.path == ENDLESS:
                continue

            # Its own phases find examples; shrinking one that fails takes minutes over a socket.
            @settings(
                max_examples=examples,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                database=None,
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                nonlocal sent
                sent += 1
                body = case.body if isinstance(case.body, dict) else None
                if mode is GenerationMode.POSITIVE and body is not None and "model" in body:
                    body["model"] = "m"  # else every answer is that there is no such model
                response = case.call(base_url=url)
                case.validate_response(response, checks=CHECKS if mode is GenerationMode.NEGATIVE else CHECKS[:-1])

            try:
                check()
            except Exception as error:
                if "Unsatisfiable" not in type(error).__name__:  # nothing wrong can be said where nothing is asked for
                    raise
        assert client.get("/health").status_code == 200
    return sent


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_answers_are_those_of_the_document(document: dict[str, Any], server: Serving, mode: GenerationMode) -> None:
    assert explore(document, server.url, mode, 2) > 20


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_many_answers_are_those_of_the_document(
    document: dict[str, Any], server: Serving, mode: GenerationMode
) -> None:
    assert explore(document, server.url, mode, 300) > 1000


def test_a_document_that_tells_something_else_is_found(document: dict[str, Any], server: Serving) -> None:
    paths = {"/health": document["paths"]["/health"]}
    other = {**document["components"]["schemas"], "Health": {"type": "object", "required": ["mood"]}}
    wrong = {**document, "paths": paths, "components": {**document["components"], "schemas": other}}
    with pytest.raises(BaseException, match="mood"):
        explore(wrong, server.url, GenerationMode.POSITIVE, 2)

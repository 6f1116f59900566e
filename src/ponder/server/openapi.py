"""The server's OpenAPI document (3.1): every route, what it takes and what it gives, served at /openapi.json.

Routes come from the table that is served, fields of requests from the dialects that read them (`openapi_requests`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ponder
from ponder.server import anthropic_reply, openai_failures
from ponder.server.app import Route
from ponder.server.http import Exchange
from ponder.server.openapi_requests import Schema, requests

JSON, STREAM, HTML, PLAIN = "application/json", "text/event-stream", "text/html", "text/plain"
FORM, SOUND = "multipart/form-data", "audio/*"
_EVENTS: Schema = {"description": "Server-sent events."}
"""Without a type: some readers of the document take the stream for a string, others for a list of its events."""
_COUNT: Schema = {"type": "integer", "minimum": 0}
_LIST: Schema = {"type": "array", "items": {"type": "object"}}


def _object(**properties: Schema) -> Schema:
    """An object that has all of these, and may have more."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _const(value: str) -> Schema:
    return {"type": "string", "const": value}


_STRING: Schema = {"type": "string"}
_USAGE = _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT)
_USED = _object(input_tokens=_COUNT, output_tokens=_COUNT)
_MODEL = _object(id=_STRING)
_CHOICES: Schema = {"type": "array", "items": _object(index=_COUNT, finish_reason=_STRING)}

REPLIES: Mapping[str, Schema] = {
    "Chat": _object(id=_STRING, object=_const("chat.completion"), choices=_CHOICES, usage=_USAGE),
    "Completion": _object(id=_STRING, object=_const("text_completion"), choices=_CHOICES, usage=_USAGE),
    "Response": _object(
        id=_STRING,
        object=_const("response"),
        status={"enum": ["completed", "incomplete", "failed"]},
        output=_LIST,
        usage={"anyOf": [_USED, {"type": "null"}]},
    ),
    "Deleted": _object(id=_STRING, object=_const("response"), deleted={"const": True}),
    "Items": _object(object=_const("list"), data=_LIST, has_more={"type": "boolean"}),
    "Models": _object(data={"type": "array", "items": _MODEL}),
    "Model": _MODEL,
    "Message": _object(
        id=_STRING, type=_const("message"), role=_const("assistant"), content=_LIST, stop_reason=_STRING, usage=_USED
    ),
    "Counted": _object(input_tokens=_COUNT),
    "Tokens": _object(tokens={"type": "array", "items": _COUNT}, count=_COUNT, max_model_len=_COUNT),
    "Text": _object(prompt=_STRING),
    "Embeddings": _object(
        object=_const("list"),
        data={
            "type": "array",
            "items": _object(
                object=_const("embedding"),
                index=_COUNT,
                embedding={"anyOf": [_STRING, {"type": "array", "items": {"type": "number"}}]},
            ),
        },
        model=_STRING,
        usage=_object(prompt_tokens=_COUNT, total_tokens=_COUNT),
    ),
    "Health": _object(status=_const("ok")),
    "Ready": _object(status=_const("ready"), running=_COUNT, waiting=_COUNT),
    "Error": _object(
        error=_object(
            message=_STRING,
            type=_STRING,
            param={"type": ["string", "null"]},
            code={"type": ["string", "null"]},
        )
    ),
    "AnthropicError": _object(type=_const("error"), error=_object(type=_STRING, message=_STRING)),
}


@dataclass(frozen=True)
class About:
    """What a route takes and gives: names of schemas, types of content (`sends`: of the request), and its query."""

    gives: str = ""
    takes: str = ""
    kinds: tuple[str, ...] = (JSON,)
    query: Mapping[str, Schema] = field(default_factory=dict)
    sends: str = JSON


_BOTH = (JSON, STREAM)
_LEFT_OUT: Schema = {"const": ""}
_AMOUNT: Schema = {"anyOf": [{"type": "number", "minimum": 0}, _LEFT_OUT]}
_PAGE: Schema = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 100}, _LEFT_OUT]}
ABOUT: Mapping[tuple[str, str], About] = {
    ("POST", "/v1/chat/completions"): About("Chat", "ChatRequest", _BOTH),
    ("POST", "/v1/completions"): About("Completion", "CompletionRequest", _BOTH),
    ("POST", "/v1/responses"): About("Response", "ResponseRequest", _BOTH),
    ("GET", "/v1/responses/{id}"): About("Response"),
    ("DELETE", "/v1/responses/{id}"): About("Deleted"),
    ("GET", "/v1/responses/{id}/input_items"): About(
        "Items", query={"limit": _PAGE, "order": {"enum": ["asc", "desc", ""]}, "after": _STRING}
    ),
    ("GET", "/v1/models"): About("Models"),
    ("GET", "/v1/models/{id}"): About("Model"),
    ("POST", "/v1/messages"): About("Message", "MessageRequest", _BOTH),
    ("POST", "/v1/messages/count_tokens"): About("Counted", "CountRequest"),
    ("POST", "/v1/embeddings"): About("Embeddings", "EmbeddingRequest"),
    ("POST", "/v1/audio/transcriptions"): About("", "TranscriptionForm", (JSON, STREAM, PLAIN), sends=FORM),
    ("POST", "/v1/audio/speech"): About("", "SpeechRequest", (SOUND, STREAM)),
    ("POST", "/tokenize"): About("Tokens", "TokenizeRequest"),
    ("POST", "/detokenize"): About("Text", "DetokenizeRequest"),
    ("GET", "/tokenizer_info"): About(query={"model": _STRING}),
    ("GET", "/health"): About("Health"),
    ("GET", "/ready"): About("Ready"),
    ("GET", "/metrics"): About(kinds=(PLAIN,)),
    ("GET", "/"): About(kinds=(HTML,)),
    ("GET", "/pages/{name}"): About(kinds=(HTML, "text/javascript", "text/css", "image/svg+xml")),
    ("GET", "/api/costs"): About(query={"days": _AMOUNT}),
    ("GET", "/api/traces"): About(query={"search": _STRING, "state": _STRING, "limit": _AMOUNT}),
    ("GET", "/api/prompt"): About(query={"name": _STRING}),
    ("GET", "/api/study"): About(query={"id": _STRING}),
    ("GET", "/api/live"): About(kinds=(STREAM,)),
}
"""What is known of routes beyond themselves. One that is missing here gives JSON of any kind."""


class Document:
    """The document of some routes, and the route that serves it."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = tuple(routes)

    @property
    def route(self) -> Route:
        """GET /openapi.json, for everybody."""
        return Route("GET", "/openapi.json", self.send, openai_failures.failure, open=True)

    async def send(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /openapi.json: this document."""
        await exchange.data(self._bytes, JSON)

    @cached_property
    def _bytes(self) -> bytes:
        return json.dumps(document((*self._routes, self.route)), separators=(",", ":")).encode()


def with_document(routes: Sequence[Route]) -> tuple[Route, ...]:
    """The routes, and the one that tells what they are."""
    return (*routes, Document(routes).route)


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI document of routes."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = re.sub(r":path\}", "}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ponder",
            "version": ponder.__version__,
            "description": "Models that think under a budget, for clients of OpenAI and Anthropic.",
        },
        "paths": paths,
        "components": {
            "schemas": {**requests(), **REPLIES},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(route: Route, path: str) -> dict[str, Any]:
    about = ABOUT.get((route.method, path), About())
    told = (route.handler.__doc__ or "").strip().splitlines()
    error = "AnthropicError" if route.failure is anthropic_reply.failure else "Error"
    places = [_parameter(name, "path", _STRING, True) for name in re.findall(r"\{(\w+)\}", path)]
    query = [_parameter(name, "query", schema, False) for name, schema in about.query.items()]
    wrong = {"description": "What is wrong, and what mends it.", "content": {JSON: {"schema": _ref(error)}}}
    operation: dict[str, Any] = {
        "operationId": _id(route.method, path),
        "summary": told[0] if told else "",
        "parameters": [*places, *query],
        "responses": {"200": _answer(about), "4XX": wrong, "5XX": wrong},
    }
    if about.takes:
        operation["requestBody"] = {"required": True, "content": {about.sends: {"schema": _ref(about.takes)}}}
    if not route.open:  # keys are asked for where there are any
        operation["security"] = [{}, {"bearer": []}, {"key": []}]
    return operation


def _answer(about: About) -> dict[str, Any]:
    schemas = {JSON: _ref(about.gives) if about.gives else {}, STREAM: _EVENTS}
    return {"description": "Done.", "content": {kind: {"schema": schemas.get(kind, _STRING)} for kind in about.kinds}}


def _parameter(name: str, place: str, schema: Schema, required: bool) -> dict[str, Any]:
    return {"name": name, "in": place, "required": required, "schema": schema}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _id(method: str, path: str) -> str:
    return "_".join([method.lower(), *re.findall(r"\w+", path)])

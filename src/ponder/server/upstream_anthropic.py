"""Anthropic Messages as an upstream: requests into its words, its events into ours.

Thinking goes back with the signature that it came with, untouched, and hidden thinking as it was given. The least
budget for thinking is 1024 tokens, and it must lie below `max_tokens`; the model may go beyond it, so it is a hint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ponder.server.anthropic import LEAST_THINKING
from ponder.server.events import Call, Content, Ended, Reason, Reasoning, ReplyEvent, Usage
from ponder.server.failures import invalid
from ponder.server.request import Request
from ponder.server.signatures import SignedThinking, ours
from ponder.server.upstream_dialect import (
    Ask,
    Failed,
    Hard,
    Heard,
    count_of,
    object_of,
    objects_of,
    spent,
    text_of,
)
from ponder.server.upstream_thinking import amount, nearest
from ponder.server.upstream_vectors import none_here
from ponder.types import Audio, Image, Text, Thinking, ToolCall, ToolResult, Video

VERSION = "2023-06-01"
DEFAULT_TOKENS = 4096
"""`max_tokens`, which has to be there, where the client bounds nothing."""

Flavour = Literal["budget", "adaptive"]

_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_REASONS: Mapping[str, Reason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "refusal",
    "pause_turn": "stop",
}
_STATUSES = {
    "overloaded_error": 529,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "invalid_request_error": 400,
    "request_too_large": 413,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
}


@dataclass(frozen=True)
class Anthropic:
    """flavour: "budget" for models whose thinking takes a number of tokens, "adaptive" for those that take efforts."""

    flavour: Flavour = "budget"
    efforts: tuple[str, ...] = ()
    provider: str = "anthropic"
    several = False
    hands = False

    def headers(self, key: str) -> Mapping[str, str]:
        """Version and key."""
        return {"anthropic-version": VERSION, **({"x-api-key": key} if key else {})}

    # ------------------------------------------------------------ the request

    def ask(self, request: Request, model: str) -> Ask:
        """POST /messages. Raises Refusal."""
        self._check(request)
        thinking, hard = self._thinking(request)
        body = {
            "model": model,
            "max_tokens": request.budget.tokens or DEFAULT_TOKENS + (request.budget.thinking or 0),
            **self._conversation(request),
            **_tools(request),
            **thinking,
            "stream": True,
        }
        for name in ("temperature", "top_p", "top_k"):
            value = getattr(request.sampling, name)
            if value is not None:
                body[name] = value
        if request.sampling.stop:
            body["stop_sequences"] = list(request.sampling.stop)
        if request.user:
            body["metadata"] = {"user_id": request.user}
        if request.shape.kind == "schema":
            shape = {"type": "json_schema", "schema": dict(request.shape.schema or {})}
            body["output_config"] = {**body.get("output_config", {}), "format": shape}
        most = object_of(body.get("thinking")).get("budget_tokens", 0)
        if request.budget.tokens is None and most:
            body["max_tokens"] = DEFAULT_TOKENS + most
        return Ask("/messages", body, hard)

    def closed(self, request: Request, model: str, thinking: str, used: int) -> Ask | None:
        """Its thinking cannot be continued by anybody else."""
        return None

    def _check(self, request: Request) -> None:
        sampling = request.sampling
        unable = {
            "prompt": request.raw is not None or bool(request.raw_ids),
            "min_p": sampling.min_p is not None,
            "seed": sampling.seed is not None,
            "logprobs": sampling.logprobs is not None,
            "frequency_penalty": bool(sampling.frequency_penalty),
            "presence_penalty": bool(sampling.presence_penalty),
            "logit_bias": bool(sampling.logit_bias),
            "ignore_eos": sampling.ignore_eos,
            "response_format": request.shape.kind == "json",
        }
        for name, asked in unable.items():
            if asked:
                raise invalid(f"{request.model} has no {name}", "leave it out", name)

    def _thinking(self, request: Request) -> tuple[dict[str, Any], Hard]:
        wanted = amount(request)
        if wanted.think is None:
            return {}, "none"
        if wanted.off:
            return {"thinking": {"type": "disabled"}}, "hard"
        if self.flavour == "adaptive":
            effort = nearest(wanted.effort, self.efforts or _EFFORTS) if wanted.effort else ""
            config = {"output_config": {"effort": effort}} if effort else {}
            return {"thinking": {"type": "adaptive"}, **config}, "hint" if effort else "none"
        most, tokens = request.budget.tokens, wanted.tokens
        if most is not None and most <= LEAST_THINKING:  # no room for the least that there is
            return {"thinking": {"type": "disabled"}}, "hard" if tokens is not None else "none"
        budget = max(LEAST_THINKING, tokens if tokens is not None else 2 * LEAST_THINKING)
        budget = budget if most is None else min(budget, most - 1)
        return {"thinking": {"type": "enabled", "budget_tokens": budget}}, "none" if tokens is None else "hint"

    def _conversation(self, request: Request) -> dict[str, Any]:
        system = [message.text for message in request.question.messages if message.role == "system"]
        turns: list[dict[str, Any]] = []
        for message in request.question.messages:
            if message.role == "system":
                continue
            role = "assistant" if message.role == "assistant" else "user"
            blocks = [block for part in message.parts for block in _blocks(part)]
            if turns and turns[-1]["role"] == role:  # results of several calls belong into one message
                turns[-1]["content"] += blocks
            elif blocks:
                turns.append({"role": role, "content": blocks})
        return {"messages": turns, **({"system": "\n\n".join(system)} if system else {})}

    # ------------------------------------------------------------ the answer

    def reading(self, request: Request) -> _Reading:
        """See `upstream_dialect.Dialect`."""
        return _Reading(request)

    def counting(self, request: Request, model: str) -> Ask | None:
        """POST /messages/count_tokens."""
        body = self.ask(request, model).body
        kept = ("model", "messages", "system", "tools", "tool_choice", "thinking")
        return Ask("/messages/count_tokens", {name: body[name] for name in kept if name in body})

    def counted(self, document: Mapping[str, Any]) -> int | None:
        """Of what `counting` gives."""
        return count_of(document.get("input_tokens")) or None

    def embedding(self, request: Request, model: str) -> Ask:
        """There is none."""
        raise none_here(request)

    def embedded(self, document: Mapping[str, Any]) -> tuple[list[Any], int | None]:
        """Nothing: none was asked for."""
        return [], None

    def failed(self, document: Any) -> str:
        """The message."""
        return text_of(object_of(object_of(document).get("error")).get("message"))

    def listed(self, document: Mapping[str, Any]) -> dict[str, int]:
        """GET /models."""
        entries = objects_of(document.get("data"))
        return {
            name: count_of(entry.get("max_input_tokens")) for entry in entries if (name := text_of(entry.get("id")))
        }


def _tools(request: Request) -> dict[str, Any]:
    if not request.question.tools:
        return {}
    choice = request.tool_choice
    kind = {"required": "any", "named": "tool"}.get(choice.mode, choice.mode)
    told: dict[str, Any] = {"type": kind, **({"name": choice.name} if kind == "tool" else {})}
    if not choice.parallel and kind != "none":
        told["disable_parallel_tool_use"] = True
    tools = []
    for tool in request.question.tools:
        function = object_of(tool.get("function"))
        entry = {"name": function.get("name"), "input_schema": function.get("parameters") or {"type": "object"}}
        entry |= {name: function[name] for name in ("description", "strict") if function.get(name) is not None}
        tools.append(entry)
    return {"tools": tools, "tool_choice": told}


def _blocks(part: Any) -> list[dict[str, Any]]:
    if isinstance(part, Text):
        return [{"type": "text", "text": part.text}] if part.text else []
    if isinstance(part, Thinking):
        return _thought(part)
    if isinstance(part, ToolCall):
        return [{"type": "tool_use", "id": part.id, "name": part.name, "input": _arguments(part)}]
    if isinstance(part, ToolResult):
        failed = {"is_error": True} if part.error else {}
        return [{"type": "tool_result", "tool_use_id": part.id, "content": part.content, **failed}]
    if isinstance(part, Image):
        return [_image(part.url)]
    if isinstance(part, Video):
        return [_image(frame) for frame in part.frames]
    assert isinstance(part, Audio)
    raise invalid("this model takes no audios", "ask a model that does: see /v1/models", "messages")


def _thought(part: Thinking) -> list[dict[str, Any]]:
    """Thinking with the upstream's own signature; other thinking would be refused, and is left out."""
    if not isinstance(part, SignedThinking):
        return []
    if part.redacted:
        return [{"type": "redacted_thinking", "data": part.redacted}]
    if part.signature and not ours(part.signature):
        return [{"type": "thinking", "thinking": part.text, "signature": part.signature}]
    return []


def _arguments(call: ToolCall) -> Any:
    try:
        found = json.loads(call.arguments or "{}")
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"INVALID_JSON": call.arguments}


def _image(url: str) -> dict[str, Any]:
    head, comma, data = url.partition(",")
    if comma and head.startswith("data:"):
        kind = head.removeprefix("data:").partition(";")[0]
        return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}
    return {"type": "image", "source": {"type": "url", "url": url}}


class _Reading:
    """The events of a stream, or a whole message."""

    def __init__(self, request: Request) -> None:
        self.heard = Heard()
        self._request = request
        self._calls: dict[int, int] = {}
        self._usage: dict[str, Any] = {}
        self._reason, self._met = "", None
        self._stops: Sequence[str] = request.sampling.stop

    def take(self, document: Mapping[str, Any]) -> list[ReplyEvent]:
        """The events of a document. Raises Failed."""
        kind = document.get("type")
        if kind == "error" or (document.get("error") and kind is None):
            error = object_of(document.get("error"))
            raise Failed(
                text_of(error.get("message")) or "it told of an error", _STATUSES.get(text_of(error.get("type")), 0)
            )
        events: list[ReplyEvent] = []
        if kind == "message_start":
            self._count(object_of(document.get("message")).get("usage"))
        elif kind == "message":
            self._count(document.get("usage"))
            for place, block in enumerate(objects_of(document.get("content"))):
                events += self._open(place, block, whole=True)
            events.append(self._end(document))
        elif kind == "content_block_start":
            events += self._open(count_of(document.get("index")), object_of(document.get("content_block")))
        elif kind == "content_block_delta":
            events += self._more(count_of(document.get("index")), object_of(document.get("delta")))
        elif kind == "message_delta":
            self._count(document.get("usage"))
            if text_of(object_of(document.get("delta")).get("stop_reason")) and not self.heard.ended:
                events.append(self._end(object_of(document.get("delta"))))
        for event in events:
            self.heard.see(event)
        return events

    def _open(self, place: int, block: Mapping[str, Any], whole: bool = False) -> list[ReplyEvent]:
        kind = block.get("type")
        if kind == "text":
            return [Content(text)] if (text := text_of(block.get("text"))) else []
        if kind == "thinking":
            text, signature = text_of(block.get("thinking")), text_of(block.get("signature"))
            return [Reasoning(text, signature=signature)] if text or signature else []
        if kind == "redacted_thinking":
            return [Reasoning("", redacted=data)] if (data := text_of(block.get("data"))) else []
        if kind == "tool_use":
            self._calls[place] = number = len(self._calls)
            given = block.get("input")
            arguments = json.dumps(given, ensure_ascii=False) if given or whole else ""
            return [Call(arguments, number, text_of(block.get("id")), text_of(block.get("name")))]
        return []

    def _more(self, place: int, delta: Mapping[str, Any]) -> list[ReplyEvent]:
        kind = delta.get("type")
        if kind == "text_delta":
            return [Content(text)] if (text := text_of(delta.get("text"))) else []
        if kind == "thinking_delta":
            return [Reasoning(text)] if (text := text_of(delta.get("thinking"))) else []
        if kind == "signature_delta":
            return [Reasoning("", signature=text)] if (text := text_of(delta.get("signature"))) else []
        if kind == "input_json_delta" and place in self._calls:
            return [Call(text, self._calls[place])] if (text := text_of(delta.get("partial_json"))) else []
        return []

    def _end(self, delta: Mapping[str, Any]) -> Ended:
        met = text_of(delta.get("stop_sequence"))
        return Ended(_REASONS.get(text_of(delta.get("stop_reason")), "stop"), 0, met if met in self._stops else None)

    def _count(self, usage: Any) -> None:
        """Later counts stand for the whole message."""
        self._usage |= {name: value for name, value in object_of(usage).items() if value is not None}

    def usage(self) -> Usage | None:
        """Its input leaves out what was cached; ours holds it."""
        told = self._usage
        if not told:
            return None
        read, written = count_of(told.get("cache_read_input_tokens")), count_of(told.get("cache_creation_input_tokens"))
        prompt, completion = count_of(told.get("input_tokens")) + read + written, count_of(told.get("output_tokens"))
        if not self.heard.ended:  # the count of the beginning says nothing of what came after
            completion = max(completion, self.heard.estimated(self._request).completion)
        thought = object_of(told.get("output_tokens_details")).get("thinking_tokens")
        reasoning = self.heard.share(completion) if thought is None else count_of(thought)
        extra: dict[str, Any] = {"cache_written": written} if written else {}
        if thought is None and reasoning:
            extra["reasoning_estimated"] = True
        return spent(prompt, read, completion, reasoning, extra=extra, estimated=not self.heard.ended)

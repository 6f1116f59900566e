"""Gemini's generateContent as an upstream: requests into its words, its chunks into ours.

A signature of Gemini's belongs to the part that it came with, most often a call: it is told as thinking without text
just before that part, and goes back in the same place. Its calls have no ids; ours are numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from ponder.server import upstream_vectors
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
from ponder.types import Audio, Image, Message, Text, Thinking, ToolCall, ToolResult, Video

Flavour = Literal["budget", "level"]

_LEVELS = ("minimal", "low", "medium", "high")
_REASONS: Mapping[str, Reason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "refusal",
    "RECITATION": "refusal",
    "BLOCKLIST": "refusal",
    "PROHIBITED_CONTENT": "refusal",
    "SPII": "refusal",
    "IMAGE_SAFETY": "refusal",
}


@dataclass(frozen=True)
class Gemini:
    """flavour: "budget" for models whose thinking takes a number of tokens, "level" for those that take efforts."""

    flavour: Flavour = "budget"
    efforts: tuple[str, ...] = ()
    provider: str = "google"
    several = True
    hands = False

    def headers(self, key: str) -> Mapping[str, str]:
        """The key; never in the address, which is written into logs."""
        return {"x-goog-api-key": key} if key else {}

    # ------------------------------------------------------------ the request

    def ask(self, request: Request, model: str) -> Ask:
        """POST /models/NAME:streamGenerateContent. Raises Refusal."""
        self._check(request)
        thinking, hard = self._thinking(request)
        body = {
            **_conversation(request),
            **_tools(request),
            "generationConfig": {**_drawn(request), **thinking},
        }
        return Ask(f"/models/{quote(model, safe='')}:streamGenerateContent?alt=sse", body, hard)

    def closed(self, request: Request, model: str, thinking: str, used: int) -> Ask | None:
        """Its thinking is told as a summary only."""
        return None

    def _check(self, request: Request) -> None:
        sampling = request.sampling
        unable = {
            "prompt": request.raw is not None or bool(request.raw_ids),
            "min_p": sampling.min_p is not None,
            "logprobs": sampling.logprobs is not None,
            "logit_bias": bool(sampling.logit_bias),
            "ignore_eos": sampling.ignore_eos,
        }
        for name, asked in unable.items():
            if asked:
                raise invalid(f"{request.model} has no {name}", "leave it out", name)

    def _thinking(self, request: Request) -> tuple[dict[str, Any], Hard]:
        wanted = amount(request)
        if wanted.think is None:
            return {"thinkingConfig": {"includeThoughts": True}}, "none"
        if self.flavour == "level":
            known = self.efforts or _LEVELS
            told = {"thinkingLevel": nearest(wanted.effort, known)} if wanted.effort else {}
            return {"thinkingConfig": {**told, "includeThoughts": not wanted.off}}, "hint" if told else "none"
        if wanted.off:
            return {"thinkingConfig": {"thinkingBudget": 0}}, "hint"
        budget = -1 if wanted.tokens is None else wanted.tokens
        hard: Hard = "none" if wanted.tokens is None else "hint"
        return {"thinkingConfig": {"thinkingBudget": budget, "includeThoughts": True}}, hard

    # ------------------------------------------------------------ the answer

    def reading(self, request: Request) -> _Reading:
        """See `upstream_dialect.Dialect`."""
        return _Reading(request)

    def counting(self, request: Request, model: str) -> Ask | None:
        """POST /models/NAME:countTokens."""
        whole = {"model": f"models/{model}", **_conversation(request), **_tools(request)}
        return Ask(f"/models/{quote(model, safe='')}:countTokens", {"generateContentRequest": whole})

    def counted(self, document: Mapping[str, Any]) -> int | None:
        """Of what `counting` gives."""
        return count_of(document.get("totalTokens")) or None

    def embedding(self, request: Request, model: str) -> Ask:
        """POST /models/NAME:batchEmbedContents. Raises Refusal."""
        return upstream_vectors.gemini_asked(request, model)

    def embedded(self, document: Mapping[str, Any]) -> tuple[list[Any], int | None]:
        """Of what `embedding` gives."""
        return upstream_vectors.gemini_told(document)

    def failed(self, document: Any) -> str:
        """The message; errors of a stream come as a list."""
        first = document[0] if isinstance(document, list) and document else document
        return text_of(object_of(object_of(first).get("error")).get("message"))

    def listed(self, document: Mapping[str, Any]) -> dict[str, int]:
        """GET /models: those that answer."""
        found = {}
        for entry in objects_of(document.get("models")):
            methods = entry.get("supportedGenerationMethods")
            if isinstance(methods, list) and "generateContent" not in methods:
                continue
            if name := text_of(entry.get("name")).removeprefix("models/"):
                found[name] = count_of(entry.get("inputTokenLimit"))
        return found


def _drawn(request: Request) -> dict[str, Any]:
    sampling = request.sampling
    told: dict[str, Any] = {
        "temperature": sampling.temperature,
        "topP": sampling.top_p,
        "topK": sampling.top_k,
        "seed": sampling.seed,
        "maxOutputTokens": request.budget.tokens,
        "stopSequences": list(sampling.stop) or None,
        "frequencyPenalty": sampling.frequency_penalty or None,
        "presencePenalty": sampling.presence_penalty or None,
        "candidateCount": request.n if request.n > 1 else None,
    }
    if request.shape.kind != "text":
        told["responseMimeType"] = "application/json"
    if request.shape.schema is not None:
        told["responseJsonSchema"] = dict(request.shape.schema)
    return {name: value for name, value in told.items() if value is not None}


def _tools(request: Request) -> dict[str, Any]:
    if not request.question.tools:
        return {}
    declared = []
    for tool in request.question.tools:
        function = object_of(tool.get("function"))
        entry = {"name": function.get("name"), "parametersJsonSchema": function.get("parameters") or {"type": "object"}}
        declared.append(entry | ({"description": text} if (text := function.get("description")) else {}))
    choice = request.tool_choice
    mode = {"auto": "AUTO", "none": "NONE"}.get(choice.mode, "ANY")
    config: dict[str, Any] = {"mode": mode}
    if choice.mode == "named":
        config["allowedFunctionNames"] = [choice.name]
    return {"tools": [{"functionDeclarations": declared}], "toolConfig": {"functionCallingConfig": config}}


def _conversation(request: Request) -> dict[str, Any]:
    system = [message.text for message in request.question.messages if message.role == "system"]
    names = {
        part.id: part.name
        for message in request.question.messages
        for part in message.parts
        if isinstance(part, ToolCall)
    }
    contents: list[dict[str, Any]] = []
    for message in request.question.messages:
        if message.role == "system":
            continue
        role = "model" if message.role == "assistant" else "user"
        parts = _parts(message, names)
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": role, "parts": parts})
    told = {"systemInstruction": {"parts": [{"text": "\n\n".join(system)}]}} if system else {}
    return {"contents": contents, **told}


def _parts(message: Message, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The parts of a turn; a signature goes to the part that comes after it."""
    told: list[dict[str, Any]] = []
    signature = ""
    for part in message.parts:
        if isinstance(part, Thinking):
            if isinstance(part, SignedThinking) and part.signature and not ours(part.signature):
                signature = part.signature
            continue
        for each in _part(part, names):
            told.append(each | ({"thoughtSignature": signature} if signature else {}))
            signature = ""
    return told


def _part(part: Any, names: Mapping[str, str]) -> list[dict[str, Any]]:
    if isinstance(part, Text):
        return [{"text": part.text}] if part.text else []
    if isinstance(part, ToolCall):
        try:
            arguments = json.loads(part.arguments or "{}")
        except ValueError:
            arguments = None
        whole = arguments if isinstance(arguments, dict) else {"INVALID_JSON": part.arguments}
        return [{"functionCall": {"name": part.name, "args": whole}}]
    if isinstance(part, ToolResult):
        said = {"error" if part.error else "result": part.content}
        return [{"functionResponse": {"name": names.get(part.id, part.id), "response": said}}]
    if isinstance(part, Image | Audio):
        return [_data(part.url)]
    if isinstance(part, Video):
        return [_data(frame) for frame in part.frames]
    return []


def _data(url: str) -> dict[str, Any]:
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:"):
        raise invalid("this model takes no addresses of media", "send a data: URI", "messages")
    return {"inlineData": {"mimeType": head.removeprefix("data:").partition(";")[0], "data": data}}


class _Reading:
    """The chunks of a stream: pieces of candidates, and counts that grow."""

    def __init__(self, request: Request) -> None:
        self.heard = Heard()
        self._request = request
        self._calls: dict[int, int] = {}
        self._usage: Mapping[str, Any] = {}

    def take(self, document: Mapping[str, Any]) -> list[ReplyEvent]:
        """The events of a chunk. Raises Failed."""
        if error := object_of(document.get("error")):
            status = count_of(error.get("code"))
            raise Failed(text_of(error.get("message")) or "it told of an error", status if 400 <= status < 600 else 0)
        self._usage = object_of(document.get("usageMetadata")) or self._usage
        events: list[ReplyEvent] = []
        for candidate in objects_of(document.get("candidates")):
            events += self._candidate(candidate)
        if object_of(document.get("promptFeedback")).get("blockReason") and not self.heard.ended:
            events += [Ended("refusal", choice) for choice in range(self._request.n)]
        for event in events:
            self.heard.see(event)
        return events

    def _candidate(self, candidate: Mapping[str, Any]) -> list[ReplyEvent]:
        index = count_of(candidate.get("index"))
        if index >= self._request.n or index in self.heard.ended:
            return []
        events: list[ReplyEvent] = []
        for part in objects_of(object_of(candidate.get("content")).get("parts")):
            events += self._part(part, index)
        if finish := text_of(candidate.get("finishReason")):
            reason = _REASONS.get(finish, "stop")
            called = reason == "stop" and self._calls.get(index)
            events.append(Ended("tool_calls" if called else reason, index))
        return events

    def _part(self, part: Mapping[str, Any], index: int) -> list[ReplyEvent]:
        signature, text = text_of(part.get("thoughtSignature")), text_of(part.get("text"))
        if part.get("thought") is True:
            return [Reasoning(text, index, signature)] if text or signature else []
        events: list[ReplyEvent] = [Reasoning("", index, signature)] if signature else []
        if text:
            events.append(Content(text, index))
        if call := object_of(part.get("functionCall")):
            number = self._calls.get(index, 0)
            self._calls[index] = number + 1
            arguments = json.dumps(object_of(call.get("args")), ensure_ascii=False)
            events.append(Call(arguments, number, text_of(call.get("id")), text_of(call.get("name")), index))
        return events

    def usage(self) -> Usage | None:
        """Its candidates leave out the thoughts; our completion holds both."""
        told = self._usage
        if not told:
            return None
        thoughts = count_of(told.get("thoughtsTokenCount"))
        prompt = count_of(told.get("promptTokenCount")) + count_of(told.get("toolUsePromptTokenCount"))
        completion = count_of(told.get("candidatesTokenCount")) + thoughts
        return spent(prompt, count_of(told.get("cachedContentTokenCount")), completion, thoughts)

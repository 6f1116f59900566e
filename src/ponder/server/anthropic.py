"""The dialect Anthropic Messages: a body into a `Request`. `anthropic_reply` has the way back.

Thinking of earlier turns is taken back with its signature alone: ours must be right, an upstream's goes back to it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ponder.server.anthropic_reply import INVALID_JSON, PING, counted, failure, stream, whole
from ponder.server.failures import Refusal, invalid
from ponder.server.json_body import Body, Fields, opened, wrong
from ponder.server.request import Request, Sampling, Shape, Shown, ToolChoice
from ponder.server.signatures import SignedThinking, Signer, ours
from ponder.server.wanted import Said, effort_said, model_and_suffix, think_said, thinking_said, wanted
from ponder.types import Image, Message, Part, Question, Role, Text, Thinking, ToolCall, ToolResult

__all__ = ["PING", "counted", "failure", "read", "stream", "whole"]

LEAST_THINKING = 1024
"""Tokens of `thinking.budget_tokens`, at the least: Anthropic's own bound."""

READ = (
    *("model", "messages", "max_tokens", "system", "thinking", "output_config", "output_format", "tools"),
    *("tool_choice", "stop_sequences", "temperature", "top_p", "top_k", "metadata", "stream", "ponder"),
)
WITHOUT_EFFECT = (
    *("cache_control", "service_tier", "inference_geo", "speed", "diagnostics", "user_profile_id", "workspace_id"),
    "context_management",
)
"""Fields that say how a request is carried out elsewhere, and change nothing of its answer."""
_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_CHOICES: Mapping[str, Any] = {"auto": "auto", "any": "required", "tool": "named", "none": "none"}


def read(
    body: Body,
    headers: Mapping[str, str],
    id: str,
    signer: Signer,
    counting: bool = False,
    *,
    upstream: Callable[[str], bool] = lambda model: True,
) -> Request:
    """What a client asks for. Raises Refusal, which names the field.

    counting: at /v1/messages/count_tokens, which needs no `max_tokens`. upstream: whether an upstream answers for a
    model; for one of ponder's own no signature is taken but ours.
    """
    fields = opened(body)
    model, _ = model_and_suffix(fields.need_text("model"))
    return _request(fields, headers, id, counting, _Replay(signer, model, upstream(model)))


@dataclass(frozen=True)
class _Replay:
    """How thinking of earlier turns is taken back: for which model, and whether with signatures that are not ours."""

    signer: Signer
    model: str
    foreign: bool


def _request(body: Fields, headers: Mapping[str, str], id: str, counting: bool, replay: _Replay) -> Request:
    body.only(*READ, *WITHOUT_EFFECT)
    if not counting:
        body.need("max_tokens")
    most = body.whole("max_tokens", 1)
    tools = _tools(body)
    messages = tuple(_joined([*_system(body), *_messages(body, replay)]))
    asked = wanted(body, headers, [*_thinking(body, most), *_effort(body)], most)
    if not body.objects("messages") and asked.prompt is None:
        raise body.wrong("messages", "is missing or empty", "send at least one message")
    return Request(
        id=id,
        model=asked.model,
        question=Question(messages, tools=tools),
        strategy=asked.strategy,
        effort=asked.effort,
        budget=asked.budget,
        think=asked.think,
        deadline=asked.deadline,
        sampling=_sampling(body),
        tool_choice=_tool_choice(body, tools),
        shape=_shape(body),
        stream=body.flag("stream", False),
        prompt=asked.prompt,
        variables=asked.variables,
        shown=Shown(reasoning=_shows_thinking(body)),
        user=_user(body),
        dialect="anthropic",
    )


# ---------------------------------------------------------------- settings


def _thinking(body: Fields, most: int | None) -> list[Said]:
    thinking = body.object("thinking")
    if thinking is None:
        return []
    thinking.need("type")
    kind = thinking.one_of("type", ("enabled", "adaptive", "disabled", "between_tools"))
    if kind == "between_tools":
        return [] if _after_tools(body) else think_said(False, thinking.at("type"))
    if kind != "enabled":
        return think_said(False, thinking.at("type")) if kind == "disabled" else []
    thinking.need("budget_tokens")
    tokens = thinking.whole("budget_tokens", LEAST_THINKING) or LEAST_THINKING
    if most is not None and tokens >= most:
        problem = f"`max_tokens` must be greater than `thinking.budget_tokens`, and {most} is not above {tokens}"
        raise invalid(problem, "raise the one or lower the other", thinking.at("budget_tokens"))
    return thinking_said(tokens, thinking.at("budget_tokens"))


def _after_tools(body: Fields) -> bool:
    """Whether the last message brings results of tools."""
    last = body.objects("messages")[-1:]
    return any(block.raw("type") == "tool_result" for message in last for block in _blocks(message, "content"))


def _shows_thinking(body: Fields) -> bool:
    thinking = body.object("thinking")
    return thinking is None or thinking.one_of("display", ("summarized", "omitted")) != "omitted"


def _effort(body: Fields) -> list[Said]:
    config = body.object("output_config")
    effort = config.one_of("effort", _EFFORTS) if config else None
    return [] if effort is None else effort_said(effort, "output_config.effort")


def _shape(body: Fields) -> Shape:
    config = body.object("output_config") or Fields({}, "output_config")
    shape = config.object("format") or body.object("output_format")  # the second is its name of the beta
    if shape is None:
        return Shape()
    shape.need("type")
    shape.one_of("type", ("json_schema",))
    return Shape("schema", dict(shape.need_object("schema").values))


def _sampling(body: Fields) -> Sampling:
    return Sampling(
        temperature=body.number("temperature", 0, 1),
        top_p=body.number("top_p", most=1, above=0),
        top_k=body.whole("top_k"),
        stop=tuple(stop for stop in body.texts("stop_sequences") if stop),
    )


def _user(body: Fields) -> str:
    metadata = body.object("metadata")
    return metadata.text("user_id", "") if metadata else ""


# ---------------------------------------------------------------- tools


def _tools(body: Fields) -> tuple[Mapping[str, Any], ...]:
    tools = tuple(_tool(each) for each in body.objects("tools"))
    names = [tool["function"]["name"] for tool in tools]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise wrong(f"tools[{number}].name", f"there are two tools {name!r}", "name each differently")
    return tools


def _tool(tool: Fields) -> Mapping[str, Any]:
    """A tool as chat templates know it."""
    if tool.text("type", "custom") != "custom":
        problem = f"tools of the type {tool.raw('type')!r} are not run here"
        raise tool.wrong("type", problem, "offer tools of your own, with a name and an input_schema")
    if tool.flag("defer_loading"):
        raise tool.wrong("defer_loading", "tools are not searched here", "leave it out")
    function: dict[str, Any] = {"name": tool.need_text("name")}
    if tool.has("description"):
        function["description"] = tool.text("description")
    function["parameters"] = dict(tool.need_object("input_schema").values)
    if (strict := tool.flag("strict")) is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


def _tool_choice(body: Fields, tools: Iterable[Mapping[str, Any]]) -> ToolChoice:
    choice = body.object("tool_choice")
    if choice is None:
        return ToolChoice()
    choice.need("type")
    mode = _CHOICES[choice.one_of("type", _CHOICES) or "auto"]
    name = choice.need_text("name") if mode == "named" else ""
    offered = [tool["function"]["name"] for tool in tools]
    if mode in ("required", "named") and not offered:
        raise wrong("tool_choice", "a tool is to be called, and none is offered", "offer some in tools")
    if name and name not in offered:
        raise choice.wrong("name", f"there is no tool {name!r}", f"choose from {', '.join(offered)}")
    return ToolChoice(mode, name, not choice.flag("disable_parallel_tool_use", False))


# ---------------------------------------------------------------- messages


def _system(body: Fields) -> Iterator[Message]:
    if body.has("system"):
        yield Message("system", tuple(_parts(_blocks(body, "system"), ("text",))))


def _messages(body: Fields, replay: _Replay) -> Iterator[Message]:
    called: set[str] = set()
    role: str | None = None
    messages = body.objects("messages")
    for message in messages:
        message.need("role")
        role = message.one_of("role", ("user", "assistant", "system"))
        blocks = _blocks(message, "content")
        if role == "assistant":
            parts = tuple(_said(blocks, replay))
            called |= {part.id for part in parts if isinstance(part, ToolCall)}
            yield Message("assistant", parts)
        elif role == "system":
            yield Message("system", tuple(_parts(blocks, ("text",))))
        else:
            yield from _asked(blocks, called)
    if role == "assistant":
        problem = "the conversation must end with a user message: the beginning of an answer is not continued"
        raise wrong(f"messages[{len(messages) - 1}].role", problem, "leave the last message out")


def _joined(messages: Iterable[Message]) -> Iterator[Message]:
    """Turns of one role in a row are one turn, as Anthropic has it; templates insist on it."""
    role: Role | None = None
    parts: tuple[Part, ...] = ()
    for message in messages:
        if role is not None and message.role != role:
            yield Message(role, parts)
            parts = ()
        role, parts = message.role, parts + message.parts
    if role is not None:
        yield Message(role, parts)


def _blocks(fields: Fields, name: str) -> tuple[Fields, ...]:
    """The blocks of a content, which may be a string."""
    fields.need(name)
    if isinstance(fields.raw(name), str):
        return (Fields({"type": "text", "text": fields.raw(name)}, fields.at(name)),)
    blocks = fields.objects(name)
    for block in blocks:
        block.need_text("type")
    return blocks


def _asked(blocks: Iterable[Fields], called: set[str]) -> Iterator[Message]:
    """The messages of a user's turn: results of tools first, then the rest, their images included."""
    results: list[Part] = []
    rest: list[Part] = []
    for block in blocks:
        if block.raw("type") != "tool_result":
            rest += _parts([block], ("text", "image", "document", "search_result", "tool_result"))
            continue
        result, images = _result(block, called)
        results.append(result)
        rest += images
    if results:
        yield Message("tool", tuple(results))
    if rest or not results:
        yield Message("user", tuple(rest))


def _result(block: Fields, called: set[str]) -> tuple[ToolResult, list[Part]]:
    """A result, and the images in it, which no text holds."""
    id = block.need_text("tool_use_id")
    if id not in called:
        problem = f"unexpected `tool_use_id` in a `tool_result` block: {id[:60]!r} has no `tool_use` block before it"
        raise block.wrong("tool_use_id", problem, "send the assistant's message with the call, too")
    content = _blocks(block, "content") if block.has("content") else ()
    parts = list(_parts(content, ("text", "image", "document", "search_result")))
    text = "".join(part.text for part in parts if isinstance(part, Text))
    return ToolResult(id, text, block.flag("is_error", False)), [part for part in parts if isinstance(part, Image)]


def _parts(blocks: Iterable[Fields], allowed: tuple[str, ...]) -> Iterator[Part]:
    for block in blocks:
        kind = block.need_text("type")
        if kind not in allowed:
            raise _no_block(block, allowed)
        if kind == "text":
            yield Text(block.need_text("text", empty=True))
        elif kind == "image":
            yield Image(_url(block.need_object("source")))
        elif kind == "document":
            yield from _document(block)
        elif kind == "search_result":
            head = [block.need_text("title", empty=True), block.need_text("source", empty=True)]
            yield from _titled(head, _parts(_blocks(block, "content"), ("text",)))


def _no_block(block: Fields, allowed: tuple[str, ...]) -> Refusal:
    return block.wrong("type", f"{block.raw('type')[:60]!r} has no place here", f"choose from {', '.join(allowed)}")


def _url(source: Fields) -> str:
    kind = source.need_text("type")
    if kind == "url":
        url = source.need_text("url")
        if not url.startswith(("http://", "https://")):
            raise source.wrong("url", "is no address on the web", "send https://..., or the image as base64")
        return url
    if kind != "base64":
        raise source.wrong("type", f"a source {kind[:60]!r} is not read here", "send it as base64 or url")
    source.need("media_type")
    media, data = source.one_of("media_type", _IMAGES), source.need_text("data")
    try:
        base64.b64decode(data, validate=True)
    except ValueError:
        raise source.wrong("data", "holds what is no base64", "encode the bytes again") from None
    return f"data:{media};base64,{data}"


def _document(block: Fields) -> Iterator[Part]:
    """A document's text; a file that has to be read first, such as a PDF, is refused."""
    if (citations := block.object("citations")) and citations.flag("enabled"):
        raise citations.wrong("enabled", "answers come without citations here", "leave it out")
    source = block.need_object("source")
    kind = source.need_text("type")
    if kind == "text":
        parts: Iterable[Part] = [Text(source.need_text("data", empty=True))]
    elif kind == "content":
        parts = _parts(_blocks(source, "content"), ("text", "image"))
    else:
        raise source.wrong("type", f"a document {kind[:60]!r} is not read here", "send its text")
    return _titled([block.text("title", ""), block.text("context", "")], parts)


def _titled(lines: Iterable[str], parts: Iterable[Part]) -> Iterator[Part]:
    """Lines of their own before the parts, and an empty one after them, since texts are put together as they are."""
    head = "".join(f"{line}\n" for line in lines if line)
    if head:
        yield Text(head)
    yield from parts
    yield Text("\n\n")


# ---------------------------------------------------------------- what the assistant said


def _said(blocks: Iterable[Fields], replay: _Replay) -> Iterator[Part]:
    position = 0
    for block in blocks:
        kind = block.need_text("type")
        if kind == "thinking":
            yield _thought(block, position, replay)
            position += 1
        elif kind == "redacted_thinking":
            yield _hidden(block, replay)
        elif kind == "tool_use":
            yield ToolCall(block.need_text("name"), _arguments(block), block.need_text("id"))
        elif kind == "text":
            yield Text(block.need_text("text", empty=True))
        else:
            raise _no_block(block, ("text", "thinking", "redacted_thinking", "tool_use"))


def _thought(block: Fields, position: int, replay: _Replay) -> Thinking:
    text, signature = block.need_text("thinking", empty=True), block.need_text("signature")
    if not ours(signature) and replay.foreign:
        return SignedThinking(text, signature=signature)
    if replay.signer.verified(signature, text, replay.model, position):
        return Thinking(text)
    found = None if text else replay.signer.opened(signature, replay.model)
    if found is None:
        problem = "Invalid `signature` in `thinking` block: it is not what this model thought there"
        raise block.wrong("signature", problem, "send the block back as it came, or leave it out")
    return found


def _hidden(block: Fields, replay: _Replay) -> Thinking:
    data = block.need_text("data")
    if not ours(data) and replay.foreign:
        return SignedThinking("", redacted=data)
    found = replay.signer.opened(data, replay.model)
    if found is None:
        raise block.wrong("data", "Invalid `data` in `redacted_thinking` block", "send it back as it came")
    return found


def _arguments(block: Fields) -> str:
    """The JSON text of a call; of one that was no JSON, the text that the model wrote."""
    given = block.need_object("input").values
    if list(given) == [INVALID_JSON] and isinstance(given[INVALID_JSON], str):
        return str(given[INVALID_JSON])
    return json.dumps(given, ensure_ascii=False)

"""Chat completions: messages in, text deltas out, on any server that speaks OpenAI's dialect.

Its guarantees are weaker than those of token ids. Servers report tokens for all replies together, some
of them too few, so each delta counts as one token at least.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ponder.engine.dialects import Address, choices_of, count_of, finish_of, index_of, object_of, text_of
from ponder.engine.remote_errors import Refused
from ponder.engine.transport import Transport
from ponder.errors import GarbledReply, Unsupported
from ponder.protocols import Capabilities, ChatChunk, SamplingParams, closing
from ponder.types import Audio, Image, Message, Text, Thinking, ToolCall, ToolResult

CHAT_ONLY = Capabilities(
    tokens=False, chat=True, logprobs=False, score=False, shared_prefill=False, fork=False, exact_cancel=False
)
"""What a server promises that deals in messages alone."""


# ---------------------------------------------------------------- messages


def message_dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """`messages` as OpenAI writes them. Raises Unsupported for a part that has no form there."""
    return [written for message in messages for written in _written(message)]


def _written(message: Message) -> list[dict[str, Any]]:
    results = [part for part in message.parts if isinstance(part, ToolResult)]
    calls = [part for part in message.parts if isinstance(part, ToolCall)]
    thoughts = "".join(part.text for part in message.parts if isinstance(part, Thinking))
    content = [_content(p) for p in message.parts if not isinstance(p, (ToolResult, ToolCall, Thinking))]
    written: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": result.id, "content": result.content} for result in results
    ]
    if results and not (content or calls or thoughts):
        return written
    plain = all(part["type"] == "text" for part in content)
    turn: dict[str, Any] = {
        "role": message.role,
        "content": "".join(part["text"] for part in content) if plain else content,
    }
    if thoughts:
        turn["reasoning_content"] = thoughts
    if calls:
        turn["content"] = turn["content"] or None
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return [*written, turn]


def _content(part: object) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": part.url}}
    if isinstance(part, Audio) and (sound := re.fullmatch(r"data:audio/([\w.+-]+);base64,(.+)", part.url, re.DOTALL)):
        return {"type": "input_audio", "input_audio": {"data": sound[2], "format": sound[1].removeprefix("x-")}}
    raise Unsupported(
        f"a chat server takes no {type(part).__name__.lower()} in this form", "send text, images or data:audio URIs"
    )


# ---------------------------------------------------------------- replies


@dataclass
class _Call:
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass
class _Reply:
    """One reply while it grows."""

    deltas: int = 0
    calls: list[_Call] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)  # the server's index of a call -> its place in `calls`
    ended: bool = False

    def call(self, item: Mapping[str, Any]) -> None:
        """Adds a piece of a tool call.

        Some servers number parallel calls all 0, so a new id, or a name where there is a whole one, opens a new call.
        """
        index = item.get("index", 0)
        function = object_of(item.get("function"))
        identity, name = text_of(item.get("id")), text_of(function.get("name"))
        place = self.places.get(index)
        current = None if place is None else self.calls[place]
        if current is None or (identity and current.id and identity != current.id):
            current = _Call()
            self.places[index] = len(self.calls)
            self.calls.append(current)
        current.id = current.id or identity
        current.name = current.name or name
        arguments = function.get("arguments")
        current.arguments += arguments if isinstance(arguments, str) else ""

    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(ToolCall(c.name, c.arguments, c.id) for c in self.calls)


class Chat:
    """Chat completions of one server. Remembers which optional fields it refused."""

    def __init__(self, wire: Transport, where: Address, *, most: int, templated: bool, effort: bool) -> None:
        self._wire = wire
        self._where = where
        self._templated = templated
        self._effort = effort
        self._refused: set[str] = set()
        self._most = most

    @property
    def most(self) -> int:
        """The number of replies that one request can hold, as far as the server has shown."""
        return 1 if "n" in self._refused else self._most

    async def reply(
        self, messages: Sequence[Message], n: int, params: SamplingParams, think: bool | None
    ) -> AsyncIterator[ChatChunk]:
        """One request: n replies, numbered from 0. A server that refuses n > 1 gives only the first."""
        while True:
            body = self._body(messages, n, params, think)
            begun = False
            try:
                async with closing(self._read(body, body.get("n", 1), params.max_tokens)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
                return
            except Refused as refused:
                name = None if begun else _disliked(refused, body)
                if name is None:
                    raise
                self._refused.add(name)

    def _body(self, messages: Sequence[Message], n: int, params: SamplingParams, think: bool | None) -> dict[str, Any]:
        cap = "max_tokens" if "max_completion_tokens" in self._refused else "max_completion_tokens"
        body: dict[str, Any] = {
            "model": self._where.model,
            "messages": message_dicts(messages),
            "stream": True,
            "temperature": params.temperature,
            cap: params.max_tokens,
        }
        if "stream_options" not in self._refused:
            body["stream_options"] = {"include_usage": True}
        if n > 1 and "n" not in self._refused:
            body["n"] = n
        if params.seed is not None:
            body["seed"] = params.seed
        if params.top_p != 1:
            body["top_p"] = params.top_p
        beyond = {"top_k": params.top_k, "min_p": params.min_p, "ignore_eos": params.ignore_eos}
        if self._templated:
            # Said even where they are off: llama-server would otherwise use values of its own.
            body |= {**beyond, "top_p": params.top_p}
        elif any(beyond.values()):
            names = ", ".join(name for name, value in beyond.items() if value)
            raise Unsupported(f"a chat server takes no {names}", "leave it out, or use an engine that takes token ids")
        if think is not None and self._templated:
            body["chat_template_kwargs"] = {"enable_thinking": think, "thinking": think}
        if think is not None and self._effort:
            body["reasoning_effort"] = "medium" if think else "none"
        return body

    async def _read(self, body: Mapping[str, Any], n: int, cap: int) -> AsyncIterator[ChatChunk]:
        replies = [_Reply() for _ in range(n)]
        usage: Mapping[str, Any] = {}
        last: ChatChunk | None = None
        url = f"{self._where.base}/chat/completions"
        async with closing(self._wire.stream(url, body)) as events:
            async for event in events:
                usage = _larger(usage, object_of(event.get("usage")))
                for choice in choices_of(event):
                    index = index_of(choice, n)
                    chunk = _chunk(index, choice, replies[index], cap)
                    if chunk is None:
                        continue
                    if chunk.finish and all(reply.ended for reply in replies):
                        last = chunk  # held back: the usage that it is to carry comes after it
                    else:
                        yield chunk
                if last and last.finish == "length" and replies[last.index].deltas > cap:
                    break  # the server does not keep to the cap, so it is not worth waiting for what it counts
        if last:
            yield _with_usage(last, usage, replies)


def _chunk(index: int, choice: Mapping[str, Any], reply: _Reply, cap: int) -> ChatChunk | None:
    """What a choice of an event adds to its reply; None where that is nothing."""
    delta = object_of(choice.get("delta"))
    finish = finish_of(choice["finish_reason"])
    thinking = text_of(delta.get("reasoning_content")) or text_of(delta.get("reasoning"))
    answer = _answer(delta.get("content"))
    calls = delta.get("tool_calls")
    calls = [object_of(c) for c in calls] if isinstance(calls, list) else []
    if not (thinking or answer or calls or finish):
        return None
    if reply.ended:
        if reply.deltas > cap:
            reply.deltas += 1
            return None  # the rest of a reply that was cut because its server did not keep to the cap
        raise GarbledReply(f"the server went on with reply {index} after its end")
    if thinking or answer or calls:
        reply.deltas += 1
    if reply.deltas > cap:
        thinking, answer, calls, finish = "", "", [], "length"
    for call in calls:
        reply.call(call)
    reply.ended = finish is not None
    if not (thinking or answer or finish):
        return None
    done: Mapping[str, Any] = (
        {"tool_calls": reply.tool_calls(), "completion_tokens": reply.deltas} if finish is not None else {}
    )
    return ChatChunk(index, thinking, answer, finish=finish, **done)


def _answer(content: Any) -> str:
    """The text of a delta, which a few servers send as a list of parts."""
    if isinstance(content, list):
        return "".join(text_of(object_of(part).get("text")) for part in content)
    return text_of(content)


def _larger(usage: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """The usage that counts more: some servers repeat it for each reply, some grow it with each event."""
    return (
        other
        if other and count_of(other.get("completion_tokens")) >= count_of(usage.get("completion_tokens"))
        else usage
    )


def _with_usage(chunk: ChatChunk, usage: Mapping[str, Any], replies: Sequence[_Reply]) -> ChatChunk:
    """`chunk`, the last of all, with what the other replies leave of the request's count."""
    if not usage:
        return chunk  # which counts its deltas
    others = sum(reply.deltas for i, reply in enumerate(replies) if i != chunk.index)
    completion = max(replies[chunk.index].deltas, count_of(usage.get("completion_tokens")) - others)
    reasoning = object_of(usage.get("completion_tokens_details")).get("reasoning_tokens")
    return replace(
        chunk,
        completion_tokens=completion,
        thinking_tokens=count_of(reasoning) if reasoning is not None else None,
        prompt_tokens=count_of(usage.get("prompt_tokens")),
        prompt_cached=count_of(object_of(usage.get("prompt_tokens_details")).get("cached_tokens")),
    )


def _disliked(refused: Refused, body: Mapping[str, Any]) -> str | None:
    """The optional field of `body` that the server refused, if that is what it says."""
    if refused.status not in (400, 422):
        return None
    for name in ("max_completion_tokens", "stream_options"):
        if name in body and (refused.param == name or name in refused.message):
            return name
    if body.get("n", 1) > 1 and (refused.param == "n" or re.search(r"(?<!\w)n(?!\w)|n_cmpl", refused.message)):
        return "n"
    return None

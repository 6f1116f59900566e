"""Replies in the dialect OpenAI Responses: a whole response, and the events of a stream.

    response.created, response.in_progress,
    (output_item.added, (content_part.added, deltas, done, content_part.done)?, output_item.done)*,
    response.completed | response.incomplete | response.failed

A reply that was cut is incomplete, never completed. A summary of the thinking, where one is asked for, is the thinking
itself: nobody summarizes it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ponder.errors import PonderError
from ponder.protocols import closing
from ponder.server.events import Begun, Call, Content, Reasoning, ReplyEvent, Token, Usage
from ponder.server.failures import Refusal
from ponder.server.in_turn import InTurn, Step, as_refusal, finished, shown
from ponder.server.openai_wire import LEAST_LOGPROB, call_id, logprob_of, spent, told
from ponder.server.reply import Block, Choice, Reply, piece
from ponder.server.request import Request
from ponder.server.signatures import SignedThinking, Signer
from ponder.server.sse import frame

_PREFIXES: Mapping[type, str] = {Reasoning: "rs", Content: "msg", Call: "fc"}
_INCOMPLETE: Mapping[str, str | None] = {"length": "max_output_tokens", "refusal": "content_filter", "cancelled": None}


@dataclass(frozen=True)
class Wire:
    """How a reply is written. created: seconds since 1970. summary: of the thinking is wanted. encrypted: the thinking
    is wanted sealed, too. echo: fields of the request that the response repeats."""

    signer: Signer
    created: int = 0
    summary: bool = False
    encrypted: bool = False
    echo: Mapping[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------- whole


def whole(request: Request, reply: Reply, wire: Wire) -> dict[str, Any]:
    """The response of a finished reply."""
    return _ended(request, reply, wire)


def outputs(request: Request, reply: Reply, wire: Wire) -> list[dict[str, Any]]:
    """The output as it is kept: with what an upstream signed, which the response shows on demand alone."""
    choice = reply.choices.get(0, Choice())
    return [_item(request, wire, choice, *each, keeping=True) for each in enumerate(shown(choice))]


def usage(request: Request, used: Usage | None) -> dict[str, Any] | None:
    """Tokens, of all samples together; None where nobody counted."""
    if used is None:
        return None
    return {
        "input_tokens": used.prompt,
        "input_tokens_details": {"cached_tokens": used.cached, "cache_write_tokens": 0},
        "output_tokens": used.completion,
        "output_tokens_details": {"reasoning_tokens": used.reasoning},
        "total_tokens": used.prompt + used.completion,
        "ponder": spent(request, used),
    }


def _response(request: Request, begun: Begun | None, wire: Wire) -> dict[str, Any]:
    return {
        "id": f"resp_{_bare(request)}",
        "object": "response",
        "created_at": wire.created,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": begun.model if begun else request.model,
        "output": [],
        "usage": None,
        **wire.echo,
    }


def _ended(request: Request, reply: Reply, wire: Wire) -> dict[str, Any]:
    choice = reply.choices.get(0, Choice())
    reason = choice.reason or "cancelled"
    cut = reason in _INCOMPLETE
    return {
        **_response(request, reply.begun, wire),
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": _INCOMPLETE[reason]} if cut else None,
        "output": [_item(request, wire, choice, number, block) for number, block in enumerate(shown(choice))],
        "usage": usage(request, reply.usage),
        "ponder": told(request, reply.begun, reply.usage),
    }


def _failed(request: Request, reply: Reply, wire: Wire, refusal: Refusal) -> dict[str, Any]:
    codes = {"rate_limit_error": "rate_limit_exceeded", "invalid_request_error": "invalid_prompt"}
    error = {"code": codes.get(refusal.kind, "server_error"), "message": str(refusal)}
    return {**_ended(request, reply, wire), "status": "failed", "incomplete_details": None, "error": error}


def _bare(request: Request) -> str:
    return request.id.removeprefix("resp_")


# ---------------------------------------------------------------- items


def _item_id(request: Request, number: int, block: Block) -> str:
    return f"{_PREFIXES[block.kind]}_{_bare(request)}_{number}"


def _opening(request: Request, number: int, block: Block) -> dict[str, Any]:
    """An item without what its deltas bring."""
    head = {"id": _item_id(request, number, block), "status": "in_progress"}
    if block.kind is Reasoning:
        return {**head, "type": "reasoning", "summary": [], "content": []}
    if block.kind is Content:
        return {**head, "type": "message", "role": "assistant", "content": []}
    calls = [event for event in block.events if isinstance(event, Call)]
    id = call_id(request, 0, calls[0].number, next((call.id for call in calls if call.id), ""))
    name = next((call.name for call in calls if call.name), "")
    return {**head, "type": "function_call", "call_id": id, "name": name, "arguments": ""}


def _item(
    request: Request, wire: Wire, choice: Choice, number: int, block: Block, keeping: bool = False
) -> dict[str, Any]:
    """An item as far as it came."""
    cut = choice.reason in _INCOMPLETE or choice.reason is None
    broken = cut and (block is choice.blocks[-1] or not finished(block))
    item = {**_opening(request, number, block), "status": "incomplete" if broken else "completed"}
    if block.kind is Call:
        return {**item, "arguments": block.text}
    if block.kind is Content:
        return {**item, "content": [_part(request, block)]}
    if block.text:
        item["content"] = [{"type": "reasoning_text", "text": block.text}]
        item["summary"] = [{"type": "summary_text", "text": block.text}] if wire.summary else []
    if wire.encrypted or (keeping and (block.signature or block.redacted)):
        thinking = SignedThinking(block.text, signature=block.signature, redacted=block.redacted)
        item["encrypted_content"] = wire.signer.seal(thinking, request.model)
    return item


def _part(request: Request, block: Block) -> dict[str, Any]:
    tokens = [token for event in block.events if isinstance(event, Content) for token in event.tokens]
    return {
        "type": "output_text",
        "text": block.text,
        "annotations": [],
        "logprobs": _logprobs(request, tokens),
    }


def _logprobs(request: Request, tokens: list[Token] | tuple[Token, ...]) -> list[dict[str, Any]]:
    likeliest = request.sampling.logprobs
    if likeliest is None:
        return []
    return [{**_logprob(token), "top_logprobs": [_logprob(each) for each in token.top[:likeliest]]} for token in tokens]


def _logprob(token: Token) -> dict[str, Any]:
    logprob = logprob_of(token)
    found = LEAST_LOGPROB if logprob is None else logprob
    return {"token": token.text, "logprob": found, "bytes": list(token.text.encode("utf-8", "replace"))}


# ---------------------------------------------------------------- stream


async def stream(request: Request, events: AsyncIterator[ReplyEvent], wire: Wire) -> AsyncIterator[bytes]:
    """The frames of a reply. What fails after the first of them is told as `response.failed`, which is the last."""
    writer = _Writer(request, wire)
    async with closing(events) as incoming:
        try:
            async for event in incoming:
                for data in writer.take(event):
                    yield writer.frame(data)
            for data in writer.end():
                yield writer.frame(data)
        except Exception as error:
            if not writer.begun:
                raise
            yield writer.frame(writer.failed(as_refusal(error)))
            if not isinstance(error, PonderError):
                raise  # a fault of ours, which belongs into the log


class _Writer:
    """Turns the events of a reply into those of a stream."""

    def __init__(self, request: Request, wire: Wire) -> None:
        self.begun = False
        self._request, self._wire = request, wire
        self._reply, self._turns = Reply(), InTurn()
        self._sent = 0

    def frame(self, data: dict[str, Any]) -> bytes:
        """One event, with its number in the stream."""
        self._sent += 1
        return frame({**data, "sequence_number": self._sent - 1}, data["type"])

    def take(self, event: ReplyEvent) -> Iterator[dict[str, Any]]:
        """What to send for an event."""
        self._reply.add(event)
        if not self.begun:
            self.begun = True
            response = _response(self._request, self._reply.begun, self._wire)
            yield {"type": "response.created", "response": response}
            yield {"type": "response.in_progress", "response": response}
        if 0 in self._reply.choices:
            yield from self._steps(self._reply.choices[0])

    def end(self) -> Iterator[dict[str, Any]]:
        """What to send when no event comes any more."""
        choice = self._reply.choices.setdefault(0, Choice())
        choice.reason = choice.reason or "cancelled"
        yield from self._steps(choice)
        response = _ended(self._request, self._reply, self._wire)
        yield {"type": f"response.{response['status']}", "response": response}

    def failed(self, refusal: Refusal) -> dict[str, Any]:
        """What to send when it failed."""
        return {"type": "response.failed", "response": _failed(self._request, self._reply, self._wire, refusal)}

    def _steps(self, choice: Choice) -> Iterator[dict[str, Any]]:
        for step in self._turns.steps(choice):
            item: dict[str, Any] = {"id": _item_id(self._request, step.number, step.block)}
            if step.kind == "open":
                item = _opening(self._request, step.number, step.block)
                yield {"type": "response.output_item.added", "output_index": step.number, "item": item}
            elif step.kind == "close":
                item = _item(self._request, self._wire, choice, step.number, step.block)
            yield from self._within(step, item)
            if step.kind == "close":
                yield {"type": "response.output_item.done", "output_index": step.number, "item": item}

    def _within(self, step: Step, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events inside an item, without the item's own."""
        place = {"item_id": item["id"], "output_index": step.number}
        if step.block.kind is Call:
            yield from _arguments(step, item, place)
        elif step.block.kind is Content:
            yield from self._text(step, item, place)
        elif piece(step.block.events[0]):
            yield from self._thinking(step, item, place)

    def _text(self, step: Step, item: Mapping[str, Any], place: dict[str, Any]) -> Iterator[dict[str, Any]]:
        place = {**place, "content_index": 0}
        if step.kind == "open":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield {"type": "response.content_part.added", **place, "part": part}
        elif step.kind == "more" and isinstance(step.event, Content):
            logprobs = _logprobs(self._request, step.event.tokens)
            if step.event.text or logprobs:
                yield {"type": "response.output_text.delta", **place, "delta": step.event.text, "logprobs": logprobs}
        elif step.kind == "close":
            part = item["content"][0]
            done = {"text": part["text"], "logprobs": part["logprobs"]}
            yield {"type": "response.output_text.done", **place, **done}
            yield {"type": "response.content_part.done", **place, "part": part}

    def _thinking(self, step: Step, item: Mapping[str, Any], place: dict[str, Any]) -> Iterator[dict[str, Any]]:
        kinds = [("reasoning_text", "response.content_part", "content_index", "content")]
        if self._wire.summary:
            kinds.append(("summary_text", "response.reasoning_summary_part", "summary_index", "summary"))
        for kind, part, index, name in kinds:
            text = "response.reasoning_text" if name == "content" else "response.reasoning_summary_text"
            if step.kind == "open":
                yield {"type": f"{part}.added", **place, index: 0, "part": {"type": kind, "text": ""}}
            elif step.kind == "more" and (delta := piece(step.event)):
                yield {"type": f"{text}.delta", **place, index: 0, "delta": delta}
            elif step.kind == "close":
                whole = item[name][0]
                yield {"type": f"{text}.done", **place, index: 0, "text": whole["text"]}
                yield {"type": f"{part}.done", **place, index: 0, "part": whole}


def _arguments(step: Step, item: Mapping[str, Any], place: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if step.kind == "more" and (delta := piece(step.event)):
        yield {"type": "response.function_call_arguments.delta", **place, "delta": delta}
    elif step.kind == "close":
        done = {"name": item["name"], "arguments": item["arguments"]}
        yield {"type": "response.function_call_arguments.done", **place, **done}

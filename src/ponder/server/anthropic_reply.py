"""Replies in the dialect Anthropic Messages: a whole message, the events of a stream, errors.

    message_start, ping, (content_block_start, content_block_delta*, content_block_stop)*, message_delta, message_stop

A thinking block ends with its signature: the upstream's own where it gave one, else ours (`signatures`).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ponder.errors import PonderError
from ponder.protocols import closing
from ponder.server.backend import Served
from ponder.server.events import Begun, Call, Content, Reasoning, ReplyEvent, Usage
from ponder.server.failures import Refusal
from ponder.server.in_turn import InTurn, Step, as_refusal, shown
from ponder.server.openai_wire import told
from ponder.server.reply import Block, Choice, Reply, piece
from ponder.server.request import Request
from ponder.server.signatures import SignedThinking, Signer
from ponder.server.sse import frame

INVALID_JSON = "INVALID_JSON"
"""The key under which the arguments of a call stand that are no JSON object, as Anthropic's documentation names it."""

_STOPS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "refusal": "refusal",
    # Cut short by the server: of Anthropic's words only this one says that the text is not whole.
    "cancelled": "max_tokens",
}

_ERRORS = frozenset(
    {
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "rate_limit_error",
        "overloaded_error",
        "timeout_error",
        "api_error",
    }
)


def _event(data: Mapping[str, Any]) -> bytes:
    return frame(data, data["type"])


PING = _event({"type": "ping"})
"""What keeps a silent stream alive."""


# ---------------------------------------------------------------- whole


def whole(request: Request, reply: Reply, signer: Signer) -> dict[str, Any]:
    """The message of a finished reply."""
    choice = reply.choices.get(0, Choice())
    content: list[dict[str, Any]] = []
    for block in shown(choice):
        content.append(_opening(request, block, len(content)) | _filling(request, signer, block, _thoughts(content)))
    message = _message(request, reply.begun)
    return message | {"content": content, **_stop(choice), **_spent(request, reply)}


def usage(used: Usage) -> dict[str, Any]:
    """Tokens. Those of the prompt count as input only where they were computed; cached ones stand beside them."""
    return {
        "input_tokens": used.prompt - used.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": used.cached,
        "output_tokens": used.completion,
        "output_tokens_details": {"thinking_tokens": used.reasoning},
    }


def counted(tokens: int) -> dict[str, Any]:
    """The answer of `POST /v1/messages/count_tokens`."""
    return {"input_tokens": tokens}


def model(served: Served) -> dict[str, Any]:
    """A model, as Anthropic's clients know one."""
    created = datetime.fromtimestamp(served.created, UTC).isoformat().replace("+00:00", "Z")
    limits = {"max_input_tokens": served.context or None, "max_tokens": served.context or None}
    return {"type": "model", "id": served.name, "display_name": served.name, "created_at": created, **limits}


def models(served: Sequence[Served]) -> dict[str, Any]:
    """The list of models, all on one page."""
    data = [model(each) for each in served]
    ids = [each["id"] for each in data] or [None]
    return {"data": data, "first_id": ids[0], "last_id": ids[-1], "has_more": False}


def failure(refusal: Refusal, request_id: str = "") -> dict[str, Any]:
    """An error as Anthropic tells it. A key without money is over its limit: there is no word for it at status 429."""
    kind = refusal.kind if refusal.kind in _ERRORS else "api_error"
    kind = {413: "request_too_large", 429: "rate_limit_error"}.get(refusal.status, kind)
    error = {"type": kind, "message": str(refusal)}
    return {"type": "error", "error": error, "request_id": request_id or None}


def _spent(request: Request, reply: Reply) -> dict[str, Any]:
    """The usage, and what it all cost as ponder counts, which no client of Anthropic's needs."""
    return {
        "usage": usage(reply.usage or Usage()),
        "ponder": told(request, reply.begun, reply.usage),
    }


def _message(request: Request, begun: Begun | None) -> dict[str, Any]:
    return {
        "id": f"msg_{request.id.removeprefix('msg_')}",
        "type": "message",
        "role": "assistant",
        "model": begun.model if begun else request.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage(Usage()),
    }


def _stop(choice: Choice) -> dict[str, Any]:
    if choice.stop_text is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop_text, "stop_details": None}
    reason = choice.reason or "cancelled"
    if reason == "stop" and choice.calls:
        reason = "tool_calls"
    return {"stop_reason": _STOPS[reason], "stop_sequence": None, "stop_details": None}


# ---------------------------------------------------------------- blocks


def _opening(request: Request, block: Block, number: int) -> dict[str, Any]:
    """A block without what its deltas bring."""
    if block.kind is Content:
        return {"type": "text", "text": ""}
    if block.redacted:
        return {"type": "redacted_thinking", "data": block.redacted}
    if block.kind is Reasoning:
        return {"type": "thinking", "thinking": "", "signature": ""}
    calls = [event for event in block.events if isinstance(event, Call)]
    id = next((call.id for call in calls if call.id), f"toolu_{request.id}_{calls[0].number}")
    return {"type": "tool_use", "id": id, "name": next((call.name for call in calls if call.name), ""), "input": {}}


def _filling(request: Request, signer: Signer, block: Block, position: int) -> dict[str, Any]:
    """What the deltas bring."""
    if block.kind is Content:
        return {"text": block.text}
    if block.kind is Call:
        return {"input": _input(block.text)}
    if block.redacted:
        return {}
    signature = _signature(request, signer, block, position)
    return {"thinking": block.text if request.shown.reasoning else "", "signature": signature}


def _signature(request: Request, signer: Signer, block: Block, position: int) -> str:
    """The upstream's signature, ours, or the sealed thinking where the client does not want to see it."""
    if block.text and not request.shown.reasoning:
        return signer.seal(SignedThinking(block.text, signature=block.signature), request.model)
    return block.signature or signer.sign(block.text, request.model, position)


def _thoughts(content: list[dict[str, Any]]) -> int:
    return sum(block["type"] == "thinking" for block in content)


def _input(arguments: str) -> dict[str, Any]:
    """The arguments of a call, as far as they came."""
    found = _read(arguments)
    return {INVALID_JSON: arguments} if found is None else found


def _read(arguments: str) -> dict[str, Any] | None:
    """The object that the text is, or the beginning of one; None where it is neither."""
    from pydantic_core import from_json

    if not arguments.strip():
        return {}
    try:
        found = from_json(arguments, allow_partial=True, allow_inf_nan=False)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class _Arguments:
    """Passes on the arguments of a call while they are the beginning of an object, which clients read as they come.

    They are read anew only once they have grown by a sixteenth, so that long ones take linear time.
    """

    def __init__(self) -> None:
        self._sent = self._held = ""
        self._broken = False

    def feed(self, text: str) -> str:
        """What may be sent now."""
        self._held += text
        if self._broken or len(self._held) * 16 < len(self._sent) or not self._held.strip():
            return ""
        self._broken = _read(self._sent + self._held) is None
        return "" if self._broken else self._take()

    def rest(self) -> str:
        """What is left at the end. Raises Refusal where a beginning was sent that does not go on as JSON."""
        if _read(self._sent + self._held) is None:
            if self._sent:
                raise Refusal(502, "api_error", "the model wrote arguments of a call that are no JSON", "ask again")
            self._held = json.dumps({INVALID_JSON: self._held}, ensure_ascii=False)
        return self._take()

    def _take(self) -> str:
        held, self._held = self._held, ""
        self._sent += held
        return held


# ---------------------------------------------------------------- stream


async def stream(request: Request, events: AsyncIterator[ReplyEvent], signer: Signer) -> AsyncIterator[bytes]:
    """The frames of a reply. What fails after the first of them is told as an `error` event, which is the last."""
    writer = _Writer(request, signer)
    async with closing(events) as incoming:
        try:
            async for event in incoming:
                for data in writer.take(event):
                    yield _event(data)
            for data in writer.end():
                yield _event(data)
        except Exception as error:
            if not writer.begun:
                raise
            yield _event(failure(as_refusal(error), request.id))
            if not isinstance(error, PonderError):
                raise  # a fault of ours, which belongs into the log


class _Writer:
    """Turns the events of a reply into those of a stream."""

    def __init__(self, request: Request, signer: Signer) -> None:
        self.begun = False
        self._request, self._signer = request, signer
        self._reply, self._turns = Reply(), InTurn()
        self._thoughts = 0
        self._arguments = _Arguments()

    def take(self, event: ReplyEvent) -> Iterator[dict[str, Any]]:
        """What to send for an event."""
        self._reply.add(event)
        if not self.begun:
            self.begun = True
            yield {"type": "message_start", "message": _message(self._request, self._reply.begun)}
            yield {"type": "ping"}
        if 0 in self._reply.choices:
            for step in self._turns.steps(self._reply.choices[0]):
                yield from self._tell(step)

    def end(self) -> Iterator[dict[str, Any]]:
        """What to send when no event comes any more."""
        choice = self._reply.choices.setdefault(0, Choice())
        choice.reason = choice.reason or "cancelled"
        for step in self._turns.steps(choice):
            yield from self._tell(step)
        yield {"type": "message_delta", "delta": _stop(choice), **_spent(self._request, self._reply)}
        yield {"type": "message_stop"}

    def _tell(self, step: Step) -> Iterator[dict[str, Any]]:
        delta = partial(_delta, step.number)
        if step.kind == "open":
            block = _opening(self._request, step.block, step.number)
            self._arguments = _Arguments()
            yield {"type": "content_block_start", "index": step.number, "content_block": block}
        elif step.kind == "more":
            yield from self._more(step, delta)
        else:
            yield from self._close(step, delta)
            yield {"type": "content_block_stop", "index": step.number}

    def _more(self, step: Step, delta: partial[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        text = piece(step.event)
        if step.block.kind is Call:
            text = self._arguments.feed(text)
            if text:
                yield delta("input_json_delta", "partial_json", text)
        elif text and step.block.kind is Content:
            yield delta("text_delta", "text", text)
        elif text and self._request.shown.reasoning:
            yield delta("thinking_delta", "thinking", text)

    def _close(self, step: Step, delta: partial[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        if step.block.kind is Call and (rest := self._arguments.rest()):
            yield delta("input_json_delta", "partial_json", rest)
        if step.block.kind is Reasoning and not step.block.redacted:
            signature = _signature(self._request, self._signer, step.block, self._thoughts)
            self._thoughts += 1
            yield delta("signature_delta", "signature", signature)


def _delta(number: int, kind: str, name: str, text: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": number, "delta": {"type": kind, name: text}}

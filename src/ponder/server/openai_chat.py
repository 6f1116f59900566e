"""POST /v1/chat/completions: requests read, replies written, whole or as a stream of chunks.

Thinking streams under a field of its own beside `content`, parallel calls under their own index, and what a client did
not ask for is left out. With `stream_options.include_usage` the last chunk has no choices and tells the usage, which
every other chunk has as null. A failure in the middle is one frame with an error, and nothing comes after it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from ponder.server import openai_messages, openai_thinking
from ponder.server.events import Begun, Call, Content, Ended, Reasoning, ReplyEvent, Token, Usage
from ponder.server.json_body import Body, Fields, opened
from ponder.server.openai_fields import (
    MOST_CHOICES,
    MOST_LIKELIEST,
    check_known,
    metadata_of,
    sampling_of,
    stream_usage,
    user_of,
)
from ponder.server.openai_stream import framed
from ponder.server.openai_wire import FINISH, PLAIN, Wire, call_id, finish_of, logprob_of, told, usage_of
from ponder.server.reply import Choice, Reply
from ponder.server.request import Request, Shown
from ponder.server.wanted import wanted
from ponder.types import Question

READ = (
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "logprobs",
    "top_logprobs",
    "store",
    "max_completion_tokens",
    "max_tokens",
    "safety_identifier",
    *openai_thinking.FIELDS,
)
REFUSED = {
    "functions": "send tools",
    "function_call": "send tool_choice",
    "audio": "ask for text",
    "web_search_options": "send a tool that searches",
    "moderation": "leave it out",
    "guided_json": "send response_format with a json_schema",
    "guided_regex": "leave it out",
    "guided_choice": "send response_format with a json_schema of an enum",
    "guided_grammar": "leave it out",
    "structured_outputs": "send response_format with a json_schema",
}
_PREFIX = "chatcmpl-"


# ---------------------------------------------------------------- the request


def read(body: Body, headers: Mapping[str, str], id: str) -> Request:
    """What a client asks for. Raises Refusal, which names the field."""
    fields = opened(body)
    check_known(fields, READ, REFUSED)
    want = wanted(fields, headers, openai_thinking.thinking_fields(fields), _most_tokens(fields))
    messages = openai_messages.messages_of(fields)
    if not messages and want.prompt is None:
        problem = "is empty" if fields.has("messages") else "is missing"
        raise fields.wrong("messages", problem, "send at least one message")
    tool_choice, tools = openai_messages.tool_choice_of(fields, openai_messages.tools_of(fields))
    return Request(
        id,
        want.model,
        Question(messages, tools=tools),
        n=fields.whole("n", 1, MOST_CHOICES, default=1),
        strategy=want.strategy,
        effort=want.effort,
        budget=want.budget,
        think=want.think,
        deadline=want.deadline,
        sampling=sampling_of(fields, _logprobs(fields)),
        tool_choice=tool_choice,
        shape=openai_messages.shape_of(fields),
        stream=fields.flag("stream", False),
        store=fields.flag("store", False),
        prompt=want.prompt,
        variables=want.variables,
        shown=Shown(
            reasoning=openai_thinking.shows_reasoning(fields), usage=stream_usage(fields), progress=_progress(fields)
        ),
        user=user_of(fields),
        metadata=metadata_of(fields),
        dialect="openai",
    )


def _most_tokens(fields: Fields) -> int | None:
    most, old = fields.whole("max_completion_tokens", 1), fields.whole("max_tokens", 1)
    if most is not None and old is not None and most != old:
        raise fields.wrong("max_tokens", "contradicts max_completion_tokens", "leave max_tokens out")
    return old if most is None else most


def _progress(fields: Fields) -> bool:
    """Whether a page wants to see the samples behind a choice."""
    told = fields.object("ponder")
    return told is not None and told.flag("progress", False)


def _logprobs(fields: Fields) -> int | None:
    likeliest = fields.whole("top_logprobs", 0, MOST_LIKELIEST)
    if fields.flag("logprobs", False):
        return likeliest or 0
    if likeliest:
        raise fields.wrong("top_logprobs", "is there without logprobs", "set logprobs to true")
    return None


# ---------------------------------------------------------------- the whole reply


def whole(request: Request, reply: Reply, wire: Wire = PLAIN) -> dict[str, Any]:
    """A `chat.completion`."""
    choices = [_choice(request, number, reply.choices[number], wire) for number in sorted(reply.choices)]
    return {
        **wire.head(request, reply.begun, "chat.completion", _PREFIX),
        "choices": choices,
        "usage": usage_of(request, reply.usage),
        "ponder": told(request, reply.begun, reply.usage),
    }


def _choice(request: Request, number: int, choice: Choice, wire: Wire) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if choice.calls and not choice.content else choice.content,
        "refusal": None,
    }
    if choice.reasoning and request.shown.reasoning:
        message |= wire.reasoning(choice.reasoning)
    if choice.calls:
        message["tool_calls"] = [
            {
                "id": call_id(request, number, place, call.id),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for place, call in enumerate(choice.calls)
        ]
    return {
        "index": number,
        "message": message,
        "logprobs": _logprobs_of(request, choice.tokens),
        "finish_reason": finish_of(choice),
    }


def _logprobs_of(request: Request, tokens: list[Token] | tuple[Token, ...]) -> dict[str, Any] | None:
    if not tokens or request.sampling.logprobs is None:
        return None
    likeliest = request.sampling.logprobs
    content = [
        {**_logprob(token), "top_logprobs": [_logprob(each) for each in token.top[:likeliest]]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def _logprob(token: Token) -> dict[str, Any]:
    return {"token": token.text, "logprob": logprob_of(token), "bytes": list(token.text.encode("utf-8", "replace"))}


# ---------------------------------------------------------------- the stream


def stream(request: Request, events: AsyncIterator[ReplyEvent], wire: Wire = PLAIN) -> AsyncIterator[bytes]:
    """The frames of a reply, each a `chat.completion.chunk`. Closing it closes `events`."""
    return framed(_Chunks(request, wire), (events,), request.shown.progress)


class _Chunks:
    """Chunks out of events: what has been told of each choice decides what the next chunk of it has to say."""

    def __init__(self, request: Request, wire: Wire) -> None:
        self._request, self._wire = request, wire
        self._head: dict[str, Any] | None = None
        self._open: set[int] = set()
        self._begun: set[int] = set()
        self._calls: set[tuple[int, int]] = set()
        self._usage: Usage | None = None

    def of(self, place: int, event: ReplyEvent) -> Iterator[dict[str, Any]]:
        """The chunks that an event makes."""
        if isinstance(event, Begun):
            self._head = self._wire.head(self._request, event, "chat.completion.chunk", _PREFIX)
            for number in range(self._request.n):
                yield from self._role(number)
        elif isinstance(event, Usage):
            self._usage = event
        elif isinstance(event, (Reasoning, Content, Call, Ended)):
            yield from self._role(event.choice)
            yield from self._told(event)

    def last(self) -> Iterator[dict[str, Any]]:
        """The end of choices that nobody ended."""
        for number in sorted(self._open):
            yield self._chunk(number, {}, finish=finish_of(Choice()))

    def spent(self) -> Iterator[dict[str, Any]]:
        """The usage, where it is known and the client wants it."""
        if self._request.shown.usage and self._usage is not None:
            yield {**self._top(), "choices": [], "usage": usage_of(self._request, self._usage)}

    def _role(self, number: int) -> Iterator[dict[str, Any]]:
        if number not in self._begun:
            self._begun.add(number)
            self._open.add(number)
            yield self._chunk(number, {"role": "assistant", "content": ""})

    def _told(self, event: Reasoning | Content | Call | Ended) -> Iterator[dict[str, Any]]:
        if isinstance(event, Reasoning):
            if event.text and self._request.shown.reasoning:
                yield self._chunk(event.choice, self._wire.reasoning(event.text))
        elif isinstance(event, Content):
            logprobs = _logprobs_of(self._request, event.tokens)
            if event.text or logprobs:
                yield self._chunk(event.choice, {"content": event.text}, logprobs)
        elif isinstance(event, Call):
            yield self._chunk(event.choice, {"tool_calls": [self._call(event)]})
        else:
            self._open.discard(event.choice)
            yield self._chunk(event.choice, {}, finish=FINISH[event.reason])

    def _call(self, event: Call) -> dict[str, Any]:
        piece: dict[str, Any] = {"index": event.number, "function": {"arguments": event.arguments}}
        place = (event.choice, event.number)
        if place in self._calls:
            return piece
        self._calls.add(place)
        id = call_id(self._request, *place, event.id)
        return {**piece, "id": id, "type": "function", "function": {"name": event.name, "arguments": event.arguments}}

    def _chunk(
        self, number: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self._request.shown.usage else {}
        return {**self._top(), "choices": [choice], **usage}

    def _top(self) -> dict[str, Any]:
        # Every chunk of a reply has the same head, `created` included.
        self._head = self._head or self._wire.head(self._request, None, "chat.completion.chunk", _PREFIX)
        return self._head

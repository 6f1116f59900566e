"""The thinking budget where a server deals in messages and keeps its tokens to itself.

Weaker than over token ids, and declared so (`Capabilities.tokens` is False): thinking cannot be closed
in place. The first request gets T - R tokens; if it ends without an answer, a second one shows the
model its thinking and asks for the answer alone, without thinking, in what is left. Counts are the
server's own where it gives them, else one token a delta.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ponder.chat.formats import THINK_TAGS
from ponder.chat.model import Model, with_instruction
from ponder.chat.parse import Parser, Piece
from ponder.errors import BudgetTooSmall, EngineDisconnected, EngineTimeout, NoAnswer
from ponder.protocols import ChatChunk
from ponder.strategies.waiting import next_or_none
from ponder.types import (
    AnswerDelta,
    Budget,
    Cost,
    Event,
    Finish,
    Message,
    Question,
    Sample,
    SampleFinished,
    Span,
    ThinkingDelta,
    ToolCall,
    ToolCalled,
    assistant,
    user,
)

HURRY = "Stop thinking now. Reply with the final answer only."
UNBOUNDED = 4096
"""Tokens of a reply where the budget has no bound: servers want a number."""


@dataclass
class _Reply:
    """A reply being made. Thinking that a server leaves in the answer is taken out of it here."""

    parser: Parser
    pieces: list[Piece] = field(default_factory=list)
    thinking_tokens: int = 0
    answer_tokens: int = 0
    finish: Finish | None = None
    prompt: int = 0
    cached: int = 0

    def feed(self, chunk: ChatChunk) -> list[Event]:
        pieces = [Piece("thinking", chunk.thinking)] if chunk.thinking else []
        pieces += self.parser.feed(chunk.answer)
        pieces += [Piece("tool_call", "", call) for call in chunk.tool_calls]
        thinking = bool(chunk.thinking) or self.parser.state == "thinking"
        if chunk.thinking or chunk.answer or chunk.tool_calls:
            self.thinking_tokens += thinking
            self.answer_tokens += not thinking
        if chunk.completion_tokens is not None:  # the server counts: believe it, but never less than was seen
            seen = self.thinking_tokens + self.answer_tokens
            total = max(chunk.completion_tokens, seen)
            stated = self.thinking_tokens if chunk.thinking_tokens is None else chunk.thinking_tokens
            self.thinking_tokens = min(max(stated, self.thinking_tokens), total)
            self.answer_tokens = total - self.thinking_tokens
        self.prompt += chunk.prompt_tokens or 0
        self.cached += chunk.prompt_cached or 0
        self.finish = chunk.finish or self.finish
        if chunk.finish is not None:
            pieces += self.parser.finish()
        self.pieces += pieces
        return [e for e in map(_event, pieces) if e is not None]

    def text(self, kind: str) -> str:
        return "".join(p.text for p in self.pieces if p.kind == kind).strip()

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(p.call for p in self.pieces if p.call is not None)

    @property
    def used(self) -> int:
        return self.thinking_tokens + self.answer_tokens


def _event(piece: Piece) -> Event | None:
    if piece.kind == "thinking":
        return ThinkingDelta(piece.text)
    if piece.kind == "answer":
        return AnswerDelta(piece.text)
    return ToolCalled(piece.call) if piece.call is not None else None


async def reply_within(model: Model, question: Question, budget: Budget, think: bool = True) -> AsyncIterator[Event]:
    """One reply to `question` within `budget`: deltas, and a SampleFinished.

    Raises BudgetTooSmall below two tokens, NoAnswer where the server gives none even when asked for
    it alone, EngineTimeout where the budget's seconds run out first, EngineError as the engine does.
    """
    tokens = budget.tokens or UNBOUNDED
    if think and tokens < 2:
        raise BudgetTooSmall(f"a budget of {tokens} tokens leaves no room for an answer", "give at least 2")
    started = time.monotonic()
    deadline = None if budget.seconds is None else started + budget.seconds
    messages = list(question.messages)
    if think and not model.format.trained and model.format.instruction:
        messages = list(with_instruction(messages, model.format.instruction))
    reply = _Reply(Parser(THINK_TAGS, tools=False))
    first = min(tokens - budget.reserve if think else tokens, _cap(budget, tokens)) if think else tokens
    calls, empty = 0, True
    for limit, asked, thinking in ((max(1, first), messages, think), (0, [], False)):
        if calls and (not empty or _stopped(model) or budget.calls == calls or reply.used >= tokens):
            break
        if calls:
            asked, limit = [*messages, *_hurried(reply)], tokens - reply.used
            reply.finish, reply.parser = None, Parser(THINK_TAGS, tools=False)
        calls += 1
        async for chunk in _chunks(model, asked, limit, thinking, deadline):
            for event in reply.feed(chunk):
                yield event
        if reply.finish is None and not _stopped(model) and not _late(deadline):
            raise EngineDisconnected("the server's stream ended without a finish", "ask again")
        empty = not reply.text("answer") and not reply.calls
    cost = Cost(
        prompt_computed=reply.prompt - reply.cached,
        prompt_cached=reply.cached,
        thinking=reply.thinking_tokens,
        answer=reply.answer_tokens,
        calls=calls,
        seconds=time.monotonic() - started,
    )
    yield SampleFinished(_sample(reply), model.priced(cost))
    if empty and not _stopped(model):
        if _late(deadline):
            raise EngineTimeout(f"the server gave no answer within {budget.seconds:g} seconds", "allow more")
        raise NoAnswer("the model ended without an answer", "raise the budget, or ask with --no-think")


def _cap(budget: Budget, tokens: int) -> int:
    return tokens if budget.thinking is None else budget.thinking + budget.reserve


def _late(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _stopped(model: Model) -> bool:
    return model.stop is not None and model.stop.is_set()


def _hurried(reply: _Reply) -> Sequence[Message]:
    thinking = reply.text("thinking")
    return (assistant(thinking or "(no answer yet)"), user(HURRY))


def _sample(reply: _Reply) -> Sample:
    spans, position = [], 0
    for piece in reply.pieces:
        spans.append(Span(piece.kind, position, position + len(piece.text)))
        position += len(piece.text)
    return Sample(
        index=0,
        text="".join(p.text for p in reply.pieces),
        finish=reply.finish or "cancelled",
        spans=tuple(spans),
        thinking=reply.text("thinking"),
        answer=reply.text("answer"),
        tool_calls=reply.calls,
        exact=False,
    )


async def _chunks(
    model: Model, messages: Sequence[Message], limit: int, think: bool, deadline: float | None
) -> AsyncIterator[ChatChunk]:
    """The reply's chunks, until time is up or the user says stop."""
    params = replace(model.params, max_tokens=limit)
    stream: Any = model.engine.chat(messages, 1, params, think)
    try:
        while True:
            timeout = None if deadline is None else deadline - time.monotonic()
            try:
                chunk = await next_or_none(stream, model.stop, timeout)
            except StopAsyncIteration:
                return
            if chunk is None:
                return
            yield chunk
    finally:
        await stream.aclose()

"""The thinking budget where a server deals in messages and keeps its tokens to itself.

Weaker than over token ids, and declared so (`Capabilities.tokens` is False): thinking cannot be closed
in place. The first request gets T - R tokens, and thinking 70 % of the time; if it ends without an
answer, a second one shows the model its thinking and asks for the answer alone, without thinking, in
what is left. Counts are the server's own where it gives them, else one token a delta.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from ponder.chat.formats import THINK_TAGS
from ponder.chat.model import Model, with_instruction
from ponder.chat.parse import Parser, Piece
from ponder.errors import BudgetTooSmall, EngineDisconnected, EngineError, EngineTimeout, NoAnswer
from ponder.protocols import ChatChunk
from ponder.strategies.budget import affordable
from ponder.strategies.requests import Limits
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
class _Count:
    """Tokens of one request."""

    thinking: int = 0
    answer: int = 0
    lost: int = 0

    def believe(self, chunk: ChatChunk) -> None:
        """Takes the server's counts, but never less than was seen."""
        if chunk.completion_tokens is None:
            return
        total = max(chunk.completion_tokens, self.thinking + self.answer)
        self.thinking = min(max(chunk.thinking_tokens or 0, self.thinking), total - self.answer)
        self.answer = total - self.thinking


@dataclass
class _Reply:
    """A reply being made by one request or two. Thinking that a server leaves in the answer is taken out here."""

    parser: Parser = field(default_factory=lambda: Parser(THINK_TAGS, tools=False))
    pieces: list[Piece] = field(default_factory=list)
    counts: list[_Count] = field(default_factory=list)
    finish: Finish | None = None
    prompt: int = 0
    cached: int = 0

    def begin(self) -> _Count:
        """Another request begins: what it will cost."""
        self.counts.append(_Count())
        self.finish, self.parser = None, Parser(THINK_TAGS, tools=False)
        return self.counts[-1]

    def feed(self, chunk: ChatChunk) -> list[Event]:
        pieces = [Piece("thinking", chunk.thinking)] if chunk.thinking else []
        pieces += self.parser.feed(chunk.answer)
        pieces += [Piece("tool_call", "", call) for call in chunk.tool_calls]
        count = self.counts[-1]
        if chunk.thinking or (chunk.answer and self.parser.state == "thinking"):
            count.thinking += 1
        elif chunk.answer or chunk.tool_calls:
            count.answer += 1
        count.believe(chunk)
        self.prompt += chunk.prompt_tokens or 0
        self.cached += chunk.prompt_cached or 0
        self.finish = chunk.finish or self.finish
        return self._take(pieces)

    def end(self) -> list[Event]:
        """The request is over: gives out what was held back."""
        return self._take(self.parser.finish())

    def _take(self, pieces: list[Piece]) -> list[Event]:
        self.pieces += pieces
        return [e for e in map(_event, pieces) if e is not None]

    def text(self, kind: str) -> str:
        return "".join(p.text for p in self.pieces if p.kind == kind).strip()

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(p.call for p in self.pieces if p.call is not None)

    @property
    def empty(self) -> bool:
        return not self.text("answer") and not self.calls

    @property
    def used(self) -> int:
        return sum(c.thinking + c.answer + c.lost for c in self.counts)

    def cost(self, started: float) -> Cost:
        return Cost(
            prompt_computed=max(0, self.prompt - self.cached),
            prompt_cached=self.cached,
            thinking=sum(c.thinking for c in self.counts),
            answer=sum(c.answer for c in self.counts),
            cancelled=sum(c.lost for c in self.counts),
            calls=len(self.counts),
            seconds=time.monotonic() - started,
        )


def _event(piece: Piece) -> Event | None:
    if piece.kind == "thinking":
        return ThinkingDelta(piece.text)
    if piece.kind == "answer":
        return AnswerDelta(piece.text)
    return ToolCalled(piece.call) if piece.call is not None else None


async def reply_within(
    model: Model, question: Question, budget: Budget, think: bool = True
) -> AsyncGenerator[Event, None]:
    """One reply to `question` within `budget`: deltas, and a SampleFinished.

    Raises BudgetTooSmall below two tokens, InputError for a bound in dollars without a price, NoAnswer
    where the server gives none even when asked for it alone, Unsupported where the answer has a grammar, which
    messages cannot carry, EngineTimeout where the budget's seconds
    run out first, EngineError as the engine does. What there is by then is told by a SampleFinished first.
    """
    limits, model = Limits(time.monotonic(), budget.seconds, budget.calls, model.stop), model.bound()
    messages: Sequence[Message] = question.messages
    # What thinks with its only call may have no answer at the end of it.
    think = think and budget.thinking != 0 and budget.calls != 1
    if think and not model.format.trained and model.format.instruction:
        messages = with_instruction(messages, model.format.instruction)
    reply, failure = _Reply(), None
    tokens = _tokens_left(model, messages, budget, reply)
    if tokens < (2 if think else 1):
        if budget.dollars is not None and tokens <= 0:
            raise BudgetTooSmall(f"{budget.dollars:g} dollars do not pay for prompt and answer", "give more dollars")
        raise BudgetTooSmall(f"a budget of {tokens} tokens leaves no room for an answer", "give at least 2")
    most = max(1, min(tokens - budget.reserve, _cap(budget, tokens))) if think else tokens
    asked = messages
    try:
        while most > 0:
            async with aclosing(_ask(model, asked, most, think, reply, limits)) as events:
                async for event in events:
                    yield event
            if not reply.empty or limits.stopped or limits.late or limits.made in (2, budget.calls):
                break
            asked, think = [*messages, *_hurried(reply)], False
            most = _tokens_left(model, asked, budget, reply)
    except EngineError as error:
        failure = error
        for event in reply.end():
            yield event
    yield SampleFinished(_sample(reply, failure is not None), model.priced(reply.cost(limits.started)))
    if failure is not None:
        raise failure
    if reply.empty and not limits.stopped:
        if limits.late:
            raise EngineTimeout(f"the server gave no answer within {limits.described}", "allow more")
        raise NoAnswer("the model ended without an answer", "raise the budget, or ask with --no-think")


def _cap(budget: Budget, tokens: int) -> int:
    """Tokens of a reply whose thinking is capped: it holds its answer, too."""
    return tokens if budget.thinking is None else budget.thinking + budget.reserve


def _tokens_left(model: Model, messages: Sequence[Message], budget: Budget, reply: _Reply) -> int:
    """Tokens that the next request may have."""
    # How many tokens a prompt has only the server knows; none has less than a byte.
    prompt = sum(len(message.text.encode()) for message in messages)
    spent = model.priced(reply.cost(0)).dollars or 0.0
    total = affordable(model, prompt, replace(budget, tokens=None), spent)
    rest = (budget.tokens or UNBOUNDED) - reply.used
    return rest if total is None else min(rest, total)


def _hurried(reply: _Reply) -> Sequence[Message]:
    thinking = reply.text("thinking")
    return (assistant(thinking or "(no answer yet)"), user(HURRY))


def _sample(reply: _Reply, failed: bool) -> Sample:
    spans, position = [], 0
    for piece in reply.pieces:
        spans.append(Span(piece.kind, position, position + len(piece.text)))
        position += len(piece.text)
    return Sample(
        index=0,
        text="".join(p.text for p in reply.pieces),
        finish="error" if failed else reply.finish or "cancelled",
        spans=tuple(spans),
        thinking=reply.text("thinking"),
        answer=reply.text("answer"),
        tool_calls=reply.calls,
        exact=False,
    )


async def _ask(
    model: Model, messages: Sequence[Message], most: int, think: bool, reply: _Reply, limits: Limits
) -> AsyncGenerator[Event, None]:
    """One request, until its end, until time is up, or until the user says stop.

    Raises EngineDisconnected for a stream that ends without a finish.
    """
    limits.made += 1
    count = reply.begin()
    stream: Any = model.engine.chat(messages, 1, replace(model.params, max_tokens=most), think)
    try:
        while reply.finish is None:
            # Without an answer by now, there has to be time for asking a second time.
            wait = limits.wait(thinking=think and not count.answer)
            chunk: ChatChunk | None = await next_or_none(stream, model.stop, wait)
            if chunk is None:
                break
            for event in reply.feed(chunk):
                yield event
    except StopAsyncIteration:
        raise EngineDisconnected("the server's stream ended without a finish", "ask again") from None
    finally:
        await stream.aclose()
        count.lost += getattr(stream, "undelivered", 0)
    for event in reply.end():
        yield event

"""One sample under a budget: what has been said, and what has to happen next. No input or output.

The thinking budget is a state machine (DESIGN, "The thinking budget"): before thinking, thinking,
closing, answering, done. `Draft.next` answers what to do; whoever drives it does it and feeds back.

    thinking   up to K tokens, the last `grace` of them one by one, looking for the end of a sentence
    closing    the closing marker is written; where thinking ended below the minimum, "Wait" instead
    answering  what is left, of which L tokens stay back until something has been answered
    last       nothing answered: the opener ("The answer is") is written, and a token forced

    K = T - R - |closing|        T: tokens of the sample, R: reserved for the answer, R >= L
    L = |opener| + 4             without an opener where that does not fit into T

Source of "Wait": Muennighoff et al., s1: Simple test-time scaling (2025), section 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ponder.chat.formats import ThinkingFormat
from ponder.chat.parse import Parser, Piece
from ponder.errors import BudgetTooSmall
from ponder.protocols import Chunk
from ponder.types import (
    AnswerDelta,
    Cost,
    Event,
    Finish,
    Sample,
    Span,
    ThinkingDelta,
    ToolCall,
    ToolCalled,
)

_SENTENCE_END = re.compile(r"(?:[.!?。！？…][\"'”’)\]]*|\n)\s*$")


LEAST_ANSWER = 4
"""Tokens that an answer needs at the very least: " 1,234" has as many."""


@dataclass(frozen=True)
class Written:
    """A text of ponder's own and its token ids."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """How one sample may spend its tokens; see the module's equations."""

    tokens: int
    thinking: int
    reserve: int
    grace: int
    min_thinking: int
    think: bool
    closing: Written
    opener: Written
    wait: Written

    @property
    def last(self) -> int:
        """Tokens that force an answer out of a model that gives none."""
        return len(self.opener.ids) + LEAST_ANSWER


def plan(
    tokens: int, reserve: int, thinking: int | None, min_thinking: int, think: bool,
    closing: Written, opener: Written, wait: Written,
) -> Plan:  # fmt: skip
    """The plan of a sample of `tokens` tokens. Raises BudgetTooSmall where no answer fits.

    Without room for a single token of thinking the model is asked to answer at once.
    """
    if tokens < LEAST_ANSWER:
        raise BudgetTooSmall(
            f"a budget of {tokens} tokens leaves no room for an answer", f"give at least {LEAST_ANSWER} a sample"
        )
    if len(opener.ids) + LEAST_ANSWER > tokens:
        opener = Written("", ())
    reserve = max(reserve, len(opener.ids) + LEAST_ANSWER)
    reserve = min(reserve, tokens)
    room = tokens - reserve - len(closing.ids)
    cap = room if thinking is None else min(room, thinking)
    think = think and cap > 0
    return Plan(
        tokens=tokens,
        thinking=max(cap, 0),
        reserve=reserve,
        grace=min(16, cap // 4) if think else 0,
        min_thinking=min(min_thinking, cap) if think else 0,
        think=think,
        closing=closing,
        opener=opener,
        wait=wait,
    )


@dataclass(frozen=True)
class Generate:
    """Ask the engine for at most `tokens` more."""

    tokens: int
    ignore_eos: bool = False


@dataclass(frozen=True)
class Write:
    """Put `written` into the sequence."""

    written: Written


@dataclass(frozen=True)
class Restore:
    """Put `text` back, whose token was dropped because it also held something unwanted."""

    text: str


Action = Generate | Write | Restore | None


@dataclass
class Draft:
    """A sample being made. `prompt_ids` end where the model goes on; `inside` thinking or not."""

    index: int
    prompt_ids: tuple[int, ...]
    format: ThinkingFormat
    plan: Plan
    inside: bool
    end_ids: frozenset[int] = frozenset()
    tools: bool = False
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    hurry: bool = False
    """Thinking has to end now: time is running out."""
    halted: bool = False
    """Nothing more may be asked of the engine: time is up, or the user said stop."""
    terse: bool = False
    """Engine calls are running out: no token by token grace."""

    def __post_init__(self) -> None:
        self._parser = Parser(self.format, inside=self.inside, tools=self.tools)
        self._pieces: list[Piece] = []
        self._ends: list[int] = []  # length of the text after each id
        self._length = 0
        self._tail = ""  # the last of the text, markers and what the parser holds back included
        self._pending = 0  # ids at the end that are nothing but the beginning of a character
        self._straddling = ""  # what the id before those gave, if it began that character
        self._finish: Finish | None = None
        self._ended = False  # the last id is an end-of-turn token
        self._opened = False
        self._owed: list[Action] = []
        self._unsaid: list[Event] = []
        self._sampled = {"thinking": 0, "answer": 0}
        self._cancelled = 0
        self._waited = 0
        self.deaf = False
        """Further tokens of the request under way are not wanted."""

    # ------------------------------------------------------------ what has been said

    @property
    def thinking(self) -> str:
        return "".join(p.text for p in self._pieces if p.kind == "thinking").strip()

    @property
    def answer(self) -> str:
        return "".join(p.text for p in self._pieces if p.kind == "answer").strip()

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(p.call for p in self._pieces if p.call is not None)

    @property
    def written(self) -> int:
        return self.mask.count(False)

    @property
    def used(self) -> int:
        """Tokens of the budget that are gone."""
        return sum(self._sampled.values()) + self._cancelled + self.written

    @property
    def thought(self) -> int:
        """Tokens of thinking so far, "Wait"s included."""
        return self._sampled["thinking"] + self._waited

    @property
    def empty(self) -> bool:
        """Nothing has been answered: no word beyond the opener, and no call."""
        said = self.answer.removeprefix(self.format.answer_opener)
        return not said.strip(" .:*\n") and not self.calls

    def cost(self) -> Cost:
        """What this sample's tokens cost; the prompt and the time are the driver's to add."""
        return Cost(cancelled=self._cancelled, written=self.written, **self._sampled)

    def sample(self) -> Sample:
        """The finished sample."""
        spans, position = [], 0
        for piece in self._pieces:
            spans.append(Span(piece.kind, position, position + len(piece.text)))
            position += len(piece.text)
        return Sample(
            index=self.index,
            text="".join(p.text for p in self._pieces),
            prompt_ids=self.prompt_ids,
            ids=tuple(self.ids),
            mask=tuple(self.mask),
            logprobs=tuple(self.logprobs),
            finish="cancelled" if self.halted else self._finish or "length",
            spans=tuple(spans),
            thinking=self.thinking,
            answer=self.answer,
            tool_calls=self.calls,
        )

    @property
    def still_thinking(self) -> bool:
        """What the engine says next is thinking, or may turn out to be."""
        return self._parser.state == "thinking" or (self._parser.state == "before" and self.plan.think)

    # ------------------------------------------------------------ what comes in

    def feed(self, chunk: Chunk) -> list[Event]:
        """Takes some tokens of the engine's."""
        self._cancelled += chunk.lost
        if self.deaf:
            self._cancelled += len(chunk.ids)
            return []
        self._append(chunk.ids, chunk.text, True, chunk.logprobs or (None,) * len(chunk.ids))
        self._note_pending(chunk)
        self._finish = chunk.finish
        # An engine that does not know its end-of-turn tokens shows them by their lack of text.
        last = chunk.ids[-1] if chunk.ids else -1
        self._ended = last in self.end_ids if self.end_ids else bool(chunk.ids) and not chunk.text
        was = self._parser.state
        pieces = self._parser.feed(chunk.text)
        now = self._parser.state
        self._sampled["thinking" if now == "thinking" or self.still_thinking else "answer"] += len(chunk.ids)
        if was == "thinking" and now == "answer" and self.thought < self.plan.min_thinking:
            return self._cut(pieces, self.plan.wait)
        if was != "thinking" and now == "thinking" and not self.plan.think and self.empty and not self._opened:
            return self._cut(pieces, self.plan.opener)
        return self._take(pieces)

    def _note_pending(self, chunk: Chunk) -> None:
        if chunk.pending and not chunk.text:
            self._pending += len(chunk.ids)
        else:
            self._pending = 0
            self._straddling = chunk.text if chunk.pending else ""

    def write(self, written: Written) -> list[Event]:
        """Puts a text of ponder's own into the sequence."""
        self._append(written.ids, written.text, False, (None,) * len(written.ids))
        self._finish = None
        if written is self.plan.wait:
            self._waited += len(written.ids)
        if written is self.plan.opener or (written is self.plan.closing and self.format.keep_close):
            self._opened = True
        return self._take(self._parser.feed(written.text))

    def restore(self, text: str, ids: Sequence[int]) -> None:
        """Puts back what `Restore` asked for: shown already, so nothing is shown."""
        self._append(ids, text, False, (None,) * len(ids))

    def end(self) -> list[Event]:
        """Nothing more comes: gives out what was held back."""
        self._drop(self._pending)
        self._pending = 0
        return self._take(self._parser.finish())

    def interrupted(self) -> None:
        """The engine went away: the sequence so far is what the next request continues."""
        self._finish = None

    def wasted(self, tokens: int) -> None:
        """Counts tokens that the engine generated and nobody read."""
        self._cancelled += tokens

    # ------------------------------------------------------------ what has to happen

    def next(self) -> Action:
        """The next thing to do, or None at the end."""
        self.deaf = False
        if self._owed:
            return self._owed.pop(0)
        left = self.plan.tokens - self.used
        if self.still_thinking:
            return self._next_thinking(left)
        return self._next_answering(left)

    def _next_thinking(self, left: int) -> Action:
        if self._finish == "stop":
            self._drop_end()
            if self.thought < self.plan.min_thinking and left > self._keep() + len(self.plan.wait.ids):
                return Write(self.plan.wait)
            return self._close(left)
        room = min(self.plan.thinking - self.thought, left - self._keep())
        if self.halted:
            return None
        if room > self.plan.grace and not self.hurry:
            return Generate(room - self.plan.grace)
        if room > 0 and not self.hurry and not self.terse and not self._at_sentence_end():
            return Generate(1)
        return self._close(left)

    def _close(self, left: int) -> Action:
        left -= self._drop_pending(left - len(self.plan.closing.ids) - self.plan.last)
        if left >= len(self.plan.closing.ids) + (self.plan.last if self.empty else 0):
            return self._after_owed(Write(self.plan.closing))
        # A second think block took what was left for its marker.
        if not self.empty:
            return None
        self._unsaid = self._take(self._parser.finish())
        self._parser = Parser(self.format, inside=False, tools=self.tools)
        self._parser.feed(self.format.answer_opener)  # past "before": what comes now is answer
        self._finish = "stop"
        return self._after_owed(self._next_answering(left))

    def _after_owed(self, action: Action) -> Action:
        if not self._owed:
            return action
        self._owed.append(action)
        return self._owed.pop(0)

    def _next_answering(self, left: int) -> Action:
        if self.halted or (self._finish == "stop" and not self.empty):
            return None
        if self._opened or not self.empty:
            return Generate(left if not self.empty else 1, ignore_eos=self.empty) if left > 0 else None
        if self._finish != "stop" and left > self.plan.last:
            return Generate(left - self.plan.last)
        self._drop_end()
        self._drop_pending(0)
        return Write(self.plan.opener)

    def _keep(self) -> int:
        """Tokens that thinking may not touch."""
        return self.plan.reserve + len(self.plan.closing.ids)

    def _at_sentence_end(self) -> bool:
        return not (self._pending or self._straddling) and bool(_SENTENCE_END.search(self._tail))

    # ------------------------------------------------------------ bookkeeping

    def _append(self, ids: Sequence[int], text: str, sampled: bool, logprobs: Sequence[float | None]) -> None:
        self.ids += ids
        self.mask += [sampled] * len(ids)
        self.logprobs += logprobs
        # A chunk of several tokens says only where its text ends: all its ids get that place.
        self._length += len(text)
        self._tail = (self._tail + text)[-80:]
        self._ends += [self._length] * len(ids)

    def _take(self, pieces: Sequence[Piece]) -> list[Event]:
        self._pieces += pieces
        events, self._unsaid = self._unsaid, []
        for piece in pieces:
            if piece.kind == "thinking":
                events.append(ThinkingDelta(piece.text, self.index))
            elif piece.kind == "answer":
                events.append(AnswerDelta(piece.text, self.index))
            elif piece.call is not None:
                events.append(ToolCalled(piece.call, self.index))
        return events

    def _drop(self, count: int, kind: Literal["thinking", "answer"] | None = None) -> None:
        """Takes the last `count` sampled tokens out of the sequence: they cost, and are not in it."""
        for _ in range(count):
            self.ids.pop()
            self.mask.pop()
            self.logprobs.pop()
            self._ends.pop()
        self._cancelled += count
        chosen = kind or ("answer" if self._parser.state == "answer" or not self.plan.think else "thinking")
        taken = min(count, self._sampled[chosen])
        self._sampled[chosen] -= taken
        self._sampled["answer" if chosen == "thinking" else "thinking"] -= count - taken

    def _drop_end(self) -> None:
        """Takes back the token that ended the turn."""
        if self._finish == "stop" and self.ids and self._ended:
            self._drop(1)
        self._finish = None

    def _drop_pending(self, room: int) -> int:
        """Takes back the tokens of an unfinished character; returns the tokens it may cost to mend that.

        A token that also holds text which was shown goes too if `room` suffices to write that text
        again, at worst a token a byte.
        """
        self._drop(self._pending)
        text, self._pending, self._straddling = self._straddling, 0, ""
        most = len(text.encode())
        if not text or most > room:
            return 0
        self._drop(1)
        self._length -= len(text)
        self._owed.append(Restore(text))
        return most

    def _cut(self, pieces: Sequence[Piece], instead: Written) -> list[Event]:
        """A marker came that is not wanted: forgets it and all after it, and writes something instead.

        Thinking that closed too early waits; an answer that was to come at once, and opened thinking,
        is begun. A token that holds both the end of what stays and the beginning of the marker goes
        too; what stays of it may have been shown already, and is put back.
        """
        unwanted = next(i for i, p in enumerate(pieces) if p.kind != ("thinking" if self.plan.think else "answer"))
        text = "".join(p.text for p in [*self._pieces, *pieces[:unwanted]])
        position = next((i for i, end in enumerate(self._ends) if end > len(text)), len(self._ends))
        begin = self._ends[position - 1] if position else 0
        tail = text[begin:]
        needed = len(tail.encode()) + len(instead.ids) + (self._keep() if self.plan.think else LEAST_ANSWER) + 1
        if self.plan.tokens - self.used < needed:
            return self._take(pieces)
        events = self._take(pieces[:unwanted])
        self._drop(len(self.ids) - position)
        self._length = begin
        self._tail = text[:begin][-80:]
        self._parser = Parser.resume(self.format, text, inside=self.inside, tools=self.tools)
        self._pending, self._straddling, self._finish, self.deaf = 0, "", "length", True
        if tail:
            self._owed.append(Restore(tail))
        self._owed.append(Write(instead))
        return events

"""One sample under a budget: what has been said, and what has to happen next. No input or output.

The thinking budget is a state machine (DESIGN, "The thinking budget"): before thinking, thinking,
closing, answering, done. `Draft.next` answers what to do; whoever drives it does it and feeds back.

    thinking   up to K tokens, the last `grace` of them one by one, looking for the end of a sentence
    closing    the closing marker is written; where thinking ended below the minimum, "Wait" instead
    answering  what is left, of which L tokens stay back until something has been answered
    bound      as answering, under a grammar: what is answered is complete, or cut by the budget
    last       nothing answered: the opener ("The answer is") is written; if that is not enough, a token is forced

    K = T - R - |closing|        T: tokens of the sample, R: reserved for the answer, R >= L
    L = |opener| + 4             without an opener where that does not fit into T

No request continues inside a UTF-8 character, since servers decode the text of each request anew:
the first bytes of an unfinished character are dropped, and cost.

Source of "Wait": Muennighoff et al., s1: Simple test-time scaling (2025), section 3.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ponder.chat.answer_grammar import literal, of_calls
from ponder.chat.formats import ThinkingFormat
from ponder.chat.parse import Parser, Piece, State
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

_Kind = Literal["thinking", "answer", "written"]

_SENTENCE_END = re.compile(r"(?:[.!?。！？…][\"'”’)\]]*|\n)\s*$")


_NO_WORD = " .:*\n"

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
    """Ask the engine for at most `tokens` more; of `grammar`, which has taken in the last `consumed` tokens."""

    tokens: int
    ignore_eos: bool = False
    grammar: str = ""
    consumed: int = 0


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
    hurry: bool = False
    """Thinking has to end now: time or engine calls are running out."""
    halted: bool = False
    """Nothing more may be asked of the engine: time is up, or the user said stop."""
    terse: bool = False
    """Engine calls are running out: no token by token grace."""
    final: bool = False
    """The next engine call is the last."""
    inherited: int = 0
    """So many ids at the beginning are another draft's, which accounts for them."""
    grammar: str = ""
    """What the answer is bound to. Thinking then ends with ponder's closing marker alone, and the answer follows it."""

    def __post_init__(self) -> None:
        self._parser = Parser(self.format, inside=self.inside, tools=self.tools)
        self._pieces: list[Piece] = []
        self._kinds: list[_Kind] = []  # what each id was counted as
        self._logprobs: list[float | None] = []
        self._text = ""  # of all ids, what the parser holds back included
        self._whole = [(0, 0)]  # (ids, characters) of every beginning that ends no character halfway
        self._torn = False  # the last thing done was to drop half a character
        self._finish: Finish | None = None
        self._ended = False  # the last id is an end-of-turn token
        self._opened = False
        self._forced = False
        self._owed: list[Action] = []
        self._unwanted: tuple[list[Piece], Written] | None = None
        self._unsaid: list[Event] = []
        self._thinking = 0
        self._cancelled = 0
        self._waited = 0
        self._bound_from: int | None = None  # where the answer begins that is bound
        self._stuck = False  # there is no room to begin that
        self.deaf = False
        """Further tokens of the request under way are not wanted."""
        if self.grammar and not self.plan.think:
            self._bind()

    def _bind(self) -> None:
        """What comes from now on is the answer that the grammar asks for, to the letter."""
        self._parser = Parser(literal(self.format, self.grammar), tools=self.tools and of_calls(self.grammar))
        self._bound_from = len(self.ids)

    def fork(self, index: int) -> Draft:
        """Another draft that goes on from here. What was sampled and dropped so far is this one's to account for."""
        twin = copy.copy(self)
        twin.index, twin.inherited = index, len(self.ids)
        twin._parser = self._parser.fork()
        for name in ("ids", "_pieces", "_kinds", "_logprobs", "_whole", "_owed"):
            setattr(twin, name, list(getattr(self, name)))
        twin._unsaid, twin._cancelled = [], 0
        return twin

    # ------------------------------------------------------------ what has been said

    @property
    def thinking(self) -> str:
        return "".join(p.text for p in self._pieces if p.kind == "thinking").strip()

    @property
    def answer(self) -> str:
        return "".join(p.text for p in self._pieces if p.kind == "answer").strip()

    @property
    def said(self) -> str:
        """The text of all ids."""
        return self._text

    @property
    def own(self) -> int:
        """Tokens of the budget that this draft has used, without what it inherited."""
        return self.used - self.inherited

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(p.call for p in self._pieces if p.call is not None)

    @property
    def written(self) -> int:
        return self._kinds.count("written")

    @property
    def used(self) -> int:
        """Tokens of the budget that are gone."""
        return len(self.ids) + self._cancelled

    @property
    def thought(self) -> int:
        """Tokens of thinking so far, "Wait"s included."""
        return self._thinking + self._waited

    @property
    def empty(self) -> bool:
        """Nothing has been answered: no word beyond the opener, and no call."""
        if self._bound_from is not None and self._finish == "stop":
            return False  # whatever it is, it is all that was asked for
        said = self.answer
        for opener in (self.format.answer_opener, *(self.format.close_markers if self.format.keep_close else ())):
            said = said.removeprefix(opener)
        return not said.strip(_NO_WORD) and not self.calls

    def cost(self) -> Cost:
        """What this sample's own tokens cost; the prompt and the time are the driver's to add."""
        own = self._kinds[self.inherited :]
        thinking, answer = own.count("thinking"), own.count("answer")
        return Cost(thinking=thinking, answer=answer, cancelled=self._cancelled, written=own.count("written"))

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
            mask=tuple(kind != "written" for kind in self._kinds),
            logprobs=tuple(self._logprobs),
            finish=self._finished(),
            spans=tuple(spans),
            thinking=self.thinking,
            answer=self.answer,
            tool_calls=self.calls,
        )

    def _finished(self) -> Finish:
        if self._finish == "stop" and not self.empty and not self.still_thinking:
            return "stop"  # halted or not: nothing was left to say
        return "cancelled" if self.halted and self.used < self.plan.tokens else "length"

    @property
    def still_thinking(self) -> bool:
        """What the engine says next is thinking, or may turn out to be."""
        if self._bound_from is not None:
            return False
        return self._parser.state == "thinking" or (self._parser.state == "before" and self.plan.think)

    # ------------------------------------------------------------ what comes in

    def feed(self, chunk: Chunk) -> list[Event]:
        """Takes some tokens of the engine's."""
        self._cancelled += chunk.lost
        if self.deaf:
            self._cancelled += len(chunk.ids)
            return []
        was = self._parser.state
        pieces = self._parser.feed(chunk.text)
        kind: _Kind = "thinking" if self.still_thinking else "answer"
        self._append(chunk.ids, chunk.text, kind, chunk.logprobs, chunk.pending)
        self._finish = chunk.finish
        if instead := self._unwelcome(was, pieces):
            self._unwanted, self.deaf = (pieces, instead), True
            return []
        # A block of thinking that began in the answer has no more than what the first one left.
        self.deaf = self._parser.state == "thinking" and self.thought >= self.plan.thinking
        return self._take(pieces)

    def _unwelcome(self, was: State, pieces: Sequence[Piece]) -> Written | None:
        """What to write instead where thinking closed too early, or opened though it was not asked for.

        An answer that is to be bound must not have begun: where thinking closed, ponder's own marker replaces it.
        """
        now = self._parser.state
        if self.grammar:
            if self._bound_from is not None or (was == now and all(p.kind in ("thinking", "marker") for p in pieces)):
                return None
            return self.plan.wait if self._short(was, pieces) else self.plan.closing
        if was == now or not self.empty or self._opened:
            return None
        if was == "thinking" and self.plan.min_thinking and not self.hurry:
            return self.plan.wait if self._short(was, pieces) else None
        return self.plan.opener if now == "thinking" and not self.plan.think else None

    def _short(self, was: State, pieces: Sequence[Piece]) -> bool:
        """Whether thinking that closes in `pieces` is too short."""
        if was != "thinking" or not self.plan.min_thinking or self.hurry:
            return False
        before, _ = self._boundary(self._wanted(pieces))
        return self._kinds[:before].count("thinking") + self._waited < self.plan.min_thinking

    def write(self, written: Written) -> list[Event]:
        """Puts a text of ponder's own into the sequence."""
        self._append(written.ids, written.text, "written")
        self._finish = None
        if written is self.plan.wait:
            self._waited += len(written.ids)
        if written is self.plan.opener or (written is self.plan.closing and self.format.keep_close):
            self._opened = True
        pieces = self._parser.feed(written.text)
        if self.grammar and written is self.plan.closing:
            pieces += self._parser.finish()
            self._bind()
        return self._take(pieces)

    def restore(self, text: str, ids: Sequence[int]) -> None:
        """Puts back what `Restore` asked for: shown already, so nothing is shown."""
        self._append(ids, text, "written")

    def end(self) -> list[Event]:
        """Nothing more comes: gives out what was held back."""
        if self._unwanted:
            self._unsaid, self._unwanted = self._take(self._unwanted[0]), None
        if self._half() == "":
            self._drop_to(*self._whole[-1])
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
        self._settle()
        self._drop_half()
        if self._owed:
            return self._owed.pop(0)
        if self.halted or self._stuck:
            return None
        left = self.plan.tokens - self.used
        return self._next_thinking(left) if self.still_thinking else self._next_answering(left)

    def _next_thinking(self, left: int) -> Action:
        if self._finish == "stop":
            self._drop_end()
            more = self.thought < self.plan.min_thinking and left > self._keep() + len(self.plan.wait.ids)
            return Write(self.plan.wait) if more and not self.hurry else self._close(left)
        over = self.hurry or self._half() is not None
        room = 0 if over else min(self.plan.thinking - self.thought, left - self._keep())
        if room > self.plan.grace:
            return Generate(room - self.plan.grace)
        if room > 0 and not self.terse and not _SENTENCE_END.search(self._text[-80:]):
            return Generate(min(room, self._step()))
        return self._close(left)

    def _close(self, left: int) -> Action:
        if left >= len(self.plan.closing.ids) + (LEAST_ANSWER if self.empty else 0):
            return Write(self.plan.closing)
        if self.grammar:
            self._unsaid = self._take(self._parser.finish())
            self._bind()
            return self._next_answering(left)
        # A second think block took what was left for its marker.
        if not self.empty:
            return None
        self._unsaid = self._take(self._parser.finish())
        self._parser = Parser(self.format, inside=False, tools=self.tools)
        self._parser.feed(self.format.answer_opener)  # past "before": what comes now is answer
        self._finish = "stop"  # of the thinking
        return self._next_answering(left)

    def _next_answering(self, left: int) -> Action:
        if self._bound_from is not None:
            over = left <= 0 or self._finish == "stop" or self._half() is not None
            consumed = len(self.ids) - self._bound_from
            return None if over else Generate(left, grammar=self.grammar, consumed=consumed)
        if left <= 0 or (self._finish == "stop" and not self.empty):
            return None
        if not self.empty:
            return Generate(left) if self._half() is None else None
        if self._finish != "stop" and left > self.plan.last and not self._forced:
            return Generate(left if self.final else left - self.plan.last)
        self._drop_end()
        if not (self._opened or self.answer.strip(_NO_WORD)) and left > len(self.plan.opener.ids):
            return Write(self.plan.opener)
        step = LEAST_ANSWER if self._forced or self.hurry else self._step()
        self._forced = True
        return Generate(min(left, step), ignore_eos=True)

    def _keep(self) -> int:
        """Tokens that thinking may not touch."""
        return self.plan.reserve + len(self.plan.closing.ids)

    def _step(self) -> int:
        """Tokens to ask for where one would do: a character that was dropped has up to four."""
        return 4 if self._torn else 1

    # ------------------------------------------------------------ bookkeeping

    def _append(
        self,
        ids: Sequence[int],
        text: str,
        kind: _Kind,
        logprobs: Sequence[float | None] = (),
        pending: bool = False,
    ) -> None:
        self.ids += ids
        self._kinds += [kind] * len(ids)
        self._thinking += len(ids) if kind == "thinking" else 0
        self._logprobs += logprobs or (None,) * len(ids)
        self._text += text
        if ids:
            self._torn = self._torn and kind == "written"
            # An engine that does not know its end-of-turn tokens shows them by their lack of text.
            self._ended = ids[-1] in self.end_ids if self.end_ids else not (text or pending)
        if (ids or text) and not pending:
            self._whole.append((len(self.ids), len(self._text)))

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

    def _drop_to(self, ids: int, characters: int) -> None:
        """Takes all that follows out of the sequence: what was sampled of it costs."""
        dropped, own = self._kinds[ids:], self._kinds[max(ids, self.inherited) :]
        self._cancelled += len(own) - own.count("written")
        self._thinking -= dropped.count("thinking")
        self.inherited = min(self.inherited, ids)
        del self.ids[ids:], self._kinds[ids:], self._logprobs[ids:]
        self._text = self._text[:characters]
        while self._whole[-1][0] > ids:
            self._whole.pop()
        self._ended = False

    def _drop_end(self) -> None:
        """Takes back the token that ended the turn."""
        if self._finish == "stop" and self._ended:
            self._drop_to(len(self.ids) - 1, len(self._text))
        self._finish = None

    def _half(self) -> str | None:
        """What the tokens of an unfinished character at the end gave beside it; None without such."""
        ids, characters = self._whole[-1]
        return self._text[characters:] if len(self.ids) > ids else None

    def _drop_half(self) -> None:
        """Takes back the tokens of an unfinished character.

        What else they gave was shown already and is written again, at worst a token a byte; where
        there is no room for that they stay.
        """
        half = self._half()
        keep = self._keep() if self.still_thinking else self.plan.last if self.empty else 0
        room = self.plan.tokens - self.used - keep
        if half is None or len(half.encode()) > max(0, room):
            return
        self._drop_to(*self._whole[-1])
        self._torn = True
        if half:
            self._owed.append(Restore(half))

    def _settle(self) -> None:
        """Decides on an unwanted marker, now that the request which gave it has cost what it costs.

        With room enough, the marker and all after it are forgotten, and something is written instead:
        thinking that closed too early waits; an answer that was to come at once is begun. A token that
        holds both the end of what stays and the beginning of the marker goes too; what stays of it
        was shown already, and is put back.
        """
        if self._unwanted is None:
            return
        (pieces, instead), self._unwanted = self._unwanted, None
        wanted = self._wanted(pieces)
        ids, characters = self._boundary(wanted)
        text = "".join(piece.text for piece in [*self._pieces, *wanted])
        tail = text[characters:]
        needed = len(tail.encode()) + len(instead.ids) + (self._keep() if self.plan.think else LEAST_ANSWER) + 1
        if self.grammar and (instead is self.plan.closing or self.plan.tokens - self.used < needed):
            instead, needed = self.plan.closing, len(tail.encode()) + len(self.plan.closing.ids) + 1
        if self.halted or self.plan.tokens - self.used < needed:
            if self.grammar:  # an answer that is not bound is none
                rest = "".join(piece.text for piece in pieces[len(wanted) :])
                pieces, self._stuck = [*wanted, Piece("marker", rest)], True
            self._unsaid = self._take(pieces)
            return
        self._unsaid = self._take(wanted)
        self._drop_to(ids, characters)
        self._parser = Parser.resume(self.format, text, inside=self.inside, tools=self.tools)
        self._finish = None
        self._owed += [Restore(tail)] if tail else []
        self._owed.append(Write(instead))

    def _wanted(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """The pieces before the unwanted marker."""
        kind = "thinking" if self.plan.think else "answer"
        return pieces[: next((i for i, piece in enumerate(pieces) if piece.kind != kind), len(pieces))]

    def _boundary(self, wanted: Sequence[Piece]) -> tuple[int, int]:
        """The last (ids, characters) at or before the end of `wanted` that cuts neither a token nor a character."""
        stays = sum(len(piece.text) for piece in [*self._pieces, *wanted])
        return next(each for each in reversed(self._whole) if each[1] <= stays)

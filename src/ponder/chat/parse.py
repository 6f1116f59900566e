"""The text of a reply, taken apart as it streams in: thinking, answer, tool calls, markers.

What comes out does not depend on how the text was cut into pieces, and nothing of it is lost: the
pieces' texts concatenate to the text. Markers and the white space around them become pieces of
their own, so that thinking and answer come out clean. Only what may still turn out to be a marker,
a tool call, or white space in front of one is held back; everything else is passed on at once.

What happens where a model strays from its format:

- A closing marker without an opening one ends the thinking if the reply began inside thinking
  (`inside`). Otherwise the text before it has been passed on as answer already; the marker alone
  is dropped, and the answer goes on.
- An opening marker inside thinking is dropped. Models repeat it by mistake and close once, so
  openings are not counted: the first closing marker ends the thinking.
- An opening marker after the answer began starts thinking again.
- Thinking that never closes stays thinking.
- Tool calls inside thinking are calls if they can be read, since some models forget to close
  their thinking before they act; then the thinking is over. Otherwise they are thinking.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ponder.chat.formats import ThinkingFormat
from ponder.chat.tool_calls import (
    WRAPPINGS,
    Incomplete,
    bare_calls,
    find_end,
    identify,
    may_become_bare,
    read_block,
)
from ponder.types import SpanKind, ToolCall

State = Literal["before", "thinking", "answer"]
_Role = Literal["open", "close", "end", "tool", "header"]


@dataclass(frozen=True)
class Piece:
    """A part of a reply. `call` is set on tool calls; of several in one block the first has the text."""

    kind: SpanKind
    text: str
    call: ToolCall | None = None


def coalesce(pieces: Sequence[Piece]) -> list[Piece]:
    """The same pieces, neighbours of one kind joined; tool calls stay single."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].kind == piece.kind != "tool_call":
            joined[-1] = Piece(piece.kind, joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined


class Parser:
    """Takes a reply apart while it streams in.

    `inside` says that the reply begins inside thinking (`ThinkingFormat.inside` of the prompt).
    `tools` says that tools were offered: only then are tool calls looked for, and only then is an
    answer that begins with "[" or "{" held back until it is clear that it is no bare call.
    """

    def __init__(self, format: ThinkingFormat, inside: bool = False, tools: bool = True) -> None:
        self._format = format
        self._tools = tools
        self._state: State = "thinking" if inside else "before"
        self._buffer = ""
        self._after_marker = True
        self._bare = tools and not format.calls_first
        self._calls = 0
        self._owed = 0
        self._out: list[Piece] = []

    @classmethod
    def resume(
        cls, format: ThinkingFormat, assistant_text_so_far: str, inside: bool = False, tools: bool = True
    ) -> Parser:
        """A parser that stands where one stands that was fed `assistant_text_so_far`.

        `inside` tells how that text began. The pieces to come hold new text only, a marker that
        began in the old text included: its new part is a marker piece.
        """
        parser = cls(format, inside, tools)
        parser.feed(assistant_text_so_far)
        parser._owed = len(parser._buffer)
        return parser

    def fork(self) -> Parser:
        """Another parser that stands where this one stands."""
        twin = copy.copy(self)
        twin._out = []
        return twin

    @property
    def state(self) -> State:
        """Where the text passed on so far ends: before anything, in thinking, or in the answer."""
        return self._state

    def feed(self, text: str) -> list[Piece]:
        """What can be told apart with `text` added."""
        self._buffer += text
        return self._drain(final=False)

    def finish(self) -> list[Piece]:
        """What was held back, now that the reply is over."""
        return self._drain(final=True)

    # ---------------------------------------------------------------- one step at a time
    # A step decides on the head of the buffer only what no further text could change, or waits.

    def _drain(self, final: bool) -> list[Piece]:
        self._out = []
        try:
            while self._buffer:
                self._step(final)
        except Incomplete:
            pass
        return coalesce(self._out)

    def _step(self, final: bool) -> None:
        if self._after_marker and (space := _leading_space(self._buffer)):
            return self._emit("marker", space)
        lexicon = self._lexicon()
        match, undecided = lexicon.search(self._buffer, final)
        before = self._buffer[: match.start() if match else undecided]
        if before and self._bare and self._state != "thinking" and before[0] in "[{":
            return self._bare_call(before if match else self._buffer, bool(match) or final)
        if text := before.rstrip():
            return self._text(text)
        if match:
            return self._marker(lexicon.roles[match[0]], before, match[0], final)
        if not final:
            raise Incomplete
        return self._emit("marker", before)

    def _text(self, text: str) -> None:
        if self._state == "before":
            self._state = "answer"
        self._after_marker = False
        self._bare = self._bare and self._state != "answer"
        self._tools = self._tools and not (self._format.calls_first and self._state == "answer")
        self._emit("thinking" if self._state == "thinking" else "answer", text)

    def _marker(self, role: _Role, space: str, marker: str, final: bool) -> None:
        if role == "tool":
            return self._tool(space, marker, final)
        if role == "header":
            return self._header(space, final)
        if role == "close" and self._format.keep_close:
            self._emit("marker", space)
            self._state = "answer"
            return self._text(marker)
        if role != "end":
            self._state = "thinking" if role == "open" else "answer"
        return self._dropped(space + marker)

    def _dropped(self, text: str) -> None:
        self._emit("marker", text)
        self._after_marker = True

    def _emit(self, kind: SpanKind, text: str, call: ToolCall | None = None) -> None:
        """Passes on the head of the buffer, less what was there before a resume."""
        self._buffer = self._buffer[len(text) :]
        old = min(self._owed, len(text))
        self._owed -= old
        if text[old:] or call:
            self._out.append(Piece(kind, text[old:], call))

    # ---------------------------------------------------------------- tool calls

    def _called(self, text: str, calls: Sequence[ToolCall]) -> None:
        for call in identify(calls, self._calls):
            self._emit("tool_call", text, call)
            text = ""
        self._calls += len(calls)
        self._state = "answer"
        self._bare = False
        self._after_marker = True

    def _bare_call(self, content: str, whole: bool) -> None:
        content = content.rstrip()
        if not whole and may_become_bare(content):
            raise Incomplete
        calls = bare_calls(content) if whole else ()
        if calls:
            self._called(content, calls)
        else:
            self._bare = False

    def _tool(self, space: str, opener: str, final: bool) -> None:
        wrapping = next(each for each in WRAPPINGS if each.opener == opener)
        block = read_block(self._buffer, len(space), wrapping, self._breakers(), final)
        if block is None or (self._state == "thinking" and not block.readable):
            return self._text(space + opener)
        self._emit("marker", space)
        return self._called(self._buffer[: block.end - len(space)], block.calls)

    def _breakers(self) -> list[str]:
        roles = self._lexicon().roles
        return [marker for marker, role in roles.items() if role not in ("open", "close") or self._state == "thinking"]

    # ---------------------------------------------------------------- headers of channels

    def _header(self, space: str, final: bool) -> None:
        window = self._buffer[len(space) :][:_HEADER_LIMIT]
        header = _HEADER.match(window)
        if header is None:
            if "<|message|>" not in window and len(window) < _HEADER_LIMIT and not final:
                raise Incomplete
            # A header that never ends must not swallow the text: take what is certainly of it.
            header = _BROKEN_HEADER.match(window)
            assert header is not None  # it matches wherever a header's first marker stands
        recipient = _RECIPIENT.search(header[0])
        if recipient and self._tools:
            return self._addressed(space, header[0], recipient[1], final)
        if "<|channel|>" in header[0]:
            self._state = "thinking" if "<|channel|>analysis" in header[0] else "answer"
        return self._dropped(space + header[0])

    def _addressed(self, space: str, header: str, name: str, final: bool) -> None:
        """A message to a tool: its text is the call's arguments."""
        start = len(space) + len(header)
        body_end, end = find_end(self._buffer, start, _MESSAGE_ENDS, ["<|start|>", "<|channel|>"], final)
        call = ToolCall(name, self._buffer[start:body_end].strip() or "{}")
        self._emit("marker", space)
        self._called(self._buffer[: end - len(space)], [call])

    def _lexicon(self) -> _Lexicon:
        form = self._format
        # A closing marker that is part of the answer is a marker only where thinking can end.
        closes = form.close_markers if self._state == "thinking" or not form.keep_close else ()
        return _lexicon(form.open_markers, closes, form.ends, self._tools, form.channels)


def _leading_space(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]


_HEADER_LIMIT = 256
_MESSAGE_ENDS = ("<|call|>", "<|end|>", "<|return|>")
_HEADER = re.compile(
    r"(?:<\|start\|>[^<]*)?(?:<\|channel\|>[^<]*)?(?:<\|constrain\|>[^<]*)?<\|message\|>",
)
_BROKEN_HEADER = re.compile(
    r"<\|start\|>(?:assistant)?|<\|channel\|>(?:analysis|commentary|final)?|<\|constrain\|>|<\|message\|>"
)
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")


# ---------------------------------------------------------------- markers


@dataclass(frozen=True)
class _Lexicon:
    """The markers to look for, each with its role."""

    roles: dict[str, _Role]
    pattern: re.Pattern[str]
    prefixes: frozenset[str]
    longest: int

    def search(self, text: str, final: bool) -> tuple[re.Match[str] | None, int]:
        """The first marker, if it is certain, and where the part begins that only more text decides.

        At one place the longest marker wins, so a marker that may still grow into another waits.
        """
        match = self.pattern.search(text)
        if final:
            return match, len(text)
        tail = range(max(0, len(text) - self.longest + 1), len(text))
        undecided = next((at for at in tail if text[at:] in self.prefixes), len(text))
        return (match if match and match.start() < undecided else None), undecided


@functools.lru_cache(maxsize=64)
def _lexicon(
    opens: tuple[str, ...], closes: tuple[str, ...], ends: tuple[str, ...], tools: bool, channels: bool
) -> _Lexicon:
    roles: dict[str, _Role] = dict.fromkeys((each for each in ends if each), "end")
    if tools:
        roles |= dict.fromkeys((each.opener for each in WRAPPINGS), "tool")
    if not channels:
        roles |= dict.fromkeys(opens, "open")
    roles |= dict.fromkeys(closes, "close")
    if channels:
        roles |= dict.fromkeys(("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"), "header")
    return _Lexicon(
        roles,
        # Longest first: at one place an alternation takes its first branch that fits.
        re.compile("|".join(re.escape(marker) for marker in sorted(roles, key=len, reverse=True)) or r"(?!)"),
        frozenset(marker[:length] for marker in roles for length in range(1, len(marker))),
        max((len(marker) for marker in roles), default=1),
    )

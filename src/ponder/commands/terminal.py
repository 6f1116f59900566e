"""What a person sees while a model thinks: thinking dimmed, the answer plain, a last line with the cost."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from ponder.types import AnswerDelta, Cost, Done, Event, SampleFinished, Scored, ThinkingDelta, ToolCalled

if TYPE_CHECKING:
    from rich.console import Console

UNSAFE = dict.fromkeys(
    [*(set(range(0x20)) - {0x09, 0x0A}), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd"
)
"""Control characters, and those that turn the direction of writing."""


def plain(text: str) -> str:
    """Text without control characters: what a model wrote must not steer the terminal."""
    return text.translate(UNSAFE)


def coloured(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that wants colours (NO_COLOR, TERM=dumb and FORCE_COLOR are heeded)."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


def styled(text: str, code: str, stream: TextIO) -> str:
    """`text` in the style of the ANSI `code`, where the stream takes it."""
    return f"\x1b[{code}m{text}\x1b[0m" if coloured(stream) else text


def console() -> Console:
    """Rich's console on standard output, which with NO_COLOR writes no escape sequence at all: its own keeps bold."""
    from rich.console import Console

    return Console(highlight=False, color_system=None if os.environ.get("NO_COLOR") else "auto")


def complain(message: str) -> None:
    """One line about what went wrong, on standard error."""
    line = " ".join(plain(message).split())
    print(f"{styled('ponder:', '31', sys.stderr)} {line}", file=sys.stderr)


def describe(cost: Cost) -> str:
    """A cost in one line; what was not spent is left out."""
    counts = {
        "thinking": cost.thinking,
        "answer": cost.answer,
        "verifier": cost.verifier,
        "probe": cost.probe,
        "cancelled": cost.cancelled,
        "written": cost.written,
    }
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    line = f"{cost.tokens} tokens"
    line += f" ({', '.join(parts)})" if parts else ""
    line += f" · prompt {cost.prompt_computed} computed, {cost.prompt_cached} cached · {cost.seconds:.1f} s"
    if cost.seconds > 0 and cost.generated:
        line += f" · {cost.generated / cost.seconds:.0f} tokens/s"
    return line + (f" · ${cost.dollars:.6f}" if cost.dollars else "")


@dataclass
class Display:
    """Shows events as they come. The answer goes to standard output, all else to standard error.

    So a pipe gets the answer alone, and a terminal shows both in order.
    """

    quiet: bool = False
    several: bool = False
    """Samples run side by side: each is told in a line once it has ended, and the answer once it is chosen."""
    _last: str = field(default="", init=False)
    _cost: Cost | None = field(default=None, init=False)

    def show(self, event: Event) -> None:
        """Prints what `event` adds."""
        if self.several:
            self._show_several(event)
        elif isinstance(event, ThinkingDelta) and not self.quiet:
            self._write(event.text, "thinking")
        elif isinstance(event, AnswerDelta):
            self._write(event.text, "answer")
        elif isinstance(event, ToolCalled) and not self.quiet:
            self._write(f"[{event.call.name} {event.call.arguments}]\n", "thinking")
        if isinstance(event, Done):
            self._cost = event.trace.cost

    def _show_several(self, event: Event) -> None:
        if isinstance(event, SampleFinished) and not self.quiet:
            sample = event.sample
            line = " ".join(sample.answer.split()) or " ".join(sample.thinking[-60:].split()) or f"({sample.finish})"
            forked = "" if sample.parent is None else f" (from {sample.parent + 1})"
            self._write(f"{sample.index + 1}{forked}: {line} ({event.cost.tokens} tokens)\n", "sample")
        elif isinstance(event, Scored) and not self.quiet:
            self._write(f"{event.sample + 1}: {event.score.value:g} by {event.score.verifier}\n", "sample")
        elif isinstance(event, Done):
            self._write(event.trace.answer, "answer")

    def end(self) -> None:
        """Ends the line, and says what it cost if it came to an end."""
        if self._last:
            print(file=sys.stdout if self._last == "answer" else sys.stderr, flush=True)
        if self._cost is not None and not self.quiet:
            print(styled(describe(self._cost), "2", sys.stderr), file=sys.stderr, flush=True)

    def _write(self, text: str, kind: str) -> None:
        if self._last == "thinking" and kind == "answer":
            print("\n", file=sys.stderr, flush=True)
        text = plain(text)
        if kind == "answer":
            print(text, end="", flush=True)
        else:
            print(styled(text, "2", sys.stderr), end="", file=sys.stderr, flush=True)
        self._last = kind

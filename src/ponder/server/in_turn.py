"""The blocks of a choice one after the other, as dialects tell them, although calls may come interleaved.

A block is closed before the next one opens. Thinking and answer end where another block begins. A call ends once its
arguments are whole JSON and another block has begun, else with the choice: until then what comes after it waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ponder.errors import PonderError
from ponder.server.events import Call, Content, Reasoning
from ponder.server.failures import Refusal
from ponder.server.reply import Block, Choice, piece


@dataclass(frozen=True)
class Step:
    """What to tell next of block `number`: that it opens, that it goes on with `event`, that it is closed."""

    kind: Literal["open", "more", "close"]
    number: int
    block: Block
    event: Reasoning | Content | Call


class InTurn:
    """How far the blocks of a growing choice were told."""

    def __init__(self) -> None:
        self._place = 0  # of the block that is told, among all blocks
        self._number = 0  # the same among those that show
        self._told = 0  # its events
        self._open = False

    def steps(self, choice: Choice) -> Iterator[Step]:
        """What can be told since the last time."""
        ended = choice.reason is not None
        while self._place < len(choice.blocks):
            block = choice.blocks[self._place]
            yield from self._more(block)
            if not ended and not (self._place + 1 < len(choice.blocks) and finished(block)):
                return
            if self._open:
                yield Step("close", self._number, block, block.events[-1])
                self._number += 1
            self._place, self._told, self._open = self._place + 1, 0, False

    def _more(self, block: Block) -> Iterator[Step]:
        # A token of an unfinished character has no text yet: an answer opens with its first text.
        fresh = block.events[self._told :]
        if not self._open and not shows(block.kind, fresh):
            return
        if not self._open:
            self._open = True
            yield Step("open", self._number, block, block.events[0])
        for event in fresh:
            yield Step("more", self._number, block, event)
        self._told = len(block.events)


def shown(choice: Choice) -> list[Block]:
    """The blocks of a choice that a client gets to see."""
    return [block for block in choice.blocks if shows(block.kind, block.events)]


def shows(kind: type, events: Sequence[Reasoning | Content | Call]) -> bool:
    """Whether there is something to see: an answer needs text."""
    return kind is not Content or any(piece(event) for event in events)


def finished(block: Block) -> bool:
    """Whether nothing is missing in a block that others follow: of a call, no piece of its arguments."""
    if block.kind is not Call:
        return True
    from pydantic_core import from_json

    try:
        from_json(block.text)
    except ValueError:
        return False
    return True


def as_refusal(error: Exception) -> Refusal:
    """What a client is told of a failure in mid-stream; nothing of an error that is none of ours."""
    if isinstance(error, PonderError):
        from ponder.server.local import refusal  # it brings the strategies with it

        return refusal(error)
    return Refusal(500, "api_error", "the server failed on this request", "look into its log")

"""A whole reply, put together from the events of a backend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from ponder.server.events import Begun, Call, Content, Ended, Reason, Reasoning, ReplyEvent, Token, Usage


@dataclass
class ToolUse:
    """A tool call as far as it is told."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass
class Block:
    """What was told of one thing without another between: thinking, answer, or one call, however its pieces came."""

    events: list[Reasoning | Content | Call]

    @property
    def kind(self) -> type[Reasoning | Content | Call]:
        """What it is."""
        return type(self.events[0])

    @property
    def text(self) -> str:
        """All of it; of a call, the arguments."""
        return "".join(piece(event) for event in self.events)

    @property
    def signature(self) -> str:
        """What an upstream signed the thinking with."""
        return "".join(event.signature for event in self.events if isinstance(event, Reasoning))

    @property
    def redacted(self) -> str:
        """What an upstream gave in place of thinking that it hides."""
        return "".join(event.redacted for event in self.events if isinstance(event, Reasoning))

    def takes(self, event: Reasoning | Content | Call) -> bool:
        """Whether an event goes on with this block, the last one. Thinking ends where it was signed or hidden."""
        last = self.events[-1]
        if isinstance(last, Reasoning) and isinstance(event, Reasoning):
            return not (last.redacted or event.redacted or (last.signature and event.text))
        return type(last) is type(event)


def piece(event: Reasoning | Content | Call) -> str:
    """The text that an event adds to its block."""
    return event.arguments if isinstance(event, Call) else event.text


@dataclass
class Choice:
    """One answer. reason: None while it is not complete. blocks: the same in the order in which it was told."""

    reasoning: str = ""
    signature: str = ""
    content: str = ""
    tokens: list[Token] = field(default_factory=list)
    calls: list[ToolUse] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    reason: Reason | None = None
    stop_text: str | None = None


@dataclass
class Reply:
    """Everything that was told until now."""

    begun: Begun | None = None
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Usage | None = None

    def add(self, event: ReplyEvent) -> None:
        """Takes one event in."""
        if isinstance(event, Begun):
            self.begun = event
        elif isinstance(event, Usage):
            self.usage = event
        elif isinstance(event, (Reasoning, Content, Call, Ended)):
            self._tell(self.choices.setdefault(event.choice, Choice()), event)

    def _tell(self, choice: Choice, event: Reasoning | Content | Call | Ended) -> None:
        if not isinstance(event, Ended):
            _place(choice.blocks, event)
        if isinstance(event, Reasoning):
            choice.reasoning += event.text
            choice.signature += event.signature
        elif isinstance(event, Content):
            choice.content += event.text
            choice.tokens += event.tokens
        elif isinstance(event, Call):
            choice.calls += [ToolUse() for _ in range(event.number + 1 - len(choice.calls))]
            call = choice.calls[event.number]
            call.id, call.name = call.id or event.id, call.name or event.name
            call.arguments += event.arguments
        else:
            choice.reason, choice.stop_text = event.reason, event.stop_text

    @property
    def in_order(self) -> list[Choice]:
        """The choices by their number."""
        return [self.choices[number] for number in sorted(self.choices)]


def _place(blocks: list[Block], event: Reasoning | Content | Call) -> None:
    if isinstance(event, Call):
        same = (
            block for block in blocks if isinstance(block.events[0], Call) and block.events[0].number == event.number
        )
        block = next(same, None)
    else:
        block = blocks[-1] if blocks and blocks[-1].takes(event) else None
    if block is not None:
        block.events.append(event)
    elif isinstance(event, Call) or _says(event):
        blocks.append(Block([event]))


def _says(event: Reasoning | Content) -> bool:
    told = (event.signature or event.redacted) if isinstance(event, Reasoning) else event.tokens
    return bool(event.text or told)


async def collected(events: AsyncIterator[ReplyEvent], first: ReplyEvent | None = None) -> Reply:
    """The reply when all of it has come. first: an event that was read before."""
    reply = Reply()
    if first is not None:
        reply.add(first)
    async for event in events:
        reply.add(event)
    return reply

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
class Choice:
    """One answer. reason: None while it is not complete."""

    reasoning: str = ""
    signature: str = ""
    content: str = ""
    tokens: list[Token] = field(default_factory=list)
    calls: list[ToolUse] = field(default_factory=list)
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
        elif isinstance(event, Reasoning | Content | Call | Ended):
            self._tell(self.choices.setdefault(event.choice, Choice()), event)

    def _tell(self, choice: Choice, event: Reasoning | Content | Call | Ended) -> None:
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


async def collected(events: AsyncIterator[ReplyEvent]) -> Reply:
    """The reply when all of it has come."""
    reply = Reply()
    async for event in events:
        reply.add(event)
    return reply

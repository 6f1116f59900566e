"""What a dialect of an upstream is: requests into its words, its words into events, and what they share.

Nothing that an upstream says is trusted to have the shape that it should have: what is missing or of another type
reads as empty.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic_core import to_json

from ponder.server.events import Call, Content, Ended, Reason, Reasoning, ReplyEvent, Token, Usage
from ponder.server.request import Request
from ponder.types import Cost

Hard = Literal["hard", "hint", "none"]

BYTES_A_TOKEN = 4
"""What a token is taken for where an upstream counts none."""


@dataclass(frozen=True)
class Ask:
    """A request in the words of an upstream. content: the body where it is no JSON; its type is among `headers`.

    hard: what becomes of the budget for thinking there. limit: tokens of thinking after which the stream is to be cut
    and the answer asked for (`Dialect.closed`), None for no limit of ours.
    """

    path: str
    body: Mapping[str, Any]
    hard: Hard = "none"
    limit: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""

    @property
    def data(self) -> bytes:
        """The body as it is sent."""
        if self.content:
            return self.content
        try:
            return to_json(self.body)
        except ValueError:  # half of a surrogate pair, or what is no number
            return json.dumps(self.body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class Failed(Exception):
    """An upstream told of an error in place of an answer, or in the middle of one."""

    def __init__(self, message: str, status: int = 0, code: str = "") -> None:
        super().__init__(message)
        self.message, self.status, self.code = message, status, code


class Reading(Protocol):
    """Reads one answer, document by document. Raises Failed where the upstream tells of an error."""

    heard: Heard

    def take(self, document: Mapping[str, Any]) -> list[ReplyEvent]: ...

    def usage(self) -> Usage | None:
        """What the upstream counted; None where it did not."""
        ...


class Dialect(Protocol):
    """One way to speak with a server. `several`: whether a request may ask for several choices. `hands`: whether what
    is `request.Handed` is in its words."""

    @property
    def several(self) -> bool: ...

    @property
    def hands(self) -> bool: ...

    @property
    def provider(self) -> str:
        """Whose prices they are, "" for those of the address."""
        ...

    def headers(self, key: str) -> Mapping[str, str]:
        """What is sent with every request."""
        ...

    def ask(self, request: Request, model: str) -> Ask:
        """Raises Refusal for what the upstream cannot do."""
        ...

    def closed(self, request: Request, model: str, thinking: str, used: int) -> Ask | None:
        """What goes on from thinking that was cut after `used` tokens; None where that cannot be done."""
        ...

    def reading(self, request: Request) -> Reading: ...

    def counting(self, request: Request, model: str) -> Ask | None:
        """What asks for the tokens of a prompt, None where nothing does."""
        ...

    def counted(self, document: Mapping[str, Any]) -> int | None: ...

    def embedding(self, request: Request, model: str) -> Ask:
        """What asks for the vectors of a `request.Embedding`. Raises Refusal."""
        ...

    def embedded(self, document: Mapping[str, Any]) -> tuple[list[Any], int | None]:
        """The vectors of an answer, as they stand in it, and the tokens of the texts where they are told."""
        ...

    def failed(self, document: Any) -> str:
        """What an error says, "" for what says nothing."""
        ...

    def listed(self, document: Mapping[str, Any]) -> dict[str, int]:
        """Names of models and their contexts, 0 where unknown."""
        ...


# ---------------------------------------------------------------- what was heard


@dataclass
class Heard:
    """What came until now: for estimates, and to see whether an answer is whole."""

    thinking: int = 0
    """Bytes of it."""
    answer: int = 0
    pieces: int = 0
    thoughts: int = 0
    """Pieces of thinking."""
    text: list[str] = field(default_factory=list)
    """The thinking of choice 0."""
    ended: dict[int, Reason] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    answering: bool = False

    def see(self, event: ReplyEvent) -> None:
        """Takes an event in."""
        if isinstance(event, Reasoning):
            self.thinking += len(event.text.encode("utf-8", "replace"))
            self.pieces += 1
            self.thoughts += 1
            self.seen.add(event.choice)
            if event.choice == 0:
                self.text.append(event.text)
        elif isinstance(event, (Content, Call)):
            text = event.text if isinstance(event, Content) else event.arguments + event.name
            self.answer += len(text.encode("utf-8", "replace"))
            self.pieces += 1
            self.seen.add(event.choice)
            self.answering = self.answering or bool(text)
        elif isinstance(event, Ended):
            self.ended[event.choice] = event.reason
            self.seen.add(event.choice)

    def estimated(self, request: Request) -> Usage:
        """The usage as far as it can be guessed."""
        thinking = max(self.thoughts, math.ceil(self.thinking / BYTES_A_TOKEN))
        answer = max(self.pieces - self.thoughts, math.ceil(self.answer / BYTES_A_TOKEN))
        return spent(prompt_tokens(request), 0, thinking + answer, thinking, estimated=True)

    def share(self, completion: int) -> int:
        """How many of so many tokens were thinking, by the lengths of the texts."""
        whole = self.thinking + self.answer
        return round(completion * self.thinking / whole) if whole else 0


def spent(
    prompt: int,
    cached: int,
    completion: int,
    reasoning: int,
    *,
    estimated: bool = False,
    dollars: float | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Usage:
    """A usage, with the cost that it is."""
    cached, reasoning = min(cached, prompt), min(reasoning, completion)
    cost = Cost(
        prompt_computed=prompt - cached,
        prompt_cached=cached,
        thinking=reasoning,
        answer=completion - reasoning,
        calls=1,
        flops=None,
        dollars=dollars,
    )
    return Usage(prompt, cached, completion, reasoning, estimated, cost, dollars, extra=dict(extra or {}))


def prompt_tokens(request: Request) -> int:
    """A guess: its text alone, since pictures and sounds are counted in as many ways as there are models."""
    size = len((request.raw or "").encode("utf-8", "replace")) + 4 * len(request.raw_ids)
    for message in request.question.messages:
        size += 16
        for part in message.parts:
            for name in ("text", "arguments", "content"):
                size += len(str(getattr(part, name, "")).encode("utf-8", "replace"))
    if request.question.tools:
        size += len(json.dumps([dict(tool) for tool in request.question.tools], default=str))
    return math.ceil(size / BYTES_A_TOKEN)


# ---------------------------------------------------------------- reading what may be anything


def object_of(value: Any) -> Mapping[str, Any]:
    """An object, or an empty one. What JSON gives is a `dict`, which is told in a fifth of the time of a `Mapping`."""
    return value if isinstance(value, dict) else {}


def objects_of(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def text_of(value: Any) -> str:
    """A text, or an empty one."""
    return value if isinstance(value, str) else ""


def count_of(value: Any) -> int:
    """A count: a whole number from 0 on, else 0."""
    if type(value) is int and 0 <= value < 2**53:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        return 0
    return int(value)


def number_of(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def token_of(row: Mapping[str, Any]) -> Token:
    """A token as OpenAI's chat tells it, with the likeliest ones at its place."""
    logprob = number_of(row.get("logprob"))
    top = tuple(token_of(each) for each in objects_of(row.get("top_logprobs")))
    return Token(text_of(row.get("token")), math.nan if logprob is None else logprob, top=top)


def is_object(text: str) -> bool:
    """Whether a text is a whole JSON object, as the arguments of a finished call are."""
    if not text.lstrip().startswith("{") or not text.rstrip().endswith("}"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False

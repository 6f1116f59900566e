"""The values that everything else passes around, and the events that stream out.

Plain frozen dataclasses: they add, compare and round-trip to JSON, and import nothing of ours.
`to_json` writes a versioned document; `from_json` refuses a version it does not know.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, Union, get_args

VERSION = 1
"""Version of the JSON documents; raised when a field changes its meaning."""

Role = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "length", "cancelled", "error"]
SpanKind = Literal["thinking", "answer", "tool_call", "marker"]
TraceState = Literal["running", "done", "interrupted", "failed"]

# ---------------------------------------------------------------- messages


@dataclass(frozen=True)
class Text:
    """Plain text."""

    text: str
    type: Literal["text"] = "text"


@dataclass(frozen=True)
class Thinking:
    """What an assistant thought in an earlier turn. Some templates replay it, most drop it."""

    text: str
    type: Literal["thinking"] = "thinking"


@dataclass(frozen=True)
class Image:
    """An image, by URL (`data:` URIs included)."""

    url: str
    type: Literal["image"] = "image"


@dataclass(frozen=True)
class Audio:
    """A sound, by URL (`data:` URIs included)."""

    url: str
    type: Literal["audio"] = "audio"


@dataclass(frozen=True)
class Video:
    """Frames of a video in order, each by URL, `seconds` apart."""

    frames: tuple[str, ...]
    seconds: float = 1.0
    type: Literal["video"] = "video"


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asked for. `arguments` is the JSON text exactly as the model wrote it."""

    name: str
    arguments: str
    id: str = ""
    type: Literal["tool_call"] = "tool_call"


@dataclass(frozen=True)
class ToolResult:
    """What a tool gave back for the call `id`; `error` says that `content` describes a failure."""

    id: str
    content: str
    error: bool = False
    type: Literal["tool_result"] = "tool_result"


Part = Union[Text, Thinking, Image, Audio, Video, ToolCall, ToolResult]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The plain text of the turn, thinking and attachments left out."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))


def system(text: str) -> Message:
    """A system message."""
    return Message("system", (Text(text),))


def user(text: str) -> Message:
    """A user message."""
    return Message("user", (Text(text),))


def assistant(text: str, thinking: str = "") -> Message:
    """An assistant message, with what it thought if that is to be kept."""
    parts: tuple[Part, ...] = (Thinking(thinking), Text(text)) if thinking else (Text(text),)
    return Message("assistant", parts)


@dataclass(frozen=True)
class Question:
    """What is asked: a conversation, the tools on offer (JSON schemas), and what is known about the right answer."""

    messages: tuple[Message, ...]
    reference: str | None = None
    task: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The text of the last user message."""
        return next((m.text for m in reversed(self.messages) if m.role == "user"), "")


def ask(question: str | Question | tuple[Message, ...] | list[Message]) -> Question:
    """A `Question` from whatever a caller has at hand."""
    if isinstance(question, Question):
        return question
    if isinstance(question, str):
        return Question((user(question),))
    return Question(tuple(question))


# ---------------------------------------------------------------- samples


@dataclass(frozen=True)
class Span:
    """A part of a sample's text: characters `start` to `end` (exclusive) of `Sample.text`."""

    kind: SpanKind
    start: int
    end: int


@dataclass(frozen=True)
class Sample:
    """One continuation of one prompt, token by token, so that it can be continued, forked or trained on.

    A sample that was forked off another one names it as `parent`, with which it shares the first `fork` tokens.
    `ids[i]` was sampled by the model where `mask[i]` is True and written by ponder (a closing
    marker, say) where it is False; `logprobs[i]` is the natural logarithm of its probability under
    the model at temperature 1, None where it is unknown. Engines that deal in text alone leave
    `prompt_ids`, `ids`, `mask` and `logprobs` empty and say so with `exact = False`.
    """

    index: int
    text: str
    prompt_ids: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()
    mask: tuple[bool, ...] = ()
    logprobs: tuple[float | None, ...] = ()
    finish: Finish = "stop"
    spans: tuple[Span, ...] = ()
    thinking: str = ""
    answer: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    exact: bool = True
    parent: int | None = None
    fork: int = 0

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.mask) == len(self.logprobs):
            raise ValueError(
                f"a sample needs one mask and one log-probability a token: "
                f"{len(self.ids)} ids, {len(self.mask)} masks, {len(self.logprobs)} log-probabilities"
            )


# ---------------------------------------------------------------- cost, scores and budget


def _add_unknown(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


@dataclass(frozen=True)
class Cost:
    """What was spent. Costs add; one is `<=` another if it is no larger in any count.

    Prompt tokens count once a request, however many samples share them; `recomputed` are tokens of
    a sample that had to be computed again to continue or fork it. Tokens in
    `thinking`, `answer`, `verifier`, `probe` and `cancelled` were sampled by the model; `written`
    ones were put into the sequence by ponder (markers, "Wait"). `dollars` and `flops` are None where
    the price or the model's size is unknown, and then the sum is unknown too.
    """

    prompt_computed: int = 0
    prompt_cached: int = 0
    recomputed: int = 0
    thinking: int = 0
    answer: int = 0
    verifier: int = 0
    probe: int = 0
    cancelled: int = 0
    written: int = 0
    calls: int = 0
    seconds: float = 0.0
    flops: float | None = 0.0
    dollars: float | None = 0.0

    @property
    def generated(self) -> int:
        """Tokens that the model sampled."""
        return self.thinking + self.answer + self.verifier + self.probe + self.cancelled

    @property
    def tokens(self) -> int:
        """Tokens that count against a budget: everything sampled and everything written."""
        return self.generated + self.written

    @property
    def prompt(self) -> int:
        """Prompt tokens, computed and cached."""
        return self.prompt_computed + self.prompt_cached

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(
            prompt_computed=self.prompt_computed + other.prompt_computed,
            prompt_cached=self.prompt_cached + other.prompt_cached,
            recomputed=self.recomputed + other.recomputed,
            thinking=self.thinking + other.thinking,
            answer=self.answer + other.answer,
            verifier=self.verifier + other.verifier,
            probe=self.probe + other.probe,
            cancelled=self.cancelled + other.cancelled,
            written=self.written + other.written,
            calls=self.calls + other.calls,
            seconds=self.seconds + other.seconds,
            flops=_add_unknown(self.flops, other.flops),
            dollars=_add_unknown(self.dollars, other.dollars),
        )

    def __le__(self, other: Cost) -> bool:
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        known = [(a, b) for a, b in zip(mine, theirs, strict=True) if a is not None and b is not None]
        return all(a <= b for a, b in known)


@dataclass(frozen=True)
class Score:
    """What a verifier thinks of a sample; `steps` holds one value a step where it scores steps.

    `cost` is what scoring cost, where a model did it: one `verifier` token for each value read off a
    distribution, and what the model said where it was let speak.
    """

    value: float
    verifier: str
    why: str = ""
    steps: tuple[float, ...] = ()
    cost: Cost = Cost()


@dataclass(frozen=True)
class Budget:
    """What one whole request may spend: every sample, step, verifier and probe together.

    `tokens` counts what the model samples and what ponder writes, not the prompt. `answer` tokens
    of it are kept back from thinking, so that an answer always fits; None chooses a quarter, at
    most 64. `thinking` caps the thinking alone and `min_thinking` forces some ("Wait"). `seconds`,
    `dollars` and `calls` bound the request from other sides. None means no bound.
    """

    tokens: int | None = None
    seconds: float | None = None
    dollars: float | None = None
    calls: int | None = None
    answer: int | None = None
    thinking: int | None = None
    min_thinking: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "seconds", "dollars", "calls", "answer"):
            value = getattr(self, name)
            if value is not None and not value > 0:  # as NaN is not, either
                raise ValueError(f"a budget's {name} must be above 0, not {value}")
        for name in ("thinking", "min_thinking"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"a budget's {name} must be at least 0, not {value}")
        if self.tokens is not None and self.answer is not None and self.answer > self.tokens:
            raise ValueError(
                f"answer={self.answer} does not fit into tokens={self.tokens}: raise tokens or lower answer"
            )
        if self.thinking is not None and self.min_thinking > self.thinking:
            raise ValueError(
                f"min_thinking={self.min_thinking} is above thinking={self.thinking}: lower one or raise the other"
            )

    @property
    def reserve(self) -> int:
        """Tokens kept back for the answer."""
        if self.answer is not None:
            return self.answer
        return 64 if self.tokens is None else max(1, min(64, self.tokens // 4))

    def exceeded(self, cost: Cost) -> str | None:
        """The name of the first bound that `cost` is over, or None."""
        spent = {"tokens": cost.tokens, "seconds": cost.seconds, "dollars": cost.dollars, "calls": cost.calls}
        for name, value in spent.items():
            bound = getattr(self, name)
            if bound is not None and value is not None and value > bound:
                return name
        return None


# ---------------------------------------------------------------- events and traces


@dataclass(frozen=True)
class ThinkingDelta:
    """More thinking of sample `sample`."""

    text: str
    sample: int = 0
    type: Literal["thinking_delta"] = "thinking_delta"


@dataclass(frozen=True)
class AnswerDelta:
    """More answer of sample `sample`."""

    text: str
    sample: int = 0
    type: Literal["answer_delta"] = "answer_delta"


@dataclass(frozen=True)
class ToolCalled:
    """The model asked for a tool."""

    call: ToolCall
    sample: int = 0
    type: Literal["tool_called"] = "tool_called"


@dataclass(frozen=True)
class ToolReturned:
    """A tool gave its result."""

    result: ToolResult
    type: Literal["tool_returned"] = "tool_returned"


@dataclass(frozen=True)
class SampleFinished:
    """A sample ended, and what it cost."""

    sample: Sample
    cost: Cost
    type: Literal["sample_finished"] = "sample_finished"


@dataclass(frozen=True)
class Scored:
    """A verifier scored sample `sample`, and what that cost."""

    score: Score
    sample: int = 0
    cost: Cost = Cost()
    type: Literal["scored"] = "scored"


@dataclass(frozen=True)
class BestAnswer:
    """The best answer so far: what to give if everything stopped now."""

    answer: str
    sample: int = 0
    type: Literal["best_answer"] = "best_answer"


@dataclass(frozen=True)
class Done:
    """The end of a request."""

    trace: Trace
    type: Literal["done"] = "done"


Event = Union[ThinkingDelta, AnswerDelta, ToolCalled, ToolReturned, SampleFinished, Scored, BestAnswer, Done]


@dataclass(frozen=True)
class Provenance:
    """Where a trace came from, closely enough to make it again."""

    model: str = ""
    adapters: Mapping[str, float] = field(default_factory=dict)
    strategy: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompt_version: str | None = None
    seed: int | None = None
    parent: str | None = None
    synthetic: bool = True
    software: str = ""


@dataclass(frozen=True)
class Trace:
    """Everything that happened while one question was answered.

    `events` holds the stream in order without its `Done`; consecutive deltas of one sample are
    joined, so that their concatenation is the text and the trace stays small.
    """

    id: str
    question: Question
    answer: str = ""
    cost: Cost = Cost()
    samples: tuple[Sample, ...] = ()
    scores: tuple[Score, ...] = ()
    events: tuple[Event, ...] = ()
    provenance: Provenance = Provenance()
    budget: Budget = Budget()
    state: TraceState = "done"
    created: str = ""
    error: str | None = None

    @property
    def thinking(self) -> str:
        """The thinking behind the answer."""
        return next((s.thinking for s in self.samples if s.answer == self.answer), "")


# ---------------------------------------------------------------- JSON

T = TypeVar("T")


_ADAPTERS: dict[Any, Any] = {}


def _adapter(kind: Any) -> Any:
    if kind not in _ADAPTERS:
        # Imported here: pydantic costs a tenth of a second that `ponder --help` does not have.
        from pydantic import TypeAdapter

        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def to_dict(value: Any) -> dict[str, Any]:
    """The plain JSON form of a value of this module, with the version of the format."""
    return {"version": VERSION, **_adapter(type(value)).dump_python(value, mode="json")}


def to_json(value: Any) -> str:
    """One line of JSON for a value of this module."""
    return json.dumps(to_dict(value), ensure_ascii=False)


def from_dict(kind: type[T], document: Mapping[str, Any]) -> T:
    """The value back. Raises ValueError for another version or a document of another shape."""
    version = document.get("version")
    if version != VERSION:
        raise ValueError(f"this document has version {version!r}; this ponder reads version {VERSION}")
    body = {key: value for key, value in document.items() if key != "version"}
    result: T = _adapter(kind).validate_python(body)
    return result


def from_json(kind: type[T], text: str) -> T:
    """The value back from `to_json`. Raises ValueError for anything else."""
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("a JSON object was expected")
    return from_dict(kind, document)


def event_to_json(event: Event) -> str:
    """One line of JSON for any event."""
    return to_json(event)


def event_from_json(text: str) -> Event:
    """An event back from `event_to_json`."""
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("a JSON object was expected")
    kinds: dict[str, type[Any]] = {kind.__dataclass_fields__["type"].default: kind for kind in get_args(Event)}
    kind = kinds.get(str(document.get("type")))
    if kind is None:
        raise ValueError(f"{document.get('type')!r} is no event of this ponder")
    event: Event = from_dict(kind, document)
    return event

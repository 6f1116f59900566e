"""What a client asks for, in whatever dialect. Dialects read the wire into a `Request`, backends answer it.

Nothing in here comes from the text of a prompt: model, strategy, budget and key are told by fields and headers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ponder.types import Budget, Question

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

EFFORT_TOKENS: Mapping[str, int] = {
    "none": 0,
    "minimal": 128,
    "low": 1024,
    "medium": 2048,
    "high": 4096,
    "xhigh": 8192,
    "max": 16384,
}
"""Tokens of thinking that an effort buys where the model has no policy of its own."""


@dataclass(frozen=True)
class Caller:
    """Who asks: the id and name of a key, and its project. Empty where the server asks for no keys."""

    key: str = ""
    name: str = ""
    project: str = ""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; None leaves it to the model. `logprobs`: how many of the likeliest tokens to tell, 0 for
    the chosen one alone, None for none. `ignore_eos`: goes on to the bound of tokens, as measurements of speed want."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False


@dataclass(frozen=True)
class ToolChoice:
    """auto: may call; none: must not; required: must call one; named: must call `name`."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str = ""
    parallel: bool = True


@dataclass(frozen=True)
class Shape:
    """What the answer must look like: JSON at all, or JSON of a schema."""

    kind: Literal["text", "json", "schema"] = "text"
    schema: Mapping[str, Any] | None = None
    name: str = ""


@dataclass(frozen=True)
class Embedding:
    """Vectors that are wanted of texts, or of texts as token ids. dimensions: None for as many as the model has.
    encoding: how the client wants them, which saves work where whoever makes them writes them so at once."""

    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    encoding: Literal["float", "base64"] = "float"


@dataclass(frozen=True)
class Handed:
    """What is handed on as it came, for an answer that comes back as it is: sounds. body: by the name that the model
    has there. kind: its content type."""

    path: str
    kind: str
    body: Callable[[str], bytes]


@dataclass(frozen=True)
class PromptVersion:
    """The stored prompt that a question was made from."""

    name: str
    version: int
    label: str = ""


@dataclass(frozen=True)
class Shown:
    """What of a reply the client wants to see. Dialects alone read it: it changes nothing of what is generated.

    choices: so many of the likeliest choices, 0 for all. usage: with the last chunk of a stream. progress: what happens
    behind a choice, too, in a stream.
    """

    choices: int = 0
    reasoning: bool = True
    logprobs: bool = True
    usage: bool = False
    progress: bool = False


@dataclass(frozen=True)
class Request:
    """One question to be answered `n` times. `id` is unique.

    model: as the client named it, without a suffix. strategy: an expression such as "vote(8)", "auto" for the router's
    choice, "" for the model's default. effort: as asked, "" where it was not. budget: its bounds; `thinking` is the
    budget for thinking, `tokens` the most that a choice may be (max_completion_tokens). think: False switches it off,
    True is the wish for it, None leaves it to the model. deadline: seconds from now by which the best answer so far is
    wanted. raw: the text of a completion, in place of messages; raw_ids: its token ids, in place of the text. echo: the
    tokens of the prompt are wanted, too (`Begun.prompt_tokens`), with their log-probabilities where
    `sampling.logprobs` asks for any. store: whether the client wants the reply kept. prompt: version 0 is the one that
    the label names, or the newest. variables: what fills the prompt's blanks. trace: the client's W3C headers of a
    trace. user: as the client names whom it asks for. metadata: the client's. job: what is wanted in place of an
    answer; there are no choices then, `n` is 0, and the question holds its texts, `raw_ids` its tokens.
    """

    id: str
    model: str
    question: Question
    n: int = 1
    strategy: str = ""
    effort: str = ""
    budget: Budget = Budget()
    think: bool | None = None
    deadline: float | None = None
    sampling: Sampling = Sampling()
    tool_choice: ToolChoice = ToolChoice()
    shape: Shape = Shape()
    raw: str | None = None
    raw_ids: tuple[int, ...] = ()
    echo: bool = False
    stream: bool = False
    store: bool = False
    prompt: PromptVersion | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    trace: Mapping[str, str] = field(default_factory=dict)
    shown: Shown = Shown()
    caller: Caller = Caller()
    user: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    job: Embedding | Handed | None = None
    dialect: Literal["openai", "responses", "anthropic", "completions", "embeddings", "audio"] = "openai"

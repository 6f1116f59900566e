"""What an engine, a strategy, a verifier and a tool look like to the rest. Protocols, not base classes.

Anything of the right shape will do; nothing has to be registered or inherited.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from ponder.types import Budget, Event, Finish, Message, Question, Sample, Score, ToolCall

Item = TypeVar("Item")


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do. Asking for more raises `ponder.errors.Unsupported`.

    tokens: takes and gives exact token ids, so that `sample` and `score` work. Without it only `chat`.
    chat: takes messages and applies the model's template on its own side.
    logprobs: reports the log-probability of each sampled token.
    score: gives the log-probabilities of given tokens.
    shared_prefill: n samples of one prompt compute the prompt once.
    fork: continuing a prefix that was generated before recomputes at most a few tokens.
    exact_cancel: after a cancel nothing more is generated, and every generated token was delivered.
    until: honours `SamplingParams.until`.
    first: honours `SamplingParams.first`.
    stops: honours `SamplingParams.stops`.
    grammar: honours `SamplingParams.grammar`.
    top: how many of the likeliest tokens it can report at each place, sampled or scored.
    embed: makes vectors of texts: it is an `Embedder`, too.
    adapters: names of the low-rank adapters that a request may switch on.
    """

    tokens: bool = True
    chat: bool = False
    logprobs: bool = True
    score: bool = False
    shared_prefill: bool = True
    fork: bool = True
    exact_cancel: bool = True
    until: bool = False
    first: bool = False
    stops: bool = False
    grammar: bool = False
    top: int = 0
    embed: bool = False
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelInfo:
    """What is known about the model behind an engine.

    `parameters` is a count; `context` is in tokens; `chat_template` is Jinja source, None where the
    server keeps it to itself; `metadata` holds further keys such as `general.architecture`.
    """

    name: str
    context: int
    eos_ids: tuple[int, ...] = ()
    bos: str = ""
    eos: str = ""
    chat_template: str | None = None
    parameters: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. `max_tokens` is a hard cap a sample.

    temperature 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 switch those filters off. The same
    `seed` gives sample i of a request the same tokens whatever else runs beside it, up to rounding
    in the engine's arithmetic; None draws one. `ignore_eos` forbids the end-of-turn tokens. `adapters` maps a
    name of `Capabilities.adapters` to its scale; None means all that the engine was opened with, at
    their default scale, {} means the bare base model.

    `until` ends a sample, with finish "length", after the first token whose text holds that character:
    it can then be continued. `first` is the number of the first sample of the request: sample i draws what
    sample `first` + i would. `stops` end a sample as `until` does, after the first token with which its new text holds
    one of them.

    `grammar` is what a sample has to say: text in llguidance's dialect of Lark, or in its JSON form
    `{"grammars": [{"json_schema": {...}}]}` (see `ponder.chat.answer_grammar`). It begins at the first new token, or
    has taken in the last `grammar_consumed` tokens of the prefix already; tokens that it forbids are never sampled.
    Where it is complete and nothing but the end may follow, the sample ends with "stop", without an end-of-turn token.
    The log-probabilities stay those of the model without it. `top` asks for the likeliest tokens at each place.
    All of these only where the engine's capabilities say so.
    """

    max_tokens: int
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    ignore_eos: bool = False
    adapters: Mapping[str, float] | None = None
    until: str = ""
    first: int = 0
    stops: tuple[str, ...] = ()
    grammar: str = ""
    grammar_consumed: int = 0
    top: int = 0

    def __post_init__(self) -> None:
        if not all(self.stops):
            raise ValueError("stops must not be empty texts")
        if self.grammar_consumed < 0 or (self.grammar_consumed and not self.grammar):
            raise ValueError(
                f"grammar_consumed counts tokens of a grammar, so it cannot be {self.grammar_consumed} here"
            )
        if self.top < 0:
            raise ValueError(f"top must be at least 0, not {self.top}")
        if len(self.until) > 1:
            raise ValueError(f"until must be one character, not {self.until!r}")
        if self.first < 0:
            raise ValueError(f"first must be at least 0, not {self.first}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not self.temperature >= 0:  # as NaN is not, either
            raise ValueError(f"temperature must be at least 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, not {self.top_k}")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p must lie in [0, 1), not {self.min_p}")


@dataclass(frozen=True)
class Chunk:
    """Some more tokens of sample `index`.

    `text` is what became readable with these ids: bytes of an unfinished UTF-8 character are held
    back until the rest arrives, so `ids` may come with an empty `text`. End-of-turn tokens appear in
    `ids` and never in `text`; markers that are special tokens do appear in `text`. The last chunk of
    a sample has `finish` set. `prompt_computed` and `prompt_cached` are nonzero in at most one chunk
    of a request and count the prompt once. `lost` counts tokens that the engine generated and could
    not deliver (a cut inside a character, say); they cost, and are in no `ids`. `pending` says that
    bytes of an unfinished character are held back after these ids. `top` holds, for each of `ids` where
    `SamplingParams.top` asked for it, the likeliest tokens at its place and their log-probabilities, best first.
    """

    index: int
    ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[float | None, ...] = ()
    finish: Finish | None = None
    prompt_computed: int = 0
    prompt_cached: int = 0
    lost: int = 0
    pending: bool = False
    top: tuple[tuple[tuple[int, float], ...], ...] = ()


@dataclass(frozen=True)
class ChatChunk:
    """Some more of reply `index` from a server that deals in messages.

    `thinking` and `answer` are text deltas. `completion_tokens`, `thinking_tokens` and `prompt_*`
    come with the last chunk where the server counts them, else None (and ponder estimates: one
    token a delta).
    """

    index: int
    thinking: str = ""
    answer: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish: Finish | None = None
    completion_tokens: int | None = None
    thinking_tokens: int | None = None
    prompt_tokens: int | None = None
    prompt_cached: int | None = None


class LogProbs(list[float]):
    """Log-probabilities, and what it took: `computed` tokens, of which none was in the cache. `top` holds, for each
    where `SamplingParams.top` asked for it, the likeliest tokens at its place, as `Chunk.top` does."""

    def __init__(
        self,
        values: Iterable[float] = (),
        computed: int = 0,
        top: Iterable[tuple[tuple[int, float], ...]] = (),
    ) -> None:
        super().__init__(values)
        self.computed = computed
        self.top = tuple(top)


@runtime_checkable
class Engine(Protocol):
    """Token ids in, token ids out. Closing the iterator of `sample` or `chat` cancels the work."""

    @property
    def uri(self) -> str: ...

    @property
    def info(self) -> ModelInfo: ...

    @property
    def capabilities(self) -> Capabilities: ...

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`; markers of special tokens become their ids; nothing is added."""
        ...

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        ...

    def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> AsyncIterator[Chunk]:
        """n continuations of `prefix`, interleaved as they are generated.

        An engine that computes ahead of its reader sets `undelivered` on the iterator when it is
        closed early: the tokens that were generated and not read.
        """
        ...

    async def score(self, ids: Sequence[int], start: int, params: SamplingParams | None = None) -> list[float]:
        """Log-probability of each of `ids[start:]` given everything before it; `LogProbs` where the cost is known.

        Of `params`, `adapters` and `top` count, the latter as far as `capabilities.top` goes.
        """
        ...

    def chat(
        self, messages: Sequence[Message], n: int, params: SamplingParams, think: bool | None = None
    ) -> AsyncIterator[ChatChunk]:
        """n replies to `messages`; only where `capabilities.chat`. `think` switches thinking where the server can."""
        ...

    async def close(self) -> None:
        """Stops admitting, cancels, waits, releases. Safe to call twice."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """What an engine with `capabilities.embed` can do beside `Engine`."""

    async def embed(self, ids: Sequence[int], params: SamplingParams | None = None) -> list[float]:
        """The mean of the last hidden states of `ids`, of length 1. Of `params`, `adapters` count."""
        ...


class Verifier(Protocol):
    """Scores a sample as an answer to a question.

    One that asks a model may carry `tokens`, the most tokens of the budget that scoring one sample takes,
    and `with_model`, which gives the verifier for the model that a strategy runs on (see `bound`).
    """

    def __call__(self, question: Question, sample: Sample) -> Awaitable[Score]: ...


class Strategy(Protocol):
    """Spends a budget on a question: a stream of events, without the final `Done`."""

    def __call__(self, question: Question, model: Any, budget: Budget) -> AsyncIterator[Event]: ...


@dataclass(frozen=True)
class Tool:
    """A function that a model may call: `schema` is the JSON schema of its arguments."""

    name: str
    description: str
    schema: Mapping[str, Any]
    run: Callable[..., Awaitable[str]]


def bound(verifier: Verifier, model: Any) -> Verifier:
    """The verifier, asking `model` where it asks a model and was given none."""
    with_model: Callable[[Any], Verifier] | None = getattr(verifier, "with_model", None)
    return verifier if with_model is None else with_model(model)


def most_tokens(verifier: Verifier) -> int:
    """Tokens of the budget that scoring one sample takes at the most."""
    return int(getattr(verifier, "tokens", 0))


@asynccontextmanager
async def closing(items: AsyncIterator[Item]) -> AsyncIterator[AsyncIterator[Item]]:
    """`contextlib.aclosing` for any iterator of these protocols: what has nothing to close may be given, too."""
    try:
        yield items
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()

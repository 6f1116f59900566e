"""Rewards read off a model's next-token distribution, at the end of a sample or of each of its steps.

    r(x, y)   = P("+" | x y m) / (P("+" | x y m) + P("-" | x y m))         outcome
    r_k(x, y) = the same after the first k steps of y                      process
    value     = min_k r_k, or their product, mean, or the last

x: the prompt; y: the sample; m: a marker. A reward model here is an adapter on the model that samples,
trained to say "+" or "-" after m; it is switched on for these requests alone. x and y are the sample's exact
token ids, never its text tokenised anew, so an engine computes only what its key-value cache lacks.

Sources: Cobbe et al., Training Verifiers to Solve Math Word Problems (2021), outcomes; Lightman et al.,
Let's Verify Step by Step (2023), section 2.6, steps and product; Wang et al., Math-Shepherd (2024), the two
tokens after a marker, and the minimum.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ponder.chat.model import Model
from ponder.errors import InputError, Unsupported
from ponder.protocols import Engine, SamplingParams, Verifier
from ponder.types import Cost, Question, Sample, Score, Span, SpanKind
from ponder.verifiers.asking import VALUES, TwoWay, needed, preference, settings, two_way

Aggregate = Literal["min", "product", "mean", "last"]

MARKER = "\nReward:"
"""What stands between a sample, or its first steps, and the reward model's "+" or "-"."""

REMEMBERED = 4096
"""Places whose values a verifier keeps: beam search scores what it has again and again."""

_AGGREGATES: Mapping[Aggregate, Callable[[Sequence[float]], float]] = {
    "min": min,
    "product": math.prod,
    "mean": lambda steps: sum(steps) / len(steps),
    "last": lambda steps: steps[-1],
}


@dataclass(frozen=True)
class Reward:
    """A verifier that asks `question` at the end of the sample, or at the end of each step.

    yes, no: the two answers; the probability of the first is the reward.
    most_steps: how many steps are asked at the most, all that are left as the last one; None asks
        once, at the end of the sample.
    adapters: scales by name while asking; None leaves the model's own on, {} asks the bare base model.

    Values are kept by the exact token ids they were read after, so that a longer sample costs only its new
    steps. Raises Unsupported for an engine without `score` and for a sample without tokens, InputError
    for a sample of another tokenizer.
    """

    name: str
    question: str
    yes: str
    no: str
    model: Model | None = None
    adapters: Mapping[str, float] | None = None
    most_steps: int | None = None
    aggregate: Aggregate = "min"
    _known: OrderedDict[bytes, float] = field(default_factory=OrderedDict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.most_steps is not None and self.most_steps < 1:
            raise InputError(f"{self.name}(most_steps={self.most_steps}) asks nothing", "Give at least 1")
        if self.aggregate not in _AGGREGATES:
            raise InputError(f"there is no aggregate {self.aggregate!r}", f"Choose from {', '.join(_AGGREGATES)}")

    @property
    def tokens(self) -> int:
        """Tokens of the budget that one scoring takes at the most."""
        return VALUES * (self.most_steps or 1)

    def with_model(self, model: Model) -> Reward:
        """The same asking `model`, with a memory of its own; itself where it was given a model."""
        return self if self.model is not None else replace(self, model=model, _known=OrderedDict())

    async def __call__(self, question: Question, sample: Sample) -> Score:
        model = needed(self.model, self.name)
        self._check(model.engine, sample)
        text = await text_in(model.engine, sample)
        if self.most_steps is None:
            (value,), cost = await self._values(model, sample, text, [len(sample.text)])
            return Score(value, self.name, cost=cost)
        ends = step_ends(text, sample.spans, self.most_steps)
        if not ends:
            return Score(0.5, self.name, "found no step")
        values, cost = await self._values(model, sample, text, ends)
        weakest = values.index(min(values))
        line = text[: ends[weakest]].splitlines()[-1].strip()
        why = f"weakest of {len(values)} steps: {line[:100]}"
        return Score(_AGGREGATES[self.aggregate](values), self.name, why, tuple(values), cost)

    async def _values(self, model: Model, sample: Sample, text: str, ends: Sequence[int]) -> tuple[list[float], Cost]:
        """The reward after each beginning of `text`, and what the ones that were not known cost."""
        params = settings(model, self.adapters)
        asked = await two_way(model.engine, self.question, self.yes, self.no)
        values, cost, read = [], Cost(), 0
        for end in ends:
            read = await tokens_of(model.engine, sample.ids, text[:end], read)
            value, spent = await self._value(model, (*sample.prompt_ids, *sample.ids[:read]), asked, params)
            values.append(value)
            cost += spent
        return values, cost

    async def _value(
        self, model: Model, ids: tuple[int, ...], asked: TwoWay, params: SamplingParams
    ) -> tuple[float, Cost]:
        key = hashlib.sha256(array("q", ids).tobytes()).digest()
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key], Cost()
        value, cost = await preference(model, ids, asked, params)
        self._known[key] = value
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return value, cost

    def _check(self, engine: Engine, sample: Sample) -> None:
        if not engine.capabilities.score:
            raise Unsupported(
                f"{self.name}() reads log-probabilities of given tokens, and {engine.uri} has none",
                "Use the gguf: engine or a vLLM server, or judge()",
            )
        if not sample.exact or (sample.text and not sample.ids):
            raise Unsupported(
                f"{self.name}() continues a sample's tokens, and this sample has none",
                "Sample with an engine that deals in tokens, or use judge()",
            )


def outcome_reward(
    model: Model | None = None,
    *,
    token: str = "+",
    against: str = "-",
    marker: str = MARKER,
    adapters: Mapping[str, float] | None = None,
) -> Verifier:
    """The probability of `token` over `against` after the whole sample and `marker`: one question a sample.

    `adapters` names the reward model among the engine's adapters, with its scale: {"outcome": 1.0}.
    """
    return Reward("outcome_reward", marker, token, against, model, adapters)


def process_reward_model(
    model: Model | None = None,
    *,
    token: str = "+",
    against: str = "-",
    marker: str = MARKER,
    adapters: Mapping[str, float] | None = None,
    most_steps: int = 16,
    aggregate: Aggregate = "min",
) -> Verifier:
    """The probability of `token` over `against` after each step and `marker`. Settings as in `Reward`.

    `adapters` names the reward model among the engine's adapters, with its scale: {"process": 1.0}.
    """
    return Reward("process_reward_model", marker, token, against, model, adapters, most_steps, aggregate)


def from_function(name: str, reward: Callable[[Question, Sample], float | Awaitable[float]]) -> Verifier:
    """The verifier of a function from question and sample to a number, or of a coroutine function.

    Raises InputError where the number is none (NaN, infinity, no number at all).
    """

    async def verify(question: Question, sample: Sample) -> Score:
        given = reward(question, sample)
        value = await given if inspect.isawaitable(given) else given
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"the reward {name} gave {value!r}", "Let it return a finite number")
        return Score(number, name)

    return verify


# ---------------------------------------------------------------- steps


def step_ends(text: str, spans: Sequence[Span], most: int) -> list[int]:
    """Where the steps end in `text`, in characters: each line that is not blank, its newline included.

    Lines are those of the thinking, where there is any, and the answer after it is one more step: it may be another
    than the thinking came to. Without thinking they are the answer's. The first `most` - 1 are a step each and the rest
    of them is one, so that a step keeps its end when more of them follow.
    """
    answer = _line_ends(text, "answer", spans or [Span("answer", 0, len(text))])
    thinking = _line_ends(text, "thinking", spans)
    ends = [*thinking, *answer[-1:]] if thinking else answer
    return ends if len(ends) <= most else [*ends[: most - 1], ends[-1]]


def _line_ends(text: str, kind: SpanKind, spans: Sequence[Span]) -> list[int]:
    ends = []
    for same, run in itertools.groupby(spans, key=lambda span: span.kind):
        if same != kind:
            continue
        pieces = list(run)  # one text, that came in pieces
        end = pieces[0].start
        for line in text[end : pieces[-1].end].splitlines(keepends=True):
            end += len(line)
            if line.strip():
                # The newline after the last line counts as white space before a marker, not as thinking.
                ends.append(end + (not line.endswith("\n") and text.startswith("\n", end)))
    return ends


async def text_in(engine: Engine, sample: Sample) -> str:
    """The text of all the sample's tokens: what a parser still holds back is in no `Sample.text`."""
    said, whole = _readable(sample.text), _readable(await engine.detokenize(sample.ids))
    if not whole.startswith(said):
        raise InputError(
            "the sample's tokens do not read as its text: a model with another tokenizer drew it",
            "Score with a model that has the same tokenizer, or use judge()",
        )
    return sample.text + whole[len(said) :]


async def tokens_of(engine: Engine, ids: Sequence[int], text: str, least: int) -> int:
    """The fewest of `ids`, `least` or more, that read `text`: found by halving, as texts of tokens do not add up."""
    text, most = _readable(text), len(ids)
    while least < most:
        middle = (least + most) // 2
        if _readable(await engine.detokenize(ids[:middle])).startswith(text):
            most = middle
        else:
            least = middle + 1
    return least


def _readable(text: str) -> str:
    """Less what a detokenizer writes for half a character, and the space that some drop at the beginning."""
    return text.replace("\N{REPLACEMENT CHARACTER}", "").lstrip()

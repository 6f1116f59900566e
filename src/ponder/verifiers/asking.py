"""A question with two answers, put to a model after exact token ids: which of the two is likelier?

    p = P(yes | x q) / (P(yes | x q) + P(no | x q))

x: the ids so far; q: the question; P: the probability of the first token in which the two answers differ,
since what they share counts as question. Two values are read off, so asking costs two `verifier` tokens. x
and q are a prompt: where x was sampled by the same engine, its key-value cache holds x already.

Source: Kadavath et al., Language Models (Mostly) Know What They Know (2022), P(True).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ponder.chat.model import Model
from ponder.errors import GarbledReply, InputError
from ponder.protocols import Engine, LogProbs, SamplingParams
from ponder.types import Cost

VALUES = 2
"""Values that are read off for one question, each a token of the budget."""


@dataclass(frozen=True)
class TwoWay:
    """A question as token ids, and the two ids that may follow it."""

    question: tuple[int, ...]
    yes: int
    no: int


def needed(model: Model | None, name: str) -> Model:
    """The model. Raises InputError where the verifier `name` has none."""
    if model is None:
        raise InputError(f"{name}() has no model to ask", f"Give it one, {name}(model), or bind it: .with_model(model)")
    return model


def settings(model: Model, adapters: Mapping[str, float] | None, tokens: int = 1) -> SamplingParams:
    """Greedy, with `adapters`, or the model's own where they are None. Raises InputError for unknown ones."""
    known = model.engine.capabilities.adapters
    if unknown := [name for name in adapters or () if name not in known]:
        raise InputError(
            f"{model.name} has no adapter {unknown[0]!r}",
            f"Open its engine with it (it has: {', '.join(known) or 'none'})",
        )
    return SamplingParams(tokens, temperature=0.0, adapters=model.params.adapters if adapters is None else adapters)


async def two_way(engine: Engine, question: str, yes: str, no: str) -> TwoWay:
    """The question in the engine's tokens. Raises InputError where one answer is the beginning of the other."""
    first, second = await engine.tokenize(question + yes), await engine.tokenize(question + no)
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return TwoWay(tuple(first[:place]), a, b)
    raise InputError(f"one of {yes!r} and {no!r} begins like all of the other", "Choose answers that differ sooner")


async def preference(model: Model, ids: Sequence[int], asked: TwoWay, params: SamplingParams) -> tuple[float, Cost]:
    """P(yes) / (P(yes) + P(no)) after `ids` and the question, 0.5 where both are impossible; and its cost."""
    started = time.monotonic()
    prompt = (*ids, *asked.question)
    yes, first = await _logprob(model.engine, prompt, asked.yes, params)
    no, second = await _logprob(model.engine, prompt, asked.no, params)
    return _share(yes, no), model.priced(replace(first + second, seconds=time.monotonic() - started))


async def _logprob(engine: Engine, prompt: Sequence[int], token: int, params: SamplingParams) -> tuple[float, Cost]:
    scores = await engine.score([*prompt, token], len(prompt), params)
    if len(scores) != 1 or math.isnan(scores[0]):
        raise GarbledReply(f"the engine was asked for one log-probability and gave {list(scores)}", "update it")
    # An engine that does not tell what it computed is taken to have computed everything.
    computed = min(scores.computed, len(prompt)) if isinstance(scores, LogProbs) else len(prompt)
    return scores[0], Cost(prompt_computed=computed, prompt_cached=len(prompt) - computed, verifier=1, calls=1)


def _share(yes: float, no: float) -> float:
    largest = max(yes, no)
    if largest == -math.inf:
        return 0.5
    return math.exp(yes - largest) / (math.exp(yes - largest) + math.exp(no - largest))

"""A cascade: a small model answers, and a large one is asked where the small one is not sure enough.

    answer = small(x)   where   c(x) >= threshold,   else   large(x)

with the confidence c of the small model's answer: its mean probability a token, exp(mean log-probability); the
share of its samples that agree on it; or what a verifier says of it. `evals.cascading` finds the threshold on
measured answers of both models.

Both models spend one budget: the small one at most `share` of it, the large one all that is left. Each token is
priced, and its operations counted, by the model that made it.

Sources: Chen, Zaharia and Zou, FrugalGPT (2023), section 3, for the cascade; Yue et al., Large Language Model
Cascades with Mixture of Thoughts Representations (2023), for agreement as its confidence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal

from ponder.chat.model import Model
from ponder.errors import EngineError, EngineTimeout, PonderError, Unsupported
from ponder.protocols import Strategy, Verifier, bound, most_tokens
from ponder.strategies.defaults import Canonical, canonical_answers
from ponder.strategies.features import mean_logprob
from ponder.strategies.pool import of_several
from ponder.strategies.stages import FAILURES, Stages, stopped, within
from ponder.types import Budget, Event, Question, Sample, Score, Scored

Confidence = Literal["logprob", "agreement"]


def cascade(
    small: Strategy,
    large: Strategy,
    large_model: Model | Callable[[], Awaitable[Model]],
    *,
    threshold: float,
    confidence: Confidence | Verifier = "logprob",
    share: float = 0.5,
    canonical: Canonical | None = None,
) -> Strategy:
    """`small` on the model that is asked, then `large` on `large_model` where the confidence is under `threshold`.

    `large_model` may be a function that opens it (`lambda: ponder.solving.open_model(uri)`), called when it is first
    needed for a question. "agreement" needs a small strategy of several samples, whose answers are compared by
    `canonical`, as in `self_consistency`. `share` of the budget is the most that the small model may spend.

    Where the small model fails, the large one is asked; where the large one fails or is cut short, the small
    one's answer stands. Raises ValueError for settings that cannot be, Unsupported for "logprob" where the small
    model's engine tells none, and the large model's error where both failed.
    """
    if isinstance(confidence, str) and confidence not in ("logprob", "agreement"):
        raise ValueError(f"confidence must be logprob, agreement or a verifier, not {confidence!r}")
    if math.isnan(threshold):
        raise ValueError("threshold must be a number, not nan")
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, not {share}")
    if confidence == "agreement" and not getattr(small, "several", False):
        raise ValueError("agreement needs a small strategy of several samples, such as self_consistency(4)")
    chosen = _Cascade(small, large, large_model, threshold, confidence, share, canonical or canonical_answers())

    def strategy(question: Question, model: Model, budget: Budget) -> AsyncIterator[Event]:
        return chosen.events(question, model, budget)

    named = confidence if isinstance(confidence, str) else getattr(confidence, "__qualname__", "verifier")
    name = f"cascade({_name(small)}, {_name(large)}, threshold={threshold:g}, {named.split('.<locals>')[0]})"
    return of_several(strategy, name, draws=bool(getattr(small, "draws", False)))


@dataclass(frozen=True)
class _Cascade:
    small: Strategy
    large: Strategy
    large_model: Model | Callable[[], Awaitable[Model]]
    threshold: float
    confidence: Confidence | Verifier
    share: float
    canonical: Canonical

    async def events(self, question: Question, model: Model, budget: Budget) -> AsyncGenerator[Event, None]:
        if self.confidence == "logprob" and not model.engine.capabilities.logprobs:
            raise Unsupported(
                f"{model.name} tells no log-probabilities", 'take another confidence: "agreement", or a verifier'
            )
        stages, failure = Stages(question, budget), None
        try:
            async with aclosing(self._small(stages, model)) as events:
                async for event in events:
                    yield event
        except FAILURES as error:
            failure = error
        left = stages.left()
        if left is not None and failure is None:
            told, sure = await self._judged(stages, model)
            yield stages.note(told)
            if sure:
                return
            left = stages.left()
        if left is None or stopped(model):
            if stages.answer is None and not stopped(model):
                raise failure or EngineTimeout("no time was left for the large model", "allow more")
            return
        try:
            opened = await self._opened(model)
        except EngineError:
            if stages.answer is None:
                raise
            return
        async with aclosing(stages.improve(self.large, opened, left)) as events:
            async for event in events:
                yield event

    async def _small(self, stages: Stages, model: Model) -> AsyncGenerator[Event, None]:
        part = stages.left(self.share)
        if part is None:  # a share of hardly anything: all of it is the large model's
            return
        kept = 0 if isinstance(self.confidence, str) else most_tokens(self.confidence)
        if part.tokens is not None:
            part = within(part, max(1, part.tokens - kept))
        async with aclosing(stages.run(self.small, model, part)) as events:
            async for event in events:
                yield event

    async def _judged(self, stages: Stages, model: Model) -> tuple[Scored, bool]:
        """What the confidence in the small model's answer is, and whether it is enough. Unknown, it is not."""
        sample = stages.answer
        if sample is None:
            return Scored(Score(0.0, "cascade", "no answer")), False
        if not isinstance(self.confidence, str):
            try:
                score = await bound(self.confidence, model)(stages.question, sample)
            except PonderError as error:
                return Scored(Score(0.0, "cascade", f"the verifier failed: {error}"), sample.index), False
            return Scored(score, sample.index, score.cost), score.value >= self.threshold
        value = self._agreement(stages, sample) if self.confidence == "agreement" else _probability(sample)
        why = f"{self.confidence}, threshold {self.threshold:g}"
        return Scored(Score(value, "cascade", why), sample.index), value >= self.threshold

    def _agreement(self, stages: Stages, sample: Sample) -> float:
        """The share of the samples that ended well which give the answer of `sample`."""
        whole = [each for each in stages.samples.values() if each.finish in ("stop", "length") and each.answer]
        votes = Counter(self.canonical(each.answer) for each in whole)
        answer = self.canonical(sample.answer)
        return votes[answer] / len(whole) if answer is not None and whole else 0.0

    async def _opened(self, model: Model) -> Model:
        opened = self.large_model if isinstance(self.large_model, Model) else await self.large_model()
        seed = model.params.seed if opened.params.seed is None else opened.params.seed
        params, grammar = replace(opened.params, seed=seed), opened.answer_grammar or model.answer_grammar
        return replace(opened, params=params, stop=opened.stop or model.stop, answer_grammar=grammar)


def _probability(sample: Sample) -> float:
    mean = mean_logprob(sample)
    return 0.0 if mean is None else math.exp(mean)


def _name(strategy: Strategy) -> str:
    return getattr(strategy, "__qualname__", type(strategy).__name__).split(".<locals>")[0]

"""Samples with the scores that a verifier gave them: what is chosen from to learn from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ponder.types import Question, Sample, Scored, Trace

LABELS = "completions"
"""The verifier's name under which a trace keeps labels of a sample's steps: no verdict on the sample."""


class Verified(NamedTuple):
    """A sample, the question it answers, its score, and labels of its steps where a trace holds some."""

    question: Question
    sample: Sample
    score: float
    labels: tuple[float, ...] = ()


def verified(traces: Iterable[Trace], verifier: str | None = None) -> Iterator[Verified]:
    """The samples of traces that have a score: the last one that `verifier`, or any, gave them. NaN is none."""
    for trace in traces:
        scored = [event for event in trace.events if isinstance(event, Scored)]
        # Labels by completions count before what the verifier that was named says of each step.
        named = [event for event in scored if event.score.verifier == verifier]
        named += [event for event in scored if event.score.verifier == LABELS]
        labels = {event.sample: event.score.steps for event in named if event.score.steps}
        verdicts = [event for event in scored if event.score.verifier != LABELS]
        scores = {each.sample: each.score.value for each in verdicts if verifier in (None, each.score.verifier)}
        for sample in trace.samples:
            score = scores.get(sample.index, math.nan)
            if not math.isnan(score):
                yield Verified(trace.question, sample, score, labels.get(sample.index, ()))

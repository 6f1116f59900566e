"""From the stream of events back to the trace: joined deltas, and the trace of a request that never ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ponder.types import (
    AnswerDelta,
    BestAnswer,
    Event,
    SampleFinished,
    Scored,
    ThinkingDelta,
    Trace,
)


def coalesce(events: Iterable[Event]) -> tuple[Event, ...]:
    """The same events with neighbouring deltas of one kind and sample joined.

    Deltas of other samples may come in between, for samples that are generated side by side take
    turns at every token; any other event keeps the deltas before it apart from those after it. What
    stays is the order within each sample, and that of everything else.
    """
    joined: list[tuple[Event, list[str]]] = []
    newest: dict[int, tuple[Event, list[str]]] = {}  # sample -> its last delta since the last other event
    for event in events:
        if not isinstance(event, ThinkingDelta | AnswerDelta):
            newest.clear()
            joined.append((event, []))
        elif event.sample in newest and type(newest[event.sample][0]) is type(event):
            newest[event.sample][1].append(event.text)
        else:
            newest[event.sample] = (event, [event.text])
            joined.append(newest[event.sample])
    return tuple(
        replace(event, text="".join(texts)) if isinstance(event, ThinkingDelta | AnswerDelta) else event
        for event, texts in joined
    )


def rebuild(trace: Trace, events: Sequence[Event]) -> Trace:
    """The trace of a request of which only the beginning (`trace`) and `events` are known.

    The answer is the last best answer, else as much as there is of the answer of the first sample
    that began one. The cost is that of the samples and scores that were finished: what an
    unfinished sample cost was never told.
    """
    costs = (event.cost for event in events if isinstance(event, SampleFinished | Scored))
    return replace(
        trace,
        answer=_answer(events) or trace.answer,
        cost=sum(costs, trace.cost),
        samples=(*trace.samples, *(event.sample for event in events if isinstance(event, SampleFinished))),
        scores=(*trace.scores, *(event.score for event in events if isinstance(event, Scored))),
        events=coalesce((*trace.events, *events)),
    )


def _answer(events: Sequence[Event]) -> str:
    best = [event.answer for event in events if isinstance(event, BestAnswer)]
    if best:
        return best[-1]
    deltas = [event for event in events if isinstance(event, AnswerDelta)]
    first = min((delta.sample for delta in deltas), default=0)
    return "".join(delta.text for delta in deltas if delta.sample == first)

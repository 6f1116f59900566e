"""From what the desk knows of a request to what metrics, spans, logs and alarms are made from."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from ponder.ops.finished import Finished, Operation
from ponder.ops.spans import RequestSpan, SpanMaker
from ponder.server.desk import Tally
from ponder.server.request import Request
from ponder.types import assistant

RECENT = 500
"""Requests that pages can look back on."""


def finished_of(tally: Tally) -> Finished:
    """The request as it has ended."""
    request, usage, begun = tally.request, tally.usage, tally.begun
    ended = tally.ended or time.monotonic()
    between = None
    if tally.first is not None and tally.last is not None and tally.pieces > 1:
        between = (tally.last - tally.first) / (tally.pieces - 1)
    scores = [score.value for score in usage.trace.scores] if usage and usage.trace else []
    return Finished(
        request.id,
        operation=_operation(request),
        dialect=request.dialect,
        model=request.model,
        answered=begun.model if begun else "",
        backend=tally.backend,
        provider="ponder" if tally.backend == "local" else tally.backend,
        key_id=request.caller.key,
        project=request.caller.project,
        prompt_name=request.prompt.name if request.prompt else "",
        prompt_version=request.prompt.version if request.prompt else None,
        strategy=request.strategy,
        effort=request.effort,
        thinking_budget=request.budget.thinking,
        stream=request.stream,
        input_tokens=usage.prompt if usage else 0,
        cached_tokens=usage.cached if usage else 0,
        output_tokens=usage.completion if usage else 0,
        reasoning_tokens=usage.reasoning if usage else 0,
        choices=request.n,
        samples=len(usage.trace.samples) if usage and usage.trace else request.n,
        finish_reasons=tuple(tally.reasons),
        status=tally.failure.status if tally.failure else 200,
        error=tally.failure.kind if tally.failure else "",
        seconds=ended - tally.arrived,
        first_token=None if tally.first is None else tally.first - tally.arrived,
        between_tokens=between,
        queued=tally.waited,
        micro_dollars=None if usage is None or usage.dollars is None else round(usage.dollars * 1e6),
        score=max(scores, default=None),
        refused="refusal" in tally.reasons,
        trace_id=usage.trace.id if usage and usage.trace else "",
        disconnected=tally.disconnected,
    )


class Telling:
    """Tells everybody who wants to know of each request that has ended. What fails there fails no request."""

    def __init__(self, *listeners: Callable[[Finished], None], spans: SpanMaker | None = None) -> None:
        self._listeners, self._spans = listeners, spans
        self._open: dict[str, RequestSpan] = {}
        self.recent: deque[Finished] = deque(maxlen=RECENT)
        self.failures = 0

    def arrived(self, tally: Tally) -> None:
        """Begins its span."""
        if self._spans is not None:
            request = tally.request
            self._open[request.id] = self._spans.begin(_operation(request), request.model, request.trace)

    def finished(self, tally: Tally) -> None:
        """Tells it."""
        made = finished_of(tally)
        self.recent.append(made)
        span = self._open.pop(tally.request.id, None)
        if span is not None:
            span.end(made, tally.request.question.messages, [assistant(tally.answer, tally.thinking)])
        for listener in self._listeners:
            try:
                listener(made)
            except Exception:  # a full disk under a log, a collector that is away
                self.failures += 1

    def flush(self) -> None:
        """Nothing waits: everybody was told at once."""


def _operation(request: Request) -> Operation:
    if request.dialect == "embeddings":
        return "embeddings"
    return "text_completion" if request.dialect == "completions" else "chat"

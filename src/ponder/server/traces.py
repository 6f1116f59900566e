"""Traces of what was answered, in the store: what was asked, thought and said, and what it cost."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime

from ponder.errors import PonderError
from ponder.ops.store import Store
from ponder.server.desk import Tally
from ponder.types import Provenance, Trace, TraceState


class Traces:
    """Writes a trace of each request that a model answered. A store that cannot be written fails no request."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.lost = 0

    def arrived(self, tally: Tally) -> None:
        """Nothing to write yet: what a dying process was at stands in the ledger."""

    def finished(self, tally: Tally) -> None:
        """Writes the trace."""
        if tally.begun is None or tally.usage is None:
            return
        trace = traced(tally)
        with contextlib.suppress(PonderError):
            self._store.begin(trace).finish(trace)
            return
        self.lost += 1


def traced(tally: Tally) -> Trace:
    """The trace of a request: that of its strategy, where it has one, else what was told."""
    request, usage = tally.request, tally.usage
    assert usage is not None
    version = request.prompt
    prompt = f"{version.name}@{version.version}" if version else None
    state: TraceState = "failed" if tally.failure else "interrupted" if tally.disconnected else "done"
    made = usage.trace
    if made is not None:
        return replace(made, id=request.id, provenance=replace(made.provenance, prompt_version=prompt), state=state)
    provenance = Provenance(
        model=tally.begun.model if tally.begun else request.model,
        strategy=request.strategy,
        settings={"dialect": request.dialect, "effort": request.effort},
        prompt_version=prompt,
        seed=request.sampling.seed,
    )
    return Trace(
        request.id,
        request.question,
        answer=tally.answer,
        cost=usage.cost,
        events=(),
        provenance=provenance,
        budget=request.budget,
        state=state,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        error=str(tally.failure) if tally.failure else None,
    )

"""Traces of what was answered, in the store: what was asked, thought and said, and what it cost."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

from ponder.errors import PonderError
from ponder.ops.store import Store
from ponder.server.desk import Tally
from ponder.types import Provenance, Trace, TraceState

FLUSH = 0.05
"""Seconds after which what has gathered is written: one transaction costs about as much as what is in it."""
BATCH = 16
"""Traces that are written at once, so that no request waits long for others' traces."""


class Traces:
    """Writes a trace of each request that a model answered, some together. A store that cannot be written fails no
    request; the end of the process by force takes the last moment's traces, and what they cost stands in the ledger."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[Trace] = []
        self._timer: asyncio.TimerHandle | None = None
        self.lost = 0

    def arrived(self, tally: Tally) -> None:
        """Nothing to write yet: what a dying process was at stands in the ledger."""

    def finished(self, tally: Tally) -> None:
        """Keeps the trace, to be written soon."""
        if tally.begun is None or tally.usage is None:
            return
        self._waiting.append(traced(tally))
        if len(self._waiting) >= BATCH:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH, self.flush)

    def flush(self) -> None:
        """Writes what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        kept, self._waiting = self._waiting, []
        if not kept:
            return
        try:
            self._store.keep(kept)
        except PonderError:
            self.lost += len(kept)


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

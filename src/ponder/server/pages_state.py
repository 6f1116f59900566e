"""How the server fares, for its pages and its metrics: each upstream's breaker, and the alarms of drift that stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ponder.ops import metrics
from ponder.ops.drift import Alarm, Drift
from ponder.server.failures import Refusal
from ponder.server.upstream_breaker import Breaker, State

_NAMES: Mapping[State, metrics.Upstream] = {"closed": "closed", "open": "open", "half-open": "half_open"}


class Guarded(Protocol):
    """An upstream: see `upstream.Upstream`."""

    @property
    def name(self) -> str: ...

    @property
    def breaker(self) -> Breaker: ...


class Condition:
    """Asked at each scrape and by each page. changed: told once alarms were ended by hand."""

    def __init__(
        self,
        upstreams: Sequence[Guarded] = (),
        drift: Drift | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._upstreams, self._drift, self._changed = tuple(upstreams), drift, changed

    def states(self) -> dict[str, metrics.Upstream]:
        """The state of each upstream, for `Metrics.upstreams`."""
        return {each.name: _NAMES[each.breaker.state] for each in self._upstreams}

    def document(self) -> dict[str, Any]:
        """The JSON form. since: seconds since 1970."""
        alarms = self._drift.alarms() if self._drift else ()
        return {"upstreams": [_upstream(each) for each in self._upstreams], "alarms": [_alarm(each) for each in alarms]}

    def restart(self, model: str, prompt: str) -> None:
        """Ends the alarms of a model and prompt: what comes next is the reference. Raises Refusal, 404, without any."""
        standing = {(each.stream.model, each.stream.named) for each in (self._drift.alarms() if self._drift else ())}
        if self._drift is None or (model, prompt) not in standing:
            of = f"{model[:100]!r}, prompt {prompt[:100]!r}" if prompt else repr(model[:100])
            raise Refusal(404, "not_found_error", f"no alarm of drift stands for {of}", "see /api/state")
        self._drift.restart(model, prompt)
        self._changed()


def _upstream(upstream: Guarded) -> dict[str, Any]:
    breaker = upstream.breaker
    return {"name": upstream.name, "state": breaker.state, "since": breaker.since, "error": breaker.error}


def _alarm(alarm: Alarm) -> dict[str, Any]:
    return {
        "model": alarm.stream.model,
        "prompt": alarm.stream.named,
        "signal": alarm.signal,
        "direction": alarm.direction,
        "text": alarm.text,
        "expected": alarm.expected,
        "seen": alarm.seen,
        "since": alarm.since or None,
    }

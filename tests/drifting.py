"""A server that has something to tell: an upstream whose breaker is open, and an alarm of drift."""

from __future__ import annotations

from ponder.ops.drift import Drift, DriftSettings
from ponder.ops.finished import Finished
from ponder.server.pages_state import Condition
from ponder.server.upstream_breaker import Breaker, BreakerSettings


class Cloud:
    """An upstream, as far as pages know one."""

    def __init__(self, name: str, *errors: str) -> None:
        self.name = name
        self.breaker = Breaker(BreakerSettings(failures=1, pause=60, longest=60))
        for error in errors:
            self.breaker.failed(error)


def drifted(model: str = "ponder-135m") -> Drift:
    """Answers of `model` to a prompt have become longer."""
    drift = Drift(DriftSettings(window=20, recent=10, requests_between_false_alarms=50))
    for number in range(400):
        long = 100 if number < 20 else 900
        drift.add(Finished(f"r{number}", model=model, prompt_name="support", prompt_version=3, output_tokens=long))
    return drift


def condition(drift: Drift | None = None, **more: object) -> Condition:
    """One upstream that is well, and one that is left alone."""
    return Condition([Cloud("well"), Cloud("ill", "timeout")], drift, **more)  # type: ignore[arg-type]

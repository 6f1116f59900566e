"""Everything that is known about a request when it has ended: metrics, spans, logs and drift are all made from this."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Operation = Literal["chat", "text_completion", "embeddings"]


@dataclass(frozen=True)
class Attempt:
    """One thing that was done for a request: a sample that was drawn, or a try at an upstream.

    began: seconds after the request began; seconds: how long it took. error: its kind, "" where there was none.
    """

    number: int
    kind: Literal["sample", "attempt"] = "sample"
    model: str = ""
    backend: str = ""
    provider: str = ""
    began: float = 0.0
    seconds: float = 0.0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    finish_reason: str = ""
    error: str = ""


@dataclass(frozen=True)
class Finished:
    """A request that has ended, well or not. It holds no text of a prompt or an answer, and no secret.

    model: as the client asked for it; answered: the one that answered. provider: whose interface answered, as
    OpenTelemetry names it; backend: ponder's name for it. key_id and project: who asked. thinking_budget: tokens.
    reasoning_tokens are among output_tokens and cached_tokens among input_tokens. choices: as many as were asked for;
    samples: as many as were drawn. status: of HTTP; error: its kind, "" where there was none. seconds: all of it;
    queued: of that, waiting for admission. first_token: seconds to the first token, None where none came;
    between_tokens: the mean of the seconds between two tokens, None for fewer than two. micro_dollars: None where no
    price is known. score: the verifier's for the answer, None where none scored. disconnected: the client left first.
    """

    id: str
    operation: Operation = "chat"
    dialect: str = ""
    model: str = ""
    answered: str = ""
    provider: str = ""
    backend: str = ""
    key_id: str = ""
    project: str = ""
    prompt_name: str = ""
    prompt_version: int | None = None
    strategy: str = ""
    effort: str = ""
    thinking_budget: int | None = None
    stream: bool = False
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    choices: int = 1
    samples: int = 1
    finish_reasons: tuple[str, ...] = ()
    status: int = 200
    error: str = ""
    seconds: float = 0.0
    first_token: float | None = None
    between_tokens: float | None = None
    queued: float = 0.0
    micro_dollars: int | None = None
    score: float | None = None
    refused: bool = False
    trace_id: str = ""
    disconnected: bool = False
    attempts: tuple[Attempt, ...] = ()

    @property
    def succeeded(self) -> bool:
        """Whether the client got a whole answer."""
        return self.status < 400 and not self.error and not self.disconnected

    def fields(self) -> dict[str, Any]:
        """What is known, by name; what is empty or None is left out, a count of 0 is not."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        attempts = [_known(dataclasses.asdict(attempt)) for attempt in self.attempts]
        return _known({**named, "attempts": attempts})


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value not in ("", (), [])}

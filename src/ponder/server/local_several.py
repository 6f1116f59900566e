"""What a client hears of one choice that several samples stand behind."""

from __future__ import annotations

from dataclasses import replace

from ponder.server.events import Content, Progress, Reason, Reasoning, ReplyEvent, Token
from ponder.server.local_single import Single
from ponder.server.request import Request
from ponder.types import BestAnswer, Done, Event, SampleFinished, Scored, ThinkingDelta


class Several(Single):
    """Tells one choice that several samples stand behind."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._lead: int | None = None
        self._best: BestAnswer | None = None
        self._answers: dict[int, int] = {}

    def tell(self, event: Event, tokens: tuple[Token, ...] = ()) -> list[ReplyEvent]:
        """Reasoning of the first sample, a line for each best answer, and the progress of all."""
        said: list[ReplyEvent] = [] if isinstance(event, Done) else [Progress(event)]
        if isinstance(event, ThinkingDelta):
            self._lead = event.sample if self._lead is None else self._lead
            if event.sample == self._lead:
                said.append(Reasoning(event.text))
        elif isinstance(event, SampleFinished):
            self.cost += event.cost
            self._answers[event.sample.index] = event.cost.answer
            if event.sample.index == self._lead:
                self._lead = -1  # what comes after are lines about answers
        elif isinstance(event, Scored):
            self.cost += event.cost
        elif isinstance(event, BestAnswer):
            if self._best is None or self._best.answer != event.answer:
                said.append(Reasoning(f"\n[best answer so far: {_line(event.answer)}]\n"))
            self._best = event
        elif isinstance(event, Done):
            self.trace, self.cost = event.trace, replace(event.trace.cost)
        return said

    def end(self) -> list[ReplyEvent]:
        """The answer."""
        answer = self.trace.answer if self.trace else self._best.answer if self._best else ""
        self.visible = self._answers.get(self._best.sample, 0) if self._best else 0
        stopper = self.stoppers[0]
        shown = stopper.feed(answer) + stopper.rest()
        reason: Reason = "length" if not answer or self._is_cut() else "stop"
        return [*([Content(shown)] if shown else []), *self.ended(0, reason, stopper.met)]

    def _is_cut(self) -> bool:
        """Whether the sample whose answer won was cut by its bound."""
        samples = self.trace.samples if self.trace else ()
        return self._best is not None and any(
            sample.index == self._best.sample and sample.finish == "length" for sample in samples
        )


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:77]}..."

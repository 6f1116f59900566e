"""What a client hears of choices that are samples, each as it comes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from ponder.server.events import Call, Content, Ended, Reason, Reasoning, ReplyEvent, Token, Usage
from ponder.server.request import Request
from ponder.server.stopping import Stopper
from ponder.types import AnswerDelta, Cost, Done, Event, Sample, SampleFinished, ThinkingDelta, ToolCalled, Trace

_DERIVED = re.compile(r"[0-9a-f]{9}")
"""Ids of calls to which the model gave none. Strict templates take nine letters and digits and nothing else."""


class Single:
    """Tells choices that are samples, each as it comes."""

    over = False

    def __init__(self, request: Request) -> None:
        self._request = request
        self.stoppers = {index: Stopper(request.sampling.stop) for index in range(request.n)}
        self._calls: dict[int, int] = {}
        self._ended: set[int] = set()
        self._held: dict[int, str] | None = None if request.sampling.logprobs is None else {}
        self.cost, self.visible = Cost(), 0
        self.trace: Trace | None = None

    def tell(self, event: Event, tokens: tuple[Token, ...] = ()) -> list[ReplyEvent]:
        """What a client hears of an event. tokens: of the answer, where log-probabilities are wanted and it ended."""
        if isinstance(event, ThinkingDelta):
            return [] if event.sample in self._ended else [Reasoning(event.text, event.sample)]
        if isinstance(event, AnswerDelta):
            return self._content(event.text, event.sample)
        if isinstance(event, ToolCalled):
            number = self._calls.setdefault(event.sample, 0)
            self._calls[event.sample] += 1
            if number and not self._request.tool_choice.parallel:
                return []
            id = _call_id(self._request, event.sample, event.call.id)
            return [Call(event.call.arguments, number, id, event.call.name, event.sample)]
        if isinstance(event, SampleFinished):
            return self._finished(event, tokens)
        if isinstance(event, Done):
            self.trace = event.trace
        return []

    def _content(self, text: str, choice: int) -> list[ReplyEvent]:
        if choice in self._ended:
            return []
        stopper = self.stoppers[choice]
        shown = stopper.feed(text)
        if self._held is not None:  # with its tokens, once it has ended
            self._held[choice] = self._held.get(choice, "") + shown
            return []
        said: list[ReplyEvent] = [Content(shown, choice)] if shown else []
        return [*said, *self.ended(choice, "stop", stopper.met)] if stopper.met else said

    def _finished(self, event: SampleFinished, tokens: tuple[Token, ...]) -> list[ReplyEvent]:
        self.cost += event.cost
        self.visible += event.cost.answer
        choice = event.sample.index
        if choice in self._ended:
            return []
        stopper = self.stoppers[choice]
        text = stopper.rest() if self._held is None else self._held.get(choice, "") + stopper.rest()
        said: list[ReplyEvent] = [Content(text, choice, tokens)] if text or tokens else []
        reason = "stop" if stopper.met else _reason(event.sample, bool(self._calls.get(choice)))
        return [*said, *self.ended(choice, reason, stopper.met)]

    def ended(self, choice: int, reason: Reason, met: str | None = None) -> list[ReplyEvent]:
        """What is said once a choice is complete. met: the stop string that ended it."""
        self._ended.add(choice)
        self.over = len(self._ended) == self._request.n
        return [Ended(reason, choice, met)]

    def end(self) -> list[ReplyEvent]:
        """What is left to be said once all events have come."""
        left = [choice for choice in range(self._request.n) if choice not in self._ended]
        return [each for choice in left for each in self.ended(choice, "cancelled")]

    def usage(self) -> Usage:
        """What it came to until now."""
        cost = self.cost
        return Usage(
            prompt=cost.prompt,
            cached=cost.prompt_cached,
            completion=cost.tokens,
            reasoning=max(0, cost.tokens - self.visible),
            cost=cost,
            dollars=cost.dollars,
            trace=self.trace,
        )


def _call_id(request: Request, choice: int, id: str) -> str:
    """The id of a call: one that was made of its words alone would come again where the same call does, turns later."""
    if not _DERIVED.fullmatch(id):
        return id
    return hashlib.blake2s(f"{request.id}/{choice}/{id}".encode()).hexdigest()[: len(id)]


def _reason(sample: Sample, called: bool) -> Reason:
    if called:
        return "tool_calls"
    known: Mapping[str, Reason] = {"stop": "stop", "length": "length", "cancelled": "cancelled"}
    return known.get(sample.finish, "cancelled")

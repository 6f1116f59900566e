"""Completions without strategy or thinking: a prompt as it stands, samples of it, and their tokens one by one.

This is what log-probabilities of every token need, and what evaluations of likelihood ask for: with `echo` the tokens
of the prompt come with the log-probability of each given those before it.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

from ponder.chat.model import Model
from ponder.errors import ContextOverflow
from ponder.protocols import Chunk, Engine, SamplingParams, closing
from ponder.server.events import Begun, Content, Ended, Reason, ReplyEvent, Token, Usage
from ponder.server.failures import invalid
from ponder.server.request import Request
from ponder.server.stopping import Stopper
from ponder.strategies.waiting import next_or_none
from ponder.types import Cost, Sample


class Pieces:
    """The text of single tokens, each asked for once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[int, str] = {}

    async def of(self, id: int) -> str:
        """Its text; part of a character shows as the replacement character."""
        if id not in self._known:
            self._known[id] = await self._engine.detokenize([id])
        return self._known[id]

    async def token(self, id: int, logprob: float | None, top: Sequence[tuple[int, float]] = ()) -> Token:
        """A token with its log-probability and the likeliest ones at its place."""
        others = [Token(await self.of(other), value, other) for other, value in top]
        return Token(await self.of(id), math.nan if logprob is None else logprob, id, tuple(others))


@dataclass
class _Choice:
    stopper: Stopper
    made: int = 0
    ended: bool = False
    held: list[Token] = field(default_factory=list)


class Plain:
    """One request for samples of a prompt of tokens. `cost` is what it has come to."""

    def __init__(self, model: Model, request: Request, ids: Sequence[int], pieces: Pieces) -> None:
        self._model, self._request, self._ids, self._pieces = model, request, tuple(ids), pieces
        self._choices = [_Choice(Stopper(request.sampling.stop)) for _ in range(request.n)]
        self.cost = Cost(calls=1)
        self._began = time.monotonic()

    async def events(self, begun: Begun) -> AsyncGenerator[ReplyEvent, None]:
        """What is told, a Usage last, also where the engine fails."""
        params = self._params()
        yield replace(begun, prompt_tokens=await self._echoed(params)) if self._request.echo else begun
        try:
            async for event in self._sampled(params):
                yield event
        finally:
            self.cost = self._model.priced(replace(self.cost, seconds=time.monotonic() - self._began))
        yield self.usage()

    def usage(self) -> Usage:
        """What it has come to."""
        cost = self.cost
        return Usage(cost.prompt, cost.prompt_cached, cost.tokens, 0, cost=cost, dollars=cost.dollars)

    def _params(self) -> SamplingParams:
        info, asked = self._model.engine.info, self._request.budget.tokens or 16
        room = (info.context or asked + len(self._ids)) - len(self._ids)
        if room < 1:
            raise ContextOverflow(
                f"the prompt has {len(self._ids)} tokens and the model's context {info.context}", "shorten the prompt"
            )
        top = self._request.sampling.logprobs or 0
        most = self._model.engine.capabilities.top
        if top > most:
            raise invalid(f"{info.name} tells at most {most} likeliest tokens, not {top}", "ask for fewer", "logprobs")
        grammar = self._model.answer_grammar
        return replace(self._model.params, max_tokens=min(asked, room), top=top, grammar=grammar)

    async def _echoed(self, params: SamplingParams) -> tuple[Token, ...]:
        """The prompt's tokens, with the likeliest ones at their places. The first has no log-probability, as nothing
        stands before it."""
        if self._request.sampling.logprobs is None:
            return tuple([await self._pieces.token(id, None) for id in self._ids])
        if not self._model.engine.capabilities.score:
            raise invalid(f"{self._model.name} scores no prompts", "leave out echo or logprobs", "echo")
        scoring = SamplingParams(1, adapters=params.adapters, top=params.top)
        scores = await self._model.engine.score(self._ids, 1, scoring) if len(self._ids) > 1 else []
        self.cost += Cost(prompt_computed=getattr(scores, "computed", 0), calls=1)
        told: list[float | None] = [None, *scores]
        tops = ((), *(getattr(scores, "top", ()) or ((),) * len(scores)))
        made = [await self._pieces.token(id, value, top) for id, value, top in zip(self._ids, told, tops, strict=True)]
        return tuple(made)

    async def _sampled(self, params: SamplingParams) -> AsyncGenerator[ReplyEvent, None]:
        seconds = self._request.deadline if self._request.budget.seconds is None else self._request.budget.seconds
        stream = self._model.engine.sample(self._ids, self._request.n, params)
        async with closing(stream) as chunks:
            while not all(choice.ended for choice in self._choices):
                left = None if seconds is None else seconds - (time.monotonic() - self._began)
                try:
                    chunk = await next_or_none(chunks, self._model.stop, left, self._lost)
                except StopAsyncIteration:
                    break
                if chunk is None:
                    break
                for event in await self._told(chunk):
                    yield event
        self.cost += Cost(cancelled=getattr(stream, "undelivered", 0))
        for index, choice in enumerate(self._choices):
            if not choice.ended:
                for event in self._end(index, choice, "cancelled"):
                    yield event

    def _lost(self, chunk: Chunk) -> None:
        self.cost += Cost(cancelled=len(chunk.ids) + chunk.lost)

    async def _told(self, chunk: Chunk) -> list[ReplyEvent]:
        choice = self._choices[chunk.index]
        mine = Cost(prompt_computed=chunk.prompt_computed, prompt_cached=chunk.prompt_cached, cancelled=chunk.lost)
        if choice.ended:
            self.cost += replace(mine, cancelled=mine.cancelled + len(chunk.ids))
            return []
        self.cost += replace(mine, answer=len(chunk.ids))
        said: list[ReplyEvent] = []
        text = choice.stopper.feed(chunk.text)
        tokens = await self._tokens(chunk) if self._request.sampling.logprobs is not None else ()
        if text or tokens:
            said.append(Content(text, chunk.index, tokens))
        if choice.stopper.met:
            return [*said, *self._end(chunk.index, choice, "stop")]
        if chunk.finish:
            return [*said, *self._end(chunk.index, choice, "length" if chunk.finish == "length" else "stop")]
        return said

    async def _tokens(self, chunk: Chunk) -> tuple[Token, ...]:
        tops = chunk.top or ((),) * len(chunk.ids)
        made = [
            await self._pieces.token(id, value, top)
            for id, value, top in zip(chunk.ids, chunk.logprobs, tops, strict=True)
        ]
        return tuple(made)

    def _end(self, index: int, choice: _Choice, reason: Reason) -> list[ReplyEvent]:
        choice.ended = True
        rest = "" if choice.stopper.met else choice.stopper.rest()
        return [*([Content(rest, index)] if rest else []), Ended(reason, index, choice.stopper.met)]


async def answer_tokens(pieces: Pieces, sample: Sample) -> tuple[Token, ...]:
    """The tokens of a sample's answer with their log-probabilities."""
    answers = [span for span in sample.spans if span.kind == "answer"]
    found, place = list[Token](), 0
    for id, logprob in zip(sample.ids, sample.logprobs, strict=True):
        text = await pieces.of(id)
        if any(span.start < place + len(text) and place < span.end for span in answers):
            found.append(await pieces.token(id, logprob))
        place += len(text)
    return tuple(found)

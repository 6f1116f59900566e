"""Requests to an engine on behalf of drafts: what is read, what is cut, what is lost, and what all of it cost."""

from __future__ import annotations

import asyncio
import copy
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ponder.chat.model import Model
from ponder.errors import EngineDisconnected, EngineError
from ponder.protocols import Chunk, SamplingParams
from ponder.strategies.draft import Draft, Generate, Restore, Write
from ponder.strategies.waiting import next_or_none
from ponder.types import Cost, Event

RESUMES = 2
"""How often a sample whose engine went away is continued, from its exact ids."""

THINKING_SHARE = 0.7
"""Share of a bound in seconds after which thinking has to close."""


class Until(Protocol):
    """Where a request may end early: not before `character` has come, where that is known to an engine."""

    @property
    def character(self) -> str: ...

    def __call__(self, draft: Draft) -> bool: ...


@dataclass
class Limits:
    """What bounds a request beside its tokens, and what it has spent of that."""

    started: float
    seconds: float | None
    calls: int | None
    stop: asyncio.Event | None
    made: int = 0

    def wait(self, thinking: bool) -> float | None:
        """Seconds that a sample may still go on, None without a bound."""
        if self.seconds is None:
            return None
        share = THINKING_SHARE if thinking else 1.0
        return self.started + share * self.seconds - time.monotonic()

    @property
    def late(self) -> bool:
        """The time is over."""
        wait = self.wait(thinking=False)
        return wait is not None and wait <= 0

    @property
    def stopped(self) -> bool:
        """The user asked to stop."""
        return self.stop is not None and self.stop.is_set()

    @property
    def described(self) -> str:
        """The bounds in words."""
        bounds = {"seconds": self.seconds, "calls": self.calls}
        return ", ".join(f"{value:g} {name}" for name, value in bounds.items() if value is not None) or "its budget"

    def calls_left(self) -> int | None:
        """Requests to the engine that may still be made."""
        return None if self.calls is None else self.calls - self.made


@dataclass
class Spent:
    """What a sample's requests cost beside its own tokens."""

    computed: int = 0
    cached: int = 0
    recomputed: int = 0
    calls: int = 0
    failures: int = 0
    written: int = 0
    """Tokens of ponder's own that the engine has computed."""
    started: float = field(default_factory=time.monotonic)


class Requests:
    """Asks the engine for drafts, and keeps the books. `emit` gets events as they come."""

    def __init__(self, model: Model, limits: Limits, emit: Callable[[list[Event]], None]) -> None:
        self._model = model
        self.limits = limits
        self._emit = emit
        self.spent: defaultdict[int, Spent] = defaultdict(Spent)
        self._prompted = False  # what the prompt cost is known

    async def do(self, draft: Draft, action: Generate | Write | Restore, until: Until | None = None) -> None:
        """Does what a draft asks for."""
        if isinstance(action, Write):
            self._emit(draft.write(action.written))
        elif isinstance(action, Restore):
            draft.restore(action.text, await self._model.engine.tokenize(action.text))
        else:
            await self.generate([draft], action, until)

    def muted(self) -> Requests:
        """Requests in the same books, whose events nobody hears."""
        twin = copy.copy(self)
        twin._emit = lambda events: None
        return twin

    def inherit(self, parent: Draft, child: Draft) -> None:
        """The child goes on where the parent is: what the engine computed of it, it computed for both."""
        self.spent[child.index].written = self.spent[parent.index].written

    def cost(self, draft: Draft) -> Cost:
        """What a draft has cost, its own tokens and its requests."""
        spent = self.spent[draft.index]
        cost = replace(
            draft.cost(),
            prompt_computed=spent.computed,
            prompt_cached=spent.cached,
            recomputed=spent.recomputed,
            calls=spent.calls,
            seconds=time.monotonic() - spent.started,
        )
        return self._model.priced(cost)

    async def generate(self, drafts: Sequence[Draft], action: Generate, until: Until | None = None) -> None:
        """One request for all of `drafts`, which have the same sequence so far.

        With `until`, each ends as soon as that holds of it.
        """
        lead = drafts[0]
        asked = self._model.params
        params = replace(asked, max_tokens=action.tokens, ignore_eos=action.ignore_eos or asked.ignore_eos)
        if until is not None and self._model.engine.capabilities.until:
            params = replace(params, until=until.character)
        if action.grammar:
            params = replace(params, grammar=action.grammar, grammar_consumed=action.consumed)
        elif lead.grammar and self._model.engine.capabilities.stops:
            # The end of thinking ends the request: what comes then is bound, and this would not be.
            params = replace(params, stops=lead.format.close_markers)
        params = self._numbered(params, lead, alone=len(drafts) == 1)
        self.limits.made += 1
        self.spent[lead.index].calls += 1
        fresh = self._fresh(drafts)
        stream = self._model.engine.sample([*lead.prompt_ids, *lead.ids], len(drafts), params)
        room = dict.fromkeys(range(len(drafts)), action.tokens)  # of the samples that go on
        try:
            while room:
                chunk = await self._read(stream, drafts, room)
                if chunk is None:
                    break
                self._note_prompt(lead, chunk, fresh)
                i, draft = chunk.index, drafts[chunk.index]
                if i not in room:
                    draft.wasted(len(chunk.ids) + chunk.lost)
                    continue
                chunk = await self._within(chunk, room[i])
                self._emit(draft.feed(chunk))
                room[i] -= len(chunk.ids)
                nothing = room[i] == action.tokens and not chunk.lost
                if chunk.finish and nothing and (chunk.finish != "stop" or params.ignore_eos):
                    raise EngineDisconnected("the engine ended a sample without a single token", "ask again")
                over = until is not None and until(draft)
                # An engine may forget to say that it ended: it is not asked.
                if chunk.finish or not room[i] or over or (draft.deaf and len(drafts) == 1):
                    del room[i]
        except StopAsyncIteration:
            error = EngineDisconnected("the engine's stream ended without a finish", "ask again")
            self._disconnected([drafts[i] for i in room], error)
        except EngineError as error:
            if not error.retryable:
                raise
            self._disconnected([drafts[i] for i in room], error)
        finally:
            await self._leave(stream, drafts, room)

    def _numbered(self, params: SamplingParams, lead: Draft, alone: bool) -> SamplingParams:
        """Settings with which each request of each sample draws anew, whichever samples it is made with."""
        number = params.first + lead.index
        if params.seed is None:
            return params
        if not lead.ids and self._model.engine.capabilities.first:
            return replace(params, first=number)
        if not lead.ids and not alone:
            return params
        return replace(params, seed=hash((params.seed, number, len(lead.ids))) & (2**63 - 1), first=0)

    async def _read(
        self, stream: AsyncIterator[Chunk], drafts: Sequence[Draft], room: Mapping[int, int]
    ) -> Chunk | None:
        """The next chunk; None once time is up or the user said stop, which the drafts in `room` then know."""
        waiting = [drafts[i] for i in room]

        def lost(chunk: Chunk) -> None:
            drafts[chunk.index].wasted(len(chunk.ids) + chunk.lost)

        thinking = any(draft.still_thinking and not draft.hurry for draft in waiting)
        chunk = await next_or_none(stream, self.limits.stop, self.limits.wait(thinking), lost)
        if chunk is None:
            for draft in waiting:
                draft.hurry = True
                draft.halted = draft.halted or self.limits.stopped or self.limits.late
        return chunk

    async def _within(self, chunk: Chunk, room: int) -> Chunk:
        """The chunk, cut to `room` tokens and whole characters: an engine may not know its cap. The rest is lost."""
        if len(chunk.ids) <= room:
            return chunk
        for kept in (*range(room, max(room - 4, 0), -1), 0):
            text = await self._model.engine.detokenize(chunk.ids[:kept]) if kept else ""
            if chunk.text.startswith(text):
                break
        return Chunk(
            chunk.index,
            chunk.ids[:kept],
            text,
            chunk.logprobs[:kept],
            "length",
            lost=chunk.lost + len(chunk.ids) - kept,
        )

    async def _leave(self, stream: Any, drafts: Sequence[Draft], room: dict[int, int]) -> None:
        """Closes the stream, and shares out what the engine had generated beyond what was read."""
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()
        undelivered = getattr(stream, "undelivered", 0)
        for i, most in room.items():
            drafts[i].wasted(min(undelivered, most))
            undelivered -= min(undelivered, most)
        drafts[0].wasted(undelivered)

    def _fresh(self, drafts: Sequence[Draft]) -> int:
        """Tokens of ponder's own that the engine has not computed yet, taken as computed from now on."""
        spent = self.spent[drafts[0].index]
        fresh = max(0, drafts[0].written - spent.written)
        for draft in drafts:
            self.spent[draft.index].written = draft.written
        return fresh

    def _note_prompt(self, lead: Draft, chunk: Chunk, fresh: int) -> None:
        """Counts what the engine computed before its first token; `fresh` of it ponder had just written."""
        spent, computed = self.spent[lead.index], max(0, chunk.prompt_computed - fresh)
        if self._prompted:
            spent.recomputed += computed
        else:  # the prompt counts once, however many samples share it
            spent.computed += computed
            spent.cached += chunk.prompt_cached
            self._prompted = bool(chunk.prompt_computed or chunk.prompt_cached)

    def _disconnected(self, drafts: Sequence[Draft], error: EngineError) -> None:
        """The engine went away: what is there stays, and each draft asks again, but not for ever."""
        for draft in drafts:
            spent = self.spent[draft.index]
            spent.failures += 1
            if spent.failures > RESUMES:
                raise error
            draft.interrupted()

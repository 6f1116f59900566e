"""The thinking budget: one hard bound for a whole request, and an answer whatever happens.

Drives `draft.Draft`, which decides, over any engine that takes token ids: it needs only to stop and
to continue with exact ids. The first request makes n samples of one prompt and shares its prefill;
from then on each sample goes its own way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field, replace
from typing import Any

from ponder.chat.model import Model, Prompt
from ponder.errors import ContextOverflow, EngineDisconnected, EngineError, EngineTimeout, NoAnswer
from ponder.protocols import Chunk
from ponder.strategies.draft import LEAST_ANSWER, Draft, Generate, Plan, Restore, Write, Written, plan
from ponder.strategies.waiting import next_or_none
from ponder.types import Budget, Cost, Event, Question, SampleFinished

RESUMES = 2
"""How often a sample whose engine went away is continued, from its exact ids."""

UNKNOWN_CONTEXT = 8192
"""Tokens taken for the context of a model whose server does not tell."""

THINKING_SHARE = 0.7
"""Share of a bound in seconds after which thinking has to close."""


@dataclass
class Limits:
    """What bounds a request beside its tokens, and what it has spent of that."""

    started: float
    seconds: float | None
    calls: int | None
    stop: asyncio.Event | None
    made: int = 0

    @property
    def deadline(self) -> float | None:
        """When everything ends, on the clock of `time.monotonic`."""
        return None if self.seconds is None else self.started + self.seconds

    def wait(self, thinking: bool) -> float | None:
        """Seconds that a sample may still go on, None without a bound."""
        if self.seconds is None:
            return None
        share = THINKING_SHARE if thinking else 1.0
        return self.started + share * self.seconds - time.monotonic()

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
class _Spent:
    """What a sample's requests cost beside its own tokens."""

    computed: int = 0
    cached: int = 0
    recomputed: int = 0
    calls: int = 0
    failures: int = 0
    written: int = 0
    """Tokens of ponder's own that the engine has computed."""
    started: float = field(default_factory=time.monotonic)


async def think_within(
    model: Model, question: Question, budget: Budget, n: int = 1, think: bool = True
) -> AsyncIterator[Event]:
    """n samples for `question` within `budget`, shared evenly: deltas, and a SampleFinished for each.

    Raises BudgetTooSmall where no answer fits, ContextOverflow where the prompt is too long, and
    EngineError where the engine fails and continuing failed too.
    """
    limits = Limits(time.monotonic(), budget.seconds, budget.calls, model.stop)
    prompt = await model.prompt(question.messages, think, question.tools)
    chosen = await make_plan(model, prompt, budget, n, think)
    if think and not chosen.think:  # no room for thinking: ask for the answer at once
        prompt = await model.prompt(question.messages, False, question.tools)
        chosen = await make_plan(model, prompt, budget, n, False)
    end_ids = frozenset(model.engine.info.eos_ids)
    drafts = [
        Draft(i, prompt.ids, model.format, chosen, prompt.inside, end_ids, bool(question.tools)) for i in range(n)
    ]
    async for event in _Driver(model, drafts, limits).events():
        yield event


async def make_plan(model: Model, prompt: Prompt, budget: Budget, n: int, think: bool) -> Plan:
    """The plan of one of n samples that share `budget`."""
    room = (model.engine.info.context or UNKNOWN_CONTEXT) - len(prompt.ids)
    total = affordable(model, prompt, budget)
    tokens = room if total is None else min(total // n, room)
    form = model.format
    closing, opener, wait = [await _written(model, t) for t in (form.closing, form.answer_opener, form.wait)]
    if room < LEAST_ANSWER:
        raise ContextOverflow(
            f"the prompt has {len(prompt.ids)} tokens and the model's context {model.engine.info.context}",
            "shorten the question, or take a model with a longer context",
        )
    return plan(tokens, budget.reserve, budget.thinking, budget.min_thinking, think, closing, opener, wait)


def affordable(model: Model, prompt: Prompt, budget: Budget) -> int | None:
    """Tokens that `budget` pays for: its own bound, and what its dollars buy after the prompt."""
    if budget.dollars is None or model.price is None or model.price.output <= 0:
        return budget.tokens
    bought = int((budget.dollars * 1e6 - len(prompt.ids) * model.price.prompt) / model.price.output)
    return max(0, bought) if budget.tokens is None else max(0, min(bought, budget.tokens))


async def _written(model: Model, text: str) -> Written:
    return Written(text, tuple(await model.engine.tokenize(text)))


class _Driver:
    """Does what the drafts ask for, and hands out their events as they come."""

    def __init__(self, model: Model, drafts: list[Draft], limits: Limits) -> None:
        self._model = model
        self._drafts = drafts
        self._limits = limits
        self._spent = [_Spent() for _ in drafts]
        self._queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = len(drafts)

    async def events(self) -> AsyncIterator[Event]:
        self._spawn(self._lead())
        try:
            while self._running:
                item = await self._queue.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    self._running -= 1
                else:
                    yield item
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:
            self._queue.put_nowait(error)

    def _emit(self, events: list[Event]) -> None:
        for event in events:
            self._queue.put_nowait(event)

    # ------------------------------------------------------------ the first request, shared

    async def _lead(self) -> None:
        first = self._drafts[0]
        action = first.next() if len(self._drafts) > 1 else None
        if isinstance(action, Generate):
            await self._generate(self._drafts, action)
        for draft in self._drafts:
            self._spawn(self._follow(draft))

    # ------------------------------------------------------------ a sample on its own

    async def _follow(self, draft: Draft) -> None:
        while (action := self._next(draft)) is not None:
            if isinstance(action, Write):
                self._emit(draft.write(action.written))
            elif isinstance(action, Restore):
                draft.restore(action.text, await self._model.engine.tokenize(action.text))
            else:
                await self._generate([draft], action)
        self._emit(draft.end())
        self._emit([SampleFinished(draft.sample(), self._cost(draft))])
        if not (draft.answer or draft.calls or self._limits.stopped):
            if draft.halted:
                raise EngineTimeout(f"no answer came within {self._limits.described}", "allow more")
            raise NoAnswer("the model gave nothing but white space", "raise the budget, or ask another model")
        self._queue.put_nowait(None)

    def _next(self, draft: Draft) -> Generate | Write | Restore | None:
        calls = self._limits.calls_left()
        if calls is not None:
            draft.terse = calls <= 3
            draft.hurry = draft.hurry or calls <= 1
            draft.halted = draft.halted or calls <= 0
        draft.halted = draft.halted or self._limits.stopped
        return draft.next()

    def _cost(self, draft: Draft) -> Cost:
        spent = self._spent[draft.index]
        cost = replace(
            draft.cost(),
            prompt_computed=spent.computed,
            prompt_cached=spent.cached,
            recomputed=spent.recomputed,
            calls=spent.calls,
            seconds=time.monotonic() - spent.started,
        )
        return self._model.priced(cost)

    # ------------------------------------------------------------ one request

    async def _generate(self, drafts: list[Draft], action: Generate) -> None:
        """One request for all of `drafts`, which have the same sequence so far."""
        lead = drafts[0]
        prefix = [*lead.prompt_ids, *lead.ids]
        params = replace(self._model.params, max_tokens=action.tokens, ignore_eos=action.ignore_eos)
        if params.seed is not None and len(drafts) == 1:  # each request of each sample draws anew
            params = replace(params, seed=hash((params.seed, lead.index, len(lead.ids))) & (2**63 - 1))
        self._limits.made += 1
        spent = self._spent[lead.index]
        fresh, spent.written = lead.written - spent.written, lead.written
        spent.calls += 1
        stream = self._model.engine.sample(prefix, len(drafts), params)
        counts = dict.fromkeys(range(len(drafts)), 0)
        open_ = set(counts)
        try:
            while open_:
                chunk = await self._read(stream, drafts)
                if chunk is None:
                    break
                self._note_prompt(spent, chunk, fresh)
                draft = drafts[chunk.index]
                chunk = _within(chunk, action.tokens - counts[chunk.index])
                counts[chunk.index] += len(chunk.ids)
                self._emit(draft.feed(chunk))
                # An engine may go on beyond the cap, or forget to say that it ended: it is not asked.
                full = counts[chunk.index] >= action.tokens
                if chunk.finish is not None or full or (draft.deaf and len(drafts) == 1):
                    open_.discard(chunk.index)
        except StopAsyncIteration:
            self._disconnected(drafts, EngineDisconnected("the engine's stream ended without a finish", "ask again"))
        except EngineError as error:
            if not error.retryable:
                raise
            self._disconnected(drafts, error)
        finally:
            await self._leave(stream, lead)

    async def _read(self, stream: Any, drafts: list[Draft]) -> Chunk | None:
        """The next chunk; None once time is up or the user said stop, which the drafts then know."""
        draft = drafts[0]
        wait = self._limits.wait(draft.still_thinking and not draft.hurry)
        chunk: Chunk | None = await next_or_none(stream, self._limits.stop, wait)
        if chunk is not None:
            return chunk
        for each in drafts:
            if self._limits.stopped or not each.still_thinking or each.hurry:
                each.halted = True
            each.hurry = True
        return None

    async def _leave(self, stream: Any, lead: Draft) -> None:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()
        lead.wasted(getattr(stream, "undelivered", 0))

    def _note_prompt(self, spent: _Spent, chunk: Chunk, fresh: int) -> None:
        """Counts what the engine computed before its first token; `fresh` of it ponder had just written."""
        if spent.calls == 1:
            spent.computed += chunk.prompt_computed
            spent.cached += chunk.prompt_cached
        elif chunk.prompt_computed:
            spent.recomputed += max(0, chunk.prompt_computed - fresh)

    def _disconnected(self, drafts: list[Draft], error: EngineError) -> None:
        """The engine went away: what is there stays, and each draft asks again, but not for ever."""
        for draft in drafts:
            spent = self._spent[draft.index]
            spent.failures += 1
            if spent.failures > RESUMES:
                raise error
            draft.interrupted()


def _within(chunk: Chunk, room: int) -> Chunk:
    """The chunk, cut to `room` tokens: an engine may not know its cap. What is cut off is lost."""
    if len(chunk.ids) <= room:
        return chunk
    return replace(chunk, ids=chunk.ids[:room], logprobs=chunk.logprobs[:room], lost=chunk.lost + len(chunk.ids) - room)

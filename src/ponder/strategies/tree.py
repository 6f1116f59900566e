"""A tree of samples under one budget: branches that grow step by step, are scored, dropped, or finished.

A step is a line of thinking (or `step` tokens of it); the answer belongs to the last step. A branch is a
`Draft`: its first child goes on in the same draft, the others are forks of it, token for token, so an
engine that keeps its cache computes each token of the tree once:

    tokens computed = prompt + sum over branches of their own tokens

What a branch inherits is paid by its parent; `Sample.parent` and `Sample.fork` tell where it left it.
Every round is dealt out of what is left of the whole budget,

    a = floor(left / branches) - V >= step + |closing| + |opener| + 4       V: tokens of one scoring

so that each branch could still close its thinking and answer; where that does not fit, fewer branches grow.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from ponder.chat.model import Model
from ponder.errors import EngineError, PonderError, Unsupported
from ponder.protocols import Strategy, Verifier, bound, most_tokens
from ponder.strategies.best_of_n import Aggregate, aggregated
from ponder.strategies.budget import begun, no_answer
from ponder.strategies.draft import Action, Draft, Generate, Restore, Write
from ponder.strategies.pool import of_several
from ponder.strategies.requests import Limits, Requests
from ponder.types import AnswerDelta, BestAnswer, Budget, Event, Question, Sample, SampleFinished, Scored

KEPT_CALLS = 2
"""Requests kept back while branches grow, for the answer of the best one."""


@dataclass(frozen=True)
class Step:
    """Where a step ends: after `character` on a line that is not blank, or after `most` tokens. Answers have no end."""

    start: int
    begin: int
    most: int
    character: str = "\n"

    def __call__(self, draft: Draft) -> bool:
        if not draft.still_thinking:
            return False
        line = self.character != "" and self.character in draft.said[self.start :].lstrip()
        return line or self.left(draft) <= 0

    def left(self, draft: Draft) -> int:
        return self.begin + self.most - len(draft.ids)


@dataclass
class Branch:
    """A sample of the tree. `value` is the verifier's, aggregated; `over`: it grows no more."""

    draft: Draft
    parent: int | None = None
    fork: int = 0
    value: float = 0.0
    over: bool = False
    told: bool = False
    probe: bool = False
    step: Step | None = None
    error: PonderError | None = None

    @property
    def index(self) -> int:
        return self.draft.index

    @property
    def answered(self) -> bool:
        return self.over and self.error is None and not self.draft.empty

    def sample(self) -> Sample:
        """The branch as a sample: what has been said so far, its parent's part included."""
        return replace(self.draft.sample(), parent=self.parent, fork=self.fork)


Search = Callable[["Tree"], Awaitable[None]]


def search_strategy(
    name: str, search: Search, verifier: Verifier | None, aggregate: Aggregate, step: int, line: str = "\n"
) -> Strategy:
    """The strategy that grows a tree by `search`.

    `step` bounds the tokens of a step, `line` ends one. Without a verifier nothing is scored.
    """

    def strategy(question: Question, model: Model, budget: Budget) -> AsyncIterator[Event]:
        return _searched(question, model, budget, search, verifier, aggregate, step, line)

    return of_several(strategy, name, draws=True)


async def _searched(
    question: Question,
    model: Model,
    budget: Budget,
    search: Search,
    verifier: Verifier | None,
    aggregate: Aggregate,
    step: int,
    line: str,
) -> AsyncGenerator[Event, None]:
    if not model.engine.capabilities.tokens:
        raise Unsupported(
            "this server deals in messages, and a search continues exact tokens",
            "take vote or best_of_n, or a server with token ids",
        )
    limits, (draft,) = await begun(model, question, budget)
    judge = None if verifier is None else bound(verifier, model)
    tree = Tree(model, question, draft, limits, judge, aggregate, step, line)
    async with aclosing(tree.events(search)) as events:
        async for event in events:
            yield event


class Tree:
    """The branches of one request. A search grows, scores, drops and finishes them; their events stream out."""

    def __init__(
        self,
        model: Model,
        question: Question,
        draft: Draft,
        limits: Limits,
        verifier: Verifier | None,
        aggregate: Aggregate = "value",
        step: int = 64,
        line: str = "\n",
    ) -> None:
        self.question = question
        self.plan = draft.plan
        self.limits = limits
        self.best: Branch | None = None
        self._verifier = verifier
        self._scoring = 0 if verifier is None else most_tokens(verifier)
        self._aggregate = aggregate
        self._step, self._line = step, line
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._requests = Requests(model, limits, self._emit)
        self._verifying = 0
        self._kept_calls = KEPT_CALLS
        self.root = Branch(draft)
        self.branches = [self.root]
        self._numbers = 1

    # ------------------------------------------------------------ the books

    @property
    def left(self) -> int:
        """Tokens of the whole budget that nobody has used."""
        return self.plan.tokens - sum(branch.draft.own for branch in self.branches) - self._verifying

    def fits(self, kept: int = 0) -> int:
        """How many branches could grow by a step and still answer, with `kept` tokens left alone."""
        return (self.left - kept) // (self._step + self._least + self._scoring)

    @property
    def _least(self) -> int:
        """Tokens in which thinking closes and something is answered."""
        return len(self.plan.closing.ids) + self.plan.last

    @property
    def answer_tokens(self) -> int:
        """Tokens in which the best branch closes its thinking and answers as the budget wants it."""
        return len(self.plan.closing.ids) + self.plan.reserve + self._scoring

    def probe_tokens(self, tokens: int) -> int:
        """Tokens that a probe takes which may answer in so many."""
        return self._least + tokens

    @property
    def ending(self) -> bool:
        """Nothing more should begin: the user said stop, or there are time and calls for one more answer at most."""
        calls, wait = self.limits.calls_left(), self.limits.wait(thinking=True)
        return self.limits.stopped or (calls is not None and calls <= KEPT_CALLS) or (wait is not None and wait <= 0)

    # ------------------------------------------------------------ what a search does

    async def grow(self, parents: Sequence[Branch], width: int, kept: int = 0) -> list[list[Branch]]:
        """Each parent's `width` children, a step further; the first goes on in the parent's own place.

        `kept` tokens of the budget are left alone. A child that fails is left out, and told as a failure.
        """
        allowance = (self.left - kept) // (len(parents) * width) - self._scoring
        families = [[parent] for parent in parents]
        await asyncio.gather(*(self._ready(parent, allowance) for parent in parents))
        for family in families:  # numbered in the order of the parents, so that the order of completion changes nothing
            if not family[0].over and family[0].error is None:
                family += [self._fork(family[0]) for _ in range(width - 1)]
        await self._together([branch for family in families for branch in family])
        for branch in (each for family in families for each in family):
            if branch.over:
                self._tell(branch)
        return [[branch for branch in family if branch.error is None] for family in families]

    async def begin(self, n: int) -> list[Branch]:
        """The first step of `n` branches, fewer where no more fit; none where the budget is for one answer alone."""
        if self.fits() < 1 or self.ending:
            await self.finish(self.root)
            return []
        (branches,) = await self.grow([self.root], min(n, self.fits()))
        return branches

    async def finish(self, branch: Branch) -> None:
        """Lets a branch think and answer to its end, with all that is left of the budget."""
        self._kept_calls = 0
        branch.draft.halted = False
        scoring = self._scoring if self.left > self._scoring + self._least else 0
        self._plan(branch.draft, self.left - scoring, self.plan.reserve)
        branch.step = None
        await self._together([branch])
        branch.over = True
        self._tell(branch)
        await self.score([branch])

    async def rollout(self, branch: Branch) -> float:
        """The value of an answer that is sampled from here on, in a fork; of the branch itself where it has ended."""
        if branch.over or self.fits() < 1 or self.ending:
            return branch.value
        fork = self._fork(branch)
        self._plan(fork.draft, self.left - self.answer_tokens, self.plan.last)
        fork.step = None
        await self._together([fork])
        if not fork.over:  # out of calls
            return branch.value
        self._tell(fork)
        await self.score([fork])
        return fork.value

    async def score(self, branches: Sequence[Branch]) -> None:
        """Scores branches as far as they have come. One that cannot be scored keeps the value of its last step."""
        scored = [branch for branch in branches if branch.error is None and (branch.answered or not branch.over)]
        scores: list[Scored | None] = [] if self._verifier is not None else [None] * len(scored)
        for begin in range(len(scores), len(scored), at_once := self._scorings(len(scored))):
            some = scored[begin : begin + at_once]
            if self.left < len(some) * self._scoring:
                break
            scores += await asyncio.gather(*(self._scored(branch) for branch in some))
            self._verifying += sum(event.score.cost.tokens for event in scores[begin:] if event is not None)
        for branch, event in zip(scored, scores, strict=False):
            if event is not None:
                self._emit([event])
                branch.value = aggregated(event.score, self._aggregate)
        for branch in scored:
            if branch.answered and (self.best is None or branch.value > self.best.value):
                self.adopt(branch)

    def adopt(self, branch: Branch) -> None:
        """This is the best answer so far."""
        self.best = branch
        if branch.probe and not branch.told:  # it was quiet until now
            self._emit([AnswerDelta(branch.draft.answer, branch.index)])
        self._tell(branch)
        self._emit([BestAnswer(branch.draft.answer, branch.index)])

    async def probe(self, branch: Branch, tokens: int) -> Branch:
        """What the branch would answer now: a fork that closes its thinking, quiet, and charged as a probe.

        It stays untold: `adopt` it, or `drop` it.
        """
        fork = self._fork(branch)
        fork.probe, fork.draft.hurry = True, True
        self._plan(fork.draft, self.probe_tokens(tokens), self.plan.last)
        fork.step = None
        await self._together([fork])
        fork.over = True
        return fork

    def _fork(self, branch: Branch) -> Branch:
        draft = branch.draft
        fork = Branch(draft.fork(self._numbers), branch.index, len(draft.ids), branch.value, step=branch.step)
        self._requests.inherit(draft, fork.draft)
        self._numbers += 1
        self.branches.append(fork)
        return fork

    def drop(self, branches: Iterable[Branch]) -> None:
        """These grow no more."""
        for branch in branches:
            branch.over = True
            self._tell(branch, dropped=True)

    # ------------------------------------------------------------ growing

    async def _ready(self, branch: Branch, allowance: int) -> None:
        """Brings a branch to where the engine goes on with it, for a step within that many tokens."""
        draft = branch.draft
        self._plan(draft, allowance, self.plan.last)
        branch.step = Step(len(draft.said), len(draft.ids), self._step, self._line)
        try:
            while not isinstance(action := self._next(draft), Generate):
                if action is None:
                    branch.over = not self._out_of_calls
                    return
                await self._requests.do(draft, action)
        except EngineError as error:
            branch.over, branch.error = True, error

    async def _together(self, branches: Sequence[Branch]) -> None:
        """Goes on with branches up to the end of their steps, or of the samples where there is no step.

        Those that have said the same so far ask the engine together, which computes once what they go on to say alike.
        """
        groups: dict[Any, list[Branch]] = {}
        for branch in branches:
            if branch.over or branch.error is not None or (branch.step is not None and branch.step(branch.draft)):
                continue
            action = self._next(branch.draft)
            if action is None:
                branch.over = not self._out_of_calls
            else:
                groups.setdefault((tuple(branch.draft.ids), action, branch.step, branch.probe), []).append(branch)
        await asyncio.gather(*(self._advance(group, key[1]) for key, group in groups.items()))

    async def _advance(self, group: list[Branch], action: Generate | Write | Restore) -> None:
        requests = self._requests.muted() if group[0].probe else self._requests
        first, step = group[0].draft, group[0].step
        try:
            if isinstance(action, Generate):
                action = action if step is None else self._within(action, first, step)
                drafts = [branch.draft for branch in group]
                await requests.generate(drafts, action, step if first.still_thinking else None)
            else:
                for branch in group:
                    await requests.do(branch.draft, action)
        except EngineError as error:
            for branch in group:
                branch.over, branch.error = True, error
            return
        await self._together(group)

    def _within(self, action: Generate, draft: Draft, step: Step) -> Generate:
        most = max(1, step.left(draft)) if draft.still_thinking else action.tokens
        return replace(action, tokens=min(action.tokens, most))

    def _plan(self, draft: Draft, allowance: int, reserve: int) -> None:
        tokens = min(draft.used + allowance, self.plan.tokens)
        draft.plan = replace(self.plan, tokens=tokens, reserve=min(reserve, self.plan.reserve))

    def _next(self, draft: Draft) -> Action:
        left = self.limits.calls_left()
        if left is not None:
            spare = left - self._kept_calls
            draft.terse, draft.final = spare <= 3, spare <= 1 and not self._kept_calls
            draft.halted = draft.halted or spare <= 0
        draft.hurry = draft.hurry or draft.final
        draft.halted = draft.halted or self.limits.stopped
        return draft.next()

    @property
    def _out_of_calls(self) -> bool:
        """A branch that rests now may still be the one that answers with the calls kept back."""
        left = self.limits.calls_left()
        return left is not None and left <= self._kept_calls != 0 and not (self.limits.stopped or self.limits.late)

    # ------------------------------------------------------------ scoring

    def _scorings(self, wanted: int) -> int:
        """How many may be scored at once, each taking as much as it may."""
        most = self._scoring
        return max(1, wanted if not most else min(wanted, self.left // most))

    async def _scored(self, branch: Branch) -> Scored | None:
        try:
            assert self._verifier is not None
            async with asyncio.timeout(self.limits.wait(thinking=False)):
                score = await self._verifier(self.question, branch.sample())
        except (EngineError, TimeoutError):
            return None
        return Scored(score, branch.index, score.cost)

    # ------------------------------------------------------------ events

    def _emit(self, events: list[Event]) -> None:
        for event in events:
            self._queue.put_nowait(event)

    def _tell(self, branch: Branch, dropped: bool = False) -> None:
        if branch.told:
            return
        branch.told = True
        ended = branch.draft.end()
        self._emit([] if branch.probe else ended)
        sample = branch.sample()
        if branch.error is not None:
            sample = replace(sample, finish="error")
        elif dropped:
            sample = replace(sample, finish="cancelled")
        cost = self._requests.cost(branch.draft)
        if branch.probe:
            cost = replace(cost, thinking=0, answer=0, cancelled=0, probe=cost.generated)
        self._emit([SampleFinished(sample, cost)])

    async def events(self, search: Search) -> AsyncGenerator[Event, None]:
        """The events of a search. Raises as `budget.think_within` does where no branch has an answer."""
        work = asyncio.ensure_future(self._run(search))
        try:
            while (event := await self._queue.get()) is not None:
                yield event
            await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _run(self, search: Search) -> None:
        try:
            await search(self)
            if self.best is None and not (self.limits.stopped or self.limits.late):
                await self._last_resort()
        finally:
            self.drop(sorted(self.branches, key=lambda branch: branch.index))
            self._queue.put_nowait(None)
        if self.best is None and not self.limits.stopped:
            errors = [branch.error for branch in self.branches if branch.error is not None]
            raise errors[-1] if errors else no_answer(self.branches[-1].draft, self.limits)

    async def _last_resort(self) -> None:
        """No branch has an answer yet: the best that can still give one does."""
        able = [branch for branch in self.branches if not branch.told]
        if able:
            await self.finish(ranked(able)[0])


def check_shape(n: int, width: int, step: int, steps: int) -> None:
    """Raises ValueError for `n` branches that cannot come in families of `width`, and steps of nothing."""
    if n < 1 or width < 1 or n % width:
        raise ValueError(f"n must be a multiple of width, and both at least 1, not {n} and {width}")
    if step < 1 or steps < 1:
        raise ValueError(f"step and steps must be at least 1, not {step} and {steps}")


def ranked(branches: Iterable[Branch]) -> list[Branch]:
    """The branches by falling value; those begun first among equals."""
    return sorted(branches, key=lambda branch: (-branch.value, branch.index))


def distinct(branches: Iterable[Branch]) -> list[Branch]:
    """The branches, without those that say token for token what one before them says."""
    first: dict[tuple[int, ...], Branch] = {}
    for branch in branches:
        first.setdefault(tuple(branch.draft.ids), branch)
    return list(first.values())

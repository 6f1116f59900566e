"""A model that ponder runs itself, or speaks to by tokens, as a backend: strategies, budgets and shapes of answers.

One sample streams as it comes. A strategy over several samples is one choice: its reasoning is that of the first
sample, with a line for each new best answer, and its content the answer that won.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ponder.chat.model import Model
from ponder.errors import (
    BudgetTooSmall,
    ContextOverflow,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    InputError,
    PonderError,
    Unsupported,
)
from ponder.protocols import Strategy
from ponder.server.backend import Served
from ponder.server.bound import grammar_of
from ponder.server.events import Begun, ReplyEvent, Token
from ponder.server.failures import Refusal, invalid
from ponder.server.local_several import Several
from ponder.server.local_single import Single
from ponder.server.local_vectors import embedded
from ponder.server.plain import Pieces, Plain, answer_tokens
from ponder.server.public import name_of
from ponder.server.request import EFFORT_TOKENS, Request, Sampling
from ponder.solving import stream
from ponder.strategies.budget import begun, think_within
from ponder.strategies.chain_of_thought import chain_of_thought
from ponder.strategies.direct import direct
from ponder.strategies.draft import LEAST_ANSWER
from ponder.strategies.naming import strategy_named
from ponder.strategies.policy import AUTO, BUILT_IN, Policy
from ponder.types import Audio, Budget, Event, Image, Question, SampleFinished, Video

DEFAULT_TOKENS = 2048
"""Tokens of a reply where neither the client nor a policy bounds them."""

AUTO_STRATEGY = "vote(8, risk=0.05)"
"""What "auto" is without a calibrated router: a vote that stops once it is decided."""


@dataclass(frozen=True)
class Plan:
    """What a request comes to: a strategy and bounds for the whole of it. several: over more than one sample."""

    strategy: Strategy
    budget: Budget
    think: bool
    several: bool


class Local:
    """Answers with one model. policy: what efforts mean, None where nothing was measured for it."""

    def __init__(
        self, model: Model, *, name: str = "", policy: Policy | None = None, tokens: int = DEFAULT_TOKENS
    ) -> None:
        info = model.engine.info
        self.name = name or name_of(str(info.metadata.get("ponder.name", model.name)))
        self.model, self.policy, self.tokens = model, policy, tokens
        self._pieces = Pieces(model.engine)
        details = {"parameters": info.parameters, "engine": model.engine.uri.partition(":")[0]}
        price = model.price
        self._served = Served(
            self.name,
            "local",
            info.context,
            prompt_price=price.prompt if price else None,
            cached_price=price.cached if price else None,
            output_price=price.output if price else None,
            details={key: value for key, value in details.items() if value is not None},
        )

    def models(self) -> tuple[Served, ...]:
        """The one model."""
        return (self._served,)

    async def count(self, request: Request) -> int:
        """Tokens of the rendered prompt."""
        if not self.model.engine.capabilities.tokens:
            raise Refusal(501, "api_error", f"{self.name} is behind a server that counts no tokens", "ask that server")
        think = self._plan(request).think
        prompt = await self.model.prompt(request.question.messages, think, request.question.tools)
        return len(prompt.ids)

    async def close(self) -> None:
        """Closes the engine."""
        await self.model.engine.close()

    async def reply(self, request: Request, stop: asyncio.Event) -> AsyncGenerator[ReplyEvent, None]:
        """See `backend.Backend`."""
        with refusing():
            plan = self._plan(request)
            ended = asyncio.Event()
            model = replace(self._model(request), stop=ended)
        passing = asyncio.create_task(_pass_on(stop, ended))
        work = self._plainly if _is_plain(request, plan) else self._by_strategy
        work = work if request.job is None else partial(embedded, self.name)
        try:
            async with aclosing(work(request, plan, model)) as events:
                async for event in events:
                    yield event
        finally:
            passing.cancel()

    async def _plainly(self, request: Request, plan: Plan, model: Model) -> AsyncGenerator[ReplyEvent, None]:
        """Samples of a prompt as it stands, token by token."""
        with refusing():
            model = model.bound()
            ids = request.raw_ids or await self._prompt(request, model)
            plain = Plain(model, request, ids, self._pieces)
        try:
            async with aclosing(plain.events(Begun(self.name, "local", "none"))) as events:
                async for event in events:
                    yield event
        except PonderError as error:
            yield plain.usage()
            raise refusal(error) from error

    async def _prompt(self, request: Request, model: Model) -> Sequence[int]:
        if request.raw is not None:
            return await model.engine.tokenize(request.raw)
        return (await model.prompt(request.question.messages, False, _without_tools(request).tools)).ids

    async def _by_strategy(self, request: Request, plan: Plan, model: Model) -> AsyncGenerator[ReplyEvent, None]:
        with refusing():
            await self._read(request, plan, model)
        yield Begun(self.name, "local", "hard" if request.budget.thinking is not None or plan.think else "none")
        told = Several(request) if plan.several else Single(request)
        try:
            async with aclosing(self._events(request, plan, model)) as events:
                async for event in events:
                    for said in told.tell(event, await self._tokens(request, event)):
                        yield said
                    if told.over and model.stop is not None:
                        model.stop.set()
        except PonderError as error:
            yield told.usage()
            raise refusal(error) from error
        for said in told.end():
            yield said
        yield told.usage()

    async def _read(self, request: Request, plan: Plan, model: Model) -> None:
        """Raises what is wrong with prompt and budget before a stream begins, which could not tell it by a status."""
        if request.stream and model.engine.capabilities.tokens:
            await begun(model, _without_tools(request), plan.budget, 1, plan.think)

    async def _tokens(self, request: Request, event: Event) -> tuple[Token, ...]:
        """The tokens of the answer of a sample that has ended, where they were asked for."""
        if request.sampling.logprobs is None or not isinstance(event, SampleFinished):
            return ()
        return await answer_tokens(self._pieces, event.sample)

    # ------------------------------------------------------------ what a request comes to

    def _plan(self, request: Request) -> Plan:
        strategy, bounds = self._chosen(request)
        several = bool(getattr(strategy, "several", False))
        if several and request.question.tools and request.tool_choice.mode != "none":
            raise invalid(
                "a strategy over several samples calls no tools", "leave out the strategy, or the tools", "tools"
            )
        if request.sampling.logprobs and not _is_direct(request, strategy):
            raise invalid(
                "the likeliest tokens cannot be told beside thinking",
                "leave out top_logprobs, or think",
                "top_logprobs",
            )
        if request.n > 1 and strategy not in (_DIRECT, _THINKING):
            raise invalid(f"n={request.n} with a strategy of its own", "ask for one choice", "n")
        asked = request.budget
        budget = replace(
            asked,
            tokens=asked.tokens or bounds.tokens or self._room(bounds),
            seconds=_least(asked.seconds, request.deadline),
            thinking=asked.thinking if asked.thinking is not None else bounds.thinking,
        )
        if budget.thinking is not None and budget.tokens is not None:
            budget = replace(budget, thinking=min(budget.thinking, budget.tokens))
        think = request.think is not False and asked.thinking != 0 and strategy is not _DIRECT
        return Plan(strategy, budget, think, several)

    def _chosen(self, request: Request) -> tuple[Strategy, Budget]:
        """Strategy and bounds, by what is told first: a strategy, an effort, whether to think, the model's own way."""
        if request.strategy and request.strategy != AUTO:
            return _PLAIN.get(request.strategy) or strategy_named(request.strategy), Budget()
        policy = self.policy or BUILT_IN
        if AUTO in (request.strategy, request.effort):
            return policy.chosen(AUTO) if policy.route else (strategy_named(AUTO_STRATEGY), Budget())
        if request.think is False or request.effort == "none" or request.budget.thinking == 0:
            return _DIRECT, Budget()
        if request.effort and self.policy is not None and request.effort in self.policy.efforts:
            return self.policy.chosen(request.effort)
        if request.effort:
            return _THINKING, Budget(thinking=EFFORT_TOKENS[request.effort])
        if self.policy is not None:
            return self.policy.chosen()
        wanted = request.think or request.budget.thinking is not None or self.model.format.trained
        return (_THINKING if wanted else _DIRECT), Budget()

    def _room(self, bounds: Budget) -> int:
        """Tokens where nobody bounded them: the usual number, and more where an effort has room for more thinking."""
        return self.tokens + (bounds.thinking or 0)

    def _model(self, request: Request) -> Model:
        """The model with what the request says about drawing tokens; raises Refusal for what it cannot do."""
        self._check(request)
        params, grammar = _drawing(self.model.params, request.sampling), grammar_of(request, self.model)
        return replace(self.model, params=params, answer_grammar=grammar)

    def _check(self, request: Request) -> None:
        for message in request.question.messages:
            for part in message.parts:
                if isinstance(part, Image | Video | Audio):
                    kind = type(part).__name__.lower()
                    raise invalid(f"{self.name} takes no {kind}s", "ask a model that does: see /v1/models", "messages")
        unable: Mapping[str, Any] = {
            "frequency_penalty": request.sampling.frequency_penalty,
            "presence_penalty": request.sampling.presence_penalty,
            "logit_bias": request.sampling.logit_bias,
        }
        for field, value in unable.items():
            if value:
                raise invalid(f"{self.name} has no {field}", "leave it out", field)

    # ------------------------------------------------------------ what happens

    def _events(self, request: Request, plan: Plan, model: Model) -> AsyncGenerator[Event, None]:
        question = _without_tools(request)
        if plan.strategy not in (_DIRECT, _THINKING) or not model.engine.capabilities.tokens:
            return stream(question, model=model, strategy=plan.strategy, budget=plan.budget)
        return self._choices(question, request.n, plan, model)

    async def _choices(self, question: Question, n: int, plan: Plan, model: Model) -> AsyncGenerator[Event, None]:
        """n samples of one prompt, which share its prefill; each has the bounds of a choice."""
        budget = plan.budget
        if n > 1 and budget.tokens is not None:
            budget = replace(budget, tokens=budget.tokens * n)
        async with aclosing(think_within(model, question, budget, n, plan.think)) as events:
            async for event in events:
                yield event


_DIRECT, _THINKING = direct(), chain_of_thought()
_PLAIN = {"direct": _DIRECT, "chain_of_thought": _THINKING}
"""One sample after the other, of which n share a prefill."""


def _is_direct(request: Request, strategy: Strategy) -> bool:
    return strategy is _DIRECT or (request.raw is not None and not request.strategy) or bool(request.raw_ids)


def _is_plain(request: Request, plan: Plan) -> bool:
    """Whether a prompt is to be continued as it stands, or the tokens of an answer without thinking are wanted.

    So are very few tokens, which clients ask for to see whether a model is there: no answer is promised in these.
    """
    if request.raw_ids or (request.raw is not None and not request.strategy and not request.think):
        return True
    if (plan.budget.tokens or LEAST_ANSWER) < LEAST_ANSWER and not (request.strategy or request.think):
        return True
    return request.sampling.logprobs is not None and plan.strategy is _DIRECT and not request.question.tools


async def _pass_on(outer: asyncio.Event, own: asyncio.Event) -> None:
    await outer.wait()
    own.set()


def _drawing(params: Any, sampling: Sampling) -> Any:
    """The model's own settings with what the client set; out of range is a refusal."""
    asked = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
        "ignore_eos": sampling.ignore_eos or None,
    }
    try:
        return replace(params, **{name: value for name, value in asked.items() if value is not None})
    except ValueError as error:
        raise invalid(str(error), "correct it", str(error).partition(" ")[0]) from None


def _without_tools(request: Request) -> Question:
    """The question; without its tools where none may be called."""
    return replace(request.question, tools=()) if request.tool_choice.mode == "none" else request.question


def _least(*bounds: float | None) -> float | None:
    return min((bound for bound in bounds if bound is not None), default=None)


# ---------------------------------------------------------------- errors


@contextmanager
def refusing() -> Iterator[None]:
    """Turns what ponder raises into refusals."""
    try:
        yield
    except PonderError as error:
        raise refusal(error) from error


def refusal(error: PonderError) -> Refusal:
    """What a client is told of an error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ContextOverflow):
        return invalid(error.problem, error.mend, "messages", "context_length_exceeded")
    if isinstance(error, BudgetTooSmall | InputError | Unsupported):
        return invalid(error.problem, error.mend)
    if isinstance(error, EngineTimeout):
        return Refusal(504, "timeout_error", error.problem, error.mend, code="timeout")
    if isinstance(error, EngineUnavailable):
        return Refusal(503, "overloaded_error", error.problem, error.mend, code="unavailable", retry_after=1.0)
    kind = "api_error"
    return Refusal(502 if isinstance(error, EngineError) else 500, kind, error.problem, error.mend, code="engine_error")

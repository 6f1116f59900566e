"""A model that ponder runs itself, or speaks to by tokens, as a backend: strategies, budgets and shapes of answers.

One sample streams as it comes. A strategy over several samples is one choice: its reasoning is that of the first
sample, with a line for each new best answer, and its content the answer that won.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
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
from ponder.server.events import Begun, Call, Content, Ended, Progress, Reason, Reasoning, ReplyEvent, Token, Usage
from ponder.server.failures import Refusal, invalid
from ponder.server.plain import Pieces, Plain, answer_tokens
from ponder.server.request import EFFORT_TOKENS, Request, Sampling
from ponder.server.stopping import Stopper
from ponder.solving import stream
from ponder.strategies.budget import begun, think_within
from ponder.strategies.chain_of_thought import chain_of_thought
from ponder.strategies.direct import direct
from ponder.strategies.draft import LEAST_ANSWER
from ponder.strategies.naming import strategy_named
from ponder.strategies.policy import AUTO, BUILT_IN, Policy
from ponder.types import (
    AnswerDelta,
    Audio,
    BestAnswer,
    Budget,
    Cost,
    Done,
    Event,
    Image,
    Question,
    Sample,
    SampleFinished,
    Scored,
    ThinkingDelta,
    ToolCalled,
    Trace,
    Video,
)

DEFAULT_TOKENS = 2048
"""Tokens of a reply where neither the client nor a policy bounds them."""

AUTO_STRATEGY = "vote(8, risk=0.05)"
"""What "auto" is without a calibrated router: a vote that stops once it is decided."""

_DERIVED = re.compile(r"[0-9a-f]{9}")
"""Ids of calls to which the model gave none. Strict templates take nine letters and digits and nothing else."""


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
        self.name = name or str(info.metadata.get("ponder.name", model.name))
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
            model = replace(self._model(request), stop=asyncio.Event())
        passing = asyncio.create_task(_pass_on(stop, model.stop))  # type: ignore[arg-type]
        work = self._plainly if _is_plain(request, plan) else self._by_strategy
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
        told = _Several(request) if plan.several else _Single(request)
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


class _Single:
    """Tells choices that are samples, each as it comes."""

    over = False

    def __init__(self, request: Request) -> None:
        self._request = request
        self._stoppers = {index: Stopper(request.sampling.stop) for index in range(request.n)}
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
        stopper = self._stoppers[choice]
        shown = stopper.feed(text)
        if self._held is not None:  # with its tokens, once it has ended
            self._held[choice] = self._held.get(choice, "") + shown
            return []
        said: list[ReplyEvent] = [Content(shown, choice)] if shown else []
        return [*said, *self._end(choice, "stop", stopper.met)] if stopper.met else said

    def _finished(self, event: SampleFinished, tokens: tuple[Token, ...]) -> list[ReplyEvent]:
        self.cost += event.cost
        self.visible += event.cost.answer
        choice = event.sample.index
        if choice in self._ended:
            return []
        stopper = self._stoppers[choice]
        text = stopper.rest() if self._held is None else self._held.get(choice, "") + stopper.rest()
        said: list[ReplyEvent] = [Content(text, choice, tokens)] if text or tokens else []
        reason = "stop" if stopper.met else _reason(event.sample, bool(self._calls.get(choice)))
        return [*said, *self._end(choice, reason, stopper.met)]

    def _end(self, choice: int, reason: Reason, met: str | None = None) -> list[ReplyEvent]:
        self._ended.add(choice)
        self.over = len(self._ended) == self._request.n
        return [Ended(reason, choice, met)]

    def end(self) -> list[ReplyEvent]:
        """What is left to be said once all events have come."""
        left = [choice for choice in range(self._request.n) if choice not in self._ended]
        return [each for choice in left for each in self._end(choice, "cancelled")]

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


class _Several(_Single):
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
        stopper = self._stoppers[0]
        shown = stopper.feed(answer) + stopper.rest()
        reason: Reason = "length" if not answer or self._is_cut() else "stop"
        return [*([Content(shown)] if shown else []), *self._end(0, reason, stopper.met)]

    def _is_cut(self) -> bool:
        """Whether the sample whose answer won was cut by its bound."""
        samples = self.trace.samples if self.trace else ()
        return self._best is not None and any(
            sample.index == self._best.sample and sample.finish == "length" for sample in samples
        )


def _call_id(request: Request, choice: int, id: str) -> str:
    """The id of a call: one that was made of its words alone would come again where the same call does, turns later."""
    if not _DERIVED.fullmatch(id):
        return id
    return hashlib.blake2s(f"{request.id}/{choice}/{id}".encode()).hexdigest()[: len(id)]


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:77]}..."


def _reason(sample: Sample, called: bool) -> Reason:
    if called:
        return "tool_calls"
    known: Mapping[str, Reason] = {"stop": "stop", "length": "length", "cancelled": "cancelled"}
    return known.get(sample.finish, "cancelled")


def _drawing(params: Any, sampling: Sampling) -> Any:
    """The model's own settings with what the client set; out of range is a refusal."""
    asked = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
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

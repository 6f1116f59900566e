"""POST /v1/completions: text or token ids in, the text that follows out; the older dialect, without messages.

A body may hold several prompts. Each becomes a `Request` of its own, and the choices of all are numbered on: choice c
of prompt p is p * n + c. Log-probabilities have their older form, lists of equal length. With `echo` they begin with
those of the prompt, which is how likelihoods of given texts are measured (lm-evaluation-harness, `local-completions`).
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ponder.server.events import Begun, Content, Ended, Reasoning, ReplyEvent, Token, Usage
from ponder.server.json_body import Body, Fields, kind_of, opened, wrong
from ponder.server.openai_fields import (
    MOST_CHOICES,
    MOST_LIKELIEST,
    check_known,
    metadata_of,
    sampling_of,
    stream_usage,
    user_of,
)
from ponder.server.openai_stream import framed
from ponder.server.openai_wire import FINISH, PLAIN, Wire, finish_of, logprob_of, told, total, usage_of
from ponder.server.reply import Choice, Reply
from ponder.server.request import Request, Shown
from ponder.server.wanted import wanted
from ponder.types import Budget, Question, ask

MOST_PROMPTS = 2048
MOST_TOKENS = 16
"""Tokens of a completion that nobody bounded, as OpenAI has it."""

READ = ("prompt", "max_tokens", "logprobs", "echo", "best_of")
REFUSED = {
    "suffix": "only what follows a prompt can be written",
    "messages": "send them to /v1/chat/completions",
}
_PREFIX = "cmpl-"

Prompt = str | tuple[int, ...]


# ---------------------------------------------------------------- the requests


def read(body: Body, headers: Mapping[str, str], id: str) -> tuple[Request, ...]:
    """What a client asks for, a request a prompt; their ids are `id`, or `id`-0, `id`-1, ... Raises Refusal."""
    fields = opened(body)
    check_known(fields, READ, REFUSED)
    want = wanted(fields, headers, most=fields.whole("max_tokens", 1))
    prompts = prompts_of(fields, "prompt") if want.prompt is None or fields.has("prompt") else ("",)
    n, made = _counts(fields)
    if made * len(prompts) > MOST_PROMPTS:
        raise fields.wrong("prompt", f"makes more than {MOST_PROMPTS} choices", "send several requests")
    logprobs = fields.whole("logprobs", 0, MOST_LIKELIEST)
    common = Request(
        id,
        want.model,
        Question(()),
        n=made,
        strategy=want.strategy,
        effort=want.effort,
        budget=_bounded(want.budget),
        think=want.think,
        deadline=want.deadline,
        # The likeliest choices can be picked only by their log-probabilities.
        sampling=sampling_of(fields, 0 if made > n and logprobs is None else logprobs),
        echo=fields.flag("echo", False),
        stream=fields.flag("stream", False),
        prompt=want.prompt,
        variables=want.variables,
        shown=Shown(n if made > n else 0, logprobs=logprobs is not None, usage=stream_usage(fields)),
        user=user_of(fields),
        metadata=metadata_of(fields),
        dialect="completions",
    )
    return tuple(_of_prompt(common, number, len(prompts), prompt) for number, prompt in enumerate(prompts))


def _counts(fields: Fields) -> tuple[int, int]:
    """How many choices are shown, and how many are made for them to be picked from."""
    n = fields.whole("n", 1, MOST_CHOICES, default=1)
    made = fields.whole("best_of", 1, MOST_CHOICES, default=n)
    if made < n:
        raise fields.wrong("best_of", "is below n", "raise it, or leave it out")
    if made > n and fields.flag("stream"):
        raise fields.wrong("best_of", "picks when all is there, so it cannot stream", "leave stream out")
    return n, made


def _bounded(budget: Budget) -> Budget:
    if budget.tokens is not None:
        return budget
    return replace(budget, tokens=MOST_TOKENS + (budget.answer or 0) + (budget.thinking or 0))


def _of_prompt(common: Request, number: int, count: int, prompt: Prompt) -> Request:
    id = f"{common.id}-{number}" if count > 1 else common.id
    if isinstance(prompt, str):
        return replace(common, id=id, question=ask(prompt), raw=prompt)
    return replace(common, id=id, raw_ids=prompt)


def prompts_of(fields: Fields, name: str) -> tuple[Prompt, ...]:
    """A text, texts, token ids, or lists of token ids. Raises Refusal."""
    prompt = fields.need(name)
    if isinstance(prompt, str):
        return (prompt,)
    items = fields.items(name)
    if not items:
        raise fields.wrong(name, "is empty", "send a text")
    if len(items) <= MOST_PROMPTS and all(isinstance(each, str) for each in items):
        return items
    if isinstance(items[0], list):
        return tuple(token_ids(each, f"{fields.at(name)}[{number}]") for number, each in enumerate(items))
    return (token_ids(items, fields.at(name)),)


def token_ids(items: Any, where: str) -> tuple[int, ...]:
    """Token ids out of a body. Raises Refusal, which names `where` they stand."""
    if not isinstance(items, list | tuple) or not items:
        raise wrong(where, f"must be token ids, not {kind_of(items) if items != [] else 'an empty list'}")
    for place, each in enumerate(items):
        if type(each) is not int or not 0 <= each < 2**31:
            raise wrong(f"{where}[{place}]", "is no token id", "send texts, or whole numbers from 0 on")
    return tuple(items)


# ---------------------------------------------------------------- the whole reply


def whole(requests: Sequence[Request], replies: Sequence[Reply], wire: Wire = PLAIN) -> dict[str, Any]:
    """A `text_completion` of all the prompts of one body: a request and a reply each, in order."""
    told_choices = [
        _choice(request, reply, place * (request.shown.choices or request.n) + number, choice, wire)
        for place, (request, reply) in enumerate(zip(requests, replies, strict=True))
        for number, choice in _picked(request, reply)
    ]
    usage = total([reply.usage for reply in replies])
    return {
        **_head(requests, replies[0].begun, wire),
        "choices": told_choices,
        "usage": usage_of(requests[0], usage),
        "ponder": told(requests[0], replies[0].begun, usage),
    }


def _head(requests: Sequence[Request], begun: Begun | None, wire: Wire) -> dict[str, Any]:
    id = requests[0].id
    first = replace(requests[0], id=id.removesuffix("-0") if len(requests) > 1 else id)
    return wire.head(first, begun, "text_completion", _PREFIX)


def _picked(request: Request, reply: Reply) -> Iterable[tuple[int, Choice]]:
    """The choices by their numbers; with `best_of` the likeliest a token, numbered anew."""
    if not request.shown.choices:
        return sorted(reply.choices.items())
    return enumerate(sorted(reply.in_order, key=_likelihood, reverse=True)[: request.shown.choices])


def _likelihood(choice: Choice) -> float:
    known = [token.logprob for token in choice.tokens if not math.isnan(token.logprob)]
    return sum(known) / len(known) if known else -math.inf


def _choice(request: Request, reply: Reply, index: int, choice: Choice, wire: Wire) -> dict[str, Any]:
    prompt = reply.begun.prompt_tokens if reply.begun else ()
    told_reasoning = wire.reasoning(choice.reasoning) if choice.reasoning and request.shown.reasoning else {}
    return {
        "index": index,
        "text": (_prompt_text(request, prompt) if request.echo else "") + choice.content,
        "logprobs": _Logprobs(request).of((*_echoed(request, prompt), *_generated(request, choice.tokens))),
        "finish_reason": _finish(finish_of(choice)),
        **told_reasoning,
    }


def _finish(reason: str) -> str:
    return "stop" if reason == "tool_calls" else reason  # the dialect is older than tools


def _prompt_text(request: Request, prompt: Sequence[Token]) -> str:
    return request.raw if request.raw is not None else "".join(token.text for token in prompt)


def _echoed(request: Request, prompt: Sequence[Token]) -> Sequence[Token]:
    return prompt if request.echo else ()


def _generated(request: Request, tokens: Sequence[Token]) -> Sequence[Token]:
    """The tokens of an answer. One that ended at once is the end token alone, which has no text but takes its place:
    who measures a prompt cuts the last entry off, whatever it is."""
    return tokens or ((Token("", math.nan),) if request.echo else ())


class _Logprobs:
    """Log-probabilities in lists of equal length; `text_offset` goes on from chunk to chunk of a choice."""

    def __init__(self, request: Request) -> None:
        self._likeliest = request.sampling.logprobs if request.shown.logprobs else None
        self._offset = 0

    def of(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """What is told of some tokens, None where none are asked for."""
        if self._likeliest is None or not tokens:
            return None
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [logprob_of(token) for token in tokens],
            "top_logprobs": [self._top(token, self._likeliest) for token in tokens],
            "text_offset": offsets,
        }

    def _top(self, token: Token, likeliest: int) -> dict[str, float] | None:
        """The likeliest tokens and the token itself, by their texts; of tokens with one text, the likelier."""
        if math.isnan(token.logprob):
            return None
        found: dict[str, float] = {}
        for each in (token, *(top for top in token.top[:likeliest] if top.id is None or top.id != token.id)):
            logprob = logprob_of(each)
            if logprob is not None:
                found[each.text] = max(logprob, found.get(each.text, logprob))
        return found


# ---------------------------------------------------------------- the stream


def stream(
    requests: Sequence[Request], streams: Sequence[AsyncIterator[ReplyEvent]], wire: Wire = PLAIN
) -> AsyncIterator[bytes]:
    """The frames of a reply to all the prompts of one body, one prompt after the other. Closing it closes `streams`."""
    return framed(_Chunks(requests, wire), streams)


class _Chunks:
    """Chunks out of events; each is a `text_completion` with one choice."""

    def __init__(self, requests: Sequence[Request], wire: Wire) -> None:
        self._requests, self._wire = requests, wire
        self._head: dict[str, Any] | None = None
        self._logprobs: dict[tuple[int, int], _Logprobs] = {}
        self._silent: set[tuple[int, int]] = set()
        self._usages: list[Usage | None] = [None] * len(requests)

    def of(self, place: int, event: ReplyEvent) -> Iterator[dict[str, Any]]:
        """The chunks that an event of prompt `place` makes."""
        request = self._requests[place]
        if isinstance(event, Begun):
            self._head = self._head or _head(self._requests, event, self._wire)
            yield from self._begun(place, request, event)
        elif isinstance(event, Usage):
            self._usages[place] = event
        elif isinstance(event, Reasoning) and event.text and request.shown.reasoning:
            yield self._chunk(place, event.choice, "", None, **self._wire.reasoning(event.text))
        elif isinstance(event, Content) and (event.text or event.tokens):
            if event.tokens:
                self._silent.discard((place, event.choice))
            yield self._chunk(place, event.choice, event.text, self._of(place, event.choice).of(event.tokens))
        elif isinstance(event, Ended):
            yield self._end(place, event.choice, FINISH[event.reason])

    def last(self) -> Iterator[dict[str, Any]]:
        """The end of choices that nobody ended."""
        for place, number in sorted(self._logprobs):
            yield self._end(place, number, finish_of(Choice()))

    def spent(self) -> Iterator[dict[str, Any]]:
        """The usage of all prompts, where it is known and the client wants it."""
        usage = total(self._usages)
        if self._requests[0].shown.usage and usage is not None:
            yield {**self._top(), "choices": [], "usage": usage_of(self._requests[0], usage)}

    def _begun(self, place: int, request: Request, event: Begun) -> Iterator[dict[str, Any]]:
        for number in range(request.n):
            self._silent.add((place, number))
            logprobs = self._of(place, number).of(_echoed(request, event.prompt_tokens))
            if request.echo:
                yield self._chunk(place, number, _prompt_text(request, event.prompt_tokens), logprobs)

    def _end(self, place: int, number: int, reason: str) -> dict[str, Any]:
        logprobs = self._of(place, number)
        del self._logprobs[place, number]
        silent = (place, number) in self._silent
        ending = logprobs.of(_generated(self._requests[place], ())) if silent else None
        return self._chunk(place, number, "", ending, finish=_finish(reason))

    def _of(self, place: int, number: int) -> _Logprobs:
        return self._logprobs.setdefault((place, number), _Logprobs(self._requests[place]))

    def _chunk(
        self, place: int, number: int, text: str, logprobs: Any, finish: str | None = None, **more: str
    ) -> dict[str, Any]:
        index = place * self._requests[place].n + number
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish, **more}
        usage = {"usage": None} if self._requests[0].shown.usage else {}
        return {**self._top(), "choices": [choice], **usage}

    def _top(self) -> dict[str, Any]:
        self._head = self._head or _head(self._requests, None, self._wire)
        return self._head

"""What a request asks of ponder itself, beside its dialect's fields: strategy, budget, effort, deadline, stored prompt.

Three places say it, and the first that does wins: the body (a `ponder` object and the dialect's own fields), the
headers X-Ponder-*, a suffix of the model's name ("ponder-135m:vote-8:high"). Two fields of one place that contradict
each other are refused. Nothing is ever read from the text of a prompt.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ponder import expressions
from ponder.errors import InputError
from ponder.server.failures import invalid
from ponder.server.json_body import Fields, wrong
from ponder.server.request import EFFORT_TOKENS, PromptVersion
from ponder.types import Budget

EFFORTS = tuple(EFFORT_TOKENS)
"""The efforts that any field takes."""

LONGEST_WAIT = 86_400.0
"""Seconds: the latest deadline, and the most seconds of a budget, that a client may set."""

STRATEGY, BUDGET, DEADLINE, PROMPT = "X-Ponder-Strategy", "X-Ponder-Budget", "X-Ponder-Deadline", "X-Ponder-Prompt"
_HEADERS = {name.lower(): name for name in (STRATEGY, BUDGET, DEADLINE, PROMPT)}

_SHORT = re.compile(r"([a-z_]+)(?:-(\d{1,6}))?")
_WORD = re.compile(r"[A-Za-z_]\w{0,60}")
_REFERENCE = re.compile(r"([\w./-]{1,200})(?:@([\w.-]{1,100}))?")
_AMOUNT = re.compile(r"\d{1,15}(?:\.\d{1,15})?")


@dataclass(frozen=True)
class Said:
    """One thing that is asked for, and the field, header or suffix that says so.

    what: "strategy", "effort", "think", "deadline", "prompt", "variables", or "budget.NAME" for a bound of `Budget`.
    """

    what: str
    value: Any
    where: str


@dataclass(frozen=True)
class Wanted:
    """Everything that was asked for: the fields of `Request` with the same names."""

    model: str
    strategy: str = ""
    effort: str = ""
    think: bool | None = None
    budget: Budget = Budget()
    deadline: float | None = None
    prompt: PromptVersion | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


def wanted(body: Fields, headers: Mapping[str, str], said: Iterable[Said] = (), most: int | None = None) -> Wanted:
    """What body, headers and the suffix of the field `model` ask for. Raises Refusal.

    said: what the dialect's own fields ask for; they rank with the `ponder` object. most: the dialect's bound on the
    tokens of a choice (max_completion_tokens, max_tokens): of it and the budget's tokens the smaller holds.
    Thinking that is switched off is effort "none" and a budget of 0 for thinking, whichever of them the client wrote.
    """
    model, suffix = model_and_suffix(body.need_text("model"))
    merged: dict[str, Said] = {}
    for rank in (suffix, from_headers(headers), [*said, *from_object(body.object("ponder"))]):
        merged |= _agreed(rank)
    values = {name: each.value for name, each in merged.items()}
    bounds = {name.removeprefix("budget."): value for name, value in values.items() if name.startswith("budget.")}
    if most is not None:
        bounds["tokens"] = min(most, bounds.get("tokens", most))
    if values.get("think") is False:
        values["effort"], bounds["thinking"] = "none", 0
    if "variables" in values and "prompt" not in values:
        raise wrong(merged["variables"].where, "there is no prompt that they fill", "name one in ponder.prompt")
    rest = {name: value for name, value in values.items() if not name.startswith("budget.")}
    return Wanted(model, budget=_budget(bounds, merged), **rest)


# ---------------------------------------------------------------- the three places


def model_and_suffix(name: str) -> tuple[str, list[Said]]:
    """The model's name without its suffixes, and what these ask for.

    A last part after a colon is a suffix only where it is an effort or a known strategy: "qwen3:8b" is a name.
    """
    said: list[Said] = []
    while True:
        head, _, last = name.rpartition(":")
        found = _suffix(last) if head else []
        if not found:
            return name, said
        name, said = head, [*said, *found]


def from_object(fields: Fields | None) -> list[Said]:
    """What the `ponder` object of a body asks for."""
    if fields is None:
        return []
    fields.only("strategy", "budget", "effort", "deadline", "prompt", "variables", "progress")
    fields.flag("progress", False)  # read by dialects that can tell it
    said = [*_strategy(fields, "strategy"), *_deadline(fields, "deadline"), *_prompt(fields, "prompt")]
    if (effort := fields.one_of("effort", EFFORTS)) is not None:
        said += effort_said(effort, fields.at("effort"))
    if (variables := fields.object("variables")) is not None:
        said.append(Said("variables", variables.values, variables.path))
    return said + _bounds(fields, "budget")


def from_headers(headers: Mapping[str, str]) -> list[Said]:
    """What the headers ask for; X-Ponder-Budget is "2000" (tokens) or "tokens=2000, seconds=5"."""
    given = {_HEADERS[name.lower()]: text.strip() for name, text in headers.items() if name.lower() in _HEADERS}
    texts = Fields({name: text for name, text in given.items() if text})
    numbers = Fields({name: parse(texts, name) for name, parse in _NUMBERS.items() if texts.has(name)})
    said = [*_strategy(texts, STRATEGY), *_prompt(texts, PROMPT)]
    return [*said, *_deadline(numbers, DEADLINE), *_bounds(numbers, BUDGET)]


# ---------------------------------------------------------------- what the fields of dialects say


def effort_said(effort: str, where: str) -> list[Said]:
    """An effort: "none" switches thinking off, any other one switches it on."""
    return (
        [Said("think", False, where)] if effort == "none" else [Said("effort", effort, where), *think_said(True, where)]
    )


def thinking_said(tokens: int, where: str) -> list[Said]:
    """A bound on the tokens of thinking: 0 switches it off, one below 0 leaves its length to the model."""
    if tokens < 0:
        return []
    return (
        think_said(False, where) if tokens == 0 else [Said("budget.thinking", tokens, where), *think_said(True, where)]
    )


def think_said(think: bool, where: str) -> list[Said]:
    """A switch for thinking."""
    return [Said("think", think, where)]


# ---------------------------------------------------------------- reading


def strategy_text(text: str, where: str) -> str:
    """A strategy as `Request.strategy` has it: "auto", or an expression such as "vote(8)", which "vote-8" stands for.

    Settings are numbers, booleans, words, and verifiers whose settings are such: what a client writes names no file
    and no address. Raises Refusal.
    """
    text = text.strip()
    if text == "auto":
        return text
    short = _SHORT.fullmatch(text)
    if short and short[2]:
        text = f"{short[1]}({short[2]})"
    try:
        if len(text) > 300:
            raise InputError("it is longer than 300 characters", "write one such as vote(8)")
        name, positional, named = expressions.parse(text, "strategy", "vote(8)")
        if name not in _strategies():
            raise InputError(f"there is no strategy {name!r}", f"choose from auto, {', '.join(_strategies())}")
        _check_settings(positional, named)
    except InputError as error:
        raise wrong(where, error.problem, error.mend) from None
    return text


@functools.cache
def _strategies() -> tuple[str, ...]:
    from ponder.strategies import naming  # they load when the first request names one

    return tuple(naming.names())


def _check_settings(positional: Iterable[Any], named: Mapping[str, Any]) -> None:
    for value in positional:
        _check_setting("", value)
    for name, value in named.items():
        _check_setting(name, value)


def _check_setting(name: str, value: Any) -> None:
    if name == "verifier" and isinstance(value, str):
        _check_settings(*expressions.parse(value, "verifier", "math_answer")[1:])
    elif isinstance(value, list | tuple):
        _check_settings(value, {})
    elif isinstance(value, str):
        if not _WORD.fullmatch(value):
            raise InputError(f"the setting {value!r} is no single word", "ask who runs the server for such a strategy")
    elif not (value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))):
        raise InputError(f"{type(value).__name__} is no kind of setting", "write numbers, words, True, False or None")


def _suffix(text: str) -> list[Said]:
    if text in EFFORTS:
        return effort_said(text, f"model (:{text})")
    short = _SHORT.fullmatch(text)
    if short is None or (short[1] not in _strategies() and text != "auto"):
        return []
    return [Said("strategy", strategy_text(text, "model"), f"model (:{text})")]


def _strategy(fields: Fields, name: str) -> list[Said]:
    text = fields.text(name)
    return [] if text is None else [Said("strategy", strategy_text(text, fields.at(name)), fields.at(name))]


def _deadline(fields: Fields, name: str) -> list[Said]:
    seconds = fields.number(name, most=LONGEST_WAIT, above=0)
    return [] if seconds is None else [Said("deadline", seconds, fields.at(name))]


def _prompt(fields: Fields, name: str) -> list[Said]:
    text = fields.text(name)
    if text is None:
        return []
    found = _REFERENCE.fullmatch(text)
    if found is None:
        raise fields.wrong(name, "is no name of a stored prompt", 'write one such as "support@prod" or "support@3"')
    label = found[2] or ""
    number = int(label) if label.isascii() and label.isdecimal() and len(label) < 10 else 0
    return [Said("prompt", PromptVersion(found[1], number, "" if number else label), fields.at(name))]


def _bounds(fields: Fields, name: str) -> list[Said]:
    if not isinstance(fields.raw(name), Mapping):
        tokens = fields.whole(name, 1)
        return [] if tokens is None else [Said("budget.tokens", tokens, fields.at(name))]
    bounds = fields.need_object(name)
    bounds.only("tokens", "seconds", "dollars", "calls", "answer", "thinking")
    values: dict[str, float | None] = {each: bounds.whole(each, 1) for each in ("tokens", "calls", "answer")}
    values["seconds"] = bounds.number("seconds", most=LONGEST_WAIT, above=0)
    values["dollars"] = bounds.number("dollars", most=1e9, above=0)
    said = [Said(f"budget.{each}", value, bounds.at(each)) for each, value in values.items() if value is not None]
    thinking = bounds.whole("thinking")
    return said if thinking is None else said + thinking_said(thinking, bounds.at("thinking"))


def _header_budget(texts: Fields, name: str) -> float | dict[str, float]:
    text = texts.need_text(name)
    if _AMOUNT.fullmatch(text):
        return _header_number(texts, name)
    bounds: dict[str, float] = {}
    for piece in text.split(","):
        bound, _, amount = (part.strip() for part in piece.partition("="))
        if not bound.isidentifier() or bound in bounds or not _AMOUNT.fullmatch(amount):
            raise texts.wrong(name, "cannot be read", "write tokens (2000), or bounds: tokens=2000, seconds=5")
        bounds[bound] = float(amount)
    return bounds


def _header_number(texts: Fields, name: str) -> float:
    text = texts.need_text(name)
    if not _AMOUNT.fullmatch(text):
        raise texts.wrong(name, "is no number", "write one such as 2.5")
    return float(text)


_NUMBERS = {DEADLINE: _header_number, BUDGET: _header_budget}


# ---------------------------------------------------------------- putting it together


def _agreed(rank: Iterable[Said]) -> dict[str, Said]:
    """What fields of one rank say together. Raises Refusal where two of them disagree."""
    agreed: dict[str, Said] = {}
    for each in rank:
        first = agreed.setdefault(each.what, each)
        if first.value != each.value:
            problem = f"{first.where} and {each.where} contradict each other"
            raise invalid(problem, "leave one of them out", each.where.partition(" ")[0], "contradiction")
    return agreed


_UNBOUNDED = Budget()


def _budget(bounds: Mapping[str, Any], said: Mapping[str, Said]) -> Budget:
    try:
        return Budget(**bounds) if bounds else _UNBOUNDED
    except ValueError as error:  # answer above tokens: each of them is sound by itself
        raise wrong(said["budget.answer"].where, str(error)) from None

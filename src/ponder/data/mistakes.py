"""Solutions with a mistake in them, made of right ones: where it is, is known.

One number is made wrong: in the result of a step, which arithmetic shows, or in what a step calculates with, which it
does not. Later steps may go on with the wrong number, or as if nothing had been. A number to calculate with is wrong
for certain, as it stands nowhere else in the problem or its solution.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from ponder.data.examples import Example, answer_text
from ponder.data.story import WORDS
from ponder.errors import InputError
from ponder.verifiers.arithmetic_steps import Expression

Kind = Literal["result", "operand"]
KINDS: tuple[Kind, ...] = ("result", "operand")

TRIES = 20
"""Wrong numbers tried before a solution is left as it is."""

_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_NUMBERS = re.compile(_NUMBER)
_EQUATION = re.compile(rf"(?P<left>{_NUMBER}(?:\s*[-+*/]\s*{_NUMBER})+)\s*=\s*\$?(?P<right>{_NUMBER})")


@dataclass(frozen=True)
class Solution:
    """A worked example, and the number of its first wrong step, counted from 0; None where all are right."""

    example: Example
    wrong: int | None = None

    @property
    def steps(self) -> tuple[str, ...]:
        return self.example.steps


def solutions(examples: Iterable[Example], *, seed: int = 0, wrong: float = 0.5) -> list[Solution]:
    """The examples, whose steps must be right, about the share `wrong` of them with a mistake made in one step.

    Which mistake, where, and whether later steps go on with it, is drawn from `seed`. An example in which none can be
    made stays right. Labels are set: 1 before the first wrong step, 0 from it on.
    """
    if not 0 <= wrong <= 1:
        raise InputError(f"wrong={wrong} is no share", "Give a number from 0 to 1")
    made = []
    for number, example in enumerate(examples):
        draw = random.Random(f"{seed}/{number}")
        right = Solution(replace(example, labels=(1.0,) * len(example.steps)))
        spoiled = None
        if draw.random() < wrong:
            spoiled = corrupted(example, draw, draw.choice(KINDS), draw.random() < 0.5)
        made.append(spoiled or right)
    return made


def corrupted(example: Example, draw: random.Random, kind: Kind, carried: bool) -> Solution | None:
    """The example with one wrong number in one of its steps; None where there is no place for one.

    kind: a wrong "result" of a calculation that was right, or a wrong "operand" in one that is done rightly. carried:
    later steps calculate with the wrong result, rightly, and so does the answer; else they stay.
    """
    if kind not in KINDS:
        raise InputError(f"there is no mistake {kind!r}", f"Choose from {', '.join(KINDS)}")
    places = [k for k, step in enumerate(example.steps) if _sound(step)]
    for _ in range(TRIES if places else 0):
        k = draw.choice(places)
        steps = _with_mistake(example, k, draw, kind, carried)
        if steps is not None:
            return Solution(_rewritten(example, k, steps), k)
    return None


def _with_mistake(example: Example, k: int, draw: random.Random, kind: Kind, carried: bool) -> list[str] | None:
    step = example.steps[k]
    found = _EQUATION.search(step)
    assert found is not None
    if kind == "result":
        new = _near(found["right"], draw, {found["right"]})
        spoiled = None if new is None else _put(step, *found.span("right"), new)
    else:
        taken = _numbers_of(example)
        operand = draw.choice(list(_NUMBERS.finditer(step, *found.span("left"))))
        new = _near(operand[0], draw, taken)
        spoiled = None if new is None else _recalculated(_put(step, *operand.span(), new))
    if spoiled is None:
        return None
    steps = [*example.steps[:k], spoiled, *example.steps[k + 1 :]]
    after = _EQUATION.search(spoiled)
    if after is None or _value(after["right"]) == _value(found["right"]):
        return None
    return _carried(steps, k, found["right"], after["right"]) if carried else steps


def _carried(steps: list[str], k: int, old: str, new: str) -> list[str] | None:
    """The steps after step k with what follows from its new result; None where that comes out as no sensible number."""
    changed = {_value(old): new}
    for at in range(k + 1, len(steps)):
        step, found = steps[at], _EQUATION.search(steps[at])
        if found is None:
            continue
        left = _NUMBERS.sub(lambda number: changed.get(_value(number[0]), number[0]), found["left"])
        if left == found["left"]:
            changed.pop(_value(found["right"]), None)  # the same number, and from here on a right one
            continue
        if _value(found["right"]) == 1:  # "1 apple" would become "3 apple"
            return None
        now = _recalculated(_put(step, *found.span("left"), left))
        if now is None:
            return None
        after = _EQUATION.search(now)
        assert after is not None
        changed[_value(found["right"])] = after["right"]
        steps[at] = now
    return steps


def _rewritten(example: Example, k: int, steps: Sequence[str]) -> Example:
    """The example with other steps, and the answer that its last step now gives."""
    thinking, end = "", 0
    for old, new in zip(example.steps, steps, strict=True):
        begin = example.thinking.index(old, end)
        thinking += example.thinking[end:begin] + new
        end = begin + len(old)
    thinking += example.thinking[end:]
    before, after = _EQUATION.search(example.steps[-1]), _EQUATION.search(steps[-1])
    answer = example.answer
    if before and after and before["right"] != after["right"]:
        answer = answer_text(after["right"])
    labels = tuple(float(at < k) for at in range(len(steps)))
    return replace(example, thinking=thinking, steps=tuple(steps), answer=answer, labels=labels)


def _sound(step: str) -> bool:
    """Whether the step has one equation, which is right, and whose result may take any number behind it."""
    found = _EQUATION.search(step)
    if found is None or step.count("=") != 1 or _value(found["right"]) == 1:
        return False
    return _calculated(found["left"]) == _value(found["right"])


def _recalculated(step: str) -> str | None:
    """The step with the right result; None where that is not above 1, or has more places than such numbers have."""
    found = _EQUATION.search(step)
    value = None if found is None else _calculated(found["left"])
    if found is None or value is None or value <= 1:
        return None
    places = len(found["right"].partition(".")[2])
    money = "$" in step or "dollar" in step
    if value.denominator == 1:
        text = str(value.numerator)
    elif (places or money) and (value * 100).denominator == 1:
        text = f"{float(value):.2f}" if money else f"{float(value):.2f}".rstrip("0")
    else:
        return None
    return _put(step, *found.span("right"), text)


def _near(text: str, draw: random.Random, taken: set[str]) -> str | None:
    """A number that `text` may be mistaken for, above 1 and not `taken`."""
    value = _value(text)
    places = len(text.partition(".")[2])
    whole = int(value * 10**places)
    digits = list(str(whole))
    draw.shuffle(digits)
    choices = [whole + sign * by for sign in (1, -1) for by in (1, 2, 3, 10, draw.randint(1, 9) * 10)]
    choices += [int("".join(digits)), whole * 10] if len(digits) > 1 else []
    known = {_value(each) for each in taken}
    fitting = [each for each in choices if Fraction(each, 10**places) not in known and each > 10**places]
    if not fitting:
        return None
    chosen = Fraction(draw.choice(fitting), 10**places)
    return f"{float(chosen):.{places}f}" if places else str(chosen.numerator)


def _numbers_of(example: Example) -> set[str]:
    """Every number of the problem and its solution, spelled ones included."""
    words = set(re.findall(r"[a-z]+", example.question.casefold()))
    spelled = {str(value) for value, word in enumerate(WORDS, 2) if word in words}
    return spelled | set(_NUMBERS.findall(" ".join((example.question, *example.steps))))


def _calculated(expression: str) -> Fraction | None:
    try:
        return Expression(expression).expression()
    except ZeroDivisionError:
        return None


def _value(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


def _put(text: str, start: int, end: int, new: str) -> str:
    return text[:start] + new + text[end:]

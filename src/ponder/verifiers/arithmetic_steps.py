"""The sums in a sample's thinking, worked out again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

from ponder.protocols import Verifier
from ponder.types import Question, Sample, Score

LONGEST = 200
"""Characters of one side of an equation; what is longer is left out."""

NOTHING = 0.5
"""The value of a sample without an equation: better than one that was got wrong, worse than one that was got right."""

_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+")
_SPELLING = (
    (r"[−–]", "-"),
    (r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"\\times\b|\\cdot\b|[×·]", "*"),
    (r"\\div\b|÷", "/"),
    (r"(?<=\d)\*\*(?=[\d(-])", "^"),  # a power; elsewhere it is bold print
    (r"\*\*|\\?[$€£]|\\[()\[\]]", ""),
    (r"(?<=[\d)])(\s*)x(?=\s*\(?-?\d)", r"\1*"),
    (r"^\s*(?:[-*•]|\d+[.)])\s+", ""),
)


class Expression:
    """expression = term (("+" | "-") term)*, term = factor (("*" | "/") factor)*; stops where it cannot go on."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.end = 0
        self.operators = 0

    def _next(self, choices: str) -> str:
        rest = self.text[self.end :].lstrip()
        return rest[0] if rest and rest[0] in choices else ""

    def _skip(self) -> None:
        self.end = self.text.index(self._next("+-*/()"), self.end) + 1

    def expression(self, signs: str = "+-") -> Fraction | None:
        inner = self._factor if signs == "*/" else lambda: self.expression("*/")
        value = inner()
        while value is not None and (sign := self._next(signs)):
            before = self.end
            self._skip()
            other = inner()
            if other is None:
                self.end = before
                break
            self.operators += 1
            if sign == "/":
                value /= other
            else:
                value = value * other if sign == "*" else value + other if sign == "+" else value - other
        return value

    def _factor(self) -> Fraction | None:
        before = self.end
        if self._next("-"):
            self._skip()
            value = self._factor()
            value = None if value is None else -value
        elif self._next("("):
            self._skip()
            value = self.expression()
            if value is not None and self._next(")"):
                self._skip()
            else:
                value = None
        else:
            found = _NUMBER.match(self.text, len(self.text) - len(self.text[self.end :].lstrip()))
            value = Fraction(found[0].replace(",", "")) if found else None
            self.end = found.end() if found else before
        if value is None:
            self.end = before
        return value


def _before(side: str) -> Expression | None:
    """The longest expression at the end of `side`; None where it is part of something unknown ("2x + 3")."""
    run = re.search(r"[\d.,+\-*/()\s]+$", side[-LONGEST:])
    if run is None or len(run[0]) == LONGEST:
        return None
    offset = len(side) - len(run[0])
    for start in range(offset, len(side)):
        prefix = side[:start]
        if (
            side[start].isspace()
            or re.search(r"[\w^!%.)}\]\\]$|[-+*/^%!]\s*$", prefix)
            or re.match(r"-\s", side[start:])
        ):
            continue
        parser = Expression(side[start:].rstrip())
        try:
            whole = parser.expression() is not None and parser.end == len(parser.text)
        except ZeroDivisionError:
            whole = True
        if whole:
            return parser
    return None


def _after(side: str) -> Expression | None:
    """The expression at the start of `side`; None where something unknown goes on behind it ("3x")."""
    parser = Expression(side[:LONGEST])
    try:
        if parser.expression() is None:
            return None
    except ZeroDivisionError:
        return parser
    unknown = r"[A-Za-z_^!%({\\]|\.\d|,\d|\s*[*/+^%]|\s*-\s*[A-Za-z]\b|\s*\("
    return None if re.match(unknown, side[parser.end :]) else parser


def equations(line: str) -> Iterator[bool]:
    """Whether each equation of `line` that has an operator and no unknown is right."""
    for pattern, replacement in _SPELLING:
        line = re.sub(pattern, replacement, line)
    if line.count("(") > 50:  # nested so deep, the parser would run out of stack
        return
    sides = re.split(r"(?<![<>!=:])=(?![=>])", line)
    for left, right in pairwise(sides):
        first, second = _before(left), _after(right)
        if first is None or second is None:
            continue
        try:
            values = [Expression(parser.text).expression() for parser in (first, second)]
        except ZeroDivisionError:
            yield False
            continue
        if first.operators + second.operators:
            yield values[0] == values[1]


def arithmetic_steps() -> Verifier:
    """The share of lines whose equations are right, and in `steps` 1 or 0 for each such line.

    Read are equations of numbers, + - * / and parentheses, with thousands separators and dollars, in
    the thinking or, where there is none, in the answer. They are worked out exactly: 10 / 3 = 3.33 is
    wrong. Equations with unknowns, powers or percent signs are left out. Without any, the value is 0.5.
    """

    async def verify(question: Question, sample: Sample) -> Score:
        steps: list[float] = []
        wrong = ""
        for line in (sample.thinking or sample.answer).splitlines():
            right = list(equations(line))
            if right:
                steps.append(float(all(right)))
                wrong = wrong or ("" if all(right) else f"wrong: {line.strip()[:100]}")
        if not steps:
            return Score(NOTHING, "arithmetic_steps", "found no equation")
        return Score(sum(steps) / len(steps), "arithmetic_steps", wrong, tuple(steps))

    return verify

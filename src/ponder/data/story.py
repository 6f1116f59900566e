"""A word problem while it is made: what is told, what is asked, and the solution, worked out as it is written down.

Scenes (`scenes_*.py`) tell facts and record steps; the story then decides on the order of its sentences, on
pronouns, on numbers that do not matter. Whatever would make no sense raises `Unfit`, and other numbers are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from ponder.data.draw import Draw, Level, Number, Unfit
from ponder.data.names import Person
from ponder.data.things import Thing

DOLLAR = Thing("dollar", "dollars")
CENT = Thing("cent", "cents")
MEASURED = frozenset(
    ("dollars", "miles", "kilometers", "meters", "feet", "inches", "pounds", "kilograms", "liters", "gallons", "cups")
)
"""What may come in fractions; all else is counted."""

AHEAD = ("more", "fewer")
"""What stands before the unit: "5 more apples"; all else stands behind it."""

WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


class Fact(NamedTuple):
    """A sentence without its capital and its full stop.

    `who` is the person that its marks stand for (`Person.named`), `others` are people whom it names as well. `lead`
    is what links it to the sentence before: "then".
    """

    text: str
    who: Person | None = None
    others: tuple[Person, ...] = ()
    lead: str = ""


@dataclass(frozen=True)
class Scene:
    """A kind of problem. `make` tells one of `steps` lines, one of the numbers given here."""

    name: str
    make: Callable[[Story, int], None]
    steps: tuple[int, ...]
    weight: float = 1.0
    advanced: bool = False

    def fits(self, level: Level, steps: int) -> bool:
        """Whether there is such a problem at that level."""
        return steps in self.steps and (level.advanced or not self.advanced)


class Story:
    """What a scene writes to."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.facts: list[Fact] = []
        self.question = Fact("")
        self.steps: list[str] = []
        self.shape: list[str] = []
        self.answer: Number = 0
        self.unit: Thing | None = None
        self.money = False
        self.about: set[str] = set()
        """Topics on which no distractor may touch."""
        self._spelled = draw.chance(0.1)
        self._commas = draw.chance(0.5)

    # ------------------------------------------------------------ telling

    def tell(self, text: str, who: Person | None = None, *others: Person, lead: str = "") -> None:
        """One more fact."""
        self.facts.append(Fact(text, who, others, lead))

    def ask(self, text: str, who: Person | None = None, *others: Person) -> None:
        """What is wanted, without the question mark."""
        self.question = Fact(text, who, others)

    def say(self, value: Number) -> str:
        """A number as the question writes it."""
        if self._spelled and value.denominator == 1 and 2 <= value <= 12:
            return WORDS[int(value) - 2]
        return f"{int(value):,}" if self._commas and value.denominator == 1 else plain(value)

    def some(self, value: Number, thing: Thing) -> str:
        """A number of things: "1 apple", "12 apples"."""
        return f"{self.say(value)} {thing.of(value)}"

    def dollars(self, value: Number) -> str:
        """A sum of money: "$4.50", "$12"."""
        self.money = True
        text = plain(value, cents=True)
        return f"${int(value):,}" if self._commas and value.denominator == 1 else f"${text}"

    # ------------------------------------------------------------ working it out

    def plus(self, a: Number, b: Number, unit: Thing, tail: str = "") -> Number:
        """Records a + b."""
        return self._step("+", a, b, a + b, unit, tail)

    def minus(self, a: Number, b: Number, unit: Thing, tail: str = "") -> Number:
        """Records a - b, which must be above 0."""
        return self._step("-", a, b, a - b, unit, tail)

    def times(self, a: Number, b: Number, unit: Thing, tail: str = "") -> Number:
        """Records a * b. One of the two must be small or round."""
        if min(a, b) > 12 and not any(isinstance(each, int) and each % 10 == 0 for each in (a, b)):
            raise Unfit
        return self._step("*", a, b, a * b, unit, tail)

    def over(self, a: Number, b: Number, unit: Thing, tail: str = "") -> Number:
        """Records a / b, which must come out even."""
        return self._step("/", a, b, Fraction(a) / Fraction(b), unit, tail)

    def percent(self, value: Number, share: int, unit: Thing, tail: str = "") -> Number:
        """Records value * share / 100."""
        result = self._checked(Fraction(value) * share / 100, unit)
        self._record(f"{plain(value, unit == DOLLAR)} * {share} / 100", result, unit, tail)
        return result

    def sum(self, values: list[Number], unit: Thing, tail: str = "") -> Number:
        """Records one addition after the other; only the last one says what it is."""
        total = values[0]
        for place, value in enumerate(values[1:], 2):
            total = self.plus(total, value, unit, tail if place == len(values) else "")
        return total

    def _step(self, sign: str, a: Number, b: Number, result: Number, unit: Thing, tail: str) -> Number:
        result = self._checked(result, unit)
        cents = self.money or unit == DOLLAR
        self._record(f"{plain(a, cents)} {sign} {plain(b, cents)}", result, unit, tail)
        return result

    def _checked(self, result: Number, unit: Thing) -> Number:
        if isinstance(result, Fraction) and result.denominator == 1:
            result = result.numerator
        if not 0 < result <= 5 * self.draw.level.largest:
            raise Unfit
        parts = 100 if unit == DOLLAR else 10 if unit.many in MEASURED else 1
        if result * parts != int(result * parts):
            raise Unfit
        return result

    def _record(self, expression: str, result: Number, unit: Thing, tail: str) -> None:
        words = f"{tail} {unit.of(result)}" if tail in AHEAD else f"{unit.of(result)} {tail}"
        self.steps.append(f"{expression} = {plain(result, unit == DOLLAR)} {words.strip()}.")
        self.answer, self.unit = result, unit


def plain(value: Number, cents: bool = False) -> str:
    """The shortest decimal; sums of money that are not whole have two places. Raises Unfit where two do not suffice."""
    if value.denominator == 1:
        return str(value.numerator)
    hundredths = value * 100
    if hundredths.denominator != 1:
        raise Unfit
    text = f"{hundredths.numerator // 100}.{hundredths.numerator % 100:02d}"
    return text if cents else text.rstrip("0")

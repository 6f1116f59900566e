"""Draws for generated problems: the dial of their difficulty, and numbers that are the same on every machine."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

T = TypeVar("T")

Number = int | Fraction
"""Quantities are exact: whole ones are int, money and measures may be fractions."""


class Unfit(Exception):
    """The numbers that were drawn make no sensible problem. Whoever asked draws others."""


@dataclass(frozen=True)
class Level:
    """How hard a problem is.

    steps: the fewest and the most lines of its solution.
    largest: the largest number that is drawn; results may be five times as large.
    factor: the largest number of groups, or of things in one.
    distractors: the probability of a sentence with a number that does not matter; of a second one its square.
    cents: the probability of a price that is no whole number of dollars.
    advanced: whether fractions, percentages and averages come in.
    decimals: the probability of a measure (miles, pounds) with one decimal; counts are always whole.
    """

    number: int
    steps: tuple[int, int]
    largest: int
    factor: int
    distractors: float = 0.0
    cents: float = 0.0
    advanced: bool = False
    decimals: float = 0.0

    def __post_init__(self) -> None:
        fewest, most = self.steps
        if not 1 <= fewest <= most <= MOST_STEPS:
            raise ValueError(f"steps={self.steps} must be two numbers from 1 to {MOST_STEPS}, the smaller one first")
        if self.largest < 20 or self.factor < 4:
            raise ValueError(f"largest={self.largest} must be at least 20, and factor={self.factor} at least 4")
        for name in ("distractors", "cents", "decimals"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be a probability, from 0 to 1")


MOST_STEPS = 6

LEVELS: Mapping[int, Level] = {
    1: Level(1, (1, 1), largest=50, factor=9, distractors=0.05, cents=0.1),
    2: Level(2, (2, 2), largest=100, factor=10, distractors=0.1, cents=0.2),
    3: Level(3, (3, 3), largest=150, factor=12, distractors=0.2, cents=0.3, advanced=True),
    4: Level(4, (4, 4), largest=400, factor=15, distractors=0.3, cents=0.4, advanced=True),
    5: Level(5, (5, 6), largest=1000, factor=20, distractors=0.5, cents=0.5, advanced=True),
}
"""The dial, from one step with small numbers to six steps with larger ones and sentences that mislead."""


class Draw:
    """Draws from a seed: the same on every machine and version of Python.

    Only `random()` of the library's generator is used, seeded by an integer: of all its methods that one
    is promised never to change.
    """

    def __init__(self, seed: str, level: Level) -> None:
        self.level = level
        self._random = random.Random(int.from_bytes(hashlib.sha256(seed.encode()).digest())).random

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random() < probability

    def share(self) -> float:
        """A number from 0 to less than 1."""
        return self._random()

    def integer(self, low: int, high: int) -> int:
        """One of low, ..., high. Raises Unfit where there is none."""
        if high < low:
            raise Unfit
        return low + int(self._random() * (high - low + 1))

    def pick(self, choices: Sequence[T]) -> T:
        """One of them. Raises Unfit where there is none."""
        return choices[self.integer(0, len(choices) - 1)]

    def some(self, choices: Sequence[T], count: int) -> list[T]:
        """`count` of them, none twice, in any order. Raises Unfit where there are fewer."""
        rest = list(choices)
        return [rest.pop(self.integer(0, len(rest) - 1)) for _ in range(count)]

    # ------------------------------------------------------------ numbers

    def count(self, low: int = 3) -> int:
        """How many there are of something; small numbers come more often than large ones."""
        high = min(self.level.largest, 20) if self.chance(0.4) else self.level.largest
        return self.integer(low, max(low, high))

    def few(self, low: int = 2) -> int:
        """How many groups there are: no more than twelve, so that products can be worked out in one line."""
        return self.integer(low, max(low, min(12, self.level.factor)))

    def size(self, low: int = 2) -> int:
        """How many there are in a group."""
        return self.integer(low, max(low, self.level.factor))

    def below(self, value: Number, low: int = 1) -> int:
        """A whole number from `low` to less than `value`."""
        most = int(value) - (1 if value == int(value) else 0)
        return self.integer(low, most)

    def divisor(self, value: Number, most: int = 12) -> int:
        """What divides `value` into at least two each. Raises Unfit where nothing does."""
        return self.pick([each for each in range(2, most + 1) if value % each == 0 and value / each >= 2])

    def price(self, low: int, high: int) -> Number:
        """Dollars, and sometimes cents."""
        if not self.chance(self.level.cents):
            return self.integer(max(1, low), max(1, high))
        parts = 100 // self.pick((50, 25, 25, 10, 5))
        return _whole(Fraction(self.integer(max(1, low * parts), high * parts + parts - 1), parts))

    def measure(self, low: int, high: int) -> Number:
        """Of something that is measured, not counted."""
        if not self.chance(self.level.decimals):
            return self.integer(low, high)
        return _whole(Fraction(self.integer(low * 10, high * 10), 10))


def _whole(value: Fraction) -> Number:
    return value.numerator if value.denominator == 1 else value

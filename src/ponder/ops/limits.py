"""What a key or a project may use: "5 USD/month, 60 requests/min, 100k tokens/day".

Windows are those of the clock and the calendar, in UTC: a minute begins at its second 0, an hour at its
minute 0, a day at midnight, a month on its first day; "total" never ends. So a limit of 60 requests a
minute allows 60 of them in each minute of the clock, wherever within it. A request counts in the
windows in which it began.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal, get_args

from ponder.errors import InputError, PonderError
from ponder.ops.money import MOST, in_dollars, micro_dollars

Unit = Literal["USD", "requests", "tokens"]
Window = Literal["minute", "hour", "day", "month", "total"]

WINDOWS: tuple[Window, ...] = get_args(Window)
FORM = "write limits as: 5 USD/month, 60 requests/minute, 100k tokens/day"

_ONE = re.compile(
    r"(?P<amount>\$?\s*[0-9.]+)\s*(?P<scale>[kM]?)\s*(?P<unit>[A-Za-z]*)\s*(?:(?:/|\bper\b)\s*(?P<window>\w+))?"
)
_UNITS: dict[str, Unit] = {
    "usd": "USD", "dollar": "USD", "dollars": "USD",
    "request": "requests", "requests": "requests",
    "token": "tokens", "tokens": "tokens",
}  # fmt: skip
_WINDOWS: dict[str, Window] = {
    "min": "minute", "minute": "minute", "h": "hour", "hour": "hour", "day": "day", "month": "month", "total": "total",
}  # fmt: skip
_SCALES = {"": 1, "k": 1_000, "M": 1_000_000}


@dataclass(frozen=True)
class Limit:
    """At most `amount` in each window: micro-dollars, requests or tokens (of prompts and replies together)."""

    amount: int
    unit: Unit
    window: Window

    def __str__(self) -> str:
        return f"{told(self.amount, self.unit)}/{self.window}"


@dataclass(frozen=True)
class Span:
    """A window of time: seconds since 1970, `start` within it and `end` after it. None: without bound."""

    start: int | None
    end: int | None


class LimitReached(PonderError):
    """A key or a project has used up what it may, or the request alone may cost more than what is left.

    limit: which one. retry_after: seconds after which there is room again; None where waiting does not help.
    """

    def __init__(self, problem: str, mend: str, limit: Limit, retry_after: float | None) -> None:
        super().__init__(problem, mend)
        self.limit, self.retry_after = limit, retry_after


class NoPrice(InputError):
    """A limit is in dollars, and nobody knows what the model costs: that is not taken for nothing."""


def told(amount: int, unit: Unit) -> str:
    """An amount with its unit: "5 USD", "1 request", "100k tokens"."""
    if unit == "USD":
        return in_dollars(amount)
    number = str(amount)
    for scale in ("M", "k"):
        if amount and amount % _SCALES[scale] == 0:
            number = f"{amount // _SCALES[scale]}{scale}"
            break
    return f"{number} {unit[:-1] if amount == 1 else unit}"


def parse_limits(text: str) -> tuple[Limit, ...]:
    """The limits in a text, separated by commas; none in an empty one. Raises InputError with what is wrong."""
    limits = tuple(_limit(part.strip()) for part in text.split(",")) if text.strip() else ()
    for number, limit in enumerate(limits):
        if any((limit.unit, limit.window) == (other.unit, other.window) for other in limits[:number]):
            raise InputError(f"there are two limits of {limit.unit} a {limit.window}", "leave one of them out")
    return limits


def limits_text(limits: tuple[Limit, ...]) -> str:
    """The text that `parse_limits` reads back as the same limits."""
    return ", ".join(map(str, limits))


def span_of(window: Window, now: float) -> Span:
    """The window that `now` (seconds since 1970) is in."""
    seconds = int(now // 1)
    match window:
        case "minute" | "hour" | "day":
            length = {"minute": 60, "hour": 3600, "day": 86_400}[window]
            start = seconds - seconds % length
            return Span(start, start + length)
        case "month":
            first = datetime.fromtimestamp(seconds, UTC).replace(day=1, hour=0, minute=0, second=0)
            following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
            return Span(int(first.timestamp()), int(following.timestamp()))
        case "total":
            return Span(None, None)


def _limit(text: str) -> Limit:
    match = _ONE.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} is no limit", FORM)
    dollars = match["amount"].startswith("$")
    name = match["unit"] or ("USD" if dollars else "")
    unit = _UNITS.get(name.lower())
    if unit is None or (dollars and unit != "USD"):
        raise InputError(f"{text!r} limits {name or 'nothing'}, which is none of USD, requests and tokens", FORM)
    window = _WINDOWS.get((match["window"] or "total").lower())
    if window is None:
        raise InputError(f"{text!r} has no window that is known", f"choose one of {', '.join(WINDOWS)}")
    return Limit(_amount(text, match["amount"], match["scale"], unit), unit, window)


def _amount(text: str, number: str, scale: str, unit: Unit) -> int:
    if unit == "USD":
        if scale:
            raise InputError(f"{text!r} is no amount of dollars", "write all of its digits")
        return micro_dollars(number)
    if not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,6})?", number):
        raise InputError(f"{text!r} has no number that can be read", FORM)
    amount = Decimal(number) * _SCALES[scale]
    if amount != int(amount) or amount > MOST:
        raise InputError(f"{text!r} is no whole number of {unit} up to {MOST}", FORM)
    return int(amount)

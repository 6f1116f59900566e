"""Money as whole micro-dollars: sums are exact, and what is not whole is rounded up, never down.

    micro_dollars("0.05 USD") == 50_000
    in_dollars(50_000) == "0.05 USD"

A price of one dollar per million tokens is one micro-dollar a token.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

from ponder.errors import InputError

MICRO = 1_000_000
MOST = 10**15
"""Micro-dollars that any amount may be at most, a billion dollars: sums of them stay whole in the database."""

_AMOUNT = re.compile(r"\$?\s*(?P<number>[0-9]{1,12}(?:\.[0-9]{1,12})?)\s*(?:USD|dollars?)?", re.IGNORECASE)


def micro_dollars(text: str) -> int:
    """Micro-dollars of "5 USD", "$5" or "5"; parts of a micro-dollar count as a whole one. Raises InputError."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text!r} is no amount of dollars", "write it as: 5 USD, or 0.25 USD")
    micro = rounded_up(Decimal(match["number"]) * MICRO)
    if micro > MOST:
        raise InputError(f"{text!r} is more than {MOST // MICRO} dollars", "write a smaller amount")
    return micro


def rounded_up(micro: Decimal) -> int:
    """Whole micro-dollars that are no less than `micro`."""
    return int(micro.to_integral_value(ROUND_CEILING))


def in_dollars(micro: int) -> str:
    """The same amount as text, exact: "0.05 USD", "5 USD"."""
    whole, rest = divmod(abs(micro), MICRO)
    digits = f".{rest:06}".rstrip("0").rstrip(".") if rest else ""
    return f"{'-' if micro < 0 else ''}{whole}{digits} USD"

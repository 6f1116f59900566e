"""Money: exact, and rounded up where it is not whole."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import InputError
from ponder.ops.money import MOST, in_dollars, micro_dollars, rounded_up


@pytest.mark.parametrize(
    ("text", "micro"),
    [
        ("5 USD", 5_000_000),
        ("$5", 5_000_000),
        ("5", 5_000_000),
        (" 0.25usd ", 250_000),
        ("1 dollar", 1_000_000),
        ("0.1 dollars", 100_000),
        ("0.0000001 USD", 1),  # less than the least there is, and still not nothing
        ("0", 0),
    ],
)
def test_amounts_are_read(text: str, micro: int) -> None:
    assert micro_dollars(text) == micro


@pytest.mark.parametrize("text", ["", "USD", "-5 USD", "five", "1e3", "5 EUR", "5,00 USD", "nan", "٣ USD", "1" * 12])
def test_what_is_no_amount_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        micro_dollars(text)
    assert repr(text) in caught.value.problem
    assert "\n" not in str(caught.value)


@given(st.integers(0, MOST))
def test_what_is_written_is_read_back(micro: int) -> None:
    assert micro_dollars(in_dollars(micro)) == micro


def test_amounts_are_written_without_needless_digits() -> None:
    assert [in_dollars(micro) for micro in (0, 1, 50_000, 5_000_000, 1_234_567, -250_000)] == [
        "0 USD",
        "0.000001 USD",
        "0.05 USD",
        "5 USD",
        "1.234567 USD",
        "-0.25 USD",
    ]


@given(st.decimals(0, 10**9, places=9))
def test_rounding_goes_up_by_less_than_one(exact: Decimal) -> None:
    assert 0 <= rounded_up(exact) - exact < 1

"""Limits: their texts and their windows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import InputError
from ponder.ops.limits import WINDOWS, Limit, Span, Unit, limits_text, parse_limits, span_of, told
from ponder.ops.money import MOST

NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC).timestamp()


def test_the_example_of_the_documents() -> None:
    assert parse_limits("5 USD/month, 60 requests/min, 100k tokens/day") == (
        Limit(5_000_000, "USD", "month"),
        Limit(60, "requests", "minute"),
        Limit(100_000, "tokens", "day"),
    )


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("$5/month", Limit(5_000_000, "USD", "month")),
        ("$ 0.50 / day", Limit(500_000, "USD", "day")),
        ("2 dollars", Limit(2_000_000, "USD", "total")),
        ("1 request/h", Limit(1, "requests", "hour")),
        ("1.5M tokens per day", Limit(1_500_000, "tokens", "day")),
        ("2k requests/total", Limit(2_000, "requests", "total")),
        ("0 USD", Limit(0, "USD", "total")),
        ("60 Requests/Minute", Limit(60, "requests", "minute")),
    ],
)
def test_other_ways_to_write_them(text: str, limit: Limit) -> None:
    assert parse_limits(text) == (limit,)
    assert parse_limits(str(limit)) == (limit,)


def test_no_text_is_no_limit() -> None:
    assert parse_limits("") == parse_limits("  ") == ()
    assert limits_text(()) == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lots", "'lots' is no limit"),
        ("5 USD/month,", "'' is no limit"),
        ("5 USD/fortnight", "no window that is known"),
        ("5 EUR/month", "limits EUR"),
        ("60/min", "limits nothing"),
        ("$5 tokens", "limits tokens"),
        ("5k USD", "no amount of dollars"),
        ("1.5 tokens/day", "no whole number of tokens"),
        ("1.2.3 requests", "no number that can be read"),
        ("9999999999M tokens", "no whole number of tokens"),
        ("-5 USD", "is no limit"),
        ("5 USD/month, 6 USD/month", "two limits of USD a month"),
        ("100,000 tokens/day", "'100' limits nothing"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        parse_limits(text)
    assert "\n" not in str(caught.value)
    assert caught.value.mend


LIMITS = st.lists(
    st.builds(Limit, st.integers(0, MOST), st.sampled_from(get_args(Unit)), st.sampled_from(WINDOWS)),
    unique_by=lambda limit: (limit.unit, limit.window),
    max_size=6,
).map(tuple)


@given(LIMITS)
def test_the_text_reads_back_as_the_same_limits(limits: tuple[Limit, ...]) -> None:
    assert parse_limits(limits_text(limits)) == limits


def test_amounts_are_told_with_their_unit() -> None:
    assert told(1, "requests") == "1 request"
    assert told(0, "tokens") == "0 tokens"
    assert told(1_500, "tokens") == "1500 tokens"
    assert told(250_000, "USD") == "0.25 USD"


def test_windows_are_those_of_the_calendar() -> None:
    last = NEW_YEAR - 0.5
    assert span_of("minute", last) == Span(int(NEW_YEAR) - 60, int(NEW_YEAR))
    assert span_of("hour", last) == Span(int(NEW_YEAR) - 3600, int(NEW_YEAR))
    assert span_of("day", last) == Span(int(NEW_YEAR) - 86_400, int(NEW_YEAR))
    assert span_of("month", last) == Span(int(NEW_YEAR) - 31 * 86_400, int(NEW_YEAR))
    assert span_of("month", NEW_YEAR) == Span(int(NEW_YEAR), int(NEW_YEAR) + 31 * 86_400)
    leap = datetime(2028, 2, 29, 12, tzinfo=UTC).timestamp()
    month = span_of("month", leap)
    assert month.start is not None
    assert month.end is not None
    assert month.end - month.start == 29 * 86_400
    assert span_of("total", last) == Span(None, None)


@given(st.floats(0, 4e9), st.sampled_from([window for window in WINDOWS if window != "total"]))
def test_windows_follow_each_other_without_a_gap(now: float, window: str) -> None:
    span = span_of(window, now)  # type: ignore[arg-type]
    assert span.start is not None
    assert span.end is not None
    assert span.start <= now < span.end
    assert span_of(window, span.end).start == span.end  # type: ignore[arg-type]
    assert span_of(window, span.start - 1).end == span.start  # type: ignore[arg-type]

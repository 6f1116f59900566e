from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import InputError
from ponder.train.length_reward import exact_length, maximum_length, soft_overlong

lengths = st.integers(0, 5000)


def test_exact_length_pays_for_the_answer_and_takes_for_every_token_off():
    assert exact_length(True, 1000, 1000) == 1.0
    assert exact_length(True, 900, 1000) == pytest.approx(0.97)
    assert exact_length(True, 1100, 1000) == pytest.approx(0.97)
    assert exact_length(False, 1100, 1000) == pytest.approx(-0.03)
    assert exact_length(False, 0, 10, alpha=0.1) == pytest.approx(-1.0)


def test_maximum_length_halves_at_the_limit():
    assert maximum_length(True, 1000, 1000) == 0.5
    assert maximum_length(True, 0, 1000) == pytest.approx(0.8)
    assert maximum_length(True, 0, 4000) == 1.0
    assert maximum_length(True, 2000, 1000) == pytest.approx(0.2)
    assert maximum_length(True, 5000, 1000) == 0.0
    assert maximum_length(False, 10, 1000) == 0.0
    assert maximum_length(True, 10, 10, alpha=1.0, delta=0.25) == 0.25


@given(lengths, lengths, lengths)
def test_closer_is_better_and_shorter_is_better(a, b, target):
    nearer, farther = sorted([a, b], key=lambda length: abs(target - length))
    assert exact_length(True, nearer, target) >= exact_length(True, farther, target)
    assert maximum_length(True, min(a, b), target) >= maximum_length(True, max(a, b), target)
    assert 0 <= maximum_length(True, a, target) <= 1


@pytest.mark.parametrize(
    ("length", "reward"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (101, -1.0), (999, -1.0)],
)
def test_soft_overlong_falls_from_the_start_of_the_cache_to_the_limit(length, reward):
    assert soft_overlong(length, 100, 20) == pytest.approx(reward)


def test_without_a_cache_it_is_a_step():
    assert [soft_overlong(length, 100, 0) for length in (99, 100, 101)] == [0.0, 0.0, -1.0]


def test_what_is_refused():
    with pytest.raises(InputError, match="0 <= cache <= limit"):
        soft_overlong(5, 10, 11)
    with pytest.raises(InputError, match="at least 0"):
        exact_length(True, -1, 10)
    with pytest.raises(InputError, match="at least 0"):
        maximum_length(True, 1, -10)

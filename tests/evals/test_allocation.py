"""Samples by difficulty: estimates that agree with the unbiased ones, the best levels by hand, and what they gain."""

from __future__ import annotations

import functools
import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import judged, pool_of

from ponder.errors import InputError
from ponder.evals.allocation import Allocation, allocate_by_difficulty, greedy, hull, levels_of, ordered
from ponder.evals.estimators import majority_at_k
from ponder.evals.results import Run
from ponder.strategies.allocate import agreement, samples_for
from ponder.strategies.naming import strategy_named
from ponder.types import Sample


@functools.cache
def drawn(questions: int = 120, samples: int = 32) -> Run:
    """A third easy, a third where votes of many find what single samples miss, a third hopeless."""
    draw = random.Random(0)
    kinds = [(0.97, "1"), (0.4, "12345"), (0.01, "123456789")]

    def answer(skill: float, others: str) -> str:
        return "7" if draw.random() < skill else draw.choice(others)

    pools = [[answer(*kinds[i % 3]) for _ in range(samples)] for i in range(questions)]
    return pool_of(pools, ["7"] * questions)


# ---------------------------------------------------------------- random orders


def test_orders_agree_with_the_unbiased_estimator() -> None:
    answers = ["7", "7", "8", None, "9", "7", "8", "8"]
    pool = [judged(i, answer, "7") for i, answer in enumerate(answers)]
    orders = ordered([pool], first=2, draws=20_000)
    assert orders.share.sum() == pytest.approx(1)
    for place, k in enumerate(orders.sizes):
        expected = majority_at_k(answers, [answer == "7" for answer in answers], k)
        assert orders.right[0, :, place].sum() == pytest.approx(expected, abs=0.015), k
    # Two of 8 agree in C(3,2) + C(3,2) of 28 pairs; a pair without an answer needs two None.
    assert orders.share[0] == pytest.approx([6 / 28, 22 / 28, 0], abs=0.015)


def test_bins_are_the_agreements_that_the_strategy_sees() -> None:
    def of(answers: str) -> float:
        samples = [Sample(i, each, answer=each) for i, each in enumerate(answers)]
        return agreement(samples, lambda text: None if text == "x" else text)

    for answers in ("7777", "7788", "x777", "xx78", "xxxx"):
        pool = [judged(i, None if each == "x" else each, "7") for i, each in enumerate(answers)]
        orders = ordered([pool], first=4, draws=3)
        (place,) = np.flatnonzero(orders.share[0])
        assert orders.agreements[place] == of(answers)


def test_what_was_cut_short_has_no_vote() -> None:
    pool = [judged(0, "8", "7", kept=False), judged(1, "7", "7"), judged(2, "8", "7", kept=False)]
    assert ordered([pool], first=1, draws=50).right[0, :, 2].sum() == pytest.approx(1)


# ---------------------------------------------------------------- the best levels


def test_the_hull_by_hand() -> None:
    assert hull(np.array([0.0, 0.1, 0.4, 0.4, 0.3])) == [0, 2]
    assert hull(np.array([0.0, 0.3, 0.5, 0.6])) == [0, 1, 2, 3]
    assert hull(np.array([0.5, 0.4, 0.3])) == [0], "more would do harm"
    assert hull(np.array([0.0, 0.1, 0.2])) == [0, 2], "a straight line has no corner"


def test_the_greedy_choice_by_hand() -> None:
    share = np.array([0.5, 0.5])
    right = 0.5 * np.array([[0.9, 0.9, 0.9], [0.2, 0.5, 0.6]])
    assert greedy(share, right, 0.4).tolist() == [0, 0], "half a sample more on average does not fit"
    assert greedy(share, right, 0.5).tolist() == [0, 1]
    assert greedy(share, right, 9.0).tolist() == [0, 2], "an easy question gains nothing"


@settings(max_examples=60, deadline=None)
@given(
    gains=st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=2, max_size=3),
    more=st.floats(0, 3),
)
def test_the_greedy_choice_is_the_best_one_for_what_it_spends(gains: list[list[int]], more: float) -> None:
    """With falling gains, nothing that costs at most as much is better."""
    curves = np.array([np.cumsum([0, *sorted(each, reverse=True)]) for each in gains]) / 1000
    share = np.full(len(gains), 1 / len(gains))
    chosen = greedy(share, curves * share[:, None], more)
    spent = (share * chosen).sum()
    assert spent <= more + 1e-9

    def value(sizes: tuple[int, ...]) -> float:
        return float(sum(s * curve[n] for s, curve, n in zip(share, curves, sizes, strict=True)))

    others = itertools.product(range(4), repeat=len(gains))
    best = max(value(sizes) for sizes in others if (share * sizes).sum() <= spent + 1e-9)
    assert value(tuple(chosen)) == pytest.approx(best)


def test_equal_neighbours_are_one_level() -> None:
    levels = levels_of((1.0, 2 / 3, 1 / 3, 0.0), [3, 9, 9, 3])
    assert levels == ((1.0, 3), (0.333333, 9), (0.0, 3))
    assert [samples_for(votes / 3, levels) for votes in (3, 2, 1, 0)] == [3, 9, 9, 3]
    assert levels_of((1.0, 0.5, 0.0), [4, 4, 4]) == ((0.0, 4),)


# ---------------------------------------------------------------- what it gains


def test_samples_go_where_they_change_the_vote() -> None:
    found = allocate_by_difficulty(drawn(), 8)
    assert found.samples == pytest.approx(8, abs=0.8), "of other questions than those it was chosen on"
    sizes = {votes: samples_for(votes / 4, found.levels) for votes in (4, 2)}
    assert sizes[4] == 4 < sizes[2]
    assert found.difference.interval.low > 0, "better than eight samples for every question"
    assert found.accuracy.n == 120
    strategy = strategy_named(found.strategy)
    assert strategy.__qualname__ == found.strategy  # type: ignore[attr-defined]


def test_where_all_questions_are_alike_nothing_is_gained() -> None:
    draw = random.Random(1)
    pools = [["7" if draw.random() < 0.5 else draw.choice("123") for _ in range(24)] for _ in range(60)]
    found = allocate_by_difficulty(pool_of(pools, ["7"] * 60), 8)
    assert found.difference.interval.low < 0 < found.difference.interval.high


@pytest.mark.parametrize("answer", ["7", "8"])
def test_all_right_or_all_wrong_draws_no_more_than_the_first(answer: str) -> None:
    found = allocate_by_difficulty(pool_of([[answer] * 16] * 30, ["7"] * 30), 8)
    assert found.levels == ((0.0, 4),)
    assert found.samples == pytest.approx(4)
    assert found.accuracy.value == pytest.approx(float(answer == "7"))
    assert Allocation(4, found.levels, found.accuracy, 4, found.difference).strategy == "allocate(4, ((0, 4),))"
    assert callable(strategy_named(found.strategy))


def test_pools_that_are_too_small_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be chosen from pools of 32"):
        allocate_by_difficulty(drawn(), 17)
    with pytest.raises(InputError, match="cannot be chosen"):
        allocate_by_difficulty(drawn(), 3)
    with pytest.raises(InputError, match="too few to calibrate"):
        allocate_by_difficulty(pool_of([["7"] * 16] * 3, ["7"] * 3), 8)

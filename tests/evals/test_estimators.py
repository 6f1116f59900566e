"""Estimators over a pool of samples, against all subsets and all orders."""

from __future__ import annotations

from itertools import combinations, permutations
from math import comb
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.errors import InputError
from ponder.evals.estimators import best_of_k, majority, majority_at_k, pass_at_k

POOLS = st.lists(st.sampled_from(["right", "wrong", "off", None]), min_size=1, max_size=8)


def vote(answers: list[str | None], weights: list[float]) -> float:
    """The share of right answers among those with the heaviest vote."""
    sums: dict[str, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None and weight:
            sums[answer] = sums.get(answer, 0) + weight
    tied = [answer for answer, total in sums.items() if total == max(sums.values())]
    return mean([answer == "right" for answer in tied]) if tied else 0


def highest(pairs: list[tuple[int, int]]) -> float:
    top = max(score for score, _ in pairs)
    return mean([verdict for score, verdict in pairs if score == top])


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int) -> None:
    for right in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations(range(n), k))
            assert pass_at_k(right, n, k) == pytest.approx(mean([min(s) < right for s in subsets]), abs=1e-15)


def test_pass_at_k_neither_cancels_nor_overflows() -> None:
    assert pass_at_k(1, 10_000, 1) == 1e-4
    assert pass_at_k(1, 5000, 2500) == 0.5
    assert pass_at_k(0, 5000, 2500) == 0
    assert pass_at_k(3, 200, 198) == 1


@settings(max_examples=60, deadline=None)
@given(POOLS, st.data())
def test_a_vote_of_k_is_the_mean_over_subsets(answers: list[str | None], data: st.DataObject) -> None:
    n = len(answers)
    weights = data.draw(st.lists(st.sampled_from([0, 0.25, 0.5, 1, 2]), min_size=n, max_size=n))
    k = data.draw(st.integers(1, n))
    correct = [answer == "right" for answer in answers]
    subsets = list(combinations(range(n), k))
    for given_weights, used in [(None, [1.0] * n), (weights, weights)]:
        expected = mean([vote([answers[i] for i in s], [used[i] for i in s]) for s in subsets])
        assert majority_at_k(answers, correct, k, given_weights) == pytest.approx(expected, abs=1e-12)


def test_random_subsets_come_near_all_of_them() -> None:
    answers = [*["right"] * 6, *["wrong"] * 5, *["off"] * 3, None, None]
    correct = [answer == "right" for answer in answers]
    exact = majority_at_k(answers, correct, 6)
    random = majority_at_k(answers, correct, 6, exact=0)
    assert comb(16, 6) <= 20_000
    assert random == pytest.approx(exact, abs=0.012)
    assert random == majority_at_k(answers, correct, 6, exact=0)
    assert random != majority_at_k(answers, correct, 6, exact=0, seed=1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["right", "wrong", "off", None]), min_size=1, max_size=6))
def test_votes_in_random_order_come_to_the_expectation(answers: list[str | None]) -> None:
    correct = [answer == "right" for answer in answers]
    orders = [majority(order) == "right" for order in permutations(answers)]
    assert majority_at_k(answers, correct, len(answers)) == pytest.approx(mean(orders))


def test_the_earliest_sample_breaks_a_tie() -> None:
    assert majority(["b", "a", "a", "b"]) == "b"
    assert majority([None, "a", "b", "b", "a"]) == "a"
    assert majority(["a", "b", "b"]) == "b"
    assert majority(["a", "b", "b"], [1, 0.25, 0.25]) == "a"
    assert majority(["a", "b", "b", "b"], [0.3, 0.1, 0.1, 0.1]) == "a"  # 0.1 + 0.1 + 0.1 > 0.3 by rounding alone
    assert majority(["b", "b", "b", "a"], [0.1, 0.1, 0.1, 0.3]) == "b"
    assert majority(["a", "b"], [0, 1]) == "b"
    assert majority([None, None]) is None
    assert majority([]) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=8), st.data())
def test_the_best_of_k_is_the_mean_over_subsets(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(pairs)))
    expected = mean([float(highest(list(subset))) for subset in combinations(pairs, k)])
    scores, correct = zip(*pairs, strict=True)
    assert best_of_k(scores, correct, k) == pytest.approx(expected, abs=1e-12)


def test_a_perfect_score_is_pass_at_k() -> None:
    correct = [1] * 7 + [0] * 93
    assert best_of_k(correct, correct, 20) == pytest.approx(pass_at_k(7, 100, 20))
    assert best_of_k([0.5] * 100, correct, 20) == pytest.approx(0.07)


@pytest.mark.parametrize(
    "call",
    [
        lambda: pass_at_k(3, 2, 1),
        lambda: pass_at_k(1, 2, 3),
        lambda: pass_at_k(1, 2, 0),
        lambda: majority_at_k(["a"], [True, False], 1),
        lambda: majority_at_k(["a", "a"], [True, False], 1),
        lambda: majority_at_k(["a"], [True], 1, [-1]),
        lambda: majority_at_k(["a"], [True], 1, [float("nan")]),
        lambda: majority_at_k(["a"], [True], 1, [1, 1]),
        lambda: majority_at_k(["a", "b"], [True, False], 1, exact=0, draws=0),
        lambda: best_of_k([1], [1, 0], 1),
        lambda: best_of_k([float("nan")], [1], 1),
        lambda: best_of_k([], [], 1),
    ],
)
def test_what_cannot_be_is_refused(call) -> None:
    with pytest.raises(InputError):
        call()

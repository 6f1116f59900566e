"""The rules of a recommended policy, and that its accuracy is not that of the luckiest setting."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from studies import pool_of, run_of, study

from ponder.errors import InputError
from ponder.evals.derive import study_of
from ponder.evals.recommend import choose, recommend
from ponder.evals.results import Setting
from ponder.strategies.policy import dump, load
from ponder.types import Budget


def right(share: float, n: int = 200) -> list[float]:
    """So many of n answers are right, the same questions first."""
    return [float(i < share * n) for i in range(n)]


def ladder(*shares: float, floor: float = 0.05, n: int = 200):
    """A study of one strategy at 64, 128, 256, ... tokens."""
    runs = [run_of("chain_of_thought", 64 * 2**i, right(share, n)) for i, share in enumerate(shares)]
    return study_of(None, runs, floor=("1", floor))


def budgets(made) -> list[int]:
    return [each.point.setting.budget.tokens for each in choose(made).values()]


def test_high_is_the_cheapest_within_the_noise_of_the_best():
    assert budgets(ladder(0.2, 0.5, 0.595, 0.6))[2] == 256  # half a point: one question of 200
    assert budgets(ladder(0.2, 0.5, 0.58, 0.6))[2] == 512  # two points
    # One point less, and yet no chance: 8 questions of 800, all of them lost.
    sure = [run_of("a", 64, right(0.59, 800)), run_of("a", 128, right(0.6, 800))]
    assert budgets(study_of(None, sure))[2] == 128


def test_low_is_the_cheapest_that_is_clearly_above_the_floor():
    assert budgets(ladder(0.06, 0.3, 0.5, 0.6))[0] == 128
    assert budgets(ladder(0.12, 0.3, 0.5, 0.6))[0] == 64
    none = choose(ladder(0.05, 0.06, 0.07, floor=0.1))
    assert none["low"].point.label == "chain_of_thought, 64 tokens"
    assert none["low"].rule == "the cheapest, as none is clearly above the 10.0% of the best constant answer"


def test_medium_is_the_knee():
    # 10 points a doubling, 15 points a doubling (30 in two), 11.
    made = ladder(0.2, 0.3, 0.5, 0.53)
    assert budgets(made) == [64, 256, 512]
    assert choose(made)["medium"].rule == "the largest gain over low for each doubling of tokens"


def test_less_than_a_doubling_counts_as_one():
    cheap = run_of("b", 300, right(0.23), tokens=50)  # 3 points for 2 tokens more
    runs = [run_of("a", 64, right(0.2)), cheap, run_of("a", 128, right(0.3)), run_of("a", 256, right(0.32))]
    assert choose(study_of(None, runs))["medium"].point.label == "a, 128 tokens"


def test_where_nothing_gains_all_efforts_are_the_cheapest():
    made = ladder(0.4, 0.4, 0.4)
    assert budgets(made) == [64, 64, 64]
    assert choose(made)["medium"].rule == "the same as low, as nothing up to high gains on it"


def test_efforts_rise():
    for seed in range(2):
        efforts = choose(study(seed=seed, questions=30, samples=8)).values()
        assert all(a.point.spent.tokens <= b.point.spent.tokens for a, b in pairwise(efforts))


def test_the_accuracy_is_not_that_of_the_luckiest_setting():
    """30 settings that are all alike: the best of them looks better than it is, and what is reported does not."""
    reported, lucky = [], []
    for seed in range(12):
        draw = random.Random(seed)
        runs = [
            run_of(f"chain_of_thought({i})", 64, [float(draw.random() < 0.5) for _ in range(40)], 48 + i)
            for i in range(30)
        ]
        made = study_of(None, runs)
        reported.append(choose(made)["high"].accuracy.value)
        lucky.append(made.best.accuracy)
    assert np.mean(lucky) > 0.6
    assert abs(np.mean(reported) - 0.5) < 0.05


def test_each_half_is_scored_by_the_choice_of_the_other():
    """Two settings, each right on one half alone: whichever a half chooses is wrong on the other half."""
    order = np.random.default_rng(0).permutation(40)
    first = set(map(int, order[:20]))
    runs = [
        run_of("a", 64, [float(i in first) for i in range(40)]),
        run_of("b", 64, [float(i not in first) for i in range(40)]),
    ]
    high = choose(study_of(None, runs))["high"]
    assert high.point.accuracy == 0.5
    assert (high.accuracy.value, high.accuracy.n) == (0.0, 40)
    assert high.halves == ("a, 64 tokens", "b, 64 tokens")
    assert high.why.endswith("measured on the other, which chose a, 64 tokens and b, 64 tokens")


def test_the_policy_says_what_was_measured_and_comes_back_from_its_file(tmp_path):
    made = study()
    policy = recommend(made)
    assert (policy.task, policy.model, policy.default) == (made.task, made.model, "medium")
    assert list(policy.efforts) == ["low", "medium", "high"]
    chosen = choose(made)
    for name, effort in policy.efforts.items():
        point = chosen[name].point
        assert Setting(effort.strategy, Budget(tokens=effort.budget)) == point.setting
        assert effort.tokens == pytest.approx(point.spent.tokens, abs=0.05)
        assert effort.questions == len(made.questions)
        low, high = effort.interval
        assert low <= effort.accuracy <= high
        assert "measured on the other" in effort.why
    dump(policy, tmp_path / "policy.toml")
    assert load(tmp_path / "policy.toml") == policy


def test_only_what_can_be_done_again_is_chosen():
    answers = [["7", "8"]] * 10
    (only,) = {each.point.label for each in choose(study_of(pool_of(answers, ["7"] * 10))).values()}
    assert only == "vote(2)"  # coverage is twice as good, and one sample cheaper


def test_too_little_to_choose_by_is_refused():
    with pytest.raises(InputError, match="3 questions are too few"):
        choose(ladder(0.5, n=3))
    single = study_of(pool_of([["7"]] * 10, ["7"] * 10))
    with pytest.raises(InputError, match="nothing was measured that could be chosen"):
        recommend(single)
    unbounded = replace(run_of("direct", 64, right(0.5)), setting=Setting("direct"))
    with pytest.raises(InputError, match="without a bound in tokens"):
        recommend(study_of(None, [unbounded]))

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import InputError
from ponder.train.advantage import group_advantages, leave_one_out_advantages, process_advantages, varied

torch.set_num_threads(1)  # more of them wait for each other in products as small as these

rewards = st.sampled_from([0.0, 0.1, 0.5, 1.0, -2.0, 3.7, math.nan])


@st.composite
def grouped(draw: st.DrawFn) -> list[list[float]]:
    n = draw(st.integers(1, 6))
    return draw(st.lists(st.lists(rewards, min_size=n, max_size=n), min_size=1, max_size=5))


def numbers(row: list[float]) -> list[float]:
    return [r for r in row if not math.isnan(r)]


def slow_advantages(groups: list[list[float]], scale: str) -> list[list[float]]:
    everything = [r for row in groups for r in numbers(row)]
    expected = []
    for row in groups:
        known = numbers(row)
        spread = known if scale == "group" else everything
        advantages = []
        for r in row:
            if math.isnan(r) or len(set(known)) < 2:
                advantages.append(0.0)
            else:
                by = 1.0 if scale == "none" else statistics.stdev(spread) + 1e-4
                advantages.append((r - statistics.mean(known)) / by)
        expected.append(advantages)
    return expected


@given(grouped(), st.sampled_from(["group", "batch", "none"]))
def test_group_advantages_are_what_a_loop_says(groups, scale):
    found = group_advantages(torch.tensor(groups, dtype=torch.float64), scale=scale)
    for row, expected in zip(found.tolist(), slow_advantages(groups, scale), strict=True):
        assert row == pytest.approx(expected, abs=1e-9)


@given(grouped())
def test_leave_one_out_advantages_are_what_a_loop_says(groups):
    found = leave_one_out_advantages(torch.tensor(groups, dtype=torch.float64)).tolist()
    for row, advantages in zip(groups, found, strict=True):
        for i, r in enumerate(row):
            others = numbers(row[:i] + row[i + 1 :])
            expected = 0.0 if math.isnan(r) or not others else r - statistics.mean(others)
            assert advantages[i] == pytest.approx(expected, abs=1e-9)


@given(grouped())
def test_groups_that_do_not_vary_have_advantages_of_exactly_zero(groups):
    """Not the rounding error of a mean: they are dropped by comparing with 0."""
    given = torch.tensor(groups)
    told = varied(given)
    assert told.tolist() == [len(set(numbers(row))) > 1 for row in groups]
    for found in (group_advantages(given), group_advantages(given, scale="batch"), leave_one_out_advantages(given)):
        assert found.dtype == torch.float32
        assert found[~told].abs().sum() == 0
        assert bool((found[told] != 0).any(dim=1).all())


def test_known_values():
    given = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, math.nan, 0.0]])
    assert group_advantages(given, scale="none").tolist()[0] == [0.75, -0.25, -0.25, -0.25]
    assert group_advantages(given)[0, 0].item() == pytest.approx(0.75 / (0.5 + 1e-4))
    assert group_advantages(given, epsilon=1.0)[0, 0].item() == pytest.approx(0.5)
    assert leave_one_out_advantages(given).tolist() == [
        pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3]),
        pytest.approx([0.5, 0.5, 0.0, -1.0]),
    ]


def slow_process(steps, sequence, group):
    """`steps` as (reward, end)."""
    normal = []
    for reward, end in steps:
        own = group[sequence[end]]
        known = [r for r, e in steps if group[sequence[e]] == own and not math.isnan(r)]
        if math.isnan(reward) or len(set(known)) < 2:
            normal.append(0.0)
        else:
            normal.append((reward - statistics.mean(known)) / (statistics.stdev(known) + 1e-4))
    return [
        sum(r for r, (_, end) in zip(normal, steps, strict=True) if end >= t and sequence[end] == sequence[t])
        for t in range(len(sequence))
    ]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.data())
def test_process_advantages_are_what_a_loop_says(lengths, data):
    sequence = [i for i, length in enumerate(lengths) for _ in range(length)]
    group = data.draw(st.lists(st.integers(0, 1), min_size=len(lengths), max_size=len(lengths)))
    ends = data.draw(st.lists(st.sampled_from(range(len(sequence))), unique=True)) if sequence else []
    steps = [(data.draw(rewards), end) for end in ends]
    found = process_advantages(
        torch.tensor([reward for reward, _ in steps], dtype=torch.float64),
        torch.tensor(ends, dtype=torch.int64),
        torch.tensor(sequence, dtype=torch.int64),
        torch.tensor(group),
    )
    assert found.tolist() == pytest.approx(slow_process(steps, sequence, group), abs=1e-9)


def test_process_advantages_of_two_answers():
    """Steps of rewards 1, 0 and 0, 1: mean 1/2, deviation sqrt(1/3). The first answer ends with one more token."""
    found = process_advantages(
        torch.tensor([1.0, 0.0, 0.0, 1.0]),
        torch.tensor([1, 2, 5, 6]),
        torch.tensor([0, 0, 0, 0, 1, 1, 1]),
        torch.tensor([0, 0]),
    )
    one = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    assert found.tolist() == pytest.approx([0, 0, -one, 0, 0, 0, one], abs=1e-6)


def test_what_is_refused():
    with pytest.raises(InputError, match="group, batch, none"):
        group_advantages(torch.zeros(1, 2), scale="all")
    with pytest.raises(InputError, match=r"\(groups, n\)"):
        varied(torch.zeros(3))
    sequence, group = torch.tensor([0, 1, 0]), torch.tensor([0, 0])
    with pytest.raises(InputError, match="one sequence after the other"):
        process_advantages(torch.ones(1), torch.tensor([0]), sequence, group)
    with pytest.raises(InputError, match="one reward"):
        process_advantages(torch.ones(1), torch.tensor([0, 1]), torch.tensor([0, 0, 1]), group)

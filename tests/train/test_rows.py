from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import InputError
from ponder.train.rows import Row, branched, check_fit, packed

lengths = st.lists(st.integers(1, 20), min_size=1, max_size=12)


def numbered(sizes: list[int]) -> list[Row]:
    """Rows whose tokens say which row and place they are: 100 row + place."""
    return [
        Row(
            [100 * row + at for at in range(size)], [True] * size, {"twice": [200 * row + 2 * at for at in range(size)]}
        )
        for row, size in enumerate(sizes)
    ]


@given(lengths, st.integers(20, 60))
def test_every_row_is_once_in_a_pack_that_fits(sizes, tokens):
    rows = numbered(sizes)
    packs = packed(rows, tokens)
    assert sorted(number for pack in packs for number in pack.rows) == list(range(len(rows)))
    for pack in packs:
        assert len(pack) <= tokens
        assert pack.branch is None
        starts = pack.lengths.cumsum(0) - pack.lengths
        for at, number in enumerate(pack.rows):
            own = pack.sequence == at
            assert pack.ids[own].tolist() == list(rows[number].ids)
            assert pack.positions[own].tolist() == list(range(len(rows[number])))
            assert pack.values["twice"][own].tolist() == list(rows[number].values["twice"])
            # The first token is predicted from nothing, whatever its mask says; each other from the one before it.
            assert pack.mask[own].tolist() == [False, *[True] * (len(rows[number]) - 1)]
            begin = int(starts[at])
            assert pack.previous[own].tolist() == [begin, *range(begin, begin + len(rows[number]) - 1)]


@given(lengths, st.integers(20, 60))
def test_packs_are_filled_longest_first(sizes, tokens):
    order = [len(row) for pack in packed(numbered(sizes), tokens) for row in [numbered(sizes)[n] for n in pack.rows]]
    assert order == sorted(order, reverse=True)
    packs = packed(numbered(sizes), tokens)
    for one, following in pairwise(packs):
        assert len(one) + int(following.lengths[0]) > tokens


def test_rows_keep_the_numbers_they_are_given():
    assert [pack.rows for pack in packed(numbered([3, 9, 5]), 10, numbers=[7, 8, 9])] == [(8,), (9, 7)]


def test_learnt_counts_what_can_be_predicted():
    assert Row([5, 6, 7], [True, False, True]).learnt == 1
    assert Row([], []).learnt == 0


@pytest.mark.parametrize(
    "more", [{"mask": [True]}, {"values": {"x": [1.0]}}, {"positions": [0]}, {"branch": [0, 0, 0]}]
)
def test_values_as_long_as_the_tokens(more):
    with pytest.raises(ValueError, match="a row of 2 tokens has values of"):
        Row([1, 2], **({"mask": [True, True]} | more))


def test_rows_of_one_batch_have_the_same_values():
    with pytest.raises(ValueError, match="different values"):
        packed([Row([1], [True], {"x": [1.0]}), Row([1], [True])], 10)


def test_a_row_that_does_not_fit_says_what_would():
    with pytest.raises(InputError, match="a sequence of 9 tokens does not fit into micro-batches of 8") as caught:
        packed(numbered([3, 9]), 8)
    assert "at least 9" in caught.value.mend
    check_fit(numbered([3, 9]), 9)
    check_fit([], 1)
    assert packed([], 8) == []


def test_a_branch_goes_on_from_where_it_leaves_the_trunk():
    row = branched([10, 11, 12, 13], ends=[2, 4], tail=[7, 8], values=[0.5, 1.0])
    assert list(row.ids) == [10, 11, 12, 13, 7, 8, 7, 8]
    assert row.positions == [0, 1, 2, 3, 2, 3, 4, 5]
    assert row.branch == [0, 0, 0, 0, 1, 1, 2, 2]
    assert [at for at, learn in enumerate(row.mask) if learn] == [5, 7]
    assert row.values["target"][5] == 0.5
    assert row.values["target"][7] == 1.0
    (pack,) = packed([Row([1], [True], {"target": [0.0]}), row], 20)  # the longer one comes first
    assert pack.rows == (1, 0)
    assert pack.previous.tolist() == [0, 0, 1, 2, 1, 4, 3, 6, 8]
    assert pack.branch is not None
    assert pack.branch.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 0]


def test_a_pack_moves_to_a_device_with_all_it_has():
    (pack,) = packed([branched([1, 2], [1], [3], [1.0])], 9)
    there = pack.to("meta")
    tensors = (there.ids, there.mask, there.positions, there.sequence, there.previous, there.lengths, there.branch)
    assert {tensor.device.type for tensor in tensors if tensor is not None} == {"meta"}
    assert there.values["target"].device.type == "meta"
    assert there.rows == pack.rows
    assert torch.equal(pack.to("cpu").ids, pack.ids)

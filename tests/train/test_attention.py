from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from train.trained import random_rows, small

from ponder.errors import InputError
from ponder.train import attention
from ponder.train.attention import Layout, attend
from ponder.train.rows import Row, branched, packed


def may_see(row: Row, at: int, other: int, window: int | None = None) -> bool:
    """Whether token `at` of a row sees token `other`, said in words: its own branch, or the trunk before it began."""
    places = list(row.positions or range(len(row)))
    branch = list(row.branch or [0] * len(row))
    if window is not None and places[at] - places[other] >= window:
        return False
    if branch[at] == branch[other]:
        return other <= at
    began = min(place for place, b in zip(places, branch, strict=True) if b == branch[at])
    return branch[other] == 0 and places[other] < began


def slow(row: Row, q: Any, k: Any, v: Any, window: int | None, softcap: float | None, scale: float) -> torch.Tensor:
    """(tokens, heads, d), a token and a head at a time. q, k, v: (heads, tokens, d) of that row alone."""
    out = torch.zeros(q.shape[1], q.shape[0], q.shape[2])
    groups = q.shape[0] // k.shape[0]
    for head in range(q.shape[0]):
        for at in range(q.shape[1]):
            seen = [other for other in range(q.shape[1]) if may_see(row, at, other, window)]
            scores = (k[head // groups, seen] @ q[head, at]) * scale
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            out[at, head] = scores.softmax(-1) @ v[head // groups, seen]
    return out


branching = st.builds(
    lambda trunk, ends, tail: branched(
        list(range(trunk)), [1 + end % trunk for end in ends], list(range(tail)), [0.0] * len(ends)
    ),
    st.integers(1, 8),
    st.lists(st.integers(0, 7), min_size=1, max_size=3),
    st.integers(1, 3),
)
plain = st.builds(lambda size: Row([0] * size, [True] * size, {"target": [0.0] * size}), st.integers(1, 9))


@given(
    st.lists(st.one_of(plain, branching), min_size=1, max_size=4),
    st.sampled_from([None, 1, 3, 50]),
    st.sampled_from([None, 2.0]),
    st.sampled_from([None, 0.7]),
)
def test_each_token_sees_its_own_row_and_what_came_before_it(rows, window, softcap, scale):
    (pack,) = packed(rows, 200)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, len(pack), 4, generator=draw) * 2 for heads in (4, 2, 2))
    found, _ = attend(
        None, q, k, v, None, scaling=scale, layout=Layout.of(pack), sliding_window=window, softcap=softcap
    )
    assert found.shape == (1, len(pack), 4, 4)
    for at, number in enumerate(pack.rows):
        own = pack.sequence == at
        expected = slow(rows[number], q[0][:, own], k[0][:, own], v[0][:, own], window, softcap, scale or 4**-0.5)
        assert torch.allclose(found[0][own], expected, atol=1e-5)


def test_nothing_reaches_another_row_or_an_earlier_token():
    """A change of one token's key and value shows in itself and in later tokens of its row, nowhere else."""
    (pack,) = packed(random_rows(3), 200)
    layout = Layout.of(pack)
    q, k, v = (torch.randn(1, 2, len(pack), 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    changed = int((pack.sequence == 1).nonzero()[2])
    other_k, other_v = k.clone(), v.clone()
    other_k[:, :, changed], other_v[:, :, changed] = 9.0, 9.0
    a, b = (attend(None, q, *kv, None, layout=layout)[0] for kv in ((k, v), (other_k, other_v)))
    differs = (a != b).any(-1).any(-1)[0]
    reached = (pack.sequence == 1) & (torch.arange(len(pack)) >= changed)
    assert torch.equal(differs, reached)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_without_a_layout_a_model_attends_as_before(kind):
    model, ids = small(kind), torch.randint(64, (2, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[1, 8:] = 0
    with torch.no_grad():
        model.set_attn_implementation("eager")
        expected = model(ids, attention_mask=mask).logits
        attention.use(model)
        found = model(ids, attention_mask=mask).logits
    assert torch.allclose(found[0], expected[0], atol=2e-4)
    assert torch.allclose(found[1, :8], expected[1, :8], atol=2e-4)


def test_a_softcap_holds_while_decoding_with_a_cache():
    model, ids = small("gemma2", attn_logit_softcapping=2.0), random_rows(1, shortest=12)[0].ids
    ids = torch.tensor([list(ids)])
    with torch.no_grad():
        model.set_attn_implementation("eager")
        expected = model(ids).logits[0, -1]
        attention.use(model)
        cache = model(ids[:, :-3], use_cache=True).past_key_values
        for at in range(-3, 0):
            found = model(ids[:, at : ids.shape[1] + at + 1], past_key_values=cache).logits[0, -1]
    assert torch.allclose(found, expected, atol=2e-4)


def test_sinks_are_refused():
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(InputError, match="attends to sinks"):
        attend(None, q, q, q, None, s_aux=torch.zeros(2))

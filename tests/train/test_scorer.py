from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_lora
from torch import Tensor
from train.trained import WORDS, random_rows, small

from ponder.errors import InputError
from ponder.train.rows import Row, branched, packed
from ponder.train.scorer import Scorer, at_targets, over_tokens, with_entropy

KINDS = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen3", {}),
    ("mistral", {"sliding_window": 7}),
    ("gemma2", {"sliding_window": 7, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}),
]


def apart(model: Any, row: Row, temperature: float = 1.0) -> Tensor:
    """log p (tokens - 1, vocabulary) of a row by itself, by transformers' own attention."""
    ids = torch.tensor([list(row.ids)])
    with torch.no_grad():
        logits: Tensor = model(ids).logits[0, :-1].double()
    return (logits / temperature).log_softmax(-1)


def own(row: Row) -> Tensor:
    return torch.tensor(list(row.ids[1:]))


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_packed_rows_score_what_they_do_apart(kind, config):
    rows = [Row(row.ids, [True] * len(row)) for row in random_rows(5)]
    expected = [apart(small(kind, **config), row).gather(1, own(row)[:, None])[:, 0] for row in rows]
    model = small(kind, **config)
    scorer = Scorer(model, piece=13)
    for pack in packed(rows, 60):
        found = over_tokens(pack, scorer(pack, at_targets(pack)).detach())
        for at, number in enumerate(pack.rows):
            values = found[pack.sequence == at]
            assert values[0] == 0  # predicted from nothing
            assert torch.allclose(values[1:].double(), expected[number], atol=2e-5)


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_branches_score_what_sequences_of_their_own_do(kind, config):
    trunk, tail, ends = [5, 9, 11, 4, 7, 3, 8, 20, 13, 6, 30, 31], [40, 41, 42], [1, 6, 12]
    row = branched(trunk, ends, tail, [0.0] * 3)
    expected = [apart(small(kind, **config), Row(trunk[:end] + tail, [True] * (end + 3)))[-1, 42] for end in ends]
    other = Row([1, 2, 3], [True] * 3, {"target": [0.0] * 3})
    (pack,) = packed([other, row], 60)
    found = Scorer(small(kind, **config))(pack, at_targets(pack)).detach()
    assert torch.allclose(found[:3].double(), torch.stack(expected), atol=2e-5)
    assert len(found) == 5


def test_an_adapter_is_part_of_the_model():
    rows = [Row(row.ids, [True] * len(row)) for row in random_rows(2)]
    adapted = tiny_lora(small(), "default")
    expected = [apart(adapted, row).gather(1, own(row)[:, None])[:, 0] for row in rows]
    (pack,) = packed(rows, 100)
    found = over_tokens(pack, Scorer(adapted)(pack, at_targets(pack)).detach())
    for at, number in enumerate(pack.rows):
        assert torch.allclose(found[pack.sequence == at][1:].double(), expected[number], atol=2e-5)
    assert float((expected[0] - apart(small(), rows[0]).gather(1, own(rows[0])[:, None])[:, 0]).abs().max()) > 0.01


def test_only_what_the_mask_says_is_scored():
    rows = random_rows(4)
    (pack,) = packed(rows, 200)
    values = Scorer(small())(pack, at_targets(pack)).detach()
    assert len(values) == sum(row.learnt for row in rows)
    full = over_tokens(pack, values)
    assert torch.equal(full != 0, pack.mask)


def test_temperature_and_entropy():
    row = Row(random_rows(1)[0].ids, [True] * len(random_rows(1)[0]))
    logs = apart(small(), row, temperature=0.7)
    (pack,) = packed([row], 100)
    values = Scorer(small(), piece=4)(pack, with_entropy(pack, temperature=0.7))
    assert torch.allclose(values[:, 0].double(), logs.gather(1, own(row)[:, None])[:, 0], atol=2e-5)
    assert torch.allclose(values[:, 1].double(), -(logs.exp() * logs).sum(-1), atol=2e-5)
    alone = Scorer(small())(pack, at_targets(pack, temperature=0.7))
    assert torch.allclose(alone, values[:, 0], atol=1e-6)


def test_entropy_carries_no_gradient():
    model = small()
    (pack,) = packed(random_rows(2), 100)
    values = Scorer(model)(pack, with_entropy(pack))
    values[:, 1].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_gradients_are_those_of_a_padded_batch(kind, config):
    rows = random_rows(5)
    padded = small(kind, **config)
    padded.set_attn_implementation("eager")
    longest = max(len(row) for row in rows)
    ids, attend, learnt = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(3))
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(list(row.ids))
        attend[at, : len(row)] = 1
        learnt[at, : len(row)] = torch.tensor([False, *row.mask[1:]])
    logs = padded(ids, attention_mask=attend).logits[:, :-1].float().log_softmax(-1)
    (logs.gather(2, ids[:, 1:, None])[..., 0] * learnt[:, 1:]).sum().backward()

    model = small(kind, **config)
    scorer = Scorer(model, piece=11)
    for pack in packed(rows, 70):
        scorer(pack, at_targets(pack)).sum().backward()
    for (name, p), (_, expected) in zip(model.named_parameters(), padded.named_parameters(), strict=True):
        scale = float(expected.grad.abs().max())
        assert torch.allclose(p.grad, expected.grad, atol=2e-5 * max(1.0, scale), rtol=1e-4), name


def test_the_head_sees_a_piece_at_a_time_forwards_and_backwards():
    model = small()
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda head, given, logits: sizes.append(len(logits)))
    (pack,) = packed(random_rows(8), 400)
    Scorer(model, piece=10)(pack, at_targets(pack)).sum().backward()
    assert max(sizes) == 10
    learnt = int(pack.mask.sum())
    last = learnt % 10 or 10
    assert sum(sizes) == 2 * learnt - last  # once more for the gradient, but for the last piece, where that begins


def test_bfloat16_products_leave_the_weights_and_the_loss_in_float32():
    model = small()
    (pack,) = packed(random_rows(3), 200)
    exact = Scorer(model)(pack, at_targets(pack)).detach()
    rough = Scorer(model, precision=torch.bfloat16)(pack, at_targets(pack))
    rough.sum().backward()
    assert rough.dtype == torch.float32
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
    difference = float((rough.detach() - exact).abs().max())
    assert 1e-4 < difference < 0.5


def test_states_and_logits_are_what_the_forward_pass_reduces():
    scorer = Scorer(small())
    (pack,) = packed(random_rows(3), 200)
    with torch.no_grad():
        logits = scorer.logits(scorer.states(pack))
        assert logits.shape == (int(pack.mask.sum()), WORDS)
        assert torch.allclose(at_targets(pack)(logits, pack.mask.nonzero()[:, 0]), scorer(pack, at_targets(pack)))
    assert scorer.device.type == "cpu"


def test_a_model_whose_head_does_more_is_refused():
    with pytest.raises(InputError, match="scales its logits by logits_scaling"):
        Scorer(small("granite", logits_scaling=4.0))

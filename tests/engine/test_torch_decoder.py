"""The decoder against transformers' own forward pass, for each family that it covers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_lora, tiny_model

from ponder.engine.torch_decoder import PATTERN, ROUND, Decoder, covers
from ponder.engine.torch_projection import packs

CONTEXT = 2 * ROUND + 40
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 7},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "smollm3": {},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 16},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ids_of(rows: int, length: int) -> torch.Tensor:
    return torch.randint(5, 260, (rows, length), generator=torch.Generator().manual_seed(1))


def worst(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("kind", FAMILIES)
def test_prefill_decode_and_going_on_from_a_copy(kind: str) -> None:
    model = tiny_model(kind, max_position_embeddings=CONTEXT, dtype=torch.float64, **FAMILIES[kind])
    ids = ids_of(3, ROUND + 20)
    with torch.no_grad():
        want = model(ids).logits
    decoder = Decoder(model, 4, CONTEXT)
    # transformers' norms compute in float32 whatever the weights are: that is what is left.
    begun = ROUND - 6  # decoding crosses from one block of the cache into the next
    assert worst(decoder.logits(decoder.prefill(ids[:, :begun], [0, 1, 2])), want[:, :begun]) < 3e-6
    for place in range(begun, ids.shape[1]):
        hidden = decoder.decode(ids[:, place], torch.full((3,), place), place + 1)
        assert worst(decoder.logits(hidden), want[:, place]) < 3e-6
    decoder.copy(1, [3], 10)
    assert worst(decoder.logits(decoder.prefill(ids[1:2, 10:], [3], [10])), want[1:2, 10:]) < 3e-6


def test_every_family_is_tried() -> None:
    assert set(FAMILIES) == set(PATTERN)


def test_stretched_rotary_positions() -> None:
    stretched = {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    model = tiny_model("llama", rope_parameters=stretched)
    ids = ids_of(2, 90)
    decoder = Decoder(model, 2, 128)
    with torch.no_grad():
        assert worst(decoder.logits(decoder.prefill(ids, [0, 1])), model(ids).logits) < 5e-6


def test_rows_stand_at_different_positions() -> None:
    model = tiny_model()
    ids, starts = ids_of(3, 60), [50, 3, 29]
    with torch.no_grad():
        want = model(ids).logits
    decoder = Decoder(model, 3, 64)
    for row, start in enumerate(starts):
        decoder.prefill(ids[row : row + 1, :start], [row])
    for step in range(8):
        places = torch.tensor(starts) + step
        rows = torch.arange(3)
        hidden = decoder.decode(ids[rows, places], places, 58)
        assert worst(decoder.logits(hidden), want[rows, places]) < 5e-6


def test_swapped_saved_and_restored_rows_go_on_as_before() -> None:
    model = tiny_model(max_position_embeddings=CONTEXT)
    length = ROUND + 9
    ids = ids_of(2, length + 1)
    decoder = Decoder(model, 4, CONTEXT)
    decoder.prefill(ids[:, :length], [0, 1])
    places = torch.full((2,), length)
    want = decoder.decode(ids[:, length], places, length + 1)
    decoder.swap(0, 1, length)
    swapped = decoder.decode(ids[:, length].flip(0), places, length + 1).flip(0)
    assert torch.equal(swapped, want)
    saved = [decoder.save(row, length) for row in (1, 0)]
    assert saved[0].shape == (2, 2, 2, length, 8)
    decoder.clear()
    for row, held in enumerate(saved):
        decoder.restore(row, held)
    assert torch.equal(decoder.decode(ids[:, length], places, length + 1), want)


def test_weights_live_in_the_model_and_copies_are_renewed() -> None:
    model = tiny_model()
    ids = ids_of(1, 12)
    living, wide = Decoder(model, 1, 64), Decoder(model, 1, 64, dtype=torch.float64)
    before = wide.logits(wide.prefill(ids, [0]))
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight.mul_(-2)
        model.model.layers[0].mlp.up_proj.weight.add_(0.3)
        want = model(ids).logits
    assert worst(living.logits(living.prefill(ids, [0])), want) < 5e-6
    assert torch.equal(wide.logits(wide.prefill(ids, [0])), before)
    wide.refresh()
    assert worst(wide.logits(wide.prefill(ids, [0])), want) < 5e-6


@pytest.mark.parametrize("fold", [False, True])
def test_adapters_switched_off_count_for_nothing(fold: bool) -> None:
    model = tiny_lora(tiny_model(), "one")
    ids = ids_of(1, 12)
    decoder = Decoder(model, 1, 64, fold=fold)
    with torch.no_grad():
        assert worst(decoder.logits(decoder.prefill(ids, [0])), model(ids).logits) < 2e-5
        with model.disable_adapter():
            decoder.refresh()
            assert worst(decoder.logits(decoder.prefill(ids, [0])), model(ids).logits) < 5e-6


@pytest.mark.skipif(not packs(torch.device("cpu"), torch.bfloat16), reason="a processor without bfloat16")
@pytest.mark.parametrize("fold", [False, True])
def test_packed_weights_give_what_plain_ones_do(fold: bool) -> None:
    model = tiny_lora(tiny_model(), "one")
    ids = ids_of(3, 12)
    plain, packed = (Decoder(model, 3, 64, dtype=torch.bfloat16, fold=fold, pack=pack) for pack in (False, True))
    for _ in range(2):
        want = plain.logits(plain.prefill(ids, [0, 1, 2]))
        assert worst(packed.logits(packed.prefill(ids, [0, 1, 2])), want) < 0.03
        with torch.no_grad():
            model.base_model.model.lm_head.weight.mul_(0.2)
            model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.mul_(-1)
        plain.refresh(), packed.refresh()
    assert worst(packed.logits(packed.prefill(ids, [0, 1, 2])), want) > 0.1


def test_what_it_does_not_cover_is_refused() -> None:
    model = tiny_model("gpt_neox", intermediate_size=32)
    assert not covers(model)
    with pytest.raises(ValueError, match="no decoder"):
        Decoder(model, 1, 64)
    with pytest.raises(ValueError, match="packed"):
        Decoder(tiny_model(), 1, 64, pack=True)


def test_two_decoders_of_one_model_read_the_same_weights() -> None:
    model = tiny_model()
    ids = ids_of(1, 12)
    first, second = Decoder(model, 1, 64), Decoder(model, 1, 64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
        want = model(ids).logits
    for decoder in (first, second):
        assert worst(decoder.logits(decoder.prefill(ids, [0])), want) < 5e-6


def test_folding_now_and_then_leaves_the_weights_themselves_alone() -> None:
    model = tiny_lora(tiny_model(), "one")
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    ids = ids_of(1, 12)
    decoder = Decoder(model, 1, 64, fold=True)
    with model.disable_adapter():
        decoder.refresh()
    decoder.refresh()
    with torch.no_grad():
        assert worst(decoder.logits(decoder.prefill(ids, [0])), model(ids).logits) < 2e-5
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_biases_follow_after_refresh() -> None:
    model = tiny_model("qwen2")
    ids = ids_of(1, 12)
    decoder = Decoder(model, 1, 64)
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.bias.add_(1.0)
        decoder.refresh()
        assert worst(decoder.logits(decoder.prefill(ids, [0])), model(ids).logits) < 5e-6

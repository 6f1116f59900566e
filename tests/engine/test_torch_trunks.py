"""Prompts that rows share: what is sampled from them is what is sampled from a prompt in each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_torch_decoder import FAMILIES
from test_torch_sampler import forward, sampler
from tiny import tiny_model

from ponder.engine.torch_cache import ROUND, block_size
from ponder.engine.torch_decoder import Decoder
from ponder.engine.torch_sampler import Drawn, Job, Sampler, Thinking
from ponder.engine.torch_trunks import SHARE, Trunks

PROMPTS = [(5, 80, 90), (7,), tuple(range(20, 60)), tuple(range(100, 105 + ROUND)), (9, 9, 9, 9)]
COUNTS = (3, 2, SHARE + 3, 1, 4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def jobs(max_tokens: int = 12) -> list[Job]:
    """Jobs of unequal lengths, with unequal numbers of samples; one has a prompt of one token, so an empty trunk."""
    return [
        Job(prompt, n, max_tokens + number, seed=number)
        for number, (prompt, n) in enumerate(zip(PROMPTS, COUNTS, strict=True))
    ]


def ids(drawn: Sequence[Sequence[Drawn]]) -> list[list[tuple[int, ...]]]:
    return [[one.ids for one in samples] for samples in drawn]


def arranged(bulk: Sampler) -> list[list[int]]:
    """The trunk of each row, at each time that rows changed."""
    trunks, found = bulk._decoder.trunks, []
    assert trunks is not None
    arrange = trunks.arrange

    def seen(of: Sequence[int], lengths: Sequence[int]) -> None:
        found.append(list(of))
        arrange(of, lengths)

    trunks.arrange = seen  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_logprobs_are_those_of_a_forward_pass_in_each_family(kind: str) -> None:
    """Rows are refilled and close up: there are 21 samples for 7 rows, and some end early."""
    model = tiny_model(kind, dtype=torch.float64, max_position_embeddings=256, **FAMILIES[kind])
    drawn = sampler(model, slots=7, share=True).sample(jobs())
    assert tuple(map(len, drawn)) == COUNTS
    for prompt, samples in zip(PROMPTS, drawn, strict=True):
        for one in samples:
            assert torch.tensor(one.logprobs) == pytest.approx(forward(model, prompt, one), abs=1e-5)


@pytest.mark.parametrize(("slots", "look"), [(2, 1), (5, 3), (21, 1)])
def test_the_same_tokens_as_from_copied_prompts(slots: int, look: int) -> None:
    model = tiny_model(dtype=torch.float64, max_position_embeddings=256)
    want = sampler(model, share=False).sample(jobs(34))  # own tokens fill more than a block
    bulk = sampler(model, slots=slots, look=look, share=True)
    assert ids(bulk.sample(jobs(34))) == ids(want)
    assert ids(bulk.sample(jobs(34)[::-1])[::-1]) == ids(want)


def test_thinking_is_closed_on_time_after_a_shared_prompt() -> None:
    model = tiny_model(dtype=torch.float64)
    asked = [Job(prompt, 3, 20, thinking=cap, seed=cap) for prompt, cap in zip(PROMPTS, (5, 0, 9, 1, 13), strict=True)]
    thinking = Thinking(closing_ids=(10, 11, 12), answer=4)
    copied, shared = (sampler(model, thinking=thinking, slots=4, share=share).sample(asked) for share in (False, True))
    assert ids(shared) == ids(copied)
    assert [[one.mask for one in samples] for samples in shared] == [
        [one.mask for one in samples] for samples in copied
    ]
    assert {one.thought for one in shared[1]} == {0}


def test_what_ran_before_leaves_nothing_behind() -> None:
    """The cache is laid out anew for longer prompts and samples, and keeps its layout for shorter ones."""
    model = tiny_model(dtype=torch.float64, max_position_embeddings=512)
    bulk = sampler(model, context=512, slots=4, share=True)
    runs = [[Job(PROMPTS[0], 3, 8)], [Job(PROMPTS[3], 5, 300)], jobs(), [Job((7,), 2, 9)], [Job(PROMPTS[0], 3, 8)]]
    for asked in runs:
        assert ids(bulk.sample(asked)) == ids(sampler(model, context=512, slots=4, share=False).sample(asked))


def test_a_prompt_lies_in_memory_once_for_its_samples() -> None:
    bulk = sampler(tiny_model(), end_ids=(), slots=2 * SHARE, share=True)
    trunks = bulk._decoder.trunks
    assert trunks is not None
    found = arranged(bulk)
    bulk.sample([Job(PROMPTS[2], SHARE, 5), Job(PROMPTS[3], SHARE, 5)])
    assert found == [[0] * SHARE + [1] * SHARE]
    assert trunks.keys.shape[2] == 2
    assert bulk._decoder.keys.shape[1] * bulk._decoder.keys.shape[-2] < ROUND  # rows hold 5 tokens, no prompt


def test_a_trunk_has_no_more_rows_than_it_may_and_none_lies_idle() -> None:
    """Full trunks of a long job stand beside each other; at the tail, trunks in use move together."""
    bulk = sampler(tiny_model(), slots=3 * SHARE, share=True)
    found = arranged(bulk)
    bulk.sample([Job(PROMPTS[2], 2 * SHARE + 1, 30, seed=3), Job(PROMPTS[0], 5, 60), Job(PROMPTS[4], SHARE, 9)])
    assert len(found) > 5
    for of in found:
        assert max(map(of.count, of)) <= SHARE
        assert set(of) == set(range(max(of) + 1))
    assert max(map(max, found)) == 4


def test_a_model_that_computes_no_numbers_spoils_no_trunk() -> None:
    model = tiny_model()
    bulk = sampler(model, share=True)
    want = bulk.sample(jobs())
    trunks = bulk._decoder.trunks
    assert trunks is not None
    for held in (trunks.keys, trunks.values, bulk._decoder.keys):
        held.fill_(torch.nan)
    bulk._decoder.clear()
    assert bulk.sample(jobs()) == want


def test_kernels_take_no_trunks() -> None:
    with pytest.raises(ValueError, match="kernels"):
        Decoder(tiny_model(head_dim=16), 1, 64, fused=True, share=True)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_scores_and_sums_are_those_of_each_row_with_its_trunk(data: Any) -> None:
    """Whatever rows go on from whatever trunks: q K^T and w V, a row at a time."""
    count = data.draw(st.integers(1, 5), "trunks")
    of = data.draw(st.permutations([*range(count), *data.draw(st.lists(st.integers(0, count - 1), max_size=9))]), "of")
    lengths = [data.draw(st.integers(0 if number else 1, 70), "length") for number in range(count)]
    layers, heads, queries, d = 2, 2, 3, 4
    trunks = Trunks(torch.zeros(layers, 0, len(of), heads, 32, d, dtype=torch.float64))
    trunks.reserve(max(lengths))
    trunks.widen(count)
    chance = torch.Generator().manual_seed(0)
    for held in (trunks.keys, trunks.values):
        held.copy_(torch.randn(held.shape, generator=chance, dtype=torch.float64))
    trunks.arrange(of, [lengths[trunk] for trunk in of])
    assert max(lengths) <= trunks.reach < max(lengths) + trunks.keys.shape[-2]
    assert trunks.begins.tolist() == [lengths[trunk] for trunk in of]
    q = torch.randn(len(of), heads, queries, d, generator=chance, dtype=torch.float64)
    weights = torch.randn(len(of), heads, queries, trunks.reach, generator=chance, dtype=torch.float64)
    for layer in range(layers):
        scores = trunks.scores(layer, q.flatten(0, 1)).view_as(weights)
        mixed = trunks.mixed(layer, weights.flatten(0, 1)).view_as(q)
        for row, trunk in enumerate(of):
            keys, values = (
                held[layer, :, trunk].transpose(0, 1).flatten(1, 2)[:, : trunks.reach]
                for held in (trunks.keys, trunks.values)
            )
            assert torch.allclose(scores[row], q[row] @ keys.transpose(1, 2))
            assert torch.allclose(mixed[row], weights[row] @ values)


@given(st.integers(0, 5000), st.integers(1, 4))
def test_blocks_are_as_small_as_few_of_them_can_be(length: int, blocks: int) -> None:
    size = block_size(length, blocks)
    assert size in (32, 64, ROUND)
    assert size == ROUND or size * blocks >= length
    assert size == 32 or size // 2 * blocks < length

"""Drawing on the device: the right frequencies, the reference's tokens, numbers that depend on their place alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ponder.engine.sampling import Sampling, _drawn
from ponder.engine.torch_draw import Filters, block_of, draw, key, log_probabilities, reference, uniform

FILTERS = [
    Filters(),
    Filters(0),
    Filters(0.6),
    Filters(1.3, top_k=7),
    Filters(top_p=0.8),
    Filters(0.8, min_p=0.1),
    Filters(0.9, top_k=40, top_p=0.7, min_p=0.02),
]


def logits_of(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 1.5


def numbers_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("vocabulary", [3, 256, 300, 1021, 2048])
@pytest.mark.parametrize("filters", FILTERS)
def test_it_draws_what_the_definition_draws(filters: Filters, vocabulary: int) -> None:
    logits, numbers = logits_of(60, vocabulary), numbers_of(60)
    drawn, sums, tempered = draw(logits, numbers, filters)
    # Weights are rounded to float32: a number within that of a border may fall on its other side.
    if filters.off or filters.temperature == 0:
        assert sum(a != b for a, b in zip(drawn.tolist(), reference(logits, numbers, filters), strict=True)) <= 1
    torch.testing.assert_close(sums, logits.logsumexp(-1))
    if filters.temperature:
        torch.testing.assert_close(tempered, (logits / filters.temperature).logsumexp(-1))


@pytest.mark.parametrize("filters", FILTERS)
def test_frequencies_are_the_distribution(filters: Filters) -> None:
    logits = logits_of(1, 300)
    draws = 20_000
    counts = torch.zeros(300)
    tokens = draw(logits.expand(draws, -1), uniform(torch.full((draws,), key(1, 2)), torch.arange(draws)), filters)[0]
    counts.scatter_add_(0, tokens, torch.ones(draws))
    if filters.temperature == 0:
        assert counts[int(logits.argmax())] == draws
        return
    expected = _expected(logits[0], filters) * draws
    assert not counts[expected == 0].any()
    often = expected >= 5
    rare_seen, rare = counts[~often].sum(), expected[~often].sum()
    seen = torch.cat((counts[often], rare_seen[None])) if rare > 0 else counts[often]
    wanted = torch.cat((expected[often], rare[None])) if rare > 0 else expected[often]
    assert stats.chisquare(seen.numpy(), (wanted / wanted.sum() * draws).numpy()).pvalue > 1e-3


def _expected(logits: torch.Tensor, filters: Filters) -> torch.Tensor:
    p = (logits.double() / filters.temperature).softmax(-1)
    if filters.top_k:
        p[p.argsort(descending=True)[filters.top_k :]] = 0
    p[p < filters.min_p * p.max()] = 0
    order = p.argsort(descending=True)
    before = p[order].cumsum(0) - p[order]
    p[order[before >= filters.top_p * p.sum()]] = 0
    return p / p.sum()


@pytest.mark.parametrize("filters", FILTERS[2:])
@pytest.mark.parametrize("vocabulary", [300, 3000])
def test_it_keeps_what_the_other_engine_keeps(filters: Filters, vocabulary: int) -> None:
    """Every token that one of them draws is one that the other can draw: numbers are spread over all of [0, 1)."""
    logits = logits_of(1, vocabulary, seed=3)
    count = 4000
    ours = set(draw(logits.expand(count, -1), torch.arange(count).double() / count, filters)[0].tolist())
    setting = Sampling(filters.temperature, filters.top_p, filters.top_k, filters.min_p, 0, False)
    weights = torch.exp((logits[0] - logits.max()) / filters.temperature).numpy().astype(np.float32)
    randoms = [np.random.default_rng(seed) for seed in range(count)]
    theirs = set(_drawn(weights, setting, randoms))
    kept = set(_expected(logits[0], filters).nonzero()[:, 0].tolist())
    assert ours <= kept
    assert theirs <= kept
    if len(kept) < 100:
        likely = set((_expected(logits[0], filters) > 0.005).nonzero()[:, 0].tolist())
        assert likely <= ours & theirs


def test_flat_rows_do_not_fit_into_the_head() -> None:
    """Where the likeliest thousand do not hold what top-p keeps, all are looked at."""
    logits = torch.zeros(2, 5000)
    numbers = torch.tensor([0.1, 0.99], dtype=torch.float64)
    tokens = draw(logits, numbers, Filters(top_p=0.9))[0]
    seen = draw(logits[:1].expand(2000, -1), torch.arange(2000).double() / 2000, Filters(top_p=0.9))[0]
    assert len(set(seen.tolist())) > 1900
    assert tokens[0] != tokens[1]


def test_extremes_of_numbers_and_weights() -> None:
    logits = torch.full((2, 1000), -torch.inf)
    logits[:, 700] = 2.0
    numbers = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    assert draw(logits, numbers, Filters())[0].tolist() == [700, 700]
    logits[:, 3] = 2.0
    assert draw(logits, numbers, Filters())[0].tolist() == [3, 700]
    tiny = torch.tensor([[0.0, -60.0] * 256])
    assert int(draw(tiny, numbers[1:], Filters())[0]) % 2 == 0


def test_log_probabilities_at_both_temperatures() -> None:
    logits, numbers = logits_of(40, 300), numbers_of(40)
    for temperature in (0.0, 0.5, 1.0, 2.0):
        tokens, sums, tempered = draw(logits, numbers, Filters(temperature))
        plain, hot = log_probabilities(logits, tokens, sums, tempered, temperature)
        chosen = tokens[:, None]
        torch.testing.assert_close(plain, logits.log_softmax(-1).gather(1, chosen)[:, 0])
        torch.testing.assert_close(hot, (logits / (temperature or 1)).log_softmax(-1).gather(1, chosen)[:, 0])


def test_rows_in_parts_are_rows_at_once() -> None:
    logits, numbers = logits_of(100, 500), numbers_of(100)
    whole = draw(logits, numbers, Filters(0.7))[0]
    assert whole.tolist() == [int(draw(logits[i : i + 1], numbers[i : i + 1], Filters(0.7))[0]) for i in range(100)]


@given(st.integers(-(2**70), 2**70), st.integers(0, 10_000), st.integers(0, 100_000))
def test_the_hash_is_splitmix64(seed: int, index: int, position: int) -> None:
    words = 2**64
    golden = 0x9E3779B97F4A7C15

    def mixed(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % words
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % words
        return x ^ (x >> 31)

    made = key(seed, index)
    assert made % words == mixed((mixed(seed % words) + (index + 1) * golden) % words)
    want = (mixed((made + (position + 1) * golden) % words) >> 11) / 2**53
    assert uniform(torch.tensor([made]), torch.tensor([position])).tolist() == [want]


def test_numbers_of_samples_and_positions_are_even_and_unlike() -> None:
    keys = torch.tensor([key(seed, index) for seed in range(20) for index in range(20)])
    found = torch.stack([uniform(keys, torch.full((400,), position)) for position in range(50)])
    assert len(found.unique()) == found.numel()
    assert stats.kstest(found.flatten().numpy(), "uniform").pvalue > 1e-3
    for lag in (1, 20):
        pairs = np.corrcoef(found[:, :-lag].flatten(), found[:, lag:].flatten())[0, 1]
        assert abs(pairs) < 0.03


def test_blocks_divide_the_vocabularies_of_real_models() -> None:
    assert [block_of(size) for size in (49152, 128256, 151936, 262144)] == [256, 256, 128, 256]


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": -0.1}, {"top_k": -1}]
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="not"):
        Filters(**wrong)

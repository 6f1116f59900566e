"""Choosing tokens, against a slow and plain reference: who may be drawn, how often, and with what log-probability."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ponder.engine.sampling import Sampling, likeliest, log_softmax_at, pick, picks
from ponder.errors import EngineError

PLAIN = Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=0, ignore_eos=False)
HILLY = [2.0, -1.0, 0.5, 1.7, -3.0, 0.1, 1.1, -0.4, 2.6, -7.0, 0.0, 1.4]
SLACK = 1e-4
"""Relative rounding that float32 is granted at the border of a filter."""


def array(logits: Sequence[float]) -> np.ndarray:
    return np.array(logits, dtype=np.float32)


def softmax(logits: dict[int, float]) -> dict[int, float]:
    peak = max(logits.values())
    raised = {token: math.exp(value - peak) for token, value in logits.items()}
    whole = math.fsum(raised.values())
    return {token: value / whole for token, value in raised.items()}


def reference(
    logits: Sequence[float], how: Sampling, banned: Collection[int] = (), slack: float = 0
) -> dict[int, float]:
    """The probability of each token that may be drawn. `slack` lets in those at the very border of a filter."""
    at_temperature = {
        token: value / how.temperature
        for token, value in enumerate(logits)
        if token not in banned and value != -math.inf
    }
    kept = softmax(at_temperature)
    if how.top_k:
        least = sorted(kept.values(), reverse=True)[: how.top_k][-1]
        kept = {token: p for token, p in kept.items() if p >= least * (1 - slack)}
    highest = max(kept.values())
    kept = {token: p for token, p in kept.items() if p >= how.min_p * highest * (1 - slack)}
    whole = math.fsum(kept.values())
    nucleus, reached, last = {}, 0.0, 0.0
    for token, p in sorted(kept.items(), key=lambda pair: -pair[1]):
        if how.top_p < 1 and reached >= how.top_p * whole * (1 + slack) and p < last * (1 - slack):
            break
        nucleus[token], last = p, p
        reached += p
    whole = math.fsum(nucleus.values())
    return {token: p / whole for token, p in nucleus.items()}


def log_probability(logits: Sequence[float], token: int) -> float:
    peak = max(logits)
    return logits[token] - peak - math.log(math.fsum(math.exp(value - peak) for value in logits))


def agrees(drawn: Iterable[int], expected: dict[int, float]) -> None:
    """Pearson's chi-square test at one in a million (threshold by Wilson and Hilferty's approximation)."""
    counts = Counter(drawn)
    assert set(counts) <= set(expected)
    total = sum(counts.values())
    common = {token for token, p in expected.items() if p * total >= 5}
    cells = [(counts[token], expected[token] * total) for token in common]
    rare = sum(p for token, p in expected.items() if token not in common) * total
    if rare >= 5:
        cells.append((sum(counts[token] for token in expected if token not in common), rare))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    freedom = max(1, len(cells) - 1)
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3


FILTERS = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 4},
    {"top_k": 4, "temperature": 2.0},
    {"top_k": len(HILLY)},
    {"top_k": 100},
    {"min_p": 0.2},
    {"min_p": 0.05, "temperature": 0.7},
    {"top_p": 0.5},
    {"top_p": 0.9, "temperature": 1.5},
    {"top_p": 1e-9},
    {"top_k": 6, "min_p": 0.1, "top_p": 0.8, "temperature": 1.3},
    {"top_k": 3, "top_p": 0.95},
    {"min_p": 0.3, "top_p": 0.7},
]


@pytest.mark.parametrize("banned", [(), (8, 3)], ids=["all", "banned"])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_draws_follow_the_reference(filters: dict[str, float], banned: tuple[int, ...]) -> None:
    how = replace(PLAIN, seed=11, **filters)
    random, ids = how.random(0), np.array(banned, dtype=np.int64)
    drawn = [pick(array(HILLY), how, random, ids if banned else None)[0] for _ in range(4000)]
    expected = reference(HILLY, how, banned)
    agrees(drawn, expected)
    assert set(drawn) >= {token for token, p in expected.items() if p > 0.01}


def test_first_draws_of_many_seeds_and_of_many_samples_are_independent() -> None:
    """A poor way of seeding shows between streams, not within one."""
    expected = reference(HILLY, PLAIN)
    agrees((pick(array(HILLY), PLAIN, replace(PLAIN, seed=s).random(0))[0] for s in range(4000)), expected)
    agrees((pick(array(HILLY), PLAIN, PLAIN.random(index))[0] for index in range(4000)), expected)


def test_a_vocabulary_of_real_size_is_drawn_from_evenly() -> None:
    logits = np.random.default_rng(1).normal(0, 2, 50_000).astype(np.float32)
    how = replace(PLAIN, top_p=0.3)
    random = how.random(0)
    drawn = [pick(logits, how, random)[0] for _ in range(800)]
    expected = reference(logits.tolist(), how, slack=SLACK)
    assert set(drawn) <= set(expected)
    # By rank in ten bins of about equal weight: single tokens are far too rare to be tested.
    bins, reached = {}, 0.0
    for token, p in sorted(expected.items(), key=lambda pair: -pair[1]):
        bins[token] = min(9, int(reached * 10))
        reached += p
    weights = Counter[int]()
    for token, p in expected.items():
        weights[bins[token]] += p
    agrees([bins[token] for token in drawn], dict(weights))


def test_greedy_takes_the_largest_and_the_first_of_equals() -> None:
    greedy = replace(PLAIN, temperature=0.0)
    assert pick(array([0.0, 3.0, 3.0, 1.0]), greedy, greedy.random(0))[0] == 1
    assert pick(array([0.0, 3.0, 3.0, 1.0]), greedy, greedy.random(0), np.array([1, 2]))[0] == 3
    token, logprob = pick(array(HILLY), greedy, greedy.random(0))
    assert token == 8
    assert logprob == pytest.approx(log_probability(HILLY, 8), abs=1e-5)


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-6, 1e-3])
def test_the_coldest_temperatures_take_the_largest_and_draw_between_equals(temperature: float) -> None:
    how = replace(PLAIN, temperature=temperature)
    random = how.random(0)
    assert {pick(array(HILLY), how, random)[0] for _ in range(50)} == {8}
    drawn = [pick(array([1.0, 5.0, 2.0, 5.0]), how, random)[0] for _ in range(1000)]
    agrees(drawn, {1: 0.5, 3: 0.5})


@pytest.mark.parametrize("temperature", [1e3, 1e30, 1e60, math.inf])
def test_the_hottest_temperatures_draw_evenly_and_never_what_is_impossible(temperature: float) -> None:
    how = replace(PLAIN, temperature=temperature)
    random, logits = how.random(0), array([*HILLY, -math.inf])
    drawn = [pick(logits, how, random, np.array([0], dtype=np.int64))[0] for _ in range(3000)]
    agrees(drawn, {token: 1 / (len(HILLY) - 1) for token in range(1, len(HILLY))})


def test_what_is_left_keeps_its_proportions_where_the_model_wants_only_what_is_banned() -> None:
    """Without a new peak the rest would underflow: exp(-200) is 0 in float32."""
    logits = [200.0, 1.0, 0.0, -1.0]
    for temperature in (0.3, 1.0, 2.0):
        how = replace(PLAIN, temperature=temperature, seed=5)
        random = how.random(0)
        picks = [pick(array(logits), how, random, np.array([0], dtype=np.int64)) for _ in range(3000)]
        agrees((token for token, _ in picks), reference(logits, how, banned=(0,)))
        assert all(p == pytest.approx(log_probability(logits, token), abs=1e-3) for token, p in picks)


def test_ties_at_the_border_of_top_k_leave_exactly_k() -> None:
    how = replace(PLAIN, top_k=2)
    random = how.random(0)
    drawn = {pick(array([1.0, 1.0, 1.0, 1.0]), how, random)[0] for _ in range(200)}
    assert len(drawn) == 2


@pytest.mark.parametrize("drawn", [0.0, 1 - 2**-53])
def test_the_very_ends_of_the_random_numbers_hit_nothing_impossible(drawn: float) -> None:
    at_the_end = SimpleNamespace(random=lambda: drawn)
    assert pick(array([-math.inf, 1.0, -math.inf]), PLAIN, at_the_end)[0] == 1


def test_the_same_seed_and_index_draw_the_same_and_any_other_draws_otherwise() -> None:
    def draws(seed: int, index: int) -> tuple[int, ...]:
        how = replace(PLAIN, seed=seed)
        random = how.random(index)
        return tuple(pick(array([0.0] * 100), how, random)[0] for _ in range(20))

    places = [(seed, index) for seed in (0, 1, 5, -1, 2**31, 2**63 - 1, 5 + (7 << 32)) for index in (0, 1, 7)]
    streams = {place: draws(*place) for place in places}
    assert streams == {place: draws(*place) for place in places}
    assert len(set(streams.values())) == len(places)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error_and_no_token(wrong: float) -> None:
    logits = array([0.0, wrong, 1.0])
    for how in (PLAIN, replace(PLAIN, temperature=0.0)):
        with pytest.raises(EngineError, match="no numbers"):
            pick(logits, how, how.random(0))
    with pytest.raises(EngineError, match="no numbers"):
        log_softmax_at(logits, 0)


SETTINGS = st.builds(
    Sampling,
    temperature=st.one_of(st.sampled_from([1e-6, 1.0, 1e3]), st.floats(0.01, 20)),
    top_p=st.one_of(st.just(1.0), st.floats(0.001, 1)),
    top_k=st.integers(0, 12),
    min_p=st.one_of(st.just(0.0), st.floats(0, 0.999)),
    seed=st.integers(-(2**70), 2**70),
    ignore_eos=st.booleans(),
)
FINITE = st.floats(-60, 60, width=32)
LOGITS = st.tuples(FINITE, st.lists(st.one_of(FINITE, st.just(-math.inf), st.sampled_from([0.0, 1.0])), max_size=12))


@given(LOGITS, SETTINGS, st.sets(st.integers(1, 12)), st.integers(0, 9))
@example((0.0, [0.0] * 8), replace(PLAIN, top_k=3, top_p=0.5), {1}, 0)
@example((-60.0, [60.0, -math.inf]), replace(PLAIN, temperature=1e-6), {1}, 0)
def test_whatever_is_picked_may_be_picked(
    drawn_logits: tuple[float, list[float]], how: Sampling, banned: set[int], index: int
) -> None:
    first, rest = drawn_logits  # token 0 is always possible, and never banned
    logits = [first, *rest]
    banned = {token for token in banned if token < len(logits)}
    given_logits, random = array(logits), how.random(index)
    allowed = reference(logits, how, banned, slack=SLACK)
    for _ in range(5):
        token, logprob = pick(given_logits, how, random, np.array(sorted(banned), dtype=np.int64) if banned else None)
        assert token in allowed
        assert logprob == pytest.approx(log_probability(logits, token), abs=1e-4)
        assert log_softmax_at(given_logits, token) == pytest.approx(logprob, abs=1e-6)
    np.testing.assert_array_equal(given_logits, array(logits))


# ---------------------------------------------------------------- under a constraint

ALLOWED = st.lists(st.booleans(), min_size=len(HILLY), max_size=len(HILLY)).filter(any)
ANY_SAMPLING = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.8]),
    top_k=st.sampled_from([0, 3]),
    min_p=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 99),
    ignore_eos=st.just(False),
)


@given(ALLOWED, ANY_SAMPLING)
def test_what_is_not_allowed_is_drawn_as_if_it_did_not_exist(allowed: list[bool], how: Sampling) -> None:
    logits, kept = array(HILLY), np.flatnonzero(allowed)
    ((token, logprob),) = picks(logits, how, [how.random(0)], allowed=np.array(allowed))
    alone, _ = pick(logits[kept], how, how.random(0))
    assert token == kept[alone]
    assert logprob == log_softmax_at(logits, token)  # the model's own, whatever was allowed


@given(ANY_SAMPLING)
def test_where_all_is_allowed_nothing_changes(how: Sampling) -> None:
    every = np.ones(len(HILLY), dtype=bool)
    assert picks(array(HILLY), how, [how.random(1)], allowed=every) == [pick(array(HILLY), how, how.random(1))]


@given(ALLOWED, ANY_SAMPLING, st.sets(st.integers(0, len(HILLY) - 1), max_size=4))
def test_what_is_banned_is_not_drawn_though_it_is_allowed(allowed: list[bool], how: Sampling, banned: set[int]) -> None:
    mask = np.array(allowed)
    if not set(np.flatnonzero(mask)) - banned:
        return
    before = mask.copy()
    ((token, _),) = picks(array(HILLY), how, [how.random(0)], np.array(sorted(banned), dtype=np.int64), mask)
    assert allowed[token]
    assert token not in banned
    assert (mask == before).all()


def test_what_the_model_finds_all_but_impossible_is_drawn_where_nothing_else_may_be() -> None:
    logits = array([900.0, 0.0, -900.0, -901.0])
    drawn = picks(
        logits, replace(PLAIN, temperature=0.5), [PLAIN.random(0)], allowed=np.array([0, 0, 1, 1], dtype=bool)
    )
    assert drawn == [(2, -1800.0)] or drawn == [(3, -1801.0)]


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40), st.integers(1, 50))
def test_the_likeliest_are_the_first_of_the_sorted_log_softmax(logits: list[float], count: int) -> None:
    found = likeliest(array(logits), count)
    every = sorted(
        ((log_softmax_at(array(logits), token), token) for token in range(len(logits))), key=lambda e: (-e[0], e[1])
    )
    assert [token for token, _ in found] == sorted(
        range(len(logits)), key=lambda token: (-array(logits)[token], token)
    )[:count]
    assert [chance for _, chance in found] == pytest.approx([chance for chance, _ in every[:count]], abs=1e-4)


def test_the_likeliest_of_no_numbers_are_an_error() -> None:
    with pytest.raises(EngineError):
        likeliest(array([math.nan, 1.0]), 1)

"""Votes: over canonical answers, in the order of their start, within one budget, and stopped early by a stated risk."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from drive import of, turn_of
from hypothesis import given, settings
from hypothesis import strategies as st
from voting import voter

import ponder
from ponder.chat.model import Model, model_of
from ponder.engine.scripted import TOKENIZER, Fault, ScriptedEngine, says
from ponder.errors import BudgetTooSmall, EngineError
from ponder.protocols import SamplingParams
from ponder.strategies.self_consistency import decided, overtaken, self_consistency, winner
from ponder.types import BestAnswer, Budget, Sample, SampleFinished, Trace, ask


def number(text: str) -> str | None:
    """The last word, where it is a number."""
    word = text.rstrip(".").split()[-1] if text.split() else ""
    return str(int(word)) if word.isdigit() else None


def vote(model: Model, n: int, budget: int | Budget | None = 4000, **options: object) -> Trace:
    return ponder.solve("?", model=model, strategy=self_consistency(n, canonical=number, **options), budget=budget)


def sample(index: int, answer: str, logprob: float = 0.0) -> Sample:
    return Sample(index, answer, ids=(1,), mask=(True,), logprobs=(logprob,), answer=answer)


# ---------------------------------------------------------------- the vote


@given(st.lists(st.sampled_from(["1", "2", "3", "x"]), max_size=9))
def test_the_most_frequent_answer_wins_and_ties_go_to_the_first(answers: list[str]) -> None:
    won = winner([sample(i, a) for i, a in enumerate(answers)], "plain", number)
    counts = Counter(a for a in answers if a != "x")
    if counts:
        best = max(counts.values())
        expected = next(a for a in answers if counts.get(a) == best)
        assert won is not None
        assert (won.answer, won.index) == (expected, answers.index(expected))
    else:
        assert won == (sample(0, answers[0]) if answers else None)


def test_the_weighted_vote_adds_probabilities() -> None:
    samples = [sample(0, "1", math.log(0.2)), sample(1, "1", math.log(0.3)), sample(2, "2", math.log(0.6))]
    assert winner(samples, "plain", number) is samples[0]
    assert winner(samples, "logprob", number) is samples[2]
    unsure = replace(samples[2], logprobs=(math.log(0.4),))
    assert winner([*samples[:2], unsure], "logprob", number) is samples[0]


@pytest.mark.parametrize(
    ("first", "second", "left", "risk"),
    [
        (1, 0, 0, 0.0),  # nothing comes any more
        (1, 0, 1, 1 / 3),  # the mean of Beta(1, 2)
        (2, 0, 1, 0.0),  # one vote does not turn two
        (2, 0, 2, 0.1),  # the mean square of Beta(1, 3)
        (1, 1, 1, 0.5),
        (3, 1, 2, 1 / 7),  # the mean square of Beta(2, 4)
    ],
)
def test_the_risk_by_hand(first: int, second: int, left: int, risk: float) -> None:
    assert overtaken(first, second, left) == pytest.approx(risk)


@pytest.mark.parametrize(("first", "second", "left"), [(4, 0, 28), (6, 2, 8), (9, 8, 15), (20, 3, 9)])
def test_the_risk_is_how_often_the_vote_turns(first: int, second: int, left: int) -> None:
    random = np.random.default_rng(0)
    shares = random.beta(second + 1, first + 1, 200_000)
    more = random.binomial(left, shares)
    turned = np.mean((second + more >= first + left - more) & (more > 0))
    assert overtaken(first, second, left) == pytest.approx(turned, abs=0.004)


def test_with_ever_more_samples_to_come_the_risk_is_the_tail_of_a_beta_distribution() -> None:
    # Integrated numerically: the density of Beta(6, 3) below one half.
    steps = 20_000
    area = sum(((i + 0.5) / steps) ** 5 * (1 - (i + 0.5) / steps) ** 2 for i in range(steps // 2)) / steps
    tail = area * math.gamma(9) / math.gamma(6) / math.gamma(3)
    assert overtaken(5, 2, 4000) == pytest.approx(tail, abs=1e-3)
    assert overtaken(5, 2, 4) < overtaken(5, 2, 40) < tail + 1e-3


def test_a_vote_is_decided_by_its_leading_answers_alone() -> None:
    four = [sample(i, "7") for i in range(4)]
    assert decided(four, 0.05, number, 28)
    assert not decided(four, 0.01, number, 28)
    assert decided([*four, sample(4, "x")], 0.05, number, 27)
    assert not decided([], 0.4, number, 8)


# ---------------------------------------------------------------- with an engine


def test_the_majority_is_the_answer_and_every_sample_is_paid_for() -> None:
    trace = vote(voter("5", "7", "7", "9"), 4)
    assert trace.answer == "The answer is 7."
    assert [s.index for s in trace.samples] == sorted(s.index for s in trace.samples)
    assert {s.answer for s in trace.samples} == {f"The answer is {a}." for a in "579"}
    generated = sum(sum(s.mask) for s in trace.samples)
    assert trace.cost.generated == generated + trace.cost.cancelled
    assert trace.provenance.strategy == "self_consistency(4)"


def test_there_is_a_best_answer_as_soon_as_one_has_ended() -> None:
    async def run() -> list[object]:
        strategy = self_consistency(3, canonical=number)
        return [event async for event in strategy(ask("?"), voter("5", "7", "7"), Budget(tokens=3000))]

    events = asyncio.run(run())
    first = next(i for i, e in enumerate(events) if isinstance(e, SampleFinished))
    assert isinstance(events[first + 1], BestAnswer)
    assert [e.answer for e in events if isinstance(e, BestAnswer)][-1] == "The answer is 7."


def test_it_stops_when_the_rest_could_hardly_change_the_vote() -> None:
    all_of_them = vote(voter(*["7"] * 16), 16)
    early = vote(voter(*["7"] * 16), 16, risk=0.05)
    assert (len(all_of_them.samples), len(early.samples)) == (16, 4)
    assert early.answer == "The answer is 7."
    torn = vote(voter(*["7", "8"] * 4), 8, risk=0.05)
    assert len(torn.samples) == 8


def test_what_stops_early_counts_what_was_cut_short() -> None:
    trace = vote(voter(*["7"] * 4, thinking="Hm. " * 40), 4, risk=0.4, at_once=4, budget=4000)
    whole = [s for s in trace.samples if s.answer == "The answer is 7."]
    assert whole
    assert trace.cost.generated == sum(sum(s.mask) for s in trace.samples) + trace.cost.cancelled
    assert trace.answer == "The answer is 7."


@settings(max_examples=60, deadline=None)
@given(
    answers=st.lists(st.sampled_from(["1", "22", "no number"]), min_size=1, max_size=6),
    budget=st.integers(40, 400),
    risk=st.sampled_from([None, 0.05, 0.4]),
    at_once=st.sampled_from([None, 1, 2]),
    thinking=st.sampled_from(["", "I think.", "I count once more. " * 20]),
)
def test_never_over_budget_and_always_an_answer(
    answers: list[str], budget: int, risk: float | None, at_once: int | None, thinking: str
) -> None:
    trace = vote(voter(*answers, thinking=thinking), len(answers), budget, risk=risk, at_once=at_once)
    assert trace.cost.tokens <= budget
    assert trace.answer
    assert sorted(s.index for s in trace.samples) == list(range(len(trace.samples)))
    assert trace.cost.tokens == sum(len(s.ids) for s in trace.samples) + trace.cost.cancelled


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_waves_share_one_bound_in_calls(calls: int) -> None:
    trace = vote(voter(*["7"] * 4), 4, Budget(tokens=4000, calls=calls), at_once=1)
    assert trace.answer == "The answer is 7."
    assert (trace.cost.calls, len(trace.samples)) == (calls, calls)


def test_an_engine_that_fails_after_an_answer_ends_the_vote_with_it() -> None:
    model = voter(*["7"] * 4, faults=[Fault("garbage", at=3, first_call=2, times=None)])
    strategy = self_consistency(4, at_once=1, canonical=number)
    assert ponder.solve("?", model=model, strategy=strategy, budget=4000).answer == "The answer is 7."
    with pytest.raises(EngineError):
        vote(voter("7", "7", faults=[Fault("garbage", at=3, times=None)]), 2)


def test_a_budget_too_small_for_many_samples_draws_fewer() -> None:
    assert len(vote(voter("7"), 8, 100).samples) == 3
    with pytest.raises(BudgetTooSmall):
        vote(voter("7"), 8, 2)


@pytest.mark.parametrize(
    ("n", "options", "words"),
    [(0, {}, "n must"), (3, {"risk": 0.7}, "risk"), (3, {"weight": "loud"}, "weight"), (3, {"at_once": 0}, "at_once")],
)
def test_settings_that_make_no_sense_are_refused(n: int, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        self_consistency(n, **options)


def test_a_server_that_deals_in_messages_gives_one_reply_after_the_other_within_the_budget() -> None:
    model = model_of(ScriptedEngine(says("I think.\n</think>\nThe answer is 7."), chat_only=True))
    trace = vote(model, 3, Budget(tokens=600, calls=2))
    assert trace.answer.endswith("The answer is 7.")
    assert len(trace.samples) == 2
    assert trace.cost.calls <= 2
    assert trace.cost.tokens <= 600


# ---------------------------------------------------------------- samples and waves


def drawn(seed: int, at_once: int, n: int = 6) -> list[str]:
    """What n samples say that are drawn `at_once` at a time; the words of a sample depend on its seed and number."""

    def reply(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Any:
        random = np.random.default_rng([params.seed or 0, index])
        turn = turn_of(prefix)
        if b"</think>" in bytes(token for token in turn if token < 256):
            return TOKENIZER.encode(f"The answer is {random.integers(1000)}.")
        return TOKENIZER.encode(f"{random.integers(10**6)}\n</think>\nThe answer is {random.integers(1000)}.")

    model = of(ScriptedEngine(reply))
    model = replace(model, params=replace(model.params, seed=seed))
    trace = vote(model, n, at_once=at_once)
    return [sample.text for sample in sorted(trace.samples, key=lambda each: each.index)]


@pytest.mark.parametrize("at_once", [1, 2, 4, 5])
def test_a_sample_is_the_same_whatever_wave_it_is_in(at_once: int) -> None:
    """So a vote that stops early has drawn the first samples of the vote that does not."""
    assert drawn(7, at_once) == drawn(7, 6)
    assert drawn(7, at_once) != drawn(8, at_once)
    assert len(set(drawn(7, at_once))) == 6

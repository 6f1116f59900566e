"""Chains side by side, each of which revises its answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from drive import Outcome, of, outcome_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.engine.scripted import EOS, TOKENIZER, Fault, ScriptedEngine
from ponder.errors import EngineError, PonderError
from ponder.protocols import SamplingParams
from ponder.strategies.mixture import mixture
from ponder.types import BestAnswer, Budget, Cost, Question, Sample, SampleFinished, Score, Scored, ask

QUESTION = ask("How many?")


def revising(*first: int, faults: tuple[Fault, ...] = ()) -> ScriptedEngine:
    """Chain c first answers first[c] (told apart by their seeds' order), and one more at each revision."""
    seeds: dict[Any, int] = {}

    def source(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Iterator[int]:
        text = TOKENIZER.decode(prefix).decode(errors="replace")
        given_ = re.findall(r"The answer is (\d+)\.<\|im_end\|>", text)
        chain = seeds.setdefault(params.seed, len(seeds))
        answer = int(given_[-1]) + 1 if given_ else first[chain % len(first)]
        yield from TOKENIZER.encode(f"I think.\n</think>\nThe answer is {answer}.")
        yield EOS

    return ScriptedEngine(source, faults=faults)


def solve(engine: ScriptedEngine, chains: int, rounds: int, verifier: Any = None, tokens: int = 4000) -> Outcome:
    from dataclasses import replace

    model = of(engine)
    model = replace(model, params=replace(model.params, seed=3))
    return outcome_of(mixture(chains, rounds, verifier)(QUESTION, model, Budget(tokens=tokens)))


def best(outcome: Outcome) -> str:
    return [event.answer for event in outcome.events if isinstance(event, BestAnswer)][-1]


def test_each_chain_revises_its_own_answer_and_their_ends_vote() -> None:
    engine = revising(10, 20, 20)
    outcome = solve(engine, 3, 2)
    assert outcome.error is None
    answers = {sample.index: sample.answer for sample, _ in outcome.finished}
    assert answers == {
        0: "The answer is 10.",
        1: "The answer is 11.",
        2: "The answer is 20.",
        3: "The answer is 21.",
        4: "The answer is 20.",
        5: "The answer is 21.",
    }
    assert best(outcome) == "The answer is 21."
    assert outcome.total.generated == engine.generated
    assert outcome.total.tokens <= 4000


def test_a_verifier_chooses_among_all_rounds_of_all_chains() -> None:
    async def wants_eleven(question: Question, sample: Sample) -> Score:
        assert question == QUESTION, "an answer is judged for what was asked, not for its revision"
        return Score(float("11" in sample.answer), "eleven")

    outcome = solve(revising(30, 10, 30), 3, 2, wants_eleven)
    assert best(outcome) == "The answer is 11."
    assert sum(isinstance(event, Scored) for event in outcome.events) >= 4


def test_a_chain_that_fails_ends_no_other_and_where_all_fail_it_is_told() -> None:
    outcome = solve(revising(1, 1, 1, faults=(Fault("garbage", times=2),)), 3, 1)
    assert outcome.error is None
    assert best(outcome) == "The answer is 1."
    outcome = solve(revising(1, faults=(Fault("garbage", times=None),)), 3, 1)
    assert isinstance(outcome.error, EngineError)


@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(4, 500),
    st.lists(
        st.builds(
            Fault,
            st.sampled_from(["disconnect", "garbage", "partial", "rate_limit"]),
            at=st.integers(0, 30),
            times=st.one_of(st.none(), st.integers(1, 3)),
        ),
        max_size=2,
    ),
)
@settings(max_examples=80, deadline=None)
def test_never_over_budget_and_always_an_answer_or_a_typed_failure(
    chains: int, rounds: int, tokens: int, faults: list[Fault]
) -> None:
    engine = revising(1, 2, 2, faults=tuple(faults))
    outcome = solve(engine, chains, rounds, tokens=tokens)
    total = sum((e.cost for e in outcome.events if isinstance(e, SampleFinished)), Cost())
    assert total.tokens <= tokens
    assert total.generated == engine.generated
    assert engine.open_streams == 0
    assert isinstance(outcome.error, PonderError) or best(outcome)


@pytest.mark.parametrize(("chains", "rounds"), [(0, 1), (1, 0)])
def test_settings_that_make_no_sense_are_refused(chains: int, rounds: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        mixture(chains, rounds)

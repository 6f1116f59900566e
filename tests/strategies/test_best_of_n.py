"""Best of N: the highest score wins, ties go to the first, and a score that is enough ends the search."""

from __future__ import annotations

import math

import pytest
from voting import voter

import ponder
from ponder.strategies.best_of_n import aggregated, best_of_n
from ponder.types import Question, Sample, Score, Scored, Trace

STEPS = Score(0.9, "steps", steps=(0.5, 0.8, 0.25))


async def by_length(question: Question, sample: Sample) -> Score:
    """The longer the number, the better."""
    return Score(sum(map(str.isdigit, sample.answer)), "length")


def best(*answers: str, **options: object) -> Trace:
    strategy = best_of_n(len(answers), by_length, **options)
    return ponder.solve("?", model=voter(*answers), strategy=strategy, budget=4000)


@pytest.mark.parametrize(
    ("aggregate", "value"),
    [("value", 0.9), ("min", 0.25), ("product", 0.1), ("mean", 1.55 / 3), ("last", 0.25)],
)
def test_scores_of_steps_become_one_number(aggregate: str, value: float) -> None:
    assert math.isclose(aggregated(STEPS, aggregate), value)
    assert aggregated(Score(0.7, "whole"), aggregate) == 0.7


def test_the_highest_score_wins_and_all_are_in_the_trace() -> None:
    trace = best("1", "333", "22")
    assert trace.answer == "The answer is 333."
    assert sorted(e.sample for e in trace.events if isinstance(e, Scored)) == [0, 1, 2]
    assert {e.sample: e.score.value for e in trace.events if isinstance(e, Scored)} == {0: 1, 1: 3, 2: 2}
    assert trace.provenance.strategy == "best_of_n(3)"


def test_ties_go_to_the_sample_that_was_started_first() -> None:
    assert best("12", "34", "5").answer == "The answer is 12."


def test_a_score_that_is_enough_ends_it() -> None:
    trace = best("1", "22", "333", "4444", enough=2, at_once=1)
    assert (trace.answer, len(trace.samples)) == ("The answer is 22.", 2)


@pytest.mark.parametrize(
    ("n", "options", "words"),
    [(0, {}, "n must"), (2, {"aggregate": "max"}, "aggregate"), (2, {"at_once": 0}, "at_once")],
)
def test_settings_that_make_no_sense_are_refused(n: int, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        best_of_n(n, by_length, **options)

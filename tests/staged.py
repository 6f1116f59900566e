"""What the tests of strategies that run in stages share: random faults, and what holds of every request."""

from __future__ import annotations

from collections.abc import Sequence

from drive import Outcome
from hypothesis import strategies as st

from ponder.engine.scripted import Fault, ScriptedEngine
from ponder.errors import EngineError
from ponder.types import BestAnswer, Budget, Cost, SampleFinished, Scored

SAID = st.lists(st.sampled_from(["<think>", "</think>", "\n", "7 ", "8 ", "Hm. ", "é", "漢"]), max_size=40).map("".join)
"""What a model says: thinking that closes or does not, answers, and characters of several tokens."""

CALLS = st.sampled_from([None, None, 1, 2, 4])


def faults() -> st.SearchStrategy[list[Fault]]:
    """None or a few faults at random tokens, of the whole call or of one sample."""
    one = st.builds(
        Fault,
        kind=st.sampled_from(["delay", "disconnect", "garbage", "partial", "rate_limit"]),
        at=st.integers(0, 60),
        seconds=st.just(0.0005),
        sample=st.sampled_from([None, None, 0, 1, 2]),
        times=st.sampled_from([1, 2, 3, None]),
        first_call=st.integers(1, 4),
    )
    return st.one_of(st.just([]), st.lists(one, min_size=1, max_size=3))


def check_staged(outcome: Outcome, budget: Budget, engines: Sequence[ScriptedEngine]) -> None:
    """Never over budget; an answer of a sample that there is, or a typed failure; all that was generated is told."""
    total = sum((e.cost for e in outcome.events if isinstance(e, SampleFinished | Scored)), Cost())
    assert budget.exceeded(total) is None
    assert all(engine.open_streams == 0 for engine in engines)
    samples = {sample.index: sample for sample, _ in outcome.finished}
    assert total.generated == sum(engine.generated for engine in engines)
    assert sorted(samples) == list(range(len(outcome.finished))), "the samples are not numbered through"
    if outcome.error is not None:
        assert isinstance(outcome.error, EngineError), str(outcome.error)
        return
    best = [event for event in outcome.events if isinstance(event, BestAnswer)][-1]
    assert best.answer
    assert samples[best.sample].answer == best.answer

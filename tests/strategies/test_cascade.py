"""Cascades: the large model where the small one is not sure, one budget, both models' costs, and an answer."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest
from drive import answering, outcome_of
from hypothesis import given, settings
from hypothesis import strategies as st
from staged import CALLS, SAID, check_staged, faults
from voting import voter

import ponder
from ponder.chat.formats import PONDER
from ponder.chat.model import Model, Price, model_of
from ponder.engine.scripted import Fault, ScriptedEngine
from ponder.errors import EngineError, EngineUnavailable, GarbledReply, InputError, Unsupported, WeightsError
from ponder.protocols import Strategy
from ponder.strategies.cascade import cascade
from ponder.strategies.chain_of_thought import chain_of_thought
from ponder.strategies.direct import direct
from ponder.strategies.self_consistency import self_consistency
from ponder.types import BestAnswer, Budget, Cost, Question, Sample, SampleFinished, Score, Scored, Trace, ask

QUESTION = ask("How much is 3 + 4?")
SURE = math.log(0.9)
UNSURE = math.log(0.3)


def says(answer: str, logprob: float = SURE, parameters: int | None = None, **how: Any) -> Model:
    """A model that gives an answer at once, each token with this log-probability."""
    engine = answering(
        lambda turn: f"I see.\n</think>\n{answer}" if turn.startswith("<think>") else answer,
        logprob=lambda prefix, token: logprob,
        **how,
    )
    engine._info = replace(engine.info, parameters=parameters)
    return replace(model_of(engine), format=PONDER)


def ask_both(small: Model, large: Any, budget: int | Budget = 600, **options: Any) -> Trace:
    settings: dict[str, Any] = {"threshold": 0.5} | options
    strategy: Strategy = cascade(settings.pop("first", direct()), direct(), large, **settings)
    return ponder.solve(QUESTION, model=small, strategy=strategy, budget=budget)


# ---------------------------------------------------------------- when the large one is asked


def test_what_the_small_model_is_sure_of_the_large_one_is_not_asked() -> None:
    large = says("7")
    trace = ask_both(says("8", SURE), large)
    assert (trace.answer, large.engine.calls) == ("8", 0)
    (told,) = trace.scores
    assert (told.value, told.verifier) == (pytest.approx(0.9), "cascade")


def test_what_it_is_not_sure_of_is_asked_again_and_both_are_charged() -> None:
    small, large = says("8 perhaps", UNSURE, parameters=10), says("7", parameters=1000)
    trace = ask_both(small, large)
    assert trace.answer == "7"
    assert [sample.index for sample in trace.samples] == [0, 1]
    assert (small.engine.generated, large.engine.generated) == (10, 2)
    assert trace.cost.generated == 12
    first, second = [event.cost for event in trace.events if isinstance(event, SampleFinished)]
    assert first.flops == 2 * 10 * (first.prompt_computed + first.tokens)
    assert second.flops == 2 * 1000 * (second.prompt_computed + second.tokens)
    assert trace.cost.flops == first.flops + second.flops


def test_each_token_is_priced_by_the_model_that_made_it() -> None:
    small = replace(says("8", UNSURE), price=Price(0, 0, 1e6))
    large = replace(says("7"), price=Price(0, 0, 100e6))
    assert ask_both(small, large).cost.dollars == pytest.approx(2 + 200)


@pytest.mark.parametrize(("threshold", "answer"), [(0.29, "8"), (0.31, "7")])
def test_the_threshold_parts_them(threshold: float, answer: str) -> None:
    assert ask_both(says("8", UNSURE), says("7"), threshold=threshold).answer == answer


@pytest.mark.parametrize(("threshold", "answer"), [(0.75, "The answer is 8."), (0.76, "7")])
def test_agreement_is_a_confidence(threshold: float, answer: str) -> None:
    small = voter("8", "8", "5", "8.0")
    options = {"first": self_consistency(4), "confidence": "agreement", "threshold": threshold}
    trace = ask_both(small, says("7"), 4000, **options)
    assert trace.answer == answer
    assert trace.scores[0].value == 0.75


def by_length(least: int, cost: Cost = Cost(verifier=3), fails: bool = False) -> Any:
    async def verify(question: Question, sample: Sample) -> Score:
        if fails:
            raise EngineUnavailable("gone", "wait")
        return Score(float(len(sample.answer) >= least), "by_length", cost=cost)

    verify.tokens = cost.tokens  # type: ignore[attr-defined]
    return verify


def test_a_verifier_is_a_confidence_and_is_charged() -> None:
    assert ask_both(says("8"), says("7"), confidence=by_length(1)).answer == "8"
    trace = ask_both(says("8"), says("7"), confidence=by_length(2))
    assert trace.answer == "7"
    assert (trace.cost.verifier, trace.cost.tokens) == (3, 7)


def test_a_verifier_that_fails_is_not_sure() -> None:
    trace = ask_both(says("8"), says("7"), confidence=by_length(1, fails=True))
    assert trace.answer == "7"
    assert "the verifier failed: gone" in trace.scores[0].why


# ---------------------------------------------------------------- one budget


def test_the_large_model_has_what_the_small_one_left() -> None:
    small, large = says("8 " * 500, UNSURE), says("7 " * 500)
    trace = ask_both(small, large, 100, share=0.3)
    first, second = [event.cost.tokens for event in trace.events if isinstance(event, SampleFinished)]
    assert (first, second) == (30, 70)
    # A verifier's tokens are kept back from the small model.
    trace = ask_both(small, large, 100, share=0.3, confidence=by_length(10**6))
    assert [e.cost.tokens for e in trace.events if isinstance(e, SampleFinished)] == [27, 70]
    assert trace.cost.tokens == 100


def test_a_budget_too_small_for_two_is_the_large_models() -> None:
    assert ask_both(says("8"), says("7"), 6).answer == "7"


def test_without_a_call_left_the_small_answer_stands() -> None:
    assert ask_both(says("8", UNSURE), says("7"), Budget(tokens=100, calls=1)).answer == "8"


def test_a_bound_in_dollars_needs_both_prices() -> None:
    priced = replace(says("8", UNSURE), price=Price(1, 1, 1))
    with pytest.raises(InputError, match="needs the model's price"):
        ask_both(priced, says("7"), Budget(dollars=1.0))


# ---------------------------------------------------------------- engines that fail


def test_the_small_answer_stands_where_the_large_model_fails() -> None:
    large = says("7, and that is it", faults=[Fault("garbage", at=3, times=None)])
    trace = ask_both(says("8", UNSURE), large)
    assert (trace.answer, trace.state) == ("8", "done")
    assert large.engine.generated == 3
    assert trace.cost.generated == 2 + 3


def test_the_small_answer_stands_where_the_large_model_is_cut_short() -> None:
    slow = says("7 it is, I think", faults=[Fault("delay", seconds=0.1, every=True, times=None)])
    trace = ask_both(says("8", UNSURE), slow, Budget(tokens=600, seconds=0.4))
    assert trace.answer == "8"
    assert trace.samples[1].finish == "cancelled"


def test_the_large_model_is_asked_where_the_small_one_fails() -> None:
    trace = ask_both(says("8", faults=[Fault("garbage", at=1, times=None)]), says("7"))
    assert trace.answer == "7"


def test_where_both_fail_the_error_is_the_large_models() -> None:
    fails = [Fault("garbage", at=1, times=None)]
    with pytest.raises(GarbledReply):
        ask_both(says("8", faults=fails), says("7", faults=fails))


def test_the_large_model_is_opened_when_it_is_needed() -> None:
    opened: list[int] = []

    async def opener() -> Model:
        opened.append(1)
        return says("7")

    assert ask_both(says("8", SURE), opener).answer == "8"
    assert not opened
    assert ask_both(says("8", UNSURE), opener).answer == "7"
    assert opened == [1]


def test_a_large_model_that_is_away_is_done_without_and_one_that_is_unknown_is_told() -> None:
    async def away() -> Model:
        raise EngineUnavailable("nothing answers there", "start it")

    async def unknown() -> Model:
        raise WeightsError("there is no such model", "look at ponder models")

    assert ask_both(says("8", UNSURE), away).answer == "8"
    with pytest.raises(WeightsError):
        ask_both(says("8", UNSURE), unknown)
    with pytest.raises(EngineUnavailable):
        ask_both(says("8", faults=[Fault("garbage", at=0, times=None)]), away)


def test_a_user_who_stops_gets_the_small_answer() -> None:
    async def run() -> list[Any]:
        stop, events = asyncio.Event(), []
        strategy = cascade(direct(), direct(), says("7, but it takes its time"), threshold=0.5)
        async for event in strategy(QUESTION, replace(says("8", UNSURE), stop=stop), Budget(tokens=600)):
            events.append(event)
            if isinstance(event, Scored):
                stop.set()
        return [e.answer for e in events if isinstance(e, BestAnswer)]

    assert asyncio.run(run())[-1] == "8"


@settings(max_examples=120, deadline=None)
@given(
    small=SAID,
    large=SAID,
    tokens=st.integers(8, 300),
    calls=CALLS,
    logprob=st.sampled_from([SURE, UNSURE]),
    votes=st.booleans(),
    broken=st.tuples(faults(), faults()),
)
def test_never_over_budget_and_an_answer_or_a_typed_failure(
    small: str, large: str, tokens: int, calls: int | None, logprob: float, votes: bool,
    broken: tuple[list[Fault], list[Fault]],
) -> None:  # fmt: skip
    engines = [
        answering(lambda turn, said=said: said, logprob=lambda prefix, token: logprob, faults=wrong)
        for said, wrong in zip((small, large), broken, strict=True)
    ]
    asked, other = (replace(model_of(e), format=replace(PONDER, answer_opener="A:")) for e in engines)
    first = self_consistency(3) if votes else chain_of_thought()
    confidence: Any = "agreement" if votes else "logprob"
    strategy = cascade(first, chain_of_thought(), other, threshold=0.5, confidence=confidence)
    budget = Budget(tokens=tokens, calls=calls)
    check_staged(outcome_of(strategy(QUESTION, asked, budget)), budget, engines)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"confidence": "mood"}, "confidence must be logprob, agreement or a verifier"),
        ({"threshold": math.nan}, "threshold"),
        ({"share": 1.0}, "share"),
        ({"confidence": "agreement"}, "several samples"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cascade(direct(), direct(), says("7"), **({"threshold": 0.5} | options))


def test_a_probability_that_the_engine_does_not_tell_is_refused() -> None:
    with pytest.raises(Unsupported, match="no log-probabilities"):
        ask_both(model_of(ScriptedEngine(lambda *asked: b"8")), says("7"))


def test_it_is_called_what_it_does() -> None:
    strategy = cascade(direct(), self_consistency(4), says("7"), threshold=0.5)
    assert strategy.__qualname__ == "cascade(direct(), self_consistency(4), threshold=0.5, logprob)"  # type: ignore[attr-defined]
    assert issubclass(GarbledReply, EngineError)

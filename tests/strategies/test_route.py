"""Routing: the cheapest arm that is good enough, within one budget, and a table that is checked."""

from __future__ import annotations

import asyncio
import math
import tomllib
from dataclasses import replace
from typing import Any

import pytest
import tomli_w
from drive import answering, outcome_of
from hypothesis import given, settings
from hypothesis import strategies as st
from staged import CALLS, SAID, check_staged, faults
from voting import voter

import ponder
from ponder.chat.formats import PONDER
from ponder.chat.model import Model, model_of
from ponder.engine.scripted import Fault, ScriptedEngine, says
from ponder.errors import InputError, Unsupported
from ponder.strategies.features import BUCKETS, NAMES, features, mean_logprob
from ponder.strategies.naming import strategy_named
from ponder.strategies.policy import Policy, dump, load
from ponder.strategies.pool import DRAWING_TEMPERATURE
from ponder.strategies.route import (
    Arm,
    Table,
    cheapest_good_enough,
    choose,
    from_table,
    read,
    route,
    write,
)
from ponder.types import BestAnswer, Budget, Question, Sample, SampleFinished, Scored, Trace, ask, user

DIRECT = Arm("direct", 64, 10.0, bias=1.0, weights={"numbers": -2.0})
THINKING = Arm("chain_of_thought", 400, 100.0, bias=0.5)
VOTE = Arm("vote(3)", 900, 300.0, bias=0.6)
NUMBERS = {"numbers": (0.0, math.log(4))}
TABLE = Table((DIRECT, THINKING, VOTE), tolerance=0.05, seen=NUMBERS)

PLAIN = ask("What is the capital of France?")
SUM = ask("How much are 3 apples, 4 pears and 5 plums?")


def odds(value: float) -> float:
    return 1 / (1 + math.exp(-value))


# ---------------------------------------------------------------- features


@given(st.text(max_size=300))
def test_every_text_has_all_features_and_all_are_finite(text: str) -> None:
    found = features(Question((user(text),)))
    assert tuple(found) == NAMES
    assert all(map(math.isfinite, found.values()))


def test_features_are_what_they_are_called() -> None:
    found = features(ask("Tom has 1,200 apples, and 3 and a half more than twice as many pears. How many is 50%?"))
    assert found["numbers"] == pytest.approx(math.log(4))
    assert found["largest_number"] == pytest.approx(math.log10(1201))
    assert found["number_words"] == pytest.approx(math.log(3)), "half, twice"
    assert found["comparisons"] == pytest.approx(math.log(4)), "more, than, as"
    assert found["asks_how_many"] == 1
    assert sum(value for name, value in found.items() if name.startswith("asks_")) == 1
    assert features(ask("A) yes\nB) no"))["options"] == pytest.approx(math.log(3))
    assert features(ask("```py\nx\n```"))["code"] == 1
    assert features(ask("What is 漢字?"))["foreign"] == pytest.approx(2 / 11)


def test_buckets_know_wordings_and_no_numbers() -> None:
    def buckets(text: str) -> list[float]:
        return [features(ask(text))[f"bucket_{j}"] for j in range(BUCKETS)]

    assert buckets("Add 3 and 4") == buckets("add 17 AND 99")
    assert buckets("Add 3 and 4") != buckets("Take 3 from 4")
    # "add" alone is one gram, of CRC-32 0xfd1a73e7: bucket 7, and bit 16 is 0. Tables rest on that.
    assert buckets("Add") == [-1.0 if j == 7 else 0.0 for j in range(BUCKETS)]
    assert buckets("") == [0.0] * BUCKETS


def test_the_confidence_is_of_the_samples_own_tokens() -> None:
    sample = Sample(0, "ab", ids=(1, 2, 3), mask=(True, False, True), logprobs=(-1.0, -9.0, -3.0))
    assert mean_logprob(sample) == -2.0
    assert mean_logprob(Sample(0, "")) is None
    assert mean_logprob(replace(sample, logprobs=(None, None, None))) is None


# ---------------------------------------------------------------- the choice


def test_probabilities_are_logistic_in_the_features() -> None:
    found = TABLE.expected({"numbers": math.log(2)})
    assert found == pytest.approx([odds(1 - 2 * math.log(2)), odds(0.5), odds(0.6)])


def test_features_are_held_within_what_was_seen() -> None:
    assert TABLE.expected({"numbers": 50.0}) == TABLE.expected({"numbers": math.log(4)})
    assert TABLE.expected({"numbers": -1.0}) == TABLE.expected({"numbers": 0.0})
    assert TABLE.expected({}) == TABLE.expected({"numbers": math.log(4) / 2}), "unknown: the middle"


@pytest.mark.parametrize(
    ("expected", "tolerance", "chosen"),
    [
        ((0.5, 0.6, 0.7), 0.0, 2),
        ((0.5, 0.6, 0.7), 0.1, 1),
        ((0.5, 0.6, 0.7), 0.25, 0),
        ((0.7, 0.6, 0.7), 0.0, 0),
        ((0.1, 0.1, 0.1), 0.0, 0),
    ],
)
def test_the_cheapest_arm_that_is_good_enough_is_chosen(
    expected: tuple[float, ...], tolerance: float, chosen: int
) -> None:
    assert cheapest_good_enough(expected, (10, 100, 300), tolerance + 1e-12) == chosen
    assert cheapest_good_enough(expected[::-1], (300, 100, 10), tolerance + 1e-12) == 2 - chosen or expected[0] == 0.1


def test_questions_go_where_they_are_expected_to_be_answered() -> None:
    assert choose(TABLE, features(PLAIN)).arm == 0, "no numbers: 0.73 directly, 0.65 by voting"
    assert choose(TABLE, features(SUM)).arm == 1, "numbers: 0.15 directly; 0.62 by thinking is close to 0.65"
    assert choose(replace(TABLE, tolerance=0.01), features(SUM)).arm == 2
    assert choose(replace(TABLE, tolerance=1.0), features(SUM)).arm == 0


def test_an_arm_that_does_not_fit_is_not_chosen() -> None:
    exact = replace(TABLE, tolerance=0.0)
    assert choose(exact, features(SUM), room=899).arm == 1
    assert choose(exact, features(SUM), room=399).arm == 0
    assert choose(exact, features(SUM), room=5).arm == 0, "the smallest, where none fits"
    assert choose(replace(exact, first=True), features(SUM), room=5).arm == 0


# ---------------------------------------------------------------- with an engine


def solve(table: Table, model: Model, question: Question = SUM, budget: int | Budget | None = 2000) -> Trace:
    return ponder.solve(question, model=model, strategy=route(table), budget=budget)


def only(arm: Arm) -> Table:
    """A table that can but choose this one."""
    return Table((arm,))


@pytest.mark.parametrize("arm", [DIRECT, THINKING, VOTE])
def test_a_routed_question_is_answered_as_the_arm_alone_would(arm: Arm) -> None:
    def model() -> Model:
        engine = ScriptedEngine(says("I think.\nThe answer is 7.", "I see.\nThe answer is 8."))
        return replace(model_of(engine), params=replace(model_of(engine).params, seed=5))

    routed = solve(only(replace(arm, weights={})), model())
    alone = ponder.solve(SUM, model=model(), strategy=strategy_named(arm.strategy), budget=arm.budget)
    assert [s.text for s in routed.samples] == [s.text for s in alone.samples]
    assert (routed.answer, routed.cost.tokens, routed.cost.calls) == (alone.answer, alone.cost.tokens, alone.cost.calls)


def test_the_choice_is_told_before_it_begins() -> None:
    trace = solve(TABLE, voter("7"))
    told = trace.events[0]
    assert isinstance(told, Scored)
    assert (told.score.verifier, told.sample) == ("route", 0)
    assert told.score.value == pytest.approx(odds(0.5))
    assert told.score.why.startswith("chain_of_thought@400; expected right: direct@64 0.15, ")
    assert trace.provenance.strategy == "route(direct@64, chain_of_thought@400, vote(3)@900, tolerance=0.05)"


def test_an_arm_has_its_own_budget_and_the_requests() -> None:
    rambling = replace(THINKING, budget=90, weights={})
    assert solve(only(rambling), voter("7", thinking="Hm. " * 500)).cost.tokens <= 90
    assert solve(only(rambling), voter("7", thinking="Hm. " * 500), budget=50).cost.tokens <= 50
    assert solve(only(rambling), voter("7", thinking="Hm. " * 500), budget=None).cost.tokens <= 90


def test_an_arm_of_several_samples_draws_from_a_greedy_model_and_a_single_one_does_not() -> None:
    def temperatures(arm: Arm) -> set[float]:
        seen = set()

        def reply(prefix: Any, index: int, params: Any) -> Any:
            seen.add(params.temperature)
            return says("I see.\nThe answer is 7.")(prefix, index, params)

        model = model_of(ScriptedEngine(reply))
        solve(only(replace(arm, weights={})), replace(model, params=replace(model.params, temperature=0.0)))
        return seen

    assert temperatures(VOTE) == {DRAWING_TEMPERATURE}
    assert temperatures(THINKING) == {0.0}


# ---------------------------------------------------------------- an answer drawn first

CONFIDENT = Table(
    (Arm("direct", 60, 10, bias=2, weights={"confidence": 1}), Arm("chain_of_thought", 400, 100, bias=1.5)),
    first=True,
    seen={"confidence": (-4.0, 0.0)},
)


def sure(logprob: float, **how: Any) -> Model:
    """A model that says 8 at once and 7 after thinking, each token with this log-probability."""

    def reply(turn: str) -> str:
        return "Let me see.\n</think>\nIt is 7." if turn.startswith("<think>") else "It is 8."

    engine = answering(reply, logprob=lambda prefix, token: logprob, **how)
    return replace(model_of(engine), format=PONDER)


def test_a_confident_first_answer_is_the_answer_and_is_charged_alone() -> None:
    trace = solve(CONFIDENT, sure(-0.1))
    assert (trace.answer, len(trace.samples)) == ("It is 8.", 1)
    (told,) = [event for event in trace.events if isinstance(event, Scored)]
    assert told.score.value == pytest.approx(odds(1.9))


def test_an_unsure_first_answer_is_thought_over_and_both_are_charged() -> None:
    model = sure(-3.0)
    trace = solve(CONFIDENT, model)
    assert [s.answer for s in trace.samples] == ["It is 8.", "It is 7."]
    assert [s.index for s in trace.samples] == [0, 1]
    assert trace.answer == "It is 7."
    assert trace.cost.generated == model.engine.generated
    assert [e.answer for e in trace.events if isinstance(e, BestAnswer)] == ["It is 8.", "It is 7."]
    (told,) = [event for event in trace.events if isinstance(event, Scored)]
    assert told.sample == 1


def test_a_first_answer_stands_where_thinking_fails() -> None:
    trace = solve(CONFIDENT, sure(-3.0, faults=[Fault("garbage", at=5, first_call=2, times=None)]))
    assert trace.answer == "It is 8."
    assert trace.state == "done"
    assert trace.samples[1].finish == "error"
    assert trace.cost.generated == sum(sum(s.mask) for s in trace.samples) + trace.cost.cancelled


def test_a_first_answer_stands_where_nothing_is_left() -> None:
    assert solve(CONFIDENT, sure(-3.0), budget=Budget(tokens=2000, calls=1)).answer == "It is 8."
    assert solve(CONFIDENT, sure(-3.0), budget=100).answer == "It is 8.", (
        "thinking would have less than it was measured with"
    )


def test_a_confidence_that_the_engine_does_not_tell_is_refused() -> None:
    with pytest.raises(Unsupported, match="without --first"):
        solve(CONFIDENT, voter("7"))


# ---------------------------------------------------------------- whatever happens


@settings(max_examples=120, deadline=None)
@given(
    said=SAID,
    tokens=st.integers(8, 500),
    calls=CALLS,
    first=st.booleans(),
    tolerance=st.sampled_from([0.0, 0.1, 1.0]),
    logprob=st.sampled_from([-0.1, -3.0]),
    broken=faults(),
)
def test_never_over_budget_and_an_answer_or_a_typed_failure(
    said: str, tokens: int, calls: int | None, first: bool, tolerance: float, logprob: float, broken: list[Fault]
) -> None:
    seen = {"numbers": (0.0, 2.0)} | ({"confidence": (-4.0, 0.0)} if first else {})
    arms = (
        replace(DIRECT, weights=dict.fromkeys(seen, 0.5)),
        replace(THINKING, budget=120, bias=0.3),
        replace(VOTE, budget=300, bias=0.4),
    )
    engine = answering(lambda turn: said, logprob=lambda prefix, token: logprob, faults=broken)
    model = replace(model_of(engine), format=replace(PONDER, answer_opener="A:"))
    budget = Budget(tokens=tokens, calls=calls)
    check_staged(outcome_of(route(Table(arms, tolerance, first, seen))(SUM, model, budget)), budget, [engine])


def test_a_user_who_stops_gets_what_there_is() -> None:
    async def run() -> list[Any]:
        stop, events = asyncio.Event(), []
        async for event in route(CONFIDENT)(SUM, replace(sure(-3.0), stop=stop), Budget(tokens=2000)):
            events.append(event)
            if isinstance(event, SampleFinished):
                stop.set()
        return events

    events = asyncio.run(run())
    assert [e.sample.answer for e in events if isinstance(e, SampleFinished)] == ["It is 8."]


# ---------------------------------------------------------------- the table of a policy

PLAIN_TABLE: dict[str, Any] = {
    "tolerance": 0.05,
    "arms": [
        {"strategy": "direct", "budget": 64, "tokens": 10.0, "bias": 1.0, "weights": {"numbers": -2.0}},
        {"strategy": "vote(3)", "budget": 900, "tokens": 300.0, "bias": 0.6},
    ],
    "seen": {"numbers": [0.0, 1.4]},
}


def test_a_table_goes_through_a_policy_file_and_comes_back(tmp_path: Any) -> None:
    table = replace(CONFIDENT, measured={"kept": 0.97, "questions": 200})
    assert read(tomllib.loads(tomli_w.dumps(write(table)))) == table
    dump(Policy({}, default="auto", route=write(table)), tmp_path / "policy.toml")
    strategy, budget = load(tmp_path / "policy.toml").chosen()
    assert strategy.__qualname__.startswith("route(direct@60, chain_of_thought@400, ")  # type: ignore[attr-defined]
    assert budget == Budget(tokens=460), "the first answer, and the dearest arm"
    assert from_table(PLAIN_TABLE)[1] == Budget(tokens=900)


def broken(**changes: Any) -> dict[str, Any]:
    return PLAIN_TABLE | changes


def broken_arm(**changes: Any) -> dict[str, Any]:
    return broken(arms=[PLAIN_TABLE["arms"][0] | changes])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "the route's arms: Field required"),
        (broken(arms=[]), "the route has no arms"),
        (broken(tolerance=2.0), "the tolerance 2.0"),
        (broken(tolerance="much"), "the route's tolerance"),
        (broken(speed=1), "the route's speed: "),
        (broken(seen={"moon": [0, 1]}), "unknown: moon"),
        (broken(seen={"confidence": [0, 1], "numbers": [0, 1]}), "unknown: confidence"),
        (broken(seen={"numbers": [1, 0]}), "ends below its start"),
        (broken(seen={}), "without a range"),
        (broken_arm(budget=0), "without a budget"),
        (broken_arm(tokens=0), "without a cost"),
        (broken_arm(bias=math.nan), "not finite"),
        (broken_arm(weights={"numbers": math.inf}), "not finite"),
        (broken_arm(strategy="fly(3)"), "there is no strategy 'fly'"),
        (broken_arm(colour="red"), "the route's arms.0.colour"),
    ],
)
def test_a_table_that_cannot_be_is_told_in_one_line(table: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as told:
        from_table(table)
    assert words in str(told.value)
    assert "\n" not in str(told.value)

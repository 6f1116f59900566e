"""Sequential revision and budget forcing: what the model sees of its answer, which one wins, and when it ends."""

from __future__ import annotations

import pytest
from voting import voter

import ponder
from ponder.chat.model import model_of
from ponder.engine.scripted import ScriptedEngine, says
from ponder.strategies.budget_forcing import budget_forcing
from ponder.strategies.refine import CHECK, refine
from ponder.types import Question, Sample, Score, Trace


async def wants_seven(question: Question, sample: Sample) -> Score:
    right = "7" in sample.answer
    return Score(float(right), "seven", "" if right else "it is not seven")


def refined(rounds: int, *answers: str, verified: bool = False) -> Trace:
    strategy = refine(rounds, wants_seven if verified else None)
    return ponder.solve("?", model=voter(*answers), strategy=strategy, budget=3000)


def shown(trace: Trace, sample: int) -> str:
    """The prompt of a sample; tokens of the scripted model are bytes."""
    return bytes(i for i in trace.samples[sample].prompt_ids if i < 256).decode()


def test_each_round_sees_the_answer_before_and_the_last_one_wins() -> None:
    trace = refined(3, "5", "6", "7")
    assert trace.answer == "The answer is 7."
    assert "The answer is 5." not in shown(trace, 0)
    assert "The answer is 5." in shown(trace, 1)
    assert CHECK in shown(trace, 1)
    assert "The answer is 6." in shown(trace, 2)
    assert "The answer is 5." not in shown(trace, 2)


def test_the_verifiers_words_are_passed_on_and_its_approval_ends_it() -> None:
    trace = refined(4, "5", "7", "8", verified=True)
    assert (trace.answer, len(trace.samples)) == ("The answer is 7.", 2)
    assert "not accepted: it is not seven" in shown(trace, 1)
    assert [score.value for score in trace.scores] == [0.0, 1.0]


def test_the_first_of_equally_bad_answers_stays() -> None:
    assert refined(3, "5", "6", "8", verified=True).answer == "The answer is 5."


def test_all_rounds_share_one_budget() -> None:
    for budget in range(64, 400, 37):
        trace = ponder.solve("?", model=voter("5", "6", thinking="Hm. " * 50), strategy=refine(2), budget=budget)
        assert trace.cost.tokens <= budget
        assert trace.answer


def test_thinking_is_forced_to_a_number_of_tokens_or_a_share_of_the_budget() -> None:
    model = model_of(ScriptedEngine(says("Short.\nThe answer is 7.")))
    plain = ponder.solve("?", model=model, budget=400)
    forced = ponder.solve("?", model=model, budget=400, strategy=budget_forcing(60))
    assert forced.cost.tokens <= 400
    assert forced.thinking.count("Wait") > plain.thinking.count("Wait") == 0
    shared = ponder.solve("?", model=model, budget=400, strategy=budget_forcing(share=0.3))
    assert "Wait" in shared.thinking


@pytest.mark.parametrize("wrong", [lambda: refine(0), lambda: budget_forcing(0), lambda: budget_forcing(share=1.0)])
def test_settings_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="must"):
        wrong()

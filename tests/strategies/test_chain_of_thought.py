"""The two ways of one sample: thinking first, in the model's own way or asked for in words, and answering at once."""

from __future__ import annotations

import pytest
from drive import QUESTION, answering, of, outcome_of, thinks

from ponder.chat.formats import ELICIT, PONDER, THINK_TAGS
from ponder.engine.scripted import ScriptedEngine, says
from ponder.errors import Unsupported
from ponder.protocols import Strategy
from ponder.strategies.chain_of_thought import chain_of_thought
from ponder.strategies.direct import direct
from ponder.types import BestAnswer, Budget, SampleFinished, ThinkingDelta

BUDGET = Budget(tokens=200)


def test_trained_thinking_uses_the_models_own_format() -> None:
    for how in ("auto", "trained"):
        engine = answering(thinks(PONDER, "3 and 4.</think>7", ""))
        outcome = outcome_of(chain_of_thought(how)(QUESTION, of(engine), BUDGET))  # type: ignore[arg-type]
        assert (outcome.sample.thinking, outcome.sample.answer) == ("3 and 4.", "7")


@pytest.mark.parametrize("how", ["auto", "prompt"])
def test_a_model_that_was_not_trained_is_asked_in_words(how: str) -> None:
    engine = answering(thinks(ELICIT, "3 and 4. The answer is 7.", ""))
    outcome = outcome_of(chain_of_thought(how)(QUESTION, of(engine, ELICIT), BUDGET))  # type: ignore[arg-type]
    assert (outcome.sample.thinking, outcome.sample.answer) == ("3 and 4.", "The answer is 7.")
    assert b"step by step" in engine.tokenizer.decode(outcome.sample.prompt_ids)


def test_a_trained_model_can_be_asked_in_words_too() -> None:
    engine = answering(thinks(ELICIT, "<think>3 and 4.</think> The answer is 7.", ""))
    outcome = outcome_of(chain_of_thought("prompt")(QUESTION, of(engine, THINK_TAGS), BUDGET))
    assert (outcome.sample.thinking, outcome.sample.answer) == ("3 and 4.", "The answer is 7.")


def test_trained_thinking_of_a_model_without_it_is_refused() -> None:
    with pytest.raises(Unsupported, match=r'x was not trained to think\. ask for it in words: how="prompt"'):
        chain_of_thought("trained")(QUESTION, of(ScriptedEngine(says("7"), name="x"), ELICIT), BUDGET)
    hidden = ScriptedEngine(says("7"), chat_only=True)
    assert outcome_of(chain_of_thought("trained")(QUESTION, of(hidden, ELICIT), BUDGET)).sample.answer == "7"


def test_another_way_of_thinking_does_not_exist() -> None:
    with pytest.raises(ValueError, match="how must be auto, trained or prompt, not 'hard'"):
        chain_of_thought("hard")  # type: ignore[arg-type]


@pytest.mark.parametrize("chat_only", [False, True])
@pytest.mark.parametrize("strategy", [direct(), chain_of_thought()])
def test_the_answer_is_the_best_answer(strategy: Strategy, chat_only: bool) -> None:
    engine = ScriptedEngine(says("<think>\nHm.\n</think>\n\n7"), chat_only=chat_only)
    outcome = outcome_of(strategy(QUESTION, of(engine, THINK_TAGS), BUDGET))
    assert [type(event) for event in outcome.events[-2:]] == [SampleFinished, BestAnswer]
    assert outcome.events[-1] == BestAnswer("7", 0)


def test_direct_does_not_think() -> None:
    engine = ScriptedEngine(says("<think>\nHm.\n</think>\n\n7"))
    outcome = outcome_of(direct()(QUESTION, of(engine, THINK_TAGS), BUDGET))
    assert outcome.total.thinking == 0
    assert not any(isinstance(event, ThinkingDelta) for event in outcome.events)

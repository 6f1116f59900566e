"""Rollouts from an engine, in several turns, and from disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from policies import naive, tiny_texts
from tiny import tiny_model
from train.saying import saying

from ponder.chat.formats import PONDER
from ponder.chat.template import CHATML, ChatTemplate
from ponder.engine.scripted import EOS, TOKENIZER, Fault, ScriptedEngine
from ponder.errors import EngineError, TrainingError
from ponder.train.rollout import Ask, Reply, Rollout, Rollouts, kept, remote, with_turns
from ponder.train.texts import Texts
from ponder.types import Question, Sample, user

KINDS = ("thinking", "answer", "tool_call", "marker")
QUESTION = Question((user("What is 2 + 3?"),), reference="5")


def byte_texts() -> Texts:
    """Conversations in the scripted engine's tokens, which are bytes."""
    return Texts(
        ChatTemplate(CHATML, "", ""), PONDER, TOKENIZER.encode, lambda ids: TOKENIZER.decode(ids).decode(), EOS
    )


def ask(texts: Texts, n: int = 1, most: int = 200, thinking: int | None = None) -> Ask:
    return Ask(QUESTION, tuple(texts.prompt(QUESTION.messages)), n, most, thinking, seed=3)


def chosen(rollout: Rollout, texts: Texts) -> str:
    """What the policy chose of a sample's text."""
    return texts.decode([t for t, mine in zip(rollout.sample.ids, rollout.sample.mask, strict=True) if mine])


def scripted(*replies: str, faults: Sequence[Fault] = ()) -> ScriptedEngine:
    """An engine that says one after the other, whatever it is asked."""
    said = iter(replies)
    return ScriptedEngine(lambda prefix, index, params: TOKENIZER.encode(next(said)), faults=faults)


def test_an_engine_samples_each_ask() -> None:
    texts = byte_texts()
    engine = scripted("It is 5.\n</think>\nThe answer is 5.", "Hm.\n</think>\nThe answer is 6.")
    ((first, second),) = remote(engine, texts)([ask(texts, 2)])
    assert (first.sample.thinking, first.sample.answer) == ("It is 5.", "The answer is 5.")
    assert second.sample.answer == "The answer is 6."
    assert first.sample.ids[-1] == EOS
    assert all(first.sample.mask)
    assert first.sample.finish == "stop"
    assert len(first.drawn) == len(first.sample.ids) == first.length


def test_thinking_is_closed_at_its_cap_and_what_closed_it_is_not_learnt() -> None:
    texts = byte_texts()
    engine = scripted("I wonder and wonder and wonder", "The answer is 5.")
    ((rollout,),) = remote(engine, texts)([ask(texts, thinking=8)])
    assert rollout.sample.text == "I wonder\n</think>\nThe answer is 5."
    assert chosen(rollout, texts).startswith("I wonderThe answer is 5.")
    written = [value for value, mine in zip(rollout.drawn, rollout.sample.mask, strict=True) if not mine]
    assert len(written) == len(PONDER.closing)
    assert all(math.isnan(value) for value in written)


def test_thinking_that_has_closed_is_not_closed_again() -> None:
    texts = byte_texts()
    thought = "Five.\n</think>\n"
    engine = scripted(thought + "(cut here)", "The answer is 5.")
    ((rollout,),) = remote(engine, texts)([ask(texts, thinking=len(thought))])
    assert rollout.sample.text == thought + "The answer is 5."
    assert all(rollout.sample.mask)


def test_a_failing_engine_fails_the_step() -> None:
    texts = byte_texts()
    engine = scripted("It is", faults=[Fault("disconnect", at=2)])
    with pytest.raises(EngineError):
        remote(engine, texts)([ask(texts)])


def test_the_engine_is_asked_again_in_a_later_step() -> None:
    texts = byte_texts()
    sample = remote(scripted("A", "B"), texts)
    assert [sample([ask(texts)])[0][0].sample.text for _ in range(2)] == ["A", "B"]


def test_what_a_tool_writes_is_in_the_sample_and_not_in_its_mask() -> None:
    texts = byte_texts()
    engine = scripted("<call>2+3</call>", "So 5.\n</think>\nThe answer is 5.")

    async def calculator(question: Question, turn: Sample) -> Reply | None:
        return Reply("<result>5</result>\n", calls=1) if turn.text.endswith("</call>") else None

    ((rollout,),) = with_turns(remote(engine, texts), calculator, texts, turns=3)([ask(texts)])
    whole = texts.decode(rollout.sample.ids)
    assert whole.count("<result>5</result>") == 1
    assert "result" not in chosen(rollout, texts)
    assert "<call>2+3</call>" in chosen(rollout, texts)
    assert rollout.sample.answer == "The answer is 5."
    assert rollout.sample.prompt_ids == ask(texts).prompt
    assert len(rollout.drawn) == len(rollout.sample.ids)
    assert rollout.calls == 1


def test_a_sample_that_has_ended_is_not_asked_again() -> None:
    texts = byte_texts()
    heard: list[str] = []

    async def nods(question: Question, turn: Sample) -> Reply | None:
        heard.append(turn.text)
        return Reply("go on\n") if turn.text.endswith("?") else None

    engine = scripted("A.", "B?", "C?", "D.")
    ((first, second),) = with_turns(remote(engine, texts), nods, texts, turns=9)([ask(texts, 2)])
    assert heard == ["A.", "B?", "C?", "D."]  # each turn by itself, and each once
    assert (chosen(first, texts).count("A."), second.sample.mask.count(False)) == (1, 2 * len("go on\n"))


def test_max_tokens_and_the_cap_of_the_thinking_are_of_all_turns() -> None:
    texts = byte_texts()
    asked: list[Ask] = []
    says = saying(texts, *("five." for _ in range(9)))

    def heard(asks: Sequence[Ask]) -> list[list[Rollout]]:
        asked.extend(asks)
        return says(asks)

    async def answers(question: Question, turn: Sample) -> Reply | None:
        return Reply("ok", calls=1)

    step = len("five.") + 1  # and the end of the turn
    ((rollout,),) = with_turns(heard, answers, texts, turns=9, least=20)([ask(texts, most=50, thinking=10)])
    assert [each.max_tokens for each in asked] == [50, 50 - step - 2, 50 - 2 * step - 4, 50 - 3 * step - 6]
    assert [each.thinking for each in asked] == [10, 10 - step, 1, 1]
    assert len({each.seed for each in asked}) == 4
    assert rollout.calls == 4  # the last reply did not fit, and was made all the same


def test_the_answer_is_that_of_the_last_turn() -> None:
    texts = tiny_texts()

    says = saying(texts, "One.\n</think>\ncall", "Two.\n</think>\nThe answer is 5.")
    between = "\n<|im_start|>tool\nThe answer is 7.<|im_end|>\n<|im_start|>assistant\n<think>\n"

    async def answers(question: Question, turn: Sample) -> Reply | None:
        return Reply(between, turn=True)

    ((rollout,),) = with_turns(says, answers, texts, turns=2)([ask(texts)])
    sample = rollout.sample
    assert (sample.thinking, sample.answer) == ("One.\nTwo.", "The answer is 5.")
    assert sample.text == texts.decode(sample.ids[:-1])
    kinds = {kind: "".join(sample.text[s.start : s.end] for s in sample.spans if s.kind == kind) for kind in KINDS}
    assert (kinds["thinking"], kinds["tool_call"], kinds["answer"]) == ("One.Two.", "call", "The answer is 5.")
    assert between in kinds["marker"]
    assert sum(map(len, kinds.values())) == len(sample.text)


def test_turns_end_where_no_token_is_left() -> None:
    texts = byte_texts()

    async def talks(question: Question, turn: Sample) -> Reply | None:
        return Reply("more and more and more")

    engine = scripted(*("and" for _ in range(9)))
    ((rollout,),) = with_turns(remote(engine, texts), talks, texts, turns=9)([ask(texts, most=30)])
    assert len(rollout.sample.ids) <= 30


def test_turns_of_a_policy_have_the_log_probabilities_of_one_forward_pass() -> None:
    import torch

    model = tiny_model()
    texts = tiny_texts(model)

    async def nods(question: Question, turn: Sample) -> Reply | None:
        return Reply(" yes\n") if len(turn.ids) < 10 else None

    asked = Ask(QUESTION, tuple(texts.prompt(QUESTION.messages)), 2, 40, seed=1)
    short = with_turns(_at_most(naive(model, texts), 5), nods, texts, turns=2)
    ((first, _),) = short([asked])
    ids = [*first.sample.prompt_ids, *first.sample.ids]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    begin = len(first.sample.prompt_ids)
    for place, (mine, drawn) in enumerate(zip(first.sample.mask, first.drawn, strict=True)):
        if mine:
            assert float(logprobs[begin + place - 1, ids[begin + place]]) == pytest.approx(drawn, abs=1e-4)


def _at_most(rollouts: Rollouts, most: int) -> Rollouts:
    return lambda asks: rollouts([replace(ask, max_tokens=min(most, ask.max_tokens)) for ask in asks])


def test_rollouts_on_disk_are_the_ones_that_were_sampled(tmp_path: Path) -> None:
    model = tiny_model()
    texts = tiny_texts(model)
    asks = [Ask(QUESTION, tuple(texts.prompt(QUESTION.messages)), 2, 5, seed=seed) for seed in range(3)]
    calls: list[int] = []

    def counted(asks: Sequence[Ask]) -> list[list[Rollout]]:
        calls.append(len(asks))
        return [[replace(each, calls=2, failed=1) for each in group] for group in naive(model, texts)(asks)]

    first = kept(counted, tmp_path, 2)("step", asks)
    assert calls == [2, 1]
    again = kept(counted, tmp_path, 2)("step", asks)
    assert calls == [2, 1]
    assert again == first
    kept(counted, tmp_path, 2)("step", [*asks[:2], Ask(QUESTION, (5, 6), 2, 5)])  # another prompt: not what is there
    assert calls == [2, 1, 1]


def test_rollouts_on_disk_that_are_damaged_are_named(tmp_path: Path) -> None:
    texts = tiny_texts()
    (tmp_path / "step-000.jsonl").write_text('{"group": 0}\n')
    with pytest.raises(TrainingError, match="Remove it"):
        kept(naive(tiny_model(), texts), tmp_path, 1)("step", [ask(texts)])

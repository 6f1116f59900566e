"""Verified traces of a model's own, and labels of their steps by completions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from policies import tiny_texts

from ponder.errors import InputError
from ponder.train.harvest import Harvest, harvest, questions_asked
from ponder.train.rewards import Rewards
from ponder.train.rollout import Ask, Rollout, Rollouts
from ponder.train.texts import Texts
from ponder.train.verified import verified
from ponder.types import Question, Sample, Score, Scored, Trace, from_json, user
from ponder.verifiers.math_answer import math_answer

QUESTIONS = [Question((user(f"What is {n} + 1 + 1?"),), reference=str(n + 2)) for n in range(5)]
ENDS = (" right", " wrong", " right", " right")


def scripted(texts: Texts, asked: list[Ask]) -> Rollouts:
    """Thinks in two steps, of which sample 1 gets the second wrong; a completion is right 3 times in 4."""

    def sample(asks: Sequence[Ask]) -> list[list[Rollout]]:
        asked.extend(asks)
        return [[_said(texts, ask, index) for index in range(ask.n)] for ask in asks]

    return sample


def _said(texts: Texts, ask: Ask, index: int) -> Rollout:
    number = int(str(ask.question.reference)) - 2
    before = texts.decode(ask.prompt)
    if before.endswith("<think>\n"):
        second = number + 2 if index != 1 else number + 3
        text = f"{number} + 1 = {number + 1}.\n{number + 1} + 1 = {second}.\n</think>\nThe answer is {second}."
    elif "The answer is" in before:
        text = ""
    else:
        answer = number + 2 if ENDS[index % 4] == " right" else 0
        text = f"so.\n</think>\nThe answer is {answer}."
    ids = (*texts.encode(text), texts.end)
    sample = Sample(index, "", ask.prompt, ids, (True,) * len(ids), (-0.5,) * len(ids))
    return Rollout(ask, texts.read(sample), (-0.5,) * len(ids))


def run(path: Path, asked: list[Ask], count: int = 5, **options: int) -> Harvest:
    texts = tiny_texts()
    rewards = Rewards({"math_answer": (math_answer(), 1.0)})
    asks = questions_asked(QUESTIONS[:count], texts, 2, 200)
    return harvest(path, asks, scripted(texts, asked), rewards, texts, model="tiny", part=2, **options)


def traces(path: Path) -> list[Trace]:
    return [from_json(Trace, line) for line in path.read_text().splitlines()]


def test_each_sample_is_scored_and_each_step_labelled(tmp_path: Path) -> None:
    found = run(tmp_path / "traces.jsonl", [], completions=4)
    assert (found.questions, found.samples, found.right, found.steps) == (5, 10, 5, 30)
    kept = list(verified(traces(tmp_path / "traces.jsonl")))
    assert [item.score for item in kept] == [1.0, 0.0] * 5
    # The first step of either: 3 of 4 completions are right. The wrong equation is 0 without asking, and so is what
    # follows it. After the answer only the end is left to say.
    assert [item.labels for item in kept] == [(0.75, 0.75, 1.0), (0.75, 0.0, 0.0)] * 5


def test_nothing_is_asked_after_a_wrong_equation(tmp_path: Path) -> None:
    asked: list[Ask] = []
    run(tmp_path / "traces.jsonl", asked, count=1, completions=4)
    prefixes = [tiny_texts().decode(ask.prompt).rpartition("<think>\n")[2] for ask in asked[1:]]
    thought = "0 + 1 = 1.\n1 + 1 = 2.\n"
    assert sorted(prefixes) == sorted(["0 + 1 = 1.\n", thought, "0 + 1 = 1.\n", f"{thought}</think>\nThe answer is 2."])
    assert len({ask.seed for ask in asked}) == 5


def test_it_goes_on_after_its_last_whole_part(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole.jsonl", [])
    path = tmp_path / "cut.jsonl"
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:40])
    asked: list[Ask] = []
    assert run(path, asked) == whole
    assert len(asked) == 3
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    run(path, asked)
    assert len(asked) == 3


def test_traces_of_other_questions_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    run(path, [])
    path.write_bytes(b"".join(reversed(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(InputError, match="holds traces of other questions"):
        run(path, [])


def test_a_verifier_that_is_named_labels_steps_where_it_scored_them() -> None:
    sample = Sample(0, "a\nb", ids=(1, 2), mask=(True, True), logprobs=(None, None))
    events = (Scored(Score(0.2, "mine", steps=(0.9, 0.2)), 0), Scored(Score(1.0, "other"), 0))
    trace = Trace("t", QUESTIONS[0], samples=(sample,), events=events)
    assert [each.labels for each in verified([trace], "mine")] == [(0.9, 0.2)]
    assert [(each.score, each.labels) for each in verified([trace])] == [(1.0, ())]

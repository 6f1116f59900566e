"""The gate between versions of a prompt: what passes it, what does not, and what both were asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.chat.model import model_of
from ponder.engine.scripted import TOKENIZER, ScriptedEngine, Source, says
from ponder.errors import InputError
from ponder.evals.prompt_gate import MARGIN, Verdict, weigh, with_prompt
from ponder.evals.results import Result, Run, Setting
from ponder.evals.run import evaluate
from ponder.ops.prompt import Prompt, Turn
from ponder.protocols import SamplingParams
from ponder.tasks import Task
from ponder.types import Budget, Cost, Message, Question, system, user

OLD, NEW = Prompt("p", 1, (Turn("system", "old"),)), Prompt("p", 2, (Turn("system", "new"),))


def sums(count: int, *before: Message, **metadata: str) -> Task:
    questions = tuple(
        Question((*before, user(f"What is {i} + 3?")), str(i + 3), "sums", metadata={"id": f"q{i}", **metadata})
        for i in range(count)
    )
    return Task("sums", questions, "math_answer", "0" * 64)


def judged(scores: Mapping[str, list[float]], count: int, margin: float = MARGIN) -> Verdict:
    """The verdict on results that are given: those of version 2 under "new", those of version 1 under "old"."""

    async def asked(task: Task) -> Run:
        which = task.questions[0].messages[0].text
        results = tuple(
            Result(f"q{i}", 0, score, Cost(answer=10 if which == "new" else 20))
            for i, score in enumerate(scores[which])
        )
        return Run(f"run-{which}", task.name, "toy", Setting("direct"), results, sha256=task.sha256)

    return asyncio.run(weigh(asked, sums(count), NEW, OLD, margin=margin))


def test_one_that_is_as_good_passes_where_the_questions_are_enough() -> None:
    many = judged({"new": [1.0] * 150 + [0.0] * 50, "old": [1.0] * 150 + [0.0] * 50}, 200)
    assert many.passed is True
    many.check()
    few = judged({"new": [1.0] * 20, "old": [1.0] * 20}, 20)
    assert few.passed is False
    with pytest.raises(InputError, match=r"^p@2 is not shown to be as good: \+0\.0 points \[-.*, margin 2\.") as caught:
        few.check()
    assert "ask more questions" in caught.value.mend
    assert "--force" in caught.value.mend
    assert judged({"new": [1.0] * 20, "old": [1.0] * 20}, 20, margin=0.2).passed is True


def test_one_that_is_better_passes_and_one_that_is_worse_is_told_so() -> None:
    better = judged({"new": [1.0] * 100, "old": [1.0] * 60 + [0.0] * 40}, 100)
    assert better.passed is True
    assert better.difference is not None
    assert (better.difference.better, better.difference.worse) == (40, 0)
    worse = judged({"new": [1.0] * 60 + [0.0] * 40, "old": [1.0] * 100}, 100)
    with pytest.raises(InputError, match=r"^p@2 is worse: -40\.0 points .* against p@1 on 100 questions of sums"):
        worse.check()
    unclear = judged({"new": [1.0] * 94 + [0.0] * 6, "old": [1.0] * 90 + [0.0] * 1 + [1.0] * 8 + [0.0]}, 100)
    with pytest.raises(InputError, match=r"^p@2 did worse: -4\.0 points \[.*, \+"):
        unclear.check()


def test_worse_within_the_margin_passes() -> None:
    scores = {"new": [1.0] * 985 + [0.0] * 15, "old": [1.0] * 990 + [0.0] * 10}
    assert judged(scores, 1000).passed is True
    assert judged(scores, 1000, margin=0.005).passed is False
    assert judged(scores, 1000, margin=0.0).passed is False


@given(
    pairs=st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=40),
    margins=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
)
def test_a_wider_margin_never_refuses_what_a_narrower_one_lets_through(
    pairs: list[tuple[float, float]], margins: tuple[float, float]
) -> None:
    scores = {"new": [new for new, _ in pairs], "old": [old for _, old in pairs]}
    narrow, wide = (judged(scores, len(pairs), margin) for margin in sorted(margins))
    assert narrow.difference == wide.difference
    assert narrow.difference is not None
    assert narrow.passed == (narrow.difference.interval.low > -min(margins))
    assert not (narrow.passed and not wide.passed)


def test_the_document_has_every_figure() -> None:
    found = judged({"new": [1.0] * 3 + [0.0], "old": [1.0] * 2 + [0.0] * 2}, 4).document
    assert (found["task"], found["model"], found["strategy"], found["questions"]) == ("sums", "toy", "direct", 4)
    assert found["difference"]["value"] == 0.25
    assert found["difference"]["low"] < 0.25 < found["difference"]["high"]
    assert (found["better"], found["worse"], found["margin"], found["passed"]) == (1, 0, MARGIN, False)
    assert (found["candidate"]["prompt"], found["candidate"]["run"], found["candidate"]["tokens"]) == (
        "p@2",
        "run-new",
        10,
    )
    assert (found["current"]["prompt"], found["current"]["accuracy"]["value"]) == ("p@1", 0.5)


@pytest.mark.parametrize("margin", [-0.01, 1, float("nan"), float("inf")])
def test_margins_that_cannot_be_are_refused_before_anything_is_asked(margin: float) -> None:
    with pytest.raises(InputError, match="margin"):
        judged({}, 1, margin)


# ---------------------------------------------------------------- what is asked


def test_the_prompt_stands_before_each_question_and_pairs_stay_pairs() -> None:
    task = sums(2, system("Numbers alone."), unit="apples")
    prompt = Prompt("p", 3, (Turn("system", "Say {{ word }} in {{ unit }}."),), ("word", "unit"))
    found = with_prompt(task, prompt, {"word": "{{ hi }}"})
    assert [question.messages for question in found.questions] == [
        (system("Say {{ hi }} in apples.\n\nNumbers alone."), user(f"What is {i} + 3?")) for i in range(2)
    ]
    assert [question.metadata for question in found.questions] == [question.metadata for question in task.questions]
    assert (found.name, found.sha256, found.verifier) == ("sums + p@3", task.sha256, task.verifier)
    assert with_prompt(task, prompt, {"word": "x", "unit": "y"}).questions[0].messages[0].text.startswith("Say x in y.")
    with pytest.raises(InputError, match="nothing to fill word with"):
        with_prompt(task, prompt, {})


def test_values_that_no_version_takes_are_refused_before_anything_is_asked() -> None:
    async def never(task: Task) -> Run:
        raise AssertionError("asked")

    takes = Prompt("p", 2, (Turn("system", "{{ x }}"),), ("x",))
    with pytest.raises(InputError, match="no version that is asked has the variable 'y'"):
        asyncio.run(weigh(never, sums(1), takes, OLD, {"x": 1, "y": 2}))
    with pytest.raises(InputError, match="nothing to fill x with"):
        asyncio.run(weigh(never, sums(1), OLD, takes))


def test_a_model_is_asked_with_either_prompt() -> None:
    def reply(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Source:
        prompt = TOKENIZER.decode(prefix).decode()
        number = int(prompt.rpartition("What is ")[2].partition(" ")[0])
        right = number % 2 or "<|im_start|>system\nnew<|im_end|>" in prompt
        return says(f"The answer is {number + 3 if right else 0}.")(prefix, index, params)

    model = model_of(ScriptedEngine(reply))

    async def asked(task: Task) -> Run:
        return await evaluate(task, model, Setting("direct", Budget(200)))

    verdict = asyncio.run(weigh(asked, sums(10), NEW, OLD))
    assert verdict.difference is not None
    assert (verdict.candidate.accuracy.value, verdict.difference.value, verdict.difference.better) == (1.0, 0.5, 5)
    alone = asyncio.run(weigh(asked, sums(10), OLD))
    assert (alone.candidate.accuracy.value, alone.current, alone.difference, alone.passed) == (0.5, None, None, None)
    assert alone.figures == ""
    alone.check()

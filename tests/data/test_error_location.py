"""Mistakes that are made on purpose, and whether they are found."""

from __future__ import annotations

import asyncio
import functools
import math
import random
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.chat.formats import PONDER
from ponder.chat.model import Model, model_of
from ponder.data.error_location import _place, best_threshold, error_location, located, measured, values_of, written
from ponder.data.examples import Example
from ponder.data.mistakes import Kind, Solution, corrupted, solutions
from ponder.data.word_problems import word_problems
from ponder.engine._script import TOKENIZER
from ponder.engine.scripted import EOS, ScriptedEngine
from ponder.errors import InputError
from ponder.protocols import Verifier
from ponder.types import Question, Sample, Score
from ponder.verifiers.arithmetic_steps import arithmetic_steps
from ponder.verifiers.reward_model import MARKER, process_reward_model


@functools.cache
def problems() -> tuple[Example, ...]:
    return tuple(word_problems(300, seed=5))


@functools.cache
def model() -> Model:
    return replace(model_of(ScriptedEngine(lambda *_: [EOS])), format=PONDER)


def right_lines(steps: tuple[str, ...]) -> list[bool]:
    """Of each step, whether arithmetic finds it right."""
    sample = Sample(0, "", thinking="\n".join(steps))
    with pytest.raises(StopIteration) as done:  # inside a loop, too: it never waits
        arithmetic_steps()(Question(()), sample).send(None)  # type: ignore[attr-defined]
    found = done.value.value.steps
    assert len(found) == len(steps)
    return [value == 1 for value in found]


def results(steps: tuple[str, ...]) -> list[str]:
    return [re.findall(r"= (\d+(?:\.\d+)?)", step)[-1] for step in steps]


# ------------------------------------------------------------------ mistakes


@given(st.integers(0, 299), st.integers(), st.sampled_from(["result", "operand"]), st.booleans())
def test_one_mistake_is_made_and_it_is_the_first(number: int, seed: int, kind: Kind, carried: bool) -> None:
    example = problems()[number]
    found = corrupted(example, random.Random(seed), kind, carried)
    if found is None:
        return
    k, steps = found.wrong, found.steps
    assert k is not None
    assert steps[:k] == example.steps[:k]
    assert results(steps)[k] != results(example.steps)[k]
    right = right_lines(steps)
    assert right[:k] == [True] * k
    assert right[k] == (kind == "operand"), "only a wrong operand leaves the equation right"
    assert all(right[k + 1 :])
    if kind == "operand":
        new = set(re.findall(r"[\d.]+\d|\d", steps[k].partition("=")[0]))
        known = re.findall(r"[\d.]+\d|\d", f"{example.question} {example.steps}".replace(",", ""))
        assert len(new - {*known}) == 1
    if carried and len(steps) > k + 1 and results(example.steps)[k] in example.steps[k + 1].partition("=")[0].split():
        assert results(steps)[k] in steps[k + 1].partition("=")[0].split()
    if not carried:
        assert steps[k + 1 :] == example.steps[k + 1 :]
    assert found.example.thinking.splitlines() == list(steps)
    same = results(steps)[-1] == results(example.steps)[-1]
    assert found.example.answer == (example.answer if same else f"The answer is {results(steps)[-1]}.")
    assert found.example.labels == tuple(float(at < k) for at in range(len(steps)))


def test_a_wrong_number_is_carried_through_all_that_follows_from_it() -> None:
    example = Example(
        "Anna has 4 bags of 6 apples, 10 pears and 24 plums. How many fruits are there in each of 2 rows?",
        "The answer is 29.",
        "4 * 6 = 24 apples.\n24 + 10 = 34 fruits.\n34 + 24 = 58 fruits in all.\n58 / 2 = 29 fruits in each row.",
    )
    seen = set()
    for seed in range(200):
        found = corrupted(example, random.Random(seed), "result", True)
        assert found is not None
        if found.wrong == 1:
            wrong = int(results(found.steps)[1])
            assert found.steps[0] == "4 * 6 = 24 apples."
            assert found.steps[2:] == (
                f"{wrong} + 24 = {wrong + 24} fruits in all.",
                f"{wrong + 24} / 2 = {(wrong + 24) // 2} fruits in each row.",
            )
            assert (wrong + 24) % 2 == 0, "there are no halves of fruits"
            assert found.example.answer == f"The answer is {(wrong + 24) // 2}."
            seen.add(wrong)
    assert len(seen) > 3


def test_sets_of_solutions() -> None:
    made = solutions(problems(), seed=1)
    assert made == solutions(problems(), seed=1)
    assert made != solutions(problems(), seed=2)
    wrong = [solution for solution in made if solution.wrong is not None]
    assert 110 < len(wrong) < 190
    assert {kind for s in wrong for kind in (right_lines(s.steps)[s.wrong],)} == {True, False}
    for solution, example in zip(made, problems(), strict=True):
        assert solution.example.question == example.question
        if solution.wrong is None:
            assert replace(solution.example, labels=None) == example
    assert all(solution.wrong is None for solution in solutions(problems(), wrong=0))
    assert sum(solution.wrong is None for solution in solutions(problems(), wrong=1)) < 15


def test_where_no_mistake_can_be_made() -> None:
    for thinking in ("I am not sure.", "1 + 1 = 3 apples.", "5 - 4 = 1 apple."):
        assert corrupted(Example("?", "So.", thinking), random.Random(0), "result", True) is None
    with pytest.raises(InputError, match="no mistake 'spelling'"):
        corrupted(problems()[0], random.Random(0), "spelling", True)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no share"):
        solutions(problems(), wrong=1.5)


# ------------------------------------------------------------------ the measure

chances = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]) | st.floats(0, 1)
scored = st.lists(
    st.lists(chances, min_size=1, max_size=4).flatmap(
        lambda values: st.tuples(st.just(values), st.none() | st.integers(0, len(values) - 1))
    ),
    max_size=12,
)


@given(scored)
def test_no_threshold_is_better_than_the_best(given_values: list[tuple[list[float], int | None]]) -> None:
    values, wrong = [v for v, _ in given_values], [w for _, w in given_values]
    if None not in wrong or all(w is None for w in wrong):
        with pytest.raises(InputError, match="measure nothing"):
            best_threshold(values, wrong)
        return
    chosen = best_threshold(values, wrong)
    levels = sorted({value for steps in values for value in steps})
    others = [*levels, *(math.nextafter(level, 2) for level in levels)]
    assert measured(values, wrong, chosen).f1 == max(measured(values, wrong, each).f1 for each in others)


def test_the_threshold_lies_between_values() -> None:
    assert best_threshold([[0.9, 0.2], [0.8, 0.7]], [1, None]) == pytest.approx(0.45)


def test_the_measure() -> None:
    values = [[0.9, 0.1, 0.0], [0.3, 0.2], [0.9, 0.6], [0.9, 0.4], [0.9, 0.9]]
    found = measured(values, [1, 1, 1, None, None], 0.5)
    assert [located(each, 0.5) for each in values] == [1, 0, None, 1, None]
    assert (found.located, found.wrong, found.passed, found.right) == (1, 3, 1, 2)
    assert found.f1 == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert measured([[0.5], [0.5]], [0, None], 0.0).f1 == 0


# ------------------------------------------------------------------ verifiers


def of_kind(kind: Kind, count: int = 120) -> list[Solution]:
    made = [corrupted(each, random.Random(7), kind, True) for each in problems()[:count]]
    return [solution for solution in made if solution] + [Solution(each) for each in problems()[:count]]


def test_arithmetic_finds_wrong_results_and_no_wrong_operands() -> None:
    found = asyncio.run(error_location(arithmetic_steps(), model(), of_kind("result")))
    assert found.f1 == 1
    assert 0 < found.threshold <= 1
    assert found.wrong > 30
    assert asyncio.run(error_location(arithmetic_steps(), model(), of_kind("operand"))).located == 0


def test_the_threshold_is_chosen_on_other_problems() -> None:
    """A verifier that is only right about the problems that F1 is measured on gains nothing by it."""
    given_solutions = of_kind("result")

    def knows(certain: set[str], turned: bool) -> Verifier:
        async def verify(question: Question, sample: Sample) -> Score:
            steps = (await arithmetic_steps()(question, sample)).steps
            known = [value * 0.1 + 0.8 if question.text in certain else value * 0.1 for value in steps]
            return Score(0, "knows", steps=tuple(1 - value for value in known) if turned else tuple(known))

        return verify

    questions = {solution.example.question for solution in given_solutions}
    plain = asyncio.run(error_location(knows(set(), False), model(), given_solutions, share=0.3))
    raised = asyncio.run(error_location(knows(questions, False), model(), given_solutions, share=0.3))
    assert (plain.f1, raised.f1) == (1, 1)
    assert raised.threshold == pytest.approx(plain.threshold + 0.8)
    assert plain.wrong + plain.right == pytest.approx(0.7 * len(given_solutions), rel=0.2)
    # The threshold of one half of the problems does not fit the other.
    chosen = {s.example.question for s in given_solutions if part(s) < 0.3}
    split = asyncio.run(error_location(knows(questions - chosen, False), model(), given_solutions, share=0.3))
    assert split.threshold == plain.threshold
    assert (split.located, split.passed) == (0, split.right)


def part(solution: Solution) -> float:
    return _place(solution.example.question)


def test_a_process_reward_model_is_asked_after_each_step() -> None:
    def says(prefix: tuple[int, ...], token: int) -> float:
        said = TOKENIZER.decode(prefix).decode().removesuffix(MARKER)
        step = said.rpartition("<think>\n")[2].splitlines()[-1]
        # What it thinks of the answer, as of the last step, is no matter here.
        chance = 0.1 if step.startswith("The answer") else 0.9 if right_lines((step,))[0] else 0.2
        return math.log({ord("+"): chance, ord("-"): 1 - chance}[token])

    asked = replace(model_of(ScriptedEngine(lambda *_: [EOS], logprob=says)), format=PONDER)
    found = asyncio.run(error_location(process_reward_model(), asked, of_kind("result", 30)))
    assert found.f1 == 1
    assert 0.2 < found.threshold < 0.9
    longest = max(of_kind("result", 30), key=lambda solution: len(solution.steps))
    with pytest.raises(InputError, match=r"scored 1 steps of a solution of \d. Give a verifier of steps"):
        asyncio.run(values_of(process_reward_model(most_steps=1), asked, [longest]))
    values = asyncio.run(values_of(process_reward_model(), asked, [longest]))
    assert [value > 0.5 for value in values[0]] == right_lines(longest.steps)


def test_solutions_are_written_as_the_model_would_write_them() -> None:
    solution = solutions(problems()[:1], wrong=0)[0]
    sample: Any = asyncio.run(written(model(), solution))
    assert TOKENIZER.decode(sample.prompt_ids).decode().endswith("<|im_start|>assistant\n<think>\n")
    assert TOKENIZER.decode(sample.ids).decode() == sample.text
    kinds = {span.kind: sample.text[span.start : span.end] for span in sample.spans}
    assert kinds == {"thinking": sample.thinking, "marker": "\n</think>\n", "answer": sample.answer}
    assert sample.thinking == solution.example.thinking
    assert not any(sample.mask)


def test_parts_that_cannot_be() -> None:
    with pytest.raises(InputError, match="leaves one of the two parts empty"):
        asyncio.run(error_location(arithmetic_steps(), model(), of_kind("result"), share=1.0))
    with pytest.raises(InputError, match="measure nothing"):
        asyncio.run(error_location(arithmetic_steps(), model(), of_kind("result")[:30]))

"""GSM8K's worked solutions as thinking."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from ponder.data.gsm8k_traces import gsm8k_examples, solution_steps
from ponder.errors import InputError
from ponder.types import Sample
from ponder.verifiers.arithmetic_steps import arithmetic_steps
from ponder.verifiers.math_answer import math_answer


def file(folder: Path, *answers: str) -> Path:
    rows = [{"question": f"Question {index}?", "answer": answer} for index, answer in enumerate(answers)]
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


RIGHT = (
    "She sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72",
    "Mary put 7 pins/page * 6 pages= <<7*6=42>>42 pins on them.\nShe has 89 – 42 = <<89-42=47>>47 left\n#### 47",
    "We count the hats.\nThere are 2 x 3=<<2*3=6>>6 hats.\nIt costs $1,000 × 6 = $<<1000*6=6000>>6,000.\n#### 6,000",
    "Each costs 10 ÷ 4 = $<<10/4=2.5>>2.50.\nThat is all.\n#### 2.5",
)


def test_solutions_become_steps_with_equations(tmp_path: Path) -> None:
    converted = gsm8k_examples(file(tmp_path, *RIGHT))
    assert converted.left_out == {}
    assert [example.thinking for example in converted.examples] == [
        "She sold 48 / 2 = 24 clips in May.\nShe sold 48 + 24 = 72 clips altogether.",
        "Mary put 7 pins/page * 6 pages: 7 * 6 = 42 pins on them.\nShe has 89 - 42 = 47 left.",
        "We count the hats. There are 2 * 3 = 6 hats.\nIt costs $1000 * 6 = $6000.",
        "Each costs 10 / 4 = $2.50. That is all.",
    ]
    answers = [(example.answer, example.reference) for example in converted.examples]
    assert answers == [(f"The answer is {n}.", n) for n in ("72", "47", "6000", "2.5")]
    assert converted.examples[0].question == "Question 0?"
    assert converted.examples[1].metadata == {"id": "1", "kind": "gsm8k", "steps": 2, "synthetic": False}


def test_what_was_taken_holds_before_the_verifiers(tmp_path: Path) -> None:
    async def verify() -> None:
        for example in gsm8k_examples(file(tmp_path, *RIGHT)).examples:
            sample = Sample(0, example.answer, answer=example.answer, thinking=example.thinking)
            assert (await arithmetic_steps()(example.asked(), sample)).steps == (1.0,) * len(example.steps)
            assert (await math_answer(strict=True)(example.asked(), sample)).value == 1.0

    asyncio.run(verify())


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    converted = gsm8k_examples(
        file(
            tmp_path,
            RIGHT[0],
            "There are seven.\n#### 7",
            "#### 7",
            "There are 3 + 3 = 7.\n#### 7",
            "It was 8 / 3 = <<8/3=2.67>>2.67.\n#### 2.67",
            "There are 3 + 3 = <<3+3=6>>6.\n#### 7",
            "There are 3 + 3 = 6.\n#### half",
        )
    )
    assert [example.metadata["id"] for example in converted.examples] == ["0"]
    assert converted.left_out == {
        "there is no equation": 2,
        "an equation is wrong": 2,
        "the last equation does not give the answer": 1,
        "the answer is no number": 1,
    }


def test_a_mark_stands_in_only_where_nothing_can_be_read() -> None:
    assert solution_steps("He has 6*3=<<6*3=18>>18.") == ["He has 6 * 3 = 18."]
    assert solution_steps("He has 6 eggs*3=<<6*3=18>>18 eggs!") == ["He has 6 eggs*3: 6 * 3 = 18 eggs!"]
    assert solution_steps("He has five=<<5=5>>5 eggs") == []
    assert solution_steps("") == []


def test_a_negative_result(tmp_path: Path) -> None:
    [example] = gsm8k_examples(file(tmp_path, "It is 3 - 5 = <<3-5=-2>>-2 degrees.\n#### -2")).examples
    assert (example.thinking, example.answer) == ("It is 3 - 5 = -2 degrees.", "The answer is -2.")


def test_a_row_that_is_not_gsm8k(tmp_path: Path) -> None:
    path = file(tmp_path, RIGHT[0], "seven")
    with pytest.raises(InputError, match=r"train\.jsonl, line 2 is no row of GSM8K\. It has a question, and an answer"):
        gsm8k_examples(path)
    with pytest.raises(InputError, match=r"cannot be read"):
        gsm8k_examples(tmp_path / "none.jsonl")

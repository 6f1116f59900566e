"""GSM8K's training set as examples: its worked solutions as thinking, one step a line, each with its equation.

Source: Cobbe et al., Training Verifiers to Solve Math Word Problems (2021). Its solutions carry marks such as
"<<48/2=24>>", made for a calculator. A mark's equation stands in where the sentence around it has none that can be
read ("7 stickers/page * 6 pages"); otherwise marks go. What a program finds wrong is left out, and counted.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from ponder.data.examples import Example, answer_text
from ponder.errors import InputError
from ponder.tasks import fields, gsm8k
from ponder.tasks.fields import Row
from ponder.tasks.rows import place, read
from ponder.verifiers.arithmetic_steps import equations

TASK = "gsm8k"

_MARK = re.compile(r"\s*=?\s*\$?\s*<<([^<>\n=]*)=([^<>\n]*)>>\s*\$?\s*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SIGNS = ((r"[−–]", "-"), (r"(?<=[\d)])\s*[×]\s*(?=[\d($])", " * "), (r"(?<=[\d)])\s*÷\s*(?=[\d($])", " / "))
_SIDE = re.compile(r"[\d.$%()\s+\-*/x]*\d[\d.$%()\s]*(?==)")
_RESULT = re.compile(r"=\s*(-?)\s*\$?\s*(-?\d+(?:\.\d+)?|-?\.\d+)")


@dataclass(frozen=True)
class Converted:
    """`left_out` counts the rows that are no examples, by what is wrong with them."""

    examples: tuple[Example, ...]
    left_out: Mapping[str, int]


def gsm8k_examples(path: str | os.PathLike[str]) -> Converted:
    """The rows of a file of GSM8K, `question` and `answer`, as examples.

    Only what a program can follow is taken: every equation is right, and the last one gives the answer. Raises
    InputError, with the line, for rows that are not GSM8K's.
    """
    path = Path(path)
    made: list[Example] = []
    left_out: Counter[str] = Counter()
    for index, (line, row) in enumerate(read(path)[0]):
        if not gsm8k.matches(row):
            raise InputError(
                f"{place(path, line)} is no row of GSM8K", 'It has a question, and an answer that ends "#### 18"'
            )
        example, problem = _example(row, index)
        if example is None:
            left_out[problem] += 1
        else:
            made.append(example)
    return Converted(tuple(made), left_out)


def _example(row: Row, index: int) -> tuple[Example | None, str]:
    solution, _, final = fields.text(row, "answer").rpartition(gsm8k.MARK)
    reference = fields.as_number(final)
    if reference is None:
        return None, "the answer is no number"
    steps = solution_steps(solution)
    checked = [_checked(step) for step in steps]
    if not steps or not all(checked):
        return None, "there is no equation"
    if not all(all(right) for right in checked):
        return None, "an equation is wrong"
    if _result(steps[-1]) != Fraction(reference):
        return None, "the last equation does not give the answer"
    question = fields.text(row, "question").strip()
    metadata = {"id": str(index), "kind": "gsm8k", "steps": len(steps), "synthetic": False}
    return Example(question, answer_text(reference), "\n".join(steps), reference, TASK, metadata=metadata), ""


def solution_steps(solution: str) -> list[str]:
    """The steps of a worked solution: its lines, where a line without an equation goes to the one behind it."""
    steps: list[str] = []
    waiting: list[str] = []
    for line in solution.splitlines():
        text = _line(line)
        if not text:
            continue
        waiting.append(text)
        if _checked(text):
            steps.append(" ".join(waiting))
            waiting = []
    if waiting and steps:
        steps[-1] = " ".join((steps[-1], *waiting))
    return steps


@lru_cache(maxsize=256)
def _checked(text: str) -> tuple[bool, ...]:
    """Whether each equation is right; a step is asked for as a line, and again when the whole is judged."""
    return tuple(equations(text))


def _line(line: str) -> str:
    """A line with equations that can be read, in one spelling, and a full stop."""
    text = _spelled(gsm8k.CALCULATOR.sub("", line))
    if "<<" in line and not _checked(text):
        text = _spelled(gsm8k.CALCULATOR.sub("", _MARK.sub(_equation_of_mark, line)))
    return text


def _spelled(text: str) -> str:
    for pattern, replacement in _SIGNS:
        text = re.sub(pattern, replacement, text)
    text = _THOUSANDS.sub("", text)
    text = " ".join(_SIDE.sub(lambda side: _spaced(side[0]), text).split())
    text = re.sub(r"\s*(?<![<>!=:])=(?![=>])\s*", " = ", text).strip()
    return f"{text}." if text and text[-1] not in ".!?:" else text


def _equation_of_mark(mark: re.Match[str]) -> str:
    """ " = <<7*6=42>>" becomes ": 7 * 6 = ", before the 42 that follows it."""
    left = mark[1].strip()
    return f": {left} = " if re.search(r"\d\s*[-+*/]", left) else mark[0]


def _spaced(side: str) -> str:
    side = re.sub(r"(?<=[\d)])\s*x\s*(?=[\d($])", " * ", side)
    return re.sub(r"(?<=[\d)%])\s*([-+*/])\s*(?=[\d.($])", r" \1 ", side)


def _result(step: str) -> Fraction | None:
    """What stands behind the last equals sign."""
    found = _RESULT.findall(step)
    return None if not found else Fraction(f"{found[-1][0]}{found[-1][1]}".replace("--", ""))

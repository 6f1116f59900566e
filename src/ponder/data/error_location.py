"""Does a process verifier find where a solution goes wrong?

    located(t)   the first step whose value is below the threshold t; None where there is none
    a_e          share of wrong solutions in which that is the first wrong step
    a_c          share of right solutions in which it is None
    F1           2 a_e a_c / (a_e + a_c)

The threshold is chosen on one part of the problems and F1 measured on the others; a problem is in one of the two,
however many solutions of it there are. `ponder.data.mistakes` makes solutions whose first wrong step is known.

Source: Zheng et al., ProcessBench (2024), the measure, and the choice of the threshold.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ponder.chat.model import Model
from ponder.chat.parse import Parser, coalesce
from ponder.data.mistakes import Solution
from ponder.data.step_labels import in_order
from ponder.errors import InputError
from ponder.protocols import Verifier, bound
from ponder.types import Sample, Span

# ---------------------------------------------------------------- asking


async def written(model: Model, solution: Solution) -> Sample:
    """The solution as a sample of the model: its exact tokens, none of them drawn."""
    example = solution.example
    prompt = await model.prompt(example.prompt, think=True)
    opened = "" if prompt.inside else f"{model.format.open}\n"
    said = opened + example.thinking + model.format.closing + example.answer
    ids = tuple(await model.engine.tokenize(said))
    parser, spans, at = Parser(model.format, prompt.inside, tools=False), [], 0
    for piece in coalesce([*parser.feed(said), *parser.finish()]):
        spans.append(Span(piece.kind, at, at + len(piece.text)))
        at += len(piece.text)
    none = (None,) * len(ids)
    return Sample(
        0,
        said,
        prompt.ids,
        ids,
        (False,) * len(ids),
        none,
        spans=tuple(spans),
        thinking=example.thinking,
        answer=example.answer,
    )


async def values_of(verifier: Verifier, model: Model, given: Sequence[Solution], workers: int = 8) -> list[list[float]]:
    """The verifier's value of each step of each solution.

    The value of the answer, which a verifier may give as one more step, is left out: mistakes are in steps before it.
    Raises InputError for a verifier that does not score as many steps as a solution has.
    """
    asked = bound(verifier, model)

    async def work(solution: Solution) -> list[float]:
        score = await asked(solution.example.asked(), await written(model, solution))
        if len(score.steps) - len(solution.steps) not in (0, 1):
            raise InputError(
                f"{score.verifier} scored {len(score.steps)} steps of a solution of {len(solution.steps)}",
                "Give a verifier of steps, and set its most_steps high enough",
            )
        return list(score.steps[: len(solution.steps)])

    return [values async for values in in_order(work, given, workers)]


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True)
class ErrorLocation:
    """How many of the `wrong` solutions were located, and how many of the `right` ones passed, at a threshold."""

    threshold: float
    located: int
    wrong: int
    passed: int
    right: int

    @property
    def accuracy_wrong(self) -> float:
        return self.located / self.wrong

    @property
    def accuracy_right(self) -> float:
        return self.passed / self.right

    @property
    def f1(self) -> float:
        """The harmonic mean of the two accuracies."""
        return _f1(self.accuracy_wrong, self.accuracy_right)


def located(values: Sequence[float], threshold: float) -> int | None:
    """The first step whose value is below the threshold."""
    return next((k for k, value in enumerate(values) if value < threshold), None)


def measured(values: Sequence[Sequence[float]], wrong: Sequence[int | None], threshold: float) -> ErrorLocation:
    """The measure at a threshold, from values of steps and numbers of first wrong steps.

    Raises InputError where one of the two kinds of solutions is missing.
    """
    found = [located(each, threshold) for each in values]
    pairs = list(zip(found, wrong, strict=True))
    errors = [k == truth for k, truth in pairs if truth is not None]
    fine = [k is None for k, truth in pairs if truth is None]
    _both(len(errors), len(fine))
    return ErrorLocation(threshold, sum(errors), len(errors), sum(fine), len(fine))


def best_threshold(values: Sequence[Sequence[float]], wrong: Sequence[int | None]) -> float:
    """The threshold of the greatest F1, half-way to the next value; of several, the lowest.

    A solution is judged rightly by the thresholds of one interval: above the value of the first wrong step, up to the
    least value before it. So one pass over the ends of the intervals in their order sees every threshold.
    """
    ends: list[tuple[float, bool, int]] = []
    counts = [0, 0]
    totals = [sum(truth is not None for truth in wrong), sum(truth is None for truth in wrong)]
    _both(*totals)
    for steps, truth in zip(values, wrong, strict=True):
        fine = truth is None
        low = -math.inf if truth is None else steps[truth]
        high = min(steps if truth is None else steps[:truth], default=math.inf)
        if low < high:
            counts[fine] += low == -math.inf
            ends += [(low, fine, 1), (high, fine, -1)]
    levels = sorted({value for steps in values for value in steps})
    ends = sorted(each for each in ends if math.isfinite(each[0]))
    best, chosen, at = -1.0, 0.0, 0
    for below, above in zip([-math.inf, *levels], [*levels, math.inf], strict=True):
        while at < len(ends) and ends[at][0] <= below:
            _, fine, by = ends[at]
            counts[fine] += by
            at += 1
        score = _f1(counts[0] / totals[0], counts[1] / totals[1])
        if score > best:
            best, chosen = score, _between(below, above)
    return chosen


async def error_location(
    verifier: Verifier, model: Model, given: Sequence[Solution], *, share: float = 0.5, workers: int = 8
) -> ErrorLocation:
    """The measure, on the solutions that the threshold was not chosen on: it is on `share` of the problems.

    Raises InputError where a part lacks right or wrong solutions, and what `values_of` raises.
    """
    if not 0 < share < 1:
        raise InputError(f"share={share} leaves one of the two parts empty", "Give a number between 0 and 1")
    parts: tuple[list[int], list[int]] = ([], [])
    for number, solution in enumerate(given):
        parts[_place(solution.example.question) >= share].append(number)
    truths = [solution.wrong for solution in given]
    for part in parts:
        _both(sum(truths[k] is not None for k in part), sum(truths[k] is None for k in part))
    values = await values_of(verifier, model, given, workers)
    chosen, rest = (([values[k] for k in part], [truths[k] for k in part]) for part in parts)
    return measured(*rest, best_threshold(*chosen))


def _place(question: str) -> float:
    """A number from 0 to 1 that a question always has."""
    return int.from_bytes(hashlib.sha256(question.encode("utf-8", "replace")).digest()[:8], "big") / 2**64


def _both(wrong: int, right: int) -> None:
    if not wrong or not right:
        raise InputError(f"{wrong} wrong and {right} right solutions measure nothing", "Give more, of both kinds")


def _f1(one: float, other: float) -> float:
    return 2 * one * other / (one + other) if one + other else 0.0


def _between(below: float, above: float) -> float:
    """A threshold above `below` and at most `above`."""
    if below == -math.inf:
        return above
    if above == math.inf:
        return math.nextafter(below, math.inf)
    middle = (below + above) / 2
    return middle if middle > below else above

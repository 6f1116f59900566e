"""Which settings to use: a policy of three efforts from a study, by rules that are stated.

    high     the cheapest setting within the noise of the best: the difference is at most 1 point, and its
             paired interval includes 0
    low      the cheapest setting whose interval lies above the floor, the best constant answer
    medium   the knee between them: the largest gain in accuracy over low for each doubling of its tokens,
             where less than a doubling counts as one

A setting that was chosen for its score has a score that is too good: of many, the luckiest is taken. So the
accuracy that is reported is cross-fitted: the questions are halved at random, each half chooses by the rules,
and what it chose is scored on the other half (Stone, "Cross-Validatory Choice", 1974). The setting itself is
the choice of all questions together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log2
from typing import NamedTuple

import numpy as np

from ponder.errors import InputError
from ponder.evals.statistics import Mean, bootstrap_means, interval_of_mean, mean_interval, paired_difference
from ponder.evals.study import Measurement, Study, best_of, frontier
from ponder.strategies.policy import Effort, Policy

NOISE = 0.01
"""Accuracy that the cheaper one of two settings may lack, where their difference may as well be chance."""

_LEAST = 4
"""Questions that a choice needs: two in each half."""

_DRAWS = 2000


class Choice(NamedTuple):
    """A setting, and the rule that chose it in words."""

    point: Measurement
    rule: str


@dataclass(frozen=True)
class Chosen:
    """An effort's setting, why, and its cross-fitted accuracy; `halves` are the labels that either half chose."""

    point: Measurement
    rule: str
    accuracy: Mean
    halves: tuple[str, str]

    @property
    def why(self) -> str:
        """The rule, and where the accuracy comes from, in one sentence."""
        first, second = self.halves
        if first == second == self.point.label:
            chosen = "both of which chose it as well"
        else:
            chosen = f"which chose {first} and {second}" if first != second else f"which both chose {first}"
        return f"{self.rule}; accuracy of what each half of the questions chose, measured on the other, {chosen}"


def choose(study: Study, seed: int = 0) -> dict[str, Chosen]:
    """The three efforts by name, cheapest first. Raises InputError where there is too little to choose by."""
    settings, n = study.settings, len(study.questions)
    best_of(settings)  # raises where there is none
    if n < _LEAST:
        raise InputError(f"{n} questions are too few to choose a setting by", f"measure on at least {_LEAST}")
    order = np.random.default_rng(seed).permutation(n)
    halves = [sorted(map(int, half)) for half in np.array_split(order, 2)]
    whole = _efforts(settings, study.floor)
    by_half = [_efforts(_on(settings, half), study.floor) for half in halves]
    return {
        name: Chosen(
            choice.point,
            choice.rule,
            _crossed(study, [found[name].point.label for found in by_half], halves),
            (by_half[0][name].point.label, by_half[1][name].point.label),
        )
        for name, choice in whole.items()
    }


def recommend(study: Study, seed: int = 0) -> Policy:
    """The policy of `choose`, with medium as its default."""
    chosen = choose(study, seed)
    return Policy({name: _effort(each) for name, each in chosen.items()}, "medium", study.task, study.model)


def _effort(chosen: Chosen) -> Effort:
    setting = chosen.point.setting
    assert setting is not None
    if setting.budget.tokens is None:
        raise InputError(f"{setting.strategy} was measured without a bound in tokens", "measure it at budgets")
    low, high = chosen.accuracy.interval
    return Effort(
        setting.strategy,
        setting.budget.tokens,
        round(chosen.accuracy.value, 4),
        (round(low, 4), round(high, 4)),
        round(chosen.point.spent.tokens, 1),
        chosen.accuracy.n,
        chosen.why,
    )


# ---------------------------------------------------------------- the rules


def _efforts(settings: Sequence[Measurement], floor: float) -> Mapping[str, Choice]:
    high = _high(settings)
    low = _low(settings, floor, high.point)
    return {"low": low, "medium": _medium(settings, low.point, high.point), "high": high}


def _high(settings: Sequence[Measurement]) -> Choice:
    best = best_of(settings)
    for point in _by_cost(settings):
        if best.accuracy - point.accuracy <= NOISE and _may_be_equal(best, point):
            break
    rule = "the cheapest within the noise of the best"
    return Choice(point, rule if point is not best else "the best, and nothing cheaper is within its noise")


def _low(settings: Sequence[Measurement], floor: float, high: Measurement) -> Choice:
    cheap = [point for point in _by_cost(settings) if point.spent.tokens <= high.spent.tokens]
    for point in cheap:
        if point.interval.low > floor:
            return Choice(point, f"the cheapest clearly above the {floor:.1%} of the best constant answer")
    return Choice(cheap[0], f"the cheapest, as none is clearly above the {floor:.1%} of the best constant answer")


def _medium(settings: Sequence[Measurement], low: Measurement, high: Measurement) -> Choice:
    between = [point for point in frontier(settings) if low.spent.tokens < point.spent.tokens <= high.spent.tokens]

    def rate(point: Measurement) -> float:
        return (point.accuracy - low.accuracy) / max(1.0, log2(point.spent.tokens / max(1.0, low.spent.tokens)))

    knee = max(between, key=rate, default=low)
    if knee is low or rate(knee) <= 0:
        return Choice(low, "the same as low, as nothing up to high gains on it")
    return Choice(knee, "the largest gain over low for each doubling of tokens")


def _by_cost(settings: Sequence[Measurement]) -> list[Measurement]:
    return sorted(settings, key=lambda point: (point.spent.tokens, -point.accuracy))


def _may_be_equal(best: Measurement, point: Measurement) -> bool:
    """Whether the interval of the paired difference includes 0."""
    if best.scores == point.scores:
        return True
    apart = paired_difference([[x] for x in best.scores], [[x] for x in point.scores], draws=_DRAWS)
    return apart.interval.low <= 0 <= apart.interval.high


# ---------------------------------------------------------------- halves


def _on(settings: Sequence[Measurement], half: Sequence[int]) -> list[Measurement]:
    """The measurements on some of the questions alone."""
    table = np.array([[point.scores[index] for index in half] for point in settings])
    columns = bootstrap_means(table.T, draws=_DRAWS).T
    return [
        replace(
            point, scores=tuple(row), accuracy=sum(row) / len(row), interval=interval_of_mean(column, np.array(row))
        )
        for point, row, column in zip(settings, table.tolist(), columns, strict=True)
    ]


def _crossed(study: Study, labels: Sequence[str], halves: Sequence[Sequence[int]]) -> Mean:
    """The accuracy of what either half chose, on the other one."""
    by_label = {point.label: point for point in study.settings}
    scores = [0.0] * len(study.questions)
    for label, half in zip(reversed(labels), halves, strict=True):
        for index in half:
            scores[index] = by_label[label].scores[index]
    return mean_interval([[score] for score in scores])

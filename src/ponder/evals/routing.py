"""From measured answers of several efforts to a calibrated router: when thinking helps, and what routing keeps.

    runs, one an arm -> features and verdicts -> for each arm p(right | features) -> tolerance -> [route] table

What is reported was found out of fold: for each fold of questions the regressions are fitted, their penalties chosen
and the tolerance set on the other folds alone, the last two on predictions that are out of fold there too; then
the questions of the fold are routed. The table that is written is fitted on all questions.

The tolerance is the one that spends least of those with which, on what it is set on, routed accuracy is `margin`
standard errors above

    keep * (accuracy of always taking the dearest arm)

Where there is none, nothing is routed: the dearest arm is always taken. `by_chance` compares with
sending the same shares of questions to the arms at random: a router that has learnt nothing gains nothing over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ponder.errors import InputError
from ponder.evals.calibration import (
    FOLDS,
    Array,
    Fitted,
    Places,
    Ratio,
    Reliability,
    cost_share,
    cross_fit,
    enough,
    folds,
    holds,
    reliability,
    share_kept,
)
from ponder.evals.results import Result, Run, Setting
from ponder.evals.statistics import Difference, Mean, mean_interval, paired_difference
from ponder.strategies.features import CONFIDENCE, NAMES, features
from ponder.strategies.route import Arm, Table
from ponder.types import Question

TOLERANCES: Array = np.linspace(0, 1, 101) ** 2
"""Those that are tried: fine where arms are close."""

_DIGITS = 6
"""Of the numbers in a table."""


# ---------------------------------------------------------------- what was measured


@dataclass(frozen=True)
class Measured:
    """Every arm's answers to the same questions, the arms by rising mean tokens.

    `correct` and `tokens` are (questions, arms), means over repetitions; `confidence` (questions,) is the mean
    log-probability of the cheapest arm's answers, None where the engine told none.
    """

    settings: tuple[Setting, ...]
    ids: tuple[str, ...]
    kinds: tuple[str, ...]
    correct: Array
    tokens: Array
    confidence: Array | None

    @property
    def means(self) -> Array:
        """Mean tokens of each arm (arms,)."""
        return np.asarray(self.tokens.mean(axis=0), dtype=np.float64)


def measured(runs: Sequence[Run]) -> Measured:
    """The questions that every run has answered. Raises InputError for runs that cannot be compared."""
    if len({(run.task, run.model) for run in runs}) != 1:
        raise InputError("the runs are not of one task and one model", "give runs that differ in their setting alone")
    if any(run.setting.budget.tokens is None for run in runs):
        raise InputError("an arm has no budget in tokens", "give each one, such as vote(8)@1024")
    found = [results_by_question(run) for run in runs]
    ids = [name for name in runs[0].questions if all(name in each for each in found)]
    if not ids:
        raise InputError("no question was answered in every run", "give runs of the same questions")
    correct = np.array([[np.mean([result.correct for result in each[name]]) for each in found] for name in ids])
    tokens = np.array([[np.mean([result.cost.tokens for result in each[name]]) for each in found] for name in ids])
    order = np.argsort(tokens.mean(axis=0), kind="stable")
    return Measured(
        tuple(runs[i].setting for i in order),
        tuple(ids),
        tuple(found[0][name][0].kind for name in ids),
        correct[:, order],
        tokens[:, order],
        _confidence([found[order[0]][name] for name in ids]),
    )


def results_by_question(run: Run) -> dict[str, list[Result]]:
    """All repetitions of each question."""
    found: dict[str, list[Result]] = {}
    for result in run.results:
        found.setdefault(result.question, []).append(result)
    return found


def _confidence(results: Sequence[Sequence[Result]]) -> Array | None:
    """Of the first sample of each, as the router sees it; the mean of the others where one has none."""
    first = [[result.samples[0].weight for result in each if result.samples] for each in results]
    values = [float(np.mean(np.log(np.maximum(each, 1e-300)))) if each else np.nan for each in first]
    known = [value for value in values if not np.isnan(value)]
    if not any(known):  # a weight of 1 is what is written where nothing is known
        return None
    return np.array([np.mean(known) if np.isnan(value) else value for value in values], dtype=np.float64)


# ---------------------------------------------------------------- when thinking helps


@dataclass(frozen=True)
class Helped:
    """What thinking did to one kind of question (None: all): accuracies, tokens, and the paired difference."""

    kind: str | None
    direct: Mean
    thinking: Mean
    difference: Difference
    tokens: tuple[float, float]


def when_thinking_helps(direct: Run, thinking: Run) -> list[Helped]:
    """All questions, then each kind where there are several, in the order of the task.

    Intervals are of 95% each: of twenty kinds, one is expected to lie outside its own by chance.
    """
    both = [results_by_question(direct), results_by_question(thinking)]
    shared = [name for name in direct.questions if name in both[1]]
    if not shared:
        raise InputError("no question was answered in both runs", "give runs of the same questions")
    kinds: dict[str, list[str]] = {}
    for name in shared:
        kinds.setdefault(both[0][name][0].kind, []).append(name)
    return [_helped(None, shared, both), *(_helped(kind, kinds[kind], both) for kind in kinds if len(kinds) > 1)]


def _helped(kind: str | None, names: Sequence[str], both: Sequence[Mapping[str, Sequence[Result]]]) -> Helped:
    scores = [[[result.correct for result in each[name]] for name in names] for each in both]
    spent = [
        float(np.mean([np.mean([result.cost.tokens for result in each[name]]) for name in names])) for each in both
    ]
    direct, thinking = (mean_interval(each) for each in scores)
    return Helped(kind, direct, thinking, paired_difference(scores[1], scores[0]), (spent[0], spent[1]))


# ---------------------------------------------------------------- the router


@dataclass(frozen=True)
class RoutedArm:
    """One arm: what it reaches alone, the share of questions routed to it, and how good its predictions are."""

    setting: Setting
    accuracy: Mean
    tokens: float
    share: float
    strength: float
    reliability: Reliability


@dataclass(frozen=True)
class Calibrated:
    """A router's table, and what it did out of fold, compared with always taking the dearest arm, the last.

    `kept` is the share of that arm's accuracy (None where that is 0), `spent` the share of its tokens.
    """

    table: Table
    arms: tuple[RoutedArm, ...]
    accuracy: Mean
    tokens: float
    kept: Ratio | None
    spent: Ratio
    difference: Difference
    by_chance: Difference
    n: int


def calibrate(
    runs: Sequence[Run],
    questions: Mapping[str, Question],
    *,
    keep: float = 0.95,
    margin: float = 1.0,
    first: bool = False,
    k: int = FOLDS,
) -> Calibrated:
    """The router between the runs' settings that keeps `keep` of the dearest one's accuracy, `questions` by their ids.

    `margin` is its safety in standard errors; 0 trusts the means. With `first` the cheapest arm is always drawn, and
    its confidence decides too. Raises InputError for fewer than two arms, too few questions, and a `first` arm
    whose engine told no log-probabilities.
    """
    if len(runs) < 2:
        raise InputError("a router needs arms to choose from", "give at least two")
    if not 0 < keep <= 1:
        raise InputError(f"keeping {keep:g} of the accuracy cannot be asked for", "give a share such as 0.95")
    if not margin >= 0:
        raise InputError(f"a margin of {margin:g} standard errors cannot be", "give at least 0")
    data = measured(runs)
    enough(len(data.ids))
    names, x = _matrix(data, questions, first)
    fits = [cross_fit(x, right, data.ids, k) for right in data.correct.T]
    allowed = tolerance(_together(fits), data.means, data.correct, keep, margin)
    chosen, fell_back = _held_out(x, data, keep, margin, k)
    return _calibrated(data, names, x, fits, allowed, chosen, fell_back, first, keep)


def decide(expected: Array, tokens: Array, allowed: float) -> Places:
    """The arm (questions,) that `strategies.route` chooses for expected accuracies (questions, arms)."""
    good = expected >= expected.max(axis=1, keepdims=True) - allowed
    return np.asarray(np.where(good, tokens, np.inf).argmin(axis=1), dtype=np.int64)


def tolerance(expected: Array, tokens: Array, correct: Array, keep: float, margin: float = 1.0) -> float | None:
    """The tolerance that spends least of those that keep `keep` of the last arm's accuracy; None where none does.

    Of tolerances that spend the same it is the smallest.

    `expected` and `correct` are (questions, arms): predictions out of fold, and what was right.
    """
    n = len(correct)
    if not correct[:, -1].any():  # nothing can be lost
        return float(TOLERANCES[-1])
    chosen = np.stack([decide(expected, tokens, allowed) for allowed in TOLERANCES])
    differences = correct[np.arange(n), chosen] - keep * correct[:, -1]
    good = holds(differences.sum(axis=1), (differences**2).sum(axis=1), n, margin)
    spent = np.where(good, tokens[chosen].mean(axis=1), np.inf)
    return float(TOLERANCES[spent.argmin()]) if good.any() else None


def _matrix(data: Measured, questions: Mapping[str, Question], first: bool) -> tuple[tuple[str, ...], Array]:
    """The names of the features, and their values (questions, features)."""
    missing = [name for name in data.ids if name not in questions]
    if missing:
        raise InputError(f"the task has no question {missing[0]!r}", "give the task that the runs are of")
    rows = [list(features(questions[name]).values()) for name in data.ids]
    x = np.array(rows, dtype=np.float64)
    if not first:
        return NAMES, x
    if data.confidence is None:
        raise InputError("the engine told no log-probabilities of the first answers", "calibrate without --first")
    return (*NAMES, CONFIDENCE), np.column_stack([x, data.confidence])


def _together(fits: Sequence[Fitted]) -> Array:
    return np.column_stack([each.held_out for each in fits])


def _held_out(x: Array, data: Measured, keep: float, margin: float, k: int) -> tuple[Places, npt.NDArray[np.bool_]]:
    """The arm that each question gets from a router that was made without its fold, and where that was no router."""
    fold = folds(data.ids, k)
    chosen, fell_back = np.empty(len(fold), dtype=np.int64), np.zeros(len(fold), dtype=bool)
    for part in range(k):
        inside = fold != part
        ids = [name for name, used in zip(data.ids, inside, strict=True) if used]
        fits = [cross_fit(x[inside], right, ids, k) for right in data.correct[inside].T]
        means = data.tokens[inside].mean(axis=0)
        allowed = tolerance(_together(fits), means, data.correct[inside], keep, margin)
        expected = np.column_stack([each.logistic(x[~inside]) for each in fits])
        fell_back[~inside] = allowed is None
        chosen[~inside] = len(means) - 1 if allowed is None else decide(expected, means, allowed)
    return chosen, fell_back


def _calibrated(
    data: Measured, names: Sequence[str], x: Array, fits: Sequence[Fitted], allowed: float | None, chosen: Places,
    fell_back: npt.NDArray[np.bool_], first: bool, keep: float,
) -> Calibrated:  # fmt: skip
    rows, n = np.arange(len(chosen)), len(chosen)
    routed, always = data.correct[rows, chosen], data.correct[:, -1]
    spent = data.tokens[rows, chosen]
    if first:  # the first answer is paid for, whichever arm follows; no router draws none
        spent = spent + np.where((chosen == 0) | fell_back, 0.0, data.tokens[:, 0])
    shares = np.bincount(chosen, minlength=len(fits)) / n
    arms = tuple(
        RoutedArm(
            setting,
            mean_interval(data.correct[:, a, None].tolist()),
            float(data.means[a]),
            float(shares[a]),
            fits[a].strength,
            reliability(fits[a].held_out, data.correct[:, a], bins=max(2, min(10, n // 20))),
        )
        for a, setting in enumerate(data.settings)
    )
    accuracy = mean_interval(routed[:, None].tolist())
    kept, tokens = share_kept(routed, always), cost_share(spent, data.tokens[:, -1])
    told: dict[str, Any] = {
        "questions": n,
        "keep": keep,
        "always": f"{data.settings[-1].strategy}@{data.settings[-1].budget.tokens}",
        "accuracy": _short(accuracy.value),
        "interval": [_short(end) for end in accuracy.interval],
        "tokens": _short(float(spent.mean())),
        "token_share": _short(tokens.value),
    }
    if kept is not None:
        told |= {"kept": _short(kept.value), "kept_interval": [_short(end) for end in kept.interval]}
    return Calibrated(
        _table(data, names, x, fits, allowed, first, told),
        arms,
        accuracy,
        float(spent.mean()),
        kept,
        tokens,
        paired_difference(routed[:, None].tolist(), always[:, None].tolist()),
        paired_difference(routed[:, None].tolist(), (data.correct @ shares)[:, None].tolist()),
        n,
    )


def _table(
    data: Measured, names: Sequence[str], x: Array, fits: Sequence[Fitted], allowed: float | None, first: bool,
    told: Mapping[str, Any],
) -> Table:  # fmt: skip
    """The table for the policy: of the dearest arm alone where no tolerance keeps what is to be kept."""
    places = range(len(fits)) if allowed is not None else [len(fits) - 1]
    used = [j for j in range(len(names)) if any(fits[a].logistic.weights[j] for a in places)]
    if allowed is None and first:  # what is never drawn tells nothing
        used = []
    arms = tuple(
        Arm(
            data.settings[a].strategy,
            data.settings[a].budget.tokens or 1,
            max(_short(float(data.means[a])), 1e-3),
            _short(fits[a].logistic.bias) if used else _log_odds(fits[a]),
            {names[j]: _short(float(fits[a].logistic.weights[j])) for j in used},
            _short(float(data.correct[:, a].mean())),
        )
        for a in places
    )
    seen = {names[j]: (_short(float(x[:, j].min())), _short(float(x[:, j].max()))) for j in used}
    return Table(arms, allowed or 0.0, first and allowed is not None, seen, told)


def _log_odds(fitted: Fitted) -> float:
    share = float(np.clip(fitted.held_out.mean(), 1e-6, 1 - 1e-6))
    return _short(float(np.log(share / (1 - share))))


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")

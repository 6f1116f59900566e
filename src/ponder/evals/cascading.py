"""The threshold of a cascade, from measured answers of a small and a large model to the same questions.

    accuracy(t) = mean_i  (large_i if c_i < t else small_i)
    cost(t)     = mean_i  small cost_i + [c_i < t] large cost_i

with the small model's confidence c_i. A lower t costs less. It is lowered from infinity, where the large model is
always asked, as long as accuracy stays so much within the large model's, by `margin` standard errors: until the
first failure, so that no lucky threshold far below is taken (fixed sequence testing). What is reported was found out
of fold: each fold of questions goes by the threshold of the others.

Sources: Chen, Zaharia and Zou, FrugalGPT (2023), section 3; Angelopoulos et al., Learn then Test (2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ponder.errors import InputError
from ponder.evals.calibration import FOLDS, Array, Places, Ratio, cost_share, enough, folds, holds
from ponder.evals.estimators import majority
from ponder.evals.results import Judged, Result, Run
from ponder.evals.routing import results_by_question
from ponder.evals.statistics import Difference, Interval, paired_difference

_RESAMPLES = 200
UNITS = ("flops", "dollars", "tokens")


@dataclass(frozen=True)
class Answers:
    """Both models' answers to the same questions, all arrays (questions,): the small one's confidence, and for each
    model whether it was right and what it cost in `unit`."""

    ids: tuple[str, ...]
    confidence: Array
    small: Array
    large: Array
    small_cost: Array
    large_cost: Array
    unit: str = "tokens"


@dataclass(frozen=True)
class Threshold:
    """Where to ask the large model: below `value` of the small one's confidence; at infinity always.

    `spread` is where 95% of the thresholds lie that resampled questions give. The rest was found out of fold:
    accuracy, what it is above that of always asking the large model, what is spent in comparison with that (`cost`,
    above 1 where the small model is asked in vain), and the share of questions that go to the large one.
    """

    value: float
    spread: Interval
    accuracy: float
    difference: Difference
    cost: Ratio
    escalated: float
    unit: str
    n: int


def answers_of(small: Run, large: Run, confidence: str = "logprob") -> Answers:
    """What two runs of one task have in common. Costs are in FLOPs where both models' sizes are known, else in
    dollars where their prices are, else in tokens.

    `confidence` as of `strategies.cascade`, or the name of a selecting verifier whose scores the small run has.
    Raises InputError for runs of other questions, or a confidence that the run does not tell.
    """
    ours, theirs = results_by_question(small), results_by_question(large)
    ids = tuple(name for name in small.questions if name in theirs)
    if small.task != large.task or not ids:
        raise InputError("the runs are not of the same questions", "evaluate both models on one file")
    costs = [result.cost for run in (small, large) for result in run.results]
    known = {unit: [getattr(cost, unit) for cost in costs] for unit in UNITS}
    unit = next((unit for unit, each in known.items() if None not in each and any(each)), "tokens")

    def mean(results: Mapping[str, Sequence[Result]], value: Callable[[Result], float]) -> Array:
        return np.array([np.mean([value(result) for result in results[name]]) for name in ids], dtype=np.float64)

    return Answers(
        ids,
        mean(ours, lambda result: confidence_of(result, confidence)),
        mean(ours, lambda result: result.correct),
        mean(theirs, lambda result: result.correct),
        mean(ours, lambda result: float(getattr(result.cost, unit))),
        mean(theirs, lambda result: float(getattr(result.cost, unit))),
        unit,
    )


def confidence_of(result: Result, confidence: str) -> float:
    """The confidence of a result, as `strategies.cascade` has it; 0 where nothing was answered."""
    kept = [sample for sample in result.samples if sample.kept]
    leader = _leader(kept)
    if leader is None:
        return 0.0
    if confidence == "logprob":
        return leader.weight
    if confidence == "agreement":
        return sum(sample.answer == leader.answer for sample in kept) / len(kept) if leader.answer is not None else 0.0
    if confidence not in leader.scores:
        raise InputError(
            f"the run has no scores of {confidence!r}", "take logprob or agreement, or evaluate with that selector"
        )
    return leader.scores[confidence]


def _leader(samples: Sequence[Judged]) -> Judged | None:
    """The first sample that gives the answer of most."""
    answer = majority([sample.answer for sample in samples]) if samples else None
    return next((sample for sample in samples if sample.answer == answer), None)


def threshold(
    answers: Answers, *, within: float = 0.02, margin: float = 1.0, k: int = FOLDS, seed: int = 0
) -> Threshold:
    """The least costly threshold at which a cascade's accuracy stays `within` so much of the large model's.

    `margin` is the safety in standard errors (see `calibration.holds`). Raises InputError for too few questions, or a
    `within` or `margin` that cannot be.
    """
    n = len(answers.ids)
    enough(n)
    if not 0 <= within < 1 or not margin >= 0:
        raise InputError(f"within {within:g} by {margin:g} standard errors cannot be", "give such as 0.02 and 1")
    everyone, fold = np.arange(n), folds(answers.ids, k)
    cuts = np.array([lowest(answers, everyone[fold != part], within, margin) for part in range(k)])
    asked = answers.confidence < cuts[fold]
    routed = np.where(asked, answers.large, answers.small)
    random = np.random.default_rng(seed)
    drawn = np.array([lowest(answers, random.integers(0, n, n), within, margin) for _ in range(_RESAMPLES)])
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")  # those of infinity do not interpolate
    return Threshold(
        value=lowest(answers, everyone, within, margin),
        spread=Interval(float(low), float(high)),
        accuracy=float(routed.mean()),
        difference=paired_difference(routed[:, None].tolist(), answers.large[:, None].tolist()),
        cost=cost_share(answers.small_cost + asked * answers.large_cost, answers.large_cost),
        escalated=float(asked.mean()),
        unit=answers.unit,
        n=n,
    )


def lowest(answers: Answers, among: Places, within: float, margin: float = 1.0) -> float:
    """The threshold reached by lowering it from infinity as long as that holds, on the questions at `among`."""
    confidence = answers.confidence[among]
    order = np.argsort(-confidence, kind="stable")
    ends = np.flatnonzero(np.diff(confidence[order], append=-np.inf))  # questions of equal confidence go together
    gained, n = (answers.small - answers.large)[among][order], len(order)
    sums = np.cumsum(gained)[ends]
    # A question's difference is what was gained, or 0 where the large model is asked, plus what may be lost.
    squares = np.cumsum(gained**2)[ends] + 2 * within * sums + n * within**2
    good = holds(sums + n * within, squares, n, margin)
    last = len(good) if good.all() else int(np.argmin(good))
    return float(confidence[order][ends[last - 1]]) if last else np.inf

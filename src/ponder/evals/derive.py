"""From runs to a study: every series of measurements with its intervals, differences and fits.

All intervals come from one bootstrap over questions, so what is compared was asked the same questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from ponder.errors import InputError
from ponder.evals import pooled, scaling
from ponder.evals.pooled import Draws, Estimate, mean_spent
from ponder.evals.results import Result, Run, Setting
from ponder.evals.scaling import Gain
from ponder.evals.statistics import Difference, bootstrap_means, interval_of_mean, paired_difference
from ponder.evals.study import COVERAGE, Disagreement, Gap, Made, Measurement, Series, Study, best_of


class Selector(NamedTuple):
    """How best of k by a verifier is written as a strategy, {k} being the number; nothing where it cannot be.

    `tokens` of the budget are set aside to score one sample.
    """

    expression: str
    tokens: int = 0


SELECTORS: Mapping[str, Selector] = {"arithmetic_steps": Selector("best_of_n({k})")}
"""By the names under which a pool has their scores. What no expression says is measured, and cannot be chosen."""

_DRAWS, _FITS = 4000, 200
"""Bootstrap replicates of means, and of fitted curves."""

_LEAST_EARLY = 8
"""Samples from which on stopping early is of interest: four have to start in any case."""


def study_of(
    pool: Run | None,
    runs: Sequence[Run] = (),
    *,
    floor: tuple[str, float] = ("", 0.0),
    made: Made | None = None,
    risks: Sequence[float] = (0.05,),
    selectors: Mapping[str, Selector] = SELECTORS,
    disagreements: Sequence[Disagreement] = (),
    notes: Sequence[str] = (),
    seed: int = 0,
) -> Study:
    """The study of a pool of samples (a run of `vote(N)`) and of runs of other strategies at their budgets.

    Only questions that all runs have count. `risks` are those at which votes stop early. `selectors` are
    those that scored the pool. `floor` is as `tasks.constant_floor` gives it.
    Raises InputError where there is nothing, or where the runs have no question in common.
    """
    everything = [*([pool] if pool else []), *runs]
    questions, told = _common(everything)
    lines = [*_of_runs(runs, questions)]
    if pool is not None:
        draws = pooled.draws_of(pool, questions)
        lines += _of_pool(draws, pool, risks, selectors, seed)
        told += _short_pools(draws)
    series = _measured(lines, seed)
    return Study(
        everything[0].task,
        everything[0].model,
        questions,
        floor[1],
        floor[0],
        series,
        _gap(series, seed),
        tuple(disagreements),
        (*notes, *told),
        made or Made(sha256=everything[0].sha256, temperature=everything[0].temperature),
    )


class _Place(NamedTuple):
    """A measurement before its interval."""

    label: str
    setting: Setting | None
    estimate: Estimate
    samples: int | None = None


class _Line(NamedTuple):
    """A series before its intervals."""

    name: str
    points: list[_Place]


def _common(runs: Sequence[Run]) -> tuple[tuple[str, ...], list[str]]:
    """The questions that all runs have, and what has to be said about the others."""
    if not runs:
        raise InputError("there is nothing to study", "give a pool of samples, or runs of strategies")
    if len({(run.task, run.model, run.sha256) for run in runs}) > 1:
        raise InputError("the runs are of different tasks or models", "study one model on one task at a time")
    shared = set.intersection(*(set(run.questions) for run in runs))
    found = tuple(name for name in runs[0].questions if name in shared)
    if not found:
        raise InputError("the runs have no question in common", "ask all of them the same questions")
    asked = len(set().union(*(run.questions for run in runs)))
    missing = [f"Left out, as some runs did not finish them: {asked - len(found)} of {asked} questions."]
    return found, missing if asked > len(found) else []


def _of_runs(runs: Sequence[Run], questions: Sequence[str]) -> list[_Line]:
    """A line a strategy, its budgets in rising order."""
    by_strategy: dict[str, list[Run]] = {}
    for run in runs:
        by_strategy.setdefault(run.setting.strategy, []).append(run)
    lines = []
    for name, members in by_strategy.items():
        members.sort(key=lambda run: run.setting.budget.tokens or float("inf"))
        points = [_Place(f"{name}, {_bound(run.setting)}", run.setting, _estimate(run, questions)) for run in members]
        lines.append(_Line(name, points))
    return lines


def _bound(setting: Setting) -> str:
    return "no bound" if setting.budget.tokens is None else f"{setting.budget.tokens} tokens"


def _estimate(run: Run, questions: Sequence[str]) -> Estimate:
    """The mean verdict and cost of each question over its repetitions."""
    results: dict[str, list[Result]] = {name: [] for name in questions}
    for result in run.results:
        if result.question in results:
            results[result.question].append(result)
    scores = tuple(sum(each.correct for each in found) / len(found) for found in results.values())
    return Estimate(scores, mean_spent([mean_spent([each.cost for each in found]) for found in results.values()]))


def _of_pool(
    draws: Sequence[Draws], pool: Run, risks: Sequence[float], selectors: Mapping[str, Selector], seed: int
) -> list[_Line]:
    """A line for votes, weighted votes, votes that stop early, best of k by each selector, and coverage."""
    ks = pooled.sizes(draws)
    most = max((len(result.samples) for result in pool.results), default=0)
    total = pool.setting.budget.tokens

    def setting(selector: Selector, k: int) -> Setting | None:
        # One draw is no setting: asked for a single sample, a greedy model would not draw.
        if k == 1 or not selector.expression:
            return None
        tokens = None if total is None else (total // most + selector.tokens) * k
        return Setting(selector.expression.format(k=k), replace(pool.setting.budget, tokens=tokens))

    def line(
        name: str, way: Selector, estimate: Callable[[int], Estimate], least: int = 2, label: str = "{k} samples"
    ) -> _Line:
        places = []
        for k in ks:
            if k >= least:
                found = setting(way, k)
                places.append(_Place(found.strategy if found else label.format(k=k), found, estimate(k), k))
        return _Line(name, places)

    lines = [line("vote", Selector("vote({k})"), partial(pooled.votes, draws, seed=seed), 1, "one sample")]
    if any(sample.weight != 1 for each in draws for sample in each.kept):
        way, weighted = Selector("vote({k}, weight='logprob')"), partial(pooled.votes, draws, weighted=True, seed=seed)
        lines.append(line("vote logprob", way, weighted))
    for risk in risks:
        way, early = Selector(f"vote({{k}}, risk={risk:g})"), partial(pooled.stopped_early, draws, risk=risk, seed=seed)
        lines.append(line(f"vote risk {risk:g}", way, early, _LEAST_EARLY))
    for name in pooled.selectors(draws):
        way, best = selectors.get(name, Selector("")), partial(pooled.best, draws, selector=name)
        lines.append(line(f"best_of_n({name})", way, best, label=f"best of {{k}} by {name}"))
    lines.append(line(COVERAGE, Selector(""), partial(pooled.coverage, draws), 1, "coverage of {k}"))
    return [each for each in lines if each.points]


def _short_pools(draws: Sequence[Draws]) -> list[str]:
    counts = [len(each.kept) for each in draws]
    most, few = max(counts), sum(count < max(counts) for count in counts)
    if not few:
        return []
    return [
        f"{few} of {len(counts)} questions have fewer than {most} samples that ended well "
        f"(the fewest: {min(counts)}); larger votes there take all that there are."
    ]


def _measured(lines: Sequence[_Line], seed: int) -> tuple[Series, ...]:
    """The series with their intervals, differences and gains."""
    flat = [place for line in lines for place in line.points]
    if not flat:
        raise InputError("no sample of the pool ended well", "look at its traces: ponder traces list")
    replicates = bootstrap_means(np.array([place.estimate.scores for place in flat]).T, draws=_DRAWS, seed=seed)
    points = [_measurement(place, column) for place, column in zip(flat, replicates.T, strict=True)]
    chosen = [point for point in points if point.setting is not None]
    best = best_of(chosen) if chosen else None
    series, at = [], 0
    for line in lines:
        upto = at + len(line.points)
        gain = _gain(points[at:upto], replicates[:_FITS, at:upto])
        compared = tuple(_compared(points[at:upto], best, seed))
        series.append(Series(line.name, compared, bound=line.name == COVERAGE, gain=gain))
        at = upto
    return tuple(series)


def _measurement(place: _Place, replicates: scaling.Array) -> Measurement:
    scores = place.estimate.scores
    accuracy, interval = sum(scores) / len(scores), interval_of_mean(replicates, np.array(scores))
    return Measurement(place.label, place.setting, place.estimate.spent, accuracy, interval, scores, place.samples)


def _gain(points: Sequence[Measurement], replicates: scaling.Array) -> Gain | None:
    """What ten times the compute is predicted to buy, where there are enough points to say."""
    placed = [scaling.Point(point.spent.tokens, point.accuracy, len(point.scores)) for point in points]
    try:
        return scaling.what_ten_times_buys(placed, replicates=replicates.tolist())
    except InputError:  # fewer than three different costs
        return None


def _compared(points: Sequence[Measurement], best: Measurement | None, seed: int) -> Iterable[Measurement]:
    for before, point in zip([None, *points], points, strict=False):
        step = None if before is None else difference(point, before, seed)
        yield replace(point, step=step, short=None if best is None else difference(best, point, seed))


def difference(a: Measurement, b: Measurement, seed: int = 0) -> Difference:
    """a minus b, paired by question."""
    return paired_difference([[x] for x in a.scores], [[x] for x in b.scores], draws=_DRAWS, seed=seed)


def _gap(series: Sequence[Series], seed: int) -> Gap | None:
    """Coverage against the best selection, at the most samples that were drawn."""
    covered = next((each.points[-1] for each in series if each.bound), None)
    points = [point for each in series if not each.bound for point in each.points]
    selected = [point for point in points if covered and point.samples == covered.samples and point.setting]
    if covered is None or not selected:
        return None
    chosen = best_of(selected)
    return Gap(covered.label, chosen.label, difference(covered, chosen, seed))

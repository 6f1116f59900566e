"""Accuracy against compute: the frontier, curves, and what ten times the compute would buy.

Two curves with bounded parameters, in x / x0 with x0 the least compute measured:

    saturating  b + (a - b) (1 - (x / x0)^-c)          0 <= b <= a <= 1,  0.02 <= c <= 5
    logistic    1 / (1 + exp(-(s log10(x / x0) + t)))  -10 <= s <= 10,  -12 <= t <= 12

The first is the power law of test-time scaling with its ceiling (a - (a - b) (x / x0)^-c), the second the
sigmoid in log compute (Ruan, Maddison and Hashimoto, "Observational Scaling Laws", 2024, section 3), which
may also fall. They are fitted by least squares, each point weighted by its questions; that with the lower
leave-one-out error is taken (Stone, 1974).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ponder.errors import InputError
from ponder.evals.statistics import Interval, bootstrap_means, percentiles

Array = npt.NDArray[np.float64]

_LEAST = 3
"""Points that a curve needs: with two, nothing would be left to tell the curves apart."""

_PRIOR = 1e-9
"""Weight of the pull to the middle of the bounds: it decides only where the points leave a parameter open."""


@dataclass(frozen=True)
class Point:
    """What `n` questions came to at one setting: the mean accuracy, and the tokens spent on a question."""

    tokens: float
    accuracy: float
    n: int
    interval: Interval | None = None


@dataclass(frozen=True)
class Curve:
    """A fitted curve. `parameters` are (a, b, c) or (s, t); `error` is the root mean square of leave-one-out."""

    kind: str
    parameters: tuple[float, ...]
    start: float
    error: float

    def __call__(self, tokens: float) -> float:
        """The accuracy expected at `tokens` a question."""
        if not tokens > 0:
            raise InputError(f"{tokens} tokens have no logarithm", "give more than 0")
        place = np.array([np.log10(tokens / self.start)])
        return float(_KINDS[self.kind].values(np.array([self.parameters]), place)[0, 0])


@dataclass(frozen=True)
class Gain:
    """What `times` the compute is predicted to add to the accuracy at `tokens`, the most that was measured."""

    value: float
    interval: Interval
    tokens: float
    times: float
    curve: Curve


@dataclass(frozen=True)
class _Kind:
    """A family of curves. P points lie at `places` (P,), log10(x / x0); M fits run side by side."""

    bounds: tuple[tuple[float, float], ...]
    """Of what is searched on a grid."""
    steps: int
    losses: Callable[[Array, Array, Array, Array], Array]
    """(grid (M or 1, G, D), places, accuracies (M, P), weights (M, P)) -> squared errors (M, G)."""
    complete: Callable[[Array, Array, Array, Array], Array]
    """(found (M, D), places, accuracies, weights) -> all parameters (M, all)."""
    values: Callable[[Array, Array], Array]
    """(all parameters (M, all), places) -> accuracies (M, P)."""


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: at most its tokens and at least its accuracy, one of them strictly better.

    They come by rising tokens. Points equal in both stay together.
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.tokens, -point.accuracy)):
        last = kept[-1] if kept else None
        equal = last is not None and (last.tokens, last.accuracy) == (point.tokens, point.accuracy)
        if last is None or equal or point.accuracy > last.accuracy:
            kept.append(point)
    return kept


def fit(points: Sequence[Point]) -> Curve:
    """The curve through `points` with the lower leave-one-out error. Raises InputError for fewer than 3."""
    places, weights = _placed(points)
    accuracies = np.array([[point.accuracy for point in points]])
    (curve,) = _chosen(places, accuracies, weights, min(point.tokens for point in points))
    return curve


def what_ten_times_buys(
    points: Sequence[Point],
    scores: Sequence[Sequence[float]] | None = None,
    replicates: Sequence[Sequence[float]] | None = None,
    confidence: float = 0.95,
    *,
    times: float = 10,
    draws: int = 500,
    seed: int = 0,
) -> Gain:
    """curve(times x) - curve(x) at the most compute measured, x, with its bootstrap interval.

    Give either `scores` (points, questions), each question's mean score at each point, with the same questions
    at all of them, or `replicates` (replicates, points) of the accuracies. Each replicate chooses its own kind
    of curve, so the interval includes the doubt about the kind; it cannot include that about curves of other
    kinds. Raises InputError for fewer than 3 points.
    """
    curve = fit(points)
    if not times > 0:
        raise InputError(f"{times} times the compute cannot be", "give more than 0")
    if (scores is None) == (replicates is None):
        raise InputError("the interval has no source, or two", "give either `scores` or `replicates`")
    if scores is not None:
        drawn = bootstrap_means(_scores(points, scores), draws=draws, seed=seed)
    else:
        drawn = np.array(replicates, dtype=np.float64)
        if drawn.ndim != 2 or drawn.shape[1] != len(points) or not np.isfinite(drawn).all():
            raise InputError("the replicates do not fit the points", "give rows of one accuracy a point")
    places, weights = _placed(points)
    most = max(point.tokens for point in points)
    curves = _chosen(places, drawn, weights, curve.start)
    gains = np.array([each(times * most) - each(most) for each in curves])
    return Gain(curve(times * most) - curve(most), percentiles(gains, confidence), most, times, curve)


def _placed(points: Sequence[Point]) -> tuple[Array, Array]:
    """log10(x / x0) of each point (P,), and its share of all questions (P,)."""
    if len({point.tokens for point in points}) < _LEAST:
        raise InputError(
            f"a curve needs {_LEAST} points of different compute", "measure at more budgets, best a factor of 2 apart"
        )
    if not all(0 < p.tokens < np.inf and 0 <= p.accuracy <= 1 and p.n > 0 for p in points):
        raise InputError("a point cannot be", "give tokens and n above 0, and accuracies from 0 to 1")
    tokens = np.array([point.tokens for point in points], dtype=np.float64)
    counts = np.array([point.n for point in points], dtype=np.float64)
    return np.log10(tokens / tokens.min()), counts / counts.sum()


def _scores(points: Sequence[Point], scores: Sequence[Sequence[float]]) -> Array:
    """`scores` as (questions, points)."""
    if len(scores) != len(points) or len({len(row) for row in scores}) != 1 or len(scores[0]) == 0:
        raise InputError("the scores do not fit the points", "give a row a point, with the same questions in each")
    table = np.array(scores, dtype=np.float64).T
    if not np.allclose(table.mean(axis=0), [point.accuracy for point in points], rtol=0, atol=1e-6):
        raise InputError("the scores' means are not the points' accuracies", "give rows in the order of the points")
    return table


def _chosen(places: Array, accuracies: Array, weights: Array, start: float) -> list[Curve]:
    """For each row of `accuracies` (M, P) the curve whose leave-one-out error is lower."""
    errors, found = {}, {}
    everyone = np.broadcast_to(weights, accuracies.shape)
    for name, kind in _KINDS.items():
        squares = np.zeros(len(accuracies))
        for out in range(len(places)):
            others = everyone.copy()
            others[:, out] = 0
            predicted = kind.values(_fit(kind, places, accuracies, others), places[out : out + 1])[:, 0]
            squares += weights[out] * (predicted - accuracies[:, out]) ** 2
        errors[name] = np.sqrt(squares)
        found[name] = _fit(kind, places, accuracies, everyone)
    curves = []
    for row in range(len(accuracies)):
        name = min(_KINDS, key=lambda name: float(errors[name][row]))
        curves.append(Curve(name, tuple(map(float, found[name][row])), start, float(errors[name][row])))
    return curves


def _fit(kind: _Kind, places: Array, accuracies: Array, weights: Array) -> Array:
    """All parameters (M, all) of the least squares: a grid over the bounds, then finer ones around the best."""
    low, high = np.array(kind.bounds).T
    middle, reach = (low + high) / 2, (high - low) / 2
    best = np.broadcast_to(middle, (len(accuracies), len(middle)))
    side, steps = 1.0, kind.steps
    while side > 1e-6:
        mesh = np.meshgrid(*[np.linspace(-side, side, steps)] * len(middle), indexing="ij")
        offsets = np.stack(mesh, axis=-1).reshape(-1, len(middle)) * reach
        centres = best[:1] if side == 1 else best
        grid = np.clip(centres[:, None, :] + offsets, low, high)
        losses = kind.losses(grid, places, accuracies, weights)
        losses = losses + _PRIOR * (((grid - middle) / reach) ** 2).sum(axis=-1)
        chosen = losses.argmin(axis=1)
        best = grid[np.arange(len(chosen)) if len(grid) > 1 else 0, chosen]
        side, steps = side * 4 / (steps - 1), 9  # two steps wide: narrow valleys lead away from the coarse best
    return kind.complete(best, places, accuracies, weights)


def _logistic(found: Array, places: Array) -> Array:
    """(..., P) of the parameters (..., 2)."""
    return np.asarray(1 / (1 + np.exp(-(found[..., :1] * places + found[..., 1:]))), dtype=np.float64)


def _logistic_losses(grid: Array, places: Array, accuracies: Array, weights: Array) -> Array:
    values = _logistic(grid, places)
    crossed = values @ (weights * accuracies)[:, :, None]
    squared = values**2 @ weights[:, :, None]
    losses: Array = (squared - 2 * crossed)[:, :, 0] + (weights * accuracies**2).sum(axis=1)[:, None]
    return losses


def _saturating(found: Array, places: Array) -> Array:
    ceiling, floor, logarithm = found[:, 0:1], found[:, 1:2], np.log10(found[:, 2:3])
    return np.asarray(floor + (ceiling - floor) * _risen(logarithm, places), dtype=np.float64)


def _risen(logarithm: Array, places: Array) -> Array:
    """1 - (x / x0)^-c (..., P) of log10(c) (..., 1)."""
    return np.asarray(-np.expm1(-np.log(10) * 10**logarithm * places), dtype=np.float64)


def _saturating_losses(grid: Array, places: Array, accuracies: Array, weights: Array) -> Array:
    return _line(_risen(grid, places), accuracies, weights)[2]


def _saturating_complete(found: Array, places: Array, accuracies: Array, weights: Array) -> Array:
    floor, rise, _ = _line(_risen(found[:, None, :], places), accuracies, weights)
    return np.concatenate([floor + rise, floor, 10**found], axis=1)


def _line(risen: Array, accuracies: Array, weights: Array) -> tuple[Array, Array, Array]:
    """floor, rise and squared error (M, G each) of the best y = floor + rise v; v is `risen` (M or 1, G, P).

    For a given exponent the curve is a line in v, under floor >= 0, rise >= 0, floor + rise <= 1. The optimum
    of a convex loss over that triangle is that of the plane where this lies inside, else the best of the
    three sides.
    """
    total = weights.sum(axis=1)[:, None]
    y = (weights * accuracies).sum(axis=1)[:, None]
    yy = (weights * accuracies**2).sum(axis=1)[:, None]
    v = (risen @ weights[:, :, None])[:, :, 0]
    vv = (risen**2 @ weights[:, :, None])[:, :, 0]
    vy = (risen @ (weights * accuracies)[:, :, None])[:, :, 0]

    def loss(floor: Array, rise: Array) -> Array:
        squares = total * floor**2 + 2 * floor * rise * v + rise**2 * vv
        return np.asarray(yy - 2 * (floor * y + rise * vy) + squares, dtype=np.float64)

    determinant = np.maximum(total * vv - v**2, 1e-15)
    inner_rise = (total * vy - v * y) / determinant
    inner_floor = (y - inner_rise * v) / total
    flat = np.clip(y / total, 0, 1) + 0 * v
    from_zero = np.clip(vy / np.maximum(vv, 1e-15), 0, 1)
    # floor + rise = 1 leaves y - v = floor (1 - v)
    to_one = np.clip((y - v - vy + vv) / np.maximum(total - 2 * v + vv, 1e-15), 0, 1)
    floors = np.stack([inner_floor, flat, 0 * v, to_one])
    rises = np.stack([inner_rise, 0 * v, from_zero, 1 - to_one])
    inside = (inner_floor >= 0) & (inner_rise >= 0) & (inner_floor + inner_rise <= 1)
    losses = np.stack([loss(floor, rise) for floor, rise in zip(floors, rises, strict=True)])
    losses[0][~inside] = np.inf
    best = losses.argmin(axis=0)[None]
    floor, rise, least = (np.take_along_axis(each, best, axis=0)[0] for each in (floors, rises, losses))
    return floor, rise, least


_KINDS = {
    "saturating": _Kind(((np.log10(0.02), np.log10(5)),), 41, _saturating_losses, _saturating_complete, _saturating),
    "logistic": _Kind(((-10, 10), (-12, 12)), 41, _logistic_losses, lambda found, *_: found, _logistic),
}

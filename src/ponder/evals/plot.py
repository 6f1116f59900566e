"""A study's curves as a picture for a README: accuracy against tokens, with intervals and the frontier."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ponder.errors import MissingExtra
from ponder.evals.study import Series, Study


@dataclass(frozen=True)
class Look:
    """Colour on light and on dark ground, and the marker (matplotlib's sign, plotly's name) of a series."""

    light: str
    dark: str
    marker: tuple[str, str]


KNOWN = {
    "direct": Look("#6b7280", "#9ca3af", ("s", "square")),
    "chain_of_thought": Look("#1f6feb", "#6ea8fe", ("o", "circle")),
    "vote": Look("#c2570c", "#fb923c", ("D", "diamond")),
    "best_of_n": Look("#0f7b4f", "#4ade80", ("^", "triangle-up")),
    "coverage": Look("#9aa0a6", "#7d8590", ("x", "x-thin")),
}
"""By what a series' name begins with. A dash for coverage is added where it is drawn."""

OTHERS = (
    Look("#7c3aed", "#c4a5fd", ("v", "triangle-down")),
    Look("#be185d", "#f9a8d4", ("P", "cross")),
    Look("#0e7490", "#67e8f9", ("X", "x")),
    Look("#8a6d00", "#facc15", ("p", "pentagon")),
    Look("#4d5b2a", "#bef264", ("*", "star")),
    Look("#7f1d1d", "#fca5a5", ("h", "hexagon")),
)


def looks(study: Study) -> dict[str, Look]:
    """How each series is drawn; the same in the picture and on the page."""
    found: dict[str, Look] = {}
    for series in study.series:
        own = KNOWN.get(series.name.split("(")[0])
        if own is None or own in found.values():
            own = OTHERS[sum(look in OTHERS for look in found.values()) % len(OTHERS)]
        found[series.name] = own
    return found


def draw(study: Study, path: Path) -> None:
    """Writes the picture; the ending of `path` names its format. Raises MissingExtra without matplotlib."""
    try:
        import_module("matplotlib").use("Agg")
    except ImportError:
        raise MissingExtra("pictures need matplotlib", "pip install 'ponder[plots]'") from None
    pyplot = import_module("matplotlib.pyplot")
    figure, panel = pyplot.subplots(figsize=(9, 4.6), constrained_layout=True)
    try:
        frontier = study.frontier()
        panel.plot(
            [point.spent.tokens for point in frontier],
            [point.accuracy for point in frontier],
            color="#f2b84b", alpha=0.35, linewidth=9, solid_capstyle="round", zorder=1, label="frontier",
        )  # fmt: skip
        for series in study.series:
            _draw_series(panel, series, looks(study)[series.name])
        panel.axhline(study.floor, color="#888888", linewidth=1, linestyle=":", label="best constant answer")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}")
        highest = max(point.interval.high for series in study.series for point in series.points)
        panel.set_ylim(0, min(1.0, 1.08 * max(highest, study.floor, 0.05)))
        panel.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        panel.set_title(f"{study.model} on {study.task}, {len(study.questions):,} questions".replace("$", r"\$"))
        panel.set_xlabel("tokens a question, all samples together")
        panel.set_ylabel("accuracy (95% interval)")
        panel.grid(alpha=0.3)
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    finally:
        pyplot.close(figure)


def _draw_series(panel: Any, series: Series, look: Look) -> None:
    heights = [point.accuracy for point in series.points]
    # Rounding may put an end of an interval a hair on the wrong side of its mean.
    low = [max(0.0, point.accuracy - point.interval.low) for point in series.points]
    high = [max(0.0, point.interval.high - point.accuracy) for point in series.points]
    style: dict[str, Any] = {"linestyle": "--"} if series.bound else {}
    panel.errorbar(
        [point.spent.tokens for point in series.points],
        heights,
        yerr=[low, high],
        label=f"{series.name} (a perfect verifier)" if series.bound else series.name,
        color=look.light, marker=look.marker[0], markersize=5, capsize=2, elinewidth=0.8, **style,
    )  # fmt: skip

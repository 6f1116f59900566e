"""A study as one HTML page that needs nothing else: no network, no second file.

The page's content security policy names the hashes of its two scripts (plotly's and its own) and allows no
connection, so that nothing which a model wrote can run there, even where escaping it had failed.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from importlib import import_module
from math import floor, log10
from pathlib import Path
from typing import Any

from ponder.errors import MissingExtra
from ponder.evals.plot import looks
from ponder.evals.statistics import Interval
from ponder.evals.study import AXES, Axis, Measurement, Study
from ponder.strategies.policy import Policy

HERE = Path(__file__).parent
TITLES: dict[Axis, str] = {"tokens": "Tokens", "seconds": "Seconds", "flops": "FLOPs", "dollars": "Dollars"}


def write(study: Study, path: Path, policy: Policy | None = None) -> None:
    """Writes the page. Raises MissingExtra without plotly."""
    path.write_text(render(study, policy), "utf-8")


def render(study: Study, policy: Policy | None = None) -> str:
    """The page. Without a policy it says that too little was measured for one. Raises MissingExtra without plotly."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(FORMATS)
    scripts = [_plotly(), (HERE / "report.js").read_text("utf-8")]
    sources = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in scripts
    )
    page: str = environment.get_template("report.html.jinja").render(
        study=study,
        policy=policy,
        rows=_rows(study),
        cheapest=min(study.settings, key=lambda point: point.spent.tokens, default=None),
        best=study.best if study.settings else None,
        looks=looks(study),
        axes={axis: TITLES[axis] for axis in _known(study)},
        data=Markup(_json(_drawn(study))),
        scripts=[Markup(each) for each in scripts],
        style=Markup((HERE / "report.css").read_text("utf-8")),
        security=f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'",
    )
    return page


def _plotly() -> str:
    try:
        source = str(import_module("plotly.offline").get_plotlyjs())
    except ImportError:
        raise MissingExtra("the report needs plotly", "pip install 'ponder[plots]'") from None
    # A browser ends a script at the first of these, wherever it stands.
    if "</script" in source.lower() or "<!--" in source:
        raise MissingExtra("this plotly cannot be put into a page", "pip install --upgrade 'ponder[plots]'")
    return source


def _json(value: Any) -> str:
    """JSON that can stand inside an element: no character of it begins markup."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


# ---------------------------------------------------------------- what is shown


def _known(study: Study) -> list[Axis]:
    """The costs that are known of every measurement."""
    points = [point for series in study.series for point in series.points]
    return [axis for axis in AXES if all((getattr(point.spent, axis) or 0) > 0 for point in points)]


def _rows(study: Study) -> list[dict[str, Any]]:
    """A row of the table for each measurement, with the name of its series."""
    frontier = [id(point) for point in study.frontier()]
    return [
        {"series": series, "point": point, "frontier": id(point) in frontier}
        for series in study.series
        for point in series.points
    ]


def _drawn(study: Study) -> dict[str, Any]:
    """What the script draws. Points of the frontier are [series, point], by axis."""
    places = {id(point): (s, p) for s, each in enumerate(study.series) for p, point in enumerate(each.points)}
    look = looks(study)
    return {
        "floor": study.floor,
        "frontier": {axis: [places[id(point)] for point in study.frontier(axis)] for axis in _known(study)},
        "series": [
            {
                "name": series.name,
                "bound": series.bound,
                "light": look[series.name].light,
                "dark": look[series.name].dark,
                "marker": look[series.name].marker[1],
                "points": [_point(point) for point in series.points],
            }
            for series in study.series
        ],
    }


def _point(point: Measurement) -> dict[str, Any]:
    low, high = point.interval
    return {"label": point.label, "accuracy": point.accuracy, "low": low, "high": high, **point.spent._asdict()}


# ---------------------------------------------------------------- numbers in words


def sentence(text: str) -> str:
    """With a capital at its beginning, the rest as it is"""
    return text[:1].upper() + text[1:]


def percent(value: float) -> str:
    """17.3%"""
    return f"{100 * value:.1f}%"


def span(interval: Interval | tuple[float, float]) -> str:
    """12.3 to 22.4"""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def points(value: float) -> str:
    """+3.2, with a real minus sign"""
    return f"{100 * value:+.1f}".replace("-", "−")


def change(interval: Interval) -> str:
    """−0.1 to 6.3"""
    return span(interval).replace("-", "−")


def count(value: float | None) -> str:
    """1,234, and 9.5 below ten"""
    return "–" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def flops(value: float | None) -> str:
    """3.4 T"""
    if value is None:
        return "–"
    size, name = next((each for each in SIZES if value >= each[0]), (1.0, ""))
    return f"{value / size:.3g} {name}".strip()


def dollars(value: float | None) -> str:
    """$0.00012"""
    if value is None:
        return "–"
    places = 2 if value >= 1 or value <= 0 else 1 - floor(log10(value))
    return f"${value:,.{places}f}"


SIZES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
FORMATS: dict[str, Callable[..., str]] = {
    each.__name__: each for each in (sentence, percent, span, points, change, count, flops, dollars)
}

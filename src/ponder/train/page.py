"""A run as one HTML page that needs nothing else: its curves, its samples, what it was asked. RUN/page.html.

Written anew at each checkpoint and at the end. Curves need the package plotly; without it the page has tables alone.
The page's content security policy allows its own two scripts and no connection: nothing that a model wrote can run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ponder.errors import TrainingError
from ponder.train.run import Values, notes_of, steps_of, writing

HERE = Path(__file__).parent
PAGE = "page.html"
POINTS = 1000
"""Points of a curve: of a longer run each is a mean over neighbours."""
ROLLOUTS = 8
SHOWN = 12
"""Rows of the table."""

CHARTS: tuple[tuple[str, str, str], ...] = (
    ("loss", "Loss", ""),
    ("reward", "Reward", "mean of a rollout"),
    ("correct", "Right answers", "share of the rollouts"),
    ("length", "Length", "tokens of a rollout"),
    ("margin", "Margin", "of the preferred answer"),
    ("accuracy", "Accuracy", ""),
    ("held_out_accuracy", "Accuracy on held-out rows", ""),
    ("kl", "KL to the reference", "nats a token"),
    ("sampler_kl", "KL of sampler and trainer", "nats a token"),
    ("entropy", "Entropy", "nats a token"),
    ("gradient_norm", "Gradient norm", "before clipping"),
    ("rate", "Learning rate", ""),
    ("tokens_per_second", "Speed", "tokens a second"),
)
"""What is drawn, where a run measures it: the name of the value, the title, its unit."""


class PageTracker:
    """Keeps the page of a run up to date: at every `every`-th step, and at the end."""

    def __init__(self, folder: Path, every: int) -> None:
        self._folder, self._every = folder, every
        self._logged = 0
        self._written = -1

    def log(self, step: int, values: Values) -> None:
        """Writes the page where it is due."""
        self._logged = step
        if self._every and step % self._every == 0:
            self._write()

    def close(self) -> None:
        """Writes the page as the run left it."""
        if self._logged != self._written and self._logged:
            self._write()

    def _write(self) -> None:
        write(self._folder)
        self._written = self._logged


def write(folder: Path) -> Path:
    """Writes the page of the run in `folder`. Raises TrainingError for a full disk, InputError for no run."""
    path = folder / PAGE
    part = path.with_suffix(".part")
    with writing(path):
        part.write_text(render(folder), "utf-8")
        os.replace(part, path)
    return path


def render(folder: Path) -> str:
    """The page. Raises InputError for a folder that holds no run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    lines = [_with_speed(line) for line in steps_of(folder)]
    notes = notes_of(folder)
    plotly = _plotly()
    scripts = [plotly, (HERE / "page.js").read_text("utf-8")] if plotly and lines else []
    hashes = " ".join(f"'sha256-{_hash(each)}'" for each in scripts) or "'none'"
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    charts = [_chart(lines, *each) for each in CHARTS if any(each[0] in line for line in lines)]
    page: str = environment.get_template("page.html.jinja").render(
        name=folder.name,
        kind=notes.get("kind", "training"),
        last=lines[-1] if lines else {},
        steps=notes.get("steps"),
        charts=charts,
        columns=[(name, title) for name, title, _ in CHARTS if any(name in line for line in lines)],
        rows=_thinned(lines, SHOWN),
        rollouts=rollouts(folder),
        notes={name: _plain(value) for name, value in notes.items()},
        recipe=_text(folder / "recipe.toml"),
        data=Markup(_json(charts)),
        scripts=[Markup(each) for each in scripts],
        style=Markup((HERE / "page.css").read_text("utf-8")),
        security=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
    )
    return page


def rollouts(folder: Path, most: int = ROLLOUTS) -> list[dict[str, Any]]:
    """Some of the newest rollouts on disk: what the page shows of their lines, None for what those do not hold."""
    found: list[dict[str, Any]] = []
    for path in sorted((folder / "rollouts").glob("*.jsonl"), reverse=True)[:1]:
        for text in _text(path).splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # cut short by a crash
                continue
            if isinstance(line, dict) and "question" in line:
                kept = {name: line.get(name) for name in ("question", "thinking", "answer", "finish", "told", "reward")}
                found.append({**kept, "tokens": len(line.get("ids") or ()), "part": path.stem})
    # Spread over the part: neighbours answer the same question.
    return found[:: max(1, math.ceil(len(found) / most))]


# ---------------------------------------------------------------- what is drawn


def _with_speed(line: Mapping[str, Any]) -> dict[str, Any]:
    seconds, tokens = line.get("seconds", 0), line.get("tokens", 0)
    return {**line, **({"tokens_per_second": tokens / seconds} if seconds and tokens else {})}


def _chart(lines: Sequence[Mapping[str, Any]], name: str, title: str, unit: str) -> dict[str, Any]:
    points = [(line["step"], float(line[name])) for line in lines if _is_number(line.get(name))]
    size = max(1, math.ceil(len(points) / POINTS))
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return {
        "name": name,
        "title": title,
        "unit": unit,
        "x": [group[-1][0] for group in groups],
        "y": [sum(value for _, value in group) / len(group) for group in groups],
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _thinned(lines: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most `most` lines, evenly spread, the last one among them; newest first."""
    step = max(1, math.ceil(len(lines) / most))
    return list(lines[::-1][::step])


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def number(value: Any) -> str:
    """1,234, and 0.0123 for what is small"""
    if not _is_number(value):
        return "–"
    if isinstance(value, int) or (abs(value) >= 1000 and value == int(value)):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# ---------------------------------------------------------------- parts of the page


def _plotly() -> str | None:
    """plotly's script; None where it is not installed, or cannot stand in a page."""
    try:
        source = str(import_module("plotly.offline").get_plotlyjs())
    except ImportError:
        return None
    # A browser ends a script at the first of these, wherever it stands.
    return None if "</script" in source.lower() or "<!--" in source else source


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(value: Any) -> str:
    """JSON that can stand inside an element: no character of it begins markup."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"cannot read {path}: {error}", "Remove it") from None

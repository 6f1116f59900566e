"""A study: what thinking bought on one task, as curves of accuracy against compute with everything they rest on.

    pool of samples + runs of other strategies -> series of measurements -> frontier, gains, gap

Each measurement keeps its score on every question, so that any two can be compared pair by pair. Coverage, the
share of questions with a right answer among k samples, is no strategy: it is drawn as what a verifier that never
errs would reach, and the gap to it is a number of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ponder.errors import InputError
from ponder.evals import scaling
from ponder.evals.pooled import Spent
from ponder.evals.results import Setting
from ponder.evals.scaling import Gain
from ponder.evals.statistics import Difference, Interval

VERSION = 1
"""Of the JSON form."""

Axis = Literal["tokens", "seconds", "flops", "dollars"]
AXES: tuple[Axis, ...] = get_args(Axis)

COVERAGE = "coverage"
"""The name of the series that is no strategy."""


@dataclass(frozen=True)
class Measurement:
    """What one setting came to: `scores` holds the expected verdict on each question, in the order of the study.

    `setting` is None for what no setting reproduces: coverage, and single draws from the pool. `samples` is how
    many draws from the pool it is about, None for what was run by itself. `step` is the difference to the
    measurement before it in its series, `short` that of the best setting to this one.
    """

    label: str
    setting: Setting | None
    spent: Spent
    accuracy: float
    interval: Interval
    scores: tuple[float, ...]
    samples: int | None = None
    step: Difference | None = None
    short: Difference | None = None


@dataclass(frozen=True)
class Series:
    """Measurements of one way to spend compute, by rising compute. `bound`: no strategy, but what none exceeds."""

    name: str
    points: tuple[Measurement, ...]
    bound: bool = False
    gain: Gain | None = None


class Gap(NamedTuple):
    """What the best selection among the same samples leaves of what they cover: coverage minus selected, paired."""

    coverage: str
    selected: str
    difference: Difference


@dataclass(frozen=True)
class Voice:
    """What one strategy said to a question."""

    label: str
    answer: str
    correct: bool
    thinking: str = ""


@dataclass(frozen=True)
class Disagreement:
    """A question that some strategies got right and others wrong."""

    question: str
    text: str
    reference: str
    voices: tuple[Voice, ...]


@dataclass(frozen=True)
class Made:
    """How the numbers came about."""

    command: str = ""
    hardware: str = ""
    software: tuple[str, ...] = ()
    date: str = ""
    sha256: str = ""
    temperature: float | None = None


@dataclass(frozen=True)
class Study:
    """Curves of one model on one task. `floor` is what the best constant answer reaches, `floor_answer` that answer."""

    task: str
    model: str
    questions: tuple[str, ...]
    floor: float
    floor_answer: str
    series: tuple[Series, ...]
    gap: Gap | None = None
    disagreements: tuple[Disagreement, ...] = ()
    notes: tuple[str, ...] = ()
    made: Made = field(default_factory=Made)

    @property
    def settings(self) -> list[Measurement]:
        """Every measurement that a setting reproduces, and that can therefore be chosen."""
        return [point for series in self.series for point in series.points if point.setting is not None]

    @property
    def best(self) -> Measurement:
        """The setting with the highest accuracy; of equals the one with the fewest tokens."""
        return best_of(self.settings)

    def frontier(self, axis: Axis = "tokens") -> list[Measurement]:
        """The settings that no other beats, by rising cost on `axis`; none where that cost is unknown."""
        return frontier(self.settings, axis)


def frontier(points: Iterable[Measurement], axis: Axis = "tokens") -> list[Measurement]:
    """Those of `points` that no other beats, by rising cost on `axis`."""
    placed = [
        (scaling.Point(cost, _clean(point.accuracy), len(point.scores)), point)
        for point in points
        if (cost := getattr(point.spent, axis)) is not None
    ]
    kept = {id(place): order for order, place in enumerate(scaling.frontier([place for place, _ in placed]))}
    found = {kept[id(place)]: point for place, point in placed if id(place) in kept}
    return [found[order] for order in sorted(found)]


def best_of(points: Iterable[Measurement]) -> Measurement:
    """The most accurate; of equals the one with the fewest tokens. Raises InputError where there is none."""
    found = max(points, key=lambda point: (_clean(point.accuracy), -point.spent.tokens), default=None)
    if found is None:
        raise InputError("nothing was measured that could be chosen", "measure a strategy, or a vote")
    return found


def _clean(accuracy: float) -> float:
    """Without rounding errors: expectations that are equal come from different sums."""
    return round(accuracy, 9)


# ---------------------------------------------------------------- JSON


def dump(study: Study, path: Path) -> None:
    """Writes the study as JSON: all that its report shows, and the scores behind it."""
    document = {"version": VERSION, **_adapter().dump_python(study, mode="json")}
    path.write_text(json.dumps(document, ensure_ascii=False, allow_nan=False), "utf-8")


def load(path: Path) -> Study:
    """The study in a file that `dump` wrote. Raises InputError."""
    try:
        document = json.loads(path.read_text("utf-8"))
        if document.get("version") != VERSION:
            raise InputError(f"{path} has version {document.get('version')!r}", f"this ponder reads version {VERSION}")
        study: Study = _adapter().validate_python({k: v for k, v in document.items() if k != "version"})
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "make a study with ponder curve") from None
    except (ValueError, AttributeError):
        raise InputError(f"{path} is no study", "make one with ponder curve") from None
    return study


def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Study)

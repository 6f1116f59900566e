"""What the pages show, read from the ledger, the traces, the runs and the studies. To be called in a thread.

Each function opens what it reads: SQLite's connections belong to one thread, and the event loop must not wait for a
disk. Who asks with a key sees what that key asked for; a server without keys, which only this machine reaches, shows
everything.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder.errors import InputError, PonderError
from ponder.ops.keys import Keys
from ponder.ops.ledger import Ledger
from ponder.ops.ledger_values import By, Entry
from ponder.ops.prompts import Prompts
from ponder.ops.results import Results
from ponder.ops.store import Store
from ponder.server.failures import Refusal
from ponder.server.request import Caller
from ponder.types import Trace, TraceState, to_dict

if TYPE_CHECKING:
    from ponder.evals.results import Run
    from ponder.evals.study import Measurement, Study

BY: tuple[By, ...] = ("model", "key", "prompt", "strategy", "day")
DAY = 86_400.0
MOST_TRACES = 200
MOST_RUNS = 200
MOST_STUDIES = 200
_HEAVY = ("prompt_ids", "ids", "mask", "logprobs")
_COUNTS = ("prompt", "cached", "completion", "reasoning", "micro")


# ---------------------------------------------------------------- costs


def costs(home: Path, caller: Caller, days: float) -> dict[str, Any]:
    """What was spent in the last days, by model, key, prompt, strategy and day; micro-dollars."""
    since = time.time() - days * DAY
    with Ledger.open(home / "ledger.db") as ledger, Keys.open(home / "ledger.db") as keys:
        if caller.key:
            entries = ledger.entries(since, key=caller.key)
            sums: dict[str, Any] = {by: _summed(entries, _PLACES[by]) for by in BY}
            return {**sums, "names": {caller.key: caller.name}}
        totals: dict[str, Any] = {by: [dataclasses.asdict(each) for each in ledger.totals(by, since)] for by in BY}
        return {**totals, "names": {key.id: key.name for key in keys.list(revoked=True)}}


_PLACES: Mapping[By, Callable[[Entry], str]] = {
    "model": lambda each: each.model,
    "key": lambda each: each.key,
    "prompt": lambda each: each.prompt_name,
    "strategy": lambda each: each.strategy,
    "day": lambda each: datetime.fromtimestamp(each.created, UTC).date().isoformat(),
}


def _summed(entries: Iterable[Entry], place: Callable[[Entry], str]) -> list[dict[str, Any]]:
    """As `Ledger.totals` does it, for the entries of one key."""
    groups: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.state != "void":
            groups[place(entry)].append(entry)
    return [
        {
            "name": name,
            "requests": len({each.request for each in group}),
            "attempts": len(group),
            "failed": sum(each.state == "failed" for each in group),
            "unpriced": sum(each.micro is None and each.state not in ("reserved", "unknown") for each in group),
            "open": sum(each.state == "reserved" for each in group),
            **{count: sum(getattr(each, count) or 0 for each in group) for count in _COUNTS},
        }
        for name, group in sorted(groups.items())
    ]


# ---------------------------------------------------------------- traces


def traces(home: Path, caller: Caller, search: str, state: TraceState | None, limit: int) -> list[dict[str, Any]]:
    """The newest traces in one line each."""
    limit = max(1, min(limit, MOST_TRACES))
    with Store.open(home / "ponder.db") as store:
        if not caller.key:
            found = store.list(limit, state, search or None)
        else:
            own = _own(home, caller)
            found = [each for each in store.list(None, state, search or None) if each.id in own][:limit]
    return [dataclasses.asdict(each) for each in found]


def trace(home: Path, caller: Caller, id: str) -> dict[str, Any]:
    """A trace as JSON, without the ids of its tokens. Raises Refusal, 404."""
    missing = Refusal(404, "not_found_error", f"there is no trace {id[:100]!r}", "see the list of traces")
    if caller.key and id not in _own(home, caller, id):  # by its whole id: a part of one would tell of others
        raise missing
    with Store.open(home / "ponder.db") as store:
        try:
            found = store.get(id)
        except InputError:
            raise missing from None
    return slim(found)


def slim(trace: Trace) -> dict[str, Any]:
    """A trace for people: the counts of tokens stand in for the tokens."""
    document = to_dict(trace)
    in_events = (each.get("sample") for each in document["events"])
    for sample in [*document["samples"], *(each for each in in_events if isinstance(each, dict))]:
        sample["tokens"] = len(sample.get("ids", ()))
        for name in _HEAVY:
            sample.pop(name, None)
    return document


def _own(home: Path, caller: Caller, request: str | None = None) -> set[str]:
    """The requests of a key: a trace has the id of its request."""
    with Ledger.open(home / "ledger.db") as ledger:
        return {each.request for each in ledger.entries(request=request, key=caller.key)}


# ---------------------------------------------------------------- prompts


def prompts(home: Path) -> list[dict[str, Any]]:
    """The stored prompts in one line each."""
    with Prompts.open(home / "prompts.db") as kept:
        return [{**vars(each), "labels": dict(each.labels)} for each in kept.list()]


def prompt(home: Path, name: str) -> list[dict[str, Any]]:
    """All versions of a prompt. Raises Refusal, 404."""
    with Prompts.open(home / "prompts.db") as kept:
        try:
            versions = kept.versions(name)
        except InputError:
            versions = ()
    if not versions:
        raise Refusal(404, "not_found_error", f"there is no prompt {name[:100]!r}", "see the list of prompts")
    return [
        {
            "version": each.version,
            "messages": [[turn.role, turn.text] for turn in each.messages],
            "variables": list(each.variables),
            "note": each.note,
            "created": each.created,
        }
        for each in versions
    ]


# ---------------------------------------------------------------- curves


def studies(home: Path, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The studies in files, and the models and tasks of evaluation runs in the store, the newest first."""
    files = [
        {"id": f"file:{name}", "title": name, "kind": "study", "when": path.stat().st_mtime}
        for name, path in _files(folders).items()
    ]
    runs = []
    for (task, model), group in _groups(home).items():
        newest = max(datetime.fromisoformat(each.created).timestamp() for each in group)
        title = f"{task} · {model} · {len(group)} run{'s' if len(group) > 1 else ''}"
        runs.append({"id": f"runs:{task}\n{model}", "title": title, "kind": "runs", "when": newest})
    return sorted([*files, *runs], key=lambda each: -float(str(each["when"])))


def study(home: Path, folders: Sequence[Path], id: str) -> dict[str, Any]:
    """The curves of one of `studies`. Raises Refusal, 404, for one that is not there."""
    kind, _, name = id.partition(":")
    if kind == "file" and (path := _files(folders).get(name)) is not None:
        from ponder.evals.study import load

        return _of_study(load(path))
    task, _, model = name.partition("\n")
    if kind == "runs" and (group := _groups(home).get((task, model))):
        return _of_runs(home, task, model, [each.id for each in group])
    raise Refusal(404, "not_found_error", f"there is no study {id[:100]!r}", "see the list of studies")


def _files(folders: Sequence[Path]) -> dict[str, Path]:
    """study.json of each folder in `folders` by the folder's name, and other files there by their own."""
    found: dict[str, Path] = {}
    for folder in folders:
        paths = itertools.chain(folder.glob("*.json"), folder.glob("*/study.json"))
        for path in itertools.islice(sorted(paths), MOST_STUDIES):
            name = path.parent.name if path.name == "study.json" else path.stem
            found.setdefault(name, path)
    return found


def _groups(home: Path) -> dict[tuple[str, str], list[Any]]:
    groups: dict[tuple[str, str], list[Any]] = {}
    with Store.open(home / "ponder.db") as store:
        for each in Results(store).runs(MOST_RUNS):
            if each.results:
                groups.setdefault((each.task, each.model), []).append(each)
    return groups


def _of_study(study: Study) -> dict[str, Any]:
    frontier = {id(point) for point in study.frontier()}
    return {
        "task": study.task,
        "model": study.model,
        "questions": len(study.questions),
        "floor": study.floor,
        "notes": list(study.notes),
        "made": dataclasses.asdict(study.made),
        "series": [
            {
                "name": series.name,
                "bound": series.bound,
                "points": [{**_point(point), "frontier": id(point) in frontier} for point in series.points],
            }
            for series in study.series
        ],
    }


def _point(point: Measurement) -> dict[str, Any]:
    spent = {name: _finite(value) for name, value in point.spent._asdict().items()}
    return {"label": point.label, **spent, "accuracy": point.accuracy, **point.interval._asdict()}


def _of_runs(home: Path, task: str, model: str, ids: Sequence[str]) -> dict[str, Any]:
    from ponder.evals.run import kept_run

    series: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    questions: set[str] = set()
    with Store.open(home / "ponder.db") as store:
        for each in ids:
            try:
                run = kept_run(store, each)
            except PonderError:  # removed meanwhile, or written by another version
                continue
            if run.results:
                questions.update(run.questions)
                series[run.setting.strategy.partition("(")[0]].append(_of_run(run))
    lines = [
        {"name": name, "bound": False, "points": sorted(points, key=lambda point: point["tokens"])}
        for name, points in series.items()
    ]
    return {"task": task, "model": model, "questions": len(questions), "floor": None, "notes": [], "series": lines}


def _of_run(run: Run) -> dict[str, Any]:
    from ponder.evals.statistics import mean_interval

    mean, cost, n = mean_interval(run.scores()), run.cost, len(run.results)
    budget = run.setting.budget.tokens
    spent = {"tokens": cost.tokens, "seconds": cost.seconds, "flops": cost.flops, "dollars": cost.dollars}
    return {
        "label": run.setting.strategy + (f", {budget} tokens" if budget else ""),
        **{name: None if value is None else _finite(value / n) for name, value in spent.items()},
        "accuracy": mean.value,
        **mean.interval._asdict(),
        "run": run.id,
        "frontier": False,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

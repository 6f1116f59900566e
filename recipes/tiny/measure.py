"""What the models of this recipe can do on chains that none of them has seen, by ponder's own evaluation.

Models answer at once and with thinking, greedily; before and after reinforcement they think at temperature 1, too. The
one that was reinforced is also asked under budgets, and for a pool of samples from which votes, the process reward
model's choice and coverage are estimated for each number of samples.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from torch import get_num_threads

from ponder.chat.model import Model, model_of
from ponder.engine import open_engine
from ponder.engine.torch_engine import TorchSettings
from ponder.evals.derive import study_of
from ponder.evals.pooled import draws_of, votes
from ponder.evals.results import Run, Setting
from ponder.evals.run import evaluate
from ponder.evals.statistics import Interval, bootstrap_means, mean_interval, paired_difference, percentiles
from ponder.evals.study import COVERAGE, Made, Study
from ponder.protocols import SamplingParams
from ponder.tasks import Task, constant_floor
from ponder.types import Budget
from ponder.verifiers.reward_model import process_reward_model

ANSWER = 20
"""Tokens of a budget that are kept for the answer: with 17 or less it would be begun with "The answer is"."""
AT_ONCE, SEQUENCES, BATCH, SHELF = 32, 192, 1024, 2**26
"""Questions side by side, and room for their samples; prompt tokens at a time, and bytes of what may be continued."""
MARKER = "?"
JUDGE, AGGREGATE = "process_reward_model", "min"
MODEL = "a model of 1 million parameters"


@dataclass(frozen=True)
class Asked:
    """How a model is asked: its name, the strategy, tokens of the answer or of all samples; who judges the samples."""

    model: str
    strategy: str
    tokens: int
    temperature: float = 0.0
    judge: str = ""


def plan(budgets: Sequence[int], samples: int) -> dict[str, dict[str, Asked]]:
    """What is asked once a model is there, by the model and by what it is of.

    budgets: tokens of a single answer, the last one enough for all; samples: of the pool, each with as many.
    """
    *less, most = budgets
    both = {
        model: {
            f"{model}, direct": Asked(model, "direct", most),
            f"{model}, thinking": Asked(model, "chain_of_thought", most),
        }
        for model in ("rl", "student")
    }
    return {
        "cold": {
            "cold, thinking": Asked("cold", "chain_of_thought", most),
            "cold, sampled": Asked("cold", "chain_of_thought", most, 1.0),
        },
        "rl": {**both["rl"], **{f"rl, {budget}": Asked("rl", "chain_of_thought", budget) for budget in less}},
        "student": both["student"],
        "process": {"pool": Asked("rl", f"vote({samples})", samples * most, 1.0, "process")},
    }


def measured(task: Task, runs: Path, kept: Path, asked: dict[str, Asked]) -> dict[str, Run]:
    """The runs by their names; those that are kept in a file are not made again."""
    return {
        name: _kept(kept / f"{name.replace(', ', '-')}.json", lambda how=how: asyncio.run(_run(task, runs, how)))
        for name, how in asked.items()
    }


def _kept(path: Path, make: Callable[[], Run]) -> Run:
    kind: TypeAdapter[Run] = TypeAdapter(Run)
    if path.exists():
        return kind.validate_json(path.read_bytes())
    run = make()
    part = path.with_suffix(".part")
    part.write_bytes(kind.dump_json(run))
    part.replace(path)
    return run


async def _run(task: Task, runs: Path, asked: Asked) -> Run:
    setting = Setting(asked.strategy, Budget(asked.tokens, answer=ANSWER))
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(_opened(runs / asked.model / "model", asked.temperature))
        selectors = {}
        if asked.judge:
            other = await stack.enter_async_context(_opened(runs / asked.judge / "model", 0.0))
            selectors[JUDGE] = process_reward_model(other, marker=MARKER, aggregate=AGGREGATE)
        return await evaluate(task, model, setting, at_once=AT_ONCE, selectors=selectors)


@asynccontextmanager
async def _opened(path: Path, temperature: float) -> AsyncIterator[Model]:
    settings = TorchSettings(context=256, sequences=SEQUENCES, batch=BATCH, shelf=SHELF, threads=get_num_threads())
    engine = await open_engine(f"hf:{path}", settings=settings)
    try:
        yield replace(model_of(engine), params=SamplingParams(1, temperature=temperature))
    finally:
        await engine.close()


# ---------------------------------------------------------------- what it comes to


def studied(task: Task, runs: dict[str, Run], made: Made) -> Study:
    """The curves of the reinforced model: one greedy answer under budgets, votes, the judge's choice, coverage."""
    single = [
        replace(run, model=MODEL) for name, run in runs.items() if name.startswith("rl, ") and run.temperature == 0
    ]
    return study_of(replace(runs["pool"], model=MODEL), single, floor=constant_floor(task), made=made)


def results(study: Study, runs: dict[str, Run], rewards: Sequence[float]) -> dict[str, Any]:
    """Every number that the recipe claims something of, with its interval; n is the number of questions."""
    scores = {name: run.scores() for name, run in runs.items() if name != "pool"}
    scores["rl, sampled"] = [[sample.correct for sample in result.samples] for result in runs["pool"].results]
    points = {series.name: series.points for series in study.series}
    judged, voted = points[f"best_of_n({JUDGE})"][-1], points["vote"][-1]
    chosen = {"one": points["vote"][0], "vote": voted, "judge": judged, "coverage": points[COVERAGE][-1]}
    weighted = weighted_vote(runs["pool"], voted.samples)
    quarter = max(1, len(rewards) // 4)
    return {
        "n": len(study.questions),
        "floor": study.floor,
        "accuracy": {name: _mean(found) for name, found in scores.items()},
        "samples": voted.samples,
        "selection": {
            **{name: _told(point.accuracy, point.interval) for name, point in chosen.items()},
            "weighted": _mean(weighted),
        },
        "reward": {"first": float(np.mean(rewards[:quarter])), "last": float(np.mean(rewards[-quarter:]))},
        "differences": {
            "reinforced over cold start": _difference(scores["rl, sampled"], scores["cold, sampled"]),
            "thinking over direct": _difference(scores["rl, thinking"], scores["rl, direct"]),
            "judge over vote": _difference([[x] for x in judged.scores], [[x] for x in voted.scores]),
            "weighted over vote": _difference(weighted, [[x] for x in voted.scores]),
        },
        "budgets": [
            {"from": low, "to": high, **_difference(scores[high], scores[low])}
            for low, high in pairwise(_rising(scores))
        ],
        "kept": kept_gain(scores),
    }


def weighted_vote(pool: Run, samples: int) -> list[list[float]]:
    """The verdicts, by question, of a vote in which each sample counts as much as the reward model thinks of it."""
    draws = [
        replace(each, kept=tuple(replace(sample, weight=sample.scores.get(JUDGE, 0.0)) for sample in each.kept))
        for each in draws_of(pool)
    ]
    return [[score] for score in votes(draws, samples, weighted=True).scores]


def kept_gain(scores: dict[str, list[list[float]]]) -> dict[str, float]:
    """What share of its teacher's gain the student keeps; a gain is thinking's accuracy less that of a direct answer.

    (student, thinking - student, direct) / (teacher, thinking - teacher, direct), its interval by the bootstrap over
    questions, all four being asked the same ones. Empty where the teacher gains nothing.
    """
    names = ("student, thinking", "student, direct", "rl, thinking", "rl, direct")
    table = np.array([[np.mean(each) for each in scores[name]] for name in names]).T

    def share(means: Any) -> Any:
        return (means[..., 0] - means[..., 1]) / (means[..., 2] - means[..., 3])

    if not table[:, 2].mean() > table[:, 3].mean():
        return {}
    low, high = percentiles(share(bootstrap_means(table)))
    return {"value": float(share(table.mean(axis=0))), "low": low, "high": high}


def _rising(scores: Iterable[str]) -> list[str]:
    """The names of one greedy answer, from the smallest budget to the largest."""
    return [*sorted((name for name in scores if name[4:].isdigit()), key=lambda name: int(name[4:])), "rl, thinking"]


def _mean(scores: Sequence[Sequence[float]]) -> dict[str, float]:
    found = mean_interval(scores)
    return _told(found.value, found.interval)


def _told(value: float, interval: Interval) -> dict[str, float]:
    return {"value": value, "low": interval.low, "high": interval.high}


def _difference(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> dict[str, float | None]:
    found = paired_difference(a, b)
    return {**_told(found.value, found.interval), "p": found.p_value}

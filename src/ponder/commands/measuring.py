"""The runs behind `ponder curve`: single answers at each budget, a pilot and a pool of samples, a few texts."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ponder
from ponder.commands import asking, evaluating
from ponder.errors import InputError

if TYPE_CHECKING:
    from ponder.chat.model import Model
    from ponder.evals.cached import Account
    from ponder.evals.results import Run, Setting
    from ponder.evals.study import Disagreement, Made, Study
    from ponder.ops.store import Store
    from ponder.protocols import Verifier
    from ponder.tasks import Task
    from ponder.types import Cost, Trace

SINGLE = ("direct", "chain_of_thought")
"""Strategies that a larger budget changes only where the smaller one cut something short."""

PILOT_QUESTIONS, PILOT_SAMPLES, PILOT_SHARE = 20, 4, 0.95
"""The pilot that says how many tokens a sample of the pool needs: that share of its samples fits."""


@dataclass(frozen=True)
class Plan:
    """Strategies to be run at each budget, and the pool where one is wanted."""

    strategies: tuple[str, ...]
    budgets: tuple[int, ...]
    samples: int | None
    share: int | None
    risk: float
    selectors: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """All strategies that are run, that of the pool included."""
        return self.strategies if self.samples is None else (*self.strategies, f"vote({self.samples})")


@dataclass
class Measuring:
    """The runs of one plan, and what was paid for them now."""

    task: Task
    model: Model
    store: Store | None
    stop: asyncio.Event
    plan: Plan
    seed: int
    at_once: int | None
    quiet: bool
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        from ponder.evals.cached import Account
        from ponder.verifiers.naming import verifier_named

        self.account: Account = Account()
        self.selectors: dict[str, Verifier] = {
            name: verifier_named(name) for name in dict.fromkeys(("arithmetic_steps", *self.plan.selectors))
        }

    async def study(self) -> Study:
        """Measures all, and derives the study. Raises `Stopped` where the user ended it before."""
        from ponder.evals.derive import study_of
        from ponder.tasks import constant_floor

        runs = [run for strategy in self.plan.strategies for run in await self._at_budgets(strategy)]
        pool = None if self.plan.samples is None else await self._pool(self.plan.samples)
        return study_of(
            pool,
            runs,
            floor=constant_floor(self.task),
            made=self._made(),
            risks=(self.plan.risk,),
            selectors=self._selectors(),
            disagreements=await self._disagreements(pool, runs),
            notes=self.notes,
            seed=self.seed,
        )

    async def _at_budgets(self, strategy: str) -> list[Run]:
        from ponder.evals.results import Setting
        from ponder.types import Budget

        runs: list[Run] = []
        for tokens in self.plan.budgets:
            runs.append(await self._run(self.task, Setting(strategy, Budget(tokens))))
            self._say(runs[-1])
            most = max(result.cost.tokens for result in runs[-1].results)
            if strategy in SINGLE and most < tokens - Budget(tokens).reserve and tokens < self.plan.budgets[-1]:
                self.notes.append(
                    f"{strategy} is measured up to {tokens:,} tokens: no answer took more than {most:,}, "
                    "so a larger budget changes nothing."
                )
                break
        return runs

    async def _pool(self, samples: int) -> Run:
        from ponder.evals.results import Setting
        from ponder.types import Budget

        share = self.plan.share or await self._needed()
        run = await self._run(self.task, Setting(f"vote({samples})", Budget(samples * share)), self.selectors)
        self._say(run)
        self.notes.append(f"Each sample of the pool had {share:,} tokens.")
        if self.model.params.temperature == 0:
            from ponder.strategies.pool import DRAWING_TEMPERATURE

            self.notes.append(f"Single answers are greedy; several samples are drawn at {DRAWING_TEMPERATURE:g}.")
        return run

    async def _needed(self) -> int:
        """Tokens in which most single samples end by themselves, measured on a few questions."""
        import numpy as np

        from ponder.evals.results import Setting
        from ponder.strategies.pool import LEAST_SHARE
        from ponder.types import Budget

        few = replace(self.task, questions=self.task.questions[:PILOT_QUESTIONS])
        setting = Setting(f"vote({PILOT_SAMPLES})", Budget(PILOT_SAMPLES * self.plan.budgets[-1]))
        pilot = await self._run(few, setting)
        needs = [_need(sample.cost) for result in pilot.results for sample in result.samples if sample.kept]
        if not needs:
            raise InputError("no sample of the pilot ended well", "look at the model, or give --share")
        return max(LEAST_SHARE, 16 * ceil(float(np.quantile(needs, PILOT_SHARE)) / 16))

    async def _run(
        self, task: Task, setting: Setting, selectors: dict[str, Verifier] | None = None, traces: bool = False
    ) -> Run:
        """The whole run of a setting."""
        from ponder.evals.run import evaluate

        with evaluating.progress_bar(setting.strategy) as show:
            run = await evaluate(
                task,
                self.model,
                setting,
                seed=self.seed,
                at_once=evaluating.questions_at_once(self.model, setting.strategy, self.at_once),
                store=self.store,
                progress=show,
                stop=self.stop,
                selectors=selectors,
                account=self.account,
                traces=traces,
            )
        if len(run.results) < len(task.questions):
            kept = "the same command goes on from there" if self.store else "nothing is kept with --no-cache"
            raise asking.Stopped(f"stopped in {setting.strategy} after {len(run.results)} questions", kept)
        return run

    async def _disagreements(self, pool: Run | None, runs: Sequence[Run]) -> list[Disagreement]:
        """What was said where the largest run of each strategy disagrees with others.

        Those few questions are run again for their texts. All they take is in the cache; without one there are none.
        """
        from ponder.evals.disagreements import disagreeing, told

        largest = {run.setting.strategy: run for run in [*runs, *([pool] if pool else [])]}
        if self.store is None or len(largest) < 2:
            return []
        # Never all questions: that run is known already, without its texts.
        names = disagreeing(list(largest.values()))[: len(self.task.questions) - 1]
        found = {str(question.metadata["id"]): question for question in self.task.questions}
        few = replace(self.task, questions=tuple(found[name] for name in names))
        voices: dict[str, dict[str, tuple[Trace, float]]] = {name: {} for name in names}
        for strategy, run in largest.items() if names else ():
            label = f"{strategy}, {run.setting.budget.tokens:,} tokens"
            for result in (await self._run(few, run.setting, traces=True)).results:
                with suppress(InputError):  # its trace was removed meanwhile
                    voices[result.question][label] = self.store.get(result.trace), result.correct
        return [told(name, found[name], voices[name]) for name in names]

    def _selectors(self) -> dict[str, Any]:
        from ponder.evals.derive import SELECTORS, Selector
        from ponder.protocols import bound, most_tokens

        own = {
            name: Selector(
                f"best_of_n({{k}}, verifier={name.replace('{', '{{').replace('}', '}}')!r})",
                most_tokens(bound(verifier, self.model)),
            )
            for name, verifier in self.selectors.items()
        }
        return own | dict(SELECTORS)

    def _made(self) -> Made:
        from ponder.evals.study import Made

        return Made(
            shlex.join(["ponder", *sys.argv[1:]]),
            _machine(),
            tuple(_software(self.model)),
            datetime.now(UTC).date().isoformat(),
            self.task.sha256,
            self.model.params.temperature,
        )

    def _say(self, run: Run) -> None:
        from ponder.evals.statistics import mean_interval

        if self.quiet:
            return
        mean, tokens = mean_interval(run.scores()), run.cost.tokens / len(run.results)
        low, high = mean.interval
        setting = f"{run.setting.strategy}, {run.setting.budget.tokens:,} tokens"
        print(f"{setting}: {mean.value:.1%} [{100 * low:.1f}, {100 * high:.1f}], {tokens:,.0f} used", file=sys.stderr)


def _need(cost: Cost) -> float:
    """The budget in which a sample would have ended as it did: its answer has a reserve that thinking does not get."""
    return max(cost.tokens, min(cost.thinking * 4 / 3, cost.thinking + 64)) + 8


def _machine() -> str:
    """The processor and how many cores of it there are."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:  # another system than Linux
        pass
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


def _software(model: Model) -> Iterator[str]:
    yield f"ponder {ponder.__version__}"
    yield f"Python {platform.python_version()}"
    if model.engine.uri.startswith("gguf:"):
        yield f"xllamacpp {importlib.metadata.version('xllamacpp')}"
    if model.engine.uri.startswith("hf:"):
        yield f"torch {importlib.metadata.version('torch')}"

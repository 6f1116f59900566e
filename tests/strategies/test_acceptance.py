"""The budget holds on what models really say: no over-run, no missing answer, no leftover marker."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ponder.chat.model import model_of
from ponder.engine.llamacpp import LlamaEngine


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The benchmark, which does the same at any size."""
    spec = importlib.util.spec_from_file_location(
        "budget_benchmark", Path(__file__).parents[2] / "benchmarks/budget.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_acceptance_scripted(benchmark: ModuleType) -> None:
    asked = list(benchmark.cases(200, seed=1))
    assert min(case.budget for case in asked) < 25
    assert max(case.budget for case in asked) > 390
    result = asyncio.run(benchmark.measure_scripted(asked, benchmark.Result("scripted", 200, 1)))
    assert (result.over_runs, result.miscounts, result.missing_answers, result.leftover_markers) == (0, 0, 0, 0)
    assert result.holds
    assert 0.2 < result.mean_use <= 1
    assert result.tokens > 200 * 16


@pytest.mark.model
def test_acceptance_embedded(benchmark: ModuleType, llama: LlamaEngine) -> None:
    asked = [benchmark.replace(case, budget=16 + case.budget // 6) for case in benchmark.cases(12, seed=1)]
    result = asyncio.run(benchmark.measure(model_of(llama), asked, benchmark.Result("gguf", 12, 1)))
    assert (result.over_runs, result.miscounts, result.missing_answers, result.leftover_markers) == (0, 0, 0, 0)
    assert 0.1 < result.mean_use <= 1


def test_the_benchmark_notices_what_it_is_there_for(benchmark: ModuleType) -> None:
    """An engine that gives more than it is asked for, and says nothing but markers."""

    class Cheating(benchmark.ScriptedEngine):  # type: ignore[misc, name-defined]
        def sample(self, prefix, n, params):  # type: ignore[no-untyped-def]
            return super().sample(prefix, n, benchmark.replace(params, max_tokens=params.max_tokens + 500))

    engine = Cheating(lambda prefix, index, params: b"\n" * 5000, burst=500)
    asked = list(benchmark.cases(2, seed=1))
    result = asyncio.run(benchmark.measure(model_of(engine), asked, benchmark.Result("scripted", 2, 1)))
    assert (result.over_runs, result.missing_answers, result.miscounts) == (2, 2, 0)
    assert not result.holds

"""The benchmark of a step of GRPO, on a model that takes a moment: what it counts is what was done."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny  # noqa: F401  (skips where torch is missing, and has it compute on one thread)

FILE = Path(__file__).parents[2] / "benchmarks/grpo_step.py"
ASKED = {"device": "cpu", "prompts": 2, "samples": 3, "tokens": 12, "steps": 2, "pack": 2048, "batch": 256}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark would take all cores, which is slower for a model as small as this."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grpo_step_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FILE.parent)  # where a script finds the files beside it
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benchmark._new_folder(tmp_path_factory.mktemp("tiny"), benchmark.SHAPES["tiny"])


@pytest.fixture
def asked(folder: Path) -> Any:
    def of(peer: str, **settings: Any) -> argparse.Namespace:
        paths = {"model": str(folder), "big": str(folder), "precision": "float32"}
        return argparse.Namespace(**{**ASKED, **paths, "peer": peer, **settings})

    return of


def test_our_step_in_parts(benchmark: ModuleType, asked: Any) -> None:
    reply = benchmark.run_ponder(asked("ponder"))
    assert reply["generated"] == 2 * 3 * 12
    seconds = reply["seconds"]
    assert min(seconds[name] for name in ("sampling", "training")) > 0
    assert sum(seconds[name] for name in benchmark.PARTS) <= seconds["step"] + 1e-3  # each is the best of its own
    assert reply["step_tokens_per_second"] == pytest.approx(72 / seconds["step"], rel=0.01)
    assert 0 <= reply["sampler_kl"] < 1e-6
    assert reply["ratio"] == pytest.approx(1, abs=1e-3)


def test_their_step_does_the_same_work(benchmark: ModuleType, asked: Any) -> None:
    pytest.importorskip("trl", reason="the peer is TRL: pip install trl")
    ours = benchmark._counts(asked("ponder"), benchmark._task(asked("ponder"), "float32"))
    reply = benchmark.run_trl(asked("trl"))
    assert {name: reply[name] for name in ours} == ours
    assert reply["seconds"]["training"] > reply["seconds"]["rewards"]
    assert sum(reply["seconds"][name] for name in benchmark.PARTS) <= reply["seconds"]["step"] + 1e-3


def test_the_limit_is_of_the_products_that_there_are(benchmark: ModuleType, asked: Any, folder: Path) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder)
    products = benchmark._products(model)
    assert products[300, 32] == (1, "generated")
    assert products[64, 32] == (4, "trained")  # gate and up of two layers
    assert sum(times * a * b for (a, b), (times, _) in products.items()) == benchmark._multiplied(model)
    assert benchmark.run_limit(asked("limit"))["seconds"]["training"] > 0


def test_utilisation(benchmark: ModuleType, asked: Any) -> None:
    reply = benchmark.run_utilisation(asked("utilisation"))
    assert (reply["batch"], reply["micro_batch"]) == (256, 256)
    # 6 for each of the weights that multiply and each token, and attention's causal half.
    operations = 6 * 256 * (2 * (32 * 32 * 2 + 32 * 16 * 2 + 32 * 64 * 3) + 300 * 32) + 6 * 2 * 32 * 256 * 256
    assert reply["operations_per_second"] * reply["update_seconds"] == pytest.approx(operations, rel=0.05)
    assert 0 < reply["utilisation"] < 1


def test_the_best_of_rounds_and_its_ratios(benchmark: ModuleType) -> None:
    def reply(training: float, step: float) -> dict[str, Any]:
        times = {"training": training, "step": step}
        return {"seconds": times, "core_seconds": times, "generated": 12, "trained": 24, "peak_mib": 100}

    best = benchmark._best(reply(2.0, 5.0), reply(3.0, 4.0))
    assert best["seconds"] == {"training": 2.0, "step": 4.0}
    assert (best["training_tokens_per_second"], best["step_tokens_per_second"]) == (12.0, 3.0)
    ratios = benchmark._ratios({"ponder": best, "trl": {**reply(3.0, 8.0), "peak_mib": 150}})
    assert ratios == {"trl": {"training": 1.5, "step": 2.0, "training_core": 1.5, "step_core": 2.0, "peak_mib": 1.5}}


@pytest.mark.slow
def test_the_command_prints_json_last(folder: Path) -> None:
    small = ["--tokens", "4", "--steps", "1", "--precision", "float32"]
    ended = subprocess.run(
        [sys.executable, str(FILE), "--device", "cpu", "--model", str(folder), "--peers", "limit", *small],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    last = json.loads(ended.stdout.splitlines()[-1])
    assert (last["benchmark"], last["model"], last["tokens"]) == ("grpo_step", str(folder), 4)
    assert last["peers"]["limit"]["generated"] == 2 * 4 * 4

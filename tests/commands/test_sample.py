"""`ponder train sample`: verified traces of a model's own, and what can be learnt from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w
from command_line import ponder
from teaching import document, recipe_file

from ponder.train.verified import LABELS
from ponder.types import Trace, from_json


@pytest.fixture
def taught(tmp_path: Path) -> Path:
    """A folder with a model that was taught for two steps."""
    result = ponder("train", "sft", recipe_file(tmp_path, steps=2), "--run", tmp_path / "run")
    assert result.code == 0, result.err
    return tmp_path


def sample(folder: Path, *more: object) -> dict[str, object]:
    result = ponder(
        *("train", "sample", folder / "run" / "model", folder / "examples.jsonl", "-o", folder / "own.jsonl"),
        *("--n", 2, "--max-tokens", 12, "--questions", 3, "--json", *more),
    )
    assert result.code == 0, result.err
    told: dict[str, object] = json.loads(result.out)
    return told


def test_traces_of_a_models_own_can_be_learnt_from(taught: Path) -> None:
    told = sample(taught, "--completions", 2)
    assert (told["questions"], told["samples"]) == (3, 6)
    traces = [from_json(Trace, line) for line in (taught / "own.jsonl").read_text().splitlines()]
    assert [len(trace.samples) for trace in traces] == [2, 2, 2]
    assert {score.verifier for trace in traces for score in trace.scores} <= {"math_answer", LABELS}
    assert all(sample.logprobs and sample.prompt_ids for trace in traces for sample in trace.samples)
    before = (taught / "own.jsonl").read_bytes()
    assert sample(taught, "--completions", 2) == told
    assert (taught / "own.jsonl").read_bytes() == before  # nothing was sampled again
    changes = {"steps": 1, "data": {"sources": [str(taught / "own.jsonl")]}, "reward": {"held_out": 0.0}}
    (taught / "reward.toml").write_text(tomli_w.dumps(document(taught, "reward", **changes)))
    result = ponder("train", "reward", taught / "reward.toml", "--run", taught / "judge")
    assert result.code == 0, result.err


def test_mistakes_are_one_line(taught: Path) -> None:
    def said(*more: object) -> str:
        result = ponder("train", "sample", taught / "run" / "model", taught / "examples.jsonl", "-o", "x.jsonl", *more)
        assert result.code == 2
        assert len(result.err.splitlines()) == 1
        return result.err

    assert "all the same" in said("--temperature", 0)
    assert "asks a model" in said("--verifier", "judge()")

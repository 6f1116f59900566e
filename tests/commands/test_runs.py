"""`ponder runs`: evaluations from the store and trainings from their folders, listed and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import ponder, scripted

from ponder.commands import runs as commands
from ponder.train.run import METRICS

STEPS = [{"step": step, "time": step, "loss": 1 / step, "seconds": 2.0, "tokens": 100} for step in (1, 2, 3)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def evaluated(folder: Path, strategy: str = "direct", name: str = "sums") -> dict[str, Any]:
    path = folder / f"{name}.jsonl"
    rows = [{"id": f"q{i}", "question": f"What is {i} + 3?", "answer": str(i + 3)} for i in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    model = scripted(folder, "The answer is 4.")
    result = ponder("eval", path, "-m", model, "-s", strategy, "--json")
    assert result.code == 0, result
    found: dict[str, Any] = json.loads(result.out)
    return found


def trained(folder: Path, finished: bool = True, lines: int = 3) -> None:
    """A folder as `ponder train` leaves it."""
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text('kind = "sft"\n')
    logged = [{"note": {"kind": "sft", "steps": 10}}, *STEPS[:lines]]
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in logged))
    if finished:
        (folder / "model").mkdir()


def done(*arguments: object) -> str:
    result = ponder("runs", *arguments)
    assert (result.code, result.err) == (0, ""), result
    return result.out


def test_nothing_yet() -> None:
    assert done("list") == "no runs\n"
    assert json.loads(done("list", "--json")) == {"evaluations": [], "trainings": []}


def test_evaluations_and_trainings_stand_together(tmp_path: Path) -> None:
    first, second = evaluated(tmp_path), evaluated(tmp_path, "vote(2)", "more[sums]")
    trained(tmp_path / "runs" / "first")
    trained(tmp_path / "runs" / "second", finished=False)
    (tmp_path / "runs" / "no run").mkdir()
    found = json.loads(done("list", "--json"))
    assert [(each["id"], each["task"], each["strategy"], each["results"]) for each in found["evaluations"]] == [
        (second["run"], "more[sums]", "vote(2)", 4),
        (first["run"], "sums", "direct", 4),
    ]
    assert found["trainings"] == [
        {"run": "runs/first", "kind": "sft", "state": "finished", "step": 3, "steps": 10},
        {"run": "runs/second", "kind": "sft", "state": "stopped", "step": 3, "steps": 10},
    ]
    shown = done("list")
    for text in (first["run"][:10], "more[sums]", "vote(2)", "runs/second", "stopped", "3 of 10"):
        assert text in shown
    assert len(json.loads(done("list", "--limit", 1, "--json"))["evaluations"]) == 1
    searched = json.loads(done("list", "--search", "MORE", "--json"))
    assert ([each["task"] for each in searched["evaluations"]], searched["trainings"]) == (["more[sums]"], [])
    assert [each["run"] for each in json.loads(done("list", "--search", "second", "--json"))["trainings"]] == [
        "runs/second"
    ]
    assert json.loads(done("list", "--folder", tmp_path, "--json"))["trainings"] == []
    assert done("list", "--search", "nothing") == "no such runs\n"


def test_an_evaluation_is_shown_as_it_was_told(tmp_path: Path) -> None:
    told = evaluated(tmp_path)
    found = json.loads(done("show", told["run"][:8], "--json"))
    same = ("run", "task", "model", "strategy", "budget", "questions", "accuracy", "lenient", "coverage", "errors")
    assert {name: found[name] for name in same} == {name: told[name] for name in same}
    assert found["cost"]["tokens"] == told["cost"]["tokens"]
    assert found["accuracy"]["value"] == 0.25
    shown = done("show", told["run"])
    assert shown.startswith("sums · scripted · direct · 2048 tokens a question\n")
    assert "accuracy  25.0% [" in shown
    assert f"run       {told['run'][:10]}\n" in shown


def test_a_training_is_shown_by_its_folder_or_its_name(tmp_path: Path) -> None:
    trained(tmp_path / "runs" / "first")
    trained(tmp_path / "elsewhere" / "new", lines=0)
    for name in ("runs/first", "first", tmp_path / "runs" / "first"):
        found = json.loads(done("show", name, "--json"))
        assert (found["kind"], found["state"], found["step"], len(found["lines"])) == ("sft", "finished", 3, 3)
    assert "finished" in done("show", "first")
    assert json.loads(done("show", "new", "--folder", "elsewhere", "--json"))["step"] == 0


@pytest.mark.parametrize("run", ["nothing", "", "zz"])
def test_what_is_not_there_is_a_line(tmp_path: Path, run: str) -> None:
    evaluated(tmp_path)
    result = ponder("runs", "show", run)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert f"there is no run {run!r}" in result.err


def test_a_folder_without_a_run_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = ponder("runs", "show", "empty")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "holds no training run" in result.err


def test_completion_of_runs(tmp_path: Path) -> None:
    told = evaluated(tmp_path)
    trained(tmp_path / "runs" / "first")
    assert commands._complete_run("") == [told["run"][:10], "runs/first"]
    assert commands._complete_run("ru") == ["runs/first"]

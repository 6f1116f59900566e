"""recipes/ponder-135m: its recipes are read, and what it keeps of its stages is what later stages and readers need."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ponder.train.recipe_file import load
from ponder.train.verified import LABELS, verified
from ponder.types import Cost, Question, Sample, SampleFinished, Score, Scored, Trace, from_json, to_json, user

HERE = Path(__file__).parents[2] / "recipes" / "ponder-135m"


@pytest.fixture(scope="module")
def results() -> ModuleType:
    spec = spec_from_file_location("ponder_135m_results", HERE / "results.py")
    assert spec is not None
    assert spec.loader is not None
    found = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def trace(number: int) -> Trace:
    ids = tuple(random.Random(number).choices(range(50_000), k=150))
    text = f"{number} + 1 = {number + 1}"
    samples = [
        Sample(at, text, ids, ids, (True,) * 150, tuple(-at - each / 7 for each in ids), thinking=text, answer=str(at))
        for at in range(2)
    ]
    events: list[Any] = [SampleFinished(each, Cost(answer=20)) for each in samples]
    events += [Scored(Score(float(at), "math_answer"), at) for at in range(2)]
    events += [Scored(Score(0.5, LABELS, steps=(0.5, number / 1000)), 1)]
    question = Question((user(f"What is {number} + 1?"),), reference=str(number + 1))
    return Trace(f"trace-{number}", question, samples=tuple(samples), events=tuple(events))


@pytest.mark.parametrize("path", sorted(HERE.glob("*.toml")), ids=lambda path: path.stem)
def test_each_recipe_is_read(path: Path) -> None:
    assert load(path).model == "smollm2-135m-instruct"


def test_traces_come_back_with_all_that_is_learnt_from(results: ModuleType, tmp_path: Path) -> None:
    made = [trace(number) for number in range(400)]
    (tmp_path / "all.jsonl").write_text("".join(to_json(each) + "\n" for each in made))
    for number in range(20):
        results.part_of(tmp_path / "few", number).write_bytes(b"of an earlier start")
    results.pack(tmp_path / "all.jsonl", tmp_path / "few", most=50_000)
    sizes = [path.stat().st_size for path in tmp_path.glob("few-*.jsonl.xz")]
    assert 2 < len(sizes) < 20
    assert max(sizes) < 200_000
    results.unpack(tmp_path / "few")
    lines = (tmp_path / "few.jsonl").read_text().splitlines()
    found = [from_json(Trace, line) for line in lines]
    assert len((tmp_path / "few.jsonl").read_bytes()) < (tmp_path / "all.jsonl").stat().st_size / 2
    assert [each.id for each in found] == [each.id for each in made]
    for one, other in zip(verified(found), verified(made), strict=True):
        assert (one.question, one.score, one.labels) == (other.question, other.score, other.labels)
        for name in ("text", "prompt_ids", "ids", "mask", "finish", "spans", "thinking", "answer"):
            assert getattr(one.sample, name) == getattr(other.sample, name)


def test_what_was_cut_short_does_not_count_as_done(results: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text(to_json(trace(1)) + "\nno trace\n")
    with pytest.raises(ValueError, match=r"."):
        results.pack(tmp_path / "all.jsonl", tmp_path / "few")
    assert not list(tmp_path.glob("few-*.xz"))
    with pytest.raises(SystemExit, match="run the stage traces first"):
        results.unpack(tmp_path / "few")


def test_a_measurement_keeps_how_it_was_made_and_a_failure_nothing(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNS", str(tmp_path))
    monkeypatch.setenv("DATA", "/somewhere/data")
    monkeypatch.setattr(results, "hardware", lambda: "an abacus")
    said, best = "import json; print(json.dumps({'questions': 3}))", "best(verifier='of(\"a\")')"
    assert results.measured(tmp_path / "a.json", [sys.executable, "-c", said, best, f"{tmp_path}/model"]) == 0
    told = json.loads((tmp_path / "a.json").read_text())
    assert shlex.split(told["how"]["command"])[-3:-1] == [said, best]
    assert (told["questions"], told["how"]["hardware"]) == (3, "an abacus")
    assert told["how"]["command"].endswith(" $RUNS/model")
    assert str(tmp_path) not in told["how"]["command"]
    assert results.measured(tmp_path / "b.json", [sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert not (tmp_path / "b.json").exists()


def test_the_report_has_a_row_for_each_measurement_and_cards_for_both_adapters(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOLLARS", "3")
    with pytest.raises(SystemExit, match="nothing was measured yet"):
        results.report(tmp_path)
    (tmp_path / "6-measure").mkdir()
    mean = {"value": 0.5, "low": 0.4, "high": 0.625}
    how = {"command": "ponder eval x", "hardware": "an abacus", "minutes": 2.0, "date": "2026-01-01"}
    told: dict[str, Any] = {"questions": 8, "accuracy": mean, "strategy": "vote(8)", "temperature": 0.8, "seeds": 2}
    told |= {"cost": {"tokens": 123.4}, "how": how}
    gain = {"difference": {"value": 0.1, "low": -0.1, "high": 0.3}, "strategy": "vote(8)", "questions": 8}
    for name, more in (("multiarith-vote", {}), ("multiarith-best", {"against": gain})):
        (tmp_path / "6-measure" / f"{name}.json").write_text(json.dumps(told | more))
    (tmp_path / "seconds.txt").write_text("distill 30\nmeasure 60\ndistill 90\n")
    for run, name in (("5-distill", "ponder-135m"), ("4-reward", "process")):
        folder = tmp_path / run / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text('{"r": 24, "lora_alpha": 48, "base_model_name_or_path": "base"}')
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        (folder / f"{name}.gguf").write_bytes(b"the same")
        note = {"data": {"examples": 70, "sha256": "0"}, "machine": {"device": "an abacus"}}
        lines = [{"note": note}, {"step": 9, "loss": 0.25, "held_out_accuracy": 0.75}]
        (tmp_path / run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results.report(tmp_path)
    board = (tmp_path / "LEADERBOARD.md").read_text()
    row = "| multiarith-vote | 8 | vote(8), temperature 0.8 | 50.0% [40.0, 62.5] | 123 | 2 | an abacus | 2.0 | 0.10 |"
    assert row in board
    assert "+10.0 [-10.0, +30.0] points over vote(8), paired on 8 questions" in board
    assert "| distill | 70 examples | 9 | an abacus | 2.0 | 0.10 |" in board
    assert "proof" not in board
    card = (tmp_path / "5-distill" / "ponder-135m" / "MODEL_CARD.md").read_text()
    assert "rank 24, alpha 48" in card
    assert "`ponder-135m.gguf` | 8 bytes, SHA-256 `" in card
    assert row in card
    assert "held out accuracy 0.75" in (tmp_path / "4-reward" / "process" / "MODEL_CARD.md").read_text()
    (tmp_path / "small").touch()
    results.report(tmp_path)
    assert "No number below is a result" in (tmp_path / "LEADERBOARD.md").read_text()


@pytest.mark.parametrize(
    ("stage", "before", "told"),
    [
        ("cold", None, "there is no stage cold: choose from cold_start grpo"),
        ("measure", "small", "holds a run of the other scale"),
        ("reward", None, "stage reward stopped with code 1"),
    ],
)
def test_what_cannot_be_run_is_one_line(stage: str, before: str | None, told: str, tmp_path: Path) -> None:
    if before:
        (tmp_path / before).touch()
    places = {"DATA": str(tmp_path), "RUNS": str(tmp_path), "PONDER": "true", "PYTHON": sys.executable}
    ran = subprocess.run(
        ["bash", str(HERE / "run.sh"), stage], env=os.environ | places, capture_output=True, text=True, check=False
    )
    assert ran.returncode != 0
    assert told in ran.stderr
    assert "Traceback" not in ran.stderr

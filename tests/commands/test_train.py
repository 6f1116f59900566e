"""`ponder train` as a user runs it: what it does, shows and refuses, and how it is stopped."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Terminal, end, ponder, start
from safetensors.torch import load_file
from teaching import recipe_file

from ponder.commands import train
from ponder.commands.training import measured
from ponder.improve import KINDS
from ponder.train.folder import LOCK, locked
from ponder.train.run import steps_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ESCAPE = "\x1b"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_run(tmp_path: Path) -> None:
    recipe, folder = recipe_file(tmp_path), tmp_path / "run"
    result = ponder("train", "sft", recipe, "--run", folder)
    assert (result.code, result.err) == (0, "")
    assert f"result    {folder / 'model'}" in result.out
    assert re.search(r"trained   6 steps, [\d,]+ tokens", result.out)
    assert ESCAPE not in result.out
    assert (folder / "page.html").exists()
    # The same command finds that all is done, and says the same.
    again = ponder("train", "sft", recipe, "--run", folder, "--json")
    told = json.loads(again.out)
    assert (told["steps"], told["kind"], told["result"]) == (6, "sft", str(folder / "model"))
    assert told["last"]["loss"] == steps_of(folder)[-1]["loss"]


def test_the_run_is_called_as_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_file(tmp_path, steps=1)
    monkeypatch.chdir(tmp_path)
    assert ponder("train", "sft", recipe).code == 0
    assert (tmp_path / "runs" / "sft" / "model").is_dir()


def test_values_from_the_command_line(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path)
    settings = ("--set", "steps=2", "--set", "optimizer.rate=5e-4")
    told = json.loads(ponder("train", "sft", recipe, "--run", tmp_path / "run", *settings, "--json").out)
    assert (told["steps"], told["last"]["rate"]) == (2, 5e-4)
    other = ponder("train", "sft", recipe, "--run", tmp_path / "run")
    assert other.code == 2
    assert "was begun with steps = 2, not 6" in other.err


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    recipe, folder = recipe_file(tmp_path), tmp_path / "run"
    before = sorted(tmp_path.rglob("*"))
    told = json.loads(ponder("train", "sft", recipe, "--run", folder, "--dry-run", "--json").out)
    assert told["data"]["examples"] == 12
    shown = ponder("train", "sft", recipe, "--run", folder, "--dry-run").out
    assert "12 examples" in shown
    assert f"{told['parameters']['trained']:,} of {told['parameters']['all']:,} parameters" in shown
    assert "6 of 4 a step: 2 epochs" in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_every_kind_has_its_command() -> None:
    assert set(train.WHAT) == set(KINDS)
    for kind in KINDS:
        assert f"ponder train {kind} recipe.toml" in ponder("train", kind, "--help").out


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("steps = 6", "stpes = 6"), "there is no 'stpes'. Did you mean steps?"),
        (("steps = 6", "steps = 6\nepochs = 2"), "steps and epochs both say how long"),
        (("full = true", 'full = true\nadapter = "own"'), "full and adapter contradict each other"),
        (("steps = 6", "steps ="), "is no TOML"),
    ],
)
def test_a_recipe_that_cannot_be(change: tuple[str, str], told: str, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path)
    text = recipe.read_text()
    assert change[0] in text
    recipe.write_text(text.replace(*change))
    result = ponder("train", "sft", recipe, "--run", tmp_path / "run")
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert told in result.err
    assert not (tmp_path / "run").exists()


def test_the_wrong_kind(tmp_path: Path) -> None:
    result = ponder("train", "dpo", recipe_file(tmp_path), "--run", tmp_path / "run")
    assert result.code == 2
    assert 'has kind = "sft". Run: ponder train sft ' in result.err


def test_no_data(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path)
    (tmp_path / "examples.jsonl").write_text("")
    result = ponder("train", "sft", recipe, "--run", tmp_path / "run")
    assert result.code == 2
    assert result.err.count("\n") == 1


def test_no_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else True)
    for command in (("train", "sft", recipe_file(tmp_path)), ("export", tmp_path, "--to", "peft")):
        result = ponder(*command)
        assert result.code == 2
        assert result.err == "ponder: training needs the package peft. Run: pip install 'ponder[train]'.\n"


def test_of_several_processes_one_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    result = ponder("train", "sft", tmp_path / "missing.toml")
    assert (result.code, result.out, result.err) == (2, "", "")


GROUPS = {
    "batch": None,
    "grpo": {"prompts": 3, "samples": 2, "max_tokens": 40, "answer": 4, "rewards": {"normalised_text()": 1.0}},
}


@pytest.mark.parametrize(("kind", "changes"), [("sft", {}), ("grpo", GROUPS)])
def test_two_processes_train_as_one(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, kind, steps=3, tokens=128, **changes)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "--"]
    command = [*torchrun, "ponder.cli", "train", kind, str(recipe), "--run", str(tmp_path / "two"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 3  # one document: the other process is silent
    ponder("train", kind, recipe, "--run", tmp_path / "one")
    rollouts = [
        [path.read_text() for path in sorted((tmp_path / name / "rollouts").glob("*"))] for name in ("one", "two")
    ]
    assert [len(texts) for texts in rollouts] == ([0, 0] if kind == "sft" else [3, 3])
    one, two = ([line.get("loss", line.get("length")) for line in steps_of(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-5)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])


# ---------------------------------------------------------------- stopped, and watched


def wait_for_steps(process: subprocess.Popen[bytes], folder: Path, count: int, timeout: float = 90) -> None:
    deadline = time.monotonic() + timeout
    while not (folder / "metrics.jsonl").exists() or len(steps_of(folder)) < count:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"it does not train: {end(process)}")
        time.sleep(0.05)


def test_ctrl_c_then_kill_then_the_same_command(tmp_path: Path) -> None:
    """A run that was stopped and killed on the way loses no step and repeats none in its metrics."""
    recipe, folder = recipe_file(tmp_path, steps=150, save_every=20), tmp_path / "run"
    command = ("train", "sft", recipe, "--run", folder)
    process = start(*command)
    wait_for_steps(process, folder, 3)
    process.send_signal(signal.SIGINT)
    result = end(process, 60)
    assert (result.code, result.out) == (130, "")
    assert re.fullmatch(r"ponder: stopped after step \d+ of 150. The same command goes on.\n", result.err)
    done = len(steps_of(folder))
    process = start(*command)
    wait_for_steps(process, folder, done + 5)
    process.kill()
    end(process)
    result = ponder("train", "watch", folder, "--json")
    assert json.loads(result.out)["state"] == "stopped"
    result = ponder(*command)
    assert result.code == 0
    assert "going on after step" in result.err
    assert [line["step"] for line in steps_of(folder)] == list(range(1, 151))


@pytest.mark.parametrize("colours", [False, True])
def test_a_terminal_has_a_bar(colours: bool, tmp_path: Path) -> None:
    recipe, folder = recipe_file(tmp_path, steps=100_000), tmp_path / "run"
    environment = {} if colours else {"NO_COLOR": "1"}
    with Terminal("train", "sft", recipe, "--run", folder, OMP_NUM_THREADS="1", **environment) as terminal:
        terminal.expect("tokens/s", timeout=100)
        assert "loss " in terminal.seen
        terminal.type("\x03")
        assert terminal.end(60) == 130
        assert "The same command goes on." in terminal.seen
        assert ("\x1b[3" in terminal.seen) is colours


def test_watching(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert ponder("train", "watch", folder).code == 2
    ponder("train", "sft", recipe_file(tmp_path), "--run", folder)
    for shown in (ponder("train", "watch", folder).out, ponder("train", "watch", folder, "--once").out):
        assert "sft · finished" in " ".join(shown.split())
        assert "step 6 of 6" in shown
        assert ESCAPE not in shown
    told = json.loads(ponder("train", "watch", folder, "--json").out)
    assert (told["state"], told["step"], len(told["lines"])) == ("finished", 6, 6)


def test_a_run_that_goes_on_is_followed(tmp_path: Path) -> None:
    """On a terminal it is shown until it ends: here, once its lock is given back."""
    folder = tmp_path / "run"
    ponder("train", "sft", recipe_file(tmp_path), "--run", folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-2]))
    with locked(folder), Terminal("train", "watch", folder) as terminal:
        terminal.expect("step 4 of 6", timeout=60)
        (folder / "metrics.jsonl").write_text("".join(lines))
        terminal.expect("step 6 of 6")
        terminal.type("\x03")
        assert terminal.end() == 130
    assert (folder / LOCK).exists()


def test_what_is_said_of_a_step() -> None:
    values = {"loss": 1.23456, "reward": 0.5, "length": 12.0, "tokens": 3000, "seconds": 2.0, "rate": 1e-4}
    assert measured(values) == "loss 1.235 · reward 0.5 · length 12 · 1,500 tokens/s"
    assert measured({}) == ""

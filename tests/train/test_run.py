"""A run's folder: stopped, killed, starved of disk, used twice; and the same call afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from teaching import losses, prepared

from ponder.errors import InputError, TrainingError
from ponder.improve import improve
from ponder.train import sft as loop
from ponder.train.folder import facts, locked, running
from ponder.train.interrupt import InterruptibleOptimizer
from ponder.train.optimizer import Optimizer
from ponder.train.place import kept_recipe
from ponder.train.recipe import Recipe
from ponder.train.recipe_file import dump
from ponder.train.run import METRICS, Run, notes_of, steps_of
from ponder.train.trainer import Stopped

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return prepared(tmp_path, save_every=4)


@pytest.fixture
def whole(tmp_path: Path, recipe: Recipe) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses and weights of the run that nothing happened to."""
    result = improve(recipe, tmp_path / "whole")
    return losses(steps_of(tmp_path / "whole")), load_file(result / "model.safetensors")


def is_whole(folder: Path, whole: tuple[list[float], dict[str, torch.Tensor]]) -> bool:
    weights = load_file(folder / "model" / "model.safetensors")
    same = all(torch.equal(weights[name], whole[1][name]) for name in whole[1])
    return same and losses(steps_of(folder)) == whole[0]


def saved(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in sorted((folder / "checkpoints").glob("step-*"))]


# ---------------------------------------------------------------- stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves_it(tmp_path, recipe, whole, number) -> None:
    def press(step: int, steps: int, values: object) -> None:
        if step == 3:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=r"stopped after step 3 of 6. The same command goes on") as raised:
        improve(recipe, tmp_path / "run", shown=press)
    assert raised.value.exit_code == 130
    assert signal.getsignal(number) is before
    assert saved(tmp_path / "run") == [3]
    improve(recipe, tmp_path / "run")
    assert is_whole(tmp_path / "run", whole)


def test_twice_gives_the_step_up_and_keeps_those_before(tmp_path, recipe, whole, monkeypatch) -> None:
    real = loop.batch

    def batch(count: int, size: int, step: int, seed: int) -> list[int]:
        if step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return real(count, size, step, seed)

    monkeypatch.setattr(loop, "batch", batch)
    with pytest.raises(Stopped, match=r"stopped in step 3 of 6. The same command begins it again"):
        improve(recipe, tmp_path / "run")
    assert saved(tmp_path / "run") == [2]
    monkeypatch.undo()
    improve(recipe, tmp_path / "run")
    assert is_whole(tmp_path / "run", whole)


def test_a_step_that_has_changed_the_weights_is_finished(tmp_path, recipe, whole, monkeypatch) -> None:
    real, times = Optimizer.step, []

    def step(self: Optimizer, rate: float) -> float:
        times.append(rate)
        if len(times) == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return real(self, rate)

    monkeypatch.setattr(Optimizer, "step", step)
    with pytest.raises(Stopped, match="stopped after step 3 of 6"):
        improve(recipe, tmp_path / "run")
    monkeypatch.undo()
    assert saved(tmp_path / "run") == [3]
    improve(recipe, tmp_path / "run")
    assert is_whole(tmp_path / "run", whole)


def test_an_optimizer_knows_what_it_changed() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = InterruptibleOptimizer([("weight", weight)])
    weight.grad = torch.ones(2, 2)
    assert not optimizer.changed
    optimizer.step(0.1)
    assert optimizer.changed
    assert not torch.equal(weight, torch.ones(2, 2))


# ---------------------------------------------------------------- killed

CHILD = """
import os, signal, sys, tomllib, torch
torch.set_num_threads(1)
from pathlib import Path
from ponder.improve import improve
from ponder.train.recipe_file import read
def shown(step, steps, values):
    if step == int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)
improve(read(tomllib.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]), shown=shown)
"""


def test_killed_and_gone_on(tmp_path, recipe, whole) -> None:
    """Killed after step 5, of which checkpoints know nothing, with its last line and a checkpoint half-written."""
    (tmp_path / "recipe.toml").write_text(dump(recipe))
    folder = tmp_path / "run"
    command = [sys.executable, "-c", CHILD, str(tmp_path / "recipe.toml"), str(folder), "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert saved(folder) == [4]
    assert facts(folder, 3, 3)["state"] == "stopped"
    with (folder / METRICS).open("a") as file:
        file.write('{"step": 6, "lo')
    (folder / "checkpoints" / ".step-00000005.part").mkdir()
    improve(recipe, folder)
    assert is_whole(folder, whole)


# ---------------------------------------------------------------- used otherwise


def test_one_process_at_a_time(tmp_path, recipe) -> None:
    folder = tmp_path / "run"
    with locked(folder):
        program = "import sys; from pathlib import Path; from ponder.train.folder import *\n"
        program += f"print(running(Path({str(folder)!r})))\nwith locked(Path({str(folder)!r})): pass"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.stdout == "True\n"
        assert "another process trains in" in done.stderr
    assert not running(folder)
    assert not running(tmp_path)


def test_another_recipe_is_refused(tmp_path, recipe) -> None:
    improve(recipe, tmp_path / "run")
    with pytest.raises(InputError, match=r"was begun with batch = 4, not 8"):
        improve(recipe.model_copy(update={"batch": 8}), tmp_path / "run")
    assert kept_recipe(tmp_path / "run") == recipe


def test_other_data_is_refused(tmp_path, recipe) -> None:
    def stop(step: int, steps: int, values: object) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped):
        improve(recipe, tmp_path / "run", shown=stop)
    file = tmp_path / "examples.jsonl"
    file.write_text(file.read_text().replace("3", "4"))
    with pytest.raises(InputError, match=r"the data of the run in .* has changed"):
        improve(recipe, tmp_path / "run")


def test_a_folder_of_something_else_is_left_alone(tmp_path, recipe) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds other files"):
        improve(recipe, tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is no folder"):
        improve(recipe, tmp_path / "file")
    with pytest.raises(InputError, match="holds no training run"):
        kept_recipe(tmp_path)
    with pytest.raises(InputError, match="holds no training run"):
        facts(tmp_path, 1, 1)


FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file that grows too large is then an error, as on a full disk
from ponder.cli import main
import ponder.improve
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
main()
"""


def test_a_full_disk_is_told_in_a_line(tmp_path, recipe) -> None:
    (tmp_path / "recipe.toml").write_text(dump(recipe))
    command = [
        sys.executable,
        "-c",
        FULL,
        "train",
        "sft",
        str(tmp_path / "recipe.toml"),
        "--run",
        str(tmp_path / "run"),
    ]
    # What measures coverage in child processes would hit the bound too, and complain of it.
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, env=unmeasured)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "cannot be written" in done.stderr
    assert "Free disk space" in done.stderr
    assert saved(tmp_path / "run") == []
    improve(recipe, tmp_path / "run")
    assert len(steps_of(tmp_path / "run")) == 6


# ---------------------------------------------------------------- how it is seen from outside


def test_how_far_a_run_is(tmp_path, recipe) -> None:
    seen: list[dict[str, Any]] = []
    folder = tmp_path / "run"
    improve(recipe, folder, shown=lambda step, steps, values: seen.append(facts(folder, 2, 3)))
    assert [each["step"] for each in seen] == [1, 2, 3, 4, 5, 6]
    assert {each["steps"] for each in seen} == {6}
    took = [line["seconds"] for line in seen[1]["lines"]]
    assert seen[1]["seconds_left"] == pytest.approx(4 * sum(took) / 2)
    assert seen[1]["steps_per_minute"] == pytest.approx(60 * 2 / sum(took))
    assert [line["step"] for line in seen[3]["lines"]] == [3, 4]
    done = facts(folder, 2, 3)
    assert (done["state"], done["seconds_left"], done["kind"]) == ("finished", 0, "sft")
    assert notes_of(folder)["machine"]["versions"]["torch"] == torch.__version__


def test_watching_loads_no_torch(tmp_path, recipe) -> None:
    improve(recipe, tmp_path / "run")
    program = "import sys; from pathlib import Path; from ponder.train.folder import facts\n"
    program += f"assert facts(Path({str(tmp_path / 'run')!r}), 1, 1)['step'] == 6\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_line_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / METRICS).mkdir()
    with pytest.raises(TrainingError, match="cannot be written"):
        Run(tmp_path).log(1, 2, {"loss": 1.0})

"""Trackers: what a recipe asks for, written as the tools read it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from teaching import prepared

from ponder.errors import MissingExtra
from ponder.improve import improve
from ponder.train.run import steps_of
from ponder.train.track import TensorBoard, WeightsAndBiases, trackers
from ponder.train.trainer import Stopped

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard would draw."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(each.step, each.value) for each in accumulator.Scalars(name)]


def test_nothing_is_loaded_that_nobody_asked_for(tmp_path: Path) -> None:
    assert trackers(prepared(tmp_path), tmp_path) == []


def test_tensorboard_has_every_step_once(tmp_path: Path) -> None:
    """Also where a run was stopped between checkpoints and repeated steps."""
    pytest.importorskip("tensorboard")
    recipe, folder = prepared(tmp_path, steps=5, save_every=2, track={"tensorboard": True}), tmp_path / "run"

    def cut(step: int, steps: int, values: object) -> None:
        if step == 3:
            raise Stopped("cut")

    with pytest.raises(Stopped):
        improve(recipe, folder, shown=cut)
    improve(recipe, folder)
    written = scalars(folder / "tensorboard", "loss")
    assert [step for step, _ in written] == [1, 2, 3, 4, 5]
    assert [value for _, value in written] == pytest.approx([line["loss"] for line in steps_of(folder)])


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = TensorBoard(tmp_path)
    tracker.log(1, {"loss": float("nan"), "rate": 1.0})
    tracker.close()
    assert scalars(tmp_path, "rate") == [(1, 1.0)]
    with pytest.raises(KeyError):
        scalars(tmp_path, "loss")


@pytest.mark.parametrize(
    ("package", "track", "command"),
    [
        ("tensorboard", {"tensorboard": True}, "pip install 'ponder[tracking]'"),
        ("wandb", {"wandb": "sums"}, "pip install wandb"),
    ],
)
def test_a_missing_package_is_told(package: str, track: dict[str, Any], command: str, tmp_path: Path) -> None:
    recipe = prepared(tmp_path, track=track)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None if name == package else True)
        with pytest.raises(MissingExtra, match=package) as raised:
            trackers(recipe, tmp_path)
    assert command in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed, a run that is not sent anywhere."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = WeightsAndBiases("sums", prepared(tmp_path), tmp_path)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert "wandb" in sys.modules

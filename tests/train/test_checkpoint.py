from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from train.trained import largest_file

from ponder.errors import TrainingError
from ponder.train import checkpoint

TENSORS = {
    "weight.a": torch.arange(6.0).reshape(2, 3),
    "exp_avg.a": torch.full((2, 3), 0.5),
    "step.a": torch.tensor(3.0),
}


def saved(folder: Path, *steps: int) -> list[Path]:
    return [checkpoint.save(folder, step, TENSORS, {"trainer": {"seen": step}}) for step in steps]


def test_what_is_saved_is_loaded(tmp_path):
    (path,) = saved(tmp_path, 7)
    found = checkpoint.load(path)
    assert (found.step, found.path, found.state["trainer"]) == (7, path, {"seen": 7})
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in TENSORS.items())


def test_the_newest_ones_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 9, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000009", "step-00000010"]
    assert checkpoint.newest(tmp_path)[0].step == 10
    assert checkpoint.newest(tmp_path / "none") == (None, [])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


DAMAGES = [
    (name, damage)
    for name in ("training.safetensors", "state.json", "manifest.json")
    for damage in (cut, change, Path.unlink)
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_one_is_told_and_the_one_before_is_taken(name, damage, tmp_path):
    older, newer = saved(tmp_path, 3, 4)
    damage(newer / name)
    with pytest.raises(TrainingError) as caught:
        checkpoint.load(newer)
    assert str(newer) in str(caught.value)
    assert "\n" not in str(caught.value)
    found, damaged = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.path == older
    assert found.step == 3
    assert len(damaged) == 1
    assert "step-00000004" in damaged[0]


def test_a_crash_while_one_is_written_leaves_no_checkpoint(tmp_path):
    older, newer = saved(tmp_path, 3, 4)
    os.rename(newer, tmp_path / ".step-00000004.part")  # as a process that was killed leaves it
    found, damaged = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.path, damaged) == (older, [])
    saved(tmp_path, 4)
    assert checkpoint.newest(tmp_path)[0].step == 4
    assert not list(tmp_path.glob(".*"))


def test_one_of_the_same_step_takes_the_place_of_the_old(tmp_path):
    (path,) = saved(tmp_path, 4)
    cut(path / "state.json")
    checkpoint.save(tmp_path, 4, {"x": torch.ones(1)}, {"again": True})
    assert checkpoint.load(path).state["again"] is True


def test_a_full_disk_is_told_and_the_one_before_stays_whole(tmp_path):
    (older,) = saved(tmp_path, 3)
    large = {"weight.a": torch.ones(5000)}
    with largest_file(4000), pytest.raises(TrainingError, match="step 4 cannot be written") as caught:
        checkpoint.save(tmp_path, 4, large, {})
    assert "\n" not in str(caught.value)
    assert "the last one, step-00000003, is whole" in caught.value.mend
    assert [path.name for path in tmp_path.iterdir()] == [older.name]
    assert checkpoint.load(older).step == 3


def test_a_full_disk_at_the_first_one_says_that_there_is_none(tmp_path):
    with largest_file(4000), pytest.raises(TrainingError) as caught:
        checkpoint.save(tmp_path / "new", 1, {"weight.a": torch.ones(5000)}, {})
    assert "there is none before it" in caught.value.mend
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_disk_at_the_small_files_too(tmp_path):
    (older,) = saved(tmp_path, 3)
    with largest_file(4000), pytest.raises(TrainingError, match="cannot be written"):
        checkpoint.save(tmp_path, 4, {"x": torch.ones(1)}, {"long": "x" * 10_000})
    assert [path.name for path in tmp_path.iterdir()] == [older.name]


def test_a_place_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be written to"):
        checkpoint.save(tmp_path / "file" / "checkpoints", 1, TENSORS, {})


def test_the_manifest_says_what_the_files_are(tmp_path):
    (path,) = saved(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert {name: size for name, (size, _) in manifest.items()} == {
        name: (path / name).stat().st_size for name in ("training.safetensors", "state.json")
    }
    copied = tmp_path / "moved"
    shutil.copytree(path, copied)
    assert checkpoint.load(copied).step == 1


def test_seeds_draw_the_same_again_and_leave_what_is_outside():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    draws = []
    for numbers in ((0, 1), (0, 1), (0, 2), (1, 1), (0, 1, 0)):
        with checkpoint.seeded(*numbers):
            draws.append(torch.rand(3).tolist())
    assert torch.equal(torch.rand(2), expected)
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 4

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train.devices_child import outcome
from train.trained import small, steps_without_times, trainer_in

from ponder.errors import InputError
from ponder.train.devices import Devices, find_devices
from ponder.train.rows import Row, packed

HERE = Path(__file__).parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes trained, as torchrun starts them."""
    folder = tmp_path_factory.mktemp("together")
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(HERE / "devices_child.py"), str(folder), "ddp", "fsdp"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outcome(tmp_path_factory.mktemp("alone"), find_devices())


@pytest.mark.parametrize("sharing", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(sharing, together, alone):
    """With a number of micro-batches that two do not share out evenly."""
    found = torch.load(together / f"{sharing}.pt")
    before = dict(small().named_parameters())
    for name, value in alone["state"].items():
        if name.startswith("weight."):
            assert torch.allclose(found["state"][name], value, atol=1e-6, rtol=0), name
    moved = [float((alone["state"][f"weight.{name}"] - p.detach()).abs().max()) for name, p in before.items()]
    assert min(moved) > 1e-4
    assert found["state"].keys() == alone["state"].keys()  # moments too: each weight had a gradient
    for one, other in zip(found["scores"], alone["scores"], strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("sharing", ["ddp", "fsdp"])
def test_they_measure_what_one_does_and_write_it_once(sharing, together, alone):
    for kind in ("sft", "dpo", "distill"):
        for found, expected in zip(steps_without_times(together / sharing / kind), alone["lines"][kind], strict=True):
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-5), kind


@pytest.mark.parametrize("sharing", ["ddp", "fsdp"])
def test_they_go_on_where_they_were_stopped(sharing, together, alone):
    found = torch.load(together / f"{sharing}.pt")
    assert found["resumed"]["step"] == 4
    for name, value in found["state"].items():
        if name.startswith("weight."):
            assert torch.allclose(found["resumed"]["state"][name], value, atol=1e-6, rtol=0), name


@pytest.mark.parametrize("sharing", ["ddp", "fsdp"])
def test_their_checkpoints_are_whole_ones(sharing, together):
    """One process takes up weights and moments that two have saved."""
    found = torch.load(together / f"{sharing}.pt")["state"]
    one = trainer_in(together / sharing / "sft")
    assert list(one.steps()) == []
    assert one.step == 4
    state = one.optimizer.state()
    assert state.keys() == found.keys()
    assert all(torch.equal(state[name], found[name]) for name in found)


# ---------------------------------------------------------------- alone, but one of several


def test_shares_are_as_many_each_and_whole_together():
    packs = packed([Row([1] * size, [True] * size, {"x": [2.0] * size}) for size in (9, 8, 7, 6, 5)], 9)
    shares = [Devices(CPU, rank, 3).share(packs) for rank in range(3)]
    assert [len(share) for share in shares] == [2, 2, 2]
    assert sorted(number for share in shares for pack in share for number in pack.rows) == [0, 1, 2, 3, 4]
    (filler,) = [pack for share in shares for pack in share if not pack.rows]
    assert not filler.values["x"].any()
    assert Devices(CPU).share(packs) == packs


def test_items_are_dealt_out_and_no_process_is_alone_in_what_it_says():
    dealt = [Devices(CPU, rank, 3).dealt(list(range(7))) for rank in range(3)]
    assert dealt == [[0, 3, 6], [1, 4], [2, 5]]
    one = Devices(CPU)
    assert one.gathered([1, 2]) == [1, 2]
    assert one.sums({"a": 1.5}) == {"a": 1.5}
    assert one.agreed(True)
    assert not one.agreed(False)
    assert one.first
    assert not replace(one, rank=1, world=2).first


def test_half_precision_weights_are_not_summed_by_several():
    with pytest.raises(InputError, match="is trained in half precision"):
        Devices(CPU, 0, 2).wrap(small(dtype=torch.bfloat16))


def test_one_process_finds_itself(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert find_devices(device="cpu") == Devices(CPU)

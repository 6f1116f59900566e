"""`ponder export`: a run, or any of its checkpoints, as the files that engines open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import ponder
from safetensors.torch import load_file
from teaching import prepared

from ponder.engine.gguf_header import read_header
from ponder.engine.torch_load import load
from ponder.improve import improve

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    improve(prepared(folder, steps=3, save_every=2), folder / "full")
    improve(prepared(folder, steps=3, full=None, lora={"rank": 2}), folder / "lora")
    return folder


def test_an_adapter_for_llama_cpp(runs: Path, tmp_path: Path) -> None:
    result = ponder("export", runs / "lora", "--to", "gguf", "--output", tmp_path / "a.gguf")
    assert (result.code, result.out) == (0, f"{tmp_path / 'a.gguf'}\n")
    assert read_header(tmp_path / "a.gguf").is_adapter


def test_a_whole_model_for_llama_cpp(runs: Path, tmp_path: Path) -> None:
    sizes = {}
    for run, packing in (("full", "f16"), ("full", "q8_0"), ("lora", "f32")):
        target = tmp_path / f"{packing}.gguf"
        merge = ["--merge"] if run == "lora" else []
        result = ponder("export", runs / run, "--to", "gguf", "--packing", packing, "-o", target, *merge)
        assert result.code == 0, result.err
        assert not read_header(target).is_adapter
        sizes[packing] = target.stat().st_size
    assert sizes["q8_0"] < sizes["f16"] < sizes["f32"]


def test_a_folder_for_transformers(runs: Path) -> None:
    told: dict[str, Any] = json.loads(ponder("export", runs / "full", "--to", "safetensors", "--json").out)
    assert (told["step"], told["whole"], told["output"]) == (3, True, str(runs / "full" / "safetensors"))
    one, other = (load(str(runs / "full" / name)).model.state_dict() for name in ("model", "safetensors"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_earlier_checkpoint(runs: Path, tmp_path: Path) -> None:
    for step in (2, 3):
        checkpoint = runs / "lora" / "checkpoints" / f"step-{step:08d}"
        told = json.loads(ponder("export", checkpoint, "--to", "peft", "-o", tmp_path / str(step), "--json").out)
        assert told["step"] == step
        kept = load_file(checkpoint / "training.safetensors")
        written = load_file(tmp_path / str(step) / "adapter_model.safetensors")
        for name, value in written.items():
            assert torch.equal(value, kept[f"weight.{name.replace('.weight', '.default.weight')}"])


def test_an_adapter_in_half_the_bytes(runs: Path, tmp_path: Path) -> None:
    assert ponder("export", runs / "lora", "--to", "peft", "-o", tmp_path / "f32").code == 0
    assert ponder("export", runs / "lora", "--to", "peft", "--packing", "f16", "-o", tmp_path / "f16").code == 0
    exact, half = (load_file(tmp_path / kind / "adapter_model.safetensors") for kind in ("f32", "f16"))
    assert {values.dtype for values in half.values()} == {torch.float16}
    assert all(torch.equal(half[name], values.to(torch.float16)) for name, values in exact.items())
    assert load(str(tmp_path / "f16"), base=str(runs / "tiny")).adapters[0].path == tmp_path / "f16"


@pytest.mark.parametrize(
    ("source", "options", "told"),
    [
        ("full", ["--to", "peft"], "no adapter"),
        ("full", ["--to", "gguf", "--merge"], "--merge is for an adapter"),
        ("lora", ["--to", "safetensors", "--merge"], "--merge is for an adapter"),
        ("lora", ["--to", "gguf", "--packing", "q8_0"], "not stored as q8_0"),
        ("lora", ["--to", "safetensors", "--packing", "f16"], "keep the weights' own type"),
        ("tiny", ["--to", "gguf"], "neither a training run nor a checkpoint"),
        ("lora/checkpoints/step-00000009", ["--to", "peft"], "neither a training run nor a checkpoint"),
        ("lora", ["--to", "onnx"], "onnx"),
    ],
)
def test_what_cannot_be_exported(source: str, options: list[str], told: str, runs: Path, tmp_path: Path) -> None:
    result = ponder("export", runs / source, *options, "--output", tmp_path / "out")
    assert (result.code, result.out) == (2, "")
    assert told in result.err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_was_damaged(runs: Path, tmp_path: Path) -> None:
    improve(prepared(tmp_path, steps=1), tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "step-00000001" / "training.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for source in (weights.parent, tmp_path / "run"):
        result = ponder("export", source, "--to", "safetensors")
        assert result.code == 2
        assert "was cut short or changed" in result.err

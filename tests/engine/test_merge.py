"""Merging an adapter into its base: against a plain reference, and where it cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

from ponder.engine import merge as merging
from ponder.engine.merge import merge, merged
from ponder.errors import WeightsError

RANDOM = np.random.default_rng(0)
Q4_1, F32 = GGMLQuantizationType.Q4_1, GGMLQuantizationType.F32


def write(path: Path, tensors: dict[str, tuple[np.ndarray, GGMLQuantizationType]], **keys: float) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_string("general.name", "tiny")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for key, value in keys.items():
        writer.add_float32(key.replace("_", "."), value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    weights = RANDOM.normal(size=(64, 32)).astype(np.float32)
    return write(
        tmp_path / "base.gguf",
        {
            "up.weight": (quantize(weights, Q4_1), Q4_1),
            "down.weight": (quantize(weights.T.copy(), Q4_1), Q4_1),
            "norm.weight": (weights[0], F32),
        },
    )


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    a, b = RANDOM.normal(size=(4, 32)), RANDOM.normal(size=(64, 4))
    factors = {"up.weight.lora_a": (a.astype(np.float32), F32), "up.weight.lora_b": (b.astype(np.float32), F32)}
    return write(folder / "adapter.gguf", factors, adapter_lora_alpha=8.0)


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {t.name: dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in GGUFReader(path).tensors}


def test_the_update_is_alpha_over_r_times_b_a_in_the_faster_form(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(base, adapter, tmp_path / "merged.gguf")
    before, factors, after = tensors(base), tensors(adapter), tensors(tmp_path / "merged.gguf")
    wanted = before["up.weight"].copy()
    for row in range(64):
        for column in range(32):
            update = sum(factors["up.weight.lora_b"][row, k] * factors["up.weight.lora_a"][k, column] for k in range(4))
            wanted[row, column] += 8.0 / 4 * update
    # A block of Q8_0 is 32 numbers in steps of its largest over 127.
    step = np.abs(wanted).max(axis=1, keepdims=True) / 127
    assert (np.abs(after["up.weight"] - wanted) <= 0.6 * step).all()
    kinds = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "merged.gguf").tensors}
    assert kinds == {"up.weight": "Q8_0", "down.weight": "Q8_0", "norm.weight": "F32"}


def test_what_is_not_adapted_and_the_keys_stay(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(base, adapter, tmp_path / "merged.gguf")
    assert (tensors(tmp_path / "merged.gguf")["norm.weight"] == tensors(base)["norm.weight"]).all()
    fields = GGUFReader(tmp_path / "merged.gguf").fields
    assert fields["general.name"].contents() == "tiny"
    assert fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]


def test_it_is_made_once_and_then_found(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    path = merged(base, "0" * 64, adapter, "1" * 64, lambda what, done, total: seen.append(done))
    assert seen[-1] == 3
    monkeypatch.setattr(merging, "merge", lambda *_: pytest.fail("made again"))
    assert merged(base, "0" * 64, adapter, "1" * 64) == path
    assert not list(path.parent.glob("*.part"))


def test_an_adapter_of_another_base_is_refused_and_leaves_nothing(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.gguf", {"up.weight": (np.zeros((8, 8), np.float32), F32)})
    with pytest.raises(WeightsError, match=r"does not fit up\.weight"):
        merged(other, "2" * 64, adapter, "1" * 64)
    bare = write(tmp_path / "bare.gguf", {"norm.weight": (np.zeros(8, np.float32), F32)})
    with pytest.raises(WeightsError, match=r"which .* does not have"):
        merged(bare, "3" * 64, adapter, "1" * 64)
    assert not [*tmp_path.glob("*.part"), *tmp_path.glob("tiny-*.gguf")]

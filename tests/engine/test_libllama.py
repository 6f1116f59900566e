"""The binding of llama.cpp: what it refuses to load, its tokens, and the cache that the scheduler builds on."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xllamacpp
from hypothesis import given
from hypothesis import strategies as st

from ponder.engine import libllama
from ponder.engine.libllama import ABORTED, CACHE_TYPES, Model, check_layout
from ponder.engine.weights import Adapter
from ponder.errors import EngineError, InputError, WeightsError

PROMPT = [504, 5574, 314, 253, 1838, 28, 284, 357, 1119, 216, 34, 32]


def load(path: Path, **changed: object) -> Model:
    chosen = {
        "cells": 256,
        "sequences": 4,
        "threads": 1,
        "batch": 32,
        "gpu_layers": 0,
        "flash_attention": True,
        "cache_type": "f16",
    }
    return Model(path, **(chosen | changed))


@pytest.fixture(scope="module")
def loaded(embedded_weights: Path, thinking_adapter: Adapter) -> Iterator[Model]:
    model = load(embedded_weights)
    assert model.load_adapter(thinking_adapter.path) == 0
    yield model
    model.close()


@pytest.fixture
def model(loaded: Model) -> Model:
    """The model with an empty cache and its adapter switched off."""
    for sequence in range(4):
        loaded.truncate(sequence, 0)
    loaded.use_adapters([0.0])
    return loaded


def compute(model: Model, ids: list[int], sequence: int = 0, start: int = 0) -> np.ndarray:
    """The logits after `ids`, computed from position `start` on."""
    rows = [(token, at, sequence, at == len(ids) - 1) for at, token in enumerate(ids) if at >= start]
    assert model.decode(rows) == 0
    return model.logits(len(rows) - 1).copy()


# ---------------------------------------------------------------- the library


OFFSETS = [("llama_model_default_params", at) for at in libllama._MODEL_DEFAULTS]
OFFSETS += [("llama_context_default_params", at) for at in libllama._CONTEXT_DEFAULTS]


@pytest.mark.parametrize(("function", "offset"), OFFSETS)
def test_a_library_with_another_layout_is_refused(function: str, offset: int) -> None:
    real = libllama._load_library()
    check_layout(real)
    changed = getattr(real, function)()
    changed.raw[offset + 1] ^= 0x40
    both = {name: getattr(real, name) for name in ("llama_model_default_params", "llama_context_default_params")}
    with pytest.raises(EngineError, match=r"another layout .* --force-reinstall ponder"):
        check_layout(SimpleNamespace(**both | {function: lambda: changed}))


def test_a_library_that_lacks_a_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xllamacpp.xllamacpp, "__file__", ctypes.CDLL(None)._name)
    with pytest.raises(EngineError, match=r"lacks llama_backend_init\. reinstall"):
        libllama._load_library()


# ---------------------------------------------------------------- files


@pytest.mark.model
def test_files_that_are_no_model_are_refused(embedded_weights: Path, thinking_adapter: Adapter, tmp_path: Path) -> None:
    whole = embedded_weights.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "header.gguf").write_bytes(whole[:1000])
    (tmp_path / "noise.gguf").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "empty.gguf").touch()
    wrong = [*sorted(tmp_path.iterdir()), tmp_path / "missing.gguf", thinking_adapter.path, tmp_path]
    said: list[str] = []
    for path in wrong:
        with pytest.raises(WeightsError, match=r"llama\.cpp cannot load .*fetch it again") as caught:
            load(path, log=said.append)
        assert str(path) in caught.value.problem
    # What llama.cpp has to say about it is passed on, and its progress is not.
    assert any("magic" in line for line in said)
    assert not any(line.strip() == "." for line in said)


@pytest.mark.model
def test_files_that_are_no_adapter_for_the_model_are_refused(
    model: Model, embedded_weights: Path, thinking_adapter: Adapter, tmp_path: Path
) -> None:
    fitting = thinking_adapter.path.read_bytes()
    (tmp_path / "of-another-model.gguf").write_bytes(fitting.replace(b"blk.29.", b"blk.99."))
    (tmp_path / "cut.gguf").write_bytes(fitting[: len(fitting) // 2])
    (tmp_path / "noise.gguf").write_bytes(np.random.default_rng(0).bytes(5000))
    for path in [*sorted(tmp_path.iterdir()), tmp_path / "missing.gguf", embedded_weights]:
        with pytest.raises(WeightsError, match="is no adapter for this model"):
            model.load_adapter(path)
    model.use_adapters([1.0])  # the one that fits is the only one still


@pytest.mark.model
def test_a_context_that_llama_cpp_refuses_is_an_error(embedded_weights: Path) -> None:
    with pytest.raises(EngineError, match="no memory for a context of 256 tokens"):
        load(embedded_weights, cache_type="q8_0", flash_attention=False)


@pytest.mark.model
@pytest.mark.parametrize("cache_type", sorted(CACHE_TYPES))
def test_every_type_of_cache_computes_about_the_same(model: Model, embedded_weights: Path, cache_type: str) -> None:
    expected = compute(model, PROMPT)
    other = load(embedded_weights, cache_type=cache_type)
    assert np.corrcoef(expected, compute(other, PROMPT))[0, 1] > 0.97
    other.close()


# ---------------------------------------------------------------- what the model is


@pytest.mark.model
def test_the_model_says_what_it_is(model: Model) -> None:
    assert (model.parameters, model.vocabulary_size, model.context) == (134_515_008, 49_152, 256)
    assert (model.special("bos"), model.special("eos"), model.end_ids()) == (1, 2, (0, 2, 4))
    template = model.chat_template()
    assert template is not None
    assert "add_generation_prompt" in template
    metadata = model.metadata()
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.context_length"] == "8192"
    assert not [key for key in metadata if key.startswith("tokenizer.")]
    short = model.metadata(longest=40)  # a key, and a value with the 0 after it, fit into 40 bytes
    assert short["general.architecture"] == "llama"
    assert all(len(value) < 40 for value in short.values())


# ---------------------------------------------------------------- tokens


# The vocabulary of this model lacks six control characters and the bytes that begin unassigned planes.
WRITABLE = st.characters(exclude_characters="\4\6\x13\x14\x16\x1d", exclude_categories=["Cs", "Cn", "Co"])


@pytest.mark.model
@given(st.text(WRITABLE))
def test_the_pieces_of_a_text_are_its_bytes(loaded: Model, text: str) -> None:
    assert b"".join(loaded.piece(token) for token in loaded.tokenize(text)) == text.encode()


@pytest.mark.model
def test_special_tokens_are_recognised_and_nothing_is_added(model: Model) -> None:
    assert model.tokenize("") == []
    assert model.tokenize("<|im_start|><|im_end|>") == [1, 2]
    assert model.piece(1) == b"<|im_start|>"
    assert b"".join(map(model.piece, model.tokenize("<|im_start|>user\nHi 👋🏽<|im_end|>"))).endswith(
        "\nHi 👋🏽<|im_end|>".encode()
    )
    emoji = [model.piece(token) for token in model.tokenize("🤔")]
    assert len(emoji) > 1  # so that a token does end inside a character
    assert b"".join(emoji).decode() == "🤔"
    assert model.tokenize("a\x00b") != model.tokenize("a")
    assert model.tokenize("\ud800")  # half a surrogate pair, as a JSON text may hold, is no reason to crash


@pytest.mark.model
@pytest.mark.parametrize("token", [-1, 49_152, 2**31, 2**40])
def test_what_is_no_token_has_no_piece(model: Model, token: int) -> None:
    with pytest.raises(InputError, match=f"{token} is no token of this model, which has 49152"):
        model.piece(token)


# ---------------------------------------------------------------- cache and computation


@pytest.mark.model
def test_a_copied_and_cut_sequence_goes_on_as_if_computed_anew(model: Model) -> None:
    other = [*PROMPT[:8], 100, 200, 300]
    fresh = compute(model, other, sequence=0)
    model.truncate(0, 0)
    compute(model, PROMPT, sequence=1)
    model.copy(1, 2, 8)
    copied = compute(model, other, sequence=2, start=8)
    model.truncate(1, 8)
    cut = compute(model, other, sequence=1, start=8)
    np.testing.assert_array_equal(copied, cut)
    # Batches of another shape are rounded otherwise, no more.
    assert np.abs(copied - fresh).max() < 1
    assert copied.argmax() == fresh.argmax()


@pytest.mark.model
def test_a_full_cache_is_said_and_truncating_frees_it(model: Model) -> None:
    for start in range(0, 256, 32):
        assert model.decode([(5, start + at, 0, False) for at in range(32)]) == 0
    assert model.decode([(5, 0, 1, True)]) == 1
    model.copy(0, 1, 200)  # shares cells: there is still no room
    model.truncate(0, 100)
    assert model.decode([(5, 100 + at, 0, False) for at in range(32)]) == 0
    assert model.decode([(5, 132 + at, 0, False) for at in range(32)]) == 1
    model.truncate(1, 0)
    assert model.decode([(5, 132 + at, 0, True) for at in range(32)]) == 0


@pytest.mark.model
def test_a_decode_stops_when_told_and_goes_on_when_no_longer(embedded_weights: Path) -> None:
    model = load(embedded_weights)
    flag = ctypes.create_string_buffer(2)
    model.abort_on(flag)
    expected = compute(model, PROMPT)
    model.truncate(0, 0)
    flag[0] = b"\1"
    rows = [(token, at, 0, at == len(PROMPT) - 1) for at, token in enumerate(PROMPT)]
    assert model.decode(rows) == ABORTED
    flag[0] = b"\0"
    model.truncate(0, 0)
    np.testing.assert_array_equal(compute(model, PROMPT), expected)
    model.close()


@pytest.mark.model
def test_adapters_apply_at_their_scale_and_can_be_switched_off(model: Model) -> None:
    computed = {}
    for scale in (0.0, 0.5, 1.0, 0.0):
        model.truncate(0, 0)
        model.use_adapters([scale])
        logits = compute(model, PROMPT)
        np.testing.assert_array_equal(computed.setdefault(scale, logits), logits)
    half, whole = (np.abs(computed[scale] - computed[0.0]).mean() for scale in (0.5, 1.0))
    assert 0.1 < half < whole
    with pytest.raises(ValueError, match="longer"):
        model.use_adapters([1.0, 1.0])


# ---------------------------------------------------------------- sequences put away


def test_a_sequence_put_away_goes_on_elsewhere_as_if_it_had_stayed(model: Model) -> None:
    model.use_adapters([1.0])
    compute(model, PROMPT[:-1])
    state = model.save(0)
    model.copy(0, 1, 5)
    expected = [compute(model, PROMPT, start=len(PROMPT) - 1), compute(model, PROMPT, 1, start=5)]
    for sequence in (0, 1):
        model.truncate(sequence, 0)
    for length, wanted in zip((len(PROMPT) - 1, 5), expected, strict=True):
        assert model.restore(2, state)
        model.truncate(2, length)
        assert np.allclose(compute(model, PROMPT, 2, start=length), wanted, atol=1e-3)
        model.truncate(2, 0)


def test_what_the_cache_has_no_room_for_is_not_restored_and_leaves_nothing(model: Model) -> None:
    for at in range(0, 192, 32):
        assert model.decode([(500 + i, at + i, 0, False) for i in range(32)]) == 0
    state = model.save(0)
    assert not model.restore(1, state)  # 192 more than the 256 cells hold
    compute(model, PROMPT, 1)
    model.truncate(0, 0)
    model.truncate(1, 0)
    assert model.restore(1, state)

"""The reader of GGUF headers, on files made here and on the adapter that is shipped."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_weights import gguf_bytes, model_bytes

from ponder.engine.catalogue import INTERIM_ADAPTER
from ponder.engine.gguf_header import KEPT, LongArray, read_header
from ponder.errors import InputError

METADATA = {
    "general.architecture": "qwen2",
    "qwen2.context_length": 4096,
    "flag": True,
    "ratio": 0.25,
    "few": ["one", "zwei", "三"],
    "numbers": list(range(KEPT + 1)),
    "words": [f"word {i}" for i in range(KEPT + 5)],
    "nested": [[1, 2], [3]],
}
TENSORS = {"a.weight": (3, 5), "b.weight": (7,), "c.weight": (2, 2, 2)}
WHOLE = gguf_bytes(METADATA, TENSORS)


def test_reads_keys_and_tensors(tmp_path):
    file = tmp_path / "x.gguf"
    file.write_bytes(WHOLE)
    header = read_header(file)
    assert header.version == 3
    assert header.architecture == "qwen2"
    assert header.context == 4096
    assert not header.is_adapter
    kept = {key: header.metadata[key] for key in ("flag", "ratio", "few", "nested")}
    assert kept == {"flag": True, "ratio": 0.25, "few": ["one", "zwei", "三"], "nested": [[1, 2], [3]]}
    assert header.metadata["numbers"] == LongArray(KEPT + 1)
    assert header.metadata["words"] == LongArray(KEPT + 5)
    assert {tensor.name: tensor.shape for tensor in header.tensors} == TENSORS
    assert header.parameters == 15 + 7 + 8
    assert header.data % 32 == 0
    assert header.data + 96 == len(WHOLE)


def test_reads_the_shipped_adapter():
    header = read_header(INTERIM_ADAPTER.path)
    assert header.is_adapter
    assert header.architecture == "llama"
    assert header.metadata["adapter.lora.alpha"] == 32.0
    assert header.context is None
    assert len(header.tensors) == 30 * 7 * 2
    assert header.parameters == 4_884_480


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04 a wheel", "not a GGUF file"),
        (b"GGUF", "damaged or cut short"),
        (gguf_bytes({}, {}, version=1), "version 1"),
        (gguf_bytes({}, {}).replace(struct.pack("<I", 3), struct.pack(">I", 3), 1), "version 50331648"),
        (gguf_bytes({"general.alignment": 0}, {}), "alignment"),
        (gguf_bytes({}, {"w": (1,) * 9}), "9 dimensions"),
        (gguf_bytes({"k": True}, {}).replace(struct.pack("<I?", 7, True), struct.pack("<I?", 77, True)), "type 77"),
    ],
)
def test_says_what_is_wrong_with_a_file(tmp_path, content, problem):
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    with pytest.raises(InputError, match=problem):
        read_header(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.gguf cannot be read"):
        read_header(tmp_path / "none.gguf")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gguf") / "x.gguf"


@settings(max_examples=150, deadline=None)
# The last 16 bytes pad the last tensor, whose eight numbers take as many.
@given(length=st.integers(0, len(WHOLE) - 17))
def test_every_file_that_was_cut_short_is_refused(scratch, length):
    scratch.write_bytes(WHOLE[:length])
    with pytest.raises(InputError):
        read_header(scratch)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(4, len(WHOLE) - 97), junk=st.binary(min_size=1, max_size=8))
def test_garbage_is_read_or_refused_but_never_crashes(scratch, at, junk):
    scratch.write_bytes(WHOLE[:at] + junk + WHOLE[at + len(junk) :])
    with contextlib.suppress(InputError):
        assert read_header(scratch).version in (2, 3)


def test_deep_nesting_is_refused(scratch):
    start = gguf_bytes({"k": [1]}, {})
    at = start.index(struct.pack("<IQ", 10, 1))  # the type and the length of the array
    scratch.write_bytes(start[:at] + struct.pack("<IQ", 9, 1) * 5000 + start[at:])
    with pytest.raises(InputError, match="damaged"):
        read_header(scratch)


def test_a_model_of_the_kit_is_what_the_other_tests_take_it_for(scratch):
    scratch.write_bytes(model_bytes())
    header = read_header(scratch)
    assert header.parameters == 512 * 512
    assert header.context == 128

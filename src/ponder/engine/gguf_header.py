"""The header of a GGUF file: its key/values and the shapes of its tensors, without numpy.

Layout (little-endian): magic, version u32, tensors u64, keys u64, the key/values, then for each tensor its
name, its number of dimensions u32, that many u64, its type u32 and its offset u64; after padding, the data.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponder.errors import InputError

MAGIC = b"GGUF"
KEPT = 64
"""Arrays of more items than this (vocabularies, merges) are given by their length alone."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FORMATS = {kind: struct.Struct("<" + code) for kind, code in _SCALARS.items()}
_STRING, _ARRAY = 8, 9
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66),
    17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136),
    24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54),
    35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip
"""Of each type of tensor, how many elements a block holds and how many bytes it takes."""
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class LongArray:
    """Stands for an array that was skipped."""

    length: int


@dataclass(frozen=True)
class Tensor:
    """One tensor: `shape` in the file's own order, the contiguous dimension first."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for dimension in self.shape:
            count *= dimension
        return count

    @property
    def length(self) -> int:
        """Bytes of data; 1 where the type is newer than this reader, which is too few."""
        elements, size = _BLOCKS.get(self.type, (max(1, self.size), 1))
        return self.size // elements * size


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself. `data` is the byte at which the tensors' data start."""

    version: int
    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    data: int

    @property
    def architecture(self) -> str:
        """The family of the model, `llama` say; empty where the file does not tell."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def is_adapter(self) -> bool:
        """Whether this is a low-rank adapter, not a whole model."""
        return self.metadata.get("general.type") == "adapter"

    @property
    def parameters(self) -> int:
        """Elements of all tensors together."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def context(self) -> int | None:
        """The context that the model was trained for, in tokens."""
        value = self.metadata.get(f"{self.architecture}.context_length")
        return value if isinstance(value, int) else None


class _Reader:
    """Reads one value after the other. Raises struct.error at the end of the file, ValueError for nonsense."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self.buffer = buffer
        self.at = 0

    def take(self, form: struct.Struct) -> Any:
        (value,) = form.unpack_from(self.buffer, self.at)
        self.at += form.size
        return value

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.buffer):
            raise ValueError("it ends inside its header")

    def string(self) -> str:
        length = self.take(_U64)
        start = self.at
        self.skip(length)
        return self.buffer[start : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _FORMATS:
            raise ValueError(f"a value has the unknown type {kind}")
        return self.take(_FORMATS[kind])

    def array(self) -> Any:
        kind, length = self.take(_U32), self.take(_U64)
        if length <= KEPT:
            return [self.value(kind) for _ in range(length)]
        if kind in _FORMATS:
            self.skip(length * _FORMATS[kind].size)
        else:
            for _ in range(length):
                self._skip_one(kind)
        return LongArray(length)

    def _skip_one(self, kind: int) -> None:
        if kind == _STRING:
            self.skip(self.take(_U64))
        else:
            self.value(kind)

    def tensor(self) -> Tensor:
        name = self.string()
        dimensions = self.take(_U32)
        if dimensions > 8:
            raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.take(_U64) for _ in range(dimensions))
        return Tensor(name, shape, self.take(_U32), self.take(_U64))


def is_gguf(path: Path) -> bool:
    """Whether the file at `path` starts as a GGUF file does. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> Header:
    """The header of the file at `path`.

    Raises InputError where the file is missing, is no GGUF file, or ends before its tensors do.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise InputError(f"{path} is not a GGUF file", "Give a file that ends in .gguf and is one")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                return _parse(buffer)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "Check the path and its permissions") from error
    except (ValueError, struct.error, RecursionError) as error:
        raise InputError(f"{path} is damaged or cut short: {error}", "Fetch or convert it again") from error


def _parse(buffer: mmap.mmap) -> Header:
    reader = _Reader(buffer)
    reader.skip(len(MAGIC))
    version = reader.take(_U32)
    if version not in (2, 3):
        raise ValueError(f"version {version} of the format is unknown (2 and 3 are known)")
    tensor_count, key_count = reader.take(_U64), reader.take(_U64)
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = reader.string()
        metadata[key] = reader.value(reader.take(_U32))
    tensors = tuple(reader.tensor() for _ in range(tensor_count))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"the alignment {alignment!r} is not a positive number")
    data = -(-reader.at // alignment) * alignment if tensors else reader.at
    if len(buffer) < data + max((tensor.offset + tensor.length for tensor in tensors), default=0):
        raise ValueError("it ends before its last tensor")
    return Header(version, metadata, tensors, data)

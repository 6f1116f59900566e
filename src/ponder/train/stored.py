"""Tensors that were worked out once and are read again: a file that is whole, and that says what it was made from.

A safetensors file whose metadata hold facts, such as the hash of the examples, and the hash of the tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ponder.errors import InputError
from ponder.train.devices import whole
from ponder.train.writing import replacing

if TYPE_CHECKING:
    from ponder.train.rows import Row

CONTENT = "sha256"


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Writes a file, whole or not at all. Raises WeightsError where the disk is full or not writable."""
    from safetensors.torch import save_file

    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as part:
        save_file(kept, part, {**facts, CONTENT: _content(kept)})


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, facts) of a file. Raises InputError where there is none, or it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"there is no file {path}", "Check the path")
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, str] = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is damaged: {error}".splitlines()[0], "Remove it and have it made again") from None
    if facts.pop(CONTENT, None) != _content(tensors):
        raise InputError(f"{path} is damaged: it does not hold what was written", "Remove it and have it made again")
    return tensors, facts


def rows_hash(rows: Sequence[Row]) -> str:
    """A hash of what rows are: tokens, masks and branches."""
    found = hashlib.sha256()
    for row in rows:
        branch = None if row.branch is None else list(row.branch)
        found.update(json.dumps([list(row.ids), [int(learn) for learn in row.mask], branch]).encode())
    return found.hexdigest()


def model_hash(model: nn.Module) -> str:
    """A hash of a model's weights, adapters included; of one in shards all processes have to ask."""
    return _content({name: whole(p.detach()) for name, p in model.named_parameters()})


def _content(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        found.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        raw: Any = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found.update(raw)
    return found.hexdigest()

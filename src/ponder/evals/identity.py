"""Who a model is, so that what one said is never taken for the words of another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ponder.protocols import Engine

_BLOCKS, _BLOCK = 64, 1 << 16
"""How much of a file tells it from others: so many blocks, spread evenly, of so many bytes."""


def identity_of(engine: Engine) -> dict[str, Any]:
    """What tells the model behind `engine` from any other, whatever path its files lie at.

    Files are told by their size and blocks of their bytes; a model on a server only by address and name.
    """
    info = engine.info
    kind, _, place = engine.uri.partition(":")
    path = Path(place)
    adapters = getattr(engine, "adapters", ())  # of the engine in process: its files may change under their names
    return {
        "uri": kind if path.exists() else engine.uri,
        "file": fingerprint(path) if path.exists() else None,
        "name": info.name,
        "context": info.context,
        "end": list(info.eos_ids),
        "adapters": dict(info.metadata.get("ponder.adapters", {})),
        "adapter files": {each.name: fingerprint(each.path) for each in adapters},
    }


def fingerprint(path: Path) -> str:
    """Size and hash of blocks spread over a file: quick for gigabytes, and no two models share it in practice.

    That of a folder is that of the files right in it, with their names.
    """
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.is_file())
        return hashlib.sha256(json.dumps([(each.name, fingerprint(each)) for each in files]).encode()).hexdigest()
    size = path.stat().st_size
    seen = hashlib.sha256(b"%d" % size)
    with path.open("rb") as file:
        for block in range(_BLOCKS):
            file.seek(max(0, size - _BLOCK) * block // (_BLOCKS - 1))
            seen.update(file.read(_BLOCK))
            if size <= _BLOCK:
                break
    return seen.hexdigest()

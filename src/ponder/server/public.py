"""What clients are told of a model: no address inside a network, and no path of a file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ponder.server.backend import Served

_PRIVATE = re.compile(r"\w+://|/|~/|\.{1,2}/|[A-Za-z]:[\\/]|\\\\")
"""How an address, or the path of a file, begins."""


def public(served: Served) -> Served:
    """A model with those of its details that are for everybody."""
    return replace(served, details={key: value for key, value in served.details.items() if not _private(value)})


def name_of(model: str) -> str:
    """What a model is called where it calls itself by the path of a file: the last part of it."""
    if not _PRIVATE.match(model):
        return model
    kind = PureWindowsPath if "\\" in model else PurePosixPath
    return kind(model).name or model


def _private(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(each, str) and _PRIVATE.match(each) for each in values)

"""Where ponder keeps its things: weights, the database of traces."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`PONDER_HOME`, or the platform's data folder. Not created here."""
    chosen = os.environ.get("PONDER_HOME")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("ponder", appauthor=False))

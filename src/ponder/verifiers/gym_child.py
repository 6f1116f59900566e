"""Asks the scorers of reasoning-gym, in a process that a time limit can kill. A request and its reply are a line each.

Run as a file of its own, so it imports nothing of ponder.
"""

from __future__ import annotations

import ast
import faulthandler
import importlib
import json
import sys
from typing import Any

MEMORY = 4 << 30
"""Bytes of address space: a power tower must not take the machine's memory."""


def main() -> None:
    """Replies a line {"score": ...}, or {"broken": ...} where there is no scorer to ask, for each line of input."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out, sys.stdout = sys.stdout, sys.stderr  # what a scorer prints is no reply
    library = importlib.import_module("reasoning_gym")
    datasets: dict[str, Any] = {}
    print("{}", file=out, flush=True)
    for line in sys.stdin:
        seconds, family, settings, answer, entry = json.loads(line)
        # Should the parent be gone, nobody else would end this.
        faulthandler.dump_traceback_later(2 * seconds, exit=True)
        print(json.dumps(_reply(library, datasets, family, settings, answer, entry)), file=out, flush=True)
        faulthandler.cancel_dump_traceback_later()


def _reply(
    library: Any, datasets: dict[str, Any], family: str, settings: dict[str, Any], answer: str, entry: dict[str, Any]
) -> dict[str, Any]:
    key = json.dumps([family, settings])
    try:
        if key not in datasets:
            datasets[key] = library.create_dataset(family, **settings)
    except Exception as error:  # another version of the package, say
        return {"broken": " ".join(f"{type(error).__name__} {error}".split())}
    try:
        # Read anew each time: a scorer may change what it is given.
        metadata = ast.literal_eval(entry["metadata"])
        return {"score": float(datasets[key].score_answer(answer, {**entry, "metadata": metadata}))}
    except Exception as error:  # an answer that the scorer cannot read
        return {"score": 0.0, "why": f"its scorer raised {type(error).__name__}"}


if __name__ == "__main__":
    main()

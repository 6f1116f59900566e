"""Makes the entries of reasoning-gym's families, in a process of its own: reads a request and writes a reply.

Some families walk through sets of strings, whose order changes with the hash seed of the process, so whoever starts it
sets PYTHONHASHSEED; some draw from the shared generator of `random`, and some print. Run as a file of its own, so it
imports nothing of ponder.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import json
import random
import sys
from typing import Any

UNFIT = {
    "composite": "it has no questions of its own; join families with +",
    "propositional_logic": "its scorer takes a premise said again for a conclusion",
}
"""Families that are refused, and why."""

DATED = ("time_intervals",)
"""Families that put today's date into their metadata, which goes without: their answers are checked without it."""


class Unusable(Exception):
    """A problem, and what mends it."""


def plain(value: Any) -> Any:
    """`value` out of exact types that a Python literal can spell: no scalars of numpy, no subclasses of str."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(map(plain, value))
    if hasattr(value, "item"):
        return plain(value.item())
    raise TypeError(f"{type(value).__name__} cannot be written down")


def _opened(library: Any, name: str, settings: dict[str, Any]) -> Any:
    known = library.DATASETS
    if name in UNFIT:
        raise Unusable(f"reasoning-gym's {name} cannot be used: {UNFIT[name]}", "Choose another family")
    if name not in known:
        close = difflib.get_close_matches(name, known, 5, 0.5) or ["leg_counting", "chain_sum", "countdown"]
        raise Unusable(f"reasoning-gym has no family {name!r}", f"Choose one such as {', '.join(close)}")
    fields = [field.name for field in dataclasses.fields(known[name][1])]
    unknown = [setting for setting in settings if setting not in fields]
    if unknown:
        raise Unusable(f"{name} has no setting {unknown[0]!r}", f"It has {', '.join(fields)}")
    return library.create_dataset(name, **settings)


def _entries(library: Any, name: str, settings: dict[str, Any]) -> list[list[str | None]]:
    """Question, answer and, where the family has a scorer of its own that may need it, the metadata as a literal."""
    random.seed(settings["seed"])
    dataset = _opened(library, name, settings)
    scores = type(dataset).score_answer is not library.ProceduralDataset.score_answer and name not in DATED
    made: list[list[str | None]] = []
    for index in range(settings["size"]):
        entry = dataset[index]
        literal = repr(plain(entry["metadata"])) if scores else None
        if literal is not None:
            ast.literal_eval(literal)
        answer = None if entry["answer"] is None else str(entry["answer"])
        if answer is None or "Integral(" not in answer:  # else the family could not solve it either
            made.append([str(entry["question"]), answer, literal])
    return made


def reply(wanted: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """{"entries": a list for each family and its settings} or {"problem": ..., "mend": ...}."""
    made, name = [], "reasoning-gym"
    try:
        importlib.import_module("reasoning_gym")  # its families enter themselves into the factory
        library = importlib.import_module("reasoning_gym.factory")
        for name, settings in wanted:
            made.append(_entries(library, name, settings))
    except Unusable as error:
        return dict(zip(("problem", "mend"), error.args, strict=True))
    except Exception as error:  # settings that the family refuses or cannot work with
        why = " ".join(f"{type(error).__name__} {error}".split())
        return {"problem": f"{name} cannot be made: {why}"[:300], "mend": "Change its settings"}
    return {"entries": made}


if __name__ == "__main__":
    out, sys.stdout = sys.stdout, sys.stderr  # what a family prints is no reply
    json.dump(reply(json.load(sys.stdin)), out)

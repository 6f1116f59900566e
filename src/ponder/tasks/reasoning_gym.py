"""Questions made by reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760), as many as wanted, from a seed.

`reasoning-gym:leg_counting?size=100&seed=1&min_animals=2` names a family and its settings, 100 entries of seed 0 where
nothing is said. Several families are joined by "+", each with settings of its own, and take turns. A question that a
family makes twice is taken once. The same text makes the same questions on every machine and in every process, as long
as reasoning-gym stays the same; the task's SHA-256 is that of the entries and shows whether it did. Another seed makes
other questions, which for reasoning-gym's own seeds does not hold: there entry i of seed s is entry i-1 of seed s+1.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponder.errors import InputError, MissingExtra
from ponder.types import Question, user

PREFIX = "reasoning-gym:"
VERIFIER = "reasoning_gym"

DEFAULTS = {"size": 100, "seed": 0}
SHAPE = f"Write it as {PREFIX}leg_counting?size=100&seed=1"


@dataclass(frozen=True)
class Family:
    """A family of reasoning-gym and its settings as that takes them, `size` and `seed` among them."""

    name: str
    settings: dict[str, Any]


def read(text: str) -> tuple[str, list[Question], str]:
    """The name of a task, its questions, and the SHA-256 of the entries they were made from.

    Each question keeps what a scorer needs under `metadata["reasoning_gym"]`; there is no reference
    where many answers are right. Raises InputError for families or settings that do not exist or do
    not work, MissingExtra without reasoning-gym.
    """
    wanted = families(text)
    if importlib.util.find_spec("reasoning_gym") is None:
        raise MissingExtra(f"{text} needs the package reasoning-gym", "Run: pip install 'ponder[reasoning-gym]'")
    made = _made(wanted)
    content = json.dumps([[family.name, entries] for family, entries in zip(wanted, made, strict=True)])
    name = "reasoning-gym/" + "+".join(family.name for family in wanted)
    return name, list(_questions(name, wanted, made)), hashlib.sha256(content.encode()).hexdigest()


def families(text: str) -> list[Family]:
    """The families in `text`. Raises InputError where it cannot be read."""
    # A plus sign inside a setting, as in operators=['+'], is followed by no name.
    parts = re.split(r"\+(?=[A-Za-z_]\w*(?:[?+]|$))", text.removeprefix(PREFIX).strip())
    return [_family(part) for part in parts]


def _family(text: str) -> Family:
    name, _, written = text.partition("?")
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise InputError(f"{name!r} is no family of reasoning-gym", SHAPE)
    settings: dict[str, Any] = dict(DEFAULTS)
    for setting in re.split(r"&(?=\w+=)", written) if written else ():
        key, equals, value = setting.partition("=")
        if not (key.isidentifier() and equals and value):
            raise InputError(f"{setting!r} is no setting of {name}", SHAPE)
        settings[key] = _value(value)
    if type(settings["size"]) is not int or settings["size"] < 1:
        raise InputError(f"the size of {name} must be at least 1, not {settings['size']!r}", SHAPE)
    if type(settings["seed"]) is not int:
        raise InputError(f"the seed of {name} must be an integer, not {settings['seed']!r}", SHAPE)
    try:
        json.dumps(settings)
    except (TypeError, ValueError):
        raise InputError(f"a setting of {name} is neither text, number, list nor dict", SHAPE) from None
    return Family(name, {**settings, "seed": spread(settings["seed"])})


def spread(seed: int) -> int:
    """The seed for reasoning-gym, 31 bits of a hash: far from that of the next seed, so that they share no entries."""
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4]) >> 1


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _made(wanted: list[Family]) -> list[list[list[str | None]]]:
    child = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("gym_child.py"))],
        input=json.dumps([[family.name, family.settings] for family in wanted]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        check=False,
    )
    if child.returncode:
        said = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
        raise InputError(f"reasoning-gym failed ({said[-1][:200]})", "Try another family, or install it anew")
    reply = json.loads(child.stdout)
    if "problem" in reply:
        raise InputError(reply["problem"], reply["mend"])
    entries: list[list[list[str | None]]] = reply["entries"]
    return entries


def _questions(task: str, wanted: list[Family], made: list[list[list[str | None]]]) -> Iterator[Question]:
    """In turns, so that a limit takes some of each family."""
    seen: set[str] = set()
    columns = [[(family, entry) for entry in entries] for family, entries in zip(wanted, made, strict=True)]
    for family, (text, answer, literal) in filter(None, itertools.chain(*itertools.zip_longest(*columns))):
        assert text is not None
        if text in seen:
            continue
        entry = {"family": family.name, "settings": family.settings, "metadata": literal}
        yield Question(
            (user(text),),
            reference=answer,
            task=task,
            metadata={"id": f"{family.name}/{len(seen)}", "kind": family.name, "reasoning_gym": entry},
        )
        seen.add(text)

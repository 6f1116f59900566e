"""Recipes as files: read, changed from the command line, written, and what is wrong in them told in one line."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ponder.errors import InputError
from ponder.train.recipe import (
    GSM8K,
    KINDS,
    OWN,
    SEE,
    TRACES,
    Clash,
    Data,
    Distill,
    Dpo,
    Grpo,
    Kind,
    Lora,
    NewModel,
    Optimizing,
    Recipe,
    Reward,
    Source,
    Tracking,
)


def load(path: Path, changes: Sequence[str] = (), kind: Kind | None = None) -> Recipe:
    """The recipe in a file, with `changes` such as "optimizer.rate=3e-5" made to it.

    Raises InputError naming what is wrong, and for a recipe of another kind than `kind`.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "Give the path of a recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}", SEE) from None
    for change in changes:
        _change(document, change)
    stated = document.setdefault("kind", kind)
    if kind is not None and stated != kind and stated in KINDS:
        raise InputError(f'{path} has kind = "{stated}"', f"Run: ponder train {stated} {path}")
    return read(document, str(path))


def read(document: Mapping[str, Any], name: str = "the recipe") -> Recipe:
    """The recipe in a TOML document. Raises InputError naming what is wrong in it."""
    try:
        return _absolute(Recipe.model_validate(document))
    except ValidationError as error:
        raise _told(error, name) from None


def dump(recipe: Recipe) -> str:
    """The recipe as TOML, with every value that it has, defaults too."""
    import tomli_w

    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True, by_alias=True))


def difference(one: Recipe, other: Recipe) -> str | None:
    """The first setting in which they differ, such as "optimizer.rate = 0.1, not 0.2"; None where there is none."""
    mine, theirs = _flat(one.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
    for key in mine | theirs:
        if mine.get(key) != theirs.get(key):
            return f"{key} = {mine.get(key)!r}, not {theirs.get(key)!r}"
    return None


def _flat(document: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat


def _change(document: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    *tables, last = key.strip().split(".")
    if not equals or not last or not all(tables):
        raise InputError(f"{change!r} sets nothing", "Write it as --set optimizer.rate=1e-4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a word needs no quotes here, which the shell would have eaten
    for table in tables:
        document = document.setdefault(table, {})
        if not isinstance(document, dict):
            raise InputError(f"{change!r} goes into {table}, which is no table", SEE)
    document[last] = value
    if (key := key.strip()) in ("steps", "epochs"):  # both say how long: the one that is given counts
        document.pop("epochs" if key == "steps" else "steps", None)


def _absolute(recipe: Recipe) -> Recipe:
    """With whole paths: the run's folder keeps the recipe, and is used from elsewhere."""
    sources = tuple(each.model_copy(update={"source": _whole(each.source, (GSM8K,))}) for each in recipe.data.sources)
    kept = tuple(_whole(each) for each in recipe.data.keep_out)
    changes: dict[str, Any] = {"data": recipe.data.model_copy(update={"sources": sources, "keep_out": kept})}
    if isinstance(recipe.model, NewModel):
        changes["model"] = recipe.model.model_copy(update={"tokenizer": _whole(recipe.model.tokenizer)})
    else:
        changes["model"] = _whole(recipe.model, ("new:",))
    if recipe.adapter is not None:
        changes["adapter"] = _whole(recipe.adapter)
    if recipe.distill is not None and recipe.distill.teacher is not None:
        changes["distill"] = recipe.distill.model_copy(update={"teacher": _whole(recipe.distill.teacher)})
    return recipe.model_copy(update=changes)


def _whole(name: str, prefixes: Sequence[str] = ()) -> str:
    prefix = next((each for each in prefixes if name.startswith(each)), "")
    path = Path(name.removeprefix(prefix)).expanduser()
    # A folder that is called as a model is would hide it: only what is written as a path, or is none of these, is one.
    return prefix + str(path.resolve()) if path.exists() and name not in (OWN, TRACES, *_known()) else name


def _known() -> list[str]:
    from ponder.engine import catalogue

    return catalogue.names()


# ---------------------------------------------------------------- errors


def _told(error: ValidationError, name: str) -> InputError:
    """The first thing that is wrong, in one line."""
    first = _chosen(error)
    cause = first.get("ctx", {}).get("error")
    place = [str(each) for each in first["loc"] if not _inner(each)]
    if isinstance(cause, Clash):
        where = f"{'.'.join(place)}: " if place else ""
        return InputError(f"{name}: {where}{cause.problem}", cause.mend)
    if first["type"] == "extra_forbidden":
        return _misspelt(name, place)
    if first["type"] == "missing":
        return InputError(f"{name}: {'.'.join(place)} is missing", SEE)
    if first["type"] == "literal_error":
        return _no_choice(name, place, first["input"], str(first["ctx"]["expected"]))
    message = str(first["msg"]).removeprefix("Input ")
    if first["type"] == "model_type":
        message = "should be text or a table"
    return InputError(f"{name}: {'.'.join(place)} = {first['input']!r}: it {message}", SEE)


def _chosen(error: ValidationError) -> Any:
    """A misspelt name goes first: it makes the right one missing, too. Last what could have been of another type."""
    found = error.errors()
    rank = {"extra_forbidden": 0, "value_error": 1, "missing": 2, "string_type": 3, "model_type": 3}
    return min(found, key=lambda each: (rank.get(each["type"], 1), -len(each["loc"])))


def _inner(part: int | str) -> bool:
    """Whether a part of a place names an alternative of pydantic, not a key of the file."""
    return part in ("str", "NewModel") or (isinstance(part, str) and part.startswith(("function-", "constrained-")))


def _misspelt(name: str, place: Sequence[str]) -> InputError:
    table: Any = Recipe
    for part in place[:-1]:
        table = _tables(table).get(part, table)
    fields = [each.alias or key for key, each in table.model_fields.items()]
    near = difflib.get_close_matches(place[-1], fields, n=1, cutoff=0.6)
    where = f"[{'.'.join(place[:-1])}] has" if place[:-1] else "there is"
    mend = f"Did you mean {near[0]}? {SEE}" if near else f"It may have {', '.join(fields)}"
    return InputError(f"{name}: {where} no {place[-1]!r}", mend)


def _tables(table: Any) -> dict[str, Any]:
    found = {"model": NewModel, "sources": Source, "optimizer": Optimizing, "data": Data, "track": Tracking}
    found |= {"lora": Lora, "grpo": Grpo, "dpo": Dpo, "distill": Distill, "reward": Reward}
    return {name: found[name] for name in table.model_fields if name in found}


def _no_choice(name: str, place: Sequence[str], given: Any, expected: str) -> InputError:
    choices = [each.strip("'") for each in expected.replace(" or ", ", ").split(", ")]
    near = difflib.get_close_matches(str(given), choices, n=1, cutoff=0.6)
    guess = f"Did you mean {near[0]}? " if near else ""
    mend = f"{guess}Choose from {', '.join(choices)}"
    return InputError(f"{name}: {'.'.join(place)} cannot be {given!r}", mend)

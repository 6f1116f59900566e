"""A version of a prompt as a file, TOML or JSON, so that it can lie in a repository beside the code.

    version = 1
    name = "support"
    variables = ["product"]
    note = "friendlier"

    [[messages]]
    role = "system"
    text = "You answer for {{ product }}."

The number of the version is the database's and not in the file: what is read becomes the next one.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ponder.errors import InputError
from ponder.ops.prompt import LONGEST, Prompt, Turn, TurnRole

VERSION = 1
Form = Literal["toml", "json"]
FIELDS = {"version", "name", "variables", "note", "messages"}


@dataclass(frozen=True)
class Written:
    """What a file says. variables: None where it declares none."""

    name: str
    messages: tuple[Turn, ...]
    variables: tuple[str, ...] | None
    note: str


def document(prompt: Prompt) -> dict[str, Any]:
    """A version as plain values."""
    return {
        "version": VERSION,
        "name": prompt.name,
        "variables": list(prompt.variables),
        "note": prompt.note,
        "messages": [{"role": turn.role, "text": turn.text} for turn in prompt.messages],
    }


def dumps(prompt: Prompt, form: Form = "toml") -> str:
    """A version as the text of a file. `loads` of it is the same prompt."""
    if form == "json":
        return json.dumps(document(prompt), indent=2, ensure_ascii=False) + "\n"
    import tomli_w

    return tomli_w.dumps(document(prompt), multiline_strings=True)


def loads(text: str, form: Form, place: str) -> Written:
    """What the text of a file says. Raises InputError that begins with `place`."""
    try:
        values = tomllib.loads(text) if form == "toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or "it is nested too deep"
        raise InputError(f"{place} is no {form.upper()}: {reason}", "mend it, or export the prompt anew") from None
    return _read(values, place)


def write(prompt: Prompt, path: Path) -> None:
    """Writes a version to a file whose name ends in .toml or .json. Raises InputError."""
    text = dumps(prompt, form_of(path))
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}", "give another file") from None


def read(path: Path) -> Written:
    """What a file whose name ends in .toml or .json says. Raises InputError."""
    form = form_of(path)
    try:
        with path.open("rb") as file:
            data = file.read(8 * LONGEST + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "give the file of a prompt") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no UTF-8 text", "give the file of a prompt") from None
    if len(data) > 8 * LONGEST:
        raise InputError(f"{path} is too large for a prompt", "give the file of a prompt")
    return loads(text, form, str(path))


def form_of(path: Path) -> Form:
    """The form that a file's name tells. Raises InputError."""
    match path.suffix.lower():
        case ".toml":
            return "toml"
        case ".json":
            return "json"
    raise InputError(f"{path} is neither TOML nor JSON by its name", "let it end in .toml or .json")


def _read(values: Any, place: str) -> Written:
    def fail(problem: str) -> InputError:
        return InputError(f"{place}: {problem}", "see docs/prompts.md for the form of the file")

    if not isinstance(values, dict):
        raise fail("it holds no object")
    if values.get("version") != VERSION:
        raise fail(f"it has version {values.get('version')!r}, and this ponder reads version {VERSION}")
    if unknown := sorted(set(values) - FIELDS):
        raise fail(f"there is no field {unknown[0]!r}")
    name, note, variables = values.get("name"), values.get("note", ""), values.get("variables")
    if not isinstance(name, str) or not isinstance(note, str):
        raise fail("name and note have to be texts, and name has to be there")
    if variables is not None and not (isinstance(variables, list) and all(isinstance(each, str) for each in variables)):
        raise fail("variables has to be a list of names")
    messages = values.get("messages")
    if not isinstance(messages, list) or not all(map(_is_turn, messages)):
        raise fail(f"messages has to be a list of role ({', '.join(get_args(TurnRole))}) and text")
    turns = tuple(Turn(each["role"], each["text"]) for each in messages)
    return Written(name, turns, None if variables is None else tuple(variables), note)


def _is_turn(value: Any) -> bool:
    fields = isinstance(value, dict) and set(value) == {"role", "text"}
    return fields and value["role"] in get_args(TurnRole) and isinstance(value["text"], str)

"""Bodies of requests: strict JSON, and fields that are checked while they are read.

Whatever a client sends, reading it ends in a value or in a `Refusal` that names the field by its path, such as
"messages[2].content[0].image_url". A field that is null counts as left out.
"""

from __future__ import annotations

import json
import math
import re
from codecs import BOM_UTF8
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias, overload

from ponder.server.failures import Refusal, invalid

DEEPEST = 64
"""How deep objects and lists may lie in each other."""

LARGEST = 2**63 - 1
"""The largest whole number that a field takes unless it says otherwise."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parsed(body: bytes | str) -> Fields:
    """The object that a body holds. No NaN, no number beyond floats, no lone surrogate; of equal keys the last wins.

    Raises Refusal for anything else.
    """
    try:
        text = body.encode() if isinstance(body, str) else body
        value = _DECODER.decode(text.removeprefix(BOM_UTF8).decode())
        if text.count(b"{") + text.count(b"[") > DEEPEST:  # else it cannot be that deep
            _check_depth(value)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise invalid("the body is no text in UTF-8", "send JSON in UTF-8", code="invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        problem = " ".join(str(error).split())
        raise invalid(f"the body is no JSON: {problem}", "send one JSON object", code="invalid_json") from None
    if not isinstance(value, Mapping):
        raise invalid(f"the body is {kind_of(value)}", "send one JSON object", code="invalid_json")
    return Fields(value)


def opened(body: Body) -> Fields:
    """The fields of a body, whether it was decoded before or not. Raises Refusal as `parsed` does."""
    if isinstance(body, Fields):
        return body
    return Fields(body) if isinstance(body, Mapping) else parsed(body)


def wrong(path: str, problem: str, mend: str = "") -> Refusal:
    """400 for the field at `path`; its path is put before the problem."""
    return invalid(f"{path}: {problem}", mend, param=path)


def kind_of(value: Any) -> str:
    """What a value is in the words of JSON."""
    kinds = {bool: "a boolean", str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), "no JSON")


@dataclass(frozen=True)
class Fields:
    """An object of a body, and its path in it. Each reader gives None, or its default, where the field is left out."""

    values: Mapping[str, Any]
    path: str = ""

    def at(self, name: str) -> str:
        """The path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def raw(self, name: str) -> Any:
        """The field as it came."""
        return self.values.get(name)

    def wrong(self, name: str, problem: str, mend: str = "") -> Refusal:
        """400 for one of these fields."""
        return wrong(self.at(name), problem, mend)

    def need(self, name: str) -> Any:
        """The field, which must be there."""
        if not self.has(name):
            raise self.wrong(name, "is missing")
        return self.values[name]

    @overload
    def text(self, name: str) -> str | None: ...
    @overload
    def text(self, name: str, default: str) -> str: ...
    def text(self, name: str, default: str | None = None) -> str | None:
        """A string."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            self._not(name, "a string")
        return default if value is None else value

    def need_text(self, name: str, empty: bool = False) -> str:
        """A string that must be there; an empty one only with `empty`."""
        self.need(name)
        value = self.text(name, "")
        if not value and not empty:
            raise self.wrong(name, "is empty")
        return value

    @overload
    def flag(self, name: str) -> bool | None: ...
    @overload
    def flag(self, name: str, default: bool) -> bool: ...
    def flag(self, name: str, default: bool | None = None) -> bool | None:
        """A boolean."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            self._not(name, "a boolean")
        return default if value is None else value

    @overload
    def whole(self, name: str, least: int = 0, most: int = LARGEST) -> int | None: ...
    @overload
    def whole(self, name: str, least: int = 0, most: int = LARGEST, *, default: int) -> int: ...
    def whole(self, name: str, least: int = 0, most: int = LARGEST, *, default: int | None = None) -> int | None:
        """A whole number from `least` to `most`; 8.0 is one, too."""
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            self._not(name, "a whole number")
        return int(self._within(name, value, least, most))

    def number(self, name: str, least: float = -1e300, most: float = 1e300, above: float | None = None) -> float | None:
        """A number from `least` to `most`, greater than `above` where that is given."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
            self._not(name, "a number")
        if above is not None and not value > above:
            raise self.wrong(name, f"must be above {above:g}, not {_short(value)}")
        return float(self._within(name, value, least, most))

    def one_of(self, name: str, choices: Collection[str]) -> str | None:
        """One of some strings."""
        value = self.text(name)
        if value is not None and value not in choices:
            raise self.wrong(name, f"{_short(value)} is not known", f"choose from {', '.join(choices)}")
        return value

    def object(self, name: str) -> Fields | None:
        """An object."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, Mapping):
            self._not(name, "an object")
        return None if value is None else Fields(value, self.at(name))

    def need_object(self, name: str) -> Fields:
        """An object that must be there."""
        self.need(name)
        return self.object(name) or Fields({}, self.at(name))

    def items(self, name: str) -> tuple[Any, ...] | None:
        """A list of anything."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, list | tuple):
            self._not(name, "a list")
        return None if value is None else tuple(value)

    def objects(self, name: str) -> tuple[Fields, ...]:
        """A list of objects, each with its own path; empty where the field is left out."""
        items = [Fields(item, f"{self.at(name)}[{number}]") for number, item in enumerate(self.items(name) or ())]
        for item in items:
            if not isinstance(item.values, Mapping):
                raise wrong(item.path, f"must be an object, not {kind_of(item.values)}")
        return tuple(items)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty where the field is left out."""
        items = self.items(name) or ()
        for number, item in enumerate(items):
            if not isinstance(item, str):
                raise wrong(f"{self.at(name)}[{number}]", f"must be a string, not {kind_of(item)}")
        return items

    def only(self, *known: str) -> None:
        """Refuses a field that is not in `known`, by its name."""
        for name in self.values:
            if name not in known:
                path = self.at(_short(name).strip("'\""))
                problem = f"{path}: is no field that is known here"
                raise invalid(problem, f"leave it out; known are {', '.join(known)}", path, "unknown_parameter")

    def _within(self, name: str, value: float, least: float, most: float) -> float:
        if not least <= value <= most:
            bounds = f"at least {least:g}" if most in (LARGEST, 1e300) else f"from {least:g} to {most:g}"
            raise self.wrong(name, f"must be {bounds}, not {_short(value)}")
        return value

    def _not(self, name: str, wanted: str) -> NoReturn:
        raise self.wrong(name, f"must be {wanted}, not {kind_of(self.values.get(name))}")


Body: TypeAlias = bytes | str | Mapping[str, Any] | Fields
"""What dialects read from: what came over the wire, or what was made of it."""


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of many thousand digits
        return "a huge number"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        children = (
            each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)
        )
        level = [child for each in children for child in each if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> Refusal:
    return invalid(f"the body is nested deeper than {DEEPEST} levels", "send a flatter one", code="invalid_json")

"""Expressions such as `best_of_n(8, risk=0.05)`: a name and settings that are plain values. Nothing is evaluated."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ponder.errors import InputError

T = TypeVar("T")


def parse(text: str, what: str = "expression", example: str = "name(8)") -> tuple[str, list[Any], dict[str, Any]]:
    """The name, the positional and the named settings of `text`; a name alone has none.

    Settings are literals of Python: numbers, strings, True, False, None, and lists, tuples, dicts of them.
    `what` and `example` word the InputError that anything else raises.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # Python's advice on '\d' is not for who wrote a pattern
            warnings.simplefilter("ignore", DeprecationWarning)  # ... which this was before Python 3.12
            tree = ast.parse(text.strip(), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        if not isinstance(call.func, ast.Name):
            raise ValueError
        positional = [ast.literal_eval(each) for each in call.args]
        named = {each.arg: ast.literal_eval(each.value) for each in call.keywords if each.arg}
        if len(named) < len(call.keywords):  # **settings, or one named twice
            raise ValueError
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise InputError(f"{text!r} is no {what}", f"write one such as {example}") from None
    return call.func.id, positional, named


def build(text: str, factories: Mapping[str, Callable[..., T]], *, what: str, example: str, settings: str) -> T:
    """What the named factory makes of the settings. `settings` says where they are described.

    Raises InputError for a name that is not in `factories` and for settings that it refuses.
    """
    name, positional, named = parse(text, what, example)
    factory = factories.get(name)
    if factory is None:
        raise InputError(f"there is no {what} {name!r}", f"choose from {', '.join(factories)}")
    try:
        return factory(*positional, **named)
    except (TypeError, ValueError) as error:
        raise InputError(" ".join(f"{text} does not work: {error}".split()), settings) from None

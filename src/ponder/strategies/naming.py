"""Strategies by their names, as the command line and policies write them: `best_of_n(8)`, `vote`, `direct`."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from ponder.errors import InputError
from ponder.protocols import Strategy


def _factories() -> dict[str, Callable[..., Strategy]]:
    from ponder.strategies.best_of_n import best_of_n
    from ponder.strategies.budget_forcing import budget_forcing
    from ponder.strategies.chain_of_thought import chain_of_thought
    from ponder.strategies.direct import direct
    from ponder.strategies.refine import refine
    from ponder.strategies.self_consistency import self_consistency

    return {
        "direct": direct,
        "chain_of_thought": chain_of_thought,
        "self_consistency": self_consistency,
        "vote": self_consistency,
        "best_of_n": best_of_n,
        "refine": refine,
        "budget_forcing": budget_forcing,
    }


def names() -> list[str]:
    """The names that `strategy_named` knows."""
    return list(_factories())


def strategy_named(text: str) -> Strategy:
    """The strategy of an expression such as `vote(8, risk=0.05)`: a name, and settings that are plain values.

    Raises InputError for anything else; nothing is ever evaluated.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        if not isinstance(call.func, ast.Name):
            raise ValueError
        name = call.func.id
        positional = [ast.literal_eval(each) for each in call.args]
        keywords: dict[str, Any] = {each.arg: ast.literal_eval(each.value) for each in call.keywords if each.arg}
        if len(keywords) < len(call.keywords):
            raise ValueError
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise InputError(f"{text!r} is no strategy", "write one such as vote(8) or best_of_n(4)") from None
    factory = _factories().get(name)
    if factory is None:
        raise InputError(f"there is no strategy {name!r}", f"choose from {', '.join(names())}")
    try:
        return factory(*positional, **keywords)
    except (TypeError, ValueError) as error:
        raise InputError(f"{text} does not work: {error}", "see docs/strategies.md for the settings") from None

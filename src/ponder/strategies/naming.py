"""Strategies by their names, as the command line and policies write them: `best_of_n(8)`, `vote`, `direct`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ponder import expressions
from ponder.protocols import Strategy


def _factories() -> dict[str, Callable[..., Strategy]]:
    from ponder.strategies.allocate import allocate
    from ponder.strategies.beam_search import beam_search
    from ponder.strategies.best_of_n import best_of_n
    from ponder.strategies.budget_forcing import budget_forcing
    from ponder.strategies.chain_of_thought import chain_of_thought
    from ponder.strategies.direct import direct
    from ponder.strategies.diverse_tree_search import diverse_tree_search
    from ponder.strategies.early_exit import early_exit
    from ponder.strategies.mixture import mixture
    from ponder.strategies.refine import refine
    from ponder.strategies.self_consistency import self_consistency
    from ponder.strategies.tree_search import tree_search

    return {
        "direct": direct,
        "chain_of_thought": chain_of_thought,
        "self_consistency": self_consistency,
        "vote": self_consistency,
        "allocate": allocate,
        "best_of_n": best_of_n,
        "beam_search": beam_search,
        "beam": beam_search,
        "diverse_tree_search": diverse_tree_search,
        "tree_search": tree_search,
        "refine": refine,
        "mixture": mixture,
        "early_exit": early_exit,
        "budget_forcing": budget_forcing,
    }


def names() -> list[str]:
    """The names that `strategy_named` knows."""
    return list(_factories())


def strategy_named(text: str) -> Strategy:
    """The strategy of an expression such as `vote(8, risk=0.05)`: a name, and settings that are plain values.

    A verifier is an expression of its own: `best_of_n(8, verifier='process_reward(aggregate="min")')`.

    Raises InputError for anything else; nothing is ever evaluated.
    """
    return expressions.build(
        text,
        {name: functools.partial(_made, factory) for name, factory in _factories().items()},
        what="strategy",
        example="vote(8) or best_of_n(4)",
        settings="see docs/strategies.md for the settings",
    )


def _made(factory: Callable[..., Strategy], *positional: Any, **named: Any) -> Strategy:
    if isinstance(named.get("verifier"), str):
        from ponder.verifiers.naming import verifier_named

        named["verifier"] = verifier_named(named["verifier"])
    return factory(*positional, **named)

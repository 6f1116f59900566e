"""Verifiers by their names, as tasks and the command line write them: `math_answer(strict=True)`, `choice`."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from ponder import expressions
from ponder.protocols import Verifier

MODULES = {
    "math_answer": "math_answer",
    "choice": "choice",
    "exact_text": "text_match",
    "normalised_text": "text_match",
    "pattern": "pattern",
    "json_schema": "schema",
    "arithmetic_steps": "arithmetic_steps",
    "code_tests": "code_tests",
    "reasoning_gym": "reasoning_gym",
    # These ask the model that a strategy runs on.
    "judge": "judge",
    "process_reward": "self_reward",
    "process_reward_model": "reward_model",
    "outcome_reward": "reward_model",
}
"""The module of `ponder.verifiers` that has each name. Settings must be plain values for a verifier to stand here."""


def names() -> list[str]:
    """The names that `verifier_named` knows."""
    return list(MODULES)


def verifier_named(text: str) -> Verifier:
    """The verifier of an expression such as `math_answer(strict=True)`: a name, and settings that are plain values.

    Raises InputError for anything else; nothing is ever evaluated. Only the module that is named gets loaded.
    """
    return expressions.build(
        text,
        {name: functools.partial(_make, name) for name in MODULES},
        what="verifier",
        example="math_answer or pattern('[0-9]+')",
        settings="see the docstrings of ponder.verifiers for the settings",
    )


def _make(name: str, *positional: Any, **named: Any) -> Verifier:
    factory = getattr(importlib.import_module(f"ponder.verifiers.{MODULES[name]}"), name)
    verifier: Verifier = factory(*positional, **named)
    return verifier

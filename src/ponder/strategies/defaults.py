"""What strategies take where nobody says otherwise; imported when it is needed, for it takes a while."""

from __future__ import annotations

from collections.abc import Callable

from ponder.protocols import Verifier

Canonical = Callable[[str], str | None]
"""The form of an answer that is compared with others; None for an answer that has none."""


def canonical_answers() -> Canonical:
    """Numbers and short texts, as `verifiers.math_answer` reads them."""
    from ponder.verifiers.math_answer import canonical

    return canonical


def checked_arithmetic() -> Verifier:
    """The share of equations in the thinking that are right."""
    from ponder.verifiers.arithmetic_steps import arithmetic_steps

    return arithmetic_steps()

"""Questions of reasoning-gym as examples without thinking: what reinforcement learning draws its own thinking for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ponder import tasks
from ponder.data.examples import Example, of_question
from ponder.tasks.reasoning_gym import PREFIX

PLAUSIBLE = (
    "chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=2",
    "basic_arithmetic?min_terms=2&max_terms=3&min_digits=1&max_digits=2",
    "simple_equations",
    "spell_backward?min_word_len=3&max_word_len=5",
    "count_bits?max_n=63",
    "letter_counting",
    "gcd?max_value=50",
    "number_sorting?min_numbers=3&max_numbers=3",
)
"""Families, with settings, within reach of a model of a hundred million parameters. In none of them a constant answer
gets more than a third right: `ponder.tasks.constant_floor` says how many, and belongs beside every curve."""


def gym_examples(size: int, *, seed: int = 0, families: Sequence[str] = PLAUSIBLE) -> Iterator[Example]:
    """`size` questions of each family, which take turns; a family writes its settings as `ponder.tasks` reads them.

    The verifier `reasoning_gym` scores their answers, from `metadata`. Raises MissingExtra without reasoning-gym,
    InputError for a family that does not exist.
    """
    wanted = (f"{family}{'&' if '?' in family else '?'}size={size}&seed={seed}" for family in families)
    task = tasks.load(PREFIX + "+".join(wanted))
    return map(of_question, task.questions)

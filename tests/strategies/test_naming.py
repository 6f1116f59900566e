"""Strategies by their names: values only, nothing evaluated, every mistake one line."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import InputError
from ponder.strategies.naming import names, strategy_named


@pytest.mark.parametrize(
    ("text", "called"),
    [
        ("direct", "direct()"),
        ("chain_of_thought", "chain_of_thought('auto')"),
        ("chain_of_thought('prompt')", "chain_of_thought('prompt')"),
        (" vote(3) ", "self_consistency(3)"),
        ("vote(n=5, risk=0.05)", "self_consistency(5, risk=0.05)"),
        ("best_of_n(4)", "best_of_n(4)"),
        ("beam(4, 2)", "beam_search(4, 2)"),
    ],
)
def test_an_expression_names_a_strategy(text: str, called: str) -> None:
    assert getattr(strategy_named(text), "__qualname__", "").split(".<locals>")[0] == called


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no strategy"),
        ("vote(", "is no strategy"),
        ("vote(**{'n': 3})", "is no strategy"),
        ("vote(open('x'))", "is no strategy"),
        ("__import__('os').getcwd()", "is no strategy"),
        ("nothing(3)", "there is no strategy 'nothing'. choose from direct"),
        ("vote(0)", "n must be at least 1"),
        ("vote(m=3)", "unexpected keyword"),
        ("vote('many')", "does not work"),
    ],
)
def test_what_is_none_is_told_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(InputError) as told:
        strategy_named(text)
    assert problem in str(told.value)
    assert "\n" not in str(told.value)


@given(st.text(max_size=30))
def test_any_text_is_a_strategy_or_an_error(text: str) -> None:
    with contextlib.suppress(InputError):
        assert callable(strategy_named(text))


def test_every_name_works_alone() -> None:
    assert all(callable(strategy_named(name)) for name in names())

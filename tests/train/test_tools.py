"""The tools by themselves: what they give, and what they say of what they cannot do."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import InputError
from ponder.train.tools import tools_named


def used(text: str, **arguments: str) -> str:
    (tool,) = tools_named([text])
    return asyncio.run(tool.run(**arguments))


@given(st.integers(-999, 999), st.integers(-999, 999), st.integers(1, 99), st.sampled_from("+-*"))
def test_a_calculator_is_exact(a: int, b: int, c: int, sign: str) -> None:
    value = Fraction({"+": a + b, "-": a - b, "*": a * b}[sign], c)
    found = used("calculator()", expression=f"({a} {sign} ({b})) / {c}")
    assert Fraction(found) == value if value.denominator == 1 else float(found) == pytest.approx(float(value), rel=1e-9)


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("2 ** 3", "more than numbers"),
        ("x + 1", "more than numbers"),
        ("__import__('os')", "more than numbers"),
        ("", "more than numbers"),
        ("1 / (2 - 2)", "division by zero"),
        ("1+" * 400 + "1", "at most 500 characters"),
    ],
)
def test_what_a_calculator_cannot_do_is_told(expression: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        used("calculator()", expression=expression)


@pytest.mark.usefixtures("bubblewrap")
def test_code_gives_what_it_prints() -> None:
    assert used("run_code()", code="print(sum(range(5)))") == "10"
    assert used("run_code()", code="1") == "(nothing was printed)"
    for code, told in (
        ("1 / 0", "ZeroDivisionError"),
        ("while True: pass", "longer than 0.5 s"),
        ("raise SystemExit(3)", "code 3"),
    ):
        with pytest.raises(ValueError, match=told):
            used("run_code(seconds=0.5)", code=code)


def test_tools_have_names_and_schemas() -> None:
    tools = tools_named(["calculator", "run_code(seconds=1)"])
    assert [tool.name for tool in tools] == ["calculator", "run_code"]
    assert all(tool.schema["required"] == list(tool.schema["properties"]) for tool in tools)
    with pytest.raises(InputError, match="there is no tool 'abacus'"):
        tools_named(["abacus()"])

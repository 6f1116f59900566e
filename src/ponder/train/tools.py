"""Tools that a model may call while it is trained, by their names: `calculator()`, `run_code(seconds=2)`.

A tool raises where it cannot do what it is asked; the words of the fault are what the model reads then.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from ponder import expressions, sandbox
from ponder.errors import InputError
from ponder.protocols import Tool
from ponder.verifiers.arithmetic_steps import Expression

LONGEST = 500
"""Characters of an expression."""


def tools_named(texts: Sequence[str]) -> tuple[Tool, ...]:
    """The tools of expressions such as `calculator()`. Raises InputError for an unknown one, and one named twice."""
    tools = tuple(
        expressions.build(each, TOOLS, what="tool", example="calculator()", settings="See docs/training.md")
        for each in texts
    )
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"tools has {twice} twice", "Name it once")
    return tools


def calculator() -> Tool:
    """Works out + - * / and parentheses, exactly; what has no end is rounded to ten digits."""

    async def calculate(expression: str) -> str:
        text = str(expression).strip()
        if len(text) > LONGEST:
            raise ValueError(f"an expression has at most {LONGEST} characters")
        parser = Expression(text)
        try:
            value = parser.expression()
        except ZeroDivisionError:
            raise ValueError("division by zero") from None
        if value is None or parser.end < len(text):
            raise ValueError(f"{text!r} is more than numbers, + - * / and parentheses")
        return _spelled(value)

    schema = _schema("expression", "Numbers, + - * / and parentheses, such as (3 + 4) * 5.")
    return Tool("calculator", "Works out an arithmetic expression.", schema, calculate)


def run_code(seconds: float = 5.0) -> Tool:
    """Runs Python in a sandbox, for at most `seconds`; gives what was printed."""
    limits = sandbox.Limits(seconds=seconds, output=1 << 16)

    async def run(code: str) -> str:
        outcome = await sandbox.run(str(code), limits=limits)
        if outcome.timed_out:
            raise ValueError(f"the code took longer than {seconds:g} s")
        if outcome.truncated:
            raise ValueError("the code printed too much")
        if outcome.code:
            lines = outcome.stderr.strip().splitlines()
            raise ValueError(lines[-1] if lines else f"the code ended with exit code {outcome.code}")
        return outcome.stdout.strip() or "(nothing was printed)"

    schema = _schema("code", "A Python program that prints its result.")
    return Tool("run_code", "Runs Python code and gives what it prints.", schema, run)


TOOLS = {"calculator": calculator, "run_code": run_code}


def _schema(name: str, description: str) -> dict[str, object]:
    """The JSON schema of one text as the only argument."""
    told = {"type": "string", "description": description}
    return {"type": "object", "properties": {name: told}, "required": [name]}


def _spelled(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):.10g}"

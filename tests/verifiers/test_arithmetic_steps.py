"""Sums worked out again."""

from __future__ import annotations

import pytest
from scoring import score

from ponder.verifiers.arithmetic_steps import arithmetic_steps


@pytest.mark.parametrize(
    "line",
    [
        "18 - 3 = 15",
        "She has 5 + 3 = 8 apples.",
        "In 2024 she bought 3 + 4 = 7.",
        "2 + 3 * 4 = 14",
        "(2 + 3) * 4 = 20",
        "10 - 3 - 2 = 5",
        "24 / 4 / 2 = 3",
        "2 x 3 = 6",
        "2x3=6",
        "2 × 3 ÷ 4 = 1.5",
        r"$6 \times \frac{1}{2} = 3$",
        "$1,000 + $234.50 = $1,234.50",
        "0.1 + 0.2 = 0.3",
        "3 - 5 = -2",
        "3 * -2 = -6",
        "- 3 + 4 = 7",
        "* 3 + 4 = 7",
        "1. 3 + 4 = 7",
        "**3 + 4 = 7**",
        "3 + 4 = **7**",
        "x = 3 + 4 = 7",
        "10 + 5 = 3 * 5",
        "There are 12. 3 + 4 = 7. 2 + 2 = 4.",
        "48/2 = <<48/2=24>>24",
        "(" * 50 + "1 + 1" + ")" * 50 + " = 2",
    ],
)
def test_right_line(line: str) -> None:
    made = score(arithmetic_steps(), line)
    assert (made.value, made.steps) == (1.0, (1.0,))


@pytest.mark.parametrize(
    "line",
    [
        "18 - 3 = 16",
        "2 + 3 * 4 = 20",
        "10 - 3 - 2 = 9",
        "10 / 3 = 3.33",
        "5 / 0 = 0",
        "1,000 + 1 = 1,002",
        "3 + 4 = 7 - 2 = 5",
        "2 + 2 = 4, 3 + 3 = 7",
        "3 - 5 = 2",
        "12 + 12 = 2",
        "3 + 4 = 7.5",
    ],
)
def test_wrong_line(line: str) -> None:
    made = score(arithmetic_steps(), line)
    assert (made.value, made.steps) == (0.0, (0.0,))
    assert made.why == f"wrong: {line}"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "no sums here",
        "x = 5",
        "x - 3 + 1 = 5",
        "2x + 3 + 4 = 10",
        "total * 3 + 4 = 7",
        "1 + 2^3 + 4 = 14",
        "2**3 = 9",
        "x^2 + 3 + 4 = 1",
        "sqrt(4) + 1 = 7",
        "20% + 3 = 7",
        "50 * 2 = 20%",
        "3 + 4 = 9x",
        "3 + 4 = 9 * y",
        "3 + 4 >= 9",
        "5 == 6 + 2",
        "5 apples + 3 apples = 9 apples",
        "(" * 150 + "1 + 1" + ")" * 30 + " = 3",
        "1+" * 5000 + "1 = 3",
    ],
)
def test_line_without_an_equation_of_numbers(line: str) -> None:
    made = score(arithmetic_steps(), line)
    assert (made.value, made.why, made.steps) == (0.5, "found no equation", ())


def test_share_of_right_lines_in_the_thinking() -> None:
    made = score(arithmetic_steps(), "1 + 1 = 3", thinking="1 + 1 = 2\nso\n2 + 2 = 5\n3 + 3 = 6\n4 + 4 = 8")
    assert (made.value, made.steps, made.why) == (0.75, (1.0, 0.0, 1.0, 1.0), "wrong: 2 + 2 = 5")

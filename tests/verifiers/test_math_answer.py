"""Answers in mathematics: found, brought to one form, compared exactly, and never for too long."""

from __future__ import annotations

import asyncio
import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring import score

from ponder.errors import InputError
from ponder.verifiers import child
from ponder.verifiers.math_answer import canonical, extract, math_answer


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{7} or rather \boxed{8}", "8"),
        (r"\boxed{\frac{1}{2}} of 3", r"\frac{1}{2}"),
        (r"\boxed{\sqrt{\frac{a}{b}}}", r"\sqrt{\frac{a}{b}}"),
        (r"\boxed{5} and then \boxed{6", "5"),
        (r"The answer is 4. \boxed{5}", "5"),
        ("The answer is 1,234.", "1,234"),
        ("The answer is 3.5. There are 9 more.", "3.5"),
        ("**Answer:** 42", "42"),
        ("The final answer is: **42**.", "42"),
        ("Answer:\n\n42 apples\n", "42 apples"),
        ("The answer is 15 because 18 - 3 = 15, and 2 + 2 = 4", "15"),
        ("The answer is that Anna has 12 apples.", "12"),
        ("The answer to the first question is 4.", "4"),
        ("The answer is 3. No: the answer is 5.", "5"),
        ("6 * 3 = 18\n#### 18", "18"),
        ("The answer is 25 (5 times 5).", "25"),
        ("The answer is 6. Her answer is wrong.", "6"),
        (r"\boxed{\text{so } \boxed{2}}", "2"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_marked_answer(text: str, found: str, strict: bool) -> None:
    if strict and "Anna" in text:
        found = "that Anna has 12 apples"
    assert extract(text, strict) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("18 - 3 = 15", "15"),
        ("It is -5", "-5"),
        ("We get 5-3", "3"),
        ("She pays 3.50 dollars", "3.50"),
        ("7 apples and 3 pears", "3"),
        ("It was on 12/05/2024.", "12/05/2024"),
        ("It was on 2024-05-12", "2024-05-12"),
        ("That leaves 1,234,567.5 of them.", "1,234,567.5"),
        ("It is 1 1/2 cups", "1 1/2"),
        (r"So we have $\frac{3}{4}$ left", r"\frac{3}{4}"),
        ("I say 50%.", "50%"),
        ("x^2 + 1", "x^2 + 1"),
        ("There is no telling", None),
        ("", None),
    ],
)
def test_last_number_only_where_lenient(text: str, found: str | None) -> None:
    assert extract(text) == found
    assert extract(text, strict=True) is None
    assert canonical(text, strict=True) is None


@pytest.mark.parametrize(
    ("texts", "form"),
    [
        (["1,000", "1000.0", "$1000", "$1,000.00", "1 000", "1{,}000", "1e3", "1 thousand", "1000 dollars"], "1000"),
        (["1/2", "0.5", ".5", r"\frac{1}{2}", r"\frac12", r"$\dfrac{2}{4}$", "½", "0.50 m^2", "€0.5"], "1/2"),
        (["-3/2", "-1 1/2", "-1.5", "−1.5", "-$1.50", r"-\frac{3}{2}", "-1½"], "-3/2"),
        (["50%", r"50\%", "50 percent", r"$50\%$", "50.0 % of them"], "50%"),
        (["Paris", "paris.", "The answer is **Paris**!", r"\boxed{\text{Paris}}"], "paris"),
        (["7 apples", "7", "x = 7", "#### 7", "7 km/h", r"7\text{ cm}^2", "7 cm²", "about 7"], "7"),
        (["(1, 5)", "(1,5)"], "(1,5)"),
        ([r"\boxed{7 apples and 3 pears}", "The answer is 7 apples and 3 pears."], "7 apples and 3 pears"),
        (["12/05/2024", "The answer is 12/05/2024."], "12/05/2024"),
        (["1.5 \\times 10^{3}", "1500"], "1500"),
        (["1/0", "The answer is 1/0."], "1/0"),
        (["", "  ", "?"], None),
    ],
)
def test_canonical(texts: list[str], form: str | None) -> None:
    assert {text: canonical(text) for text in texts} == dict.fromkeys(texts, form)


@pytest.mark.parametrize("text", ["5x", "5 - x", "5 pi", r"5\pi", "x = 5 or x = 3", "x >= 5", "3/4/5", "5 or 6"])
def test_what_only_looks_like_a_number(text: str) -> None:
    form = canonical(rf"\boxed{{{text}}}")
    assert form is not None
    with pytest.raises(ValueError, match="Invalid literal"):
        Fraction(form)


@st.composite
def writings(draw: st.DrawFn) -> tuple[Fraction, list[str]]:
    """A decimal number in many ways of writing it."""
    number, places = draw(st.integers(-(10**9), 10**9)), draw(st.integers(0, 4))
    value = Fraction(number, 10**places)
    sign, size = "-" * (value < 0), abs(value)
    digits = f"{abs(number):0{places + 1}d}"
    whole, rest = (digits[:-places], "." + digits[-places:]) if places else (digits, "")
    grouped = f"{int(whole):,}{rest}"
    top, bottom = size.numerator, size.denominator
    times = draw(st.integers(1, 9))
    texts = [
        sign + whole + rest,
        sign + grouped,
        f"{sign}${grouped}",
        f"{sign}{grouped} apples.",
        f"**{sign}{grouped}**",
    ]
    texts += [
        f"{sign}{whole}{rest or '.'}000",
        f"{sign}{top * times}/{bottom * times}",
        f"{sign}\\frac{{{top}}}{{{bottom}}}",
    ]
    return value, [*texts, f"{sign}{top // bottom} {top % bottom}/{bottom}"]


@settings(max_examples=60)
@given(writings())
def test_every_writing_of_a_number_has_one_form(written: tuple[Fraction, list[str]]) -> None:
    value, texts = written
    for text in texts:
        for whole in (text, rf"so \boxed{{{text}}}", f"The answer is {text}", f"#### {text}", f"So we get {text}"):
            assert canonical(whole) == str(value), whole


RIGHT = [
    ("1,234", "The answer is 1234."),
    ("3.5", "3.50 dollars"),
    ("0.5", "50%"),
    ("50%", "The answer is 50 percent"),
    ("1/2", r"\boxed{\frac{1}{2}}"),
    ("3 + 5 = 8\n#### 8", "8 apples"),
    ("-5", "-5"),
    ("x^2+2x+1", r"\boxed{(x+1)^2}"),
    (r"\frac{\sqrt{2}}{2}", r"\boxed{\frac{1}{\sqrt{2}}}"),
    ("4", r"\boxed{2\sqrt{4}}"),
    ("Paris", "The answer is paris."),
    ("Paris", "Paris"),
    ("12/05/2024", "It was on 12/05/2024."),
]
WRONG = [
    ("5", "-5"),
    ("50", "50%"),
    ("5", "505"),
    ("0.333", "1/3"),
    ("5", r"\boxed{5x}"),
    ("5x", "The answer is 5"),
    ("7", r"\boxed{7 apples and 3 pears}"),
    ("2024", "12/05/2024"),
    ("silent", r"\boxed{listen}"),
    ("x+2", r"\boxed{x+1}"),
    ("5", ""),
    ("5", "I do not know."),
    ("1000", "1e999999999"),
    ("5", "9" * 5000),
]


@pytest.mark.parametrize(("reference", "answer"), RIGHT)
def test_right(reference: str, answer: str) -> None:
    assert score(math_answer(seconds=20), answer, reference).value == 1.0


@pytest.mark.parametrize(("reference", "answer"), WRONG)
def test_wrong(reference: str, answer: str) -> None:
    made = score(math_answer(seconds=20), answer, reference)
    assert made.value == 0.0
    assert made.why != "timed out"


@pytest.mark.parametrize(("reference", "answer"), [("50", "50%"), ("50%", "50"), ("0.5", "50%")])
def test_a_percentage_that_was_asked_for(reference: str, answer: str) -> None:
    assert score(math_answer(), answer, reference, "What percentage is left?").value == 1.0
    assert score(math_answer(), "40%", reference, "What percentage is left?").value == 0.0


def test_strict_counts_only_what_is_marked() -> None:
    assert score(math_answer(strict=True), "It is 5", "5").why == "found no answer"
    assert score(math_answer(strict=True), "It is 5", "5").value == 0.0
    assert score(math_answer(strict=True), "#### 5", "5").value == 1.0


def test_a_comparison_that_hangs_times_out_and_the_next_one_works() -> None:
    score(math_answer(seconds=20), r"\boxed{y}", "x")  # the child is up
    start = time.monotonic()
    made = score(math_answer(seconds=1), r"\boxed{x + (7^{7^{7^{7}}})!}", r"x + (8^{8^{8^{8}}})!")
    assert (made.value, made.why) == (0.0, "timed out")
    assert time.monotonic() - start < 20
    assert score(math_answer(seconds=20), r"\boxed{1+x}", "x+1").value == 1.0


def test_a_child_that_died_is_replaced() -> None:
    async def run() -> list[Any]:
        first = await child.ask("search", ["b", 0, "abc"], 20)
        child.close()
        return [first, await child.ask("search", ["c", 0, "abc"], 20), await child.ask("search", ["d", 0, "abc"], 20)]

    assert asyncio.run(run()) == [[1, 2], [2, 3], None]


def test_what_cannot_be_used() -> None:
    for seconds in (0, -1, float("nan")):
        with pytest.raises(InputError, match="no time"):
            math_answer(seconds=seconds)
    with pytest.raises(InputError, match="reference"):
        score(math_answer(), "5")

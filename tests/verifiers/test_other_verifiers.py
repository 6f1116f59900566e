"""Choices, texts, patterns, schemas and several verifiers at once."""

from __future__ import annotations

import re
import time

import pytest
from scoring import score

from ponder.errors import InputError
from ponder.verifiers.choice import choice
from ponder.verifiers.compose import all_of
from ponder.verifiers.pattern import pattern
from ponder.verifiers.schema import json_schema
from ponder.verifiers.text_match import exact_text, normalised_text

CITIES = ["York", "New York", "Rome", "A Coruña"]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("**B) New York**", "B"),
        ("The answer is B.", "B"),
        ("The answer is (c), not (A)", "C"),
        ("The answer is B because (A) is in England.", "B"),
        ("Answer: **C**", "C"),
        (r"\boxed{\text{B}}", "B"),
        ("(A) is too small, so it must be (C).", "C"),
        ("It is New York.", "B"),
        ("rome", "C"),
        ("A Coruña", "D"),
        ("The answer is a Coruña", "D"),
        ("Rome or York", None),
        ("A city", None),
        ("E", None),
        ("", None),
    ],
)
def test_choice(answer: str, letter: str | None) -> None:
    for right in "ABCD":
        assert score(choice(), answer, right, choices=CITIES).value == float(letter == right)


@pytest.mark.parametrize("reference", ["B", "(b)", "1", "New York"])
def test_reference_of_a_choice(reference: str) -> None:
    assert score(choice(), "B", reference, choices=CITIES).value == 1.0
    assert score(choice(), "A", reference, choices=CITIES).value == 0.0
    assert score(choice(), "B", reference, choices=dict(zip("ABCD", CITIES, strict=True))).value == 1.0


def test_choice_without_options() -> None:
    assert score(choice(), "The answer is (C).", "2").value == 1.0
    for reference in (None, "Z9", "E"):
        with pytest.raises(InputError, match="reference"):
            score(choice(), "B", reference, choices=CITIES)


def test_texts() -> None:
    assert score(exact_text(), " Paris\n", "Paris").value == 1.0
    assert score(exact_text(), "paris", "Paris").value == 0.0
    assert score(exact_text(), "Rome", "Paris", references=["Rome"]).value == 1.0
    assert score(normalised_text(), "The  Eiffel Tower!", "eiffel tower").value == 1.0
    assert score(normalised_text(), "Theodore", "odore").value == 0.0
    assert score(normalised_text(), "an owl", references=("cat", "Owl")).value == 1.0
    assert score(exact_text(), "R", references="Rome").value == 0.0
    with pytest.raises(InputError, match="reference"):
        score(exact_text(), "Paris")


def test_pattern() -> None:
    assert score(pattern(r"^\d+ ms$", re.MULTILINE), "took\n12 ms").value == 1.0
    assert score(pattern(r"^\d+ ms$"), "took\n12 ms").value == 0.0
    assert score(pattern("é", re.IGNORECASE), "É").why == "found 'É'"
    with pytest.raises(InputError, match="no regular expression"):
        pattern("(")
    with pytest.raises(InputError, match="no time"):
        pattern("a", seconds=0)


def test_a_pattern_that_never_ends_times_out() -> None:
    start = time.monotonic()
    made = score(pattern(r"(a+)+$", seconds=0.5), "a" * 60 + "!")
    assert (made.value, made.why) == (0.0, "timed out")
    assert time.monotonic() - start < 20


SCHEMA = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "ages": {"type": "array", "items": {"type": "integer"}}},
}


@pytest.mark.parametrize(
    ("answer", "value", "why"),
    [
        ('{"name": "a"}', 1.0, ""),
        ('```json\n{"name": "a", "ages": [1]}\n```', 1.0, ""),
        ('```\n{"name": "a"}\n```\n', 1.0, ""),
        ('{"name": "a", "ages": [1, "b"]}', 0.0, "$.ages[1]"),
        ("{}", 0.0, "'name' is a required"),
        ("[]", 0.0, "$:"),
        ('Here: {"name": "a"}', 0.0, "not JSON"),
        ('{"name": "a", "ages": NaN}', 0.0, "not JSON"),
        ("[" * 100_000, 0.0, "not JSON"),
        ("", 0.0, "not JSON"),
    ],
)
def test_json_schema(answer: str, value: float, why: str) -> None:
    made = score(json_schema(SCHEMA), answer)
    assert made.value == value
    assert why in made.why


def test_no_schema() -> None:
    with pytest.raises(InputError, match="no JSON schema"):
        json_schema({"type": "strnig"})


def test_all_of() -> None:
    both = all_of(exact_text(), pattern("a"))
    assert score(both, "ab", "ab").value == 1.0
    made = score(both, "b", "b")
    assert (made.value, made.why) == (0.0, "pattern: not found")
    assert score(both, "a", "b").why.startswith("exact_text")
    with pytest.raises(InputError, match="verifier"):
        all_of()

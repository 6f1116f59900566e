"""What the answer in a text is, and whether it equals a reference of reasoning-gym."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.verifiers.gym_forms import bare, final, same


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 12 \n", "12"),
        ("First <answer>1</answer>, no: <answer>\n12 </answer>", "12"),
        (r"so \boxed{1}, no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("Here:\n```json\n[1, 2]\n```\nDone.", "[1, 2]"),
        ("**Answer:** 12", "12"),
        ("I think. The answer is: 0 1\n1 0", "0 1\n1 0"),
        ("2 + 2 = 4\n#### 4", "4"),
        ("no marks at all", "no marks at all"),
        ("", ""),
    ],
)
def test_the_final_answer(text, answer):
    assert final(text) == answer


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("12.", "12"),
        ("**12**", "12"),
        ("1,200", "1200.0"),
        ("$244/607$", "244/607"),
        ('"Left to himself."', "Left to himself."),
        ("yes", "Yes"),
        ("a,b , c", "a, b, c"),
        ("1.0 2\n\n3  4", "1 2.00\n3 4"),
        ('["60.0", "1"]', "['60.0', '1']"),
        ("[[0,1],[1,0]]", "[[0, 1], [1, 0]]"),
        ('{"b": 1, "a": [2]}', '{"a": [2], "b": 1}'),
        ('""', ""),
    ],
)
def test_other_spellings_of_the_reference(answer, reference):
    assert same(answer, reference)
    assert same(reference, reference) or not reference


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("12 or 13", "12"),
        ("12 12", "12"),
        ("-12", "12"),
        ("12", "13"),
        ("1 2 3 4", "1 2\n3 4"),
        ("1 2\n3 4\n5 6", "1 2\n3 4"),
        ("['61.0', '1']", "['60.0', '1']"),
        ("[[0, 1], [1, 0], [1]]", "[[0, 1], [1, 0]]"),
        ("", ""),
        ("...", ""),
        ("x", ""),
        ("nan", "0"),
        ("", "x"),
        ("[" * 4000, "[1]"),
        ("{" + "'a':" * 900, "{}"),
    ],
)
def test_what_does_not_equal_the_reference(answer, reference):
    assert not same(answer, reference)


@given(st.text(), st.text(min_size=1))
def test_a_reference_equals_itself_and_nothing_around_it(text, reference):
    assert same(f" {reference}\n", reference) == bool(bare(reference))
    assert bare(bare(text)) == bare(text)
    if same(text, reference):
        assert not same(f"{text} or {reference}1", reference)


def test_quotes_without_end_are_taken_off_without_recursion():
    assert bare('"' * 9000 + "x" + '"' * 9000) == "x"

"""What a model is tested on stays out of what it is trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.data.decontaminate import SHINGLE, Decontaminated, Hit, Rules, decontaminate, words_of
from ponder.data.examples import Example
from ponder.data.word_problems import word_problems
from ponder.errors import InputError
from ponder.types import Question, user

TEST = (
    "Brigitte had 14 seashells in her bucket. A wave washed 5 of them away. How many seashells were left?",
    "A baker sold 31 pies on Monday and 17 more on Tuesday; each pie cost $4. How much did the baker earn in all?",
    "What is 3 + 4?",
    "Brigitte has 9 red hats and 7 blue hats. She sells each hat for $3. What does she get for them?",
)


def asked(*texts: str) -> list[Question]:
    return [Question((user(text),), metadata={"id": f"t{at}"}) for at, text in enumerate(texts)]


def compared(*texts: str, test: Sequence[str] = TEST, rules: Rules | None = None) -> Decontaminated:
    return decontaminate([Example(text) for text in texts], {"test": asked(*test)}, rules)


CLEAN = (
    "Tom has 3 boxes with 5 pencils in each box. He gives 4 pencils away. How many pencils does Tom have left?",
    "How many seashells were left?",
    "What is 3 + 5?",
    "A baker sold 31 pies on Friday.",
)

# ---------------------------------------------------------------- planted copies


@pytest.mark.parametrize(
    ("planted", "item", "rule"),
    [
        (TEST[0], "t0", "verbatim"),
        (TEST[0].upper().replace(".", " !"), "t0", "verbatim"),
        (f"Here is one. {TEST[0]} Think first.", "t0", "n-gram"),
        ("A wave washed 5 of them away. How many towels?", "t0", "n-gram"),
        (TEST[0].replace("14", "231"), "t0", "n-gram"),
        (TEST[1].replace("31", "90").replace("17", "28").replace("$4", "$6"), "t1", "n-gram"),
        (TEST[3].replace("9", "90").replace("7", "28").replace("3", "6"), "t3", "near"),
        (
            TEST[3].replace("Brigitte", "Ahmed").replace("She", "He").replace("she", "he").replace("7", "2"),
            "t3",
            "near",
        ),
        (TEST[3].replace("9", "eleven").replace("7", "two").replace("$3", "$2.50"), "t3", "near"),
        (TEST[2], "t2", "verbatim"),
        ("what is 3 4", "t2", "verbatim"),
    ],
)
def test_a_planted_copy_is_found(planted: str, item: str, rule: str) -> None:
    found = compared(CLEAN[0], planted, CLEAN[1])
    assert [example.question for example in found.examples] == [CLEAN[0], CLEAN[1]]
    [hit] = found.report.hits
    assert (hit.example, hit.of, hit.item, hit.rule) == (1, "test", item, rule)


def test_clean_examples_stay() -> None:
    found = compared(*CLEAN)
    assert [example.question for example in found.examples] == list(CLEAN)
    assert found.report.hits == ()


def test_what_the_thinking_repeats_is_found() -> None:
    leaking = Example("A riddle.", thinking="I know this one.\nA wave washed 5 of them away. How many are left?")
    apart = Example("A wave washed 5 of", thinking="them away. How many?")
    found = decontaminate([leaking, apart], {"test": asked(*TEST)})
    assert found.examples == (apart,)
    assert found.report.hits == (Hit(0, "test", "t0", "n-gram", "a wave washed 5 of them away how many"),)


def test_a_hit_says_what_is_shared() -> None:
    near, both, run = compared(
        TEST[3].replace("7", "8").replace("3", "4"),
        TEST[0].replace("14", "15"),
        "5 of them away. How many seashells were left in it?",
    ).report.hits
    assert (near.rule, near.shared, near.similarity) == ("near", "", 1.0)
    assert (both.rule, both.shared[:20], both.similarity) == ("n-gram", "seashells in her buc", 1.0)
    assert (run.rule, run.shared, run.similarity) == ("n-gram", "5 of them away how many seashells were left", None)


def test_the_longest_shared_run_counts_for_the_longer_rule() -> None:
    long = "Hello. " + " ".join(TEST[1].split()[:13])
    report = compared(long, "each pie cost $4. How much did the baker lose?").report
    assert [len(hit.shared.split()) for hit in report.hits] == [13, 9]
    assert report.long_runs == 1


# ---------------------------------------------------------------- rules


def test_the_rules_are_settings() -> None:
    text = "A wave washed 5 of them away. How many towels?"
    assert compared(text, rules=Rules(ngram=9)).examples == ()
    assert len(compared(text, rules=Rules(ngram=10)).examples) == 1
    other = TEST[0].replace("14", "15").replace("bucket", "basket")  # 17 word 3-grams, of which 3 differ
    assert compared(other, rules=Rules(near=0.7, ngram=13)).report.hits[0].similarity == 0.7
    assert compared(other, rules=Rules(near=0.71, ngram=13)).report.hits == ()
    whole = Rules(ngram=100, reported=100)
    assert compared(other, TEST[0], rules=whole).report.hits == (
        Hit(1, "test", "t0", "verbatim", " ".join(words_of(TEST[0]))),
    )


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({"ngram": 0}, "ngram=0 and reported=13 do not fit"),
        ({"ngram": 14}, "ngram=14 and reported=13 do not fit"),
        ({"near": 0}, "near=0 is no similarity"),
        ({"near": 1.1}, "near=1.1 is no similarity"),
    ],
)
def test_rules_that_contradict_themselves(rules: dict[str, float], problem: str) -> None:
    with pytest.raises(InputError, match=re.escape(problem)):
        Rules(**rules)  # type: ignore[arg-type]


def test_there_must_be_something_to_compare_with() -> None:
    with pytest.raises(InputError, match="there is no evaluation set"):
        decontaminate([], {})
    with pytest.raises(InputError, match="the evaluation set svamp has no items"):
        decontaminate([], {"test": asked("?"), "svamp": ()})


def test_words() -> None:
    assert words_of("Don't pay $1,000.50, Anna’s 3-4 É!") == ("dont", "pay", "1000.50", "annas", "3", "4", "é")
    assert words_of("1,2 and 12,345,678") == ("1", "2", "and", "12345678")


# ---------------------------------------------------------------- against the plain way


WORDS = st.lists(st.sampled_from(("a", "b", "c", "d", "e", "f")), min_size=1, max_size=14).map(" ".join)


@given(st.lists(WORDS, min_size=1, max_size=6), st.lists(WORDS, max_size=6), st.sampled_from([0.3, 0.5, 0.7, 1.0]))
def test_the_indices_find_what_comparing_all_pairs_finds(items: list[str], texts: list[str], near: float) -> None:
    rules = Rules(ngram=5, near=near)

    def grams(text: str, size: int) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)}

    expected = set()
    for number, text in enumerate(texts):
        for at, item in enumerate(items):
            shared, both = grams(text, SHINGLE) & grams(item, SHINGLE), grams(text, SHINGLE) | grams(item, SHINGLE)
            similar = bool(both) and len(shared) / len(both) >= near - 1e-9
            if text == item if len(item.split()) < 5 else similar or grams(text, 5) & grams(item, 5):
                expected.add((number, f"t{at}"))
    found = compared(*texts, test=items, rules=rules)
    assert {(hit.example, hit.item) for hit in found.report.hits} == expected
    assert len(found.examples) == len(texts) - len({number for number, _ in expected})


# ---------------------------------------------------------------- many


def test_the_report_counts_by_rule_and_by_set() -> None:
    planted = [Example(TEST[0]), Example(TEST[0].replace("14", "77")), Example(TEST[1])]
    clean = list(word_problems(300, seed=1))
    sets = {"one": asked(*TEST), "other": asked(TEST[0], "Nothing like it is here at all, not anywhere.")}
    found = decontaminate([*clean[:100], *planted, *clean[100:]], sets)
    assert list(found.examples) == clean
    summary = found.report.summary()
    assert json.loads(json.dumps(summary)) == {
        "rules": {"ngram": 8, "reported": 13, "near": 0.7},
        "examples": 303,
        "kept": 300,
        "removed": 3,
        "removed_by": {"verbatim": 2, "n-gram": 1, "near": 0},
        "examples_with_13_grams": 3,
        "sets": {
            "one": {"items": 4, "items_hit": 2, "examples": 3},
            "other": {"items": 2, "items_hit": 1, "examples": 2},
        },
    }


def test_generated_problems_with_other_numbers_and_names_are_found_again() -> None:
    """Every problem of a held-out set, with all its numbers and its names changed."""
    held_out = [example.question for example in word_problems(150, seed=3, difficulty=(2, 3))]
    names = {name: "Xenia" for text in held_out for name in re.findall(r"\b[A-Z][a-z]+\b", text)}

    def changed(text: str) -> str:
        known = (
            "How",
            "If",
            "There",
            "Then",
            "She",
            "He",
            "Her",
            "His",
            "The",
            "In",
            "At",
            "On",
            "A",
            "An",
            "Each",
            "After",
        )
        for name in names:
            if name not in known and re.search(rf"(?:[a-z,] |^|[.?] ){name}(?:'s)? (?:and|has|had|is)", text):
                text = re.sub(rf"\b{name}\b", "Xenia", text)
        return re.sub(r"\d+(?:\.\d+)?", lambda number: str(int(float(number[0])) + 3), text)

    found = decontaminate([Example(changed(text)) for text in held_out], {"held out": asked(*held_out)})
    missed = {example.question for example in found.examples}
    assert len(missed) <= 3, missed

"""Generated word problems: the solution is right, the text says all that it needs, and a seed is a seed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.data import word_problems as module
from ponder.data.draw import LEVELS, Draw, Level, Unfit
from ponder.data.examples import Example
from ponder.data.names import PEOPLE, Person
from ponder.data.story import DOLLAR, Fact, Scene, Story, plain
from ponder.data.telling import OF_NOBODY, OF_PEOPLE, _clause, told
from ponder.data.things import KITS, PLACES, Thing, thing
from ponder.data.word_problems import SCENES, word_problems
from ponder.errors import InputError
from ponder.types import Sample
from ponder.verifiers.arithmetic_steps import arithmetic_steps
from ponder.verifiers.math_answer import math_answer

EQUATION = re.compile(r"(\d+(?:\.\d+)?) ([-+*/]) (\d+(?:\.\d+)?)(?: / (100))? = (\d+(?:\.\d+)?) \D")
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")
SMALL = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
WORDS = {
    **{word: value for value, word in enumerate(SMALL, 2)},
    "one": 1,
    "twice": 2,
    "half": 2,
    "third": 3,
    "quarter": 4,
    "fifth": 5,
    "sixth": 6,
    "eighth": 8,
    "tenth": 10,
}
UNSAID = {
    r"boxes_for_all|trips>rest|share_with_oneself": 1,  # the box for the rest; oneself
    r"perimeter|fence|as_many_again|equal": 2,
}
"""Numbers that a solution needs and that the text of such a structure leaves to the reader."""


def verified(examples: Iterable[Example]) -> list[Example]:
    """The examples, after the verifiers have found nothing wrong with them."""
    examples = list(examples)
    steps, answer = arithmetic_steps(), math_answer(strict=True)

    async def verify() -> None:
        for example in examples:
            sample = Sample(0, example.answer, answer=example.answer, thinking=example.thinking)
            assert (await steps(example.asked(), sample)).steps == (1.0,) * len(example.steps), example
            assert (await answer(example.asked(), sample)).value == 1.0, example

    asyncio.run(verify())
    for example in examples:
        last = EQUATION.search(example.steps[-1])
        assert last is not None, example
        assert example.answer == f"The answer is {last[5]}."
        assert Fraction(last[5]) == Fraction(str(example.reference))
    return examples


def read(text: str) -> set[Fraction]:
    """The numbers of a question, in digits and in words."""
    found = {Fraction(word.replace(",", "")) for word in NUMBER.findall(text) if not word.endswith("/0")}
    parts = {Fraction(part) for word in NUMBER.findall(text) if "/" in word for part in word.split("/")}
    return found | parts | {Fraction(WORDS[word]) for word in re.findall(r"[a-z]+", text.lower()) if word in WORDS}


# ---------------------------------------------------------------- right


@settings(max_examples=25)
@given(st.integers(0, 10**9), st.sampled_from(sorted(LEVELS)))
def test_every_line_is_right_and_the_last_one_gives_the_answer(seed: int, difficulty: int) -> None:
    verified(word_problems(8, seed=seed, difficulty=difficulty))


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_each_scene_makes_what_it_says(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    monkeypatch.setattr(module, "SCENES", (scene,))
    for steps in scene.steps:
        level = replace(LEVELS[5], steps=(steps, steps), largest=300)
        for example in verified(word_problems(12, seed=steps, difficulty=level)):
            assert len(example.steps) == steps == example.metadata["steps"]
            assert example.metadata["kind"] == scene.name


def test_the_text_says_all_that_the_solution_uses() -> None:
    """A number in an equation is in the question, or was worked out before, or is one of a few that all know."""
    for example in word_problems(1500, seed=5):
        known = read(example.question) | {Fraction(100)}
        known |= {
            Fraction(number) for names, number in UNSAID.items() if re.search(names, example.metadata["structure"])
        }
        for step in example.steps:
            # How often something fits has to be found, and is said behind the equation: "in 7 full bags".
            known |= {Fraction(number) for number in re.findall(r"in (\d+) full", step)}
            a, _, b, _, result = EQUATION.findall(step)[0]
            assert {Fraction(a), Fraction(b)} <= known, (step, example)
            known.add(Fraction(result))


def test_what_is_counted_is_whole_and_nothing_falls_below_one() -> None:
    for example in word_problems(1500, seed=6):
        assert not re.search(r"(?<![\w)])-\d", example.question + example.thinking)
        for step in example.steps:
            *_, result = EQUATION.findall(step)[0]
            assert Fraction(result) > 0
            assert "." not in result or "dollar" in step, example


def test_money_has_cents_and_measures_may_have_tenths() -> None:
    cents = [e for e in word_problems(400, seed=1, difficulty=replace(LEVELS[3], cents=1.0)) if "." in str(e.reference)]
    assert cents
    assert all(re.fullmatch(r"The answer is \d+\.\d\d\.", example.answer) for example in cents)
    measured = verified(word_problems(300, seed=2, difficulty=replace(LEVELS[2], decimals=1.0, cents=0.0)))
    tenths = [e for e in measured if re.search(r"\d\.\d(?!\d)", e.question)]
    assert {example.metadata["kind"] for example in tenths} <= {"trip_legs", "amounts"}
    assert len(tenths) >= 5


# ---------------------------------------------------------------- the dial


def test_difficulty_raises_steps_numbers_and_distractors() -> None:
    steps, largest, distractors = [], [], []
    for difficulty, level in LEVELS.items():
        made = list(word_problems(300, seed=3, difficulty=difficulty))
        assert {e.metadata["difficulty"] for e in made} == {difficulty}
        counts = [len(e.steps) for e in made]
        assert level.steps[0] <= min(counts) <= max(counts) <= level.steps[1]
        steps.append(sum(counts))
        largest.append(sum(float(max(read(e.question))) for e in made))
        distractors.append(sum(e.metadata["distractors"] for e in made))
    for rising in (steps, largest, distractors):
        assert all(a < b for a, b in pairwise(rising)), rising


def test_difficulties_take_turns() -> None:
    own = Level(9, (1, 2), largest=5000, factor=12, distractors=1.0)
    made = list(word_problems(6, difficulty=(2, own, 4)))
    assert [e.metadata["difficulty"] for e in made] == [2, 9, 4, 2, 9, 4]
    assert all(e.metadata["distractors"] == 2 for e in made[1::3])


@pytest.mark.parametrize("difficulty", [0, 6, (), (1, 7)])
def test_a_difficulty_that_does_not_exist(difficulty: int | tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"there is no difficulty .*\. It goes from 1 to 5"):
        word_problems(1, difficulty=difficulty)


def test_a_count_below_nothing() -> None:
    assert list(word_problems(0)) == []
    with pytest.raises(InputError, match="count=-1 is below 0"):
        word_problems(-1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": (0, 1)},
        {"steps": (3, 2)},
        {"steps": (1, 7)},
        {"largest": 10},
        {"factor": 1},
        {"cents": 1.5},
        {"decimals": -1},
    ],
)
def test_a_level_that_contradicts_itself(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Level(**{"number": 1, "steps": (1, 2), "largest": 50, "factor": 9, **wrong})


# ---------------------------------------------------------------- many, none twice, from a seed


def test_there_are_hundreds_of_structures_and_no_text_twice() -> None:
    made = list(word_problems(4000, seed=4))
    assert len({example.question for example in made}) == len(made)
    assert len({example.metadata["id"] for example in made}) == len(made)
    assert len({example.metadata["structure"] for example in made}) > 1000
    assert len({example.metadata["kind"] for example in made}) >= 50
    easy = {example.metadata["structure"] for example in made if example.metadata["difficulty"] == 1}
    assert len(easy) >= 60


def test_fewer_problems_are_the_first_of_more() -> None:
    few, more = list(word_problems(20, seed=8)), list(word_problems(60, seed=8))
    assert few == more[:20]
    assert not {e.question for e in more} & {e.question for e in word_problems(60, seed=9)}


def test_one_seed_tells_other_stories_at_every_difficulty() -> None:
    first, second = (list(word_problems(60, seed=1, difficulty=difficulty)) for difficulty in (1, 2))
    pairs = [(read_names(a), read_names(b)) for a, b in zip(first, second, strict=True)]
    assert sum(bool(a & b) for a, b in pairs) < 10


def read_names(example: Example) -> set[str]:
    return {person.name for person in PEOPLE} & set(re.findall(r"[A-Z][a-z]+", example.question))


def digest() -> str:
    return hashlib.sha256("".join(e.question + e.thinking for e in word_problems(100, seed=2)).encode()).hexdigest()


def test_a_seed_is_the_same_in_every_process() -> None:
    program = (
        "import hashlib; from ponder.data.word_problems import word_problems\n"
        "text = ''.join(e.question + e.thinking for e in word_problems(100, seed=2))\n"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest()


def test_draws_are_those_of_a_promised_generator() -> None:
    """Nothing but `random()` of an integer seed, which Python promises to keep: these numbers hold on any version."""
    draw = Draw("a seed", LEVELS[1])
    assert [draw.integer(0, 99) for _ in range(6)] == [67, 3, 58, 81, 1, 59]


def test_it_is_said_when_there_are_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(story: Story, steps: int) -> None:
        story.tell(f"there are {story.draw.integer(4, 6)} apples")
        story.ask("how many are 1 and 1")
        story.plus(1, 1, Thing("apple", "apples"))

    level = Level(1, (1, 1), largest=50, factor=9)
    monkeypatch.setattr(module, "SCENES", (Scene("few", make, (1,)),))
    monkeypatch.setattr("ponder.data.draw.Draw.chance", lambda draw, probability: False)
    made = []
    with pytest.raises(InputError, match="there are only 3 different problems of this difficulty"):
        made.extend(iter(word_problems(10, difficulty=level)))
    monkeypatch.setattr(module, "SCENES", (Scene("none", lambda story, steps: story.minus(1, 2, DOLLAR), (1,)),))
    with pytest.raises(InputError, match="there are only 0 different problems"):
        list(word_problems(1, difficulty=level))


# ---------------------------------------------------------------- how they are told

ANNA, ZOE, TOM = Person("Anna", True), Person("Zoe", True), Person("Tom", False)


def clause(fact: Fact, before: Fact | None) -> set[str]:
    return {_clause(Draw(str(seed), LEVELS[1]), fact, before) for seed in range(40)}


def test_a_pronoun_means_the_person_of_the_sentence_before() -> None:
    gave = Fact("@who gave @his sister 5 of @his apples", TOM)
    named, unclear = "Tom gave his sister 5 of his apples", Fact("@who met Tom", ZOE, (TOM,))
    assert clause(gave, None) == {named}
    assert clause(gave, unclear) == {named}
    assert clause(gave, Fact("it rained")) == {named}
    assert clause(gave, Fact("@who had 9 apples", TOM)) == {named, "he gave his sister 5 of his apples"}
    assert clause(Fact("@who left", ANNA), Fact("@who met Zoe", ANNA, (ZOE,))) == {"Anna left"}
    assert clause(Fact("@who left", ANNA), Fact("@who met Tom", ANNA, (TOM,))) == {"Anna left", "she left"}
    assert clause(Fact("@his cat gave @him 5 mice", Person("Louis", False)), None) == {"Louis' cat gave him 5 mice"}


def test_questions_come_last_first_and_as_conditions() -> None:
    texts = [example.question for example in word_problems(400, seed=11, difficulty=(1, 2))]
    last = [text for text in texts if re.search(r"[.?] How (?:many|much|old)[^.?]*\?$", text)]
    first = [text for text in texts if re.match(r"How [^.?]*\? [A-Z0-9]", text)]
    inside = [text for text in texts if re.search(r"(?:^|\. )If [^.]*, (?:how|after|into)", text)]
    behind = [text for text in texts if re.match(r"How [^.?]* if [^.?]*\?$", text)]
    for some in (last, first, inside, behind):
        assert len(some) >= 3
    assert len(last) > len(texts) / 2
    for text in texts:
        assert text.count("?") == 1
        assert "@" not in text
        assert not re.search(r"\s[.,?]|\s\s|\b(\w+) \1\b|[.?] [a-z]", text), text
        assert text[0].isupper() or text[0].isdigit()
        assert re.search(r"[.?]$", text)


@pytest.mark.parametrize(
    ("kind", "confusing"),
    [("ages", "years"), ("wallet", "jacket last month"), ("shopping", "jacket last month"), ("chores", "to walk home")],
)
def test_distractors_touch_no_topic_of_the_story(monkeypatch: pytest.MonkeyPatch, kind: str, confusing: str) -> None:
    monkeypatch.setattr(module, "SCENES", tuple(scene for scene in SCENES if scene.name == kind))
    told_of = Counter[str]()
    for example in verified(word_problems(60, seed=12, difficulty=replace(LEVELS[2], distractors=1.0))):
        assert example.metadata["distractors"] == 2
        told_of[confusing] += confusing in example.question
        assert "cat is" not in example.question or kind != "ages"
        told_of["windows"] += "windows" in example.question
    assert told_of[confusing] == (60 if kind == "ages" else 0)  # which tells ages itself
    assert told_of["windows"]


def test_asides_never_come_last() -> None:
    for seed in range(60):
        story = Story(Draw(str(seed), replace(LEVELS[1], distractors=1.0)))
        story.tell("@who had 5 apples", ANNA)
        story.tell("@who lost 2 apples", ANNA)
        story.ask("how many apples does @who have", ANNA)
        text, asides = told(story)
        assert asides == 2
        assert re.search(r"lost 2 apples(?:\. How|, how|\.$)", text), text
        assert len(re.findall(r"\d+|" + "|".join(SMALL), text)) == 4


def test_topics_of_asides_are_spelled_as_scenes_spell_them() -> None:
    topics = {aside.topic for aside in (*OF_PEOPLE, *OF_NOBODY)} - {""}
    assert topics == {"age", "people", "time", "pages", "length", "money"}


# ---------------------------------------------------------------- stories


def story(difficulty: int = 1) -> Story:
    return Story(Draw("a seed", LEVELS[difficulty]))


def test_steps_are_worked_out_as_they_are_written() -> None:
    made = story(3)
    apple, mile = thing("apple"), thing("mile")
    assert made.plus(5, 7, apple, "in all") == 12
    assert made.minus(3, 2, apple, "left") == 1
    assert made.times(4, 3, apple, "more") == 12
    assert made.over(10, 4, mile) == Fraction(5, 2)
    assert made.percent(40, 25, apple, "gone") == 10
    assert made.sum([1, 2, 3], apple, "in all") == 6
    made.dollars(Fraction(9, 2))
    assert made.times(3, Fraction(9, 2), DOLLAR) == Fraction(27, 2)
    assert made.over(9, Fraction(9, 2), apple) == 2
    assert made.steps == [
        "5 + 7 = 12 apples in all.",
        "3 - 2 = 1 apple left.",
        "4 * 3 = 12 more apples.",
        "10 / 4 = 2.5 miles.",
        "40 * 25 / 100 = 10 apples gone.",
        "1 + 2 = 3 apples.",
        "3 + 3 = 6 apples in all.",
        "3 * 4.50 = 13.50 dollars.",
        "9 / 4.50 = 2 apples.",
    ]
    assert (made.answer, made.unit) == (2, apple)


@pytest.mark.parametrize(
    "work",
    [
        lambda made: made.minus(2, 2, DOLLAR),
        lambda made: made.minus(2, 3, DOLLAR),
        lambda made: made.over(7, 2, thing("apple")),
        lambda made: made.over(10, 3, DOLLAR),
        lambda made: made.over(10, 8, thing("mile")),
        lambda made: made.times(13, 17, thing("apple")),
        lambda made: made.plus(200, 51, thing("apple")),
        lambda made: made.percent(30, 25, thing("apple")),
        lambda made: plain(Fraction(1, 3)),
        lambda made: made.draw.integer(3, 2),
        lambda made: made.draw.pick(()),
        lambda made: made.draw.some((1, 2), 3),
        lambda made: made.draw.divisor(13),
    ],
)
def test_what_makes_no_sense_is_drawn_again(work: object) -> None:
    with pytest.raises(Unfit):
        work(story())  # type: ignore[operator]


def test_draws_stay_within_their_bounds() -> None:
    level = replace(LEVELS[3], cents=0.5, decimals=0.5)
    draw = Draw("bounds", level)
    for _ in range(500):
        assert 3 <= draw.count() <= level.largest
        assert 2 <= draw.few() <= min(12, level.factor)
        assert 2 <= draw.size() <= level.factor
        assert 1 <= draw.below(Fraction(5, 2)) <= 2
        assert 1 <= draw.below(9) <= 8
        assert 2 <= draw.price(2, 5) < 6
        assert (draw.price(2, 5) * 100) % 5 == 0
        assert 2 <= draw.measure(2, 5) <= 5
        assert 24 % draw.divisor(24) == 0
        assert sorted(draw.some("abc", 3)) == ["a", "b", "c"]


def test_words_of_the_tables() -> None:
    assert len({person.name for person in PEOPLE}) == len(PEOPLE) >= 150
    assert thing("apple").many == "apples"
    assert thing("box+es").many == "boxes"
    assert (thing("knife/knives").of(1), thing("knife/knives").of(2)) == ("knife", "knives")
    for kit in KITS:
        assert len(kit.gains) >= 4
        assert len(kit.losses) >= 4
        assert len(kit.boxes) >= 2
        assert len(kit.sorts) >= 3
        assert all(verb.third.split()[0].endswith("s") for verb in kit.uses)
    assert all(len(place.sorts) == 3 and len(place.comes) == len(place.goes) == 3 for place in PLACES)

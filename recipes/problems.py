"""Questions with known answers at the level of the embedded model, as JSONL: word problems of several kinds, and facts.

    python recipes/problems.py [--questions 100] [--facts 0] [--seed 0] > problems.jsonl

Numbers, names and things are drawn with a seed, the kinds take turns, and nothing has to be fetched. `--facts` adds so
many questions of common knowledge: the counterpart for which no steps have to be taken.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from typing import Any

NAMES = ("Tom", "Anna", "Sam", "Lily", "Omar", "Mia", "Ben", "Zoe")
THINGS = ("apples", "stamps", "marbles", "books", "coins", "pens", "shells", "cards")

OPPOSITES = (
    "hot cold, up down, big small, day night, black white, left right, old new, happy sad, open closed, fast slow, "
    "rich poor, high low, wet dry, full empty, inside outside, good bad, hard soft, heavy light, long short, "
    "loud quiet, strong weak, early late, clean dirty, thick thin, true false, young old, easy difficult, win lose, "
    "start end, push pull, love hate, near far, above below, summer winter, north south, east west, wide narrow, "
    "deep shallow, sweet bitter, tall short, asleep awake, cheap expensive, peace war, friend enemy, question answer"
)
CAPITALS = (
    "Germany Berlin, France Paris, Italy Rome, Spain Madrid, Japan Tokyo, Russia Moscow, Egypt Cairo, Greece Athens, "
    "Portugal Lisbon, Austria Vienna, Ireland Dublin, Norway Oslo, Poland Warsaw, China Beijing, Canada Ottawa"
)
LANGUAGES = (
    "Brazil Portuguese, Mexico Spanish, Germany German, France French, Italy Italian, Japan Japanese, Russia Russian, "
    "China Chinese, Greece Greek, Poland Polish, England English, Argentina Spanish"
)
OTHERS = (
    ("What is the chemical formula of water?", "H2O"),
    ("What is the colour of grass?", "green"),
    ("What is the colour of snow?", "white"),
    ("What is the colour of blood?", "red"),
    ("Which animal says meow?", "cat"),
    ("Which animal barks?", "dog"),
    ("Which animal gives us milk?", "cow"),
    ("Which season comes after winter?", "spring"),
    ("Which day comes after Monday?", "Tuesday"),
    ("Which month comes after January?", "February"),
)


def facts() -> list[tuple[str, str]]:
    """All questions of common knowledge, with the word that has to be in the answer."""
    kinds = (
        ("What is the opposite of {}?", OPPOSITES),
        ("What is the capital of {}?", CAPITALS),
        ("What language is spoken in {}?", LANGUAGES),
    )
    pairs = [(form, *pair.split()) for form, known in kinds for pair in known.split(", ")]
    return [*((form.format(asked), word) for form, asked, word in pairs), *OTHERS]


def problem(kind: str, draw: random.Random) -> tuple[str, int]:
    """A word problem of a kind, and its answer."""
    a, b, c = draw.randint(11, 60), draw.randint(2, 9), draw.randint(2, 9)
    who, what = draw.choice(NAMES), draw.choice(THINGS)
    match kind:
        case "take away":
            return f"{who} had {a} {what} and gave away {b}. How many {what} does {who} have left?", a - b
        case "times":
            return f"{who} bought {b} boxes with {c} {what} each. How many {what} does {who} have?", b * c
        case "each day":
            return f"{who} reads {b} pages each day. How many pages does {who} read in {c} days?", b * c
        case "add":
            return f"{who} had {a} {what} and got {b} more. How many {what} does {who} have now?", a + b
        case "add and take away":
            text = (
                f"{who} had {a} {what}. {who} got {b} more and then gave away {c}. How many {what} does {who} have now?"
            )
            return text, a + b - c
        case "times as many":
            text = f"{who} has {b} {what}. Sue has {c} times as many. How many {what} do they have together?"
            return text, b + b * c
        case "bags":
            less = min(b, c)
            text = (
                f"There are {b} bags with {c} {what} in each bag. {who} takes {less} of them. How many {what} are left?"
            )
            return text, b * c - less
    raise ValueError(f"there is no kind {kind!r}")


KINDS = ("take away", "times", "each day", "add", "add and take away", "times as many", "bags")


def rows(questions: int, seed: int = 0, known: int = 0) -> Iterator[dict[str, Any]]:
    """The rows of a task file, after a header: `questions` problems of which none comes twice, and `known` facts."""
    yield {"task": "problems and facts" if known else "word problems"}
    draw = random.Random(seed)
    chosen = draw.sample(facts(), known)
    asked: set[str] = set()
    for number in range(questions):
        kind = KINDS[number % len(KINDS)]
        text, answer = problem(kind, draw)
        while text in asked:
            text, answer = problem(kind, draw)
        asked.add(text)
        verifier = {"verifier": "math_answer"} if known else {}
        yield {"id": f"{kind}-{number}", "question": text, "answer": answer, "kind": kind, **verifier}
    for number, (text, word) in enumerate(chosen):
        yield {"id": f"fact-{number}", "question": text, "answer": word, "kind": "fact", "verifier": FACT.format(word)}


FACT = r"pattern('(?i)\\b{}\\b')"
"""A fact is known by its word, however the sentence goes."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--questions", type=int, default=100)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--facts", type=int, default=0)
    chosen = options.parse_args()
    if not 0 <= chosen.facts <= len(facts()):
        options.error(f"there are {len(facts())} facts")
    for row in rows(chosen.questions, chosen.seed, chosen.facts):
        print(json.dumps(row))


if __name__ == "__main__":
    main()

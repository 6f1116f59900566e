"""Questions with known answers at the level of the embedded model, as JSONL: word problems of several kinds, and facts.

    python recipes/problems.py [--questions 100] [--seed 0] [--facts] > problems.jsonl

Numbers, names and things are drawn with a seed, the kinds take turns, and nothing has to be fetched. `--facts` mixes in
questions of common knowledge, one for each problem: the counterpart for which no steps have to be taken.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from typing import Any

NAMES = ("Tom", "Anna", "Sam", "Lily", "Omar", "Mia", "Ben", "Zoe")
THINGS = ("apples", "stamps", "marbles", "books", "coins", "pens", "shells", "cards")

FACTS = (
    ("What is the opposite of hot?", "cold"),
    ("What is the opposite of up?", "down"),
    ("What is the opposite of big?", "small"),
    ("What is the opposite of day?", "night"),
    ("What is the opposite of black?", "white"),
    ("What is the opposite of left?", "right"),
    ("What is the opposite of old?", "new"),
    ("What is the opposite of happy?", "sad"),
    ("What is the opposite of open?", "closed"),
    ("What is the opposite of fast?", "slow"),
    ("What is the opposite of rich?", "poor"),
    ("What is the opposite of high?", "low"),
    ("What is the opposite of wet?", "dry"),
    ("What is the opposite of full?", "empty"),
    ("What is the opposite of inside?", "outside"),
    ("What is the capital of Germany?", "Berlin"),
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Italy?", "Rome"),
    ("What is the capital of Spain?", "Madrid"),
    ("What is the capital of Japan?", "Tokyo"),
    ("What is the capital of Russia?", "Moscow"),
    ("What is the capital of Egypt?", "Cairo"),
    ("What is the capital of Greece?", "Athens"),
    ("What language is spoken in Brazil?", "Portuguese"),
    ("What language is spoken in Mexico?", "Spanish"),
    ("What language is spoken in Germany?", "German"),
    ("What language is spoken in France?", "French"),
    ("What language is spoken in Italy?", "Italian"),
    ("What language is spoken in Japan?", "Japanese"),
    ("What is the chemical formula of water?", "H2O"),
    ("What is the colour of grass?", "green"),
    ("What is the colour of snow?", "white"),
    ("What is the colour of blood?", "red"),
    ("What is the colour of the sky on a clear day?", "blue"),
    ("Which animal says meow?", "cat"),
    ("Which animal barks?", "dog"),
    ("Which animal gives us milk?", "cow"),
    ("Which season comes after winter?", "spring"),
    ("Which day comes after Monday?", "Tuesday"),
    ("Which month comes after January?", "February"),
)


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


def rows(questions: int, seed: int = 0, facts: bool = False) -> Iterator[dict[str, Any]]:
    """`questions` rows of a task file, after a header; no question comes twice."""
    yield {"task": "problems and facts" if facts else "word problems"}
    draw = random.Random(seed)
    known = draw.sample(FACTS, len(FACTS))
    asked: set[str] = set()
    for number in range(questions):
        if facts and number % 2 and known:
            text, word = known.pop()
            yield {
                "id": f"fact-{number}",
                "question": text,
                "answer": word,
                "kind": "fact",
                "verifier": FACT.format(word),
            }
            continue
        kind = KINDS[(number // 2 if facts else number) % len(KINDS)]
        text, answer = problem(kind, draw)
        while text in asked:
            text, answer = problem(kind, draw)
        asked.add(text)
        verifier = {"verifier": "math_answer"} if facts else {}
        yield {"id": f"{kind}-{number}", "question": text, "answer": answer, "kind": kind, **verifier}


FACT = r"pattern('(?i)\\b{}\\b')"
"""A fact is known by its word, however the sentence goes."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--questions", type=int, default=100)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--facts", action="store_true")
    chosen = options.parse_args()
    for row in rows(chosen.questions, chosen.seed, chosen.facts):
        print(json.dumps(row))


if __name__ == "__main__":
    main()

"""What the text of a question tells for nothing: how long it is, its numbers, its operators, what it asks for.

Counts c become log(1 + c), so that long questions are no outliers. Words and pairs of words are hashed into
a few signed buckets (Weinberger et al., Feature Hashing for Large Scale Multitask Learning, 2009, section 2),

    bucket_j = sum over grams g with h(g) mod B = j of  s(g) / sqrt(grams),    s(g) in {-1, 1}

with digits read as 0, so that a bucket knows wordings and no numbers. Pure Python, a millisecond a question.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from itertools import pairwise

from ponder.types import Question, Sample

LONGEST = 20_000
"""Characters that are looked at: what comes later hardly changes the picture."""

BUCKETS = 16

CONFIDENCE = "confidence"
"""The one feature that costs: the mean log-probability of an answer that was drawn already."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+")
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)|\d+")
_PARTED = re.compile(r"\d[./]\d|\d\s?%|\\d?frac|\bpercent\b")
_OPERATOR = re.compile(r"[+*×÷^=<>≤≥]|\d\s?[-−–/]\s?\d|\\(?:frac|sqrt|times|cdot|div|leq|geq)")
_SENTENCE = re.compile(r"[.!?](?=\s|$)|\n")
_OPTION = re.compile(r"^\s*\(?[A-J][.):]\s", re.MULTILINE)
_CODE = re.compile(r"```|^\s*(?:def|class|import|return|for|while|if)\b.*[:(]|[;{}]\s*$", re.MULTILINE)

_WORDS = {
    "number_words": (
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen twenty thirty forty "
        "fifty sixty hundred thousand million half third quarter twice double triple dozen pair once both"
    ),
    "comparisons": "than more less fewer most least older younger taller longer greater bigger smaller faster as",
    "rates": "each every per apiece times rate average ratio hour day week month speed cost costs",
    "changes": "gave gives lost loses bought buys sold sells spent spends left remaining added removed used got gets",
    "conditions": "if then after before when until unless while since because suppose given",
    "totals": "total altogether together all sum difference product combined",
    "negations": "not no never neither nor none without except",
    "proofs": "prove show explain why how describe derive find compute evaluate simplify solve",
}  # fmt: skip
_LISTS = {name: frozenset(words.split()) for name, words in _WORDS.items()}
_ASKS = ("how many", "how much", "how", "what", "which", "who", "when", "where", "why")

NAMES: tuple[str, ...] = (
    "words",
    "numbers",
    "largest_number",
    "parted_numbers",
    "operators",
    "sentences",
    "questions",
    *_LISTS,
    "options",
    "code",
    "foreign",
    "turns",
    *(f"asks_{ask.replace(' ', '_')}" for ask in _ASKS),
    *(f"bucket_{j}" for j in range(BUCKETS)),
)
"""The features of a text, in their order."""


def features(question: Question) -> dict[str, float]:
    """The features of the question's last user message, by `NAMES`; all are finite, whatever the text."""
    text = question.text[:LONGEST]
    lower = text.lower()
    words = _WORD.findall(lower)
    numbers = [int(each.replace(",", "")[:18]) for each in _NUMBER.findall(text)]
    asked = _asked(lower)
    values = [
        _count(words),
        _count(numbers),
        math.log10(1 + max(numbers, default=0)),
        _count(_PARTED.findall(lower)),
        _count(_OPERATOR.findall(text)),
        _count(_SENTENCE.findall(text)),
        math.log1p(text.count("?")),
        *(_count([word for word in words if word in known]) for known in _LISTS.values()),
        _count(_OPTION.findall(text)),
        float(_CODE.search(text) is not None),
        sum(not each.isascii() for each in text) / max(1, len(text)),
        _count(question.messages),
        *(float(ask == asked) for ask in _ASKS),
        *_buckets(words),
    ]
    return dict(zip(NAMES, values, strict=True))


def mean_logprob(sample: Sample) -> float | None:
    """The mean log-probability of the sample's own tokens, None where the engine told none."""
    own = [p for p, mine in zip(sample.logprobs, sample.mask, strict=True) if mine and p is not None]
    return sum(own) / len(own) if own else None


def _count(found: Sequence[object]) -> float:
    return math.log1p(len(found))


def _asked(lower: str) -> str | None:
    """The word of the last question that it asks with, else of the last sentence."""
    end = lower.rfind("?")
    last = [part for part in _SENTENCE.split(lower[: end if end >= 0 else None]) if part.strip()][-1:]
    found = [(last[0].find(ask), -len(ask), ask) for ask in _ASKS if ask in last[0]] if last else []
    return min(found)[2] if found else None


def _buckets(words: Sequence[str]) -> list[float]:
    plain = ["0" if word[0].isdigit() else word for word in words]
    grams = [*plain, *(f"{a} {b}" for a, b in pairwise(plain))]
    sums = [0.0] * BUCKETS
    for gram in grams:
        code = zlib.crc32(gram.encode("utf-8", "replace"))  # the same in every process, as hash() is not
        sums[code % BUCKETS] += 1.0 if code >> 16 & 1 else -1.0
    return [value / math.sqrt(max(1, len(grams))) for value in sums]

"""Multiple choice: which option a sample chose."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ponder.errors import InputError
from ponder.protocols import Verifier
from ponder.types import Question, Sample, Score

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# "A" and "I" are words, too: "the answer is A dog" names no option.
_LETTER = r"(?:\(([A-Za-z])\)|([A-Z])\b(?!['’])(?!\s(?!because|since|as\b|is\b)[a-z]))"
_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\text\w*\s*\{)?\s*\(?([A-Za-z])\)?\s*\}")
_MARKED = re.compile(
    rf"\b(?:answer|choice|option)(?:\s+is\b|\s*:|\s*=)?[*_\s:$]*(?:(?:option|choice)\s+)?{_LETTER}", re.I
)
_START = re.compile(r"[*_\s]*([A-Za-z])[.):](?=[\s*_]|$)")
_ALONE = re.compile(r"[*_\s]*\(?([A-Za-z])\)?[.:]?[*_\s]*")


def _options(question: Question) -> dict[str, str]:
    choices: Any = question.metadata.get("choices", ())
    pairs = choices.items() if isinstance(choices, Mapping) else zip(LETTERS, choices, strict=False)
    return {str(letter).upper(): str(text) for letter, text in pairs}


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+|[^\w\s.,;:!?*_\"'()]", text.casefold()))


def chosen(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that `text` chooses among `options`, which may be empty where they are unknown."""
    known = options or dict.fromkeys(LETTERS[:10])
    alone = _ALONE.fullmatch(text)
    found = [match[1] for match in _BOXED.finditer(text)]
    found = found or ([alone[1]] if alone else [])
    found = found or [match[1] or match[2] for match in _MARKED.finditer(text) if match[1] or match[2].isupper()]
    start = _START.match(text)
    found = found or ([start[1]] if start else [])
    found = found or re.findall(r"(?<!\w)\(([A-Za-z])\)", text)
    letters = [letter.upper() for letter in found if letter.upper() in known]
    if letters:
        return letters[-1]
    said = f" {_plain(text)} "
    named = [letter for letter, option in options.items() if _plain(option) and f" {_plain(option)} " in said]
    # "New York City" names the option "New York" as well: the longest counts where it holds the others.
    longest = max(named, key=lambda letter: len(_plain(options[letter])), default=None)
    return longest if longest and all(_plain(options[n]) in _plain(options[longest]) for n in named) else None


def choice() -> Verifier:
    """1 where the answer chooses the option that the reference names, else 0.

    The options stand in `metadata["choices"]`: texts, or texts by letter. The reference is a letter,
    an index from 0, or an option's own text. Without options, letters up to J count.
    """

    async def verify(question: Question, sample: Sample) -> Score:
        if question.reference is None:
            raise InputError("choice() needs a question with a reference", "Set Question.reference")
        options = _options(question)
        right = question.reference.strip().strip("()").upper()
        by_text = [letter for letter, option in options.items() if _plain(option) == _plain(question.reference)]
        if right.isdecimal() and int(right) < (len(options) or 10):
            right = list(options or LETTERS)[int(right)]
        elif right not in (options or LETTERS) and by_text:
            right = by_text[0]
        if len(right) != 1 or (options and right not in options):
            raise InputError(
                f"the reference {question.reference!r} names none of the choices",
                "Give a letter, an index from 0 or a text",
            )
        letter = chosen(sample.answer, options)
        return Score(float(letter == right), "choice", f"chose {letter}" if letter else "found no choice")

    return verify

"""Answers compared with references as text."""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from ponder.errors import InputError
from ponder.protocols import Verifier
from ponder.types import Question, Sample, Score


def normalise(text: str) -> str:
    """Small letters, without punctuation, articles and superfluous space (Rajpurkar et al. 2016, SQuAD)."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _references(question: Question, name: str) -> list[str]:
    several = question.metadata.get("references", ())
    several = [several] if isinstance(several, str) else list(several)
    found = several if question.reference is None else [question.reference, *several]
    if not found:
        raise InputError(
            f"{name}() needs a question with a reference", 'Set Question.reference or metadata["references"]'
        )
    return [str(reference) for reference in found]


def _match(name: str, form: Callable[[str], str]) -> Verifier:
    async def verify(question: Question, sample: Sample) -> Score:
        answer = form(sample.answer)
        right = any(form(reference) == answer for reference in _references(question, name))
        return Score(float(right), name, "" if right else f"found {answer[:100]!r}")

    return verify


def exact_text() -> Verifier:
    """1 where the answer is one of the references, but for space around it, else 0."""
    return _match("exact_text", str.strip)


def normalised_text() -> Verifier:
    """1 where the answer is one of the references once both are normalised as SQuAD does, else 0."""
    return _match("normalised_text", normalise)

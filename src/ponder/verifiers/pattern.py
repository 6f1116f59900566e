"""Answers that must hold a regular expression."""

from __future__ import annotations

import re

from ponder.errors import InputError
from ponder.protocols import Verifier
from ponder.types import Question, Sample, Score
from ponder.verifiers import child


def pattern(regex: str, flags: int | re.RegexFlag = 0, seconds: float = 2.0) -> Verifier:
    """1 where `regex` is found in the answer, else 0.

    The search runs in a child process and may take `seconds`: some patterns need longer than anyone
    waits for a short text, as (a+)+$ does.
    """
    try:
        re.compile(regex, flags)
    except (re.error, ValueError) as fault:
        raise InputError(f"{regex!r} is no regular expression: {fault}", "Mend the pattern or escape it") from fault
    if not seconds > 0:  # as NaN is not, either
        raise InputError(f"pattern(seconds={seconds}) leaves no time to search", "Give a number above 0")

    async def verify(question: Question, sample: Sample) -> Score:
        try:
            span = await child.ask("search", [regex, int(flags), sample.answer], seconds)
        except TimeoutError:
            return Score(0.0, "pattern", "timed out")
        why = "not found" if span is None else f"found {sample.answer[span[0] : span[1]][:100]!r}"
        return Score(float(span is not None), "pattern", why)

    return verify

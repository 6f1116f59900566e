"""Several verifiers as one."""

from __future__ import annotations

from ponder.errors import InputError
from ponder.protocols import Verifier
from ponder.types import Question, Sample, Score


def all_of(*verifiers: Verifier) -> Verifier:
    """The lowest of the verifiers' scores; `why` names the one it came from. They run one after another."""
    if not verifiers:
        raise InputError("all_of() needs a verifier", "Name at least one")

    async def verify(question: Question, sample: Sample) -> Score:
        scores = [await verifier(question, sample) for verifier in verifiers]
        lowest = min(scores, key=lambda score: score.value)
        return Score(lowest.value, "all_of", f"{lowest.verifier}: {lowest.why}".rstrip(": "))

    return verify

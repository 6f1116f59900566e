"""Answers to questions of reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760), either right or wrong."""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
from pathlib import Path
from typing import Any

from ponder.errors import InputError, MissingExtra, Unsupported
from ponder.protocols import Verifier
from ponder.types import Question, Sample, Score
from ponder.verifiers.child import Child, NotStarted
from ponder.verifiers.gym_forms import CHECKS, FORMS, bare, final, literal_of, same

LONGEST = 8_000
"""Characters of an answer to a question without a reference; with one, four times its length where that is more."""


def reasoning_gym(seconds: float = 10.0) -> Verifier:
    r"""1 where the answer solves the question, else 0; a family's partial credit is never paid.

    The answer is what stands in the last <answer> or \boxed{}, in a fenced block or behind "the answer
    is", else the whole text. It must equal the reference or, in families with several right answers,
    have the family's form and its scorer's full score; the scorer may take `seconds`.

    The questions must come from `ponder.tasks.load("reasoning-gym:...")`. Raises InputError for others,
    Unsupported for a family without references whose answers it cannot check, MissingExtra where a
    scorer has to be asked and reasoning-gym is not installed.
    """
    if not seconds > 0:  # as NaN is not, either
        raise InputError(f"reasoning_gym(seconds={seconds}) leaves no time to score", "Give a number above 0")

    async def verify(question: Question, sample: Sample) -> Score:
        right, why = await _judge(question, final(sample.answer), seconds)
        return Score(float(right), "reasoning_gym", why)

    return verify


async def _judge(question: Question, answer: str, seconds: float) -> tuple[bool, str]:
    family, settings, metadata = _entry(question)
    reference = question.reference
    if reference is None and family not in FORMS and family not in CHECKS:
        raise Unsupported(
            f"reasoning-gym's {family} has no reference and no scorer to trust",
            "Choose another family, or a verifier of your own",
        )
    if not answer:
        return False, "no answer"
    if len(answer) > max(LONGEST, 4 * len(reference or "")):
        return False, "too long"
    form = FORMS.get(family)
    plain = bare(answer)
    if reference is not None and same(answer, reference):
        return True, "the reference"
    if family in CHECKS:
        return CHECKS[family](plain, literal_of(metadata)), "worked out"
    if form is None:
        return False, f"found {answer[:100]!r}"
    if not form.fullmatch(plain):
        return False, "not of the family's form"
    entry = {"question": question.text, "answer": reference, "metadata": metadata}
    return await _asked([seconds, family, settings, plain, entry], seconds)


def _entry(question: Question) -> tuple[str, dict[str, Any], object]:
    match question.metadata.get("reasoning_gym"):
        case {"family": str(family), "settings": dict(settings), "metadata": metadata}:
            return family, settings, metadata
    raise InputError("reasoning_gym() knows its own questions alone", "Load them as reasoning-gym:FAMILY")


async def _asked(request: list[Any], seconds: float) -> tuple[bool, str]:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise MissingExtra("this answer needs the package reasoning-gym", "Run: pip install 'ponder[reasoning-gym]'")
    try:
        reply: dict[str, Any] = await asyncio.to_thread(_child.ask, request, seconds)
    except NotStarted:
        raise Unsupported(
            "the scorers of reasoning-gym do not start", "Check that `python -c 'import reasoning_gym'` does"
        ) from None
    except TimeoutError:
        return False, "timed out"
    if "broken" in reply:
        raise InputError(f"reasoning-gym cannot open the family again: {reply['broken']}", "Load the task again")
    # Exactly: some scorers exceed 1 for what is wrong, and some miss it by a rounding error.
    return reply["score"] == 1.0, reply.get("why", f"its scorer says {reply['score']:g}")


_child = Child(
    Path(__file__).with_name("gym_child.py"),
    env={"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"},  # threads take memory
)
atexit.register(_child.close)

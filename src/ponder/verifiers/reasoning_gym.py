"""Answers to questions of reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760), either right or wrong."""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ponder.errors import InputError, MissingExtra, Unsupported
from ponder.protocols import Verifier
from ponder.types import Question, Sample, Score
from ponder.verifiers.gym_forms import CHECKS, FORMS, bare, final, literal_of, same

LONGEST = 8_000
"""Characters of an answer to a question without a reference; with one, four times its length where that is more."""

START_SECONDS = 60.0
"""How long the child may take to start: it imports sympy."""


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
    reply = await asyncio.to_thread(_child.ask, request, seconds)
    if reply is None:
        return False, "timed out"
    if "broken" in reply:
        raise InputError(f"reasoning-gym cannot open the family again: {reply['broken']}", "Load the task again")
    # Exactly: some scorers exceed 1 for what is wrong, and some miss it by a rounding error.
    return reply["score"] == 1.0, reply.get("why", f"its scorer says {reply['score']:g}")


class _Child:
    """The process of gym_child.py, started on first use and kept; one request at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def ask(self, request: list[Any], seconds: float) -> dict[str, Any] | None:
        """The reply, None where it took longer than `seconds`. Raises Unsupported where the process does not start."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.close()
                self.process = subprocess.Popen(
                    [sys.executable, "-P", str(Path(__file__).with_name("gym_child.py"))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env={**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"},  # threads take memory
                )
                if self._line("", START_SECONDS) is None:
                    raise Unsupported(
                        "the scorers of reasoning-gym do not start",
                        "Check that `python -c 'import reasoning_gym'` does",
                    )
            return self._line(json.dumps(request) + "\n", seconds)

    def _line(self, request: str, seconds: float) -> dict[str, Any] | None:
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        alarm = threading.Timer(seconds, process.kill)
        alarm.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            reply = process.stdout.readline()
        except OSError:  # it died before it read
            reply = ""
        finally:
            alarm.cancel()
        if not reply.endswith("\n"):
            self.close()
            return None
        found: dict[str, Any] = json.loads(reply)
        return found

    def close(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate()


_child = _Child()
atexit.register(_child.close)

"""Questions that some strategies got right and others wrong: which ones to show, and what was said to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ponder.evals.results import Run
from ponder.evals.study import Disagreement, Voice
from ponder.types import Question, Trace

LONGEST = 2000
"""Characters of an answer or of thinking that are shown."""


def disagreeing(runs: Sequence[Run], most: int = 5) -> list[str]:
    """Up to `most` questions on which the runs' verdicts differ, of as many different kinds as there are.

    A kind is who was right; the kinds take turns, the most frequent one first.
    """
    verdicts = [{result.question: result.correct >= 0.5 for result in reversed(run.results)} for run in runs]
    kinds: dict[tuple[bool, ...], list[str]] = {}
    for name in runs[0].questions if runs else ():
        if all(name in each for each in verdicts):
            kinds.setdefault(tuple(each[name] for each in verdicts), []).append(name)
    differing = sorted((names for kind, names in kinds.items() if len(set(kind)) > 1), key=len, reverse=True)
    longest = max(map(len, differing), default=0)
    return [names[turn] for turn in range(longest) for names in differing if turn < len(names)][:most]


def told(name: str, question: Question, voices: Mapping[str, tuple[Trace, float]]) -> Disagreement:
    """A question with the answers in `voices`: traces and verdicts by what is to be called who gave them."""
    said = [
        Voice(label, _cut(trace.answer), correct >= 0.5, _cut(trace.thinking))
        for label, (trace, correct) in voices.items()
    ]
    return Disagreement(name, _cut(question.text), question.reference or "", tuple(said))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"

"""What a recipe's sources hold: examples to imitate, questions to answer, samples that were scored.

FILE                        examples as `ponder.data.examples` writes them, traces as `ponder traces export` does,
                            or questions in any format of `ponder.tasks`
traces                      the database of traces
generated:word_problems     problems with their solutions, made from a seed
gsm8k:FILE                  rows of GSM8K with their solutions
gym:FAMILY?SETTING=VALUE    questions of reasoning-gym; gym: alone takes those that a small model can learn
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ponder.data.examples import Example
from ponder.errors import InputError
from ponder.train.recipe import GENERATED, GSM8K, GYM, TRACES, Source
from ponder.train.verified import Verified, verified
from ponder.types import Message, Question, Trace, user

Turn = tuple[tuple[Message, ...], str, str]
"""A question's messages, the thinking and the answer."""

Said = tuple[str, str]
"""Thinking and answer."""

Item = TypeVar("Item")
RIGHT = 1.0
"""The score from which a trace is imitated."""
PROBLEMS = 1000
"""How many are generated where nothing is said."""


def turns(sources: Sequence[Source]) -> list[Turn]:
    """What is to be imitated. Of traces: samples with a full score. Raises InputError where there is nothing."""
    found = _all(sources, _turns)
    if not found:
        raise InputError("the data holds no example with an answer", "Give a source with at least one")
    return found


def questions(sources: Sequence[Source]) -> list[Question]:
    """Questions with their references. Raises InputError where there are none."""
    found = _all(sources, _questions)
    if not found:
        raise InputError("the data holds no question", "Give a source with at least one")
    return found


def samples(sources: Sequence[Source], verifier: str | None = None) -> list[Verified]:
    """The samples of traces that `verifier`, or any, has scored. Raises InputError where there are none."""
    found = _all(sources, lambda source: verified(_traces(source), verifier))
    if not found:
        by = f" by {verifier}" if verifier else ""
        raise InputError(f"no trace has a sample with a score{by}", "best_of_n(8), say, has its verifier score samples")
    return found


def kept_out(found: Sequence[Item], against: Sequence[str], text: Callable[[Item], Example]) -> tuple[list[Item], int]:
    """What shares nothing with the evaluation sets in the files `against`, and how many did (`data.decontaminate`)."""
    if not against:
        return list(found), 0
    from ponder import tasks
    from ponder.data.decontaminate import decontaminate

    report = decontaminate(map(text, found), {name: tasks.load(name).questions for name in against}).report
    hit = {hit.example for hit in report.hits}
    return [item for number, item in enumerate(found) if number not in hit], len(hit)


def preferences(sources: Sequence[Source]) -> list[tuple[tuple[Message, ...], Said, Said]]:
    """Questions, each with what is preferred and what is not, of files; empty for sources of another sort.

    A line has question, chosen and rejected: texts, or objects with thinking and answer. Raises InputError for lines
    that have them not.
    """
    return _all([source for source in sources if "chosen" in _first(source.source)], _preferences)


def _all(sources: Sequence[Source], read: Callable[[Source], Iterator[Item]]) -> list[Item]:
    return [item for source in sources for item in islice(read(source), source.limit)]


# ---------------------------------------------------------------- one source


def _turns(source: Source) -> Iterator[Turn]:
    if _holds_traces(source):
        for question, sample, score, _ in verified(_traces(source)):
            if score >= RIGHT and sample.finish == "stop" and sample.answer:
                yield question.messages, sample.thinking, sample.answer
        return
    for example in _examples(source):
        if example.answer:
            yield example.prompt, example.thinking, example.answer


def _questions(source: Source) -> Iterator[Question]:
    if not _holds_traces(source):
        yield from (example.asked() for example in _examples(source))
        return
    seen = set()
    for trace in _traces(source):
        key = repr(trace.question.messages)
        if key not in seen:
            seen.add(key)
            yield trace.question


def _examples(source: Source) -> Iterator[Any]:
    from ponder import tasks
    from ponder.data import examples

    kind, _, rest = source.source.partition(":")
    kind += ":"
    if kind == GENERATED:
        return _generated(source, rest)
    if kind == GYM:
        from ponder.data.gym import PLAUSIBLE, gym_examples

        families = (rest,) if rest else PLAUSIBLE
        return gym_examples(source.count or PROBLEMS, seed=source.seed or 0, families=families)
    if kind == GSM8K:
        from ponder.data.gsm8k_traces import gsm8k_examples

        return iter(gsm8k_examples(rest).examples)
    if "thinking" in _first(source.source):
        return examples.read_examples(source.source)
    return map(examples.of_question, tasks.load(source.source).questions)


def _generated(source: Source, what: str) -> Iterator[Any]:
    from ponder.data import word_problems

    if what != word_problems.TASK:
        raise InputError(f"there is nothing to generate called {what!r}", f"Try {GENERATED}{word_problems.TASK}")
    told = {} if source.difficulty is None else {"difficulty": range(source.difficulty[0], source.difficulty[-1] + 1)}
    return word_problems.word_problems(source.count or PROBLEMS, seed=source.seed or 0, **told)


def _preferences(source: Source) -> Iterator[tuple[tuple[Message, ...], Said, Said]]:
    for number, line in enumerate(Path(source.source).read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            yield (user(str(row["question"])),), _said(row["chosen"]), _said(row["rejected"])
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{source.source}, line {number} is no pair", "Give question, chosen and rejected in each line"
            ) from None


def _said(value: Any) -> Said:
    return ("", value) if isinstance(value, str) else (str(value.get("thinking", "")), str(value["answer"]))


# ---------------------------------------------------------------- traces


def _holds_traces(source: Source) -> bool:
    return source.source == TRACES or "samples" in _first(source.source)


def _traces(source: Source) -> Iterator[Trace]:
    from ponder.ops.store import Store
    from ponder.types import from_json

    if source.source == TRACES:
        with Store.open() as store:
            yield from (from_json(Trace, line) for line in store.lines(state="done", search=source.search))
    elif "samples" in _first(source.source):
        for number, line in enumerate(Path(source.source).read_text("utf-8").splitlines(), 1):
            try:
                yield from_json(Trace, line)
            except ValueError as error:
                raise InputError(f"{source.source}, line {number} is no trace: {error}", "Export it anew") from None
    else:
        raise InputError(
            f"{source.source} holds no traces with scores", f'Take the source "{TRACES}", or a file of them'
        )


def _first(name: str) -> dict[str, Any]:
    """The first line of a file, where that is a JSON object; what else a source can be has none."""
    try:
        with Path(name).open("rb") as file:
            found = json.loads(file.readline())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

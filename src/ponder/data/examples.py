"""Examples to train on: a question, the thinking behind its answer, step by step, and the answer.

    examples = list(read_examples("examples.jsonl"))
    write_examples("more.jsonl", word_problems(1000))

One document of JSON a line, with the version of its format; reading and writing hold one example at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ponder.errors import InputError
from ponder.types import Message, Question, Sample, Scored, Trace, assistant, from_dict, system, to_json, user

FIELDS = ("question", "answer", "thinking", "reference", "task", "steps", "labels", "instruction", "metadata")
OPENER = "The answer is"


@dataclass(frozen=True)
class Example:
    """A question and what a model is to say to it.

    `answer` is the whole text of the answer ("The answer is 12."), `reference` what is right ("12"), for verifiers;
    `thinking` is empty where the answer comes at once. `steps` are texts that follow each other in `thinking`: its
    lines, unless given. `labels` says of each step how good it is, 0 to 1, None where that is unknown.
    `instruction` is the system message before the question, if there is one.

    Raises ValueError where the steps are not in the thinking, or the labels not as many or out of bounds.
    """

    question: str
    answer: str = ""
    thinking: str = ""
    reference: str | None = None
    task: str | None = None
    steps: tuple[str, ...] = ()
    labels: tuple[float | None, ...] | None = None
    instruction: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError("an example needs a question")
        if not self.steps:
            object.__setattr__(self, "steps", steps_of(self.thinking))
        end = 0
        for number, step in enumerate(self.steps, 1):
            start = self.thinking.find(step, end)
            if start < 0 or not step:
                raise ValueError(f"step {number} is not in the thinking: {step[:60]!r}")
            end = start + len(step)
        if self.labels is not None and len(self.labels) != len(self.steps):
            raise ValueError(f"{len(self.labels)} labels do not fit {len(self.steps)} steps")
        if any(label is not None and not 0 <= label <= 1 for label in self.labels or ()):
            raise ValueError("labels go from 0 to 1")

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What is asked, as messages."""
        before = (system(self.instruction),) if self.instruction else ()
        return (*before, user(self.question))

    @property
    def messages(self) -> tuple[Message, ...]:
        """The whole conversation, the last message with the thinking and the answer."""
        return (*self.prompt, assistant(self.answer, self.thinking))

    def asked(self) -> Question:
        """The question as strategies and verifiers take it."""
        return Question(self.prompt, self.reference, self.task, metadata=self.metadata)


def answer_text(result: str) -> str:
    """ "The answer is 12." """
    return f"{OPENER} {result}."


def steps_of(thinking: str) -> tuple[str, ...]:
    """The lines of a thinking that say something."""
    return tuple(line.strip() for line in thinking.split("\n") if line.strip())


def of_question(question: Question) -> Example:
    """The example of a question without an answer, for what is still to be thought about. Raises InputError."""
    instruction, text = _asked(question)
    answer = "" if question.reference is None else answer_text(question.reference)
    return Example(
        text,
        answer,
        reference=question.reference,
        task=question.task,
        instruction=instruction,
        metadata=question.metadata,
    )


def of_trace(trace: Trace, index: int | None = None) -> Example:
    """The example of a sample of a stored trace: of the one behind the trace's answer, or of the one with that index.

    Where it came from is in its metadata, as are the scores that verifiers gave the sample; where one of them scored
    as many steps as the thinking has lines, those are the labels. Raises InputError where the trace has no such
    sample, or asks in several turns, with tools or with attachments, which an example does not hold.
    """
    sample = _sample(trace, index)
    instruction, text = _asked(trace.question)
    scores = [event.score for event in trace.events if isinstance(event, Scored) and event.sample == sample.index]
    steps = steps_of(sample.thinking)
    came = trace.provenance
    metadata = {
        **trace.question.metadata,
        "trace": trace.id,
        "sample": sample.index,
        "finish": sample.finish,
        "model": came.model,
        "strategy": came.strategy,
        "synthetic": came.synthetic,
        "scores": {score.verifier: score.value for score in scores},
    }
    return Example(
        text,
        sample.answer,
        sample.thinking,
        trace.question.reference,
        trace.question.task,
        labels=next((score.steps for score in scores if steps and len(score.steps) == len(steps)), None),
        instruction=instruction,
        metadata=metadata,
    )


def _sample(trace: Trace, index: int | None) -> Sample:
    if index is None:
        found = next((sample for sample in trace.samples if sample.answer == trace.answer), None)
    else:
        found = next((sample for sample in trace.samples if sample.index == index), None)
    if found is None:
        what = "sample behind its answer" if index is None else f"sample {index}"
        known = ", ".join(str(sample.index) for sample in trace.samples) or "none"
        raise InputError(f"the trace {trace.id} has no {what}", f"It has the samples {known}")
    return found


def _asked(question: Question) -> tuple[str, str]:
    """The instruction and the text of a question in one turn."""
    *before, last = question.messages or (system(""),)
    plain = all(part.type == "text" for message in question.messages for part in message.parts)
    if (
        last.role != "user"
        or [message.role for message in before] not in ([], ["system"])
        or question.tools
        or not plain
    ):
        raise InputError(
            "an example holds one question in text, with a system message at most", "Leave out what has more than that"
        )
    return before[0].text if before else "", last.text


# ---------------------------------------------------------------- files


def write_examples(path: str | os.PathLike[str], examples: Iterable[Example]) -> int:
    """Writes the examples, a line each, and gives their number. A file that was there is replaced when all are written.

    Raises InputError where the file cannot be written, or an example holds what JSON cannot.
    """
    path, written = Path(path), 0
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            for example in examples:
                written += 1
                file.write(_line(example, written) + "\n")
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}", "Choose another place") from None
    finally:
        with suppress(OSError):
            part.unlink()
    return written


def _line(example: Example, number: int) -> str:
    try:
        line = to_json(example)
        line.encode()
    except ValueError as error:
        raise InputError(f"example {number} cannot be written as JSON: {error}", "Mend its metadata or text") from None
    return line


def read_examples(path: str | os.PathLike[str]) -> Iterator[Example]:
    """The examples of a file, one by one. Raises InputError, with the line, for whatever is none."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _read(line, f"{path}, line {number}")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "Check the path of the file") from None


def _read(line: bytes, place: str) -> Example:
    try:
        document = json.loads(line.decode("utf-8"))
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise InputError(f"{place} is not UTF-8", "Save the file as UTF-8") from None
    except UnicodeEncodeError:
        raise InputError(f"{place} has half a surrogate pair", r"Mend its \u escape") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON ({error})", "Write one JSON object a line") from None
    if not isinstance(document, dict):
        raise InputError(f"{place}: an example must be a JSON object, not {document!r:.60}", "Write it as {...}")
    unknown = [name for name in document if name not in ("version", *FIELDS)]
    if unknown:
        raise InputError(f"{place} has the unknown field {unknown[0]!r}", f"An example has {', '.join(FIELDS)}")
    try:
        return from_dict(Example, document)
    except ValueError as error:
        problem, mend = _why(error)
        raise InputError(f"{place}: {problem}", mend) from None


def _why(error: ValueError) -> tuple[str, str]:
    """The first thing that is wrong with a document, and what mends it."""
    details = getattr(error, "errors", None)
    if details is None:
        return str(error), "Write the file anew with this ponder"
    first = details()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"the field {place} is missing", "Add it"
    said = first["msg"].removeprefix("Value error, ")
    return (f"the field {place} is wrong ({said})", "Mend it") if place else (said, "Mend the example")

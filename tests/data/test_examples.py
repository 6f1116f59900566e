"""Examples: what they hold, where they come from, and their files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.data.examples import Example, answer_text, of_question, of_trace, read_examples, write_examples
from ponder.errors import InputError
from ponder.types import (
    BestAnswer,
    Image,
    Message,
    Provenance,
    Question,
    Sample,
    Score,
    Scored,
    Text,
    Trace,
    assistant,
    system,
    user,
)

THOUGHT = "5 + 7 = 12 apples.\n12 - 2 = 10 apples left."
EXAMPLE = Example("How many?", "The answer is 10.", THOUGHT, "10", "made", metadata={"id": "1", "kind": "sum"})

# ---------------------------------------------------------------- what an example holds


def test_steps_are_the_lines_of_the_thinking() -> None:
    assert EXAMPLE.steps == ("5 + 7 = 12 apples.", "12 - 2 = 10 apples left.")
    assert Example("?", thinking="\n one \n\n\n two\n").steps == ("one", "two")
    assert Example("?").steps == ()
    own = Example("?", thinking="First this. Then that.", steps=("First this.", "Then that."), labels=(1.0, None))
    assert own.steps == ("First this.", "Then that.")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"question": " \n"}, "an example needs a question"),
        ({"thinking": "a b", "steps": ("b", "a")}, "step 2 is not in the thinking: 'a'"),
        ({"thinking": "a", "steps": ("a", "a")}, "step 2 is not in the thinking"),
        ({"thinking": "a", "steps": ("",)}, "step 1 is not in the thinking: ''"),
        ({"thinking": "a\nb", "labels": (1.0,)}, "1 labels do not fit 2 steps"),
        ({"labels": (1.0,)}, "1 labels do not fit 0 steps"),
        ({"thinking": "a", "labels": (1.5,)}, "labels go from 0 to 1"),
        ({"thinking": "a", "labels": (float("nan"),)}, "labels go from 0 to 1"),
    ],
)
def test_what_is_no_example(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        Example(**{"question": "?", **fields})


def test_as_a_conversation_and_as_a_question() -> None:
    told = Example("How many?", "The answer is 10.", THOUGHT, "10", "made", instruction="Count.", metadata={"id": "1"})
    assert EXAMPLE.messages == (user("How many?"), assistant("The answer is 10.", THOUGHT))
    assert told.prompt == (system("Count."), user("How many?"))
    assert told.messages[2:] == EXAMPLE.messages[1:]
    assert told.asked() == Question(told.prompt, "10", "made", metadata={"id": "1"})
    assert answer_text("4.50") == "The answer is 4.50."


def test_the_example_of_a_question() -> None:
    question = Question((system("Count."), user("How many?")), "7", "made", metadata={"id": "3"})
    example = of_question(question)
    assert (example.answer, example.thinking, example.steps) == ("The answer is 7.", "", ())
    assert example.asked() == question
    assert of_question(Question((user("Why?"),))).answer == ""


PICTURE = Message("user", (Text("What is this?"), Image("data:,")))


@pytest.mark.parametrize(
    "question",
    [
        Question((user("Hi"), assistant("Hello"), user("How many?"))),
        Question((user("How many?"), assistant("3"))),
        Question((system("A"), system("B"), user("How many?"))),
        Question((PICTURE,)),
        Question((user("How many?"),), tools=({"name": "add"},)),
        Question(()),
    ],
)
def test_more_than_one_question_in_text_is_refused(question: Question) -> None:
    with pytest.raises(InputError, match=r"an example holds one question in text"):
        of_question(question)


# ---------------------------------------------------------------- traces


def trace(**changes: Any) -> Trace:
    samples = (
        Sample(0, "", answer="The answer is 9.", thinking="5 + 7 = 13."),
        Sample(1, "", answer="The answer is 10.", thinking=THOUGHT, finish="length"),
    )
    events = (
        Scored(Score(0.0, "math_answer"), 0),
        Scored(Score(1.0, "math_answer"), 1),
        Scored(Score(0.75, "process", steps=(1.0, 0.5)), 1),
        BestAnswer("The answer is 10.", 1),
    )
    values: dict[str, Any] = {
        "question": Question((system("Count."), user("How many?")), "10", "made", metadata={"id": "q"}),
        "answer": "The answer is 10.",
        "samples": samples,
        "events": events,
        "provenance": Provenance("tiny", strategy="vote(2)"),
    }
    return Trace("t1", **{**values, **changes})


def test_the_sample_behind_the_answer_of_a_trace() -> None:
    example = of_trace(trace())
    assert (example.question, example.instruction) == ("How many?", "Count.")
    assert (example.thinking, example.answer, example.reference) == (THOUGHT, "The answer is 10.", "10")
    assert example.labels == (1.0, 0.5)
    assert example.metadata == {
        "id": "q",
        "trace": "t1",
        "sample": 1,
        "finish": "length",
        "model": "tiny",
        "strategy": "vote(2)",
        "synthetic": True,
        "scores": {"math_answer": 1.0, "process": 0.75},
    }


def test_another_sample_of_a_trace() -> None:
    example = of_trace(trace(), 0)
    assert (example.thinking, example.labels) == ("5 + 7 = 13.", None)
    assert example.metadata["scores"] == {"math_answer": 0.0}


def test_a_sample_that_a_trace_does_not_have() -> None:
    with pytest.raises(InputError, match=r"the trace t1 has no sample 7\. It has the samples 0, 1"):
        of_trace(trace(), 7)
    with pytest.raises(InputError, match=r"no sample behind its answer\. It has the samples none"):
        of_trace(trace(samples=()))


# ---------------------------------------------------------------- files

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
EXAMPLES = st.builds(
    lambda question, answer, lines, reference, score, metadata: Example(
        f"? {question}",
        answer,
        "\n".join(lines),
        reference,
        labels=None if score is None else (score,) * len(Example("?", thinking="\n".join(lines)).steps),
        metadata=metadata,
    ),
    TEXT,
    TEXT,
    st.lists(TEXT, max_size=3),
    st.none() | TEXT,
    st.none() | st.floats(0, 1),
    st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | TEXT | st.lists(TEXT, max_size=2), max_size=2),
)


@given(st.lists(EXAMPLES, max_size=4))
def test_examples_come_back_from_a_file(tmp_path_factory: pytest.TempPathFactory, examples: list[Example]) -> None:
    path = tmp_path_factory.mktemp("examples") / "examples.jsonl"
    assert write_examples(path, examples) == len(examples)
    assert path.read_bytes().count(b"\n") == len(examples)
    assert list(read_examples(path)) == examples


def test_a_file_is_read_as_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    write_examples(path, [EXAMPLE])
    path.write_text(f"\n{path.read_text()}\n\nnonsense\n")
    reading = read_examples(path)
    assert next(reading) == EXAMPLE
    with pytest.raises(InputError, match=r"line 5 is not JSON"):
        next(reading)


def test_every_line_has_the_version_of_the_format(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    write_examples(path, [EXAMPLE])
    document = json.loads(path.read_text())
    assert document["version"] == 1
    assert document["steps"] == list(EXAMPLE.steps)
    path.write_text('{"version": 1, "question": "How many?"}')
    assert list(read_examples(path)) == [Example("How many?")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("nonsense", r"line 2 is not JSON .*\. Write one JSON object a line"),
        ("[" * 100_000, r"line 2 is not JSON"),
        ("[]", r"line 2: an example must be a JSON object, not \[\]\. Write it as \{\.\.\.\}"),
        ('{"question": "?"}', r"line 2: this document has version None; this ponder reads version 1\. Write .* anew"),
        ('{"version": 2, "question": "?"}', r"line 2: this document has version 2"),
        ('{"version": 1}', r"line 2: the field question is missing\. Add it"),
        ('{"version": 1, "question": 3}', r"line 2: the field question is wrong \(Input should be a valid string\)"),
        ('{"version": 1, "question": "?", "labels": ["x"]}', r"line 2: the field labels\.0 is wrong"),
        ('{"version": 1, "question": "?", "labels": [1]}', r"line 2: 1 labels do not fit 0 steps\. Mend the example"),
        (
            '{"version": 1, "question": "?", "anwser": "3"}',
            r"the unknown field 'anwser'\. An example has question, answer",
        ),
        ('{"version": 1, "question": " "}', r"line 2: an example needs a question"),
        ('{"version": 1, "question": "\\ud800"}', r"line 2 has half a surrogate pair"),
    ],
)
def test_a_line_that_is_no_example(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"version": 1, "question": "?"}\n' + line + "\n")
    with pytest.raises(InputError, match=rf"bad\.jsonl, .*{problem}"):
        list(read_examples(path))


def test_a_line_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(b'\n{"version": 1, "question": "\xff"}')
    with pytest.raises(InputError, match=r"line 2 is not UTF-8\. Save the file as UTF-8"):
        list(read_examples(tmp_path / "bad.jsonl"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl cannot be read: No such file or directory"):
        list(read_examples(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match=r"out\.jsonl cannot be written: No such file or directory"):
        write_examples(tmp_path / "none" / "out.jsonl", [EXAMPLE])


def test_a_file_is_replaced_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    write_examples(path, [EXAMPLE])
    before = path.read_bytes()

    def failing() -> Iterator[Example]:
        yield EXAMPLE
        yield EXAMPLE
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_examples(path, failing())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("bad", [Example("?", metadata={"what": object()}), Example("\ud800?")])
def test_what_json_cannot_hold(tmp_path: Path, bad: Example) -> None:
    with pytest.raises(InputError, match=r"example 2 cannot be written as JSON: .*\. Mend its metadata or text"):
        write_examples(tmp_path / "examples.jsonl", [EXAMPLE, bad])
    assert list(tmp_path.iterdir()) == []

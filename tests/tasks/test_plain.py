"""One's own files: fields by other names, choices, the header, CSV and JSON arrays."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder import tasks
from ponder.types import system, user


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("asks", ["question", "prompt", "input"])
@pytest.mark.parametrize("answers", ["answer", "target", "reference"])
def test_fields_by_any_of_their_names(asks, answers, tmp_path):
    (question,) = tasks.load(write(tmp_path / "own.jsonl", {asks: "Who?", answers: "Ada"})).questions
    assert (question.text, question.reference, question.metadata) == ("Who?", "Ada", {"id": "0"})


def test_choices_take_a_letter_or_the_text_of_one(tmp_path):
    rows = [{"id": n, "question": "Pick", "choices": ["red", "blue"], "answer": a} for n, a in enumerate(["blue", "B"])]
    task = tasks.load(write(tmp_path / "own.jsonl", *rows), format="plain")
    assert [question.reference for question in task.questions] == ["B", "B"]
    assert task.questions[0].text == "Pick\nA. red\nB. blue"
    assert task.verifier == "choice"


def test_the_header_speaks_for_the_file(tmp_path):
    header = {"task": "capitals", "verifier": "exact_text", "instruction": "One word."}
    row = {"question": "France?", "answer": "Paris", "verifier": "pattern('Paris')"}
    path = write(tmp_path / "own.jsonl", header, row)
    task = tasks.load(path)
    assert (task.name, task.verifier) == ("capitals", "exact_text")
    assert task.questions[0].messages == (system("One word."), user("France?"))
    assert task.questions[0].task == "capitals"
    assert task.questions[0].metadata["verifier"] == "pattern('Paris')"
    assert tasks.load(path, verifier="choice").verifier == "choice"
    assert task.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_answers_that_are_not_text(tmp_path):
    rows = [{"question": "q", "answer": answer} for answer in (4.0, True, {"a": "é"})]
    task = tasks.load(write(tmp_path / "own.jsonl", *rows))
    assert [question.reference for question in task.questions] == ["4", "true", '{"a": "é"}']
    assert task.verifier == "normalised_text"
    assert tasks.load(write(tmp_path / "own.jsonl", rows[0])).verifier == "math_answer"


def test_csv_with_quotes_choices_and_blank_lines(tmp_path):
    path = tmp_path / "own.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,question,choices,answer,kind\r\n\r\n"
        b'a,"Which, of\r\nthese?",red | blue,blue,colour\r\nb,Who?,Ada|Bob,A,\r\n'
    )
    first, second = tasks.load(path).questions
    assert first.text == "Which, of\r\nthese?\nA. red\nB. blue"
    assert first.metadata == {"id": "a", "kind": "colour", "choices": ["red", "blue"]}
    assert second.reference == "A"
    assert "kind" not in second.metadata


def test_an_array_reads_like_lines(tmp_path):
    rows = [{"question": "a]\n", "answer": "1"}, {"question": "b", "answer": "2"}]
    lines = tasks.load(write(tmp_path / "own.jsonl", *rows))
    (tmp_path / "own.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    assert tasks.load(tmp_path / "own.json").questions == lines.questions


words = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip() and "####" not in text)
labels = st.none() | words


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(words, words, labels), min_size=1, max_size=5))
def test_plain_jsonl_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("plain") / "own.jsonl"
    task = tasks.load(
        write(path, *({"question": q, "answer": a, "kind": kind} for q, a, kind in rows)),
    )
    assert [(q.text, q.reference, q.metadata.get("kind")) for q in task.questions] == rows


def many(tmp_path, count=40):
    return write(tmp_path / "own.jsonl", *({"question": f"{n}?", "answer": str(n % 3)} for n in range(count)))


def test_a_limit_takes_the_first_rows(tmp_path):
    path = many(tmp_path)
    assert tasks.load(path, limit=5).questions == tasks.load(path).questions[:5]
    assert len(tasks.load(path, limit=99, seed=1).questions) == 40
    assert tasks.load(path, limit=5).sha256 == tasks.load(path).sha256


def test_a_limit_with_a_seed_takes_a_repeatable_subset_that_grows(tmp_path):
    path = many(tmp_path)
    ids = {n: [q.metadata["id"] for q in tasks.load(path, limit=n, seed=7).questions] for n in (5, 10)}
    assert ids[5] == [q.metadata["id"] for q in tasks.load(path, limit=5, seed=7).questions]
    assert ids[5] == sorted(ids[5], key=int)
    assert set(ids[5]) < set(ids[10])
    assert ids[10] != [q.metadata["id"] for q in tasks.load(path, limit=10, seed=8).questions]


def test_describe_counts_kinds_and_knows_the_floor(tmp_path):
    rows = [{"question": "q", "answer": answer, "kind": kind} for answer, kind in (("1", "x"), ("2", "y"), ("2", "x"))]
    task = tasks.load(write(tmp_path / "own.jsonl", *rows, {"question": "q", "answer": "1"}))
    assert tasks.describe(task) == {
        "name": "own",
        "questions": 4,
        "kinds": {"x": 2, "y": 1, "": 1},
        "verifier": "math_answer",
        "sha256": task.sha256,
        "floor": {"answer": "1", "share": 0.5},
    }
    assert tasks.constant_floor(tasks.Task("none", (), "choice", "")) == ("", 0.0)

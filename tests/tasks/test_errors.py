"""Every error is one line that names the file, the line and what mends it."""

import json

import pytest

from ponder import tasks
from ponder.errors import InputError

GOOD = '{"question": "q", "answer": "a"}\n'
WORKED = '{"question": "q", "answer": "so\\n#### 1"}\n'


def refused(path, content, **options):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        tasks.load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.mend
    return message.replace(str(path), "FILE")


@pytest.mark.parametrize(
    ("content", "start"),
    [
        ("", "FILE is empty. Give a file"),
        ("\n  \n", "FILE is empty"),
        ("hello", "FILE is neither JSONL, a JSON array, CSV nor"),
        (GOOD + "\n{oops}\n", "FILE, line 3 is not JSON (Expecting property name enclosed in double quotes)"),
        (GOOD + '{"a": NaN}\n', "FILE, line 2 is not JSON (NaN is no JSON)"),
        (GOOD + '{"a":' + "[" * 100_000, "FILE, line 2 is not JSON"),
        (GOOD + "3\n", "FILE, line 2: a row must be a JSON object, not 3"),
        (GOOD.encode() + b'{"question": "\xff"}\n', "FILE, line 2 is not UTF-8. Save"),
        (GOOD + '{"question": "\\ud800", "answer": "a"}\n', "FILE, line 2 has half a surrogate pair"),
        (GOOD + '{"question": "q"}\n', "FILE, line 2: the row lacks the field answer (or target, reference)"),
        ('{"question": "q"}\n' + GOOD, "FILE, line 1: the row lacks the field answer"),
        (GOOD + '{"question": 3, "answer": "a"}\n', "FILE, line 2: the field question must hold text, not 3"),
        (GOOD + '{"question": " ", "answer": "a"}\n', "FILE, line 2: the field question must hold text"),
        (GOOD + '{"question": "q", "answer": " "}\n', "FILE, line 2: the answer is blank"),
        ('{"a": 1, "b": 2}\n', "FILE, line 1: no known format has the fields a, b. Write question and answer, or"),
        ("{}\n", "FILE, line 1: no known format has the fields (none)"),
        (GOOD + WORKED, "FILE, line 2 looks like gsm8k, line 1 like plain"),
        (WORKED + '{"question": "q"}\n', "FILE, line 2: the row lacks the field answer."),
        (WORKED * 16 + GOOD, 'FILE, line 17: the field answer must end in a line such as "#### 18"'),
        ('{"task": "t"}\n', "FILE has no questions"),
        ('{"task": "t", "verifer": "v"}\n' + GOOD, "FILE, line 1: the header has the unknown field verifer. It may"),
        ('{"task": 3}\n' + GOOD, "FILE, line 1: the field task must hold text"),
        ('{"input": "q", "target": 3}\n' * 16 + GOOD, "FILE, line 17: the row lacks the field input"),
        ('{"problem": "p", "answer": 3}\n' * 16 + '{"problem": "p", "answer": 1000}', "FILE, line 17: AIME's answer"),
        ('{"problem": "p", "level": "3", "solution": "\\\\boxed{3"}', "FILE, line 1: no known format"),
    ],
)
def test_lines(content, start, tmp_path):
    assert refused(tmp_path / "own.jsonl", content).startswith(start)


def test_duplicate_ids(tmp_path):
    row = json.dumps({"id": 1, "question": "q", "answer": "a"}) + "\n"
    assert refused(tmp_path / "own.jsonl", row + GOOD.replace("{", '{"id": "2", ') + row) == (
        "FILE, line 3 has the id '1' of line 1. Give every row an id of its own."
    )


@pytest.mark.parametrize(
    ("choices", "answer", "problem"),
    [
        (["a", "b"], "c", "the answer 'c' is none of the choices"),
        (["a", "b"], "C", "the answer 'C' is none of the choices"),
        (["a"], "a", "the field choices must list 2 to 26 choices"),
        ("ab", "a", "the field choices must list 2 to 26 choices"),
        (["a", None], "a", "a choice must be text or a number, not None"),
    ],
)
def test_choices(choices, answer, problem, tmp_path):
    row = json.dumps({"question": "q", "choices": choices, "answer": answer})
    assert f"line 1: {problem}" in refused(tmp_path / "own.jsonl", row)


@pytest.mark.parametrize(
    ("row", "format", "problem"),
    [
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, None, "neither an index below 2 nor a letter up to B"),
        ({"question": "q", "choices": ["a", "b"], "answer": "C"}, "mmlu", "neither an index"),
        ({"Body": "b", "Question": "q", "Answer": "x"}, None, "the field Answer must hold a number, not 'x'"),
        ({"Body": "b", "Question": "", "Answer": 1}, None, "the row lacks the field Question"),
        ({"body": "b", "question": "q", "answer": None}, None, "the row lacks the field answer"),
        ({"problem": "p", "solution": "none"}, "competition_math", "the solution has no \\boxed{...}"),
        ({"problem": "p", "answer": 1.5}, "aime", "AIME's answer must be an integer from 0 to 999, not 1.5"),
        ({"input": "q", "target": "x"}, "mawps", "the field target must hold a number"),
    ],
)
def test_rows_that_do_not_fit_their_format(row, format, problem, tmp_path):
    message = refused(tmp_path / "own.jsonl", json.dumps(row), format=format)
    assert message.startswith("FILE, line 1: ")
    assert problem in message


@pytest.mark.parametrize(
    ("content", "start"),
    [
        ('[\n{"question": "q", "answer": "a"}\n{}]', "FILE, line 3 is not JSON (a comma or ] is missing)"),
        ('[{"question": "q", "answer": "a"},\n]', "FILE, line 2 is not JSON"),
        ('[{"question": "q", "answer": "a"}\n', "FILE, line 2 is not JSON"),
        ('[{"question": "q", "answer": "a"}] more', "FILE, line 1 is not JSON (something follows"),
        ('[\n\n{"question": "q"\n]', "FILE, line 3 is not JSON"),
        ('[\n{"question": "q", "answer": "a"},\n3]', "FILE, line 3: a row must be"),
        ("[]", "FILE has no questions"),
    ],
)
def test_arrays(content, start, tmp_path):
    assert refused(tmp_path / "own.json", content).startswith(start)


@pytest.mark.parametrize(
    ("content", "start"),
    [
        ("question,answer\nq,a\nq,a,b\n", "FILE, line 3 has 3 cells where 2 are expected"),
        ('question,answer\n"q\nq",a\n"q,a\n', "FILE, line 4 is not CSV"),
        ("question,question\nq,a\n", "FILE, line 1 names a column twice"),
        ("question,answer\nq,\n", "FILE, line 2: the row lacks the field answer"),
        ("question,answer\n", "FILE has no questions"),
    ],
)
def test_csv(content, start, tmp_path):
    assert refused(tmp_path / "own.csv", content).startswith(start)


@pytest.mark.parametrize(
    ("content", "start"),
    [
        ("<a>\n</b>", "FILE, line 2 is not ASDiv's XML (mismatched tag)"),
        ("<a/>", "FILE, line 1 is not ASDiv's XML (it has no <Problem>)"),
        ('<!DOCTYPE a [<!ENTITY b "c">]>\n<a/>', "FILE, line 1 is not ASDiv's XML (it has a DOCTYPE)"),
        ("<a>\n<Problem><Body>b</Body><Question>q</Question></Problem></a>", "FILE, line 2: no known format"),
    ],
)
def test_xml(content, start, tmp_path):
    assert refused(tmp_path / "own.xml", content).startswith(start)


def test_options_and_files(tmp_path):
    assert "Known formats: gsm8k, mawps, svamp" in refused(tmp_path / "own.jsonl", GOOD, format="gsm")
    assert refused(tmp_path / "own.jsonl", GOOD, limit=0).startswith("limit must be at least 1, not 0")
    with pytest.raises(InputError, match=r"absent.jsonl cannot be read: No such file or directory. Check the path"):
        tasks.load(tmp_path / "absent.jsonl")

"""Every format, by lines as they are published."""

import json

import pytest

from ponder import tasks
from ponder.tasks import competition_math, gsm8k
from ponder.tasks.fields import as_number

GSM8K = {
    "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?",
    "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
}
MAWPS = {"input": "Jose starts with 7 bottle caps. He gets 2 more from Rebecca. How many does he have?", "target": 9.0}
SVAMP = {
    "ID": "chal-1",
    "Body": "Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on each pack",
    "Question": "How much do you have to pay to buy each pack?",
    "Equation": "( 76.0 - 25.0 )",
    "Answer": 51.0,
    "Type": "Subtraction",
}
ASDIV = {
    "body": "Seven red apples and two green apples are in the basket.",
    "question": "How many apples are in the basket?",
    "solution_type": "Addition",
    "answer": "9 (apples)",
    "formula": "7+2=9",
}
ASDIV_XML = """<?xml version="1.0" encoding="UTF-8" ?>
<Machine-Reading-Corpus-File>
    <ProblemSet>
        <Problem ID="nluds-0001" Grade="1" Source="http://www.k5learning.com">
            <Body>Seven red apples and two green apples are in the basket.</Body>
            <Question>How many apples are in the basket?</Question>
            <Solution-Type>Addition</Solution-Type>
            <Answer>9 (apples)</Answer>
            <Formula>7+2=9</Formula>
        </Problem>
    </ProblemSet>
</Machine-Reading-Corpus-File>
"""
MATH = {
    "problem": "How many vertical asymptotes does the graph of $y=\\frac{2}{x^2+x-6}$ have?",
    "level": "Level 3",
    "type": "Algebra",
    "solution": "The denominator factors, so there are $\\boxed{2}$ vertical asymptotes.",
}
MATH_500 = {
    "problem": "Convert the point $(0,3)$ in rectangular coordinates to polar coordinates.",
    "solution": "So the point is $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}.$",
    "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
    "subject": "Precalculus",
    "level": 2,
    "unique_id": "test/precalculus/807.json",
}
AIME = {"ID": "2024-I-3", "Problem": "Find the remainder.", "Solution": "It is \\boxed{25}.", "Answer": "025"}
MMLU = {
    "question": "Find the degree for the given field extension Q(sqrt(2), sqrt(3), sqrt(18)) over Q.",
    "subject": "abstract_algebra",
    "choices": ["0", "4", "2", "6"],
    "answer": 1,
}
PLAIN = {"question": "What is the capital of France?", "answer": "Paris", "kind": "geography", "id": 7}
ROWS = {
    "gsm8k": GSM8K,
    "mawps": MAWPS,
    "svamp": SVAMP,
    "asdiv": ASDIV,
    "competition_math": MATH,
    "aime": AIME,
    "mmlu": MMLU,
    "plain": PLAIN,
}
MORE = [("competition_math", MATH_500), ("aime", {"id": "0", "problem": "Find the sum.", "answer": "70"})]
REFERENCES = {"gsm8k": "72", "mawps": "9", "svamp": "51", "asdiv": "9", "competition_math": "2", "aime": "25"}
REFERENCES |= {"mmlu": "B", "plain": "Paris"}


def load(tmp_path, *rows, name="some.jsonl", **options):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tasks.load(path, **options)


@pytest.mark.parametrize(("name", "row"), [*ROWS.items(), *MORE])
def test_exactly_one_format_recognises_a_row(name, row):
    special = [n for n, source in tasks.FORMATS.items() if n != "plain" and source.matches(row)]
    assert special == ([] if name == "plain" else [name])
    assert tasks.recognise(row) == name


@pytest.mark.parametrize("name", ROWS)
def test_the_reference_of_each_format(name, tmp_path):
    task = load(tmp_path, ROWS[name])
    assert task.questions[0].reference == REFERENCES[name]
    assert task.questions[0].task == task.name == ("some" if name == "plain" else f"{name}/some")
    assert task.verifier == ("choice" if name == "mmlu" else "normalised_text" if name == "plain" else "math_answer")
    assert load(tmp_path, ROWS[name], format=name) == task


def test_gsm8k_keeps_the_worked_solution_without_its_calculator_marks(tmp_path):
    (question,) = load(tmp_path, GSM8K).questions
    assert question.text == GSM8K["question"]
    assert question.metadata == {
        "id": "0",
        "solution": "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May.",
    }


def test_gsm8k_answers_lose_their_thousands_separators():
    assert gsm8k.question({"question": "How much?", "answer": "Much.\n#### 1,080"}, 0).reference == "1080"


def test_svamp_joins_body_and_question(tmp_path):
    (question,) = load(tmp_path, SVAMP).questions
    assert question.text == f"{SVAMP['Body']} {SVAMP['Question']}"
    assert question.metadata == {"id": "chal-1", "kind": "Subtraction", "solution": "( 76.0 - 25.0 )"}


def test_asdiv_reads_the_same_from_jsonl_and_xml(tmp_path):
    (line,) = load(tmp_path, ASDIV).questions
    (tmp_path / "ASDiv.xml").write_text(ASDIV_XML, encoding="utf-8")
    (problem,) = tasks.load(tmp_path / "ASDiv.xml").questions
    assert problem.messages == line.messages
    assert problem.reference == line.reference == "9"
    assert line.metadata == {"id": "0", "kind": "Addition", "unit": "apples", "solution": "7+2=9"}
    assert problem.metadata == {**line.metadata, "id": "nluds-0001", "level": "1"}


@pytest.mark.parametrize(
    ("answer", "reference", "unit"),
    [("17 (red); 5 (blue)", "17; 5", "red; blue"), ("Paul", "Paul", None), ("(3, 4)", "(3, 4)", None)],
)
def test_asdiv_answers_of_other_shapes(answer, reference, unit):
    question = tasks.asdiv.question({**ASDIV, "answer": answer}, 0)
    assert (question.reference, question.metadata.get("unit")) == (reference, unit)


def test_math_and_its_subset_of_500(tmp_path):
    old, new = load(tmp_path, MATH, MATH_500).questions
    assert (old.metadata["kind"], old.metadata["level"], old.metadata["id"]) == ("Algebra", "3", "0")
    assert new.reference == "\\left( 3, \\frac{\\pi}{2} \\right)"
    assert (new.metadata["kind"], new.metadata["level"]) == ("Precalculus", "2")
    assert new.metadata["id"] == "test/precalculus/807.json"
    assert new.metadata["solution"] == MATH_500["solution"]


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("so $\\boxed{1}$, no, $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("which is $\\boxed 5$.", "5"),
        ("which is \\fbox{7}", "7"),
        ("the set \\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("never closed \\boxed{3", None),
        ("nothing boxed", None),
    ],
)
def test_the_last_box(solution, answer):
    assert competition_math.boxed(solution) == answer


def test_mmlu_letters_its_choices(tmp_path):
    (question,) = load(tmp_path, MMLU).questions
    assert question.text == MMLU["question"] + "\nA. 0\nB. 4\nC. 2\nD. 6"
    assert question.metadata == {"id": "0", "kind": "abstract_algebra", "choices": ["0", "4", "2", "6"]}


def test_mmlu_as_csv_with_and_without_a_header(tmp_path):
    row = '"Statement 1 | Every element, say.\nStatement 2",True,False,Both,None,C\n'
    (tmp_path / "virology_test.csv").write_text(row * 2, encoding="utf-8")
    bare = tasks.load(tmp_path / "virology_test.csv")
    (tmp_path / "virology_test.csv").write_text("question,A,B,C,D,answer\n" + row * 2, encoding="utf-8")
    headed = tasks.load(tmp_path / "virology_test.csv")
    assert bare.questions == headed.questions
    assert bare.name == "mmlu/virology_test"
    assert bare.questions[0].reference == "C"
    assert bare.questions[0].text.endswith("\nStatement 2\nA. True\nB. False\nC. Both\nD. None")


def test_numeric_choices_without_a_subject_are_plain_and_their_answer_is_a_choice():
    row = {"question": "1+1?", "choices": ["1", "2", "3"], "answer": 2}
    assert tasks.recognise(row) == "plain"
    assert tasks.plain.question(row, 0).reference == "B"
    assert tasks.mmlu.question(row, 0).reference == "C"


@pytest.mark.parametrize(
    ("found", "written"),
    [
        (43.0, "43"),
        (0.5, "0.5"),
        ("1,080.50", "1080.5"),
        (-0.0, "0"),
        (1e22, "1" + "0" * 22),
        ("-3", "-3"),
        (True, None),
        ("1e9", None),
        ("nan", None),
        (float("inf"), None),
        ("Paris", None),
    ],
)
def test_numbers_are_written_one_way(found, written):
    assert as_number(found) == written

"""Verifiers by their names, and the verifiers that questions declare for themselves."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import re
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scoring import score

from ponder import tasks
from ponder.errors import InputError
from ponder.expressions import parse
from ponder.protocols import bound, most_tokens
from ponder.types import Question, Sample, Score, user
from ponder.verifiers import judge, math_answer
from ponder.verifiers.naming import MODULES, names, verifier_named
from ponder.verifiers.per_question import verifier_of

literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=8,
)
identifiers = st.from_regex(r"n[a-z_]{0,8}", fullmatch=True).filter(lambda name: name not in ("not", "nonlocal"))


@given(identifiers, st.lists(literals, max_size=3), st.dictionaries(identifiers, literals, max_size=3))
def test_what_is_written_is_what_is_read(name, positional, named):
    settings = [*map(repr, positional), *(f"{key}={value!r}" for key, value in named.items())]
    assert parse(f" {name}({', '.join(settings)}) ") == (name, positional, named)
    assert parse(name) == (name, [], {})


@pytest.mark.parametrize(
    "text", ["f(a=1, a=2)", "f(**{'a': 1})", "f(*[1])", "f.g(1)", "f(1)(2)", "f(g)", "f(1 + 2)", "1"]
)
def test_what_is_no_name_with_values_is_refused(text):
    with pytest.raises(InputError, match="is no expression"):
        parse(text)


def test_a_pattern_may_be_written_without_a_raw_string():
    assert parse(r"pattern('\d+\.')") == ("pattern", [r"\d+\."], {})


@pytest.mark.parametrize(
    ("expression", "answer", "reference", "value"),
    [
        ("math_answer", "it is 7", "7.0", 1.0),
        (" math_answer(strict=True) ", "it is 7", "7.0", 0.0),
        ("choice", "B", "B", 1.0),
        ("exact_text()", "paris", "Paris", 0.0),
        ("normalised_text", "The paris.", "Paris", 1.0),
        ("pattern('^[0-9]+$')", "12", None, 1.0),
        ("pattern('PARIS', flags=2)", "paris", None, 1.0),
        ("json_schema({'type': 'object', 'required': ['a']})", '{"a": 1}', None, 1.0),
        ("json_schema({'type': 'object', 'required': ['a']})", '{"b": 1}', None, 0.0),
        ("arithmetic_steps", "2 + 2 = 5", None, 0.0),
    ],
)
def test_an_expression_names_a_verifier(expression, answer, reference, value):
    assert score(verifier_named(expression), answer, reference, choices=["x", "y"]).value == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' is no verifier. write one such as"),
        ("math_answer(", "is no verifier"),
        ("math_answer(strict=yes)", "is no verifier"),
        ("__import__('os').getcwd()", "is no verifier"),
        ("maths", "there is no verifier 'maths'. choose from math_answer, choice"),
        ("choice(3)", "choice(3) does not work: choice() takes 0 positional arguments"),
        ("math_answer(\nsecond=3)", "math_answer( second=3) does not work"),
        ("math_answer(seconds=0)", "leaves no time to compare"),
        ("pattern('(')", "is no regular expression"),
        ("json_schema", "does not work"),
        ("judge(tokens=0)", "tokens"),
    ],
)
def test_what_is_none_is_told_in_one_line(text, problem):
    with pytest.raises(InputError, match=re.escape(problem)) as told:
        verifier_named(text)
    assert "\n" not in str(told.value)


@given(st.text(max_size=30))
def test_any_text_is_a_verifier_or_an_error(text):
    with contextlib.suppress(InputError):
        assert callable(verifier_named(text))


@pytest.mark.parametrize("name", names())
def test_the_table_says_where_each_verifier_is(name):
    assert callable(getattr(importlib.import_module(f"ponder.verifiers.{MODULES[name]}"), name))


def judged(verifier, question, answer):
    return asyncio.run(verifier(question, Sample(0, answer, answer=answer))).value


def test_a_question_may_declare_a_verifier_of_its_own(tmp_path):
    rows = [{"question": "a", "answer": "7"}, {"question": "b", "answer": "7", "verifier": "exact_text"}]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tasks.load(path)
    for verifier in (verifier_of(task), verifier_of("math_answer")):
        assert [judged(verifier, question, "it is 7") for question in task.questions] == [1.0, 0.0]
        assert [judged(verifier, question, "7") for question in task.questions] == [1.0, 1.0]


def test_each_expression_is_built_once(monkeypatch):
    built = []
    real = math_answer.math_answer
    monkeypatch.setattr(math_answer, "math_answer", lambda **settings: built.append(settings) or real(**settings))
    questions = [
        Question((user("?"),), "7", metadata={"verifier": expression} if expression else {})
        for expression in ("", "math_answer(strict=True)", "math_answer(strict=True)", "math_answer")
    ]
    task = tasks.Task("own", tuple(questions), "math_answer", "")
    verifier = verifier_of(task)
    assert built == [{}, {"strict": True}]
    assert [judged(verifier, question, "7") for question in questions] == [1.0, 0.0, 0.0, 1.0]
    assert built == [{}, {"strict": True}]


@dataclass(frozen=True)
class Asks:
    """A verifier that asks a model: 1 where that agrees."""

    tokens: int
    model: object = None

    def with_model(self, model):
        return replace(self, model=model)

    async def __call__(self, question, sample):
        return Score(float(self.model == sample.answer), "asks")


def test_verifiers_that_ask_a_model_get_the_one_of_the_strategy(monkeypatch):
    monkeypatch.setattr(judge, "judge", lambda tokens=7: Asks(tokens))
    declares = [Question((user("?"),), "7", metadata={"verifier": f"judge(tokens={n})"}) for n in (3, 20, 50)]
    plain = Question((user("?"),), "7")
    verifier = verifier_of(tasks.Task("own", (plain, *declares[:2]), "math_answer", ""))
    assert (most_tokens(verifier), most_tokens(verifier_of("judge")), most_tokens(verifier_of("choice"))) == (20, 7, 0)
    asking = bound(verifier, "the model")
    assert [judged(asking, question, "the model") for question in (plain, *declares)] == [0.0, 1.0, 1.0, 1.0]
    assert most_tokens(asking) == 50
    assert bound(asking, "another") is asking
    assert judged(verifier, declares[0], "the model") == 0.0


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        ("maths", "the question '3' declares a verifier: there is no verifier 'maths'. choose from"),
        (7, "the question '3' declares 7 as its verifier. Write its expression as text"),
    ],
)
def test_a_mistake_in_a_question_comes_before_anything_is_scored(declared, problem):
    question = Question((user("?"),), "7", metadata={"id": "3", "verifier": declared})
    with pytest.raises(InputError, match=re.escape(problem)):
        verifier_of(tasks.Task("own", (question,), "math_answer", ""))
    with pytest.raises(InputError, match=re.escape(problem)):
        judged(verifier_of("math_answer"), question, "7")
    with pytest.raises(InputError, match="there is no verifier 'maths'"):
        verifier_of("maths")

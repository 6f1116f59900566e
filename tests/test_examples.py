"""The files of examples/ run as they stand, and do what they say."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import ponder
from ponder.chat.model import Model, model_of
from ponder.engine.scripted import ScriptedEngine, says
from ponder.protocols import Engine
from ponder.types import BestAnswer, Question, Sample, user

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def output_of(name: str, folder: Path) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_engine_runs(tmp_path: Path) -> None:
    lines = output_of("own_engine", tmp_path).splitlines()
    assert lines == [
        "'I add 23 to 19 and get 42.' -> 'The answer is 42.' (45 of 1000 tokens)",
        "'I add 23 to 19 and' -> 'The answer is 42.' (38 of 50 tokens)",
    ]


def test_the_engine_is_an_engine_and_keeps_any_budget() -> None:
    adder = example("own_engine").Adder()
    assert isinstance(adder, Engine)
    for budget in range(10, 90, 7):
        trace = ponder.solve("And 8 + 4?", model=model_of(adder), budget=budget)
        assert trace.cost.tokens <= budget
        assert trace.answer
        if budget >= 32:  # the closing marker, the words that open an answer, and one token of thinking
            assert trace.answer == "The answer is 12."


@pytest.mark.model
@pytest.mark.timeout(400)  # on a busy machine
def test_the_strategy_runs(tmp_path: Path) -> None:
    *answers, verdict = output_of("own_strategy", tmp_path).splitlines()
    assert len(answers) == 5
    assert verdict.startswith(f"most of them: {max(answers, key=answers.count)} (")


def scripted(*replies: str) -> Model:
    return model_of(ScriptedEngine(says(*replies)))


def test_the_strategy_takes_the_answer_of_most() -> None:
    vote = example("own_strategy").vote
    model = scripted("So.\nThe answer is 3.", "So.\nThe answer is 4.", "It is so, I think.\nThe answer is 4.")
    trace = ponder.solve("How many?", model=model, strategy=vote(3), budget=600)
    assert trace.answer == "The answer is 4."
    assert [sample.answer[-2:] for sample in trace.samples] == ["3.", "4.", "4."]
    assert trace.cost.tokens <= 600
    bests = [event.sample for event in trace.events if isinstance(event, BestAnswer)]
    assert len(bests) == 3
    assert bests[-1] == 1


def test_the_strategy_checks_its_settings() -> None:
    with pytest.raises(ValueError, match="n must be at least 1"):
        example("own_strategy").vote(0)


@pytest.mark.model
@pytest.mark.timeout(400)  # on a busy machine
def test_the_verifier_runs(tmp_path: Path) -> None:
    assert " scores " in output_of("own_verifier", tmp_path)


@pytest.mark.parametrize(
    ("answer", "value", "why"),
    [
        ("The answer is 12.", 1, "found 12"),
        ("12 or 13", 0, "found 13"),
        ("1,200 - 1,188 = 12.0", 1, "found 12.0"),
        ("many", 0, "found no number"),
    ],
)
def test_the_verifier_scores(answer: str, value: float, why: str) -> None:
    verify = example("own_verifier").last_number()
    question = Question((user("How many?"),), reference="12")
    score = asyncio.run(verify(question, Sample(0, answer, answer=answer)))
    assert (score.value, score.verifier, score.why) == (value, "last_number", why)


def test_the_verifier_needs_a_reference() -> None:
    verify = example("own_verifier").last_number()
    with pytest.raises(ValueError, match="reference"):
        asyncio.run(verify(Question((user("How many?"),)), Sample(0, "12", answer="12")))


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    assert all(f'output_of("{path.stem}"' in tested for path in EXAMPLES.glob("*.py"))

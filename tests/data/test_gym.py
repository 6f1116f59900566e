"""Questions of reasoning-gym as examples."""

from __future__ import annotations

import asyncio
import importlib.util
import sys

import pytest

from ponder import tasks
from ponder.data.examples import Example
from ponder.data.gym import PLAUSIBLE, gym_examples
from ponder.errors import InputError, MissingExtra
from ponder.types import Sample
from ponder.verifiers.reasoning_gym import reasoning_gym


@pytest.fixture(scope="module")
def made() -> list[Example]:
    """Sixty questions of each family; reasoning-gym takes long to load."""
    if importlib.util.find_spec("reasoning_gym") is None:
        pytest.skip("needs ponder[reasoning-gym]")
    return list(gym_examples(60))


def test_each_family_gives_questions_that_the_verifier_scores(made: list[Example]) -> None:
    first = {example.metadata["kind"]: example for example in reversed(made)}
    assert set(first) == {family.partition("?")[0] for family in PLAUSIBLE}
    assert {example.thinking for example in made} == {""}

    async def verify() -> None:
        verifier = reasoning_gym()
        for example in first.values():
            right = Sample(0, "", answer=example.answer)
            assert (await verifier(example.asked(), right)).value == 1.0, example
            assert (await verifier(example.asked(), Sample(0, "", answer="The answer is nothing."))).value < 1.0

    asyncio.run(verify())


def test_no_constant_answer_gets_far_in_a_default_family(made: list[Example]) -> None:
    for family in PLAUSIBLE:
        name = family.partition("?")[0]
        questions = tuple(example.asked() for example in made if example.metadata["kind"] == name)
        assert len(questions) > 30
        assert tasks.constant_floor(tasks.Task(name, questions, "reasoning_gym", ""))[1] < 0.45, name


def test_a_seed_chooses_the_questions(made: list[Example]) -> None:
    others = list(gym_examples(20, seed=1, families=PLAUSIBLE[:2]))
    assert [example.metadata["kind"] for example in others[:4]] == ["chain_sum", "basic_arithmetic"] * 2
    assert len({example.question for example in others} - {example.question for example in made}) > 30


def test_a_family_that_cannot_be() -> None:
    with pytest.raises(InputError, match="'1gcd' is no family of reasoning-gym"):
        gym_examples(1, families=("1gcd",))


def test_without_reasoning_gym(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(
        MissingExtra, match=r"needs the package reasoning-gym\. Run: pip install 'ponder\[reasoning-gym\]'"
    ):
        gym_examples(1)

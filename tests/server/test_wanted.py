"""Strategy and budget from a body, headers and the suffix of a model's name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_client import refused

from ponder.server.failures import Refusal
from ponder.server.json_body import Fields
from ponder.server.request import PromptVersion
from ponder.server.wanted import Wanted, effort_said, model_and_suffix, strategy_text, think_said, thinking_said, wanted
from ponder.strategies import naming
from ponder.types import Budget


def want(body: dict[str, Any] | None = None, model: str = "m", headers: dict[str, str] | None = None) -> Wanted:
    return wanted(Fields({"model": model, **({} if body is None else {"ponder": body})}), headers or {})


@pytest.mark.parametrize(
    ("model", "name", "strategy", "effort"),
    [
        ("ponder-135m", "ponder-135m", "", ""),
        ("ponder-135m:vote-8", "ponder-135m", "vote(8)", ""),
        ("ponder-135m:beam", "ponder-135m", "beam", ""),
        ("ponder-135m:best_of_n-16", "ponder-135m", "best_of_n(16)", ""),
        ("ponder-135m:auto", "ponder-135m", "auto", ""),
        ("ponder-135m:high", "ponder-135m", "", "high"),
        ("ponder-135m:vote-8:low", "ponder-135m", "vote(8)", "low"),
        ("qwen3:8b", "qwen3:8b", "", ""),
        ("qwen3:8b:medium", "qwen3:8b", "", "medium"),
        ("qwen3:vote8", "qwen3:vote8", "", ""),
        ("qwen3:auto-8", "qwen3:auto-8", "", ""),
        ("qwen3:medium:8b", "qwen3:medium:8b", "", ""),
        (":vote-8", ":vote-8", "", ""),
        ("high", "high", "", ""),
        ("a/b@c:", "a/b@c:", "", ""),
    ],
)
def test_suffixes(model: str, name: str, strategy: str, effort: str) -> None:
    found = want(model=model)
    assert (found.model, found.strategy, found.effort) == (name, strategy, effort)


def test_every_strategy_is_a_suffix() -> None:
    for name in naming.names():
        assert want(model=f"m:{name}").strategy == name
        assert want(model=f"m:{name}-3").strategy == f"{name}(3)"


@given(st.text(min_size=1))
def test_a_model_without_a_known_suffix_stays_whole(model: str) -> None:
    name, said = model_and_suffix(model)
    assert model == name if not said else model.startswith(name + ":")


def test_the_object_says_all() -> None:
    found = want(
        {
            "strategy": "vote(8, risk=0.05)",
            "budget": {"tokens": 900, "seconds": 5, "dollars": 0.01, "calls": 3, "answer": 100, "thinking": 500},
            "effort": "low",
            "deadline": 2.5,
            "prompt": "support@prod",
            "variables": {"name": "Ada", "items": [1]},
        }
    )
    assert found == Wanted(
        "m",
        "vote(8, risk=0.05)",
        "low",
        True,
        Budget(900, 5.0, 0.01, 3, 100, 500),
        2.5,
        PromptVersion("support", 0, "prod"),
        {"name": "Ada", "items": [1]},
    )


def test_headers_say_it_too_in_any_case() -> None:
    headers = {
        "x-ponder-strategy": "vote-4",
        "X-PONDER-BUDGET": "tokens=900, seconds=2.5, thinking=0",
        "X-Ponder-Deadline": "1.5",
        "X-Ponder-Prompt": "support@3",
        "authorization": "Bearer x",
    }
    found = want(headers=headers)
    assert found.strategy == "vote(4)"
    assert found.budget == Budget(900, 2.5, thinking=0)
    assert (found.think, found.effort) == (False, "none")
    assert (found.deadline, found.prompt) == (1.5, PromptVersion("support", 3))
    assert want(headers={"X-Ponder-Budget": "2000"}).budget == Budget(2000)
    assert want(headers={"X-Ponder-Budget": " ", "X-Ponder-Strategy": ""}) == Wanted("m")


def test_body_before_header_before_suffix() -> None:
    headers = {"X-Ponder-Strategy": "vote(4)", "X-Ponder-Budget": "tokens=100, seconds=5"}
    assert want(model="m:beam").strategy == "beam"
    assert want(model="m:beam", headers=headers).strategy == "vote(4)"
    both = want({"strategy": "direct", "budget": 50}, "m:beam", headers)
    assert (both.strategy, both.budget) == ("direct", Budget(50, 5.0))
    assert want({"effort": "none"}, "m:high").effort == "none"
    assert want({"effort": "high"}, "m:none").think is True
    assert want({"effort": "high"}, headers={"X-Ponder-Budget": "thinking=0"}).budget == Budget()


def test_the_smaller_bound_on_tokens_holds() -> None:
    body = Fields({"model": "m", "ponder": {"budget": 500}})
    assert wanted(body, {}, most=200).budget == Budget(200)
    assert wanted(body, {}, most=900).budget == Budget(500)
    assert wanted(Fields({"model": "m"}), {}, most=900).budget == Budget(900)


@pytest.mark.parametrize(
    ("body", "model", "param", "problem"),
    [
        ({"strategies": "vote"}, "m", "ponder.strategies", "no field"),
        ({"budget": {"token": 5}}, "m", "ponder.budget.token", "no field"),
        ({"budget": 0}, "m", "ponder.budget", "at least 1"),
        ({"budget": "much"}, "m", "ponder.budget", "a whole number, not a string"),
        ({"budget": {"seconds": 0}}, "m", "ponder.budget.seconds", "above 0"),
        ({"budget": {"tokens": 5, "answer": 9}}, "m", "ponder.budget.answer", "does not fit"),
        ({"effort": "much"}, "m", "ponder.effort", "choose from none, minimal, low"),
        ({"deadline": -1}, "m", "ponder.deadline", "above 0"),
        ({"deadline": 1e9}, "m", "ponder.deadline", "86400"),
        ({"prompt": "a@b@c"}, "m", "ponder.prompt", "no name of a stored prompt"),
        ({"variables": {"a": 1}}, "m", "ponder.variables", "no prompt"),
        ({"strategy": "vote(8"}, "m", "ponder.strategy", "is no strategy"),
        ({"strategy": "guess(8)"}, "m", "ponder.strategy", "choose from auto, direct"),
        ({"strategy": "vote(__import__('os'))"}, "m", "ponder.strategy", "is no strategy"),
        ({"strategy": "vote(" + "9" * 400 + ")"}, "m", "ponder.strategy", "longer than 300"),
        ({"strategy": "vote(1e999)"}, "m", "ponder.strategy", "no kind of setting"),
        ({"strategy": "mixture(models=['http://a'])"}, "m", "ponder.strategy", "no single word"),
        ({"strategy": "best_of_n(8, verifier='judge(\"/etc/passwd\")')"}, "m", "ponder.strategy", "no single word"),
        ({"strategy": ""}, "m", "ponder.strategy", "is no strategy"),
        (None, "m:vote-8:beam", "model", "contradict"),
        (None, "m:low:high", "model", "contradict"),
        ({"effort": "none", "budget": {"thinking": 5}}, "m", "ponder.budget.thinking", "contradict"),
    ],
)
def test_refuses_by_name(body: dict[str, Any] | None, model: str, param: str, problem: str) -> None:
    with pytest.raises(Refusal, match=problem) as caught:
        want(body, model)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Ponder-Budget", "tokens"),
        ("X-Ponder-Budget", "tokens=1, tokens=2"),
        ("X-Ponder-Budget", "tokens=-5"),
        ("X-Ponder-Budget", "colour=5"),
        ("X-Ponder-Budget", "2.5"),
        ("X-Ponder-Deadline", "soon"),
        ("X-Ponder-Deadline", "0"),
        ("X-Ponder-Strategy", "guess"),
        ("X-Ponder-Prompt", "a b"),
    ],
)
def test_refuses_headers_by_name(header: str, value: str) -> None:
    with pytest.raises(Refusal) as caught:
        want(headers={header: value})
    assert str(caught.value.param).startswith(header)


@pytest.mark.parametrize(
    "text", ["auto", "vote", "vote(8)", "vote-8", "best_of_n(4, verifier='math_answer(strict=True)')"]
)
def test_strategies_are_built_as_they_are_written(text: str) -> None:
    read = strategy_text(text, "ponder.strategy")
    assert read == ("vote(8)" if text == "vote-8" else text)
    if read != "auto":
        naming.strategy_named(read)


def test_equal_things_said_twice_agree_and_unequal_ones_name_both_fields() -> None:
    body = Fields({"model": "m", "ponder": {"effort": "low", "strategy": "vote(8)"}})
    assert wanted(body, {}, effort_said("low", "reasoning_effort")).effort == "low"
    with pytest.raises(Refusal, match=r"reasoning_effort and ponder.effort contradict each other"):
        wanted(body, {}, effort_said("high", "reasoning_effort"))
    with pytest.raises(Refusal, match=r"enable_thinking and ponder.effort contradict each other"):
        wanted(body, {}, think_said(False, "enable_thinking"))


def test_off_is_off_however_it_is_said() -> None:
    ways = [effort_said("none", "a"), thinking_said(0, "a"), think_said(False, "a")]
    found = [wanted(Fields({"model": "m"}), {}, said) for said in ways]
    assert found[0] == found[1] == found[2] == Wanted("m", effort="none", think=False, budget=Budget(thinking=0))
    assert wanted(Fields({"model": "m"}), {}, thinking_said(-1, "a")) == Wanted("m")


@given(
    st.dictionaries(
        st.sampled_from(["strategy", "budget", "effort", "deadline", "prompt", "variables"]),
        st.none() | st.integers() | st.floats() | st.text() | st.dictionaries(st.text(), st.integers(), max_size=2),
    ),
    st.text(min_size=1),
    st.dictionaries(
        st.sampled_from(["X-Ponder-Strategy", "X-Ponder-Budget", "X-Ponder-Deadline", "X-Ponder-Prompt"]), st.text()
    ),
)
def test_anything_is_read_or_refused(body: dict[str, Any], model: str, headers: dict[str, str]) -> None:
    refusal = refused(lambda: want(body, model, headers))
    assert refusal is None or (refusal.status == 400 and refusal.param)

"""All the ways to ask for thinking come to the same."""

from __future__ import annotations

from typing import Any

import pytest

from ponder.server.failures import Refusal
from ponder.server.openai_chat import read
from ponder.server.request import Request
from ponder.types import Budget


def asked(**fields: Any) -> Request:
    return read({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}, {}, "r1")


BUDGET = [
    {"thinking": {"type": "enabled", "budget_tokens": 512}},
    {"thinking": {"budget_tokens": 512}},
    {"reasoning": {"max_tokens": 512}},
    {"reasoning": {"max_tokens": 512, "enabled": True}},
    {"thinking_budget": 512},
    {"enable_thinking": True, "thinking_budget": 512},
    {"chat_template_kwargs": {"enable_thinking": True, "thinking_budget": 512}},
    {"reasoning_budget_tokens": 512},
    {"thinking_token_budget": 512},
    {"ponder": {"budget": {"thinking": 512}}},
]
EFFORT = [
    {"reasoning_effort": "high"},
    {"reasoning": {"effort": "high"}},
    {"thinking_level": "high"},
    {"chat_template_kwargs": {"reasoning_effort": "high"}},
    {"ponder": {"effort": "high"}},
    {"model": "m:high"},
]
OFF = [
    {"reasoning_effort": "none"},
    {"reasoning": {"enabled": False}},
    {"reasoning": {"effort": "none"}},
    {"thinking": {"type": "disabled"}},
    {"thinking_budget": 0},
    {"enable_thinking": False},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"thinking": False}},
    {"reasoning_budget_tokens": 0},
    {"thinking_token_budget": 0},
    {"model": "m:none"},
]
NOTHING = [
    {"thinking_budget": -1},
    {"reasoning_budget_tokens": -1},
    {"thinking": {"type": "adaptive"}},
    {"reasoning": {}},
    {"reasoning_effort": None},
    {"include_reasoning": True},
    {"reasoning": {"exclude": False}},
]


@pytest.mark.parametrize("fields", BUDGET)
def test_a_budget_is_a_budget(fields: dict[str, Any]) -> None:
    request = asked(**fields)
    assert request == asked(thinking_budget=512)
    assert (request.budget, request.think, request.effort) == (Budget(thinking=512), True, "")


@pytest.mark.parametrize("fields", EFFORT)
def test_an_effort_is_an_effort(fields: dict[str, Any]) -> None:
    request = asked(**fields)
    assert request == asked(reasoning_effort="high")
    assert (request.budget, request.think, request.effort) == (Budget(), True, "high")


@pytest.mark.parametrize("fields", OFF)
def test_off_is_off(fields: dict[str, Any]) -> None:
    request = asked(**fields)
    assert request == asked(reasoning_effort="none")
    assert (request.budget, request.think, request.effort) == (Budget(thinking=0), False, "none")


@pytest.mark.parametrize("fields", NOTHING)
def test_what_leaves_it_to_the_model_says_nothing(fields: dict[str, Any]) -> None:
    assert asked(**fields) == asked()


@pytest.mark.parametrize("effort", ["minimal", "low", "medium", "high", "xhigh", "max"])
def test_every_effort_is_taken(effort: str) -> None:
    assert asked(reasoning_effort=effort).effort == effort


def test_an_effort_and_a_budget_stand_beside_each_other() -> None:
    request = asked(reasoning_effort="high", thinking_budget=512)
    assert (request.effort, request.budget) == ("high", Budget(thinking=512))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning_effort and reasoning.effort"),
        ({"reasoning_effort": "low", "enable_thinking": False}, "contradict"),
        ({"thinking": {"type": "disabled", "budget_tokens": 5}}, "thinking.type and thinking.budget_tokens"),
        ({"thinking_budget": 5, "thinking_token_budget": 6}, "thinking_budget and thinking_token_budget"),
        ({"include_reasoning": True, "reasoning": {"exclude": True}}, "contradicts reasoning.exclude"),
        ({"reasoning_effort": "huge"}, "reasoning_effort: 'huge' is not known"),
        ({"thinking_budget": -2}, "thinking_budget: must be at least -1"),
        ({"thinking": True}, "thinking: must be an object"),
        ({"reasoning": {"effort": "low", "tokens": 5}}, "reasoning.tokens: is no field"),
        ({"chat_template_kwargs": {"colour": "red"}}, "chat_template_kwargs.colour: is no field"),
    ],
)
def test_contradictions_and_unknown_values_are_refused_by_name(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(Refusal, match=problem):
        asked(**fields)


@pytest.mark.parametrize("fields", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}])
def test_who_does_not_want_to_see_the_thinking_does_not(fields: dict[str, Any]) -> None:
    assert not asked(**fields).shown.reasoning
    assert asked().shown.reasoning

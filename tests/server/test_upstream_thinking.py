"""Effort and budget mean the same at every upstream."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upstreams import request

from ponder.server.request import EFFORT_TOKENS
from ponder.server.upstream_thinking import (
    EFFORTS,
    FLAVOURS,
    Amount,
    Flavour,
    amount,
    effort_of,
    nearest,
    thinking_fields,
)
from ponder.types import Budget


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Amount()),
        ({"think": True}, Amount(True)),
        ({"strategy": "chain_of_thought"}, Amount(True)),
        ({"effort": "auto"}, Amount()),
        ({"effort": "medium"}, Amount(True, 2048, "medium")),
        ({"budget": Budget(thinking=2048)}, Amount(True, 2048, "medium")),
        ({"budget": Budget(thinking=3000)}, Amount(True, 3000, "medium")),
        ({"budget": Budget(thinking=50)}, Amount(True, 50, "minimal")),
        ({"budget": Budget(thinking=9000), "effort": "low"}, Amount(True, 1024, "low")),
        ({"budget": Budget(thinking=200), "effort": "high"}, Amount(True, 200, "minimal")),
        ({"effort": "none"}, Amount(False, 0, "none")),
        ({"think": False, "budget": Budget(thinking=0)}, Amount(False, 0, "none")),
        ({"strategy": "direct"}, Amount(False, 0, "none")),
    ],
)
def test_whichever_way_it_is_asked_for(fields: dict[str, Any], expected: Amount) -> None:
    assert amount(request(**fields)) == expected


@given(st.integers(0, 40_000))
def test_an_effort_never_buys_more_than_its_budget(tokens: int) -> None:
    effort = effort_of(tokens)
    assert EFFORT_TOKENS[effort] <= max(tokens, EFFORT_TOKENS["minimal"])
    larger = [bought for bought in EFFORT_TOKENS.values() if EFFORT_TOKENS[effort] < bought <= tokens]
    assert not larger


@given(st.sampled_from(list(EFFORT_TOKENS)), st.sets(st.sampled_from(list(EFFORT_TOKENS)), min_size=1))
def test_the_nearest_effort_is_known_and_not_above_where_that_can_be(effort: str, known: set[str]) -> None:
    found = nearest(effort, tuple(known))
    assert found in known
    smaller = [each for each in known - {"none"} if EFFORT_TOKENS[each] <= EFFORT_TOKENS[effort]]
    if smaller:
        assert EFFORT_TOKENS[found] == max(EFFORT_TOKENS[each] for each in smaller)
    if known - {"none"} and effort != "none":
        assert found != "none"
    if effort in known:
        assert found == effort


LOW, OFF = Amount(True, 1024, "low"), Amount(False, 0, "none")
TEMPLATE = {"enable_thinking": True, "thinking": True}
NONE = {"enable_thinking": False, "thinking": False}


@pytest.mark.parametrize(
    ("flavour", "wanted", "fields", "hard"),
    [
        ("openai", LOW, {"reasoning_effort": "low"}, "hint"),
        ("openai", OFF, {"reasoning_effort": "none"}, "hint"),
        ("openai", Amount(True, 16384, "max"), {"reasoning_effort": "xhigh"}, "hint"),
        ("ollama", Amount(True, 128, "minimal"), {"reasoning_effort": "low"}, "hint"),
        ("openrouter", LOW, {"reasoning": {"max_tokens": 1024}}, "hint"),
        ("openrouter", OFF, {"reasoning": {"effort": "none"}}, "hint"),
        ("openrouter", Amount(True), {"reasoning": {"enabled": True}}, "none"),
        ("deepseek", LOW, {"thinking": {"type": "enabled"}, "reasoning_effort": "high"}, "hint"),
        ("deepseek", OFF, {"thinking": {"type": "disabled"}}, "hard"),
        ("qwen", LOW, {"enable_thinking": True, "thinking_budget": 1024}, "hard"),
        ("qwen", OFF, {"enable_thinking": False}, "hard"),
        ("vllm", LOW, {"chat_template_kwargs": TEMPLATE, "thinking_token_budget": 1024}, "hard"),
        ("vllm", OFF, {"chat_template_kwargs": NONE, "thinking_token_budget": 0}, "hard"),
        ("vllm", Amount(True), {"chat_template_kwargs": TEMPLATE}, "none"),
        (
            "sglang",
            LOW,
            {
                "chat_template_kwargs": {**TEMPLATE, "thinking_budget": 1024},
                "custom_params": {"thinking_budget": 1024},
            },
            "hint",
        ),
        (
            "llama-server",
            LOW,
            {"chat_template_kwargs": TEMPLATE, "reasoning_budget_tokens": 1024, "thinking_budget_tokens": 1024},
            "hard",
        ),
    ],
)
def test_each_server_is_told_in_its_own_words(flavour: Flavour, wanted: Amount, fields: Any, hard: str) -> None:
    assert thinking_fields(wanted, flavour) == (fields, hard)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_nothing_is_said_where_nothing_was_asked(flavour: Flavour) -> None:
    assert thinking_fields(Amount(), flavour) == ({}, "none")


@pytest.mark.parametrize("flavour", list(EFFORTS))
def test_a_model_with_fewer_efforts_gets_one_of_them(flavour: Flavour) -> None:
    fields, _ = thinking_fields(Amount(True, 8192, "xhigh"), flavour, ("low", "medium"))
    if flavour == "openrouter":  # it takes tokens, which need no rounding
        assert fields == {"reasoning": {"max_tokens": 8192}}
    else:
        assert fields["reasoning_effort"] == "medium"

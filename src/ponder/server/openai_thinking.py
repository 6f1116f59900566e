"""How clients of OpenAI's chat ask for thinking: its own field, and those of other vendors which mean the same.

    reasoning_effort                                            OpenAI
    reasoning: {effort, max_tokens, enabled, exclude}           OpenRouter
    thinking: {type, budget_tokens}                             Anthropic, DeepSeek
    thinking_budget, thinking_level                             Gemini, SGLang, Qwen
    enable_thinking                                             Qwen
    chat_template_kwargs: {enable_thinking, thinking_budget}    vLLM, SGLang
    thinking_token_budget, include_reasoning                    vLLM
    reasoning_budget_tokens                                     llama.cpp

An effort is an effort and a budget is a budget, whatever they are called: requests that ask for the same are equal.
"""

from __future__ import annotations

from ponder.server.json_body import Fields
from ponder.server.wanted import EFFORTS, Said, effort_said, think_said, thinking_said

FIELDS = (
    "reasoning_effort",
    "reasoning",
    "thinking",
    "thinking_budget",
    "thinking_level",
    "enable_thinking",
    "chat_template_kwargs",
    "thinking_token_budget",
    "include_reasoning",
    "reasoning_budget_tokens",
)


def thinking_fields(body: Fields) -> list[Said]:
    """What these fields of a body ask for. Raises Refusal."""
    if body.values.keys().isdisjoint(FIELDS):
        return []
    said = [
        *_efforts(body, "reasoning_effort", "thinking_level"),
        *_budgets(body, "thinking_budget", "thinking_token_budget", "reasoning_budget_tokens"),
        *_switches(body, "enable_thinking"),
    ]
    if (reasoning := body.object("reasoning")) is not None:
        reasoning.only("effort", "max_tokens", "exclude", "enabled")
        said += [*_efforts(reasoning, "effort"), *_budgets(reasoning, "max_tokens"), *_switches(reasoning, "enabled")]
    if (kwargs := body.object("chat_template_kwargs")) is not None:
        kwargs.only("enable_thinking", "thinking", "thinking_budget", "reasoning_effort")
        said += [*_switches(kwargs, "enable_thinking", "thinking"), *_budgets(kwargs, "thinking_budget")]
        said += _efforts(kwargs, "reasoning_effort")
    if (thinking := body.object("thinking")) is not None:
        thinking.only("type", "budget_tokens")
        kind = thinking.one_of("type", ("enabled", "disabled", "adaptive", "auto"))
        if kind in ("enabled", "disabled"):
            said += think_said(kind == "enabled", thinking.at("type"))
        said += _budgets(thinking, "budget_tokens")
    return said


def shows_reasoning(body: Fields) -> bool:
    """Whether the client wants to see the thinking."""
    reasoning = body.object("reasoning")
    exclude = reasoning.flag("exclude") if reasoning else None
    include = body.flag("include_reasoning")
    if exclude is not None and include is not None and exclude == include:
        raise body.wrong("include_reasoning", "contradicts reasoning.exclude", "leave one of them out")
    return not exclude and include is not False


def _efforts(fields: Fields, *names: str) -> list[Said]:
    found = ((fields.one_of(name, EFFORTS), fields.at(name)) for name in names)
    return [said for effort, where in found if effort is not None for said in effort_said(effort, where)]


def _budgets(fields: Fields, *names: str) -> list[Said]:
    found = ((fields.whole(name, -1), fields.at(name)) for name in names)
    return [said for tokens, where in found if tokens is not None for said in thinking_said(tokens, where)]


def _switches(fields: Fields, *names: str) -> list[Said]:
    found = ((fields.flag(name), fields.at(name)) for name in names)
    return [said for think, where in found if think is not None for said in think_said(think, where)]

"""How much thinking a request asks for, in the words of each server: an effort and a budget mean the same everywhere.

    effort -> tokens    as `EFFORT_TOKENS` has it
    tokens -> effort    the largest effort that buys no more than these tokens, at least "minimal"

Where a server knows tokens it gets tokens, where it knows efforts it gets an effort. A budget is "hard" where the
server ends the thinking by itself once it is spent, a "hint" where the model may go beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ponder.server.request import EFFORT_TOKENS, Request
from ponder.server.upstream_dialect import Hard

Flavour = Literal["openai", "vllm", "sglang", "llama-server", "ollama", "openrouter", "deepseek", "qwen"]
FLAVOURS: tuple[Flavour, ...] = (
    "openai", "vllm", "sglang", "llama-server", "ollama", "openrouter", "deepseek", "qwen",
)  # fmt: skip

_DIRECT, _THINKING = "direct", "chain_of_thought"


@dataclass(frozen=True)
class Amount:
    """Thinking that is asked for. think: None leaves it to the model. tokens, effort: both, or neither is bounded."""

    think: bool | None = None
    tokens: int | None = None
    effort: str = ""

    @property
    def off(self) -> bool:
        """Whether there is to be none."""
        return self.think is False


def amount(request: Request) -> Amount:
    """What a request asks for, whichever way it says so."""
    tokens, effort = request.budget.thinking, request.effort if request.effort != "auto" else ""
    if request.think is False or effort == "none" or tokens == 0 or request.strategy == _DIRECT:
        return Amount(False, 0, "none")
    if tokens is not None:
        bounded = effort_of(tokens)
        smaller = effort in EFFORT_TOKENS and EFFORT_TOKENS[effort] < EFFORT_TOKENS[bounded]
        return Amount(True, min(tokens, EFFORT_TOKENS[effort]) if smaller else tokens, effort if smaller else bounded)
    if effort in EFFORT_TOKENS:
        return Amount(True, EFFORT_TOKENS[effort], effort)
    return Amount(True if request.think or request.strategy == _THINKING else None)


def effort_of(tokens: int) -> str:
    """The largest effort that buys no more than so many tokens, at least "minimal"."""
    if tokens <= 0:
        return "none"
    bought = [effort for effort, most in EFFORT_TOKENS.items() if 0 < most <= tokens]
    return bought[-1] if bought else "minimal"


def nearest(effort: str, known: Sequence[str]) -> str:
    """The effort among those that a server knows: the same, else the next smaller one, else its smallest.

    What switches thinking off stands for no other effort; "none" itself becomes the smallest where it is not known.
    """
    order = [each for each in EFFORT_TOKENS if each in known and (each != "none" or effort == "none")]
    smaller = [each for each in order if EFFORT_TOKENS[each] <= EFFORT_TOKENS[effort]]
    return smaller[-1] if smaller else order[0] if order else known[0]


EFFORTS: Mapping[Flavour, tuple[str, ...]] = {
    "openai": ("none", "minimal", "low", "medium", "high", "xhigh"),
    "ollama": ("none", "low", "medium", "high"),
    "openrouter": ("none", "minimal", "low", "medium", "high", "xhigh"),
    "deepseek": ("high", "max"),
}
"""The efforts that servers know, for those that know efforts; a configuration may name others."""


def thinking_fields(wanted: Amount, flavour: Flavour, efforts: Sequence[str] = ()) -> tuple[dict[str, Any], Hard]:
    """The fields of a body that ask for it, and what becomes of the budget."""
    known = tuple(efforts) or EFFORTS.get(flavour, ())
    if wanted.think is None:
        return {}, "none"
    if flavour in ("openai", "ollama"):
        return ({"reasoning_effort": nearest(wanted.effort, known)} if wanted.effort else {}), _hint(wanted)
    if flavour == "openrouter":
        return {"reasoning": _openrouter(wanted, known)}, _hint(wanted)
    if flavour == "deepseek":
        fields: dict[str, Any] = {"thinking": {"type": "disabled" if wanted.off else "enabled"}}
        more = {"reasoning_effort": nearest(wanted.effort, known)} if wanted.effort and not wanted.off else {}
        return fields | more, "hard" if wanted.off else _hint(wanted)
    if flavour == "qwen":
        bound = {} if wanted.off or wanted.tokens is None else {"thinking_budget": wanted.tokens}
        return {"enable_thinking": not wanted.off, **bound}, _hard(wanted)
    # Templates name the switch in one way or the other, and skip what they do not know.
    switch: dict[str, Any] = {"enable_thinking": not wanted.off, "thinking": not wanted.off}
    if wanted.tokens is None:
        return {"chat_template_kwargs": switch}, "none"
    if flavour == "vllm":
        return {"chat_template_kwargs": switch, "thinking_token_budget": wanted.tokens}, _hard(wanted)
    if flavour == "sglang":  # a wish to the template, and what --enable-strict-thinking obeys
        told = {"thinking_budget": wanted.tokens}
        return {"chat_template_kwargs": switch | ({} if wanted.off else told), "custom_params": told}, _hint(wanted)
    # Its versions call it by one name or the other.
    both = {"reasoning_budget_tokens": wanted.tokens, "thinking_budget_tokens": wanted.tokens}
    return {"chat_template_kwargs": switch, **both}, _hard(wanted)


def _openrouter(wanted: Amount, known: Sequence[str]) -> dict[str, Any]:
    if wanted.off:
        return {"effort": "none"} if "none" in known else {"enabled": False}
    return {"enabled": True} if wanted.tokens is None else {"max_tokens": wanted.tokens}


def _hint(wanted: Amount) -> Hard:
    return "none" if wanted.tokens is None else "hint"


def _hard(wanted: Amount) -> Hard:
    return "none" if wanted.tokens is None else "hard"

"""Rewards that teach a model to keep to a length. Lengths are in tokens, rewards pure numbers."""

from __future__ import annotations

from ponder.errors import InputError


def exact_length(correct: bool, length: int, target: int, *, alpha: float = 0.0003) -> float:
    """1[correct] - alpha |target - length|: be right, and use just as many tokens as were asked for.

    L1-Exact (Aggarwal and Welleck, "L1: Controlling How Long A Reasoning Model Thinks With Reinforcement
    Learning", 2025, equation 1), with its alpha. A wrong answer is told how far off its length was, too.
    """
    return float(correct) - alpha * abs(_length(target) - _length(length))


def maximum_length(correct: bool, length: int, limit: int, *, alpha: float = 0.0003, delta: float = 0.5) -> float:
    """1[correct] clip(alpha (limit - length) + delta, 0, 1): be right within `limit` tokens, the fewer the better.

    L1-Max (the same, equation 2), with its alpha and delta. The reward falls gently at the limit: an answer a
    little over it is still better than a wrong one.
    """
    return float(correct) * min(max(alpha * (_length(limit) - _length(length)) + delta, 0.0), 1.0)


def soft_overlong(length: int, limit: int, cache: int) -> float:
    """What is added to the reward of an answer that comes near the limit or passes it, from 0 down to -1.

        0                                   up to limit - cache
        ((limit - cache) - length) / cache  up to limit
        -1                                  above

    DAPO's soft overlong punishment (Yu et al., "DAPO", 2025, equation 13). With cache 0 it is a step.
    """
    if not 0 <= cache <= limit:
        raise InputError(f"a cache of {cache} tokens does not fit below {limit}", "give 0 <= cache <= limit")
    over = _length(length) - (limit - cache)
    if over <= 0:
        return 0.0
    return -over / cache if over <= cache else -1.0


def _length(tokens: int) -> int:
    if tokens < 0:
        raise InputError(f"{tokens} tokens are no length", "give at least 0")
    return tokens

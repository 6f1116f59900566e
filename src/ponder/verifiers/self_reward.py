"""A process reward from the model itself: after each step of its thinking it is asked whether the step is right.

    r_k = P(" Yes" | x y_1 ... y_k q) / (P(" Yes" | ...) + P(" No" | ...))

x: the prompt; y_k: step k; q: the question. No other model and no training is needed, only the step's and the
question's few tokens are computed, and the sample goes on from its own tokens as if nothing had been asked.

Sources: Kadavath et al., Language Models (Mostly) Know What They Know (2022), P(True); Lightman et al., Let's
Verify Step by Step (2023), for scoring steps.
"""

from __future__ import annotations

from collections.abc import Mapping

from ponder.chat.model import Model
from ponder.protocols import Verifier
from ponder.verifiers.reward_model import Aggregate, Reward

QUESTION = "\nIs this step correct? Answer:"


def process_reward(
    model: Model | None = None,
    *,
    question: str = QUESTION,
    yes: str = " Yes",
    no: str = " No",
    adapters: Mapping[str, float] | None = None,
    most_steps: int = 16,
    aggregate: Aggregate = "min",
) -> Verifier:
    """The probability of `yes` over `no` after each step and `question`; see `Reward` for the other settings.

    It works on a sample that is still being drawn, and asks of a longer one only what is new. Without a
    model it asks the one that a strategy runs on.
    """
    return Reward("process_reward", question, yes, no, model, adapters, most_steps, aggregate)

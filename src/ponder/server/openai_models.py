"""GET /v1/models and /v1/models/{id}: what is served, in OpenAI's form, with what ponder knows beyond it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ponder.server.backend import Served


def listed(models: Iterable[Served]) -> dict[str, Any]:
    """The list of models."""
    return {"object": "list", "data": [one(each) for each in models]}


def one(served: Served) -> dict[str, Any]:
    """A model. `max_model_len`: its context, as vLLM calls it. Prices: dollars per million tokens, null if unknown."""
    prices = {"prompt": served.prompt_price, "cached": served.cached_price, "output": served.output_price}
    inputs = ["text", *(["image"] if served.images else []), *(["audio"] if served.audio else [])]
    context = {"max_model_len": served.context} if served.context else {}
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": served.owned_by,
        **context,
        "ponder": {**served.details, "backend": served.backend, "inputs": inputs, "prices": prices},
    }

"""The list of models as the official client reads it."""

from __future__ import annotations

from openai.types import Model
from openai_client import whole_client

from ponder.server.backend import Served
from ponder.server.openai_models import listed, one

SMALL = Served("ponder-135m", "local", context=8192, created=1_700_000_000, details={"parameters": 135})
CLOUD = Served(
    "big", "cloud", owned_by="somebody", images=True, audio=True, prompt_price=1.0, cached_price=0.1, output_price=4.0
)


def test_the_client_lists_them() -> None:
    page = whole_client(listed([SMALL, CLOUD])).models.list()
    assert [(model.id, model.owned_by, model.created) for model in page] == [
        ("ponder-135m", "ponder", 1_700_000_000),
        ("big", "somebody", 0),
    ]
    assert listed([]) == {"object": "list", "data": []}


def test_a_model_tells_what_it_takes_and_what_it_costs() -> None:
    for served in (SMALL, CLOUD):
        Model.model_validate(one(served), strict=True)
    assert one(SMALL)["max_model_len"] == 8192
    assert "max_model_len" not in one(CLOUD)
    assert one(SMALL)["ponder"] == {
        "backend": "local",
        "inputs": ["text"],
        "prices": {"prompt": None, "cached": None, "output": None},
        "parameters": 135,
    }
    assert one(CLOUD)["ponder"]["inputs"] == ["text", "image", "audio"]
    assert one(CLOUD)["ponder"]["prices"] == {"prompt": 1.0, "cached": 0.1, "output": 4.0}

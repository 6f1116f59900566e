"""Lists of models tell nobody where upstreams and files lie."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import FakeServer
from upstreams import heard, request, upstream

from ponder.chat.model import model_of
from ponder.engine.scripted import ScriptedEngine, says
from ponder.server import openai_failures, pages
from ponder.server.app import App
from ponder.server.backend import Served
from ponder.server.desk import Desk
from ponder.server.endpoints import Endpoints
from ponder.server.local import Local
from ponder.server.openai_wire import Wire
from ponder.server.pages_feed import Feed
from ponder.server.public import name_of, public
from ponder.server.routing import Target, fallback
from ponder.server.signatures import Signer

WEIGHTS = "/srv/weights/tiny-q8.gguf"


def told(home: Path, *paths: str) -> list[httpx.Response]:
    """What a server with an upstream, a route and a model of its own says at these paths, names in place of {}."""

    async def work() -> list[httpx.Response]:
        async with FakeServer(models=[WEIGHTS]) as server:
            up = upstream(server.url, models={})
            inside = upstream(server.url.replace("http:", "https:"), name="inside", models={"big": "/mnt/big"})
            await up.start()
            own = Local(replace(model_of(ScriptedEngine(says("4"))), name=str(home / "mine.gguf")))
            desk = Desk([fallback("r", [Target(up, "tiny-q8.gguf"), Target(inside, "big")]), up, inside, own])
            routes = (*Endpoints(desk, Wire(), Signer(b"x" * 32)).routes(), *pages.routes(desk, Feed(), home=home))
            app: Any = App(routes, openai_failures.failure)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
                found = [await client.get(path) for path in paths]
            answered = await heard(up, request(model="tiny-q8.gguf"))
            assert answered.refusal is None
            assert server.asked[-1].body["model"] == WEIGHTS  # which is still asked for as it calls itself
            await asyncio.gather(up.close(), inside.close())
            return found

    return asyncio.run(work())


def test_no_list_of_models_tells_an_address_or_a_path(tmp_path: Path) -> None:
    paths = ("/v1/models", "/api/models", *(f"/v1/models/{name}" for name in ("r", "tiny-q8.gguf", "big")))
    for reply in told(tmp_path, *paths):
        assert reply.status_code == 200, reply.text
        for secret in ("127.0.0.1", "https:", "/srv", "weights", "/mnt", str(tmp_path)):
            assert secret not in reply.text, (reply.url, secret)
    (models,) = told(tmp_path, "/v1/models")
    assert [each["id"] for each in models.json()["data"]] == ["r", "tiny-q8.gguf", "big", "mine.gguf"]


def test_what_is_for_everybody_stays() -> None:
    details = {"parameters": 7, "provider": "anthropic", "model": "org/big:free", "targets": ["a/b"], "engine": "gguf"}
    assert public(Served("m", "up", details=details)).details == details
    hidden = {"provider": "https://llm.corp/v1", "model": "../big.gguf", "targets": ["http://10.0.0.1"]}
    assert public(Served("m", "up", details=hidden)).details == {}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("org/big:free", "org/big:free"),
        ("/srv/models/big.gguf", "big.gguf"),
        ("./big", "big"),
        ("~/m/big", "big"),
        (r"C:\models\big.gguf", "big.gguf"),
        ("D:/models/big.gguf", "big.gguf"),
        ("/", "/"),
    ],
)
def test_a_path_becomes_its_last_part(model: str, name: str) -> None:
    assert name_of(model) == name


@given(st.text(st.sampled_from("aZ9-._:/\\~ "), max_size=20))
def test_a_name_is_never_lost(model: str) -> None:
    assert bool(name_of(model)) == bool(model)
    assert name_of(model) in model

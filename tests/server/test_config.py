"""The file of `ponder serve --config`: read, refused in one line, and made into backends."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from servers import FakeServer
from upstreams import heard, request

from ponder.errors import InputError
from ponder.server.build import Settings
from ponder.server.config import Config, opened, parsed, read
from ponder.server.routing_cascade import Cascade
from ponder.server.upstream_anthropic import Anthropic
from ponder.server.upstream_gemini import Gemini
from ponder.server.upstream_openai import OpenAI

UP: dict[str, Any] = {"name": "up", "url": "http://127.0.0.1:1/v1"}


def upstreams(*tables: dict[str, Any], **more: Any) -> Config:
    return parsed({"upstream": [UP | table for table in tables], **more})


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(
        """
        [server]
        port = 9000
        keys = true
        models = ["ponder-135m"]

        [[upstream]]
        name = "cloud"
        url = "https://api.example.com/v1"
        flavour = "deepseek"
        key_env = "CLOUD_KEY"
        models = { large = "large-2026" }
        efforts = ["high"]
        timeouts = { first = 30 }
        breaker = { failures = 2 }

        [[upstream]]
        name = "claude"
        dialect = "anthropic"
        flavour = "adaptive"
        url = "https://other.example.com/v1"
        models = ["sonnet"]

        [[upstream]]
        name = "google"
        dialect = "gemini"
        url = "https://third.example.com/v1beta"

        [[route]]
        model = "chat"
        to = ["cloud/large", "sonnet"]
        how = "weighted"
        weights = [3, 1]

        [prices]
        large = { prompt = 2.5, output = 10 }
        """
    )
    config = read(path)
    cloud, claude, google = config.upstream
    assert cloud.made() == OpenAI("deepseek", ("high",))
    assert (cloud.models, cloud.timeouts.first, cloud.timeouts.connect) == ({"large": "large-2026"}, 30, 10)
    assert claude.made() == Anthropic("adaptive")
    assert claude.models == {"sonnet": "sonnet"}
    assert google.made() == Gemini("budget")
    assert config.prices["large"].output == 10


def test_the_table_of_the_server_has_the_fields_of_its_settings() -> None:
    config = parsed({"server": {"port": 9000, "models": ["m"], "keys": True, "running": 3, "drain": 1}})
    settings = Settings(**config.settings())
    assert (settings.port, settings.models, settings.keys, settings.running, settings.drain) == (
        9000,
        ("m",),
        True,
        3,
        1,
    )
    names = {field.name for field in dataclasses.fields(Settings)}
    assert set(config.settings()) <= names


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"serve": {}}, "unknown key serve. did you mean server?"),
        ({"server": {"prot": 1}}, "server.prot. did you mean port?"),
        ({"upstream": [UP | {"key": "x"}]}, r"upstream\[0\].key. did you mean key_env?"),
        ({"upstream": [UP | {"timeouts": {"fist": 1}}]}, "fist. did you mean first?"),
        ({"upstream": [UP | {"breaker": {"zzzzz": 1}}]}, "choose from failures, rate"),
        ({"route": [{"modle": "x", "to": ["a"]}]}, "model: field required|did you mean model"),
        ({"prices": {"m": {"prompt": 1, "output": 1, "cache": 1}}}, "did you mean cached?"),
        ({"server": {"port": 70000}}, "server.port: input should be less than"),
        ({"upstream": [{"name": "x"}]}, r"upstream\[0\].url: field required"),
        ({"upstream": [UP | {"url": "http://u:p@x/"}]}, "more than a place"),
        ({"upstream": [UP | {"name": "a/b"}]}, "name"),
        ({"upstream": [UP | {"flavour": "vlm"}]}, "choose from openai, vllm"),
        ({"upstream": [UP | {"dialect": "gemini", "flavour": "vllm"}]}, "choose from budget, level"),
        ({"upstream": [UP | {"efforts": ["huge"]}]}, "'huge'"),
        ({"upstream": [UP | {"dialect": "anthropic", "budget": "hard"}]}, "budget is for"),
        ({"upstream": [UP | {"breaker": {"pause": 9, "longest": 3}}]}, "longest is below pause"),
        ({"upstream": [UP, UP]}, "two upstreams 'up'"),
        ({"route": [{"model": "r", "to": []}]}, "to"),
        ({"route": [{"model": "r", "to": ["a", "a"]}]}, "twice"),
        ({"route": [{"model": "r", "to": ["a"], "how": "cascade"}]}, "two places"),
        ({"route": [{"model": "r", "to": ["a"], "weights": [1]}]}, "weighted"),
        ({"route": [{"model": "r", "to": ["a"], "threshold": 1}]}, "cascade"),
        ({"route": [{"model": "r", "to": ["a"]}] * 2}, "two routes 'r'"),
        ({"prices": {"m": {"prompt": -1, "output": 1}}}, "prices.m.prompt"),
        ({"prices": {"m": {"prompt": float("nan"), "output": 1}}}, "finite"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(document: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parsed(document)
    assert "\n" not in str(caught.value)


def test_a_secret_in_the_wrong_place_is_not_repeated() -> None:
    for table in ({"key": "s3cret"}, {"url": "http://x:s3cret@x/"}, {"timeouts": "s3cret"}, {"weight": "s3cret"}):
        with pytest.raises(InputError) as caught:
            upstreams(table)
        assert "s3cret" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("a = ")
    with pytest.raises(InputError, match="no TOML"):
        read(bad)


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with FakeServer(key="s3cret") as server:
            config = upstreams({"url": server.url, "key_env": "UP_KEY", "check": 0})
            with pytest.raises(InputError, match="UP_KEY is not set"):
                await opened(config)
            monkeypatch.setenv("UP_KEY", "s3cret\n")
            found = await opened(config)
            assert (await heard(found.backends[0])).refusal is None
            assert "s3cret" not in repr(found)
            await found.close()

    monkeypatch.delenv("UP_KEY", raising=False)
    asyncio.run(run())


def test_routes_lead_where_they_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PONDER_HOME", str(tmp_path))

    async def run() -> None:
        async with FakeServer(replies=("one",)) as one, FakeServer(replies=("two",), models=("big", "tiny")) as two:
            config = upstreams(
                {"name": "one", "url": one.url, "check": 0},
                {"name": "two", "url": two.url, "check": 0, "weight": 2},
                route=[
                    {"model": "by-name", "to": ["two/big"]},
                    {"model": "by-model", "to": ["big"]},
                    {"model": "by-upstream", "to": ["one"]},
                    {"model": "tiny", "to": ["two", "one"]},
                    {"model": "spread", "to": ["one/tiny", "two/tiny"], "how": "weighted"},
                    {"model": "cheap", "to": ["one/tiny", "big"], "how": "cheapest"},
                    {"model": "sure", "to": ["one/tiny", "big"], "how": "cascade", "threshold": 0.5},
                    {
                        "model": "judged",
                        "to": ["one/tiny", "big"],
                        "how": "cascade",
                        "threshold": 1,
                        "verifier": "choice",
                    },
                ],
                prices={"big": {"prompt": 1, "output": 1}},
            )
            found = await opened(config)
            by_model = {backend.name: backend for backend in found.routes}
            replies = {}
            for name, backend in by_model.items():
                replies[name] = (await heard(backend, request(model=name))).reply.choices[0].content
            assert replies == {
                "by-name": "two",
                "by-model": "two",
                "by-upstream": "one",
                "tiny": "two",
                "spread": "two",
                "cheap": "two",
                "sure": "two",
                "judged": "two",
            }
            assert isinstance(by_model["sure"], Cascade)
            assert [backend.name for backend in found.backends][-2:] == ["one", "two"]
            await found.close()
            for place, message in (
                ("bgi", "did you mean"),
                ("two/zzz", "choose from big, tiny"),
                ("zzzzzzz", "leads nowhere"),
            ):
                bad = upstreams({"name": "two", "url": two.url, "check": 0}, route=[{"model": "r", "to": [place]}])
                with pytest.raises(InputError, match=message):
                    await opened(bad)

    asyncio.run(run())


def test_an_upstream_that_is_down_is_no_error() -> None:
    async def run() -> None:
        config = upstreams({"check": 0, "timeouts": {"connect": 1}}, route=[{"model": "r", "to": ["up/m"]}])
        found = await opened(config)
        assert found.upstreams[0].healthy is False
        refused = await heard(found.routes[0], request(model="r"))
        assert refused.refusal is not None
        assert refused.refusal.status in (404, 503)
        await found.close()

    asyncio.run(run())

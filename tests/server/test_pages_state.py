"""What the server tells of its upstreams and of drift, in its pages and its metrics, and who may end an alarm."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from drifting import condition, drifted
from pages_server import pages_of
from servers import FakeServer
from service import scripted, service

from ponder.ops.drift import Drift
from ponder.ops.keys import Keys
from ponder.server.build import Settings, built
from ponder.server.config import parsed

ASKED = {"model": "ponder-135m", "prompt": "support v3"}


def test_upstreams_and_alarms_are_told(tmp_path: Path) -> None:
    with pages_of(tmp_path, "4", condition=condition(drifted())) as server:
        state = httpx.get(f"{server.url}/api/state").json()
        with httpx.stream("GET", f"{server.url}/api/live") as live:
            lines = live.iter_lines()
            next(line for line in lines if line == "event: state")
            assert json.loads(next(lines).removeprefix("data:")) == state
    assert (state["running"], state["waiting"], state["open"]) == (0, 0, True)
    well, ill = state["upstreams"]
    assert (well["name"], well["state"], well["error"]) == ("well", "closed", "")
    assert (ill["name"], ill["state"], ill["error"]) == ("ill", "open", "timeout")
    assert abs(ill["since"] - time.time()) < 60
    (alarm,) = state["alarms"]
    told = {name: alarm[name] for name in ("model", "prompt", "signal", "direction", "expected", "seen")}
    seen = {"expected": "median 100 tokens", "seen": "median 900 tokens"}
    assert told == {**ASKED, "signal": "length", "direction": "up", **seen}
    assert abs(alarm["since"] - time.time()) < 60


def test_an_alarm_is_ended_by_hand(tmp_path: Path) -> None:
    drift, changed = drifted(), list[int]()
    with pages_of(tmp_path, "4", condition=condition(drift, changed=lambda: changed.append(1))) as server:
        url = f"{server.url}/api/drift/restart"
        for wrong in ({"model": "ponder-135m"}, {"model": "", "prompt": ""}, {**ASKED, "prompt": "support v2"}):
            reply = httpx.post(url, json=wrong)
            assert reply.status_code == 404, reply.text
        for body in (b"", b"[]", b'{"model": 1}', b'{"all": "yes"}', b"[" * 10_000, b"\xff"):
            assert httpx.post(url, content=body).status_code == 400
        assert httpx.post(url, content=b'{"model": "' + b"x" * 20_000 + b'"}').status_code == 413
        assert drift.alarms()
        assert not changed
        assert httpx.post(url, json=ASKED).json()["alarms"] == []
        assert not drift.alarms()
        assert changed == [1]
        assert httpx.post(url, json=ASKED).status_code == 404


def test_no_page_of_another_server_ends_an_alarm(tmp_path: Path) -> None:
    drift = drifted()
    with pages_of(tmp_path, "4", condition=condition(drift)) as server:
        url = f"{server.url}/api/drift/restart"
        for origin in ("https://evil.example", "null", "http://localhost:3000", f"https://localhost:{server.port}"):
            assert httpx.post(url, json=ASKED, headers={"origin": origin}).status_code == 403
        assert drift.alarms()
        assert httpx.post(url, json=ASKED, headers={"origin": server.url}).status_code == 200


def test_a_server_with_keys_wants_one(tmp_path: Path) -> None:
    with Keys.open(tmp_path / "ledger.db") as keys:
        _, secret = keys.add("alice")
    drift = drifted()
    with pages_of(tmp_path, "4", keys=True, condition=condition(drift)) as server:
        url = f"{server.url}/api/drift/restart"
        assert httpx.post(url, json=ASKED).status_code == 401
        assert httpx.get(f"{server.url}/api/state").status_code == 401
        assert drift.alarms()
        assert httpx.post(url, json=ASKED, headers={"authorization": f"Bearer {secret}"}).status_code == 200
        assert not drift.alarms()


# ---------------------------------------------------------------- the metrics of a whole server


def test_a_scrape_tells_what_runs_and_waits(ponder_home: Path) -> None:
    def gauges(url: str) -> tuple[float, ...]:
        lines = dict(line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics").text.splitlines() if line[0] != "#")
        return tuple(float(lines[f"ponder:num_requests_{name}"]) for name in ("running", "waiting"))

    body = {"model": "m", "messages": [{"role": "user", "content": "2 + 2?"}], "stream": True}
    script = {"version": 1, "replies": [{"say": "0123456789", "fault": {"kind": "hang", "at": 1, "times": None}}]}
    (ponder_home / "hangs.json").write_text(json.dumps(script))

    async def work(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            body["model"] = (await client.get("/v1/models")).json()["data"][0]["id"]
            async with client.stream("POST", "/v1/chat/completions", json=body) as first:
                lines = first.aiter_lines()  # which would close the response if it went
                await anext(lines)
                second = asyncio.create_task(client.post("/v1/chat/completions", json=body))
                for _ in range(100):
                    if (seen := await asyncio.to_thread(gauges, url)) == (1, 1):
                        break
                    await asyncio.sleep(0.02)
                assert seen == (1, 1)
                second.cancel()
                await asyncio.gather(second, return_exceptions=True)
        for _ in range(100):
            if (seen := await asyncio.to_thread(gauges, url)) == (0, 0):
                break
            await asyncio.sleep(0.02)
        assert seen == (0, 0)

    with service(models=[f"scripted:{ponder_home / 'hangs.json'}"], running=1) as server:
        assert gauges(server.url) == (0, 0)
        asyncio.run(work(server.url))


def test_the_metrics_tell_of_upstreams_and_alarms(ponder_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drifted().save(ponder_home / "drift.json")
    window = Drift.load
    monkeypatch.setattr(Drift, "load", lambda path: window(path, drifted().settings))

    async def work() -> None:
        async with FakeServer() as up:
            upstream: dict[str, Any] = {"name": "cloud", "url": up.url, "breaker": {"failures": 1}}
            config = parsed({"upstream": [upstream]})
            async with built(Settings(models=(), config=config)) as server:
                app: Any = server.app
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                    before = (await client.get("/metrics")).text
                    await up.__aexit__()
                    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
                    assert (await client.post("/v1/chat/completions", json=body)).status_code == 503
                    after = (await client.get("/metrics")).text
                    state = (await client.get("/api/state")).json()
                    assert (await client.post("/api/drift/restart", json=ASKED)).status_code == 200
                    last = (await client.get("/metrics")).text
        assert 'ponder:upstream_state{backend="cloud",state="closed"} 1.0' in before
        assert 'ponder:upstream_state{backend="cloud",state="closed"} 0.0' in after
        assert 'ponder:upstream_state{backend="cloud",state="open"} 1.0' in after
        assert [(each["name"], each["error"]) for each in state["upstreams"]] == [("cloud", "upstream_unreachable")]
        alarm = 'prompt="support v3",signal="length"} 1.0'
        assert alarm in before
        assert alarm not in last

    asyncio.run(work())
    assert [each.stream.model for each in Drift.load(ponder_home / "drift.json").alarms()] == []


def test_a_server_without_upstreams_has_none_to_tell(ponder_home: Path) -> None:
    with service(lambda: [scripted("4")]) as server:
        state = httpx.get(f"{server.url}/api/state").json()
        assert (state["upstreams"], state["alarms"]) == ([], [])

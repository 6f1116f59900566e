"""The routes of the pages: their files, what may be asked for, and who is told what."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from pages_server import MODEL, pages_of, question
from serving import Serving

from ponder.evals.study import Study, dump
from ponder.ops.finished import Finished
from ponder.ops.keys import Keys
from ponder.ops.ledger import Ledger
from ponder.ops.prompt import Turn
from ponder.ops.prompts import Prompts
from ponder.ops.store import Store
from ponder.server import pages
from ponder.server.pages_api import STRATEGIES
from ponder.server.pages_feed import Feed
from ponder.server.request import Caller
from ponder.server.wanted import strategy_text
from ponder.strategies import naming
from ponder.types import Question, Trace, user

FOLDER = Path(str(files("ponder.server"))) / "pages"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Serving]:
    with pages_of(home, "<think>2 + 2 = 4.</think>4") as server:
        yield server


def chat(server: Serving, text: str = "2 + 2?", key: str = "", **more: object) -> str:
    """The id of a request that was answered."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json={**question(text), **more}, headers=headers)
    assert reply.status_code == 200, reply.text
    return str(reply.headers["x-request-id"])


# ---------------------------------------------------------------- files


def test_every_file_comes_with_a_policy_that_runs_nothing_else(server: Serving) -> None:
    for name in ["", *(f"pages/{path.name}" for path in FOLDER.iterdir())]:
        reply = httpx.get(f"{server.url}/{name}")
        assert reply.status_code == 200
        policy = reply.headers["content-security-policy"]
        for rule in (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ):
            assert rule in policy
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-type"] == pages.KINDS[Path(name or "index.html").suffix]


def test_a_file_that_is_known_is_not_sent_again(server: Serving) -> None:
    first = httpx.get(f"{server.url}/pages/app.js")
    for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = httpx.get(f"{server.url}/pages/app.js", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    assert httpx.get(f"{server.url}/pages/app.js", headers={"if-none-match": '"other"'}).status_code == 200
    assert httpx.head(f"{server.url}/pages/app.js").headers["etag"] == first.headers["etag"]


@pytest.mark.parametrize(
    "path",
    [
        "pages/../pages.py",
        "pages/%2e%2e%2fpages.py",
        "pages/..%2fpages_api.py",
        "pages//etc/passwd",
        "pages/%2fetc%2fpasswd",
        "pages/",
        "pages/app.js%00.html",
        "pages/..",
        "pages/%5c..%5cpages.py",
        "pages/index.html/",
    ],
)
def test_no_path_leads_out_of_the_folder(server: Serving, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)  # which sends a path as it stands
    connection.request("GET", f"/{path}")
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    assert reply.status == 404
    assert "import" not in text
    assert "root:" not in text


def test_no_file_makes_markup_of_text_or_loads_from_elsewhere() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "DOMParser",
        ):
            assert word not in text, path
        assert not re.search(r"https?://", text), path
        if path.suffix == ".html":
            assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*src=)", text)


# ---------------------------------------------------------------- what pages ask for


def test_the_models_and_the_strategies_are_told(server: Serving) -> None:
    reply = httpx.get(f"{server.url}/api/models")
    assert [each["id"] for each in reply.json()["models"]] == [MODEL]
    assert reply.headers["cache-control"] == "no-store"
    assert [each["name"] for each in reply.json()["strategies"]] == list(STRATEGIES)


def test_every_strategy_that_is_offered_is_one_and_none_is_missing() -> None:
    for text in STRATEGIES:
        assert strategy_text(text, "strategy") == text
        if text != "auto":
            naming.strategy_named(text)
    offered = {text.partition("(")[0] for text in STRATEGIES}
    assert {name for name in naming.names() if name not in ("self_consistency", "beam")} <= offered


def test_traces_are_listed_found_and_told_without_tokens(server: Serving) -> None:
    id = chat(server, "where is Waldo?", ponder={"strategy": "vote(3)"})
    chat(server, "another")
    found = httpx.get(f"{server.url}/api/traces?search=waldo").json()
    assert [each["id"] for each in found] == [id]
    assert httpx.get(f"{server.url}/api/traces?state=failed").json() == []
    assert len(httpx.get(f"{server.url}/api/traces?limit=1").json()) == 1
    trace = httpx.get(f"{server.url}/api/traces/{id}").json()
    assert trace["answer"] == found[0]["answer"] != ""
    assert len(trace["samples"]) == 3
    assert all(each["tokens"] > 5 and "ids" not in each and "logprobs" not in each for each in trace["samples"])
    ended = [each["sample"] for each in trace["events"] if each["type"] == "sample_finished"]
    assert ended
    assert all("ids" not in each and each["tokens"] for each in ended)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("traces/nothing", 404),
        ("traces?state=odd", 400),
        ("traces?limit=many", 400),
        ("traces?limit=nan", 400),
        ("costs?days=-1", 400),
        ("study?id=file:../../etc/passwd", 404),
        ("study?id=nothing", 404),
        ("prompt?name=no", 404),
        ("prompt?name=a@@b", 404),
        ("nothing", 404),
    ],
)
def test_what_is_not_there_is_a_plain_refusal(server: Serving, path: str, status: int) -> None:
    reply = httpx.get(f"{server.url}/api/{path}")
    assert reply.status_code == status
    assert reply.json()["error"]["message"]


def test_costs_are_told_by_all_that_they_can_be(server: Serving) -> None:
    chat(server)
    costs = httpx.get(f"{server.url}/api/costs").json()
    assert [each["name"] for each in costs["model"]] == [MODEL]
    assert costs["day"][0]["name"] == time.strftime("%Y-%m-%d", time.gmtime())
    assert costs["model"][0]["completion"] > 0
    assert {"key", "prompt", "strategy"} <= set(costs)


def test_prompts_are_told_with_their_versions_and_labels(server: Serving, home: Path) -> None:
    with Prompts.open(home / "prompts.db") as prompts:
        prompts.put("support", [Turn("system", "Be short."), Turn("user", "{{ ask }}")])
        prompts.put("support", [Turn("system", "Be kind."), Turn("user", "{{ ask }}")], note="kinder")
        prompts.tag("support@1", "prod")
    (head,) = httpx.get(f"{server.url}/api/prompts").json()
    assert (head["name"], head["versions"], head["labels"]) == ("support", 2, {"prod": 1})
    texts = httpx.get(f"{server.url}/api/prompt?name=support").json()
    assert [each["messages"][0] for each in texts] == [["system", "Be short."], ["system", "Be kind."]]
    assert texts[1]["note"] == "kinder"
    assert texts[1]["variables"] == ["ask"]


def test_studies_are_told_and_a_damaged_one_is_refused_in_one_line(server: Serving, home: Path) -> None:
    (home / "studies" / "mine").mkdir(parents=True)
    dump(Study("arithmetic", MODEL, ("a", "b"), 0.25, "4", ()), home / "studies" / "mine" / "study.json")
    (home / "studies" / "bad.json").write_text("{}")
    assert {each["id"] for each in httpx.get(f"{server.url}/api/studies").json()} == {"file:mine", "file:bad"}
    study = httpx.get(f"{server.url}/api/study", params={"id": "file:mine"}).json()
    assert (study["task"], study["floor"], study["questions"], study["series"]) == ("arithmetic", 0.25, 2, [])
    bad = httpx.get(f"{server.url}/api/study", params={"id": "file:bad"})
    assert bad.status_code == 400
    assert "bad.json" in bad.json()["error"]["message"]


def test_requests_are_told_live_and_the_stream_ends_when_the_server_drains(tmp_path: Path) -> None:
    desks = []
    with pages_of(tmp_path, "4", on_made=lambda desk, feed: desks.append(desk)) as server:
        first = chat(server)
        with httpx.stream("GET", f"{server.url}/api/live", timeout=20) as live:
            lines = live.iter_lines()
            seen = next(line for line in lines if line.startswith("data:"))
            assert first in seen
            second = chat(server)
            assert any(second in line and first not in line for line in lines)
            server.on_loop(lambda: desks[0].drain(1))
            assert any('"open":false' in line for line in lines)
            assert not [line for line in lines if line.startswith("data:")], "the stream goes on"


# ---------------------------------------------------------------- who is told what


def test_a_key_is_told_of_its_own_requests_alone(tmp_path: Path) -> None:
    with Keys.open(tmp_path / "ledger.db") as keys:
        (alice, hers), (_, his) = keys.add("alice"), keys.add("bob")
    with Store.open(tmp_path / "ponder.db") as store:
        old = Trace("older", Question((user("of nobody's key"),)), answer="x")
        store.begin(old).finish(old)
    with pages_of(tmp_path, "4", keys=True) as server:
        assert httpx.get(f"{server.url}/").status_code == 200
        for path in ("models", "costs", "traces", "traces/x", "prompts", "studies", "live"):
            assert httpx.get(f"{server.url}/api/{path}").status_code == 401
        of_alice, of_bob = chat(server, "hers", hers), chat(server, "his", his)

        def get(path: str, key: str) -> httpx.Response:
            headers = {"authorization": f"Bearer {key}", "host": "ponder.example"}
            return httpx.get(f"{server.url}/api/{path}", headers=headers)

        assert [each["id"] for each in get("traces", hers).json()] == [of_alice]
        assert get(f"traces/{of_alice}", hers).status_code == 200
        for id in (of_bob, of_bob[:8], of_alice[:-2], "older", "req_", "nothing"):
            reply = get(f"traces/{id}", hers)
            assert reply.status_code == 404
            assert of_bob not in reply.text.replace(id, "")
        costs = get("costs", hers).json()
        assert [each["requests"] for each in costs["model"]] == [1]
        assert costs["names"] == {alice.id: "alice"}
        assert get("models", his).json()["key"] == "bob"
        live = httpx.stream("GET", f"{server.url}/api/live", headers={"authorization": f"Bearer {his}"})
        with live as reply:
            seen = next(line for line in reply.iter_lines() if line.startswith("data:"))
        assert of_bob in seen
        assert of_alice not in seen


def test_costs_of_a_key_add_up_as_the_ledger_does(tmp_path: Path) -> None:
    with Keys.open(tmp_path / "ledger.db") as keys:
        _, secret = keys.add("alice")
    with pages_of(tmp_path, "4", keys=True) as server:
        for _ in range(3):
            chat(server, key=secret)
        costs = httpx.get(f"{server.url}/api/costs", headers={"authorization": f"Bearer {secret}"}).json()
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        for by in ("model", "day", "strategy"):
            for mine, whole in zip(costs[by], ledger.totals(by), strict=True):  # type: ignore[arg-type]
                assert mine == {name: getattr(whole, name) for name in mine}


# ---------------------------------------------------------------- the feed


def test_the_feed_keeps_the_newest_and_tells_what_is_new() -> None:
    feed = Feed(most=3, clock=lambda: 5.0)
    for number in range(5):
        feed.finished(Finished(f"r{number}", key_id="a" if number % 2 else "b"))
    everybody, a = Caller(), Caller("a")
    assert [each.request.id for each in feed.after(0, everybody)] == ["r2", "r3", "r4"]
    assert [each.request.id for each in feed.after(4, everybody)] == ["r4"]
    assert [each.request.id for each in feed.after(0, a)] == ["r3"]
    assert feed.after(5, everybody) == []
    assert feed.after(4, everybody)[0].document()["when"] == 5.0

"""A server without keys is asked by its own machine, and by no page of another site that a browser there shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from service import scripted, service
from serving import Serving

from ponder.ops.keys import Keys
from ponder.server.doors import Nearby
from ponder.server.failures import Refusal

QUESTION = {"model": "m", "messages": [{"role": "user", "content": "2 + 2?"}]}
FOREIGN = (
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1.evil.example",
    "localhost.evil.example:{port}",
    "[::2]",
    "",
)
OWN = ("127.0.0.1:{port}", "localhost:{port}", "LOCALHOST", "[::1]:{port}", "[::1]", "127.8.8.8")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PONDER_HOME", str(tmp_path_factory.mktemp("home")))
        with service(lambda: [scripted("4")]) as server:
            yield server


def asked(server: Serving, **headers: str) -> list[int]:
    """The statuses of a chat, of PATHS and of PROBES."""
    told = {name: value.replace("{port}", str(server.port)) for name, value in headers.items()}
    chat = httpx.post(f"{server.url}/v1/chat/completions", json=QUESTION, headers=told)
    found = [httpx.get(f"{server.url}{path}", headers=told) for path in (*PATHS, *PROBES)]
    return [reply.status_code for reply in (chat, *found)]


PATHS = ("/v1/models", "/api/models", "/api/traces", "/openapi.json", "/", "/pages/traces.js", "/metrics")
PROBES = ("/health", "/ready")
SERVED = [200] * (1 + len(PATHS) + len(PROBES))
REFUSED = [403] * (1 + len(PATHS)) + [200] * len(PROBES)


@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_name_that_points_here_is_refused_everywhere(server: Serving, host: str) -> None:
    assert asked(server, host=host) == REFUSED


@pytest.mark.parametrize("host", OWN)
def test_the_machines_own_names_are_served(server: Serving, host: str) -> None:
    assert asked(server, host=host) == SERVED


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://evil.example:{port}", "null", "file://", "http://[", "", "localhost"]
)
def test_a_page_of_another_site_is_refused(server: Serving, origin: str) -> None:
    assert asked(server, origin=origin) == REFUSED


@pytest.mark.parametrize("origin", ["http://127.0.0.1:{port}", "http://localhost:3000", "http://[::1]:{port}"])
def test_pages_of_this_machine_are_served(server: Serving, origin: str) -> None:
    assert asked(server, origin=origin) == SERVED


def test_who_has_a_key_may_call_the_server_by_any_name(ponder_home: Path) -> None:
    with Keys.open() as keys:
        _, secret = keys.add("alice")
    with service(lambda: [scripted("4")]) as server:
        told = {"host": "ponder.example", "origin": "https://chat.example"}
        assert asked(server, **told) == [401] * 4 + [200] * (len(SERVED) - 4)
        assert asked(server, authorization=f"Bearer {secret}", **told) == SERVED


def test_a_refusal_says_in_one_line_what_mends_it() -> None:
    with pytest.raises(Refusal) as caught:
        Nearby().caller({"host": "evil.example\nx" * 99})
    assert "\n" not in str(caught.value)
    assert "ponder keys add" in str(caught.value)
    assert len(str(caught.value)) < 300

"""Names on a model hub, against a loopback server that speaks as much of the hub's interface as is needed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny_weights import model_bytes

from ponder.engine.hub import HubFile, choose, fetch, parse
from ponder.errors import WeightsError

COMMIT = "c" * 40
FILES = {
    "README.md": b"hello",
    "tiny.Q4_K.gguf": model_bytes(64, 1),
    "tiny.Q4_K_M.gguf": model_bytes(64, 2),
    "deep/tiny.F16-00001-of-00002.gguf": model_bytes(64, 3),
    "deep/tiny.F16-00002-of-00002.gguf": model_bytes(64, 4),
    "fake.Q8_0.gguf": b"an error page",
}


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path.startswith("/api/models/some/tiny"):
            siblings = [{"rfilename": name} for name in FILES]
            self._send(json.dumps({"id": "some/tiny", "sha": COMMIT, "siblings": siblings}).encode())
        elif self.path.startswith("/some/tiny/resolve/"):
            self._send(FILES[self.path.split("/", 5)[5]])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def hub() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def get(hub, tmp_path):
    """Fetches from this hub into an empty cache; `there=False` from one that nothing answers for."""

    def fetch_one(name: str, there: bool = True, **more: Any) -> Path:
        port = hub.server_address[1] if there else 9
        wanted = parse(name)
        assert wanted
        return fetch(wanted, endpoint=f"http://127.0.0.1:{port}", cache_dir=tmp_path / "hub", **more)

    return fetch_one


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("some/tiny/tiny.Q4_K.gguf", "tiny.Q4_K.gguf"),
        ("some/tiny:q4_k_m", "tiny.Q4_K_M.gguf"),
        ("some/tiny:F16", "deep/tiny.F16-00001-of-00002.gguf"),
    ],
)
def test_what_was_fetched_is_found_again_without_the_hub(get, capfd, name, file):
    seen: list[tuple[str, int, int | None]] = []
    path = get(name, progress=lambda *args: seen.append(args))
    assert path.read_bytes() == FILES[file]
    assert (seen[-1][1], seen[-1][2]) == (len(FILES[file]), len(FILES[file]))
    assert get(name, there=False) == path
    assert capfd.readouterr() == ("", "")


def test_all_shards_are_fetched(get):
    second = get("some/tiny:F16").with_name("tiny.F16-00002-of-00002.gguf")
    assert second.read_bytes() == FILES["deep/tiny.F16-00002-of-00002.gguf"]
    second.unlink()
    with pytest.raises(WeightsError, match="is not cached"):
        get("some/tiny:F16", there=False)


def test_another_file_of_a_cached_repository_is_not_taken_for_it(get):
    get("some/tiny:Q4_K")
    with pytest.raises(WeightsError, match="is not cached"):
        get("some/tiny:Q4_K_M", there=False)


def test_force_asks_the_hub_again(get, hub):
    get("some/tiny:Q4_K")
    before = len(hub.asked)
    get("some/tiny:Q4_K")
    assert len(hub.asked) == before
    get("some/tiny:Q4_K", force=True)
    assert len(hub.asked) > before


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("some/none", "no repository some/none"),
        ("some/a..b", "no repository some/a..b"),
        ("some/tiny:Q2_K", "fits no file of the repository, which has .*tiny.Q4_K_M.gguf"),
        ("some/tiny", "fits several files"),
        ("some/tiny:Q8_0", "is not a GGUF file"),
    ],
)
def test_what_cannot_be_had_is_one_clear_error(get, name, problem):
    with pytest.raises(WeightsError, match=problem) as caught:
        get(name)
    assert "\n" not in str(caught.value)


RESOLVE = """
import sys
from ponder.engine.weights import resolve
from ponder.errors import WeightsError
try:
    print(resolve(sys.argv[1]).path)
except WeightsError as error:
    print(error)
"""


@pytest.mark.parametrize("offline", ["0", "1"], ids=["unreachable", "offline"])
def test_the_settings_of_huggingface_hub_hold_and_the_mend_is_named(get, tmp_path, offline):
    """In a process of its own, because huggingface_hub reads its settings when it is imported."""
    settings = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": offline,
    }

    def resolved(name: str) -> str:
        command = [sys.executable, "-c", RESOLVE, name]
        result = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=True)
        return result.stdout.strip()

    found = resolved("some/tiny:Q4_K")
    assert found.startswith("some/tiny:Q4_K is not cached and cannot be fetched from the model hub (")
    assert found.endswith("Try again with a network, or give the path of a GGUF file.")
    path = get("some/tiny:Q4_K")
    assert resolved("some/tiny:Q4_K") == str(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b/c.gguf", HubFile("a/b", file="c.gguf")),
        ("a/b/sub/c.gguf", HubFile("a/b", file="sub/c.gguf")),
        ("a/b-GGUF:Q4_K_M", HubFile("a/b-GGUF", quant="Q4_K_M")),
        ("a/b", HubFile("a/b")),
        ("a", None),
        ("a/b:", None),
        ("a/b/c", None),
        ("../b/c.gguf", None),
        ("a b/c/d.gguf", None),
    ],
)
def test_names_are_parsed(name, expected):
    assert parse(name) == expected
    if expected:
        assert str(expected) == name


def test_quantisations_are_matched_whole():
    files = ["m-Q4_K.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "mmproj-Q4_K.gguf", "notes-Q4_K.txt"]
    assert choose(HubFile("a/b", quant="Q4_K"), files) == ["m-Q4_K.gguf"]
    assert choose(HubFile("a/b", quant="q4_k_s"), files) == ["m-Q4_K_S.gguf"]
    with pytest.raises(WeightsError, match="no GGUF file at all"):
        choose(HubFile("a/b"), ["notes-Q4_K.txt"])


def test_shards_come_together_and_the_first_is_first():
    files = [f"m-Q8_0-0000{i}-of-00003.gguf" for i in (3, 1, 2)]
    assert choose(HubFile("a/b", quant="Q8_0"), files) == sorted(files)
    assert choose(HubFile("a/b"), files) == sorted(files)

"""Whatever comes over the wire ends in an answer that is no failure of the server's, and soon."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service import answers, service
from serving import Serving

POSTS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"),
    "/v1/embeddings",
)
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"model": "m", "prompt": "x", "max_tokens": 4},
    "/v1/responses": {"model": "m", "input": "x"},
    "/v1/messages": {"model": "m", "max_tokens": 20, "messages": [{"role": "user", "content": "x"}]},
    "/v1/messages/count_tokens": {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    "/v1/embeddings": {"model": "m", "input": "x"},
}
few = settings(max_examples=25, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PONDER_HOME", str(tmp_path_factory.mktemp("fuzz")))
        with service(lambda: [answers({}, "The answer is 4.", burst=64)]) as serving:
            yield serving


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=10) as made:
        yield made


def check(reply: httpx.Response, least: int = 200) -> None:
    assert least <= reply.status_code < 500, reply.text
    if reply.status_code >= 400:
        error = reply.json()["error"]
        assert error["message"]
        assert "\n" not in error["message"]
        assert "Traceback" not in reply.text


@few
@given(path=st.sampled_from(POSTS), body=st.binary(max_size=200))
def test_bytes(client: httpx.Client, path: str, body: bytes) -> None:
    check(client.post(path, content=body), 400)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(few, max_examples=60)
@given(data=st.data(), path=st.sampled_from(POSTS), value=VALUES)
def test_any_field_with_any_value(client: httpx.Client, data: st.DataObject, path: str, value: Any) -> None:
    from ponder.server.openapi_requests import requests

    kinds = (
        "ChatRequest",
        "CompletionRequest",
        "ResponseRequest",
        "MessageRequest",
        "CountRequest",
        "EmbeddingRequest",
    )
    names = sorted(requests()[dict(zip(POSTS, kinds, strict=True))[path]]["properties"])
    check(client.post(path, json={**GOOD[path], data.draw(st.sampled_from(names)): value}))


@few
@given(path=st.sampled_from(POSTS), value=VALUES, place=st.sampled_from(["role", "content", "tool_calls", "name"]))
def test_any_message(client: httpx.Client, path: str, value: Any, place: str) -> None:
    message = {"role": "user", "content": "x", place: value}
    body = {**GOOD[path], ("input" if "responses" in path else "messages"): [message]}
    check(client.post(path, json=body))


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"\x00" * 10, b'{"model": NaN}', b'{"model": 1e999}',
        b'{"model": "\\ud800"}', b'{"a":' * 5000, b"[" * 100_000, b'{"model": ' + b"9" * 5000 + b"}",
        b'{"model": "m", "model": "m"}', b'{"model": "m", "messages": {"role": "user"}}', b"model=m",
        b'{"model": "' + b"x" * 100_000 + b'"}', b'\xef\xbb\xbf{"model": "nobody"}', b'{"model": ""}',
    ],
)  # fmt: skip
def test_broken_bodies(client: httpx.Client, path: str, body: bytes) -> None:
    check(client.post(path, content=body), 400)


@pytest.mark.parametrize("path", POSTS)
def test_huge_numbers(client: httpx.Client, path: str) -> None:
    for name in ("n", "max_tokens", "temperature", "seed", "top_k"):
        for value in (10**30, -(10**30), 1e300, -1, 2**63):
            check(client.post(path, json={**GOOD[path], "max_tokens": 4, name: value}))


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/xml", "", "a" * 500])
def test_a_content_type_changes_nothing(client: httpx.Client, kind: str) -> None:
    for path in POSTS:
        check(client.post(path, content=json.dumps(GOOD[path]), headers={"content-type": kind}))


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods(client: httpx.Client, method: str) -> None:
    for path in POSTS:
        reply = client.request(method, path)
        assert (reply.status_code, "POST" in reply.headers.get("allow", "")) in ((405, True), (404, False))
        check(reply)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../etc/passwd", "/pages/../../../etc/passwd", "/pages/..%2f..%2fetc%2fpasswd", "/pages/%00",
        "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/v1/responses/%ff%fe", "/v1/responses/" + "x" * 5000,
        "/v1/models/%0d%0aset-cookie:%20a=b", "/" + "a/" * 2000, "/v1/responses/x/input_items?limit=99999999999999999",
        "/v1/responses/x/input_items?limit=-1&order=%00", "/?" + "a=b&" * 3000, "/api/traces/..%2f..%2fledger.db",
        "/api/traces?limit=nan", "/api/study?id=../../ledger.db", "/api/prompt?name=%ff", "/api/costs?days=1e400",
    ],
)  # fmt: skip
def test_paths(server: Serving, path: str) -> None:
    told = raw(server, f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
    status = int(told.split(b" ", 2)[1])
    assert status < 500, told
    assert b"root:" not in told
    assert b"\r\nset-cookie" not in told.lower()


@pytest.mark.parametrize("name", ["x-ponder-strategy", "x-ponder-budget", "x-ponder-deadline", "x-ponder-prompt"])
def test_headers_with_anything_in_them(client: httpx.Client, name: str) -> None:
    path = POSTS[0]
    values = [
        b"vote(", b"\xff\xfe", b"__import__('os')", b"vote(8, verifier='judge(file.py)')", b"9" * 400, b"-1",
        b"nan", b"a@b@c", b"tokens=1,tokens=2", b"vote(10**9)", b"x" * 5000, b"'; DROP TABLE",
    ]  # fmt: skip
    for value in values:
        check(client.post(path, json=GOOD[path], headers={name.encode(): value}))  # type: ignore[dict-item]


def test_a_header_cannot_begin_another(server: Serving, client: httpx.Client) -> None:
    body = json.dumps({"model": "m\r\nx-evil: 1", "messages": [{"role": "user", "content": "x"}]})
    reply = client.post(POSTS[0], content=body)
    check(reply, 400)
    assert "x-evil" not in reply.headers


def raw(server: Serving, data: bytes) -> bytes:
    """What the server says to bytes, until it closes the connection or is silent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as link:
        link.sendall(data)
        told = b""
        link.settimeout(1)
        try:
            while part := link.recv(65536):
                told += part
        except (TimeoutError, ConnectionResetError):
            pass
        return told


def test_what_is_no_http(server: Serving, client: httpx.Client) -> None:
    chance = random.Random(0)
    lines = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"\r\n\r\n\r\n\r\n",
        chance.randbytes(400) + b"\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 9\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
        b"FROBNICATE /health HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nevil: a\x00b\r\nconnection: close\r\n\r\n",
    ]  # fmt: skip
    for line in lines:
        told = raw(server, line)
        assert not told.startswith(b"HTTP/1.1 5"), (line[:80], told[:200])
    assert client.get("/health").status_code == 200

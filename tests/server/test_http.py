"""One exchange, by hand over real sockets: limits, clients that leave or stall, and what HTTP allows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest
from raw_http import Raw, chat, within
from serving import Serving, served

from ponder.chat.model import model_of
from ponder.engine.scripted import Fault, ScriptedEngine, says
from ponder.server import http, openai_failures
from ponder.server.admission import Admission
from ponder.server.app import App, Route
from ponder.server.desk import Desk
from ponder.server.endpoints import Endpoints
from ponder.server.http import Exchange
from ponder.server.local import Local
from ponder.server.openai_wire import Wire
from ponder.server.signatures import Signer

FREED = 0.2
"""Seconds in which an engine is to be free once its client has left."""
PIECES = 120
"""Of 64 KiB: more than all buffers between here and there hold."""
WORDS = " ".join(str(number) for number in range(300))


class Bench:
    """A server of one scripted engine with one place and a queue of two, and a path that floods."""

    def __init__(self) -> None:
        slow = [Fault("delay", at=1, every=1, seconds=0.02, times=None)]
        self.engine = ScriptedEngine(says(WORDS), faults=slow)
        self.desk = Desk([Local(model_of(self.engine), name="m")], admission=Admission(running=1, waiting=2))
        self.flooding: list[str] = []

    async def make(self) -> tuple[App, Callable[[bool], None]]:
        routes = Endpoints(self.desk, Wire(), Signer(b"x" * 32)).routes()
        more = (
            Route("GET", "/flood", self.flood, openai_failures.failure),
            Route("GET", "/quiet", self.quiet, openai_failures.failure),
            Route("POST", "/echo", self.echo, openai_failures.failure),
        )
        app = App((*routes, *more), openai_failures.failure)
        app.on_close.append(self.desk.close)
        return app, lambda hurry: self.desk.drain(0)

    async def echo(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        body = await exchange.body(1000)
        await exchange.data(body, "text/plain")

    async def flood(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(PIECES):
                yield b"x" * 65536
                await asyncio.sleep(0)
            self.flooding.append("read to its end")

        await exchange.stream(pieces())
        self.flooding.append("gone" if exchange.gone.is_set() else "sent")

    async def quiet(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one\n"
            await asyncio.sleep(0.35)
            yield b"two\n"

        await exchange.stream(pieces(), ping=b"ping\n")


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def server(bench: Bench) -> Iterator[Serving]:
    with served(bench.make) as serving:
        yield serving


# ---------------------------------------------------------------- limits


def test_a_body_is_measured_as_it_comes(server: Serving) -> None:
    with Raw(server.port) as raw:
        raw.ask("POST", "/echo", transfer_encoding="chunked")
        for _ in range(20):  # no length was told
            raw.send(b"64\r\n" + b"x" * 100 + b"\r\n")
        response = raw.response()
    assert response.status == 413
    assert "larger" in response.json()["error"]["message"]


def test_a_body_that_says_it_is_too_large_is_not_waited_for(server: Serving) -> None:
    with Raw(server.port) as raw:
        raw.ask("POST", "/echo", content_length="1001")
        assert raw.response().status == 413


def test_the_largest_body_is_taken(server: Serving) -> None:
    with Raw(server.port) as raw:
        raw.ask("POST", "/echo", b"x" * 1000)
        assert raw.response().body == b"x" * 1000


def test_headers_have_a_limit(server: Serving) -> None:
    with Raw(server.port) as raw:
        many = "".join(f"x-{number}: {'y' * 1000}\r\n" for number in range(70))
        raw.send(f"GET /health HTTP/1.1\r\nhost: x\r\n{many}\r\n".encode())
        assert raw.response().status == 431


def test_a_body_that_does_not_come_is_given_up(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SLOW_BODY", 0.2)
    with Raw(server.port) as raw:
        raw.ask("POST", "/echo", content_length="10")
        raw.send(b"x")
        began = time.monotonic()
        assert raw.response().status == 408
        assert 0.1 < time.monotonic() - began < 2
        assert raw.over()


def test_what_is_no_http_is_refused(server: Serving) -> None:
    with Raw(server.port) as raw:
        raw.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert raw.response().status == 400


# ---------------------------------------------------------------- clients that leave


def ask(server: Serving, text: str = "count", **more: Any) -> Raw:
    raw = Raw(server.port)
    raw.ask("POST", "/v1/chat/completions", chat(text, **more))
    return raw


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("leave", [Raw.reset, lambda raw: raw.__exit__(None, None, None)])
def test_an_engine_is_free_once_its_client_left(
    server: Serving, bench: Bench, stream: bool, leave: Callable[[Raw], None]
) -> None:
    raw = ask(server, stream=stream)
    within(5, lambda: bench.engine.open_streams == 1)
    leave(raw)
    assert within(FREED, lambda: bench.engine.open_streams == 0) < FREED
    within(1, lambda: bench.desk.admission.running == 0)
    assert bench.engine.generated < 200


def test_a_client_that_leaves_in_mid_stream_frees_the_engine(server: Serving, bench: Bench) -> None:
    raw = ask(server, stream=True)
    raw.until(b'"content":"0')
    raw.reset()
    assert within(FREED, lambda: bench.engine.open_streams == 0) < FREED


def test_a_client_that_leaves_while_it_waits_never_reaches_the_engine(server: Serving, bench: Bench) -> None:
    first = ask(server)
    within(5, lambda: bench.desk.admission.running == 1)
    second = ask(server)
    within(5, lambda: bench.desk.admission.waiting == 1)
    second.reset()
    assert within(FREED, lambda: bench.desk.admission.waiting == 0) < FREED
    first.reset()
    within(FREED, lambda: bench.engine.open_streams == 0)
    assert bench.engine.calls == 1


def test_a_full_queue_says_when_to_come_back(server: Serving, bench: Bench) -> None:
    raws = [ask(server) for _ in range(3)]
    within(5, lambda: bench.desk.admission.waiting == 2)
    with ask(server) as raw:
        response = raw.response()
    assert response.status == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "overloaded"
    for raw in raws:
        raw.reset()
    within(1, lambda: bench.desk.admission.running + bench.desk.admission.waiting == 0)


def test_a_client_that_takes_nothing_has_left(server: Serving, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STALLED", 0.3)
    with Raw(server.port, receive=4096) as raw:
        raw.ask("GET", "/flood")
        within(5, lambda: bool(bench.flooding))
    assert bench.flooding == ["read to its end", "gone"]
    with Raw(server.port) as raw:  # nobody else notices
        raw.ask("GET", "/health")
        assert raw.response().status == 200


def test_a_slow_client_gets_all_of_it(server: Serving, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STALLED", 2.0)
    with Raw(server.port, receive=65536) as raw:
        raw.ask("GET", "/flood")
        time.sleep(0.3)
        assert len(raw.response().body) == PIECES * 65536
    within(1, lambda: len(bench.flooding) == 2)
    assert bench.flooding == ["read to its end", "sent"]


def test_silence_is_broken_by_pings(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PING", 0.1)
    with Raw(server.port) as raw:
        raw.ask("GET", "/quiet")
        lines = raw.response().body.split()
        assert lines[0] == b"one"
        assert lines[-1] == b"two"
        assert 2 <= lines.count(b"ping") <= 3
        assert len(lines) == 2 + lines.count(b"ping")
        raw.ask("GET", "/health")  # and no ping comes after the end
        assert raw.response().json() == {"status": "ok"}


# ---------------------------------------------------------------- HTTP


def test_a_connection_is_used_again(server: Serving) -> None:
    with Raw(server.port) as raw:
        for number in range(5):
            body = b"x" * number
            raw.ask("POST", "/echo", body)
            assert raw.response().body == body


def test_requests_sent_ahead_are_answered_in_their_order(server: Serving) -> None:
    with Raw(server.port) as raw:
        requests = [b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n%d" % number for number in range(8)]
        raw.send(b"".join(requests))
        assert [raw.response().body for _ in requests] == [b"%d" % number for number in range(8)]


def test_a_refused_body_is_never_taken_for_a_request(server: Serving) -> None:
    hidden = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    with Raw(server.port) as raw:
        raw.ask("POST", "/echo", content_length="2000")
        assert raw.response().status == 413
        raw.send(hidden.ljust(2000, b"x"))
        raw.ask("POST", "/echo", b"mine")
        assert raw.response().body == b"mine"


@pytest.mark.parametrize("both", [b"transfer-encoding: chunked\r\ncontent-length: 3\r\n", b"content-length: 1, 2\r\n"])
def test_two_lengths_are_refused(server: Serving, both: bytes) -> None:
    with Raw(server.port) as raw:
        raw.send(b"POST /echo HTTP/1.1\r\nhost: x\r\n" + both + b"\r\n0\r\n\r\n")
        assert raw.response().status == 400


def test_a_client_is_told_to_go_on(server: Serving) -> None:
    with Raw(server.port) as raw:
        raw.ask("POST", "/echo", content_length="3", expect="100-continue")
        assert raw.response().status == 100
        raw.send(b"abc")
        assert raw.response().body == b"abc"


def test_a_client_is_not_told_to_go_on_with_too_much(server: Serving) -> None:
    with Raw(server.port) as raw:
        raw.ask("POST", "/echo", content_length="100000", expect="100-continue")
        assert raw.response().status == 413


def test_head_has_no_body(server: Serving) -> None:
    with Raw(server.port) as raw:
        raw.ask("HEAD", "/health")
        response = raw.response(bodiless=True)
        assert (response.status, response.headers["content-length"]) == (200, "15")
        raw.ask("GET", "/health")
        assert raw.response().json() == {"status": "ok"}


def test_a_wrong_method_is_told_the_right_ones(server: Serving) -> None:
    with Raw(server.port) as raw:
        raw.ask("GET", "/v1/chat/completions")
        response = raw.response()
        assert (response.status, response.headers["allow"]) == (405, "POST")
        raw.ask("PUT", "/v1/responses/abc")
        assert raw.response().headers["allow"] == "DELETE, GET"


def test_every_response_has_an_id_of_its_own(server: Serving) -> None:
    ids = set()
    with Raw(server.port) as raw:
        for path in ("/health", "/nowhere", "/v1/models"):
            raw.ask("GET", path, x_request_id="mine")
            ids.add(raw.response().headers["x-request-id"])
    assert len(ids) == 3
    assert all(each.startswith("req_") for each in ids)


def test_nothing_of_a_request_becomes_a_header_of_its_own(server: Serving) -> None:
    with Raw(server.port) as raw:
        raw.ask("GET", "/v1/models/a%0d%0ax-evil:%20yes")
        response = raw.response()
    assert response.status == 404
    assert "x-evil" not in response.headers
    assert "server" not in response.headers

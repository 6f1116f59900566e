"""The HTTP client of upstreams against servers that behave, and servers that do not."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from ponder.errors import InputError
from ponder.server import upstream_wire
from ponder.server.upstream_answer import Timeouts, WireError
from ponder.server.upstream_wire import Address, Cut, Wire

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@asynccontextmanager
async def serving(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    tasks: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def says(*pieces: bytes, hang: bool = False, close: bool = True) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if hang:
                await asyncio.Event().wait()
            if close:
                return

    return serve


async def failing(serve: Serve, timeouts: Timeouts | None = None) -> WireError:
    """What comes of reading an answer to its end."""
    async with serving(serve) as url:
        wire = Wire(url, timeouts=timeouts or Timeouts(1, 1, 1))
        with pytest.raises(WireError) as caught:
            await wire.fetch("GET", "/")
        await wire.close()
    return caught.value


def test_a_connection_is_kept_and_used_again_and_old_ones_are_not() -> None:
    async def run() -> None:
        opened = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal opened
            opened += 1
            await says(OK, close=False)(reader, writer)

        async with serving(serve) as url:
            wire = Wire(url)
            for _ in range(5):
                assert await wire.fetch("GET", "/") == (200, b"hi")
            assert opened == 1
            await asyncio.gather(*(wire.fetch("GET", "/") for _ in range(3)))
            assert opened == 3
            for connection in wire._idle:
                connection.since -= upstream_wire.IDLE + 1
            await wire.fetch("GET", "/")
            assert opened == 4
            await wire.close()

    asyncio.run(run())


def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    async def run() -> None:
        async with serving(says(OK, close=True)) as url:
            wire = Wire(url)
            for _ in range(3):
                assert (await wire.fetch("GET", "/"))[1] == b"hi"
                await asyncio.sleep(0.02)
            await wire.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ((b"",), "broken"),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi",), "broken"),
        ((STREAM + b"5\r\nhe",), "broken"),
        ((b"\x00\xff\x00 what is this",), "garbled"),
        ((STREAM + b"zz\r\nhello\r\n",), "garbled"),
        ((b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n\r\n",), "garbled"),
    ],
)
def test_what_is_no_answer_is_an_error(pieces: tuple[bytes, ...], kind: str) -> None:
    assert asyncio.run(failing(says(*pieces))).kind == kind


@pytest.mark.parametrize("pieces", [(), (STREAM,), (STREAM + b"2\r\nhi\r\n",), (b"HTTP/1.1 100 Continue\r\n\r\n",)])
def test_silence_ends_at_any_stage(pieces: tuple[bytes, ...]) -> None:
    began = time.monotonic()
    assert asyncio.run(failing(says(*pieces, hang=True), Timeouts(0.3, 0.3, 0.3))).kind == "silent"
    assert 0.25 < time.monotonic() - began < 2


def test_a_slow_stream_that_goes_on_is_not_silent() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(STREAM)
        for _ in range(6):
            await asyncio.sleep(0.1)
            writer.write(b"2\r\nhi\r\n")
        writer.write(b"0\r\n\r\n")

    async def run() -> bytes:
        async with serving(serve) as url:
            wire = Wire(url, timeouts=Timeouts(1, 0.3, 0.3))
            _, body = await wire.fetch("GET", "/")
            await wire.close()
            return body

    assert asyncio.run(run()) == b"hi" * 6


def test_an_informational_answer_is_passed_over_and_a_body_may_end_with_the_connection() -> None:
    async def run() -> None:
        early = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
        async with serving(says(early, OK)) as url:
            assert await Wire(url).fetch("GET", "/") == (200, b"hi")
        async with serving(says(b"HTTP/1.1 200 OK\r\n\r\nall", b" of it")) as url:
            assert await Wire(url).fetch("GET", "/") == (200, b"all of it")

    asyncio.run(run())


def test_a_second_answer_is_never_taken_for_one_to_the_next_request() -> None:
    async def run() -> None:
        async with serving(says(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", close=False)) as url:
            wire = Wire(url)
            for _ in range(3):
                assert (await wire.fetch("GET", "/"))[1] == b"hi"
            assert not wire._idle
            await wire.close()

    asyncio.run(run())


def test_a_body_beyond_its_bound_is_refused() -> None:
    async def run() -> None:
        async with serving(says(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000)) as url:
            with pytest.raises(WireError, match="longer than 1000"):
                await Wire(url).fetch("GET", "/", most=1000)

    asyncio.run(run())


def test_a_slow_reader_makes_the_server_wait() -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x" * 65_536)
            await writer.drain()
            sent += 65_536

    async def run() -> None:
        async with serving(serve) as url:
            wire = Wire(url, timeouts=Timeouts(1, 0.3, 0.3))
            answer = await wire.ask("GET", "/")
            await asyncio.sleep(0.6)  # longer than the silence that is borne: it is the reader who is slow
            held = sent
            assert held < 30 * 2**20
            assert len(await answer.read(2**27)) == 1000 * 65_536
            answer.close()
            await wire.close()

    asyncio.run(run())


def test_a_cut_closes_the_socket_at_once_whatever_is_waited_for() -> None:
    async def run(*pieces: bytes) -> float:
        left = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"".join(pieces))
            with suppress(OSError):
                await reader.read(1)
            left.set()

        async with serving(serve) as url:
            wire, cut = Wire(url), Cut()

            async def read() -> None:
                answer = await wire.ask("GET", "/", cut=cut)
                await answer.read()

            reading = asyncio.create_task(read())
            await asyncio.sleep(0.1)
            began = time.monotonic()
            cut.now("stopped")
            with pytest.raises(WireError) as caught:
                await reading
            assert caught.value.kind == "cut"
            await asyncio.wait_for(left.wait(), 2)
            return time.monotonic() - began

    assert asyncio.run(run()) < 0.2
    assert asyncio.run(run(STREAM + b"2\r\nhi\r\n")) < 0.2


def test_nothing_listens() -> None:
    async def run() -> None:
        async with serving(says(OK)) as url:
            pass
        with pytest.raises(WireError) as caught:
            await Wire(url).fetch("GET", "/")
        assert caught.value.kind == "unreachable"

    asyncio.run(run())


def test_a_pause_ends_early_when_it_is_cut() -> None:
    async def run() -> None:
        cut = Cut()
        assert await cut.pause(0.01)
        asyncio.get_running_loop().call_later(0.05, cut.now, "stopped")
        assert not await cut.pause(5)
        assert not await cut.pause(0.01)

    asyncio.run(run())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("makes a certificate with openssl")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=upstream"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return key, cert


def test_certificates_are_verified(certificate: tuple[Path, Path]) -> None:
    key, cert = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    async def run() -> None:
        async with serving(says(OK), context) as url:
            with pytest.raises(WireError) as caught:
                await Wire(url).fetch("GET", "/")
            assert caught.value.kind == "unreachable"
            assert "TLS" in caught.value.problem
            trusting = Wire(url, ca=cert)
            assert await trusting.fetch("GET", "/") == (200, b"hi")
            other = Wire(url.replace("127.0.0.1", "localhost"), ca=cert)
            with pytest.raises(WireError):  # the certificate names the address alone
                await other.fetch("GET", "/")
            await trusting.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "url",
    ["", "ftp://x/", "http://", "http://a b/", "http://u:p@x/", "http://x/?key=1", "http://x:99999/", "http://x/#a"],
)
def test_what_is_no_address_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(InputError) as caught:
        Address(url)
    assert "u:p" not in str(caught.value)


def test_a_header_cannot_begin_another_one() -> None:
    with pytest.raises(InputError):
        Wire("http://x", headers={"authorization": "Bearer a\r\nevil: 1"})


def test_its_repr_tells_no_secret() -> None:
    assert "s3cret" not in repr(Wire("http://x", headers={"authorization": "Bearer s3cret"}))

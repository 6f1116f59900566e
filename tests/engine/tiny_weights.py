"""Small but real files and a small but nasty server for the tests of weights: GGUF files, a wheel, HTTP with faults."""

from __future__ import annotations

import hashlib
import io
import random
import re
import struct
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ponder.engine.catalogue import Base


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---------------------------------------------------------------- GGUF


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<IQ", 10, value)
    if isinstance(value, float):
        return struct.pack("<Id", 12, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    items = [_value(item) for item in value]
    kind = items[0][:4] if items else struct.pack("<I", 8)
    return struct.pack("<I", 9) + kind + struct.pack("<Q", len(items)) + b"".join(item[4:] for item in items)


def gguf_bytes(metadata: dict[str, Any], tensors: dict[str, tuple[int, ...]], seed: int = 0, version: int = 3) -> bytes:
    """A GGUF file with float16 tensors of random numbers."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(_string(key) + _value(value) for key, value in metadata.items())
    offset = 0
    for name, shape in tensors.items():
        head += _string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        head += struct.pack("<IQ", 1, offset)
        size = 2
        for dimension in shape:
            size *= dimension
        offset += -(-size // 32) * 32
    return head + bytes(-len(head) % 32) + random.Random(seed).randbytes(offset)


def model_bytes(width: int = 512, seed: int = 0) -> bytes:
    """A model of one matrix: half a megabyte that does not compress."""
    metadata = {
        "general.architecture": "llama",
        "general.license": "apache-2.0",
        "llama.context_length": 128,
        "tokenizer.ggml.tokens": [f"token {i}" for i in range(100)],
        "tokenizer.chat_template": "{{ messages }}",
    }
    return gguf_bytes(metadata, {"blk.0.attn_q.weight": (width, 512)}, seed)


def adapter_bytes(inputs: int = 512, outputs: int = 512, architecture: str = "llama", target: str = "attn_q") -> bytes:
    metadata = {"general.architecture": architecture, "general.type": "adapter", "adapter.lora.alpha": 8.0}
    name = f"blk.0.{target}.weight.lora_"
    return gguf_bytes(metadata, {name + "a": (inputs, 4), name + "b": (4, outputs)})


# ---------------------------------------------------------------- a wheel

WHEEL = "tinyweights-1.0-py3-none-any.whl"
METADATA = b"Metadata-Version: 2.1\nName: tinyweights\nVersion: 1.0\n"


def wheel_bytes(model: bytes) -> bytes:
    """A wheel that pip accepts, with the model inside."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        # A fixed time keeps the hash the same in every process.
        def add(name: str, data: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)

        add("tinyweights/tiny.gguf", model)
        add("tinyweights-1.0.dist-info/METADATA", METADATA)
        add("tinyweights-1.0.dist-info/WHEEL", b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        add("tinyweights-1.0.dist-info/RECORD", b"tinyweights/tiny.gguf,,\n")
    return buffer.getvalue()


def base_for(model: bytes, wheel: bytes) -> Base:
    return Base(
        name="tiny",
        file="tiny.gguf",
        sha256=sha256(model),
        size=len(model),
        requirement="tinyweights==1.0",
        member="tinyweights/tiny.gguf",
        wheel_sha256=sha256(wheel),
        wheel_size=len(wheel),
        licence="Apache-2.0",
        source="made by a test",
    )


# ---------------------------------------------------------------- a server with faults


class Server(ThreadingHTTPServer):
    """Serves `content` at /files/NAME, and a package index that lists it at /simple/.

    The lists hold one fault for each of the next requests: `statuses` to answer with, and numbers of bytes
    after which to drop the connection (`drops`) or to send nothing more until `released` is set (`stalls`).
    """

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.etag: str | None = '"one"'
        self.ranges = True
        self.range_shift = 0
        self.no_length = False
        self.listed_sha256 = sha256(content)
        self.statuses: list[tuple[int, dict[str, str]]] = []
        self.drops: list[int] = []
        self.stalls: list[int] = []
        self.released = threading.Event()
        self.asked: list[dict[str, str]] = []
        self.sent = 0
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    @property
    def file_url(self) -> str:
        return f"{self.url}/files/{WHEEL}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def _page(self, body: bytes, kind: str = "text/html") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/simple/tinyweights/":
            link = f'<a href="/files/{WHEEL}#sha256={self.server.listed_sha256}" data-core-metadata="true">{WHEEL}</a>'
            self._page(f"<!DOCTYPE html><html><body>{link}</body></html>".encode())
        elif self.path == f"/files/{WHEEL}.metadata":
            self._page(METADATA)
        elif self.path.startswith("/files/"):
            self._file()
        else:
            self.send_error(404)

    def _file(self) -> None:
        server = self.server
        server.asked.append({key.lower(): value for key, value in self.headers.items()})
        if server.statuses:
            status, headers = server.statuses.pop(0)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._body(self._start())

    def _start(self) -> bytes:
        """Sends the head of the response and gives the bytes that belong into its body."""
        server = self.server
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        validator = self.headers.get("If-Range")
        if asked and server.ranges and validator in (None, server.etag):
            start = int(asked[1]) - server.range_shift
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            start = 0
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        if not server.no_length:
            self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        return server.content[start:]

    def _body(self, body: bytes) -> None:
        server = self.server
        cut = server.drops.pop(0) if server.drops else None
        stall = server.stalls.pop(0) if server.stalls else None
        end = cut if cut is not None else stall
        self._send(body[:end])
        if stall is not None:
            server.released.wait(20)
        if end is not None:
            self.close_connection = True

    def _send(self, data: bytes) -> None:
        self.server.sent += len(data)
        self.wfile.write(data)


@contextmanager
def serving(content: bytes) -> Iterator[Server]:
    server = Server(content)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def until(condition: Any, seconds: float = 20.0) -> None:
    """Waits until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)

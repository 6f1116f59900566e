"""An upstream in a thread that makes vectors and sounds, and remembers what it was asked."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SOUND = bytes(range(256)) * 2000
VECTOR = (0.5, -0.25, 0.125)
NONE: Mapping[str, str] = {}


class Upstream(ThreadingHTTPServer):
    """`asked` holds (path, headers, body). `faults`: (status, document) to answer with first. vectors: how they are
    told: "asked" as they were asked for, "numbers", "backwards", "few", "garbage", or a document."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.faults: list[tuple[int, Mapping[str, str]]] = []
        self.vectors: Any = "asked"
        self.usage = True
        self.kind, self.reply = "application/json", b"{}"
        self.pieces = 1
        self.pause = 0.0
        self.cut = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def body(self) -> Any:
        """The last one, as JSON."""
        return json.loads(self.asked[-1][2])


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Upstream

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, b'{"data": []}')

    def do_POST(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that left
            self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        if self.server.faults:
            status, headers = self.server.faults.pop(0)
            self._send(status, b'{"error": {"message": "it failed"}}', headers=headers)
        elif self.path.endswith("/embeddings"):
            time.sleep(self.server.pause)
            self._send(200, json.dumps(self._embedded(json.loads(body))).encode())
        elif self.path.endswith(":batchEmbedContents"):
            rows = [{"values": [place, *VECTOR]} for place in range(len(json.loads(body)["requests"]))]
            self._send(200, json.dumps({"embeddings": rows}).encode())
        else:
            self._stream()

    def _embedded(self, body: Mapping[str, Any]) -> Any:
        how, inputs = self.server.vectors, body["input"]
        if not isinstance(how, str):
            return how
        several = isinstance(inputs, list) and not isinstance(inputs[0], int)
        rows: list[Any] = [[float(place), *VECTOR] for place in range(len(inputs) if several else 1)]
        if how == "asked" and body.get("encoding_format") == "base64":
            rows = [base64.b64encode(struct.pack("<4f", *row)).decode() for row in rows]
        data: list[Any] = [{"object": "embedding", "index": at, "embedding": row} for at, row in enumerate(rows)]
        data = {"backwards": data[::-1], "few": data[1:], "garbage": [{"embedding": ["x"]}]}.get(how, data)
        usage = {"usage": {"prompt_tokens": 11, "total_tokens": 11}} if self.server.usage else {}
        return {"object": "list", "data": data, **usage}

    def _send(
        self, status: int, body: bytes, kind: str = "application/json", headers: Mapping[str, str] = NONE
    ) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        reply, pieces = self.server.reply, self.server.pieces
        if pieces == 1 and not self.server.cut:
            self._send(200, reply, self.server.kind)
            return
        self.send_response(200)
        self.send_header("content-type", self.server.kind)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        size = -(-len(reply) // pieces)
        for begin in range(0, len(reply), size):
            piece = reply[begin : begin + size]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.flush()
            time.sleep(self.server.pause)
            if self.server.cut:
                self.close_connection = True
                return
        self.wfile.write(b"0\r\n\r\n")


@contextmanager
def upstream_in_thread() -> Iterator[Upstream]:
    """One that listens."""
    server = Upstream()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)

"""HTTP by hand, over one socket: for what no client library would send, and for leaving at any moment."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Raw:
    """One connection to a server on this machine."""

    def __init__(self, port: int, timeout: float = 10.0, receive: int = 0) -> None:
        self._socket = socket.socket()
        if receive:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(("127.0.0.1", port))
        except OSError:
            self._socket.close()
            raise
        self._read = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> None:
        """Sends a request. Names of headers are written with underscores."""
        lines = {"host": "localhost", **({} if body is None else {"content-length": str(len(body))})}
        lines |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + (body or b""))

    def reset(self) -> None:
        """Leaves without a word."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def until(self, mark: bytes) -> bytes:
        """Everything up to a mark; raises ConnectionError where the server ends before it."""
        while mark not in self._read:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError(f"the server left after {self._read[-200:]!r}")
            self._read += data
        found, _, self._read = self._read.partition(mark)
        return found + mark

    def over(self) -> bool:
        """Whether the server has closed the connection, which it is waited for."""
        try:
            return self._socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def head(self) -> Response:
        """Status and headers."""
        first, *lines = self.until(b"\r\n\r\n").decode("latin-1").strip().split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return Response(int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}, b"")

    def response(self, bodiless: bool = False) -> Response:
        """A whole one."""
        head = self.head()
        body = b""
        if bodiless or head.status < 200:
            pass
        elif "content-length" in head.headers:
            size = int(head.headers["content-length"])
            while len(self._read) < size:
                self._read += self._socket.recv(65536)
            body, self._read = self._read[:size], self._read[size:]
        else:
            while size := int(self.until(b"\r\n"), 16):
                while len(self._read) < size + 2:
                    self._read += self._socket.recv(65536)
                body, self._read = body + self._read[:size], self._read[size + 2 :]
            self.until(b"\r\n")
        return Response(head.status, head.headers, body)


def chat(text: str, **more: Any) -> bytes:
    """The body of a question."""
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more}).encode()


def within(seconds: float, true: Callable[[], bool]) -> float:
    """Seconds until something became true; fails where it does not in time."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.002)
    return time.monotonic() - began

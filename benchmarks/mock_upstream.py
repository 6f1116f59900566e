"""An upstream that generates nothing but counts what it sends: OpenAI's chat, whole and as a stream, on one core.

    python benchmarks/mock_upstream.py [--port N] [--first SECONDS] [--between SECONDS] [--tokens N]

Its first line says where it listens. An answer is `tokens` words of four characters, the first after `first` seconds
and the others `between` seconds apart, by the clock; both a stream and a whole answer end with their last word. The
usage is exact.

A question may name a fault: "fault:hang" in it is followed. One that holds "#NAME" is counted under that name.
GET /counts tells what was generated for each name, DELETE /counts forgets it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import socket
from dataclasses import asdict, dataclass
from typing import Any

import httptools

PROMPT_TOKENS = 7
WORD = "abc "
FAULT, NAME = re.compile(r"fault:([a-z-]+)"), re.compile(r"#(\w+)")
FAULTS = ("hang", "stall", "garbage", "nonsense", "die", "drop", "slow", "busy", "broken", "page", "endless")
"""Says nothing; stops in the middle; is no HTTP; is no JSON; resets at once; resets in the middle; takes its time;
429; 500; a web page; a line that never ends."""


@dataclass
class Count:
    """What was generated under a name. sent: tokens; whole: answers that were sent to their end."""

    asked: int = 0
    sent: int = 0
    whole: int = 0
    left: int = 0


@dataclass(frozen=True)
class Pace:
    """Seconds until the first token and between two, and how many there are."""

    first: float
    between: float
    tokens: int


class Mock(asyncio.Protocol):
    """One connection."""

    def __init__(self, pace: Pace, counts: dict[str, Count]) -> None:
        self._pace, self._counts = pace, counts
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._body, self._url = [], b""
        self._timer: asyncio.TimerHandle | None = None
        self._count: Count | None = None

    # ------------------------------------------------------------ told by asyncio and the parser

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        with contextlib.suppress(OSError, AttributeError):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._count is not None:
            self._count.left += 1

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body, self._body = b"".join(self._body), []
        method = self._parser.get_method()
        if self._url.endswith(b"/chat/completions"):
            self._answer(json.loads(body))
        elif self._url == b"/counts":
            counts = {name: asdict(count) for name, count in self._counts.items()}
            if method == b"DELETE":
                self._counts.clear()
            self._whole(json.dumps(counts).encode())
        elif self._url.endswith(b"/models"):
            self._whole(b'{"object":"list","data":[{"id":"mock","object":"model","created":0,"owned_by":"mock"}]}')
        else:
            self._whole(b"{}", "404 Not Found" if self._url != b"/health" else "200 OK")

    # ------------------------------------------------------------ answering

    def _answer(self, asked: dict[str, Any]) -> None:
        text = json.dumps(asked["messages"][-1]["content"])
        name, fault = NAME.search(text), FAULT.search(text)
        self._count = self._counts.setdefault(name[1] if name else "", Count())
        self._count.asked += 1
        tokens = min(asked.get("max_tokens") or asked.get("max_completion_tokens") or 10**9, self._pace.tokens)
        work = (fault and _FAULTY.get(fault[1])) or (Mock._stream if asked.get("stream") else Mock._at_once)
        self._usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        work(self, tokens)

    def _after(self, seconds: float, work: Any, *arguments: Any) -> None:
        self._timer = self._loop.call_later(seconds, work, *arguments)

    def _whole(self, body: bytes, status: str = "200 OK", kind: str = "application/json", more: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
        self._transport.write(head.encode() + body)

    def _at_once(self, tokens: int) -> None:
        self._after(self._pace.first + self._pace.between * (tokens - 1), self._tell, tokens)

    def _tell(self, tokens: int) -> None:
        message = {"role": "assistant", "content": WORD * tokens}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._sent(tokens)
        self._whole(json.dumps({**_HEAD, "object": "chat.completion", "choices": [choice], **_usage(tokens)}).encode())
        self._ended()

    def _stream(self, tokens: int, until: int | None = None, end: Any = None, between: float | None = None) -> None:
        """A stream; with `until`, `end` happens in the place of the words after so many."""
        self._chunked = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        pause = self._pace.between if between is None else between
        self._due = self._loop.time() + self._pace.first
        self._timer = self._loop.call_at(self._due, self._next, 0, tokens, until, end, pause)

    def _next(self, place: int, tokens: int, until: int | None, end: Any, between: float) -> None:
        if place == until:
            end(self)
            return
        if place < tokens:
            self._put(_WORD)
            self._sent(1)
        if place + 1 < tokens or place + 1 == until:
            self._due += between  # by the clock: timers that are late add nothing up
            self._timer = self._loop.call_at(self._due, self._next, place + 1, tokens, until, end, between)
            return
        usage = json.dumps({**_CHUNK, "choices": [], **_usage(tokens)}).encode() if self._usage else b""
        self._put(_LAST + (b"data: " + usage + b"\n\n" if usage else b"") + b"data: [DONE]\n\n", b"0\r\n\r\n")
        self._ended()

    def _put(self, data: bytes, after: bytes = b"") -> None:
        head, self._chunked = self._chunked, b""
        self._transport.write(b"%s%x\r\n%s\r\n%s" % (head, len(data), data, after))

    def _sent(self, tokens: int) -> None:
        if self._count is not None:
            self._count.sent += tokens

    def _ended(self) -> None:
        if self._count is not None:
            self._count.whole += 1
        self._count = None

    # ------------------------------------------------------------ faults

    def _nothing(self, tokens: int = 0) -> None:
        pass

    def _reset(self, tokens: int = 0) -> None:
        self._transport.abort()

    def _raw(self, data: bytes) -> None:
        self._transport.write(data)

    def _endless(self) -> None:
        self._put(b"x" * 65536)
        self._after(0.002, self._endless)


_HEAD = {"id": "chatcmpl-mock", "created": 0, "model": "mock"}
_CHUNK = {**_HEAD, "object": "chat.completion.chunk"}


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({**_CHUNK, "choices": choices}).encode() + b"\n\n"


_WORD, _LAST = _event({"role": "assistant", "content": WORD}), _event({}, "stop")


def _usage(tokens: int) -> dict[str, Any]:
    total = PROMPT_TOKENS + tokens
    return {"usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": total}}


_BUSY = json.dumps({"error": {"message": "busy", "type": "rate_limit_error", "code": "busy"}}).encode()
_FAULTY: dict[str, Any] = {
    "hang": Mock._nothing,
    "stall": lambda self, tokens: self._stream(tokens, 3, Mock._nothing),
    "garbage": lambda self, tokens: self._raw(b"\x00\xff\x7f" * 700 + b"\r\n\r\n"),
    "nonsense": lambda self, tokens: self._stream(tokens, 2, lambda it: it._put(b"data: {]\xff\n\n")),
    "die": Mock._reset,
    "drop": lambda self, tokens: self._stream(tokens, 4, Mock._reset),
    "slow": lambda self, tokens: self._stream(tokens, between=0.05),
    "busy": lambda self, tokens: self._whole(_BUSY, "429 Too Many Requests", more="retry-after: 1\r\n"),
    "broken": lambda self, tokens: self._whole(_BUSY, "500 Internal Server Error"),
    "page": lambda self, tokens: self._whole(b"<!doctype html><html>no</html>", kind="text/html"),
    "endless": lambda self, tokens: self._stream(tokens, 1, Mock._endless),
}


async def main() -> None:
    """Listens until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--first", type=float, default=0.005)
    parser.add_argument("--between", type=float, default=0.001)
    parser.add_argument("--tokens", type=int, default=8)
    asked = parser.parse_args()
    counts: dict[str, Count] = {}
    pace = Pace(asked.first, asked.between, asked.tokens)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Mock(pace, counts), "127.0.0.1", asked.port, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        try:
            import uvloop
        except ImportError:
            asyncio.run(main())
        else:
            uvloop.run(main())

"""A generator of load in a process of its own: raw sockets, so that it costs little beside what it measures.

    python benchmarks/load.py            each line of its input asks for a run, and one line of JSON answers

    {"url": "http://127.0.0.1:8333/v1/chat/completions", "body": {...}, "headers": {...}, "seconds": 5,
     "rate": 200}        open loop: arrivals of a Poisson process, whether or not the server keeps up
    {..., "streams": 64} closed loop: so many clients, each with its next question once it has its answer

The latency of an open loop is counted from the moment at which a request was due, so that a generator that is late
hides no waiting; `lag` is how late it was itself. An answer counts if it is whole: 200, and its end has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import socket
import statistics
import sys
import time
from collections import Counter, deque
from typing import Any
from urllib.parse import urlsplit

import httptools

MOST_LATE = 20.0
"""Seconds after the end of a run in which the answers under way may still come."""


class Client(asyncio.Protocol):
    """One kept connection with one request at a time."""

    def __init__(self, done: Any) -> None:
        self._done = done
        self._loop = asyncio.get_running_loop()
        self.transport: Any = None
        self._due = self._first = 0.0
        self.busy = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        with contextlib.suppress(OSError, AttributeError):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes, due: float, ending: bytes) -> None:
        """Sends a request that was due at a time of the loop's clock."""
        self._due, self._first, self._ending, self.busy = due, 0.0, ending, True
        self._tail, self._parser = b"", httptools.HttpResponseParser(self)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self.busy:
            self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self._end("broken")

    def on_body(self, body: bytes) -> None:
        self._first = self._first or time.perf_counter()
        self._tail = (self._tail + body)[-256:] if len(body) < 256 else body[-256:]

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        whole = status == 200 and self._ending in self._tail
        if not self._parser.should_keep_alive():
            self.transport.abort()
        self._end("" if whole else str(status))

    def _end(self, error: str) -> None:
        now, self.busy = time.perf_counter(), False
        self._done(self, error, now - self._due, self._first - self._due)


class Run:
    """One run against one server."""

    def __init__(self, asked: dict[str, Any]) -> None:
        address = urlsplit(asked["url"])
        self._host, self._port = address.hostname or "", address.port or 80
        body = json.dumps(asked["body"]).encode()
        lines = {"host": address.netloc, "content-type": "application/json", **asked.get("headers", {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._request = f"POST {address.path} HTTP/1.1\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body
        self._ending = b"[DONE]" if asked["body"].get("stream") else b"}"
        self._asked = asked
        self._loop = asyncio.get_running_loop()
        self._free: deque[Client] = deque()
        self._clients: list[Client] = []
        self._latencies, self._firsts, self._lags = list[float](), list[float](), list[float]()
        self._errors: Counter[str] = Counter()
        self._under_way = 0
        self._closed_loop = "streams" in asked
        self._idle = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def result(self) -> dict[str, Any]:
        """Runs it."""
        for _ in range(self._asked.get("streams", 16)):
            self._free.append(await self._connected())
        before, began = _processor_seconds(), time.perf_counter()
        self._until = began + self._asked["seconds"]
        if self._closed_loop:
            for client in list(self._free):
                self._send(client, time.perf_counter())
        else:
            await self._arrivals(began)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._until - time.perf_counter()) + MOST_LATE):
                while self._under_way:
                    self._idle.clear()
                    await self._idle.wait()
        seconds = time.perf_counter() - began
        used = _processor_seconds() - before
        self._errors["unanswered"] += self._under_way
        for client in self._clients:
            client.transport.abort()
        return self._summary(seconds, used)

    async def _connected(self) -> Client:
        _, client = await self._loop.create_connection(lambda: Client(self._done), self._host, self._port)
        self._clients.append(client)
        return client

    async def _idle_client(self) -> Client:
        while self._free:
            client = self._free.popleft()
            if not client.transport.is_closing():
                return client
        return await self._connected()

    async def _again(self) -> None:
        """The next request of a closed loop whose server has closed the connection."""
        client = await self._connected()
        if time.perf_counter() < self._until:
            self._send(client, time.perf_counter())

    async def _arrivals(self, due: float) -> None:
        pauses = random.Random(7)
        while True:
            due += pauses.expovariate(self._asked["rate"])
            if due > self._until:
                return
            left = due - time.perf_counter()
            if left > 0:
                await asyncio.sleep(left)
            client = await self._idle_client()
            self._lags.append(time.perf_counter() - due)
            self._send(client, due)

    def _send(self, client: Client, due: float) -> None:
        self._under_way += 1
        client.ask(self._request, due, self._ending)

    def _done(self, client: Client, error: str, latency: float, first: float) -> None:
        self._under_way -= 1
        if error:
            self._errors[error] += 1
        else:
            self._latencies.append(latency)
            self._firsts.append(first)
        usable, going = not client.transport.is_closing(), time.perf_counter() < self._until
        if usable and self._closed_loop and going:
            self._send(client, time.perf_counter())
        elif usable:
            self._free.append(client)
        elif self._closed_loop and going:
            task = asyncio.ensure_future(self._again())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if not self._under_way:
            self._idle.set()

    def _summary(self, seconds: float, used: float) -> dict[str, Any]:
        return {
            "answers": len(self._latencies),
            "errors": dict(+self._errors),
            "seconds": seconds,
            "per_second": len(self._latencies) / seconds,
            "latency": quantiles(self._latencies),
            "first": quantiles(self._firsts),
            "lag": quantiles(self._lags),
            "busy": used / seconds,
        }


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    if len(seconds) < 2:
        return dict.fromkeys(("p50", "p99", "mean"), 1000 * seconds[0] if seconds else 0.0)
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": 1000 * cuts[49], "p99": 1000 * cuts[98], "mean": 1000 * statistics.fmean(seconds)}


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def main() -> None:
    """Answers each line."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await Run(json.loads(line)).result()), flush=True)


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())

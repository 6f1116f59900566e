"""What can go wrong with a reply, for the servers of `servers.py`.

A fault is a function from the steps of an honest reply to the steps that are taken instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union


@dataclass(frozen=True)
class Wait:
    """Says nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Sign:
    name: str


HANG = Sign("hang")
"""Says nothing until the client leaves."""
CUT = Sign("cut")
"""Resets the connection."""


@dataclass(frozen=True)
class Plain:
    """A whole answer that is no stream."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


Step = Union[dict[str, Any], bytes, Wait, Sign]
Fault = Callable[[list[Step]], Union[list[Step], Plain]]
DONE = b"data: [DONE]\n\n"


def refuse(code: int, body: object = None, **headers: str) -> Fault:
    """Answers with an error status. Headers are named with underscores."""
    shown = {"error": {"message": f"status {code}", "type": "x", "code": code}} if body is None else body
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda steps: Plain(code, json.dumps(shown).encode(), {"content-type": "application/json", **named})


def page(status: int = 200, title: str = "Bad gateway") -> Fault:
    """Answers with a web page."""
    body = f"<!doctype html><html><title>{title}</title></html>".encode()
    return lambda steps: Plain(status, body, {"content-type": "text/html"})


def whole(body: object) -> Fault:
    """Answers with JSON where a stream was asked for."""
    return lambda steps: Plain(200, json.dumps(body).encode(), {"content-type": "application/json"})


def reset() -> Fault:
    """Breaks the connection before a single byte."""
    return lambda steps: [CUT]


def hang(after: int | None = None) -> Fault:
    """Says nothing: not a byte, or nothing more after so many events (0: the headers alone)."""
    return lambda steps: [HANG] if after is None else [b"", *steps[:after], HANG]


def cut_after(count: int) -> Fault:
    """Breaks the connection after so many events."""
    return lambda steps: [b"", *steps[:count], CUT]


def end_after(count: int) -> Fault:
    """Ends the stream in good order, but too early and without [DONE]."""
    return lambda steps: [b"", *steps[:count]]


def put(count: int, step: Step) -> Fault:
    """Puts a step of its own after so many events."""
    return lambda steps: [*steps[:count], step, *steps[count:]]


def edit(change: Callable[[dict[str, Any]], object]) -> Fault:
    """Lets `change` work on each event."""

    def fault(steps: list[Step]) -> list[Step]:
        for step in steps:
            if isinstance(step, dict):
                change(step)
        return steps

    return fault


def slowly(seconds: float) -> Fault:
    """Waits before each event."""
    return lambda steps: [each for step in steps for each in (Wait(seconds), step)]


def split(cuts: Sequence[int], line_end: bytes = b"\n", space: bytes = b" ") -> Fault:
    """Sends the same bytes in other pieces (`cuts` are their lengths, repeated) and another dress."""

    def fault(steps: list[Step]) -> list[Step]:
        data = b"".join(rendered(step) for step in steps).replace(b"\n", line_end).replace(b"data: ", b"data:" + space)
        pieces: list[Step] = []
        lengths = list(cuts) or [len(data)]
        while data:
            length = lengths[len(pieces) % len(lengths)]
            pieces.append(data[:length])
            data = data[length:]
        return pieces

    return fault


def rendered(step: Step) -> bytes:
    if isinstance(step, dict):
        return b"data: " + json.dumps(step, ensure_ascii=False).encode() + b"\n\n"
    assert isinstance(step, bytes)
    return step

"""Server-sent events: frames, and comments that keep a silent connection open.

Source: the WHATWG HTML standard, "Server-sent events".
"""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

DONE = b"data: [DONE]\n\n"
"""What ends a stream of OpenAI's chat and completions."""

PING = b": ping\n\n"
"""A comment, which every client skips."""

CONTENT_TYPE = "text/event-stream; charset=utf-8"

_LINE_ENDS = {each.encode(): f"\\u{ord(each):04x}".encode() for each in "\u0085\u2028\u2029"}


def frame(data: Any, event: str = "") -> bytes:
    """One event with `data` as JSON on one line, named `event` where the dialect names its events."""
    text = to_json(data, inf_nan_mode="null")
    if not text.isascii():  # some clients end a line at these
        for end, escaped in _LINE_ENDS.items():
            text = text.replace(end, escaped)
    return b"event: %s\ndata: %s\n\n" % (event.encode(), text) if event else b"data: %s\n\n" % text

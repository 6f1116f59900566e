"""Server-sent events out of bytes."""

from __future__ import annotations

import re


class SseDecoder:
    """Payloads of server-sent events out of bytes that may be split anywhere, inside a character too.

    Takes LF, CRLF and CR, `data:` with and without a space, several `data` lines an event, comments
    (the pings of gateways) and the `error:` field of older llama.cpp servers.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[str]:
        """The payloads that became complete with `piece`."""
        self._rest += piece
        payloads: list[str] = []
        # A CR at the very end may be half of a CRLF, so it waits for the next byte.
        while match := re.search(rb"\r\n|\n|\r(?!\Z)", self._rest):
            line, self._rest = self._rest[: match.start()], self._rest[match.end() :]
            payloads += self._line(line)
        return payloads

    def flush(self) -> list[str]:
        """The payload that the end of the stream completes: some servers omit the last empty line."""
        rest, self._rest = self._rest.rstrip(b"\r"), b""
        return (self._line(rest) if rest else []) + self._line(b"")

    def _line(self, line: bytes) -> list[str]:
        if not line:
            data, self._data = self._data, []
            return [b"\n".join(data).decode("utf-8", "replace")] if data else []
        name, _, value = line.removeprefix(b"\xef\xbb\xbf").partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"error":
            self._data.append(value if value.lstrip().startswith(b'{"error"') else b'{"error": ' + value + b"}")
        return []

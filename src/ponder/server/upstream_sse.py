"""Server-sent events of an upstream: payloads out of bytes that may be cut anywhere.

Source: the WHATWG HTML standard, "Server-sent events". Linear in the bytes, however long a line is and however small
the pieces are in which it comes; an event that is longer than `most` bytes is refused, for it would fill the memory.
"""

from __future__ import annotations

MOST_EVENT = 8 * 2**20
"""Bytes of one event; an image that a model drew comes in one."""


class TooLong(Exception):
    """An event is longer than the reader takes."""


class SseReader:
    """Takes LF, CRLF and CR, several `data` lines an event, comments, and fields that it does not know."""

    def __init__(self, most: int = MOST_EVENT) -> None:
        self._most = most
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._begun = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The payloads that became complete. Raises TooLong."""
        if self._after_cr or b"\r" in piece:
            piece = self._plain(piece)
        if not (self._line or self._data) and piece.endswith(b"\n\n") and len(piece) <= self._most:
            events = piece[:-2].split(b"\n\n")
            if all(event.startswith(b"data: ") and b"\n" not in event for event in events):  # as most servers send them
                self._begun = True
                return [event[6:] for event in events]
        lines = piece.split(b"\n")
        payloads: list[bytes] = []
        for line in lines[:-1]:
            if self._line:
                line = bytes(self._line + line)
                self._line = bytearray()
            self._take(line, payloads)
        self._line += lines[-1]
        if len(self._line) + self._size > self._most:
            self._line, self._data = bytearray(), []  # whoever handles the exception keeps this reader for a while
            raise TooLong
        return payloads

    def rest(self) -> list[bytes]:
        """The payload that the end of the stream completes: some servers leave out the last empty line."""
        payloads: list[bytes] = []
        self._take(bytes(self._line), payloads)
        self._line = bytearray()
        self._take(b"", payloads)
        return payloads

    def _plain(self, piece: bytes) -> bytes:
        """The piece with its line ends as LF; a CR and an LF in two pieces are one line end."""
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
            self._after_cr = False
        if piece:
            self._after_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _take(self, line: bytes, payloads: list[bytes]) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.startswith(b"data:"):
            value = line[6:] if line[5:6] == b" " else line[5:]
            self._data.append(value)
            self._size += len(value)
        elif not line:
            self._size = 0
            if self._data:
                payloads.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data.clear()

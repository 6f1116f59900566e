"""Structured logs: one JSON object a line, to stderr or a file, with time, level, event and fields.

    log = Log()                                       # to stderr
    log.write("upstream_failed", level="warning", backend="cloud", error="timeout_error")
    log.finished(finished)                            # event "request"
    log.close()

A log is read by more people than a database, so secrets never get into it: a field that is named like one is masked,
and so is anything that looks like one in any text, at any depth, in names of fields too. Text of prompts and answers is
left out unless `content` is on. A line cannot be forged: whatever a text holds is written in ASCII, its control
characters and line ends escaped.

Lines are written by a thread of the log's own. A full disk, a closed stderr or a pipe that nobody reads loses lines,
which are counted in `lost` and told in the next line that can be written; it never fails a request nor holds one up.
"""

from __future__ import annotations

import json
import math
import os
import queue
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ponder.errors import InputError
from ponder.ops.finished import Finished

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")

MASK = "[masked]"
LEFT_OUT = "[left out]"
QUEUE_LINES = 10_000
TEXT_CHARACTERS = 2_000
SCANNED_CHARACTERS = 100_000
ITEMS = 100
DEPTH = 5


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SECRET_NAMES = _names(
    "key apikey xapikey secret clientsecret token accesstoken authtoken refreshtoken bearer authorization"
    " proxyauthorization password passwd passphrase credential credentials cookie setcookie signature"
)
"""Names of fields whose values are never written, whatever they look like; without case, dashes and underscores."""

CONTENT_NAMES = _names(
    "prompt messages message content text question answer answers input output completion response reasoning thinking"
    " instructions system arguments body document documents query variables"
)
"""Names of fields that hold what was asked or answered."""

_PREFIXED = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:sk|pk|rk)[-_][A-Za-z0-9_.+/=-]{4,}"
    r"|(?:gh[oprsu]|github_pat|hf|xox[a-z]|glpat)[-_][A-Za-z0-9_-]{8,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[A-Za-z0-9_-]{16,}"
    r"|eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_.-]*)"
)
_SCHEME = re.compile(r"\b(bearer|basic)(\s+)[^\s\"',;]+", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"((?:api[-_ ]?key|access[-_ ]?token|secret|password|passwd|authorization|cookie)[\"']?\s*[:=]\s*)"
    r"(\"[^\"]*\"?|'[^']*'?|[^\s,;}]+)",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"(://)[^/\s@]+@")
_RUN = re.compile(r"[A-Za-z0-9+/_=-]{24,}")
_WORD = re.compile(
    r"(?:(?:[A-Z][a-z]{1,19}){1,3}[A-Z]{0,3}|[a-z]{1,20}|[A-Z]{1,8})\d{0,4}[A-Z]?|\d{1,8}[A-Za-z]{0,3}|[A-Za-z0-9]{1,4}"
)
_ID = re.compile(r"(?:[A-Za-z]{1,12}[-_])?[0-9a-fA-F]{8,32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False).encode


class Id(str):
    """An id that ponder made itself, which would otherwise pass for a secret. Only hexadecimal ones are let through."""

    __slots__ = ()


_clean: set[str] = set()
"""Short texts that were looked at and hold nothing to mask: names of models and fields come with every request."""


def mask(text: str) -> str:
    """The text with whatever looks like a secret masked: `sk-...`, `pk_...`, `Bearer ...`, passwords in addresses,
    and runs of 24 or more characters of base64 or hexadecimal that are not words, as names of models and paths are."""
    if text in _clean:
        return text
    masked = _SCHEME.sub(rf"\1\2{MASK}", text)
    masked = _ASSIGNED.sub(rf"\1{MASK}", masked)
    masked = _USERINFO.sub(rf"\1{MASK}@", masked)
    masked = _PREFIXED.sub(MASK, masked)
    masked = _RUN.sub(lambda run: run[0] if _is_words(run[0]) else MASK, masked)
    if masked == text and len(text) <= 64:
        if len(_clean) >= 4_096:
            _clean.clear()
        _clean.add(text)
    return masked


def _is_words(run: str) -> bool:
    parts = [part for part in re.split(r"[-_/+=]", run) if part]
    return all(_WORD.fullmatch(part) for part in parts)


class Log:
    """Lines of JSON. path: a file to append to, made readable for its owner alone; None for stderr. level: the least
    that is written. content: whether text of prompts and answers is. Safe to use from several threads.

    Raises InputError for a file that cannot be opened.
    """

    def __init__(self, path: str | Path | None = None, *, level: Level = "info", content: bool = False) -> None:
        if level not in LEVELS:
            raise InputError(f"{level!r} is no level of a log", f"choose one of {', '.join(LEVELS)}")
        self.content = content
        self.lost = 0
        self._least = LEVELS.index(level)
        self._sink: _File | _Stderr = _Stderr() if path is None else _File(Path(path))
        self._lines: queue.Queue[bytes | None] = queue.Queue(QUEUE_LINES)
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="ponder-log", daemon=True)
        self._thread.start()

    def write(self, event: str, level: Level = "info", /, **fields: Any) -> None:
        """Queues one line. Never raises and never waits; values that are no JSON are written as text."""
        if LEVELS.index(level) < self._least:
            return
        self._put(line(event, level, fields, self.content))

    def finished(self, finished: Finished) -> None:
        """The line of a request that has ended: an error where the server failed, a warning where it refused."""
        level: Level = "warning" if finished.status >= 400 else "info"
        if finished.status >= 500 or (finished.error and finished.status < 400):
            level = "error"
        fields = finished.fields()
        for name in ("id", "trace_id"):
            if name in fields:
                fields[name] = Id(fields[name])
        self.write(
            "request", "error" if level != "info" and finished.status in (200, *range(500, 600)) else level, **fields
        )

    def close(self, deadline: float = 2.0) -> None:
        """Writes what is queued, for at most `deadline` seconds. Lines that come later are lost. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        try:
            self._lines.put(None, timeout=deadline)
        except queue.Full:
            return
        self._thread.join(deadline)

    def _put(self, text: bytes) -> None:
        try:
            if self._closed:
                raise queue.Full
            self._lines.put_nowait(text)
        except queue.Full:
            self._lose()

    def _lose(self) -> None:
        with self._lock:
            self.lost += 1

    def _work(self) -> None:
        told = 0
        while (text := self._lines.get()) is not None:
            if self.lost > told:
                lost = self.lost
                if self._sink.write(line("log_lines_lost", "warning", {"lines": lost - told}, self.content)):
                    told = lost
            if not self._sink.write(text):
                self._lose()
        self._sink.close()


def line(event: str, level: Level, fields: Mapping[str, Any], content: bool = False) -> bytes:
    """One line of the log, its end included; time in UTC."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    head = {"time": now, "level": level, "event": mask(event)[:TEXT_CHARACTERS]}
    body = {name: value for name, value in _object(fields, content, 0).items() if name not in head}
    return _encode(head | body).encode("ascii") + b"\n"


def _object(fields: Mapping[Any, Any], content: bool, depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in list(fields.items())[:ITEMS]:
        plain[_text(str(name))] = _named(str(name), value, content, depth)
    return plain


def _named(name: str, value: Any, content: bool, depth: int) -> Any:
    bare = "".join(filter(str.isalpha, name.lower()))
    if bare in SECRET_NAMES and value is not None:
        return MASK
    if bare in CONTENT_NAMES and not content and value is not None:
        return LEFT_OUT
    return _plain(value, content, depth)


def _plain(value: Any, content: bool, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if type(value) is str:
        return _text(value)
    if isinstance(value, int):
        return value if abs(value) < 2**63 else _text(hex(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Id):
        return str(value) if _ID.fullmatch(value) and not _PREFIXED.search(value) else _text(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(value)} bytes]"
    if isinstance(value, Mapping | Sequence | set | frozenset) and not isinstance(value, str):
        if depth >= DEPTH:
            return LEFT_OUT
        if isinstance(value, Mapping):
            return _object(value, content, depth + 1)
        return [_plain(each, content, depth + 1) for each in list(value)[:ITEMS]]
    return _text(_told(value))


def _told(value: Any) -> str:
    """A value in words. An exception is its kind and message; nothing may fail here, not even a `__str__`."""
    try:
        return f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else str(value)
    except Exception:
        return f"[{type(value).__name__}]"


def _text(text: str) -> str:
    # Masked before it is cut: half a secret is not seen to be one. Therefore the last word goes with the rest.
    scanned = mask(text if len(text) <= SCANNED_CHARACTERS else text[:SCANNED_CHARACTERS].rpartition(" ")[0])
    return scanned if len(scanned) <= TEXT_CHARACTERS else scanned[:TEXT_CHARACTERS] + "..."


class _Stderr:
    """The process's stderr, as it is when a line is written."""

    def write(self, text: bytes) -> bool:
        try:
            stream = sys.stderr
            stream.write(text.decode("ascii"))
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, broken, or not there at all
            return False
        return True

    def close(self) -> None:
        pass


class _File:
    """A file that is appended to, a line at a time."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(
                path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600
            )
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}", "choose another file for the log") from None
        self._torn = False

    def write(self, text: bytes) -> bool:
        # After half a line its end is written first, so that the next one stays a line of its own.
        left = b"\n" + text if self._torn else text
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
                self._torn = True  # until it is whole
        except OSError:
            return False
        self._torn = False
        return True

    def close(self) -> None:
        os.close(self._descriptor)

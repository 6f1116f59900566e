"""Runs `ponder` as a user does: in this process where that is the same, in one of its own where it is not.

script = scripted(tmp_path, "It is 4.", thinking="2 + 2 is 4.")
assert ponder("ask", "-m", script, "2 + 2?").out == "It is 4.\\n"
"""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ponder import cli
from ponder.engine.scripted import CHATML
from ponder.ops.store import Store
from ponder.types import Trace

THINKS = "{# <think> #}" + CHATML
"""A template by which a model is taken for one that was trained to think."""

COMMAND = (sys.executable, "-m", "ponder.cli")


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


# ---------------------------------------------------------------- scripts


def write_script(path: Path, replies: Sequence[dict[str, Any]], **rest: Any) -> str:
    """Writes a script and gives its uri; `rest` holds `faults`, `otherwise` and `model`."""
    model = {"chat_template": THINKS} | rest.pop("model", {})
    path.write_text(json.dumps({"version": 1, "replies": list(replies), "model": model, **rest}), encoding="utf-8")
    return f"scripted:{path}"


def scripted(folder: Path, answer: str, thinking: str = "Let me see.", **rest: Any) -> str:
    """A model that thinks and answers, answers at once where it may not think, and steps where it is asked to."""
    replies = [
        {"when": "step by step", "say": f"{thinking} The answer is 4."},
        {"after": "</think>", "say": f"\n\n{answer}"},
        {"say": f"<think>\n{thinking}\n</think>\n\n{answer}"},
    ]
    return write_script(folder / "script.json", replies, **rest)


def slowly(seconds: float) -> list[dict[str, Any]]:
    """Faults that delay every token."""
    return [{"kind": "delay", "seconds": seconds, "every": True, "times": None}]


# ---------------------------------------------------------------- in this process


def ponder(*arguments: object, stdin: str | bytes | None = None) -> Result:
    """`ponder ARGUMENTS` by way of `ponder.cli.main`, its streams being files; standard input is /dev/null if None."""
    with _reading(stdin) as reader, _writing() as out, _writing() as err:
        code: Any = 0
        argv = ["ponder", *map(str, arguments)]
        with (
            patch.object(sys, "argv", argv),
            patch.object(sys, "stdin", reader),
            patch.object(sys, "stdout", out),
            patch.object(sys, "stderr", err),
        ):
            try:
                cli.main()
            except SystemExit as end:
                code = end.code or 0
        return Result(code, _written(out), _written(err))


@contextmanager
def _reading(data: str | bytes | None) -> Iterator[io.TextIOWrapper]:
    with tempfile.TemporaryFile() if data is not None else open(os.devnull, "rb") as file:
        if data is not None:
            file.write(data.encode() if isinstance(data, str) else data)
            file.seek(0)
        with io.TextIOWrapper(file, encoding="utf-8") as reader:
            yield reader


@contextmanager
def _writing() -> Iterator[io.TextIOWrapper]:
    with io.TextIOWrapper(tempfile.TemporaryFile(), encoding="utf-8") as writer:
        yield writer


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()


# ---------------------------------------------------------------- in a process of its own


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """`ponder ARGUMENTS` as a process with pipes, its standard input being /dev/null unless `options` say else."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([*COMMAND, *map(str, arguments)], **options)


def end(process: subprocess.Popen[bytes], timeout: float = 30) -> Result:
    """How a process ended, and what of its output was not read yet."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Result(process.returncode, (out or b"").decode(), (err or b"").decode())


def run(*arguments: object, stdin: bytes | None = None, timeout: float = 30, **options: Any) -> Result:
    """`ponder ARGUMENTS` as a process, to its end; `stdin` comes through a pipe."""
    source = {"stdin": subprocess.PIPE} if stdin is not None else {}
    process = start(*arguments, **source, **options)
    try:
        out, err = process.communicate(stdin, timeout=timeout)
    finally:
        process.kill()
    return Result(process.returncode, (out or b"").decode(), (err or b"").decode())


def traces() -> list[Trace]:
    """What is stored in the ponder home of the test, newest first."""
    with Store.open() as store:
        return [store.get(summary.id) for summary in store.list()]


def wait_until_asked(timeout: float = 20) -> None:
    """Waits until a request is under way: its trace is in the database."""
    deadline = time.monotonic() + timeout
    while not any(trace.state == "running" for trace in traces()):
        assert time.monotonic() < deadline, "nothing was asked"
        time.sleep(0.02)


# ---------------------------------------------------------------- on a terminal


class Terminal:
    """A process whose three streams are one pseudo-terminal that is its own, so that Ctrl-C reaches it."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        import pty

        self.master, slave = pty.openpty()
        plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=plain | {"TERM": "xterm", "COLUMNS": "100"} | environment,
        )
        os.close(slave)
        self.seen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def type(self, text: str) -> None:
        """Types."""
        os.write(self.master, text.encode())

    def expect(self, text: str, timeout: float = 20) -> str:
        """Reads on until `text` has come, and gives what was read."""
        new, deadline = "", time.monotonic() + timeout
        while text not in new:
            assert time.monotonic() < deadline, f"{text!r} did not come, but {new!r} after {self.seen!r}"
            new += self._read(0.1)
        self.seen += new
        return new

    def end(self, timeout: float = 20) -> int:
        """Waits for the end of the process, whose last words are in `seen`; gives its exit code."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on, having said {self.seen!r}"
            self.seen += self._read(0.05)
        while more := self._read(0.05):
            self.seen += more
        return self.process.returncode

    def _read(self, seconds: float) -> str:
        if select.select([self.master], [], [], seconds)[0]:
            with suppress(OSError):  # the other side is closed
                return os.read(self.master, 1 << 16).decode(errors="replace").replace("\r\n", "\n")
        return ""


# The terminal has to become the one that controls the process, or typing Ctrl-C there means nothing.
ON_TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from ponder.cli import main
main()
"""


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """What Ctrl-C does."""
    process.send_signal(signal.SIGINT)

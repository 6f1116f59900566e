"""Work that may never end, in a child process that a time limit can kill: sympy and `re` obey no other.

One child a kind of work, started on first use and kept. A request and its reply are a line of JSON
each. Run as a file of its own, so it imports nothing of ponder.
"""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

START_SECONDS = 60.0
"""How long a child may take to start: importing sympy is slow where other work takes the cores."""

MEMORY = 4 << 30
"""Bytes of address space of a child: a power tower must not take the machine's memory."""


class NotStarted(TimeoutError):
    """The child died or took too long before it could take a request."""


class Child:
    """A process that runs `script`, started on first use and kept; one request at a time.

    It says a line of its own when it is ready, and replies to each line with a line.
    """

    def __init__(self, script: str | Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self._command = [sys.executable, "-P", str(script), *arguments]
        self._env = env
        """Set beside the environment that there is when it starts."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: list[Any], seconds: float) -> Any:
        """The reply. Raises TimeoutError where it took longer than `seconds`, NotStarted where there is nobody."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            reply = self._line(json.dumps(request) + "\n", seconds)
        if not reply:
            raise TimeoutError
        return json.loads(reply)

    def close(self) -> None:
        """Ends the process. The next request starts a new one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _start(self) -> None:
        self.close()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **(self._env or {})},
        )
        if not self._line("", START_SECONDS):
            raise NotStarted

    def _line(self, request: str, seconds: float) -> str:
        """The reply to `request`, empty where the child was killed or died."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        alarm = threading.Timer(seconds, process.kill)
        alarm.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            reply = process.stdout.readline()
        except OSError:  # it died before it read
            reply = ""
        finally:
            alarm.cancel()
        if not reply.endswith("\n"):
            self.close()
            return ""
        return reply


_children: dict[str, Child] = {}


@atexit.register
def close() -> None:
    """Ends every child of `ask`. The next request starts a new one."""
    for child in list(_children.values()):
        child.close()


async def ask(kind: str, arguments: list[Any], seconds: float) -> Any:
    """What the function `kind` below returns; TimeoutError where that takes longer than `seconds`."""
    child = _children.setdefault(kind, Child(__file__, kind))
    return await asyncio.to_thread(child.ask, [seconds, arguments], seconds)


# ---------------------------------------------------------------- in the child


def same(reference: str, answer: str) -> bool:
    """Whether math-verify takes both for the same expression."""
    library = importlib.import_module("math_verify")
    # Its own time limits are signals, which this process does not need.
    gold, found = (library.parse(f"${text}$", parsing_timeout=None) for text in (reference, answer))
    return bool(gold and found and library.verify(gold, found, timeout_seconds=None))


def search(regex: str, flags: int, text: str) -> list[int] | None:
    """Where `regex` is found in `text`, None where it is not."""
    found = re.search(regex, text, flags)
    return None if found is None else list(found.span())


def main(kind: str) -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no reply
    work, warm_up = (same, ["1", "1"]) if kind == "same" else (search, ["", 0, ""])
    requests = (json.loads(line) for line in sys.stdin)
    for seconds, arguments in itertools.chain([(START_SECONDS, warm_up)], requests):
        # Should the parent be gone, nobody else would end this.
        faulthandler.dump_traceback_later(2 * seconds, exit=True)
        reply: Any = None
        with suppress(Exception):  # what the library cannot read is not the same
            reply = work(*arguments)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

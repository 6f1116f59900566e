"""How an interpreter ends that has work in flight: as it would without an engine, and with no worker left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from llama_requests import is_alive

pytestmark = pytest.mark.model

# Prints the pid of the worker when two samples are under way; `{ending}` is what the script does then.
SCRIPT = """
import asyncio, os, signal, sys
from pathlib import Path
from ponder.engine.llamacpp import LlamaSettings, open_llamacpp
from ponder.protocols import SamplingParams

async def main():
    engine = await open_llamacpp(Path(sys.argv[1]), settings=LlamaSettings(cells=1024, sequences=8, threads=1))
    streams = [engine.sample([504, 5574, 314], 1, SamplingParams(300, ignore_eos=True)) for _ in range(2)]
    for stream in streams:
        while not (await anext(stream)).ids:
            pass
    print(engine.pid, flush=True)
{ending}

asyncio.run(main())
"""


def is_gone(pid: int, within: float = 10) -> bool:
    end = time.monotonic() + within
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_alive(pid)


@contextmanager
def running(weights: Path, ending: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The script, and its worker's pid, at the moment when work is in flight."""
    script = SCRIPT.format(ending=textwrap.indent(textwrap.dedent(ending).strip(), "    "))
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(weights)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        assert said.isdigit(), process.communicate()[1]
        yield process, int(said)
    finally:
        process.kill()
        process.communicate()


ENDINGS = [
    ("return", 0, ""),
    ("sys.exit(3)", 3, ""),
    ("raise RuntimeError('as asked')", 1, "RuntimeError: as asked"),
    ("os._exit(5)", 5, ""),
    ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    ("[await s.aclose() for s in streams]; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),  # an idle one
    ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
    ("os.kill(os.getpid(), signal.SIGINT); await anext(streams[0])", -signal.SIGINT, "KeyboardInterrupt"),
]


@pytest.mark.parametrize(("ending", "code", "words"), ENDINGS, ids=[ending for ending, _, _ in ENDINGS])
def test_an_exit_with_work_in_flight_is_clean(embedded_weights: Path, ending: str, code: int, words: str) -> None:
    with running(embedded_weights, ending) as (process, worker):
        _, complaints = process.communicate(timeout=30)
        assert process.returncode == code
        assert complaints.strip().endswith(words)
        assert bool(complaints) == bool(words), complaints
        assert is_gone(worker)


def test_an_interrupt_of_the_process_group_leaves_the_worker_alone(embedded_weights: Path) -> None:
    ending = """
    signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
    print("ready", flush=True)
    count = 0
    while count < 10:
        count += len((await anext(streams[0])).ids)
    print(count, engine.pid, engine.restarts)
    """
    with running(embedded_weights, ending) as (process, worker):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        out, complaints = process.communicate(timeout=60)
        assert (out, complaints) == (f"interrupted\n10 {worker} 0\n", "")
        assert is_gone(worker)


def test_files_of_the_working_folder_are_not_imported_by_the_worker(embedded_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('imported from the working folder')\n")
    # The script itself is run with -c, which does look there: it has what it needs before it changes the folder.
    ending = f"""
    await engine.close()
    os.chdir({str(tmp_path)!r})
    engine = await open_llamacpp(Path(sys.argv[1]), settings=LlamaSettings(cells=1024, sequences=8, threads=1))
    print(len(await engine.tokenize("a b c")))
    """
    with running(embedded_weights, ending) as (process, worker):
        out, complaints = process.communicate(timeout=30)
        assert (out, complaints) == ("3\n", "")
        assert is_gone(worker)

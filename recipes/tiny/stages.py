"""Stages that need one another, side by side: each in a process of its own, on one core.

A model of a million parameters is too small for two cores to share the work of a step: two trainings at once take
about as long as one.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

SECONDS = Path("seconds.json")
PAUSE = 0.1
"""Seconds between two looks at what has ended."""
ALL, CORES = "all", "of a core"
"""How long all of it took, and how long its stages kept a core busy."""
SHARED = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "peft",
    "ponder.improve",
    "ponder.evals.run",
    "ponder.engine.torch_engine",
)
"""Imported once for all processes: it takes seconds."""


@dataclass(frozen=True)
class Stage:
    """What is there once it is made, and the stages that have to be made before."""

    result: str
    needs: tuple[str, ...] = ()

    @property
    def made(self) -> bool:
        return Path(self.result).exists()


def run(stages: Mapping[str, Stage], make: Callable[[str], int], at_once: int) -> bool:
    """Makes what is not made yet, in the current folder; gives whether all of it could be made.

    make: what makes a stage by its name, and gives 0 where it could. Of the stages that can start, the first one does.
    Where one fails, or after Ctrl-C, those under way are stopped, keep what they have, and go on from there next time.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["__main__", *SHARED])
    busy = processes.SimpleQueue()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its stages must not outlive it
    waiting = [name for name, stage in stages.items() if not stage.made]
    running, began, failed = dict[str, tuple[BaseProcess, float]](), time.perf_counter(), False
    try:
        while running or (waiting and not failed):
            ready = [name for name in waiting if all(need not in (*waiting, *running) for need in stages[name].needs)]
            for name in [] if failed else ready[: at_once - len(running)]:
                waiting.remove(name)
                process = processes.Process(target=_alone, args=(make, name, busy), name=name)
                process.start()
                running[name] = process, time.perf_counter()
            time.sleep(PAUSE)
            for name in [name for name, (process, _) in running.items() if process.exitcode is not None]:
                process, started = running.pop(name)
                spent(name, time.perf_counter() - started)
                print(f"{name:12} {seconds()[name]:6.1f} s", file=sys.stderr, flush=True)
                if process.exitcode and not failed:
                    print(f"{name} did not end well; the same command goes on from there", file=sys.stderr)
                    failed = True
                    stop(running)
    except KeyboardInterrupt:
        failed = True
        stop(running)
    while not busy.empty():
        spent(CORES, busy.get())
    spent(ALL, time.perf_counter() - began)
    return not failed


def _alone(make: Callable[[str], int], name: str, busy: multiprocessing.SimpleQueue[float]) -> None:
    """In a process of its own: makes a stage with one thread, and tells how long it kept its core busy."""
    import torch

    torch.set_num_threads(1)
    try:
        sys.exit(make(name))
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF)
        busy.put(used.ru_utime + used.ru_stime)


def stop(running: Mapping[str, tuple[BaseProcess, float]]) -> None:
    """Ends what runs: a training after the step under way."""
    for process, _ in running.values():
        process.terminate()
    for process, _ in running.values():
        process.join()


def seconds() -> dict[str, float]:
    """How long each stage took, all its starts together."""
    return dict(json.loads(SECONDS.read_text("utf-8"))) if SECONDS.exists() else {}


def spent(name: str, more: float) -> None:
    """Adds to what a stage took."""
    known = seconds()
    known[name] = round(known.get(name, 0.0) + more, 1)
    SECONDS.write_text(json.dumps(known), "utf-8")

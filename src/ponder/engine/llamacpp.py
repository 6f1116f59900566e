"""The `gguf:` engine: llama.cpp in a child process, over exact token ids.

The child (`llamacpp_worker`) isolates the interpreter from native code: work in flight at exit is
simply dropped, a crash fails the requests under way with one clear error, and the next request starts
a new child. Any number of engines may live in one process. Calls may come from several event loops.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ponder import errors
from ponder.engine.libllama import CACHE_TYPES
from ponder.engine.streaming import CAPABILITIES, Asker, Line, Mailbox, no_chat
from ponder.engine.weights import Adapter
from ponder.errors import EngineDisconnected, EngineError
from ponder.protocols import Capabilities, ChatChunk, Chunk, ModelInfo, SamplingParams
from ponder.types import Message

_SPIN = {"GOMP_SPINCOUNT": "1000"}
"""How long threads of llama.cpp spin before they sleep. OpenMP's own choice, 300 times as long, is as fast on
idle cores and 20 times as slow on busy ones, where a thread spins in vain for one that has no core.
"""

_NO_BACKTRACE = {"GGML_NO_BACKTRACE": "1"}
"""A failed assertion would call a debugger for a backtrace, which takes seconds."""


@dataclass(frozen=True)
class LlamaSettings:
    """How llama.cpp runs.

    cells: tokens that the key-value cache holds, over all sequences; None fits the model's context,
    at least 16,384 and at most 1 GiB of cache. shelf: bytes of main memory for computed sequences that
    wait to be continued outside of it. sequences: samples at once, prompts included, 2 to 256.
    threads: None takes every core. batch: prompt tokens computed at a time, no fewer than sequences.
    gpu_layers: -1 offloads all where there is a GPU. cache_type: f16, bf16, or, with flash attention
    alone, q8_0 or q4_0 keys and values. Raises ValueError for what llama.cpp would refuse or abort on.
    """

    cells: int | None = None
    shelf: int = 2**30
    sequences: int = 64
    threads: int | None = None
    batch: int = 512
    gpu_layers: int = -1
    flash_attention: bool = True
    cache_type: str = "f16"

    def __post_init__(self) -> None:
        if not 2 <= self.sequences <= 256:
            raise ValueError(f"sequences must lie between 2 and 256, not {self.sequences}")
        for name, value in (("batch", self.batch), ("cells", self.cells)):
            if value is not None and value < self.sequences:
                raise ValueError(f"{name} must be at least sequences, which is {self.sequences}, not {value}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads}")
        if self.cache_type not in CACHE_TYPES:
            raise ValueError(f"cache_type must be one of {', '.join(CACHE_TYPES)}, not {self.cache_type!r}")
        if self.cache_type.startswith("q") and not self.flash_attention:
            raise ValueError(f"cache_type {self.cache_type} needs flash_attention")


@dataclass
class _Child:
    """A running worker, the mailboxes of its requests, and its last words."""

    process: subprocess.Popen[bytes]
    mailboxes: dict[int, Mailbox] = field(default_factory=dict)
    words: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    # Reentrant: a stream that is dropped says so from wherever the garbage collector happens to run.
    lock: threading.RLock = field(default_factory=threading.RLock)
    ended: bool = False
    stopped: bool = False
    owner: int = field(default_factory=os.getpid)

    def send(self, line: Line) -> None:
        assert self.process.stdin is not None
        text = json.dumps(line).encode() + b"\n"
        try:
            with self.lock:
                self.process.stdin.write(text)
                self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            self.ended = True

    def stop(self) -> None:
        if self.owner != os.getpid():  # a forked copy of the process must leave the original's worker alone
            return
        self.ended = self.stopped = True
        self.process.kill()
        self.bury()

    def crashed(self) -> EngineError:
        """Why it has ended."""
        if self.stopped:
            return EngineError("this engine was closed while it worked", "open another with ponder.engine.open_engine")
        how = _how(self.process.poll())
        said = f" after saying: {self.words[-1].strip()}" if self.words else ""
        return EngineDisconnected(f"llama.cpp ended ({how}){said}", "ask again: the next request starts it anew")

    def bury(self) -> None:
        """Waits for the end of the process, and closes what led to it."""
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


_children: weakref.WeakSet[LlamaEngine] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for engine in list(_children):
        engine.kill()


class LlamaEngine:
    """Implements `protocols.Engine`. Open it with `open_llamacpp`."""

    def __init__(
        self, path: Path, adapters: Sequence[Adapter], settings: LlamaSettings, metadata: Mapping[str, Any]
    ) -> None:
        self._path = path
        self._adapters = tuple(adapters)
        self._settings = settings
        self._extra_metadata = {"ponder.adapters": {a.name: a.scale for a in adapters}} | dict(metadata)
        self._pieces: dict[int, bytes] = {}
        self._starting = threading.Lock()
        self._child: _Child | None = None
        self._closed = False
        self.restarts = -1
        """How often the worker had to be started again."""
        self.info = self._start()
        _children.add(self)

    @property
    def uri(self) -> str:
        return f"gguf:{self._path}"

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters that are loaded, with their files and the scales they have by default."""
        return self._adapters

    @property
    def capabilities(self) -> Capabilities:
        return replace(CAPABILITIES, embed=True, adapters=tuple(a.name for a in self._adapters))

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._living().process.pid

    # ------------------------------------------------------------ the child

    def _cells(self) -> int:
        if self._settings.cells is not None:
            return self._settings.cells
        from ponder.engine.gguf_header import read_header

        header = read_header(self._path).metadata
        kind = header.get("general.architecture", "llama")
        heads = int(header.get(f"{kind}.attention.head_count") or 1)
        keys = header.get(f"{kind}.attention.head_count_kv") or heads
        width = int(header.get(f"{kind}.embedding_length") or 4096) // heads
        width = int(header.get(f"{kind}.attention.key_length") or width)
        keys = max(keys) if isinstance(keys, list | tuple) else int(keys)
        a_token = 4 * width * keys * int(header.get(f"{kind}.block_count") or 32)
        context = int(header.get(f"{kind}.context_length") or 4096)
        return max(1024, min(max(16_384, context), 2**30 // a_token))

    def _start(self) -> ModelInfo:
        settings = asdict(self._settings) | {
            "path": str(self._path),
            "adapters": [str(a.path) for a in self._adapters],
            "cells": self._cells(),
            "threads": self._settings.threads or len(os.sched_getaffinity(0)),
        }
        log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (the listening thread closes it)
        process = subprocess.Popen(
            # -P: without it, files of the working folder would be imported in place of Python's own modules.
            [sys.executable, "-P", "-m", "ponder.engine.llamacpp_worker"],
            env=_SPIN | os.environ | _NO_BACKTRACE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us: the worker stops when its input closes
        )
        child = _Child(process)
        child.send(settings)
        assert process.stdout is not None
        first = process.stdout.readline()
        answer = json.loads(first) if first else {}
        if "ready" not in answer:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)  # it is ending, and its exit code says why
            child.stop()
            log.seek(0)
            words = log.read().strip().splitlines()
            log.close()
            if "failed" in answer:
                name, problem, mend = answer["failed"]
                raise getattr(errors, name)(problem, mend)
            raise EngineError(
                f"llama.cpp ended while loading {self._path} ({_how(process.returncode)})",
                f"it said: {words[-1] if words else 'nothing'}",
            )
        self._child = child
        weakref.finalize(self, child.stop)  # an engine that is dropped takes its worker along
        self.restarts += 1
        threading.Thread(target=_listen, args=(child, log), daemon=True, name="ponder-llamacpp").start()
        ready = answer["ready"]
        self._end_ids = frozenset(ready["end_ids"])
        return ModelInfo(
            name=ready["metadata"].get("general.name", self._path.stem),
            context=ready["context"],
            eos_ids=tuple(ready["end_ids"]),
            bos=ready["bos"],
            eos=ready["eos"],
            chat_template=ready["chat_template"],
            parameters=ready["parameters"],
            metadata=ready["metadata"] | self._extra_metadata,
        )

    def _living(self) -> _Child:
        """The worker, started again if it has died."""
        if self._closed:
            raise EngineError("this engine is closed", "open another with ponder.engine.open_engine")
        with self._starting:
            if self._child is None or self._child.ended:
                self._start()
            assert self._child is not None
            if self._closed:  # meanwhile, from another thread
                self._child.stop()
            return self._child

    async def _ready_child(self) -> _Child:
        """The worker. Starting it again takes as long as loading the model, and the event loop goes on meanwhile."""
        child = self._child
        return await asyncio.to_thread(self._living) if self._closed or child is None or child.ended else child

    def kill(self) -> None:
        """Ends the worker at once, whatever it does."""
        self._closed = True
        if self._child is not None:
            self._child.stop()

    async def close(self) -> None:
        self.kill()

    # ------------------------------------------------------------ Engine

    @property
    def _asker(self) -> Asker:  # made anew: kept, it would keep an engine alive that nobody else has
        return Asker(self._ready_child, [(a.name, a.scale) for a in self._adapters], self._pieces)

    async def tokenize(self, text: str) -> list[int]:
        return await self._asker.tokenize(text)

    async def detokenize(self, ids: Sequence[int]) -> str:
        return await self._asker.detokenize(ids)

    async def score(self, ids: Sequence[int], start: int, params: SamplingParams | None = None) -> list[float]:
        return await self._asker.score(ids, start, params)

    async def embed(self, ids: Sequence[int], params: SamplingParams | None = None) -> list[float]:
        """See `protocols.Embedder`."""
        return await self._asker.embed(ids, params)

    async def counts(self) -> dict[str, int]:
        """What the worker does and has done: samples `running`, `requests`, tokens `cached` and `computed`."""
        return await self._asker.counts()

    def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> AsyncIterator[Chunk]:
        return self._asker.sample(prefix, n, params)

    def chat(
        self, messages: Sequence[Message], n: int, params: SamplingParams, think: bool | None = None
    ) -> AsyncIterator[ChatChunk]:
        raise no_chat("gguf")


def _listen(child: _Child, log: Any) -> None:
    """The reading thread: hands replies out, and tells everybody when the worker has died."""
    assert child.process.stdout is not None
    try:
        for text in child.process.stdout:
            line = json.loads(text)
            mailbox = child.mailboxes.get(line["id"])
            if mailbox is not None:
                mailbox.put(line)
    except ValueError:  # the pipe was closed under us, or the worker died within a line
        pass
    child.ended = True
    child.bury()
    log.seek(0)
    child.words.extend(log.read().splitlines()[-20:])
    log.close()
    error = child.crashed()
    for mailbox in list(child.mailboxes.values()):
        mailbox.put({"error": [type(error).__name__, error.problem, error.mend]})


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


async def open_llamacpp(
    path: Path,
    *,
    adapters: Sequence[Adapter] = (),
    settings: LlamaSettings | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> LlamaEngine:
    """Loads a GGUF file, and low-rank adapters that requests may switch on.

    `metadata` is added to what the file says of itself. Raises WeightsError where llama.cpp cannot
    read a file, EngineError where memory is short.
    """
    chosen = settings or LlamaSettings()
    return await asyncio.to_thread(LlamaEngine, Path(path), adapters, chosen, metadata or {})

"""The `gguf:` engine: llama.cpp in a child process, over exact token ids.

The child (`llamacpp_worker`) isolates the interpreter from native code: work in flight at exit is
simply dropped, a crash fails the requests under way with one clear error, and the next request starts
a new child. Any number of engines may live in one process. Calls may come from several event loops.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import json
import operator
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ponder import errors
from ponder.engine.libllama import CACHE_TYPES
from ponder.engine.sampling import Sampling
from ponder.engine.weights import Adapter
from ponder.errors import EngineDisconnected, EngineError, InputError, PonderError, Unsupported
from ponder.protocols import Capabilities, ChatChunk, Chunk, LogProbs, ModelInfo, SamplingParams
from ponder.types import Finish, Message

Line = dict[str, Any]

_SPIN = {"GOMP_SPINCOUNT": "1000"}
"""How long threads of llama.cpp spin before they sleep. OpenMP's own choice, 300 times as long, is as fast on
idle cores and 20 times as slow on busy ones, where a thread spins in vain for one that has no core.
"""

_NO_BACKTRACE = {"GGML_NO_BACKTRACE": "1"}
"""A failed assertion would call a debugger for a backtrace, which takes seconds."""

_Decoder = getincrementaldecoder("utf-8")


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


class _Mailbox:
    """Replies to one request, from the reading thread to the event loop that asked.

    Waking that loop costs more than all else that is done for a token, so it is woken only where it waits.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lines: deque[Line] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, line: Line) -> None:
        self._lines.append(line)
        if (waiter := self._waiter) is not None:
            self._waiter = None
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody is waiting any more
                self._loop.call_soon_threadsafe(_wake, waiter)

    async def get(self) -> Line:
        while not self._lines:
            self._waiter = waiter = self._loop.create_future()
            if not self._lines:  # nothing came between the look and the announcement
                await waiter
        line = self._lines.popleft()
        if "error" in line:
            name, problem, mend = line["error"]
            raise getattr(errors, name)(problem, mend)
        return line


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


@dataclass
class _Child:
    """A running worker, the mailboxes of its requests, and its last words."""

    process: subprocess.Popen[bytes]
    mailboxes: dict[int, _Mailbox] = field(default_factory=dict)
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
        self._keys = itertools.count()
        self._starting = threading.Lock()
        self._child: _Child | None = None
        self._closed = False
        self._pieces: dict[int, bytes] = {}
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
        return Capabilities(score=True, until=True, first=True, adapters=tuple(a.name for a in self._adapters))

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

    async def _ask(self, line: Line) -> Any:
        child, key, mailbox = await self._ready_child(), next(self._keys), _Mailbox()
        child.mailboxes[key] = mailbox
        try:
            _post(child, key, line)
            return (await mailbox.get())["result"]
        except asyncio.CancelledError:
            if line["op"] == "score":  # all else is answered at once
                child.send({"op": "cancel", "id": key})
            raise
        finally:
            child.mailboxes.pop(key, None)

    async def tokenize(self, text: str) -> list[int]:
        ids: list[int] = await self._ask({"op": "tokenize", "text": text})
        return ids

    async def detokenize(self, ids: Sequence[int]) -> str:
        ids = _integers(ids)
        missing = [i for i in dict.fromkeys(ids) if i not in self._pieces]
        if missing:
            pieces = await self._ask({"op": "pieces", "ids": missing})
            self._pieces.update(zip(missing, (p.encode("latin-1") for p in pieces), strict=True))
        return b"".join(self._pieces[i] for i in ids).decode("utf-8", "replace")

    async def score(self, ids: Sequence[int], start: int, params: SamplingParams | None = None) -> list[float]:
        if not 1 <= start <= len(ids):
            raise InputError(f"cannot score from token {start} of {len(ids)}", "start lies between 1 and the length")
        scales = self._scales(params.adapters if params else None)
        computed, scores = await self._ask({"op": "score", "ids": _integers(ids), "start": start, "adapters": scales})
        return LogProbs(scores, computed)

    async def counts(self) -> dict[str, int]:
        """What the worker does and has done: samples `running`, `requests`, tokens `cached` and `computed`."""
        counted: dict[str, int] = await self._ask({"op": "describe"})
        return counted

    def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> AsyncIterator[Chunk]:
        if n < 1:
            raise InputError(f"n must be at least 1, not {n}")
        return _Stream(self, _integers(prefix), n, params)

    def chat(
        self, messages: Sequence[Message], n: int, params: SamplingParams, think: bool | None = None
    ) -> AsyncIterator[ChatChunk]:
        raise Unsupported("the gguf engine takes token ids, not messages", "use ponder.chat to make the prompt")

    def _scales(self, chosen: Mapping[str, float] | None) -> list[float]:
        if chosen is None:
            return [a.scale for a in self._adapters]
        names = [a.name for a in self._adapters]
        if unknown := [name for name in chosen if name not in names]:
            raise InputError(f"no adapter {unknown[0]!r} is loaded", f"choose from {', '.join(names) or 'none'}")
        return [float(chosen.get(name, 0.0)) for name in names]


def _integers(ids: Sequence[int]) -> list[int]:
    """Plain integers, whatever kind of integers they were. Raises TypeError for anything else."""
    return [operator.index(token) for token in ids]


class _Stream:
    """The chunks of one request. After `aclose`, `undelivered` counts tokens that nobody had read."""

    _child: _Child | None = None
    _ended = False

    def __init__(self, engine: LlamaEngine, prefix: list[int], n: int, params: SamplingParams) -> None:
        self.undelivered = 0
        self._line: Line = {
            "op": "sample",
            "prefix": prefix,
            "n": n,
            "max_tokens": params.max_tokens,
            "until": params.until,
            "adapters": engine._scales(params.adapters),
            "sampling": asdict(
                Sampling(
                    temperature=params.temperature,
                    top_p=params.top_p,
                    top_k=params.top_k,
                    min_p=params.min_p,
                    seed=random.getrandbits(63) if params.seed is None else params.seed,
                    ignore_eos=params.ignore_eos,
                    first=params.first,
                )
            ),
        }
        self._engine = engine
        self._key = next(engine._keys)
        self._mailbox: _Mailbox | None = None
        self._decoders = [_Decoder("replace") for _ in range(n)]
        self._ready: deque[Chunk] = deque()

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> Chunk:
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            try:
                mailbox = self._mailbox or await self._open()
                line = await mailbox.get()
            except PonderError:
                self._forget()
                raise
            except BaseException:
                await self.aclose()
                raise
            self._take(line)
        return self._ready.popleft()

    async def _open(self) -> _Mailbox:
        child = await self._engine._ready_child()
        self._child, self._mailbox = child, _Mailbox()
        child.mailboxes[self._key] = self._mailbox
        _post(child, self._key, self._line)
        return self._mailbox

    def _take(self, line: Line) -> None:
        if "prompt" in line:
            computed, cached = line["prompt"]
            self._ready.append(Chunk(0, prompt_computed=computed, prompt_cached=cached))
        finishes: dict[int, Finish] = dict(line.get("f", ()))
        for index, token, logprob, piece in line.get("t", ()):
            finish = finishes.pop(index, None)
            text = self._decoders[index].decode(piece.encode("latin-1"), final=False)
            pending = bool(self._decoders[index].getstate()[0])
            self._ready.append(Chunk(index, (token,), text, (logprob,), finish, pending=pending))
        self._ready.extend(Chunk(index, finish=finish) for index, finish in finishes.items())
        if line.get("end"):
            self._forget()

    def _forget(self) -> None:
        self._ended = True
        if self._child is not None:
            self._child.mailboxes.pop(self._key, None)

    async def aclose(self) -> None:
        """Cancels what still runs, and waits until it has stopped."""
        if self._mailbox is None or self._child is None:
            self._ended = True
        elif not self._ended:
            self._child.send({"op": "cancel", "id": self._key})
            while not self._ended and not self._child.ended:
                try:
                    self._take(await asyncio.wait_for(self._mailbox.get(), 60))
                except (PonderError, TimeoutError):
                    self._forget()
        self.undelivered += sum(len(chunk.ids) for chunk in self._ready)
        self._ready.clear()

    def __del__(self) -> None:
        """A stream that is dropped half-read is cancelled, as a generator would be."""
        if self._child is not None and not self._ended:
            self._child.mailboxes.pop(self._key, None)
            self._child.send({"op": "cancel", "id": self._key})


def _post(child: _Child, key: int, line: Line) -> None:
    child.send(line | {"id": key})
    if child.ended:
        raise _crashed(child)


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
    error = _crashed(child)
    for mailbox in list(child.mailboxes.values()):
        mailbox.put({"error": [type(error).__name__, error.problem, error.mend]})


def _crashed(child: _Child) -> EngineError:
    if child.stopped:
        return EngineError("this engine was closed while it worked", "open another with ponder.engine.open_engine")
    how = _how(child.process.poll())
    said = f" after saying: {child.words[-1].strip()}" if child.words else ""
    return EngineDisconnected(f"llama.cpp ended ({how}){said}", "ask again: the next request starts it anew")


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

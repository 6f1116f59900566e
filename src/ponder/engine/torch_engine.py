"""The `hf:` engine: a transformers model in this process, on its own living weights, over exact token ids.

One thread computes. It is opened from files with `open_torch`, or put on a model that is being trained, so that
a trainer's verifiers and evaluations ask the model as it is, without a copy. What the thread computed from weights
that have changed since is never used: optimisers' steps in place are noticed, and `refresh` tells of all else.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ponder.engine.download import Progress, silent
from ponder.engine.scheduler import Scheduler
from ponder.engine.serving import Server, wire
from ponder.engine.streaming import CAPABILITIES, Asker, Line, Mailbox, no_chat
from ponder.engine.torch_adapters import adapters_of, is_plain
from ponder.engine.torch_backend import TorchBackend
from ponder.engine.torch_decoder import covers
from ponder.engine.torch_load import load
from ponder.engine.torch_projection import narrowest, packs
from ponder.engine.torch_slow import SlowBackend
from ponder.engine.torch_tokens import Tokens
from ponder.engine.weights import Adapter
from ponder.errors import EngineDisconnected, EngineError, PonderError
from ponder.protocols import ChatChunk, Chunk, ModelInfo, SamplingParams
from ponder.types import Message

CONTEXT = 2048
"""Tokens of a sequence where nobody asks for another number."""

CACHE = 8 * 2**30
"""Bytes for keys and values at most, where nobody asks for another number."""

SMALL = 10_000_000
"""Weights of a model that is too small for narrow numbers to make it faster."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class TorchSettings:
    """How a model of transformers runs.

    context: tokens of a sequence; None is what the model was made for, at most 2,048. sequences: samples at once,
    prompts included, 2 to 4,096, and no more than have room at full length in `cache`, bytes for keys and values; None
    is half of the device's memory, at most 8 GiB; less is taken as long as less is used. shelf: bytes of main memory
    for computed sequences that wait to be continued. batch: prompt tokens computed at a time. dtype: float32, bfloat16
    or float16 weights and arithmetic; None takes bfloat16 where the device computes in it, unless the model is tiny. A
    model that is given as it is keeps its weights, and None is then their own type. device: such as cpu or cuda; None
    takes the accelerator if there is one. threads: None takes every core. fold: of a model with adapters that is opened
    from files, keeps another copy of the weights with the adapters in it, at the scales of whoever asks for none, which
    computes faster. slow: computes by the model's own forward pass, a sequence at a time. Raises ValueError for what
    cannot be.
    """

    context: int | None = None
    sequences: int = 160
    cache: int | None = None
    shelf: int = 2**30
    batch: int = 512
    dtype: str | None = None
    device: str | None = None
    threads: int | None = None
    fold: bool = True
    slow: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.sequences <= 4096:
            raise ValueError(f"sequences must lie between 2 and 4096, not {self.sequences}")
        for name in ("context", "cache", "batch", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")


class TorchEngine:
    """Implements `protocols.Engine` on a causal model of transformers and its fast tokenizer.

    While requests run, nobody else may change the model. Adapters are those of peft in the model, by name; those
    switched on when the engine is made are the default. Training mode and adapters of the model itself stay as they
    are. pack: keeps a second copy of the weights in the order that a processor's bfloat16 product reads fastest.
    fold: keeps one with the default adapters in it.
    Raises InputError for a tokenizer without exact tokens.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        settings: TorchSettings | None = None,
        name: str = "model",
        uri: str | None = None,
        adapters: Sequence[Adapter] = (),
        metadata: Mapping[str, Any] | None = None,
        pack: bool = False,
        fold: bool = False,
    ) -> None:
        chosen = settings or TorchSettings()
        config = model.config
        size = int(model.get_input_embeddings().weight.shape[0])
        tokens = Tokens(tokenizer, size, _end_ids(model, tokenizer))
        context = min(chosen.context or CONTEXT, getattr(config, "max_position_embeddings", None) or CONTEXT)
        scales = {**adapters_of(model), **{adapter.name: adapter.scale for adapter in adapters}}
        backend = _backend(model, chosen, context, pack, tuple(scales.values()) if fold else ())
        self._scales = tuple(scales.items())
        self.uri = uri or f"hf:{name}"
        self.adapters = tuple(adapters)
        self.capabilities = replace(CAPABILITIES, adapters=tuple(scales))
        self.info = ModelInfo(
            name=name,
            context=context,
            eos_ids=tokens.end_ids,
            bos=tokenizer.bos_token or "",
            eos=tokenizer.eos_token or "",
            chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
            parameters=sum(p.numel() for key, p in model.named_parameters() if "lora_" not in key),
            metadata={
                "general.architecture": config.model_type,
                "ponder.adapters": {key: scale for key, scale in scales.items() if scale},
                "ponder.path": "slow" if isinstance(backend, SlowBackend) else "batched",
                **(metadata or {}),
            },
        )
        self._pieces: dict[int, bytes] = {}
        self._worker = _Worker(backend, tokens, model, chosen)
        weakref.finalize(self, self._worker.stop)  # at the end of the program, too

    # ------------------------------------------------------------ Engine

    @property
    def _asker(self) -> Asker:  # made anew: kept, it would keep an engine alive that nobody else has
        return Asker(self._link, self._scales, self._pieces)

    async def _link(self) -> _Worker:
        if self._worker.stopped:
            raise EngineError("this engine is closed", "open another with ponder.engine.open_engine")
        if self._worker.ended:
            raise self._worker.crashed()
        return self._worker

    async def tokenize(self, text: str) -> list[int]:
        return await self._asker.tokenize(text)

    async def detokenize(self, ids: Sequence[int]) -> str:
        return await self._asker.detokenize(ids)

    async def score(self, ids: Sequence[int], start: int, params: SamplingParams | None = None) -> list[float]:
        return await self._asker.score(ids, start, params)

    async def counts(self) -> dict[str, int]:
        """What is done and has been done: samples `running`, `requests`, tokens `cached` and `computed`."""
        return await self._asker.counts()

    def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> AsyncIterator[Chunk]:
        return self._asker.sample(prefix, n, params)

    def chat(
        self, messages: Sequence[Message], n: int, params: SamplingParams, think: bool | None = None
    ) -> AsyncIterator[ChatChunk]:
        raise no_chat("hf")

    def refresh(self) -> None:
        """Forgets all that was computed, and renews copies of weights, before any later request is answered.

        Requests under way fail with EngineError. Needed only where weights were changed otherwise than in place.
        """
        self._worker.refresh()

    async def close(self) -> None:
        await asyncio.to_thread(self._worker.stop)


# ---------------------------------------------------------------- the thread


class _Worker:
    """The thread that computes. Implements `streaming.Link`."""

    def __init__(
        self, backend: TorchBackend | SlowBackend, tokens: Tokens, model: nn.Module, settings: TorchSettings
    ) -> None:
        self.mailboxes: dict[int, Mailbox] = {}
        self.ended = self.stopped = False
        self._backend: TorchBackend | SlowBackend | None = backend
        self._threads = settings.threads
        self._versions = _versions_of(model)
        self._seen = self._versions()
        self._error: BaseException | None = None
        sequences = _sequences(backend, settings)
        cells = sequences * backend.context
        if isinstance(backend, TorchBackend):
            backend.reserve(sequences)
        scheduler = Scheduler(
            backend,
            cells=cells,
            sequences=sequences,
            end_ids=tokens.end_ids,
            shelf=settings.shelf,
            tidy=False,  # the rows of idle sequences are computed in no step
        )
        self._server: Server | None = Server(
            scheduler, tokens, reply=self._reply, interrupt=self._interrupt, before=self._notice_new_weights
        )
        self._thread = threading.Thread(target=self._run, args=(self._server,), daemon=True, name="ponder-torch")
        self._thread.start()

    def send(self, line: Line) -> None:
        server = self._server
        if server is not None and not self.ended:
            server.take(line)

    def crashed(self) -> PonderError:
        """Why it has ended."""
        if self.stopped:
            return EngineError("this engine was closed while it worked", "open another with ponder.engine.open_engine")
        return EngineDisconnected(f"the hf: engine ended ({self._error!r})", "open another, and report this")

    def refresh(self) -> None:
        if self._server is not None:
            self._server.call(self._forget)

    def stop(self) -> None:
        """Ends the thread, waits for it, and lets go of the cache."""
        self.stopped = True
        if (server := self._server) is not None:
            server.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()
            self._server = self._backend = None

    def _run(self, server: Server) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        try:
            server.run()
        except BaseException as error:
            self._error = error
        self.ended = True
        for mailbox in list(self.mailboxes.values()):
            mailbox.put({"error": wire(self.crashed())})

    def _reply(self, line: Line) -> None:
        mailbox = self.mailboxes.get(line["id"])
        if mailbox is not None:
            mailbox.put(line)

    def _interrupt(self, on: bool) -> None:
        if self._backend is not None:
            self._backend.interrupted = on

    def _notice_new_weights(self) -> None:
        if self._versions() != self._seen:
            self._forget()

    def _forget(self) -> None:
        """What keys and values there are belong to weights that are gone."""
        assert self._backend is not None
        assert self._server is not None
        self._backend.refresh()
        self._seen = self._versions()
        self._server.fail_all(EngineError("the weights changed while they were used", "change them between requests"))


def _versions_of(model: nn.Module) -> Callable[[], int]:
    """Counts the changes in place to any weight of the model."""
    weights = [weight for weight in model.parameters() if not weight.is_inference()]
    return lambda: sum(weight._version for weight in weights)


def _sequences(backend: TorchBackend | SlowBackend, settings: TorchSettings) -> int:
    """How many sequences have room; never fewer than a prompt and its sample need."""
    if isinstance(backend, SlowBackend):
        return settings.sequences
    cache = min(_memory(backend.device) // 2, CACHE) if settings.cache is None else settings.cache
    return max(2, min(settings.sequences, cache // (backend.bytes_a_token * backend.context)))


def _memory(device: torch.device) -> int:
    """Bytes that the device has in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _backend(
    model: Any, settings: TorchSettings, context: int, pack: bool, fold: Sequence[float]
) -> TorchBackend | SlowBackend:
    batch = max(settings.batch, settings.sequences)
    if covers(model) and is_plain(model) and not settings.slow:
        dtype = DTYPES[settings.dtype] if settings.dtype else None
        return TorchBackend(model, context=context, batch=batch, dtype=dtype, pack=pack, fold=fold)
    if not settings.slow:
        kind = type(model).__name__
        print(f"ponder: {kind} has no batched decoder: it runs one sequence at a time, slowly", file=sys.stderr)
    return SlowBackend(model, context=context, batch=batch)


def _end_ids(model: Any, tokenizer: Any) -> Iterable[int]:
    for found in (getattr(model, "generation_config", None), model.config, tokenizer):
        ends = getattr(found, "eos_token_id", None)
        yield from ends if isinstance(ends, list | tuple) else [] if ends is None else [ends]


# ---------------------------------------------------------------- opening


async def open_torch(
    name: str,
    *,
    adapters: Sequence[str] = (),
    settings: TorchSettings | None = None,
    progress: Progress | None = None,
) -> TorchEngine:
    """The engine on the weights called `name`: see `torch_load.load`, which says what is raised."""
    return await asyncio.to_thread(_open, name, adapters, settings or TorchSettings(), progress or silent)


def _open(name: str, adapters: Sequence[str], settings: TorchSettings, progress: Progress) -> TorchEngine:
    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    dtype = DTYPES[settings.dtype] if settings.dtype else narrowest(device)
    loaded = load(name, dtype=dtype, device=device, adapters=adapters, progress=progress)
    if settings.dtype is None and sum(weight.numel() for weight in loaded.model.parameters()) < SMALL:
        dtype = torch.float32
        loaded = load(name, dtype=dtype, device=device, adapters=adapters, progress=progress)
    model: Any = loaded.model
    pinned = {} if loaded.sha256 is None else {"ponder.sha256": loaded.sha256}
    return TorchEngine(
        model.to(dtype),  # adapters come as float32
        loaded.tokenizer,
        settings=settings,
        name=loaded.name,
        uri=f"hf:{loaded.place}",
        adapters=loaded.adapters,
        metadata={**loaded.metadata, "ponder.name": loaded.name, **pinned},
        pack=packs(device, dtype),
        fold=settings.fold,
    )

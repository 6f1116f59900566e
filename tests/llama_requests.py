"""What the tests of the embedded engine ask it, and what comes out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ponder.engine.llamacpp import LlamaEngine, LlamaSettings, open_llamacpp
from ponder.engine.weights import Adapter
from ponder.protocols import Chunk, Engine, SamplingParams

QUESTION = (
    "<|im_start|>user\nTom has 3 apples and buys 4 bags of 5 apples each. How many apples has Tom now?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
SMALL = LlamaSettings(cells=1024, sequences=8, batch=1024, threads=1)
BARE: dict[str, float] = {}
ROUNDING = 0.5
"""What log-probabilities may differ by: quantised products are rounded otherwise in batches of another shape."""


@dataclass
class Got:
    """What came out of one request."""

    chunks: list[Chunk] = field(default_factory=list)

    def _of(self, index: int) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.index == index]

    def ids(self, index: int = 0) -> list[int]:
        return [token for chunk in self._of(index) for token in chunk.ids]

    def logprobs(self, index: int = 0) -> list[float]:
        return [p for chunk in self._of(index) for p in chunk.logprobs if p is not None]

    def text(self, index: int = 0) -> str:
        return "".join(chunk.text for chunk in self._of(index))

    @property
    def finishes(self) -> dict[int, str]:
        return {chunk.index: chunk.finish for chunk in self.chunks if chunk.finish}

    @property
    def prompt(self) -> list[tuple[int, int]]:
        return [(c.prompt_computed, c.prompt_cached) for c in self.chunks if c.prompt_computed or c.prompt_cached]


async def take(engine: Engine, prefix: Sequence[int], n: int = 1, max_tokens: int = 6, **params: object) -> Got:
    how = SamplingParams(max_tokens, **({"adapters": BARE, "seed": 1} | params))
    return Got([chunk async for chunk in engine.sample(prefix, n, how)])


async def start(engine: Engine, prefix: Sequence[int]) -> AsyncIterator[Chunk]:
    """A stream without an end in sight, of which one token was read."""
    stream = engine.sample(prefix, 1, SamplingParams(300, seed=1, ignore_eos=True, adapters=BARE))
    while not (await anext(stream)).ids:
        pass
    return stream


async def drain(stream: AsyncIterator[Chunk]) -> None:
    async for _ in stream:
        pass


async def is_free(engine: Engine, prefix: Sequence[int], within: float) -> bool:
    """Whether a small request is answered at once: nothing else is being computed."""
    begin = time.monotonic()
    await take(engine, prefix, max_tokens=1)
    return time.monotonic() - begin < within


def is_alive(pid: int) -> bool:
    """Whether the process runs. One that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def on(engine: LlamaEngine, work: Callable[[LlamaEngine, list[int]], Awaitable[None]]) -> None:
    """Runs `work` with the ids of the question."""

    async def run() -> None:
        await work(engine, await engine.tokenize(QUESTION))

    asyncio.run(run())


def open_small(weights: Path, adapter: Adapter) -> LlamaEngine:
    """A small engine whose worker may be killed, with the same adapter twice, at half its strength."""
    halves = [Adapter(name, adapter.path, 0.5) for name in ("left", "right")]
    return asyncio.run(open_llamacpp(weights, adapters=halves, settings=SMALL, metadata={"origin": "test"}))

"""What the tests of the remote engine share."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import servers

from ponder.engine.remote import RemoteEngine, open_remote
from ponder.engine.transport import Retries
from ponder.errors import (
    PonderError,
)
from ponder.protocols import ChatChunk, Chunk, SamplingParams
from ponder.types import user

QUICK = Retries(attempts=3, base=0.01, cap=0.02, total=1.0)
PROMPT = servers.encode("<s>say it")
CAP = SamplingParams(max_tokens=100)
TOKEN_KINDS: list[Callable[..., servers.FakeServer]] = [
    servers.FakeVllm,
    servers.FakeLlamaServer,
    servers.FakeSGLang,
    lambda *a, **k: servers.FakeVllm(*a, names_ids=False, **k),
    lambda *a, **k: servers.FakeLlamaServer(*a, special=True, **k),
    lambda *a, **k: servers.FakeSGLang(*a, pieces=True, **k),
]
NAMES = ["vllm", "llamacpp", "sglang", "vllm-old", "llamacpp-special", "sglang-pieces"]
each_kind = pytest.mark.parametrize("fake", TOKEN_KINDS, ids=NAMES)


def with_engine(
    server: servers.FakeServer,
    work: Callable[[RemoteEngine], Coroutine[Any, Any, Any]],
    prefix: str = "openai",
    model: str = "",
    **how: Any,
) -> Any:
    """What `work` returns with an engine on `server`."""

    async def run() -> Any:
        async with server:
            engine = await open_remote(f"{prefix}:{server.url}{model}", **{"retries": QUICK, **how})
            try:
                return await work(engine)
            finally:
                await engine.close()

    return asyncio.run(run())


async def drain(chunks: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in chunks]


def sampled(server: servers.FakeServer, n: int = 1, params: SamplingParams = CAP, **how: Any) -> list[Chunk]:
    return with_engine(server, lambda engine: drain(engine.sample(PROMPT, n, params)), **how)


def chatted(
    server: servers.FakeServer, n: int = 1, params: SamplingParams = CAP, think: bool | None = None, **how: Any
) -> list[ChatChunk]:
    return with_engine(server, lambda engine: drain(engine.chat([user("hi")], n, params, think)), **how)


def failing(server: servers.FakeServer, n: int = 1, params: SamplingParams = CAP, **how: Any) -> PonderError:
    """What sampling (or chatting, where there are no token ids) raises."""
    collect = chatted if type(server) is servers.FakeServer else sampled
    with pytest.raises(PonderError) as caught:
        collect(server, n, params, **how)
    return caught.value


def ids_of(chunks: Sequence[Chunk], index: int) -> list[int]:
    return [token for chunk in chunks if chunk.index == index for token in chunk.ids]


def text_of(chunks: Sequence[Any], index: int) -> str:
    return "".join(getattr(c, "text", None) or getattr(c, "answer", "") for c in chunks if c.index == index)


def finishes(chunks: Sequence[Any], index: int) -> list[str]:
    return [chunk.finish for chunk in chunks if chunk.index == index and chunk.finish]

"""What no server is trusted with: to keep to its cap, to honour `n`, to say when a sample has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from ponder.engine.dialects import Dialect
from ponder.errors import EngineDisconnected, GarbledReply, InputError
from ponder.protocols import ChatChunk, Chunk, SamplingParams, closing
from ponder.types import Finish

C = TypeVar("C", Chunk, ChatChunk)


async def rounds(n: int, most: Callable[[], int], ask: Callable[[int, int], AsyncIterator[C]]) -> AsyncIterator[C]:
    """All n samples, by as many requests as it takes for a server that gives fewer than it is asked for."""
    if n < 1:
        raise InputError(f"cannot give {n} samples", "ask for at least one")
    missing = list(range(n))
    while missing:
        batch = missing[: most()]
        begun: set[int] = set()
        ended: set[int] = set()
        async with closing(ask(batch[0], len(batch))) as chunks:
            async for chunk in chunks:
                if chunk.index in ended:
                    raise GarbledReply(f"the server went on with sample {chunk.index} after its end")
                begun.add(chunk.index)
                if chunk.finish:
                    ended.add(chunk.index)
                yield replace(chunk, index=batch[chunk.index])
        if begun != ended or not ended:
            raise EngineDisconnected("the server's stream stopped before its samples ended", "try again")
        missing = [index for place, index in enumerate(missing) if place not in ended]


async def counted_once(chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
    """`chunks` with the prompt counted for the first request only."""
    counted = False
    async with closing(chunks) as items:
        async for chunk in items:
            if chunk.prompt_computed or chunk.prompt_cached:
                yield replace(chunk, prompt_computed=0, prompt_cached=0) if counted else chunk
                counted = True
            else:
                yield chunk


@dataclass
class _Tally:
    count: int = 0
    over: int = 0  # tokens beyond the cap
    ended: bool = False


async def capped(dialect: Dialect, prefix: list[int], n: int, params: SamplingParams) -> AsyncIterator[Chunk]:
    """One request with every sample cut at `max_tokens`.

    A sample that is cut ends when its server ends it, so that all of the surplus is counted, or when
    there is nothing else to wait for.
    """
    tallies = [_Tally() for _ in range(n)]
    counted = False
    async with closing(dialect.sample(prefix, n, params)) as chunks:
        async for chunk in chunks:
            counted = counted or bool(chunk.prompt_computed or chunk.prompt_cached)
            tally = tallies[chunk.index]
            yield await _cut(chunk, tally, params.max_tokens, dialect)
            tally.ended = tally.ended or chunk.finish is not None
            if any(t.over for t in tallies) and all(t.ended or t.over for t in tallies):
                break
    for index, tally in enumerate(tallies):
        if tally.over and not tally.ended:
            # Cancelled here, before the server could tell what the prompt cost: it counts in full.
            computed = 0 if counted else len(prefix)
            counted = True
            yield Chunk(index, finish="length", prompt_computed=computed)


async def _cut(chunk: Chunk, tally: _Tally, most: int, dialect: Dialect) -> Chunk:
    """`chunk` without what is beyond the cap, which is lost."""
    room = max(0, most - tally.count)
    tally.count += len(chunk.ids) + chunk.lost
    surplus = len(chunk.ids) - room
    if surplus <= 0:
        return chunk
    tally.over += surplus
    ids = chunk.ids[:room]
    text = (await dialect.detokenize(ids)).rstrip("\ufffd") if ids else ""
    finish: Finish | None = "length" if chunk.finish else None
    return replace(chunk, ids=ids, text=text, logprobs=chunk.logprobs[:room], finish=finish, lost=chunk.lost + surplus)

"""A stream that can be closed at any moment, from any task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from ponder.errors import EngineError
from ponder.protocols import ChatChunk, Chunk, closing

C = TypeVar("C", Chunk, ChatChunk)


class Live(Generic[C]):
    """A stream that runs in a task of its own, so that it can be closed at any moment and from anywhere.

    A plain asynchronous generator cannot: closing it while another task waits for its next item, which
    before the first token is nearly always, is an error.
    """

    def __init__(self, source: Callable[[], AsyncIterator[C]], living: WeakSet[Live[Any]]) -> None:
        self._source: Callable[[], AsyncIterator[C]] = source
        self._living = living
        self._items: asyncio.Queue[C | BaseException | None] = asyncio.Queue(256)
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self._gone: EngineError | None = None
        self.undelivered = 0
        """Tokens that had arrived and were not read when the stream was closed."""

    def __aiter__(self) -> Live[C]:
        return self

    async def __anext__(self) -> C:
        if self._over:
            self._raise_gone()
            raise StopAsyncIteration
        if self._task is None:
            self._living.add(self)
            self._task = asyncio.create_task(_pump(self._source, self._items))
        try:
            item = await self._items.get()
        except asyncio.CancelledError:
            await self.stop()
            raise
        if isinstance(item, (Chunk, ChatChunk)):
            return item
        self._end()
        if item is not None:
            raise item
        self._raise_gone()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Closes the connection and waits until it is closed."""
        await self.stop()

    async def stop(self, gone: EngineError | None = None) -> None:
        """Like `aclose`; whoever waits for the next item gets `gone`, if that is given."""
        self._gone = self._gone or gone
        self._end()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        while not self._items.empty():
            item = self._items.get_nowait()
            if isinstance(item, Chunk):
                self.undelivered += len(item.ids) + item.lost
            elif isinstance(item, ChatChunk):
                self.undelivered += 1 if item.thinking or item.answer else 0
        self._items.put_nowait(None)  # wakes whoever waits

    def _end(self) -> None:
        self._over = True
        self._living.discard(self)

    def _raise_gone(self) -> None:
        if self._gone:
            gone, self._gone = self._gone, None
            raise gone

    def __del__(self) -> None:
        if self._task is not None and not self._task.done() and not self._task.get_loop().is_closed():
            self._task.cancel()


async def _pump(source: Callable[[], AsyncIterator[C]], items: asyncio.Queue[C | BaseException | None]) -> None:
    try:
        async with closing(source()) as stream:
            async for item in stream:
                await items.put(item)
    except Exception as error:
        await items.put(error)
    else:
        await items.put(None)

"""Several choices from a server that gives one at a time: as many requests at once, told as one reply.

    n requests -> events, each with the number of its choice -> one usage

Where one fails, the others are ended as a client that leaves would end them, so that each tells what it has used.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from ponder.server.events import Begun, Call, Content, Ended, Reasoning, ReplyEvent, Usage
from ponder.server.failures import Refusal
from ponder.server.request import Request
from ponder.server.upstream_attempts import attempts_of, total, without_answer

PATIENCE = 1.0
"""Seconds in which the others may be refused too, where the first was refused before anything began: then nobody has
to guess what they may have made. Most such refusals are of the request itself, and meet all of them."""

_Item = tuple[int, ReplyEvent | Exception | None]


@dataclass
class _Accounts:
    """What became of each choice."""

    request: Request
    backend: str
    usages: dict[int, Usage] = field(default_factory=dict)
    failures: dict[int, Exception] = field(default_factory=dict)

    @property
    def lost(self) -> bool:
        """Whether one of them may have made tokens, where none has begun to answer."""
        return bool(self.usages) or any(map(_lost, self.failures.values()))

    def total(self) -> Usage:
        """All of them together, each entry by itself in `extra`."""
        usages: list[Usage] = []
        attempts: list[dict[str, Any]] = []
        for number in sorted({*self.usages, *self.failures}):
            failure = self.failures.get(number)
            usage = self.usages.get(number)
            if usage is None:
                usage = without_answer(self.request, failure is None or _lost(failure))
            usages.append(usage)
            attempts += attempts_of(usage, self.backend, self.request.model, str(failure or ""))
        return total(usages, attempts)


def _lost(failure: Exception) -> bool:
    return getattr(failure, "lost", True)


async def fanned(
    request: Request,
    stop: asyncio.Event,
    answer: Callable[[Request, asyncio.Event], AsyncGenerator[ReplyEvent, None]],
    backend: str,
) -> AsyncGenerator[ReplyEvent, None]:
    """The events of `request.n` answers of one choice each. Where one fails the others end, and all are accounted for.

    Closing it closes them all.
    """
    queue: asyncio.Queue[_Item] = asyncio.Queue(64)
    over = asyncio.Event()
    following = asyncio.create_task(stop.wait())
    following.add_done_callback(lambda task: None if task.cancelled() else over.set())
    tasks = [
        asyncio.create_task(_pump(number, answer(_single(request, number), over), queue)) for number in range(request.n)
    ]
    timer: asyncio.TimerHandle | None = None
    accounts, begun, left = _Accounts(request, backend), False, request.n
    failure: Exception | None = None
    try:
        while left:
            number, item = await queue.get()
            if item is None:
                left -= 1
            elif isinstance(item, Exception):
                left -= 1
                accounts.failures[number] = item
                failure = failure or item
                if begun or _lost(item):
                    over.set()
                elif timer is None:
                    timer = asyncio.get_running_loop().call_later(PATIENCE, over.set)
            elif isinstance(item, Usage):
                accounts.usages[number] = item
            elif failure is not None:  # what others say now has no reader
                over.set()
            elif isinstance(item, Begun):
                if not begun:
                    begun = True
                    yield item
            elif isinstance(item, Reasoning | Content | Call | Ended):
                yield replace(item, choice=number)
            else:
                yield item
    finally:
        if timer is not None:
            timer.cancel()
        for task in (*tasks, following):
            task.cancel()
        await asyncio.gather(*tasks, following, return_exceptions=True)
    if failure is None or begun:
        yield accounts.total()
    elif isinstance(failure, Refusal):
        failure.lost = accounts.lost
    if failure is not None:
        raise failure


def _single(request: Request, number: int) -> Request:
    seed = request.sampling.seed
    sampling = request.sampling if seed is None else replace(request.sampling, seed=seed + number)
    return replace(request, n=1, sampling=sampling)


async def _pump(number: int, events: AsyncGenerator[ReplyEvent, None], queue: asyncio.Queue[_Item]) -> None:
    try:
        async with aclosing(events) as items:
            async for item in items:
                await queue.put((number, item))
    except Exception as error:
        await queue.put((number, error))
    else:
        await queue.put((number, None))

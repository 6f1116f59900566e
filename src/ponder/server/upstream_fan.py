"""Several choices from a server that gives one at a time: as many requests at once, told as one reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from ponder.server.events import Begun, Call, Content, Ended, Reasoning, ReplyEvent, Usage
from ponder.server.failures import Refusal
from ponder.server.request import Request
from ponder.server.upstream_attempts import attempts_of, total

_Item = tuple[int, ReplyEvent | BaseException | None]


async def fanned(
    request: Request, answer: Callable[[Request], AsyncGenerator[ReplyEvent, None]], backend: str
) -> AsyncGenerator[ReplyEvent, None]:
    """The events of `request.n` answers of one choice each. Where one fails the others end, and all are accounted for.

    Closing it closes them all.
    """
    queue: asyncio.Queue[_Item] = asyncio.Queue(64)
    tasks = [asyncio.create_task(_pump(number, answer(_single(request, number)), queue)) for number in range(request.n)]
    usages: list[Usage] = []
    begun, left, failure = False, request.n, None
    try:
        while left:
            number, item = await queue.get()
            if item is None:
                left -= 1
            elif isinstance(item, BaseException):
                failure = failure or item
                left -= 1
                break
            elif isinstance(item, Usage):
                usages.append(item)
            elif isinstance(item, Begun):
                if not begun:
                    begun = True
                    yield item
            elif isinstance(item, Reasoning | Content | Call | Ended):
                yield replace(item, choice=number)
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if failure is not None and not begun:
        raise failure
    error = str(failure) if failure is not None else ""
    attempts = [each for usage in usages for each in attempts_of(usage, backend, request.model)]
    if error and attempts:
        attempts[-1] |= {"error": error}
    yield total(usages, attempts)
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
    except Refusal as refusal:
        await queue.put((number, refusal))
    except Exception as error:
        await queue.put((number, error))
    else:
        await queue.put((number, None))

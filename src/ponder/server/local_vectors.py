"""Vectors of texts by a model that ponder runs itself: the mean of its last hidden states, of length 1.

Models of language are not trained for this, and small ones find little more than likeness of words in it; for search,
ask an upstream that serves a model made for embeddings. Sounds no model here can read or make.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from ponder.chat.model import Model
from ponder.errors import PonderError
from ponder.protocols import Embedder, SamplingParams
from ponder.server.events import Begun, Ended, ReplyEvent, Usage, Vectors
from ponder.server.failures import invalid
from ponder.server.request import Embedding, Request
from ponder.types import Cost


@dataclass
class _Made:
    """The vectors until now, and the tokens that were computed for them."""

    rows: list[list[float]] = field(default_factory=list)
    tokens: int = 0


async def embedded(name: str, request: Request, plan: Any, model: Model) -> AsyncGenerator[ReplyEvent, None]:
    """The events of a request with a `job`; see `backend.Backend`. `model.stop` ends it. Raises Refusal."""
    from ponder.server.local import refusal  # it imports this

    job = _checked(name, request, model)
    began, made = time.monotonic(), _Made()
    try:
        texts = [await model.engine.tokenize(each) if isinstance(each, str) else list(each) for each in job.inputs]
    except PonderError as error:
        raise refusal(error) from error
    yield Begun(name, "local")
    try:
        whole = await _all(texts, model, made)
    except PonderError as error:
        yield _usage(model, made, began)
        raise refusal(error) from error
    if whole:
        if job.dimensions not in (None, len(made.rows[0])):
            problem = f"{name} makes vectors of {len(made.rows[0])} dimensions, not {job.dimensions}"
            yield _usage(model, made, began)
            raise invalid(problem, "leave dimensions out", "dimensions")
        yield Vectors(tuple(made.rows))
    yield Ended("stop" if whole else "cancelled")
    yield _usage(model, made, began)


def _checked(name: str, request: Request, model: Model) -> Embedding:
    job = request.job
    if not isinstance(job, Embedding):
        raise invalid(f"{name} neither hears nor speaks", "ask a model of an upstream: see docs/upstreams.md", "model")
    if not model.engine.capabilities.embed:
        problem = f"{name} runs on an engine that makes no vectors"
        raise invalid(problem, "ask a model in a GGUF file, or one of an upstream", "model")
    return job


async def _all(texts: list[list[int]], model: Model, made: _Made) -> bool:
    """Makes them one after the other, so that samples of others go on between them; whether all were made."""
    engine = model.engine
    assert isinstance(engine, Embedder)
    params = SamplingParams(1, adapters=model.params.adapters)

    async def work() -> None:
        for ids in texts:
            made.rows.append(await engine.embed(ids, params))
            made.tokens += len(ids)

    working = asyncio.create_task(work())
    assert model.stop is not None
    stopping = asyncio.create_task(model.stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return working.done()
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


def _usage(model: Model, made: _Made, began: float) -> Usage:
    cost = Cost(prompt_computed=made.tokens, calls=len(made.rows), seconds=time.monotonic() - began)
    cost = model.priced(cost)
    return Usage(made.tokens, 0, 0, 0, cost=cost, dollars=cost.dollars)

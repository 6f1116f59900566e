"""The embedded engine when something goes wrong: a worker that dies, a closed engine, and what cannot be asked."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from llama_requests import BARE, QUESTION, SMALL, drain, is_alive, on, open_small, start, take

from ponder.engine.llamacpp import LlamaEngine, LlamaSettings, open_llamacpp
from ponder.engine.weights import Adapter
from ponder.errors import ContextOverflow, EngineDisconnected, EngineError, InputError, Unsupported, WeightsError
from ponder.protocols import SamplingParams

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def mortal(embedded_weights: Path, thinking_adapter: Adapter) -> Iterator[LlamaEngine]:
    engine = open_small(embedded_weights, thinking_adapter)
    yield engine
    asyncio.run(engine.close())


# ---------------------------------------------------------------- death


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_dead_worker_fails_what_is_under_way_and_the_next_request_starts_it_anew(
    mortal: LlamaEngine, how: signal.Signals
) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        before, pid, child = engine.restarts, engine.pid, engine._living()
        aborted = engine.sample([500] * 900, 1, SamplingParams(1))
        await anext(aborted)
        await asyncio.sleep(0.1)
        await aborted.aclose()  # llama.cpp complains of what it is told to abort: those are no last words
        streams = [await start(engine, prompt) for _ in range(2)]
        unread = engine.sample(prompt, 1, SamplingParams(300, adapters=BARE))
        scoring = asyncio.ensure_future(engine.score([500] * 900, 1))
        waiting = asyncio.ensure_future(drain(unread))
        await asyncio.sleep(0.1)
        os.kill(pid, how)
        for stream in streams:
            with pytest.raises(EngineDisconnected, match=rf"ended \(killed by {how.name}\)\. ask again"):
                await drain(stream)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            await stream.aclose()
        for task in (waiting, scoring):
            with pytest.raises(EngineDisconnected):
                await task
        assert EngineDisconnected.retryable
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += engine.restarts == before

        ticking = asyncio.ensure_future(tick())
        again = await asyncio.gather(take(engine, prompt), take(engine, prompt), engine.tokenize("a"))
        ticking.cancel()
        assert ticks > 5  # loading the model again did not hold up the event loop
        assert [len(got.ids()) for got in again[:2]] == [6, 6]
        assert engine.restarts == before + 1
        assert engine.pid != pid
        assert [pipe.closed for pipe in (child.process.stdin, child.process.stdout)] == [True, True]
        assert len(await engine.score(prompt, 1, SamplingParams(1, adapters={"right": 1.0}))) == len(prompt) - 1

    on(mortal, work)


def test_a_bug_of_the_worker_is_a_death_with_its_last_words(mortal: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        for broken in ({"op": "sample", "id": -1}, {"op": "pieces", "id": -1, "ids": ["x"]}):  # one for each thread
            stream = await start(engine, prompt)
            engine._living().send(broken)
            with pytest.raises(EngineDisconnected, match=r"\(exit code 1\) after saying: (KeyError|TypeError)"):
                await drain(stream)
        assert len((await take(engine, prompt)).ids()) == 6

    on(mortal, work)


def test_an_adapter_that_breaks_the_model_is_an_error_and_the_next_request_works(mortal: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        with pytest.raises(EngineError, match=r"computed no numbers.*scales"):
            await take(engine, prompt, adapters={"left": 1e10})
        assert len((await take(engine, prompt)).ids()) == 6

    on(mortal, work)


# ---------------------------------------------------------------- closing


def test_a_closed_engine_says_so(embedded_weights: Path) -> None:
    async def run() -> None:
        engine = await open_llamacpp(embedded_weights, settings=SMALL)
        prompt = await engine.tokenize("Hello there, ")
        pid = engine.pid
        stream = await start(engine, prompt)
        await engine.close()
        await engine.close()
        with pytest.raises(EngineError, match="closed while it worked"):
            await drain(stream)
        await stream.aclose()
        for asked in (engine.tokenize("a"), engine.score(prompt, 1), take(engine, prompt)):
            with pytest.raises(EngineError, match=r"this engine is closed.*ponder\.engine\.open_engine"):
                await asked
        assert not is_alive(pid)

    asyncio.run(run())


def test_closing_an_engine_that_is_being_started_again_leaves_no_worker(
    embedded_weights: Path, thinking_adapter: Adapter
) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        stream = await start(engine, prompt)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineDisconnected):
            await drain(stream)
        asked = asyncio.ensure_future(engine.tokenize("a"))
        await asyncio.sleep(0.1)
        await engine.close()
        with pytest.raises(EngineError, match="closed"):
            await asked
        assert engine.restarts == 1
        assert engine._child is not None
        assert not is_alive(engine._child.process.pid)

    on(open_small(embedded_weights, thinking_adapter), work)


# ---------------------------------------------------------------- what cannot be done


def test_what_cannot_be_asked_is_refused(llama: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        one = SamplingParams(1)
        with pytest.raises(InputError, match="n must be at least 1, not 0"):
            engine.sample(prompt, 0, one)
        with pytest.raises(Unsupported, match=r"ponder\.chat"):
            engine.chat((), 1, one)
        with pytest.raises(ContextOverflow, match="8000 tokens and 193 more do not fit into 8192"):
            await take(engine, [5] * 8000, max_tokens=193)
        with pytest.raises(ContextOverflow, match="a text of 8193 tokens"):
            await engine.score([5] * 8193, 1)
        with pytest.raises(InputError, match="empty"):
            await take(engine, [])
        for start_ in (0, len(prompt) + 1):
            with pytest.raises(InputError, match=f"cannot score from token {start_}"):
                await engine.score(prompt, start_)
        for wrong in (-1, 49_152, 2**40):
            for call in (take(engine, [wrong]), engine.score([5, wrong], 1), engine.detokenize([wrong])):
                with pytest.raises(InputError, match=f"{wrong} is no token of this model"):
                    await call
        for call in (lambda: engine.sample(["a"], 1, one), lambda: engine.sample([1.5], 1, one)):
            with pytest.raises(TypeError):
                call()
        assert (await take(engine, np.array(prompt), max_tokens=1)).finishes
        assert await engine.detokenize(np.array(prompt)) == QUESTION

    on(llama, work)


def test_a_damaged_file_is_refused_with_what_llama_cpp_said(embedded_weights: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    with embedded_weights.open("rb") as whole:
        damaged.write_bytes(whole.read(60_000_000))
    with pytest.raises(WeightsError, match=r"cannot load .*damaged\.gguf.*fetch it again"):
        asyncio.run(open_llamacpp(damaged, settings=SMALL))
    good, bad = Adapter("good", tmp_path / "no-such-file.gguf"), tmp_path / "adapter.gguf"
    bad.write_bytes(b"GGUF and nothing more")
    for adapter in (good, Adapter("bad", bad)):
        with pytest.raises(WeightsError, match="is no adapter for this model"):
            asyncio.run(open_llamacpp(embedded_weights, adapters=[adapter], settings=SMALL))


def test_a_worker_that_ends_while_loading_says_how_and_why(embedded_weights: Path) -> None:
    too_many = LlamaSettings(cells=2**33, threads=1)
    with pytest.raises(EngineError, match=r"ended while loading .*\(exit code 1\)\. it said: struct\.error"):
        asyncio.run(open_llamacpp(embedded_weights, settings=too_many))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequences": 1}, "sequences must lie between 2 and 256, not 1"),
        ({"sequences": 257}, "not 257"),
        ({"batch": 63}, "batch must be at least sequences, which is 64, not 63"),
        ({"cells": 10}, "cells must be at least sequences, which is 64, not 10"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
        ({"cache_type": "q5"}, "cache_type must be one of f16, .*, not 'q5'"),
        ({"cache_type": "q8_0", "flash_attention": False}, "cache_type q8_0 needs flash_attention"),
    ],
    ids=str,
)
def test_settings_that_llama_cpp_would_abort_on_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LlamaSettings(**settings)

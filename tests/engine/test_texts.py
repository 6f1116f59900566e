"""Texts that are measured: the likeliest token at each place, and vectors, against the same model in torch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_backend import END_IDS, CacheBackend, logits_of, state_of
from tiny import tiny_model, tiny_tokenizer, torch

from ponder.engine.llamacpp import LlamaEngine, LlamaSettings, open_llamacpp
from ponder.engine.sampling import likeliest
from ponder.engine.scheduler import Scheduler, describe
from ponder.engine.torch_engine import TorchEngine
from ponder.errors import ContextOverflow, InputError, PonderError, Unsupported
from ponder.protocols import Embedder, LogProbs, SamplingParams
from ponder.train.export import to_gguf

TEXT = "the man and the other man are in the rain, and then they are out of it again"
BASE = (0.0, 0.0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "tiny.gguf"
    to_gguf(tiny_model(), tiny_tokenizer(), file, kind="f32")
    return file


def with_llama(weights: Path, work: Callable[[LlamaEngine], Awaitable[Any]], **settings: Any) -> Any:
    async def run() -> Any:
        chosen = LlamaSettings(**{"cells": 256, "sequences": 8, "batch": 64, "threads": 1, **settings})
        engine = await open_llamacpp(weights, settings=chosen)
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def ids_of(text: str) -> list[int]:
    return list(tiny_tokenizer()(text, add_special_tokens=False)["input_ids"])


def vector_of(ids: list[int]) -> np.ndarray[Any, Any]:
    """As torch has it: the mean of the last hidden states, of length 1."""
    with torch.no_grad():
        mean = tiny_model().model(torch.tensor([ids])).last_hidden_state[0].mean(0)
    found: np.ndarray[Any, Any] = (mean / mean.norm()).numpy()
    return found


# ---------------------------------------------------------------- the likeliest tokens


def test_the_scheduler_tells_the_likeliest_at_every_place_whatever_is_cached() -> None:
    scheduler = Scheduler(CacheBackend(cells=100, sequences=4), cells=100, sequences=4, end_ids=END_IDS, shelf=2**20)
    ids = [2, 5, 7, 9, 3, 3, 8, 11, 4, 6, 2]
    for start in (1, 6):
        scores = scheduler.score(ids, start, BASE, 3)
        assert isinstance(scores, LogProbs)
        expected = [likeliest(logits_of(state_of(ids[:place], BASE)), 3) for place in range(start, len(ids))]
        assert [list(each) for each in scores.top] == expected
        assert len(scores) == len(scores.top)
    plain = scheduler.score(ids, 1, BASE)
    assert plain is not None
    assert plain.top == ()


def both_engines(weights: Path, work: Callable[[Any], Awaitable[Any]]) -> list[Any]:
    async def torch_too() -> Any:
        engine = TorchEngine(tiny_model(), tiny_tokenizer())
        try:
            return await work(engine)
        finally:
            await engine.close()

    return [with_llama(weights, work), asyncio.run(torch_too())]


def test_both_engines_tell_the_tokens_that_the_model_thinks_likeliest(weights: Path) -> None:
    ids = ids_of(TEXT)
    with torch.no_grad():
        chances = torch.log_softmax(tiny_model()(torch.tensor([ids])).logits[0, :-1], -1)
    values, best = chances.topk(2)

    async def work(engine: Any) -> Any:
        return await engine.score(ids, 1, SamplingParams(1, top=2))

    for scores in both_engines(weights, work):
        assert [[token for token, _ in place] for place in scores.top] == best.tolist()
        told = np.array([[chance for _, chance in place] for place in scores.top])
        assert told == pytest.approx(values.numpy(), abs=0.02)  # keys and values of 16 bits
        assert all(top[0][1] >= score for top, score in zip(scores.top, scores, strict=True))


def test_more_of_the_likeliest_than_are_told_is_refused(weights: Path) -> None:
    async def work(engine: Any) -> None:
        with pytest.raises(Unsupported, match="tells 100"):
            await engine.score([5, 6, 7], 1, SamplingParams(1, top=101))

    both_engines(weights, work)


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize("batch", [8, 64])
def test_a_vector_is_the_mean_of_the_last_hidden_states(weights: Path, batch: int) -> None:
    texts = [ids_of(text) for text in (TEXT, "rain", "a")]

    async def work(engine: LlamaEngine) -> Any:
        assert engine.capabilities.embed
        assert isinstance(engine, Embedder)
        return await asyncio.gather(*[engine.embed(ids) for ids in texts])

    for ids, vector in zip(texts, with_llama(weights, work, batch=batch), strict=True):
        assert vector == pytest.approx(vector_of(ids), abs=2e-3)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_sampling_and_scoring_go_on_beside_vectors_as_if_there_were_none(weights: Path) -> None:
    ids = ids_of(TEXT)

    async def sampled(engine: LlamaEngine) -> list[int]:
        params = SamplingParams(40, temperature=0.0, ignore_eos=True)
        return [token async for chunk in engine.sample(ids, 1, params) for token in chunk.ids]

    async def work(engine: LlamaEngine) -> Any:
        alone, scores = await sampled(engine), await engine.score(ids, 1)
        beside, *vectors = await asyncio.gather(sampled(engine), *[engine.embed(ids) for _ in range(6)])
        assert beside == alone
        assert await engine.score(ids, 1) == pytest.approx(scores, abs=1e-3)
        assert all(vector == pytest.approx(vectors[0], abs=1e-4) for vector in vectors)
        return await engine.counts()

    counts = with_llama(weights, work)
    assert (counts["running"], counts["requests"]) == (0, 0)


def test_what_has_no_vector_is_refused_and_nothing_is_left_behind(weights: Path) -> None:
    async def work(engine: LlamaEngine) -> Any:
        for ids, error in (([], InputError), ([10**6], InputError), ([5] * 257, ContextOverflow)):
            with pytest.raises(error):
                await engine.embed(ids)
        assert len(await engine.embed([5] * 256)) == 32
        return await engine.counts()

    assert with_llama(weights, work)["cached"] == 0


def test_a_cancelled_vector_is_taken_back(weights: Path) -> None:
    async def work(engine: LlamaEngine) -> None:
        stream = engine.sample([5] * 4, 1, SamplingParams(200, ignore_eos=True))
        await anext(aiter(stream))
        waiting = asyncio.ensure_future(engine.embed([5] * 200))  # there is no room beside the sample
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await stream.aclose()
        assert len(await engine.embed([5] * 200)) == 32

    with_llama(weights, work)


def test_the_torch_engine_says_that_it_has_none() -> None:
    async def work() -> None:
        engine = TorchEngine(tiny_model(), tiny_tokenizer())
        assert not engine.capabilities.embed
        assert not isinstance(engine, Embedder)
        await engine.close()

    asyncio.run(work())
    scheduler = Scheduler(CacheBackend(cells=100, sequences=4), cells=100, sequences=4, end_ids=END_IDS)
    with pytest.raises(PonderError, match="no vectors"):
        scheduler.embed([2, 3], BASE)
    assert describe(scheduler)["cached"] == 0

"""The embedded engine on the real model: exact tokens, shared work, prompt cancels, any number of callers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_requests import BARE, QUESTION, ROUNDING, is_free, on, open_small, start, take

from ponder.engine.llamacpp import LlamaEngine, open_llamacpp
from ponder.engine.weights import Adapter
from ponder.errors import InputError
from ponder.protocols import SamplingParams

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def small(embedded_weights: Path, thinking_adapter: Adapter) -> Iterator[LlamaEngine]:
    engine = open_small(embedded_weights, thinking_adapter)
    yield engine
    asyncio.run(engine.close())


# ---------------------------------------------------------------- tokens and their probabilities


def test_a_stream_is_token_exact(llama: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        got = await take(engine, prompt, max_tokens=12, temperature=0.0)
        assert len(got.ids()) == len(got.logprobs()) == 12
        assert got.text() == await engine.detokenize(got.ids())
        assert got.finishes == {0: "length"}
        assert got.chunks[-1].finish == "length"
        assert all(p <= 0 for p in got.logprobs())

    on(llama, work)


def test_a_turn_that_ends_says_so_and_its_last_token_is_no_text(llama: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, _: list[int]) -> None:
        hello = await engine.tokenize("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
        got = await take(engine, hello, max_tokens=40, temperature=0.0)
        assert got.finishes == {0: "stop"}
        assert got.ids()[-1] in engine.info.eos_ids
        assert got.text() == await engine.detokenize(got.ids()[:-1])
        length = len(got.ids())
        never = await take(engine, hello, max_tokens=length + 2, temperature=0.0, ignore_eos=True)
        assert never.finishes == {0: "length"}
        assert never.ids()[: length - 1] == got.ids()[:-1]
        assert not set(never.ids()) & set(engine.info.eos_ids)

    on(llama, work)


def test_log_probabilities_are_those_of_the_model_whatever_the_temperature(llama: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        got = await take(engine, prompt, max_tokens=10, temperature=1.5, top_p=0.9, top_k=50, ignore_eos=True)
        ids = prompt + got.ids()
        bare = SamplingParams(1, adapters=BARE)
        scores = await engine.score(ids, len(prompt), bare)
        assert scores == pytest.approx(got.logprobs(), abs=ROUNDING)
        assert (await engine.score(ids, 1, bare))[len(prompt) - 1 :] == pytest.approx(scores, abs=ROUNDING)
        assert await engine.score(ids, len(ids), bare) == []
        # A likely text scores better than the same tokens in another order.
        likely, shuffled = prompt[3:23], prompt[22:2:-1]
        assert sum(await engine.score(likely, 1, bare)) > sum(await engine.score(shuffled, 1, bare)) + 10

    on(llama, work)


def test_a_sample_ends_after_the_token_that_holds_the_text_it_was_to_end_at(llama: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, _: list[int]) -> None:
        lines = await engine.tokenize("one\ntwo\nthree\nfour\n")
        got = await take(engine, lines, max_tokens=20, temperature=0.0, until="\n", adapters=BARE)
        assert got.finishes == {0: "length"}
        assert got.text().count("\n") == 1
        assert got.text().endswith("\n")
        assert len(got.ids()) < 20

    on(llama, work)


def test_samples_numbered_from_elsewhere_are_those_of_one_larger_request(llama: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        await take(engine, prompt, max_tokens=1)
        # One token: what follows depends on how many run side by side, by rounding.
        both = await take(engine, prompt, n=8, max_tokens=1, seed=3, temperature=5.0)
        rest = await take(engine, prompt, n=5, max_tokens=1, seed=3, temperature=5.0, first=3)
        assert [rest.ids(i) for i in range(5)] == [both.ids(i) for i in range(3, 8)]
        assert [rest.ids(i) for i in range(5)] != [both.ids(i) for i in range(5)]

    on(llama, work)


def test_the_worker_counts_what_it_computes_and_samples_that_agree_are_computed_once(llama: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        await take(engine, prompt, max_tokens=1)
        before = (await engine.counts())["computed"]
        got = await take(engine, prompt, n=6, max_tokens=10, temperature=0.0, ignore_eos=True)
        after = await engine.counts()
        assert len({tuple(got.ids(i)) for i in range(6)}) == 1
        assert after["computed"] - before == 1 + 9
        assert after["running"] == 0

    on(llama, work)


def test_scoring_tells_what_it_computed(llama: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, _: list[int]) -> None:
        text = await engine.tokenize("A text that nobody has scored before, of a few tokens.")
        assert (await engine.score(text, 1)).computed == len(text) - 1
        again = await engine.score(text, len(text) - 2)
        assert again.computed == 2

    on(llama, work)


def test_an_unfinished_character_is_held_back_until_it_is_whole(llama: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, _: list[int]) -> None:
        faces = await engine.tokenize("😀😁" * 5 + "😀")
        got = await take(engine, faces, max_tokens=8, temperature=0.0)
        assert [chunk.pending for chunk in got.chunks if chunk.ids] == [True, True, False] * 2 + [True, True]
        texts = [chunk.text for chunk in got.chunks if chunk.ids]
        assert [len(text) for text in texts] == [0, 0, 1] * 2 + [0, 0]
        assert set(texts) <= {"", "😀", "😁"}
        assert await engine.detokenize(got.ids()[:6]) == got.text()
        assert await engine.detokenize(got.ids()) == got.text() + "\N{REPLACEMENT CHARACTER}"

    on(llama, work)


def test_the_same_seed_gives_the_same_samples(llama: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        await take(engine, prompt, max_tokens=1)  # from here on the prompt is cached: rounding is the same each time
        one, two, other = [
            await take(engine, prompt, n=3, max_tokens=8, seed=seed, temperature=2.0) for seed in (-7, -7, 8)
        ]
        assert [one.ids(i) for i in range(3)] == [two.ids(i) for i in range(3)]
        assert len({tuple(got.ids(i)) for got in (one, other) for i in range(3)}) == 6
        drawn = [await take(engine, prompt, max_tokens=8, seed=None, temperature=2.0) for _ in range(2)]
        assert drawn[0].ids() != drawn[1].ids()

    on(llama, work)


# ---------------------------------------------------------------- shared work


def test_samples_share_one_prefill_and_forks_compute_next_to_nothing(llama: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        prompt = [*await engine.tokenize("A prompt that nobody has used before. "), *prompt]
        first = await take(engine, prompt, n=4, max_tokens=8, ignore_eos=True)
        assert first.prompt == [(len(prompt), 0)]
        assert {len(first.ids(i)) for i in range(4)} == {8}
        for index in (0, 3):
            continued = await take(engine, prompt + first.ids(index), max_tokens=2)
            assert continued.prompt == [(1, len(prompt) + 7)]
        forked = await take(engine, prompt + first.ids(2)[:4], n=3, max_tokens=2)
        ((computed, cached),) = forked.prompt
        assert computed <= 2
        assert computed + cached == len(prompt) + 4

    on(llama, work)


def test_what_scoring_computed_is_used_again(llama: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        ids = [*await engine.tokenize("Nobody has scored this before. "), *prompt]
        await engine.score(ids, 5, SamplingParams(1, adapters=BARE))
        assert (await take(engine, ids, max_tokens=1)).prompt == [(1, len(ids) - 1)]

    on(llama, work)


# ---------------------------------------------------------------- adapters


def test_a_request_chooses_its_adapters(llama: LlamaEngine, small: LlamaEngine, thinking_adapter: Adapter) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        name = thinking_adapter.name
        assert engine.capabilities.adapters == (name,)
        bare, off, on_, whole = [
            await engine.score(prompt, 1, SamplingParams(1, adapters=adapters))
            for adapters in (BARE, {name: 0.0}, {name: 1.0}, None)
        ]
        assert bare == pytest.approx(off)
        assert on_ == pytest.approx(whole)
        assert max(abs(a - b) for a, b in zip(bare, whole, strict=True)) > 1
        # Beside each other, each gets its own.
        together = await asyncio.gather(*[take(engine, prompt, temperature=0.0, adapters=a) for a in (BARE, None)])
        assert together[0].ids() != together[1].ids()
        for chosen, got in zip((BARE, None), together, strict=True):
            alone = await take(engine, prompt, temperature=0.0, adapters=chosen)
            assert alone.logprobs()[0] == pytest.approx(got.logprobs()[0], abs=ROUNDING)
        for call in (
            lambda how: engine.score(prompt, 1, how),
            lambda how: anext(engine.sample(prompt, 1, how)),
        ):
            with pytest.raises(InputError, match=f"no adapter 'other' is loaded.*choose from {name}"):
                await call(SamplingParams(1, adapters={"other": 1.0}))
        # Two halves make a whole: both are loaded, and their scales are those they were opened with.
        assert small.capabilities.adapters == ("left", "right")
        assert await small.score(prompt, 1) == pytest.approx(whole, abs=ROUNDING)
        double = await small.score(prompt, 1, SamplingParams(1, adapters={"right": 1.0}))
        assert double == pytest.approx(whole, abs=ROUNDING)

    on(llama, work)


# ---------------------------------------------------------------- cancelling


def test_a_cancel_before_the_first_token_frees_the_engine_at_once(llama: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        await take(engine, prompt, max_tokens=1)
        long = [500 + at % 40_000 for at in range(6000)]  # half a minute of one core
        stream = engine.sample(long, 2, SamplingParams(4, adapters=BARE))
        assert (await anext(stream)).prompt_computed == len(long)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.5)
        begin = time.monotonic()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert time.monotonic() - begin < 2
        assert await is_free(engine, prompt, within=5)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert stream.undelivered == 0

    on(llama, work)


def test_a_cancel_stops_in_the_middle_of_a_batch(small: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, _: list[int]) -> None:
        long = [500 + at for at in range(1000)]  # one batch, of more than a second
        for _ in range(2):
            stream = engine.sample(long, 1, SamplingParams(4, adapters=BARE))
            chunk = await anext(stream)
            assert (chunk.prompt_computed, chunk.prompt_cached) == (1000, 0)  # had it gone on, it would be there now
            await asyncio.sleep(0.2)
            await stream.aclose()

    on(small, work)


def test_closing_a_stream_counts_what_was_generated_and_not_read(llama: LlamaEngine, small: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, _: list[int]) -> None:
        # Nothing but one more is likely here, so that two engines, whose sums round differently, agree for long.
        prompt = await engine.tokenize(" tick tock" * 40)
        stream = engine.sample(prompt, 1, SamplingParams(200, temperature=0, ignore_eos=True, adapters=BARE))
        read: list[int] = []
        while len(read) < 3:
            read += (await anext(stream)).ids
        await asyncio.sleep(0.5)
        await stream.aclose()
        await stream.aclose()
        generated = len(read) + stream.undelivered
        assert stream.undelivered > 0
        # The cache of the engine is the witness: it holds all but the last token of the sample.
        wanted = (await take(small, prompt, max_tokens=generated + 3, temperature=0.0, ignore_eos=True)).ids()
        assert wanted[:3] == read
        again = await take(engine, prompt + wanted, max_tokens=1)
        assert again.prompt == [(4, len(prompt) + generated - 1)]

    on(llama, work)


def test_a_stream_that_was_never_started_or_is_over_has_nothing_to_close(llama: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        for read in (0, 99):
            stream = engine.sample(prompt, 1, SamplingParams(3, adapters=BARE))
            with contextlib.suppress(StopAsyncIteration):
                for _ in range(read):
                    await anext(stream)
            await stream.aclose()
            assert stream.undelivered == 0
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    on(llama, work)


def test_a_stream_that_is_dropped_stops(small: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        stream = engine.sample(prompt, 1, SamplingParams(980, ignore_eos=True, adapters=BARE))  # fills the cache
        await anext(stream)
        del stream
        gc.collect()
        assert await is_free(engine, prompt, within=5)

    on(small, work)


def test_scoring_waits_for_room_outlasts_the_cancels_of_others_and_can_be_cancelled(small: LlamaEngine) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        bare = SamplingParams(1, adapters=BARE)
        text = [500 + at for at in range(200)]
        alone = await engine.score(text[:40], 30, bare)
        streams = [await start(engine, prompt) for _ in range(3)]
        abandoned = asyncio.ensure_future(engine.score(text, 1, bare))  # does not fit beside the samples
        behind = asyncio.ensure_future(engine.score(text[:40], 30, bare))
        await asyncio.sleep(0.2)
        assert not abandoned.done()
        assert not behind.done()
        abandoned.cancel()
        for stream in streams:
            await stream.aclose()
        assert await behind == pytest.approx(alone, abs=ROUNDING)
        # The cache shows that the abandoned one was never computed: it holds the text of the other.
        assert (await take(engine, text, max_tokens=1)).prompt == [(161, 39)]
        # While a long one is computed, others come and go.
        scoring = asyncio.ensure_future(engine.score(text[::-1], 1, bare))
        for _ in range(3):
            stream = engine.sample(prompt[:5], 1, bare)
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert len(await scoring) == len(text) - 1

    on(small, work)


# ---------------------------------------------------------------- many at once


def test_two_engines_live_in_one_process(llama: LlamaEngine, small: LlamaEngine, embedded_weights: Path) -> None:
    async def work(engine: LlamaEngine, prompt: list[int]) -> None:
        assert engine.pid != small.pid
        both = await asyncio.gather(*[take(e, prompt, temperature=0.0, max_tokens=5) for e in (engine, small)])
        assert [len(each.ids()) for each in both] == [5, 5]
        third = await open_llamacpp(embedded_weights)
        assert third.info.context == 8192
        await third.close()
        assert (await take(engine, prompt, temperature=0.0, max_tokens=5)).ids() == both[0].ids()
        assert small.info.metadata["origin"] == "test"
        assert small.uri == f"gguf:{embedded_weights}"

    on(llama, work)


def test_event_loops_one_after_the_other_and_threads_at_once_use_one_engine(llama: LlamaEngine) -> None:
    async def work(prompt: list[int]) -> list[int]:
        return (await take(llama, prompt, n=2, temperature=0.0, max_tokens=5)).ids(1)

    prompt = asyncio.run(llama.tokenize(QUESTION))
    expected = asyncio.run(work(prompt))
    results: dict[int, list[int]] = {}

    def thread(number: int) -> None:
        results[number] = asyncio.run(work(prompt))

    threads = [threading.Thread(target=thread, args=(number,)) for number in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert results == {0: expected, 1: expected}

    # A loop that ended in the middle of a stream leaves nothing behind.
    async def leave() -> None:
        stream = await start(llama, prompt)
        leave.stream = stream

    asyncio.run(leave())
    del leave.stream
    assert asyncio.run(work(prompt)) == expected

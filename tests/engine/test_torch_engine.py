"""The engine on torch: exact tokens and probabilities, shared work, prompt cancels, and a model in training."""

from __future__ import annotations

import asyncio
import codecs
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from llama_requests import BARE, drain, take
from tiny import tiny_lora, tiny_model, tiny_tokenizer, torch

from ponder.engine.torch_adapters import evaluating
from ponder.engine.torch_engine import TorchEngine, TorchSettings
from ponder.errors import ContextOverflow, EngineError, InputError, Unsupported
from ponder.protocols import Engine, SamplingParams

EXACT = 1e-5
TEXT = "<|im_start|>user\nWho is the one in the sand?<|im_end|>\n<|im_start|>assistant\n<think>"
Work = Callable[[TorchEngine, list[int]], Awaitable[None]]


@pytest.fixture(params=["batched", "slow"])
def engine(request: pytest.FixtureRequest) -> Iterator[TorchEngine]:
    made = TorchEngine(tiny_model(), tiny_tokenizer(), settings=settings_of(request.param))
    yield made
    asyncio.run(made.close())


@pytest.fixture(params=["batched", "slow"])
def adapted(request: pytest.FixtureRequest) -> Iterator[tuple[TorchEngine, Any]]:
    model = tiny_lora(tiny_model(), "left", "right")
    model.base_model.set_adapter("right")
    made = TorchEngine(model, tiny_tokenizer(), settings=settings_of(request.param))
    yield made, model
    asyncio.run(made.close())


def settings_of(path: str) -> TorchSettings:
    return TorchSettings(slow=path == "slow", sequences=24, batch=32)


def on(engine: TorchEngine, work: Work) -> None:
    """Runs `work` with the ids of the text."""

    async def run() -> None:
        await work(engine, await engine.tokenize(TEXT))

    asyncio.run(run())


def logprobs_of(model: Any, ids: list[int], start: int, scales: dict[str, float] | None = None) -> list[float]:
    """Log-probability of each of `ids[start:]`, from one pass of the model itself."""
    with torch.no_grad(), evaluating(model, scales or {}):
        every = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(every[at - 1, ids[at]]) for at in range(start, len(ids))]


async def started(engine: Engine, prefix: list[int], **params: Any) -> Any:
    """A stream without an end in sight, of which one token was read."""
    stream = engine.sample(prefix, 1, SamplingParams(100, **({"seed": 1, "ignore_eos": True} | params)))
    while not (await anext(stream)).ids:
        pass
    return stream


# ---------------------------------------------------------------- tokens and their probabilities


def test_it_is_an_engine(engine: TorchEngine) -> None:
    assert isinstance(engine, Engine)
    assert engine.info.context == 256
    assert engine.info.eos == "<|im_end|>"
    assert engine.info.parameters == 36_000
    assert engine.info.metadata["general.architecture"] == "llama"
    assert "assistant" in engine.info.chat_template
    assert engine.capabilities.score
    assert engine.capabilities.until
    assert engine.capabilities.first


def test_log_probabilities_are_the_model_s_whatever_the_temperature(engine: TorchEngine) -> None:
    model = tiny_model()

    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        got = await take(engine, prompt, n=3, max_tokens=20, temperature=1.7, top_p=0.9, top_k=90, ignore_eos=True)
        for index in range(3):
            ids = prompt + got.ids(index)
            wanted = logprobs_of(model, ids, len(prompt))
            assert got.logprobs(index) == pytest.approx(wanted, abs=EXACT)
            assert await engine.score(ids, len(prompt)) == pytest.approx(wanted, abs=EXACT)
        assert len({tuple(got.ids(index)) for index in range(3)}) == 3
        assert got.finishes == dict.fromkeys(range(3), "length")
        long = [5 + at * at % 250 for at in range(200)]  # in several batches
        assert await engine.score(long, 1) == pytest.approx(logprobs_of(model, long, 1), abs=EXACT)
        assert await engine.score(long, 200) == []

    on(engine, work)


def test_greedy_tokens_are_those_of_a_plain_loop(engine: TorchEngine) -> None:
    model = tiny_model()

    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(15):
                logits = model(torch.tensor([ids])).logits[0, -1]
                logits[list(engine.info.eos_ids)] = -torch.inf
                ids.append(int(logits.argmax()))
        got = await take(engine, prompt, max_tokens=15, temperature=0.0, ignore_eos=True)
        assert got.ids() == ids[len(prompt) :]

    on(engine, work)


def test_a_turn_that_ends_says_so_and_its_last_token_is_no_text(engine: TorchEngine) -> None:
    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        end = engine.info.eos_ids[0]
        got = await take(engine, prompt, n=10, max_tokens=60, temperature=3.0)
        ended = [index for index in range(10) if got.finishes[index] == "stop"]
        assert ended
        for index in ended:
            assert got.ids(index)[-1] == end
            assert end not in got.ids(index)[:-1]
            assert "<|im_end|>" not in got.text(index)

    on(engine, work)


def test_text_streams_right_across_tokens_that_end_inside_a_character(engine: TorchEngine) -> None:
    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        text = "Größe: 3 € — 😀 <think>\n\tthe end</think>"
        ids = await engine.tokenize(text)
        assert len(ids) > len(text) / 2
        assert await engine.detokenize(ids) == text
        # Tokens of a random model are mostly bytes that begin or break characters.
        got = await take(engine, prompt, max_tokens=120, temperature=2.0, ignore_eos=True)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        assert got.text() == decoder.decode(b"".join(engine._worker._server._vocabulary.piece(t) for t in got.ids()))
        assert {chunk.pending for chunk in got.chunks if chunk.ids} == {True, False}
        assert await engine.detokenize(got.ids()) == got.text() + decoder.decode(b"", final=True)

    on(engine, work)


def test_the_same_seed_gives_the_same_samples_whatever_runs_beside(engine: TorchEngine) -> None:
    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        how = {"n": 4, "max_tokens": 12, "temperature": 1.5, "ignore_eos": True}
        alone = await take(engine, prompt, seed=7, **how)
        others = [take(engine, prompt[:at], seed=at, **how) for at in (3, 9, len(prompt))]
        again, *_ = await asyncio.gather(take(engine, prompt, seed=7, **how), *others)
        more = await take(engine, prompt, seed=7, **(how | {"n": 9}))
        rest = await take(engine, prompt, seed=7, first=2, **(how | {"n": 2}))
        other = await take(engine, prompt, seed=8, **how)
        for index in range(4):
            assert again.ids(index) == more.ids(index) == alone.ids(index) != other.ids(index)
        assert [rest.ids(index) for index in range(2)] == [alone.ids(index) for index in (2, 3)]

    on(engine, work)


def test_a_sample_pauses_after_the_token_that_holds_the_text(engine: TorchEngine) -> None:
    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        whole = await take(engine, prompt, max_tokens=60, temperature=2.0, seed=4, ignore_eos=True)
        at = next(place for place, token in enumerate(whole.ids()) if place > 3 and token < 133)  # a letter of ASCII
        letter = await engine.detokenize([whole.ids()[at]])
        texts = [await engine.detokenize([token]) for token in whole.ids()]
        first = next(place for place, text in enumerate(texts) if letter in text)
        got = await take(engine, prompt, max_tokens=60, temperature=2.0, seed=4, ignore_eos=True, until=letter)
        assert got.ids() == whole.ids()[: first + 1]
        assert got.finishes == {0: "length"}

    on(engine, work)


# ---------------------------------------------------------------- shared work


def test_samples_share_one_prefill_and_forks_compute_next_to_nothing(engine: TorchEngine) -> None:
    model = tiny_model()

    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        first = await take(engine, prompt, n=4, max_tokens=8, temperature=2.0, ignore_eos=True)
        assert first.prompt == [(len(prompt), 0)]
        for index in (0, 3):
            continued = await take(engine, prompt + first.ids(index), max_tokens=2, ignore_eos=True)
            assert continued.prompt == [(1, len(prompt) + 7)]
            whole = prompt + first.ids(index) + continued.ids()
            assert continued.logprobs() == pytest.approx(logprobs_of(model, whole, len(whole) - 2), abs=EXACT)
        forked = await take(engine, prompt + first.ids(2)[:4], n=3, max_tokens=2, ignore_eos=True)
        ((computed, cached),) = forked.prompt
        assert (computed <= 2, computed + cached) == (True, len(prompt) + 4)
        await engine.score([9, *prompt], 5)
        assert (await take(engine, [9, *prompt], max_tokens=1)).prompt == [(1, len(prompt))]

    on(engine, work)


def test_more_samples_than_there_are_sequences(engine: TorchEngine) -> None:
    model = tiny_model()

    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        got = await take(engine, prompt, n=60, max_tokens=6, temperature=2.0, ignore_eos=True)
        for index in (0, 31, 59):
            wanted = logprobs_of(model, prompt + got.ids(index), len(prompt))
            assert got.logprobs(index) == pytest.approx(wanted, abs=EXACT)
        before = (await engine.counts())["computed"]
        await take(engine, prompt, n=6, max_tokens=10, temperature=0.0, ignore_eos=True)
        assert (await engine.counts())["computed"] - before == 1 + 9  # samples that agree are computed once

    on(engine, work)


# ---------------------------------------------------------------- cancelling and closing


def test_after_a_cancel_nothing_more_is_generated(engine: TorchEngine) -> None:
    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        stream = await started(engine, prompt)
        await asyncio.sleep(0.02)
        await stream.aclose()
        computed = (await engine.counts())["computed"]
        assert computed < len(prompt) + 100
        await asyncio.sleep(0.05)
        counts = await engine.counts()
        assert (counts["computed"], counts["running"], counts["requests"]) == (computed, 0, 0)
        # All that was computed was delivered or counted: the cache holds it but for the last token.
        assert stream.undelivered == computed - len(prompt) - 0
        waiting = asyncio.ensure_future(drain(await started(engine, prompt)))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        dropped = await started(engine, prompt)
        del dropped
        gc.collect()
        assert (await take(engine, prompt, max_tokens=1)).finishes
        assert (await engine.counts())["running"] == 0

    on(engine, work)


def test_a_score_can_be_cancelled_and_waits_for_room(engine: TorchEngine) -> None:
    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        streams = [await started(engine, prompt[:at]) for at in range(3, 8)]
        abandoned = asyncio.ensure_future(engine.score([5] * 250, 1))
        await asyncio.sleep(0)
        abandoned.cancel()
        assert len(await engine.score(prompt, 1)) == len(prompt) - 1
        for stream in streams:
            await stream.aclose()
        assert abandoned.cancelled()

    on(engine, work)


def test_a_closed_engine_says_so_and_its_thread_has_ended() -> None:
    async def run() -> None:
        engine = TorchEngine(tiny_model(), tiny_tokenizer())
        prompt = await engine.tokenize(TEXT)
        stream = await started(engine, prompt)
        thread = engine._worker._thread
        await engine.close()
        await engine.close()
        engine.refresh()
        assert not thread.is_alive()
        with pytest.raises(EngineError, match="closed while it worked"):
            await drain(stream)
        await stream.aclose()
        for asked in (engine.tokenize("a"), engine.score(prompt, 1), take(engine, prompt)):
            with pytest.raises(EngineError, match=r"this engine is closed.*ponder\.engine\.open_engine"):
                await asked

    asyncio.run(run())


def test_an_engine_that_is_dropped_takes_its_thread_along() -> None:
    engine = TorchEngine(tiny_model(), tiny_tokenizer())
    thread = engine._worker._thread
    assert thread.is_alive()
    del engine
    gc.collect()
    assert not thread.is_alive()


def test_event_loops_and_threads_at_once_use_one_engine(engine: TorchEngine) -> None:
    prompt = asyncio.run(engine.tokenize(TEXT))

    def ask() -> list[int]:
        return asyncio.run(take(engine, prompt, n=2, temperature=0.0, ignore_eos=True)).ids(1)

    expected, results = ask(), {}
    threads = [threading.Thread(target=lambda number=number: results.update({number: ask()})) for number in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert results == dict.fromkeys(range(3), expected)


# ---------------------------------------------------------------- adapters, and a model in training


def test_a_request_chooses_its_adapters(adapted: tuple[TorchEngine, Any]) -> None:
    engine, model = adapted

    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        assert engine.capabilities.adapters == ("left", "right")
        assert engine.info.metadata["ponder.adapters"] == {"right": 1.0}
        assert engine.info.parameters == 36_000
        chosen: list[tuple[dict[str, float] | None, dict[str, float]]] = [
            (None, {"right": 1.0}),
            (BARE, {}),
            ({"left": 1.0}, {"left": 1.0}),
            ({"left": 0.5, "right": -1.0}, {"left": 0.5, "right": -1.0}),
        ]
        together = await asyncio.gather(
            *[take(engine, prompt, n=2, max_tokens=9, adapters=a, ignore_eos=True) for a, _ in chosen]
        )
        for (adapters, scales), got in zip(chosen, together, strict=True):
            for index in range(2):
                ids = prompt + got.ids(index)
                wanted = logprobs_of(model, ids, len(prompt), scales)
                assert got.logprobs(index) == pytest.approx(wanted, abs=5 * EXACT)
                scores = await engine.score(ids, len(prompt), SamplingParams(1, adapters=adapters))
                assert scores == pytest.approx(wanted, abs=5 * EXACT)
        assert len({tuple(got.ids()) for got in together}) == 4
        assert model.active_adapters == ["right"]
        with pytest.raises(InputError, match=r"no adapter 'other' is loaded.*choose from left, right"):
            engine.sample(prompt, 1, SamplingParams(1, adapters={"other": 1.0}))

    on(engine, work)


def test_a_step_of_an_optimiser_is_noticed(adapted: tuple[TorchEngine, Any]) -> None:
    engine, model = adapted
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=0.05)

    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        ids = prompt + (await take(engine, prompt, max_tokens=20, adapters=None, ignore_eos=True)).ids()
        last: list[float] = []
        for _ in range(3):
            scores = await engine.score(ids, len(prompt))
            assert scores.computed in (len(ids) - 1, len(ids) - len(prompt) + 1, 20) or last
            assert scores == pytest.approx(logprobs_of(model, ids, len(prompt), {"right": 1.0}), abs=5 * EXACT)
            assert not last or max(abs(a - b) for a, b in zip(scores, last, strict=True)) > 0.01
            again = await engine.score(ids, len(prompt))
            assert again.computed < len(ids) - 1  # as long as nothing has changed, what was computed is used
            last = scores
            model.train()
            torch.nn.functional.cross_entropy(
                model(torch.tensor([ids[:-1]])).logits[0], torch.tensor(ids[1:])
            ).backward()
            optimiser.step()
            optimiser.zero_grad()
            fresh = await engine.score(ids, len(prompt))
            assert fresh.computed == len(ids) - 1
            assert all(module.training for module in model.modules())

    on(engine, work)


def test_weights_that_change_under_a_sample_end_it(engine: TorchEngine) -> None:
    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        stream = await started(engine, prompt)
        engine.refresh()
        with pytest.raises(EngineError, match="the weights changed while they were used"):
            await drain(stream)
        got = await take(engine, prompt, max_tokens=2)
        assert got.prompt == [(len(prompt), 0)]  # nothing was left

    on(engine, work)


def test_weights_that_were_replaced_are_told_of_by_refresh() -> None:
    model = tiny_model()
    engine = TorchEngine(model, tiny_tokenizer(), settings=TorchSettings(dtype="bfloat16"))

    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        before = await engine.score(prompt, 1)
        other = tiny_model(seed=3)
        for own, new in zip(model.parameters(), other.parameters(), strict=True):
            own.data.copy_(new.data)  # past the counters
        engine.refresh()
        assert await engine.score(prompt, 1) == pytest.approx(logprobs_of(other, prompt, 1), abs=0.3)
        assert logprobs_of(other, prompt, 1) != pytest.approx(before, abs=1.0)
        await engine.close()

    on(engine, work)


# ---------------------------------------------------------------- what goes wrong


def test_what_cannot_be_asked_is_refused(engine: TorchEngine) -> None:
    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        one = SamplingParams(1)
        with pytest.raises(InputError, match="n must be at least 1, not 0"):
            engine.sample(prompt, 0, one)
        with pytest.raises(Unsupported, match=r"the hf engine.*ponder\.chat"):
            engine.chat((), 1, one)
        with pytest.raises(ContextOverflow, match="250 tokens and 7 more do not fit into 256"):
            await take(engine, [5] * 250, max_tokens=7)
        with pytest.raises(ContextOverflow, match="a text of 257 tokens"):
            await engine.score([5] * 257, 1)
        with pytest.raises(InputError, match="empty"):
            await take(engine, [])
        for start in (0, len(prompt) + 1):
            with pytest.raises(InputError, match=f"cannot score from token {start}"):
                await engine.score(prompt, start)
        for wrong in (-1, 272, 2**40):
            for call in (take(engine, [wrong]), engine.score([5, wrong], 1), engine.detokenize([wrong])):
                with pytest.raises(InputError, match=f"{wrong} is no token of this model"):
                    await call
        with pytest.raises(TypeError):
            engine.sample([1.5], 1, one)
        assert await engine.detokenize(np.array(prompt)) == TEXT
        assert await engine.detokenize(await engine.tokenize("a\udce9b")) == "a���b"

    on(engine, work)


def test_a_model_that_computes_no_numbers_is_an_error_and_the_next_request_works(engine: TorchEngine) -> None:
    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        weight = (
            engine._worker._backend._decoder.model.lm_head
            if engine.info.metadata["ponder.path"] == "batched"
            else (engine._worker._backend._model.lm_head)
        )
        with torch.no_grad():
            weight.weight.mul_(torch.nan)
        with pytest.raises(EngineError, match="computed no numbers"):
            await take(engine, prompt)
        with torch.no_grad():
            weight.weight.fill_(0.1)
        assert (await take(engine, prompt)).ids()

    on(engine, work)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequences": 1}, "sequences must lie between 2 and 4096, not 1"),
        ({"context": 0}, "context must be at least 1, not 0"),
        ({"batch": -1}, "batch must be at least 1, not -1"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
        ({"dtype": "int8"}, "dtype must be one of float32, .*, not 'int8'"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TorchSettings(**settings)


def test_a_tokenizer_without_exact_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="object is no fast tokenizer"):
        TorchEngine(tiny_model(), object())


def test_memory_for_keys_and_values_bounds_the_samples_at_once() -> None:
    model = tiny_model()
    a_row = 256 * 2 * 2 * 2 * 8 * 4
    engine = TorchEngine(model, tiny_tokenizer(), settings=TorchSettings(cache=3 * a_row))

    async def work(engine: TorchEngine, prompt: list[int]) -> None:
        got = await take(engine, prompt, n=7, max_tokens=5, temperature=2.0, ignore_eos=True)
        for index in range(7):
            wanted = logprobs_of(model, prompt + got.ids(index), len(prompt))
            assert got.logprobs(index) == pytest.approx(wanted, abs=EXACT)
        assert engine._worker._backend._decoder.slots <= 4
        await engine.close()

    on(engine, work)

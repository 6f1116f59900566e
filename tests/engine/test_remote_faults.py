"""The remote engine when servers fail, lie or hang, and when callers leave."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

import faults
import servers
from remote_helpers import (
    CAP,
    NAMES,
    PROMPT,
    TOKEN_KINDS,
    drain,
    each_kind,
    failing,
    finishes,
    ids_of,
    sampled,
    text_of,
    with_engine,
)

from ponder.engine.remote import RemoteEngine
from ponder.errors import (
    ContextOverflow,
    EngineDisconnected,
    EngineError,
    EngineTimeout,
    GarbledReply,
    PonderError,
    Unsupported,
)
from ponder.protocols import Chunk, SamplingParams
from ponder.types import user


@pytest.mark.parametrize("fake", [*TOKEN_KINDS, servers.FakeServer], ids=[*NAMES, "chat"])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (faults.cut_after(2), EngineDisconnected),
        (faults.end_after(2), EngineDisconnected),
        (faults.hang(2), EngineTimeout),
        (faults.hang(), EngineTimeout),
        (faults.put(2, b"data: {oops\n\n"), GarbledReply),
        (faults.put(2, {}), GarbledReply),
        (faults.put(2, {"error": {"message": "out of memory"}}), EngineError),
        (faults.page(), GarbledReply),
        (faults.edit(lambda event: event.update(index=9, choices=[{"index": 9, "text": ""}])), GarbledReply),
        (faults.refuse(400, {"error": {"message": "maximum context length"}}), ContextOverflow),
    ],
    ids=["cut", "early end", "hang", "silence", "garbage", "empty", "error", "page", "wrong index", "context"],
)
def test_each_fault_has_its_error(
    fake: Callable[..., servers.FakeServer], fault: faults.Fault, error: type[PonderError]
) -> None:
    server = fake(("one two three four",), faults=[fault])
    raised = failing(server, timeout=0.2, first_token_timeout=0.2)
    assert type(raised) is error
    assert len(server.asked) == 1


@each_kind
def test_a_passing_failure_is_passed_over(fake: Callable[..., servers.FakeServer]) -> None:
    server = fake(faults=[faults.refuse(503), faults.reset()])
    assert text_of(sampled(server), 0) == "Hello"
    assert len(server.asked) == 3


@each_kind
def test_pieces_pings_and_line_ends_change_nothing(fake: Callable[..., servers.FakeServer]) -> None:
    plain = sampled(fake(("aé🤔<think>",)), 2)
    dressed = fake(("aé🤔<think>",), faults=[faults.split([1, 7, 3], b"\r\n", b"")])
    assert sampled(dressed, 2) == plain
    assert sampled(fake(("aé🤔<think>",), faults=[faults.put(2, b": ping\n\n")]), 2) == plain


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.integers(0, 2))
def test_any_split_into_tcp_pieces_gives_the_same_chunks(cuts: list[int], kind: int) -> None:
    fake = TOKEN_KINDS[kind]
    assert sampled(fake(("é🤔x",), faults=[faults.split(cuts)]), 2) == sampled(fake(("é🤔x",)), 2)


def _longer(server: servers.FakeServer, by: int) -> servers.FakeServer:
    """A server that does not keep to the cap, but goes `by` tokens on."""
    honest = server.sampled
    server.sampled = lambda index, cap, endless=False: honest(index, cap + by, endless)  # type: ignore[method-assign]
    return server


@each_kind
def test_tokens_beyond_the_cap_are_cut_and_counted(fake: Callable[..., servers.FakeServer]) -> None:
    async def work(engine: RemoteEngine) -> list[Chunk]:
        return await drain(engine.sample(PROMPT, 1, SamplingParams(max_tokens=4)))

    server = _longer(fake(("abcdefgh",)), 3)
    chunks = with_engine(server, work)
    assert ids_of(chunks, 0) == servers.encode("abcd")
    assert text_of(chunks, 0) == "abcd"
    assert finishes(chunks, 0) == ["length"]
    assert chunks[-1].finish == "length"
    assert 1 <= sum(chunk.lost for chunk in chunks) <= 3
    assert sum(chunk.prompt_computed + chunk.prompt_cached for chunk in chunks) == len(PROMPT)


@each_kind
def test_one_sample_beyond_the_cap_does_not_cut_the_others(fake: Callable[..., servers.FakeServer]) -> None:
    server = fake(("abcdefgh", "ab"))
    honest = server.sampled
    server.sampled = lambda i, cap, endless=False: honest(i, cap + 3 * (i == 0), endless)  # type: ignore[method-assign]
    chunks = sampled(server, 2, SamplingParams(max_tokens=3))
    assert ids_of(chunks, 0) == servers.encode("abc")
    assert ids_of(chunks, 1) == [*servers.encode("ab"), servers.EOS]
    assert finishes(chunks, 0) == ["length"]
    assert finishes(chunks, 1) == ["stop"]


def test_a_chunk_that_straddles_the_cap_is_cut_inside() -> None:
    def merge(steps: list[faults.Step]) -> list[faults.Step]:
        one = {"index": 0, "token_ids": servers.encode("abcdé"), "text": "abcdé", "finish_reason": "stop"}
        return [{"choices": [one]}, faults.DONE]

    for cap, text in ((3, "abc"), (5, "abcd")):
        chunks = sampled(servers.FakeVllm(faults=[merge]), params=SamplingParams(max_tokens=cap))
        assert ids_of(chunks, 0) == servers.encode("abcdé")[:cap]
        assert text_of(chunks, 0) == text
        assert chunks[-1].lost == 6 - cap
        assert finishes(chunks, 0) == ["length"]


@each_kind
def test_a_sample_that_goes_on_after_its_end_is_garbled(fake: Callable[..., servers.FakeServer]) -> None:
    def again(steps: list[faults.Step]) -> list[faults.Step]:
        # The first sample is whole, the second is open, and then the first comes once more.
        return [*steps[:-1], *steps]

    assert isinstance(failing(fake(("a", "abcdefghi"), faults=[again]), 2), GarbledReply)


def test_an_abort_is_no_end_of_text() -> None:
    def aborted(event: dict[str, Any]) -> None:
        for choice in event["choices"]:
            choice["finish_reason"] = choice["finish_reason"] and "abort"

    assert isinstance(failing(servers.FakeVllm(faults=[faults.edit(aborted)])), EngineDisconnected)
    stopped = faults.edit(lambda event: event.update(stop_type="none"))
    assert isinstance(failing(servers.FakeLlamaServer(faults=[stopped])), EngineDisconnected)
    unsaid = faults.edit(lambda event: event.pop("stop_type", None))
    assert isinstance(failing(servers.FakeLlamaServer(faults=[unsaid])), EngineDisconnected)
    for message, kind in (
        ("broke", EngineError),
        ("The input is longer than the model's context length", ContextOverflow),
    ):
        reason = {"type": "abort", "message": message}
        fault = faults.edit(lambda event, r=reason: event["meta_info"].update(finish_reason=r))
        assert type(failing(servers.FakeSGLang(faults=[fault]))) is kind


def test_an_unknown_reason_to_end_is_garbled() -> None:
    fault = faults.edit(lambda event: [c.update(finish_reason="bored") for c in event["choices"]])
    assert "bored" in str(failing(servers.FakeVllm(faults=[fault])))


def test_a_server_that_changes_its_mind_is_garbled() -> None:
    changed = faults.edit(lambda e: e["output_ids"].__setitem__(0, 5 + len(e["output_ids"])))
    assert isinstance(failing(servers.FakeSGLang(faults=[changed])), GarbledReply)
    reworded = faults.edit(lambda e: e.update(text=f"{len(e['text'])}"))
    assert isinstance(failing(servers.FakeSGLang(faults=[reworded])), GarbledReply)
    prompted = faults.edit(lambda e: [c.update(prompt_token_ids=[1]) for c in e["choices"]])
    assert "prompt" in str(failing(servers.FakeVllm(faults=[prompted])))


def test_a_vllm_that_names_no_ids_is_refused() -> None:
    mute = faults.edit(lambda e: [(c.pop("token_ids"), c.pop("logprobs")) for c in e["choices"] if "token_ids" in c])
    assert isinstance(failing(servers.FakeVllm(faults=[mute])), Unsupported)


@pytest.mark.parametrize("ids", ["x", [1, "2"], [True], [-1], 5])
def test_ids_of_another_shape_are_garbled(ids: object) -> None:
    assert isinstance(
        failing(servers.FakeVllm(faults=[faults.edit(lambda e: [c.update(token_ids=ids) for c in e["choices"]])])),
        GarbledReply,
    )
    assert isinstance(
        failing(servers.FakeLlamaServer(faults=[faults.edit(lambda e: e.update(tokens=ids))])), GarbledReply
    )


def test_texts_of_another_shape_are_garbled() -> None:
    assert isinstance(
        failing(servers.FakeLlamaServer(faults=[faults.edit(lambda e: e.update(content=5))])), GarbledReply
    )


def test_sglang_tokens_that_it_counts_and_does_not_send_are_lost() -> None:
    def more(event: dict[str, Any]) -> None:
        if event["meta_info"]["finish_reason"]:
            event["meta_info"]["completion_tokens"] += 2

    assert sum(chunk.lost for chunk in sampled(servers.FakeSGLang(faults=[faults.edit(more)]))) == 2


def test_sglang_ids_are_read_from_the_log_probabilities_if_need_be() -> None:
    chunks = sampled(servers.FakeSGLang(("abc",), faults=[faults.edit(lambda event: event.pop("output_ids"))]))
    assert ids_of(chunks, 0) == [*servers.encode("abc"), servers.EOS]


def test_a_server_without_a_tokenizer_says_so() -> None:
    with pytest.raises(Unsupported, match="/tokenize"):
        with_engine(servers.FakeSGLang(tokenizer=False), lambda engine: engine.tokenize("x"))


async def _started(engine: RemoteEngine, server: servers.FakeServer, count: int) -> tuple[Any, list[Any]]:
    """A stream from which `count` items have been read, and which waits for the next."""
    stream = engine.sample(PROMPT, 1, CAP) if engine.capabilities.tokens else engine.chat([user("hi")], 1, CAP)
    items = [await anext(stream) for _ in range(count)]
    return stream, items


@pytest.mark.parametrize("fake", [*TOKEN_KINDS[:3], servers.FakeServer], ids=[*NAMES[:3], "chat"])
@pytest.mark.parametrize("after", [None, 0, 3])
@pytest.mark.parametrize("way", ["cancel", "aclose", "close", "drop"])
def test_leaving_closes_the_connection_at_once(
    fake: Callable[..., servers.FakeServer], after: int | None, way: str
) -> None:
    server = fake(("one two three four five",), faults=[faults.hang(after)])

    async def work(engine: RemoteEngine) -> None:
        stream, items = await _started(engine, server, 2 if after else 0)
        assert len(items) == (2 if after else 0)
        waiting = asyncio.create_task(drain(stream))
        await asyncio.wait_for(server.busy.wait(), 2)
        await asyncio.sleep(0.05)
        assert not server.asked[0].left.is_set()
        if way == "cancel":
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        elif way == "aclose":
            await stream.aclose()
            assert await waiting is not None
            await stream.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        elif way == "close":
            await engine.close()
            with pytest.raises(EngineError, match="closed"):
                await waiting
        else:
            waiting.cancel()
            del stream, waiting
            await asyncio.sleep(0)
            gc.collect()
        await asyncio.wait_for(server.asked[0].left.wait(), 1)

    with_engine(server, work)


def test_a_stream_that_is_dropped_between_two_items_is_closed() -> None:
    server = servers.FakeVllm(("one two three four",), faults=[faults.hang(5)])

    async def work(engine: RemoteEngine) -> None:
        stream = engine.sample(PROMPT, 1, CAP)
        await anext(stream)
        del stream
        gc.collect()
        await asyncio.wait_for(server.asked[0].left.wait(), 1)

    with_engine(server, work)


def test_what_was_not_read_is_counted_on_closing() -> None:
    for server in (
        servers.FakeVllm(("abcdefgh",), faults=[faults.hang(6)]),
        servers.FakeServer(("a b c d e f g h",), faults=[faults.hang(7)]),
    ):

        async def work(engine: RemoteEngine, server: servers.FakeServer = server) -> None:
            stream, _ = await _started(engine, server, 2)
            await asyncio.sleep(0.2)
            await stream.aclose()
            assert stream.undelivered == 4

        with_engine(server, work)


def test_nothing_is_asked_of_the_server_before_the_first_item() -> None:
    server = servers.FakeVllm()

    async def work(engine: RemoteEngine) -> None:
        stream = engine.sample(PROMPT, 1, CAP)
        await asyncio.sleep(0.05)
        await stream.aclose()  # type: ignore[attr-defined]
        assert not server.asked

    with_engine(server, work)


def test_a_closed_engine_takes_no_more_work() -> None:
    async def work(engine: RemoteEngine) -> None:
        await engine.close()
        await engine.close()
        for call in (lambda: engine.sample(PROMPT, 1, CAP), lambda: engine.chat([user("x")], 1, CAP)):
            with pytest.raises(EngineError, match="closed"):
                call()
        with pytest.raises(EngineError, match="closed"):
            await engine.tokenize("x")

    with_engine(servers.FakeVllm(), work)


def test_requests_run_beside_each_other() -> None:
    async def work(engine: RemoteEngine) -> None:
        began = time.monotonic()
        found = await asyncio.gather(*(drain(engine.sample(PROMPT, 1, CAP)) for _ in range(8)))
        assert all(text_of(chunks, 0) == "Hello" for chunks in found)
        assert time.monotonic() - began < 1.5

    with_engine(servers.FakeVllm(faults=[faults.slowly(0.05)] * 8), work)

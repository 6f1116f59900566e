"""The remote engine against fakes of each kind of server, and against the real llama.cpp one."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

import servers

from ponder.engine.remote import RemoteEngine, open_remote
from ponder.engine.remote_chat import message_dicts
from ponder.engine.transport import Retries
from ponder.errors import (
    ContextOverflow,
    EngineDisconnected,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    GarbledReply,
    InputError,
    PonderError,
    Unsupported,
)
from ponder.protocols import ChatChunk, Chunk, Engine, SamplingParams
from ponder.types import Audio, Image, Message, Text, Thinking, ToolCall, ToolResult, Video, assistant, system, user

QUICK = Retries(attempts=3, base=0.01, cap=0.02, total=1.0)
PROMPT = servers.encode("<s>say it")
CAP = SamplingParams(max_tokens=100)
TOKEN_KINDS: list[Callable[..., servers.FakeServer]] = [
    servers.FakeVllm,
    servers.FakeLlamaServer,
    servers.FakeSGLang,
    lambda *a, **k: servers.FakeVllm(*a, names_ids=False, **k),
    lambda *a, **k: servers.FakeLlamaServer(*a, special=True, **k),
    lambda *a, **k: servers.FakeSGLang(*a, pieces=True, **k),
]
NAMES = ["vllm", "llamacpp", "sglang", "vllm-old", "llamacpp-special", "sglang-pieces"]
each_kind = pytest.mark.parametrize("fake", TOKEN_KINDS, ids=NAMES)


def with_engine(
    server: servers.FakeServer,
    work: Callable[[RemoteEngine], Coroutine[Any, Any, Any]],
    prefix: str = "openai",
    model: str = "",
    **how: Any,
) -> Any:
    """What `work` returns with an engine on `server`."""

    async def run() -> Any:
        async with server:
            engine = await open_remote(f"{prefix}:{server.url}{model}", **{"retries": QUICK, **how})
            try:
                return await work(engine)
            finally:
                await engine.close()

    return asyncio.run(run())


async def drain(chunks: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in chunks]


def sampled(server: servers.FakeServer, n: int = 1, params: SamplingParams = CAP, **how: Any) -> list[Chunk]:
    return with_engine(server, lambda engine: drain(engine.sample(PROMPT, n, params)), **how)


def chatted(
    server: servers.FakeServer, n: int = 1, params: SamplingParams = CAP, think: bool | None = None, **how: Any
) -> list[ChatChunk]:
    return with_engine(server, lambda engine: drain(engine.chat([user("hi")], n, params, think)), **how)


def failing(server: servers.FakeServer, n: int = 1, params: SamplingParams = CAP, **how: Any) -> PonderError:
    """What sampling (or chatting, where there are no token ids) raises."""
    collect = chatted if type(server) is servers.FakeServer else sampled
    with pytest.raises(PonderError) as caught:
        collect(server, n, params, **how)
    return caught.value


def ids_of(chunks: Sequence[Chunk], index: int) -> list[int]:
    return [token for chunk in chunks if chunk.index == index for token in chunk.ids]


def text_of(chunks: Sequence[Any], index: int) -> str:
    return "".join(getattr(c, "text", None) or getattr(c, "answer", "") for c in chunks if c.index == index)


def finishes(chunks: Sequence[Any], index: int) -> list[str]:
    return [chunk.finish for chunk in chunks if chunk.index == index and chunk.finish]


# ---------------------------------------------------------------- token ids, the good case


@each_kind
@pytest.mark.parametrize("n", [1, 3])
def test_samples_are_token_exact(fake: Callable[..., servers.FakeServer], n: int) -> None:
    replies = ("Good.", "<think>no</think>yes", "é🤔 漢")
    chunks = sampled(fake(replies), n)
    for index in range(n):
        assert text_of(chunks, index) == replies[index]
        assert ids_of(chunks, index) == [*servers.encode(replies[index]), servers.EOS]
        assert finishes(chunks, index) == ["stop"]
        assert [c for c in chunks if c.index == index][-1].finish
    assert not any(chunk.lost for chunk in chunks)
    assert all(len(chunk.logprobs) == len(chunk.ids) for chunk in chunks)
    counted = [(c.prompt_computed, c.prompt_cached) for c in chunks if c.prompt_computed or c.prompt_cached]
    assert len(counted) == 1
    assert sum(counted[0]) == len(PROMPT)


@each_kind
def test_the_cap_ends_a_sample_by_length(fake: Callable[..., servers.FakeServer]) -> None:
    chunks = sampled(fake(("abcdef",)), params=SamplingParams(max_tokens=3))
    assert ids_of(chunks, 0) == servers.encode("abc")
    assert finishes(chunks, 0) == ["length"]
    chunks = sampled(fake(("ab",)), params=SamplingParams(max_tokens=3))
    assert ids_of(chunks, 0) == [*servers.encode("ab"), servers.EOS]
    assert finishes(chunks, 0) == ["stop"]
    chunks = sampled(fake(("ab",)), params=SamplingParams(max_tokens=5, ignore_eos=True))
    assert text_of(chunks, 0) == "ababa"


@each_kind
def test_a_cut_inside_a_character_leaves_no_debris(fake: Callable[..., servers.FakeServer]) -> None:
    chunks = sampled(fake(("a🤔",)), params=SamplingParams(max_tokens=3))
    assert text_of(chunks, 0) == "a"
    assert len(ids_of(chunks, 0)) + sum(chunk.lost for chunk in chunks) == 3
    assert ids_of(chunks, 0) == servers.encode("a🤔")[: len(ids_of(chunks, 0))]


@each_kind
def test_text_and_ids_convert_both_ways(fake: Callable[..., servers.FakeServer]) -> None:
    async def work(engine: RemoteEngine) -> None:
        text = "<s>é🤔<|im_end|>"
        assert await engine.tokenize(text) == servers.encode(text)
        assert await engine.detokenize(servers.encode(text)) == text
        assert await engine.tokenize("") == []
        assert await engine.detokenize([]) == ""

    with_engine(fake(), work)


@each_kind
def test_a_sample_can_be_continued_from_its_ids(fake: Callable[..., servers.FakeServer]) -> None:
    server = fake(("abcdef",))

    async def work(engine: RemoteEngine) -> None:
        first = await drain(engine.sample(PROMPT, 1, SamplingParams(max_tokens=2)))
        await drain(engine.sample([*PROMPT, *ids_of(first, 0)], 1, CAP))

    with_engine(server, work)
    body = server.asked[1].body
    sent = body.get("prompt", body.get("input_ids"))
    assert sent == [*PROMPT, *servers.encode("ab")]


def test_what_vllm_is_asked() -> None:
    server = servers.FakeVllm()
    sampled(server, 3, SamplingParams(max_tokens=9, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=4))
    body = server.asked[0].body
    wanted = {"n": 3, "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 4}
    assert wanted.items() <= body.items()
    assert body["return_token_ids"] is True
    assert body["skip_special_tokens"] is False
    assert body["stream_options"] == {"include_usage": True}


def test_what_llama_server_is_asked() -> None:
    server = servers.FakeLlamaServer()
    sampled(server, 3, SamplingParams(max_tokens=9, temperature=0.5))
    body = server.asked[0].body
    wanted = {"n_cmpl": 3, "n_predict": 9, "temperature": 0.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert wanted.items() <= body.items()
    assert body["cache_prompt"] is body["return_tokens"] is True
    assert "seed" not in body
    assert server.asked[0].headers["connection"] == "close"


def test_what_sglang_is_asked() -> None:
    server = servers.FakeSGLang()
    sampled(server, 2, SamplingParams(max_tokens=9, top_k=0))
    body = server.asked[0].body
    assert body["sampling_params"]["top_k"] == -1
    assert body["sampling_params"]["n"] == 2
    # One seed for all would give the same sample each time.
    sampled(server, 2, SamplingParams(max_tokens=9, seed=5))
    body = server.asked[1].body
    assert [row["sampling_seed"] for row in body["sampling_params"]] == [5, 6]
    assert body["input_ids"] == [PROMPT, PROMPT]
    sampled(server, 1, SamplingParams(max_tokens=9, seed=5))
    assert server.asked[2].body["sampling_params"]["sampling_seed"] == 5


def test_log_probabilities_are_the_models_own() -> None:
    for fake in (servers.FakeVllm, servers.FakeLlamaServer, servers.FakeSGLang):
        for temperature in (0.0, 1.0, 0.7):
            chunks = sampled(fake(("ab",)), params=SamplingParams(max_tokens=9, temperature=temperature))
            found = [value for chunk in chunks for value in chunk.logprobs]
            if fake is servers.FakeSGLang and temperature == 0.7:
                assert found == [None] * 3  # those of the tempered distribution are not passed off as the model's
            else:
                assert found == [-t / 100 for t in (*servers.encode("ab"), servers.EOS)]


def test_more_samples_than_slots_come_in_rounds() -> None:
    server = servers.FakeLlamaServer(("a", "b", "c"), slots=2)
    chunks = sampled(server, 5, SamplingParams(max_tokens=9, seed=10))
    assert [request.body["n_cmpl"] for request in server.asked] == [2, 2, 1]
    assert [request.body["seed"] for request in server.asked] == [10, 12, 14]
    assert [text_of(chunks, i) for i in range(5)] == ["a", "b", "a", "b", "a"]
    assert all(finishes(chunks, i) == ["stop"] for i in range(5))
    assert sum(bool(c.prompt_computed or c.prompt_cached) for c in chunks) == 1


def test_vllm_scores_given_tokens() -> None:
    async def work(engine: RemoteEngine) -> None:
        assert engine.capabilities.score
        ids = [10, 20, 30, 40]
        assert await engine.score(ids, 2) == [-0.3, -0.4]
        assert await engine.score(ids, 4, CAP) == []
        with pytest.raises(InputError, match="start at 1"):
            await engine.score(ids, 0)

    with_engine(servers.FakeVllm(), work)


@pytest.mark.parametrize("rows", [None, [None], [None, {}, {}], [None, {"20": {"logprob": "x"}}, 5]])
def test_a_score_that_lacks_a_token_is_garbled(rows: object) -> None:
    server = servers.FakeVllm()

    def post(path: str, body: Any) -> object:
        return {"choices": [{"prompt_logprobs": rows}]} if path == "/v1/completions" else None

    server.post = post  # type: ignore[method-assign]
    with pytest.raises(GarbledReply):
        with_engine(server, lambda engine: engine.score([10, 20, 30], 1))


def test_other_kinds_do_not_score() -> None:
    for server in (servers.FakeLlamaServer(), servers.FakeSGLang(), servers.FakeServer()):

        async def work(engine: RemoteEngine) -> None:
            assert not engine.capabilities.score
            with pytest.raises(Unsupported):
                await engine.score([1, 2], 1)

        with_engine(server, work)


# ---------------------------------------------------------------- characters of several tokens on llama-server


def _misspelled(server: servers.FakeLlamaServer) -> servers.FakeLlamaServer:
    """A server whose tokenizer does not agree with what was sampled."""
    honest = server.post

    def post(path: str, body: Any) -> object:
        return {"tokens": [7, 8]} if path == "/tokenize" else honest(path, body)

    server.post = post  # type: ignore[method-assign]
    return server


def test_hidden_ids_that_cannot_be_recovered_are_lost_and_not_invented() -> None:
    chunks = sampled(_misspelled(servers.FakeLlamaServer(("a🤔b",))))
    real = servers.encode("a🤔b")
    assert text_of(chunks, 0) == "a🤔b"
    assert ids_of(chunks, 0) == [real[0], *real[4:], servers.EOS]
    assert sum(chunk.lost for chunk in chunks) == 3


@settings(max_examples=25, deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00\ufffd"), min_size=1, max_size=8), st.integers(1, 30)
)
def test_no_token_goes_uncounted(text: str, cap: int) -> None:
    chunks = sampled(servers.FakeLlamaServer((text,)), params=SamplingParams(max_tokens=cap))
    full = [*servers.encode(text), servers.EOS]
    assert len(ids_of(chunks, 0)) + sum(chunk.lost for chunk in chunks) == min(cap, len(full))
    assert ids_of(chunks, 0) == full[: len(ids_of(chunks, 0))]
    assert text.startswith(text_of(chunks, 0))


def test_the_end_of_turn_is_told_from_a_marker_by_what_follows() -> None:
    for special in (False, True):
        server = servers.FakeLlamaServer(("<think>a</think>[b]",), special=special)
        chunks = sampled(server)
        assert text_of(chunks, 0) == "<think>a</think>[b]"
        assert ids_of(chunks, 0)[-1] == servers.EOS
        chunks = sampled(servers.FakeLlamaServer(("<think>a",), special=special), params=SamplingParams(max_tokens=1))
        assert text_of(chunks, 0) == "<think>"
        assert finishes(chunks, 0) == ["length"]


def test_a_chunk_inside_a_character_is_marked() -> None:
    for fake in (servers.FakeVllm, servers.FakeSGLang):
        chunks = sampled(fake(("🤔a",)))
        assert [chunk.pending for chunk in chunks][:5] == [True, True, True, False, False]


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("fake", [*TOKEN_KINDS, servers.FakeServer], ids=[*NAMES, "chat"])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (servers.cut_after(2), EngineDisconnected),
        (servers.end_after(2), EngineDisconnected),
        (servers.hang(2), EngineTimeout),
        (servers.hang(), EngineTimeout),
        (servers.put(2, b"data: {oops\n\n"), GarbledReply),
        (servers.put(2, {}), GarbledReply),
        (servers.put(2, {"error": {"message": "out of memory"}}), EngineError),
        (servers.page(), GarbledReply),
        (servers.edit(lambda event: event.update(index=9, choices=[{"index": 9, "text": ""}])), GarbledReply),
        (servers.refuse(400, {"error": {"message": "maximum context length"}}), ContextOverflow),
    ],
    ids=["cut", "early end", "hang", "silence", "garbage", "empty", "error", "page", "wrong index", "context"],
)
def test_each_fault_has_its_error(
    fake: Callable[..., servers.FakeServer], fault: servers.Fault, error: type[PonderError]
) -> None:
    server = fake(("one two three four",), faults=[fault])
    raised = failing(server, timeout=0.2, first_token_timeout=0.2)
    assert type(raised) is error
    assert len(server.asked) == 1


@each_kind
def test_a_passing_failure_is_passed_over(fake: Callable[..., servers.FakeServer]) -> None:
    server = fake(faults=[servers.refuse(503), servers.reset()])
    assert text_of(sampled(server), 0) == "Hello"
    assert len(server.asked) == 3


@each_kind
def test_pieces_pings_and_line_ends_change_nothing(fake: Callable[..., servers.FakeServer]) -> None:
    plain = sampled(fake(("aé🤔<think>",)), 2)
    dressed = fake(("aé🤔<think>",), faults=[servers.split([1, 7, 3], b"\r\n", b"")])
    assert sampled(dressed, 2) == plain
    assert sampled(fake(("aé🤔<think>",), faults=[servers.put(2, b": ping\n\n")]), 2) == plain


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.integers(0, 2))
def test_any_split_into_tcp_pieces_gives_the_same_chunks(cuts: list[int], kind: int) -> None:
    fake = TOKEN_KINDS[kind]
    assert sampled(fake(("é🤔x",), faults=[servers.split(cuts)]), 2) == sampled(fake(("é🤔x",)), 2)


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
    def merge(steps: list[servers.Step]) -> list[servers.Step]:
        one = {"index": 0, "token_ids": servers.encode("abcdé"), "text": "abcdé", "finish_reason": "stop"}
        return [{"choices": [one]}, servers.DONE]

    for cap, text in ((3, "abc"), (5, "abcd")):
        chunks = sampled(servers.FakeVllm(faults=[merge]), params=SamplingParams(max_tokens=cap))
        assert ids_of(chunks, 0) == servers.encode("abcdé")[:cap]
        assert text_of(chunks, 0) == text
        assert chunks[-1].lost == 6 - cap
        assert finishes(chunks, 0) == ["length"]


@each_kind
def test_a_sample_that_goes_on_after_its_end_is_garbled(fake: Callable[..., servers.FakeServer]) -> None:
    def again(steps: list[servers.Step]) -> list[servers.Step]:
        # The first sample is whole, the second is open, and then the first comes once more.
        return [*steps[:-1], *steps]

    assert isinstance(failing(fake(("a", "abcdefghi"), faults=[again]), 2), GarbledReply)


def test_an_abort_is_no_end_of_text() -> None:
    def aborted(event: dict[str, Any]) -> None:
        for choice in event["choices"]:
            choice["finish_reason"] = choice["finish_reason"] and "abort"

    assert isinstance(failing(servers.FakeVllm(faults=[servers.edit(aborted)])), EngineDisconnected)
    stopped = servers.edit(lambda event: event.update(stop_type="none"))
    assert isinstance(failing(servers.FakeLlamaServer(faults=[stopped])), EngineDisconnected)
    unsaid = servers.edit(lambda event: event.pop("stop_type", None))
    assert isinstance(failing(servers.FakeLlamaServer(faults=[unsaid])), EngineDisconnected)
    for message, kind in (
        ("broke", EngineError),
        ("The input is longer than the model's context length", ContextOverflow),
    ):
        reason = {"type": "abort", "message": message}
        fault = servers.edit(lambda event, r=reason: event["meta_info"].update(finish_reason=r))
        assert type(failing(servers.FakeSGLang(faults=[fault]))) is kind


def test_an_unknown_reason_to_end_is_garbled() -> None:
    fault = servers.edit(lambda event: [c.update(finish_reason="bored") for c in event["choices"]])
    assert "bored" in str(failing(servers.FakeVllm(faults=[fault])))


def test_a_server_that_changes_its_mind_is_garbled() -> None:
    changed = servers.edit(lambda e: e["output_ids"].__setitem__(0, 5 + len(e["output_ids"])))
    assert isinstance(failing(servers.FakeSGLang(faults=[changed])), GarbledReply)
    reworded = servers.edit(lambda e: e.update(text=f"{len(e['text'])}"))
    assert isinstance(failing(servers.FakeSGLang(faults=[reworded])), GarbledReply)
    prompted = servers.edit(lambda e: [c.update(prompt_token_ids=[1]) for c in e["choices"]])
    assert "prompt" in str(failing(servers.FakeVllm(faults=[prompted])))


def test_a_vllm_that_names_no_ids_is_refused() -> None:
    mute = servers.edit(lambda e: [(c.pop("token_ids"), c.pop("logprobs")) for c in e["choices"] if "token_ids" in c])
    assert isinstance(failing(servers.FakeVllm(faults=[mute])), Unsupported)


@pytest.mark.parametrize("ids", ["x", [1, "2"], [True], [-1], 5])
def test_ids_of_another_shape_are_garbled(ids: object) -> None:
    assert isinstance(
        failing(servers.FakeVllm(faults=[servers.edit(lambda e: [c.update(token_ids=ids) for c in e["choices"]])])),
        GarbledReply,
    )
    assert isinstance(
        failing(servers.FakeLlamaServer(faults=[servers.edit(lambda e: e.update(tokens=ids))])), GarbledReply
    )


def test_texts_of_another_shape_are_garbled() -> None:
    assert isinstance(
        failing(servers.FakeLlamaServer(faults=[servers.edit(lambda e: e.update(content=5))])), GarbledReply
    )


def test_sglang_tokens_that_it_counts_and_does_not_send_are_lost() -> None:
    def more(event: dict[str, Any]) -> None:
        if event["meta_info"]["finish_reason"]:
            event["meta_info"]["completion_tokens"] += 2

    assert sum(chunk.lost for chunk in sampled(servers.FakeSGLang(faults=[servers.edit(more)]))) == 2


def test_sglang_ids_are_read_from_the_log_probabilities_if_need_be() -> None:
    chunks = sampled(servers.FakeSGLang(("abc",), faults=[servers.edit(lambda event: event.pop("output_ids"))]))
    assert ids_of(chunks, 0) == [*servers.encode("abc"), servers.EOS]


def test_a_server_without_a_tokenizer_says_so() -> None:
    with pytest.raises(Unsupported, match="/tokenize"):
        with_engine(servers.FakeSGLang(tokenizer=False), lambda engine: engine.tokenize("x"))


# ---------------------------------------------------------------- leaving


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
    server = fake(("one two three four five",), faults=[servers.hang(after)])

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
    server = servers.FakeVllm(("one two three four",), faults=[servers.hang(5)])

    async def work(engine: RemoteEngine) -> None:
        stream = engine.sample(PROMPT, 1, CAP)
        await anext(stream)
        del stream
        gc.collect()
        await asyncio.wait_for(server.asked[0].left.wait(), 1)

    with_engine(server, work)


def test_what_was_not_read_is_counted_on_closing() -> None:
    for server in (
        servers.FakeVllm(("abcdefgh",), faults=[servers.hang(6)]),
        servers.FakeServer(("a b c d e f g h",), faults=[servers.hang(7)]),
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

    with_engine(servers.FakeVllm(faults=[servers.slowly(0.05)] * 8), work)


# ---------------------------------------------------------------- chat


def test_chat_gives_thinking_and_answer_apart() -> None:
    for name in ("reasoning_content", "reasoning"):
        server = servers.FakeServer(("It is 4.",), thinking="two and two", thinking_field=name)
        chunks = chatted(server)
        assert "".join(chunk.thinking for chunk in chunks) == "two and two"
        assert text_of(chunks, 0) == "It is 4."
        last = chunks[-1]
        assert (last.finish, last.completion_tokens, last.thinking_tokens) == ("stop", 6, 3)
        assert (last.prompt_tokens, last.prompt_cached) == (7, 3)
        assert server.asked[0].body["messages"] == [{"role": "user", "content": "hi"}]


def test_chat_works_on_the_token_kinds_too() -> None:
    for fake in TOKEN_KINDS[:3]:
        server = fake(("a b", "c"))
        chunks = chatted(server, 2, think=False)
        assert [text_of(chunks, i) for i in range(2)] == ["a b", "c"]
        assert server.asked[0].body["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
        assert server.asked[0].path == "/v1/chat/completions"


def test_three_replies_share_one_request_and_its_count() -> None:
    server = servers.FakeServer(("a b c", "d e", "f"))
    chunks = chatted(server, 3)
    assert [text_of(chunks, i) for i in range(3)] == ["a b c", "d e", "f"]
    ends = [chunk for chunk in chunks if chunk.finish]
    assert sorted(chunk.index for chunk in ends) == [0, 1, 2]
    assert sum(chunk.completion_tokens or 0 for chunk in ends) == 6
    assert [chunk.prompt_tokens for chunk in ends].count(7) == 1
    assert server.asked[0].body["n"] == 3


def test_usage_that_counts_too_little_is_not_believed() -> None:
    def one_reply(event: dict[str, Any]) -> None:
        if event["usage"]:
            event["usage"]["completion_tokens"] = 2

    ends = [c for c in chatted(servers.FakeServer(("a b c",), faults=[servers.edit(one_reply)]), 3) if c.finish]
    assert sum(chunk.completion_tokens or 0 for chunk in ends) == 9


def test_usage_that_counts_more_than_was_seen_is_believed() -> None:
    def hidden(event: dict[str, Any]) -> None:
        if event["usage"]:
            event["usage"]["completion_tokens"] = 500

    ends = [c for c in chatted(servers.FakeServer(faults=[servers.edit(hidden)]), 2) if c.finish]
    assert sum(chunk.completion_tokens or 0 for chunk in ends) == 500


def test_without_usage_each_delta_counts_one() -> None:
    last = chatted(servers.FakeServer(("a b c",), faults=[lambda steps: [*steps[:-2], servers.DONE]]))[-1]
    assert (last.completion_tokens, last.prompt_tokens, last.thinking_tokens) == (3, None, None)


@pytest.mark.parametrize("how", [{"ignores_n": True}, {"refuses": ["n"]}])
def test_a_server_that_gives_one_reply_is_asked_again(how: dict[str, Any]) -> None:
    server = servers.FakeServer(("same",), **how)
    chunks = chatted(server, 3, replace(CAP, seed=1))
    assert [text_of(chunks, i) for i in range(3)] == ["same"] * 3
    assert all(finishes(chunks, i) == ["stop"] for i in range(3))
    seeds = [request.body["seed"] for request in server.asked if request.body.get("n", 1) == 1 or server.ignores_n]
    assert seeds == [1, 2, 3]


def test_optional_fields_that_a_server_refuses_are_left_out_and_stay_out() -> None:
    class Picky(servers.FakeServer):
        def _reply(self, request: servers.Request) -> Any:
            for name in ("max_completion_tokens", "stream_options"):
                if name in (request.body or {}):
                    self.asked.append(request)
                    return servers.Plain(400, json.dumps({"error": {"message": f"unknown field {name}"}}).encode())
            return super()._reply(request)

    server = Picky(("a b c d",))

    async def work(engine: RemoteEngine) -> None:
        for _ in range(2):
            chunks = await drain(engine.chat([user("hi")], 1, SamplingParams(max_tokens=2)))
            assert text_of(chunks, 0) == "a b"

    with_engine(server, work)
    assert len(server.asked) == 4
    assert server.asked[-1].body["max_tokens"] == 2


def test_chat_beyond_the_cap_is_cut() -> None:
    server = servers.FakeServer(("a b c d e f",))
    honest = server.chat
    server.chat = lambda body: honest({**body, "max_completion_tokens": 99})  # type: ignore[method-assign]
    for n in (1, 2):
        chunks = chatted(server, n, SamplingParams(max_tokens=3))
        assert all(text_of(chunks, i) == "a b c" for i in range(n))
        assert all(finishes(chunks, i) == ["length"] for i in range(n))
        assert sum(chunk.completion_tokens or 0 for chunk in chunks) > 3 * n  # the surplus is paid for


def test_tool_calls_are_put_together() -> None:
    pieces = [
        {"index": 0, "id": "x", "type": "function", "function": {"name": "add", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a":'}},
        {"index": 1, "id": "y", "function": {"name": "sub", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": " 1}"}},
    ]
    last = chatted(servers.FakeServer(("",), calls=pieces))[-1]
    assert last.finish == "stop"
    assert last.tool_calls == (ToolCall("add", '{"a": 1}', "x"), ToolCall("sub", "{}", "y"))


def test_parallel_tool_calls_that_are_all_number_0_stay_apart() -> None:
    pieces = [{"index": 0, "id": name, "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    last = chatted(servers.FakeServer(("",), calls=pieces))[-1]
    assert [call.name for call in last.tool_calls] == ["a", "b"]


def test_what_a_plain_chat_server_cannot_do_is_refused() -> None:
    async def work(engine: RemoteEngine) -> None:
        can = engine.capabilities
        assert (can.tokens, can.chat, can.fork, can.exact_cancel, can.score, can.logprobs) == (
            False,
            True,
            *[False] * 4,
        )
        for call in (
            lambda: engine.sample(PROMPT, 1, CAP),
            lambda: engine.chat([user("x")], 1, replace(CAP, adapters={"a": 1.0})),
        ):
            with pytest.raises(Unsupported):
                call()
        for lacking in (replace(CAP, top_k=5), replace(CAP, min_p=0.1), replace(CAP, ignore_eos=True)):
            with pytest.raises(Unsupported):
                await drain(engine.chat([user("x")], 1, lacking))
        with pytest.raises(Unsupported, match=r"openai\+vllm"):
            await engine.tokenize("x")

    with_engine(servers.FakeServer(), work)


def test_think_is_sent_only_where_it_is_known() -> None:
    server = servers.FakeServer()
    chatted(server, think=True)
    assert not {"chat_template_kwargs", "reasoning_effort"} & server.asked[0].body.keys()
    chatted(server, think=False, reasoning_effort=True)
    chatted(server, think=True, reasoning_effort=True)
    assert [request.body["reasoning_effort"] for request in server.asked[1:]] == ["none", "medium"]
    chatted(server, 1, replace(CAP, top_p=0.5))
    assert server.asked[3].body["top_p"] == 0.5


def test_an_answer_in_parts_is_read() -> None:
    def parts(event: dict[str, Any]) -> None:
        for choice in event["choices"]:
            if choice["delta"].get("content"):
                choice["delta"]["content"] = [{"type": "text", "text": choice["delta"]["content"]}]

    assert text_of(chatted(servers.FakeServer(("a b",), faults=[servers.edit(parts)])), 0) == "a b"


def test_a_filtered_reply_is_an_error_and_not_an_answer() -> None:
    def filtered(event: dict[str, Any]) -> None:
        for choice in event["choices"]:
            choice["finish_reason"] = choice["finish_reason"] and "content_filter"

    assert chatted(servers.FakeServer(faults=[servers.edit(filtered)]))[-1].finish == "error"


def test_a_reply_that_goes_on_after_its_end_is_garbled() -> None:
    assert isinstance(failing(servers.FakeServer(faults=[lambda steps: [*steps[:-1], *steps]])), GarbledReply)


def test_messages_as_servers_want_them() -> None:
    talk = (
        system("Be brief."),
        Message("user", (Text("What is "), Image("data:image/png;base64,AA"), Audio("data:audio/wav;base64,BB"))),
        assistant("Looking.", "hm"),
        Message("assistant", (ToolCall("look", "{}", "c1"),)),
        Message("tool", (ToolResult("c1", "a cat"), ToolResult("c2", "a dog"))),
        Message("user", (ToolResult("c3", "late"), Text("and?"))),
        Message("assistant", (Thinking("only"),)),
    )
    assert message_dicts(talk) == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is "},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                {"type": "input_audio", "input_audio": {"data": "BB", "format": "wav"}},
            ],
        },
        {"role": "assistant", "content": "Looking.", "reasoning_content": "hm"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
        {"role": "tool", "tool_call_id": "c2", "content": "a dog"},
        {"role": "tool", "tool_call_id": "c3", "content": "late"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "", "reasoning_content": "only"},
    ]
    for part in (Video(("x",)), Audio("http://x/y.wav")):
        with pytest.raises(Unsupported):
            message_dicts([Message("user", (part,))])


# ---------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("server", "kind"),
    [
        (servers.FakeVllm(), "vllm"),
        (servers.FakeLlamaServer(), "llamacpp"),
        (servers.FakeSGLang(), "sglang"),
        (servers.FakeServer(), "chat"),
    ],
    ids=["vllm", "llamacpp", "sglang", "chat"],
)
@pytest.mark.parametrize("owned", [True, False])
def test_the_kind_of_server_is_found_out(server: servers.FakeServer, kind: str, owned: bool) -> None:
    async def work(engine: RemoteEngine) -> None:
        assert isinstance(engine, Engine)
        assert engine.uri == f"openai+{kind}:{server.url}#tiny"
        assert engine.info.name == "tiny"
        assert engine.capabilities.tokens == (kind != "chat")

    if not owned:
        server.owner = "someone"
    with_engine(server, work)


def test_the_kind_can_be_forced() -> None:
    assert with_engine(servers.FakeVllm(), _uri, prefix="openai+chat").startswith("openai+chat:")
    assert with_engine(servers.FakeServer(), _uri, prefix="openai+llamacpp").startswith("openai+llamacpp:")


async def _uri(engine: RemoteEngine) -> str:
    return engine.uri


def test_what_servers_tell_of_their_model() -> None:
    async def info(engine: RemoteEngine) -> Any:
        return engine.info

    llama = with_engine(servers.FakeLlamaServer(), info)
    assert (llama.context, llama.parameters, llama.eos_ids) == (2048, 1234, (servers.EOS,))
    assert (llama.bos, llama.eos, llama.chat_template) == ("<s>", "<|im_end|>", servers.TEMPLATE)
    assert with_engine(servers.FakeVllm(), info).context == 4096
    assert with_engine(servers.FakeSGLang(), info).context == 1024
    plain = with_engine(servers.FakeServer(), info)
    assert (plain.context, plain.eos_ids, plain.chat_template) == (0, (), None)
    told = servers.FakeVllm()
    plain_get = told.get
    tokenizer = {"bos_token": None, "eos_token": {"content": "<|im_end|>"}, "chat_template": "{{ x }}"}
    told.get = lambda path: tokenizer if path == "/tokenizer_info" else plain_get(path)  # type: ignore[method-assign]
    vllm = with_engine(told, info)
    assert (vllm.eos, vllm.eos_ids, vllm.bos, vllm.chat_template) == ("<|im_end|>", (servers.EOS,), "", "{{ x }}")


def test_one_model_needs_no_name_and_several_do() -> None:
    with pytest.raises(InputError, match="big, small"):
        with_engine(servers.FakeServer(models=["big", "small"]), _uri)
    assert with_engine(servers.FakeServer(models=["big", "small"]), _uri, model="#small").endswith("#small")
    with pytest.raises(InputError, match="#MODEL"):
        with_engine(servers.FakeServer(models=[]), _uri)
    silent = servers.FakeServer()
    silent.get = lambda path: None  # type: ignore[method-assign]
    assert with_engine(silent, _uri, model="#any").endswith("#any")
    odd = servers.FakeServer()
    odd.get = lambda path: {"hello": 1}  # type: ignore[method-assign]
    with pytest.raises(GarbledReply, match="/v1"):
        with_engine(odd, _uri)


def test_a_model_that_is_not_there_is_named_with_those_that_are() -> None:
    error = failing(servers.FakeServer(models=["big", "small"]), model="#huge")
    assert "huge" in str(error)
    assert "big, small" in str(error)


def test_a_missing_address_keeps_its_own_error() -> None:
    server = servers.FakeServer()
    server.generate = lambda path, body: None  # type: ignore[method-assign]
    assert "404" in str(failing(server))


def test_the_path_v1_is_the_default() -> None:
    async def run() -> str:
        async with servers.FakeServer() as server:
            engine = await open_remote(f"openai:{server.root}/")
            await engine.close()
            return engine.uri.replace(server.root, "")

    assert asyncio.run(run()) == "openai+chat:/v1#tiny"


@pytest.mark.parametrize(
    "uri",
    [
        "openai:", "openai:#x", "openai:host:80/v1", "openai:ftp://host/v1", "openai:http://", "openai:http://h:x/v1",
        "openai:http://h:99999/v1", "openai:http://a b/v1", "openai:http://u:pw@h/v1", "openai:http://h/v1?key=1",
        "openai+other:http://h/v1", "gguf:http://h/v1",
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_refused(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        asyncio.run(open_remote(uri))
    assert caught.value.mend
    assert "pw" not in str(caught.value)


def test_nothing_there_is_said_at_once() -> None:
    async def run() -> None:
        async with servers.FakeServer() as server:
            url = server.url
        began = time.monotonic()
        with pytest.raises(EngineUnavailable, match="nothing answers at http://127"):
            await open_remote(f"openai:{url}")
        assert time.monotonic() - began < 1

    asyncio.run(run())


def test_the_key_comes_from_the_argument_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EngineError, match="OPENAI_API_KEY"):
        with_engine(servers.FakeServer(key="sk-right"), _uri)
    with pytest.raises(EngineError) as caught:
        with_engine(servers.FakeServer(key="sk-right"), _uri, api_key="sk-wrong")
    assert "sk-wrong" not in str(caught.value)
    assert with_engine(servers.FakeServer(key="sk-right"), _uri, api_key="sk-right")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
    assert with_engine(servers.FakeServer(key="sk-right"), _uri)
    with pytest.raises(InputError, match="character"):
        with_engine(servers.FakeServer(), _uri, api_key="sk-\nx")


def test_a_proxy_is_not_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert with_engine(servers.FakeServer(), _uri)


def test_bad_requests_are_refused_before_they_are_sent() -> None:
    server = servers.FakeVllm()

    async def work(engine: RemoteEngine) -> None:
        with pytest.raises(InputError, match="empty"):
            engine.sample([], 1, CAP)
        with pytest.raises(ContextOverflow, match="4096"):
            engine.sample([5] * 4096, 1, CAP)
        with pytest.raises(InputError, match="0 samples"):
            await drain(engine.sample(PROMPT, 0, CAP))
        with pytest.raises(Unsupported, match="adapter"):
            engine.sample(PROMPT, 1, replace(CAP, adapters={"a": 1.0}))
        with pytest.raises(Unsupported, match="adapter"):
            await engine.score([1, 2], 1, replace(CAP, adapters={"a": 1.0}))
        await drain(engine.sample(PROMPT, 1, replace(CAP, adapters={})))

    with_engine(server, work)
    assert len(server.asked) == 1


def test_importing_the_engine_loads_no_http() -> None:
    code = "import sys, ponder.engine.remote; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- the real llama.cpp server

SERVER = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.hostnames, p.port = sys.argv[1], ["127.0.0.1"], int(sys.argv[2])
p.n_ctx, p.n_parallel, p.kv_unified, p.n_batch, p.verbosity = 8192, 4, True, 128, 0
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 2
server = xllamacpp.Server(p)
print("up", flush=True)
sys.stdin.read()
"""


def _model() -> str:
    given = os.environ.get("PONDER_TEST_GGUF")
    if given:
        return given
    from ponder.engine.weights import resolve

    return str(resolve("smollm2-135m-instruct").path)


@pytest.fixture(scope="module")
def real() -> Iterator[str]:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, _model(), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield f"openai:http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.communicate()


def on_real(uri: str, work: Callable[[RemoteEngine], Coroutine[Any, Any, Any]]) -> None:
    async def run() -> None:
        engine = await open_remote(uri)
        try:
            await work(engine)
        finally:
            await engine.close()

    asyncio.run(run())


@pytest.mark.model
def test_the_real_server_is_token_exact_and_forks(real: str) -> None:
    async def work(engine: RemoteEngine) -> None:
        assert engine.uri.startswith("openai+llamacpp:")
        assert engine.info.eos == "<|im_end|>"
        prompt = "<|im_start|>user\nName four fruits 🤔漢字.<|im_end|>\n<|im_start|>assistant\n"
        ids = await engine.tokenize(prompt)
        assert await engine.detokenize(ids) == prompt
        greedy = SamplingParams(max_tokens=24, temperature=0, seed=1)
        chunks = await drain(engine.sample(ids, 1, greedy))
        whole = ids_of(chunks, 0)
        body = whole[:-1] if whole[-1] in engine.info.eos_ids else whole
        assert await engine.detokenize(body) == text_of(chunks, 0)
        found = [value for chunk in chunks for value in chunk.logprobs]
        print(chunks)
        assert len(found) == len(whole)
        assert all(value is not None and value <= 0 for value in found)
        # Continuing from the middle gives what would have come, and computes next to nothing again.
        forked = await drain(engine.sample([*ids, *whole[:10]], 1, replace(greedy, max_tokens=len(whole) - 10)))
        assert ids_of(forked, 0) == whole[10:]
        assert sum(chunk.prompt_computed for chunk in forked) <= 2
        assert sum(chunk.prompt_cached for chunk in forked) >= len(ids) + 8

    on_real(real, work)


@pytest.mark.model
def test_the_real_server_shares_one_prefill_among_four_and_repeats_by_seed(real: str) -> None:
    async def work(engine: RemoteEngine) -> None:
        ids = [5000 + i * 7 for i in range(150)]
        params = SamplingParams(max_tokens=6, temperature=1.0, seed=3, ignore_eos=True)
        four = await drain(engine.sample(ids, 4, params))
        assert sum(chunk.prompt_computed + chunk.prompt_cached for chunk in four) == len(ids)
        assert all(len(ids_of(four, i)) + sum(c.lost for c in four if c.index == i) == 6 for i in range(4))
        assert len({tuple(ids_of(four, i)) for i in range(4)}) > 1
        six = await drain(engine.sample(ids, 6, params))  # in two rounds, since there are four slots
        assert sum(chunk.prompt_computed for chunk in six) <= 2
        assert {i for i in range(6) if finishes(six, i) == ["length"]} == set(range(6))

    on_real(real, work)


@pytest.mark.model
def test_the_real_server_names_the_ids_of_characters_it_splits(real: str) -> None:
    async def work(engine: RemoteEngine) -> None:
        unit = await engine.tokenize("🤔")
        assert len(unit) > 1
        chunks = await drain(engine.sample(unit * 24, 1, SamplingParams(max_tokens=8, temperature=0)))
        text, lost = text_of(chunks, 0), sum(chunk.lost for chunk in chunks)
        assert text
        assert not text.isascii()
        assert len(ids_of(chunks, 0)) + lost == 8
        assert len(ids_of(chunks, 0)) > len(text)  # more than the one id a character that the server names
        assert lost < len(unit)  # no more than the character that the cap cut
        assert await engine.detokenize(ids_of(chunks, 0)) == text

    on_real(real, work)


@pytest.mark.model
def test_the_real_server_is_free_again_after_a_cancel_before_the_first_token(real: str) -> None:
    async def work(engine: RemoteEngine) -> None:
        long = [500 + i for i in range(6000)]
        stream = engine.sample(long, 1, SamplingParams(max_tokens=50))
        waiting = asyncio.create_task(drain(stream))
        await asyncio.sleep(0.4)
        began = time.monotonic()
        await stream.aclose()  # type: ignore[attr-defined]
        assert await waiting == []
        assert time.monotonic() - began < 1
        chunks = await drain(engine.sample([1, 4093, 198], 1, SamplingParams(max_tokens=1)))
        assert time.monotonic() - began < 5
        assert len(ids_of(chunks, 0)) == 1

    on_real(real, work)

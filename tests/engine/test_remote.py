"""The remote engine and servers that take token ids: opening, sampling, scoring."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

import servers
from remote_helpers import CAP, PROMPT, drain, each_kind, failing, finishes, ids_of, sampled, text_of, with_engine

from ponder.engine.remote import RemoteEngine, open_remote
from ponder.errors import (
    ContextOverflow,
    EngineError,
    EngineUnavailable,
    GarbledReply,
    InputError,
    Unsupported,
)
from ponder.protocols import Engine, SamplingParams


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
        with pytest.raises(Unsupported, match="until and first"):
            engine.sample(PROMPT, 1, replace(CAP, until="x"))
        with pytest.raises(Unsupported, match="until and first"):
            engine.sample(PROMPT, 1, replace(CAP, first=2))
        with pytest.raises(Unsupported, match="adapter"):
            await engine.score([1, 2], 1, replace(CAP, adapters={"a": 1.0}))
        await drain(engine.sample(PROMPT, 1, replace(CAP, adapters={})))

    with_engine(server, work)
    assert len(server.asked) == 1


def test_importing_the_engine_loads_no_http() -> None:
    code = "import sys, ponder.engine.remote; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

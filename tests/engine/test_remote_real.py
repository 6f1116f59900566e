"""The remote engine against the real llama.cpp server, in a process of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from remote_helpers import drain, finishes, ids_of, text_of

from ponder.engine.remote import RemoteEngine, open_remote
from ponder.protocols import SamplingParams

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
        last = [chunk.logprobs[-1] for chunk in chunks if chunk.ids]  # those before it in a character are not told
        assert all(value is not None and value <= 0 for value in last)
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


@pytest.mark.model
def test_the_official_client_gets_the_same_words_and_counts(real: str) -> None:
    from openai import OpenAI

    base = real.removeprefix("openai:")
    prompt = "<|im_start|>user\nName four fruits.<|im_end|>\n<|im_start|>assistant\n"
    with OpenAI(base_url=base, api_key="none", max_retries=0) as client:
        reply = client.completions.create(model="any", prompt=prompt, max_tokens=24, temperature=0)

    async def work(engine: RemoteEngine) -> None:
        ids = await engine.tokenize(prompt)
        chunks = await drain(engine.sample(ids, 1, SamplingParams(max_tokens=24, temperature=0)))
        assert text_of(chunks, 0) == reply.choices[0].text
        assert reply.usage is not None
        assert len(ids_of(chunks, 0)) == reply.usage.completion_tokens
        assert sum(c.prompt_computed + c.prompt_cached for c in chunks) == reply.usage.prompt_tokens == len(ids)

    on_real(real, work)

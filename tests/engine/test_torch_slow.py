"""The slow way round: any causal model of transformers answers as an engine does, and says that it is slow."""

from __future__ import annotations

import asyncio

import pytest
from llama_requests import take
from tiny import tiny_model, tiny_tokenizer, torch

from ponder.engine.torch_engine import TorchEngine

SIZES = {"gpt2": {"n_positions": 128, "n_head": 4}, "mamba": {}, "gemma2": {"sliding_window": 8}}


@pytest.mark.parametrize("kind", ["gpt2", "mamba"])
def test_a_model_without_a_batched_decoder_runs_and_says_so(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(kind, **SIZES[kind])
    engine = TorchEngine(model, tiny_tokenizer())
    said = capsys.readouterr().err
    assert said.startswith(f"ponder: {type(model).__name__} has no batched decoder")
    assert said.count("\n") == 1
    assert engine.info.metadata["ponder.path"] == "slow"

    async def work() -> None:
        prompt = await engine.tokenize("Who is the one?")
        got = await take(engine, prompt, n=3, max_tokens=12, temperature=1.5, ignore_eos=True)
        assert got.prompt == [(len(prompt), 0)]
        for index in range(3):
            ids = prompt + got.ids(index)
            with torch.no_grad():
                every = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            wanted = [float(every[at - 1, ids[at]]) for at in range(len(prompt), len(ids))]
            assert got.logprobs(index) == pytest.approx(wanted, abs=1e-4)
            assert await engine.score(ids, len(prompt)) == pytest.approx(wanted, abs=1e-4)
        forked = await take(engine, prompt + got.ids(1)[:5], max_tokens=1)
        assert forked.prompt[0][1] >= len(prompt) + 3
        await engine.close()

    asyncio.run(work())


def test_the_batched_way_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    engine = TorchEngine(tiny_model("gemma2", **SIZES["gemma2"]), tiny_tokenizer())
    assert capsys.readouterr().err == ""
    assert engine.info.metadata["ponder.path"] == "batched"
    asyncio.run(engine.close())

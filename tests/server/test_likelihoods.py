"""Likelihoods of given texts over completions, as lm-evaluation-harness reads them, against the same model in torch."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import pytest
from openai import OpenAI
from service import scripted, service
from tiny import tiny_model, tiny_tokenizer, torch

from ponder.chat.model import model_of
from ponder.engine.llamacpp import LlamaEngine, LlamaSettings
from ponder.engine.torch_engine import TorchEngine
from ponder.server.local import Local
from ponder.train.export import to_gguf

CONTEXT = "the man and the other man are in"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = tmp_path_factory.mktemp("likelihoods")
    to_gguf(tiny_model(), tiny_tokenizer(), folder / "tiny.gguf", kind="f32")

    def backends() -> list[Local]:
        settings = LlamaSettings(cells=256, sequences=8, batch=64, threads=1)
        llama = LlamaEngine(folder / "tiny.gguf", (), settings, {})
        torch_engine = TorchEngine(tiny_model(), tiny_tokenizer())
        return [Local(model_of(llama), name="gguf"), Local(model_of(torch_engine), name="hf"), scripted("4", "none")]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PONDER_HOME", str(folder))
        with service(backends) as server, OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
            yield made


def parsed(reply: Any, lengths: list[int]) -> list[tuple[float, bool]]:
    """Log-likelihood and whether it is what greedy decoding gives, word for word as the harness' `parse_logprobs`."""
    found = []
    for choice, length in zip(sorted(reply["choices"], key=itemgetter("index")), lengths, strict=True):
        logprobs = choice["logprobs"]["token_logprobs"][length:-1]
        tops = choice["logprobs"]["top_logprobs"][length:-1]
        greedy = all(chance == max(top.values()) for chance, top in zip(logprobs, tops, strict=True))
        found.append((sum(logprobs), greedy))
    return found


def ids_of(text: str) -> list[int]:
    return list(tiny_tokenizer()(text, add_special_tokens=False)["input_ids"])


def greedy_after(ids: list[int], count: int) -> list[int]:
    said = list(ids)
    for _ in range(count):
        with torch.no_grad():
            said.append(int(tiny_model()(torch.tensor([said])).logits[0, -1].argmax()))
    return said[len(ids) :]


def likelihood(ids: list[int], start: int) -> float:
    with torch.no_grad():
        chances = torch.log_softmax(tiny_model()(torch.tensor([ids])).logits[0], -1)
    return float(sum(chances[place - 1, ids[place]] for place in range(start, len(ids))))


@pytest.mark.parametrize("model", ["gguf", "hf"])
def test_what_greedy_decoding_gives_is_told_from_what_it_does_not(client: OpenAI, model: str) -> None:
    context = ids_of(CONTEXT)
    greedy = greedy_after(context, 5)
    other = [*greedy[:2], greedy[2] ^ 1, *greedy[3:]]
    prompts = [context + greedy, context + other, context + greedy[:1]]
    reply = client.completions.create(model=model, prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0)
    found = parsed(reply.model_dump(), [len(context)] * 3)
    assert [is_greedy for _, is_greedy in found] == [True, False, True]
    for (told, _), ids in zip(found, prompts, strict=True):
        assert told == pytest.approx(likelihood(ids, len(context)), abs=0.05)


@pytest.mark.parametrize("model", ["gguf", "hf"])
def test_the_likeliest_tokens_of_the_prompt_come_as_many_as_were_asked_for(client: OpenAI, model: str) -> None:
    for stream in (False, True):
        reply: Any = client.completions.create(
            model=model, prompt=CONTEXT, echo=True, logprobs=3, max_tokens=2, temperature=0, stream=stream
        )
        told = [chunk.choices[0].logprobs for chunk in (reply if stream else [reply])]
        tops = [top for each in told if each is not None for top in each.top_logprobs]
        tokens = [token for each in told if each is not None for token in each.tokens]
        chances = [chance for each in told if each is not None for chance in each.token_logprobs]
        assert tops[0] is None
        assert len(tops) == len(ids_of(CONTEXT)) + 2
        with torch.no_grad():
            best = torch.log_softmax(tiny_model()(torch.tensor([ids_of(CONTEXT)])).logits[0], -1).max(-1).values
        for place, (token, chance, top) in enumerate(zip(tokens, chances, tops, strict=True)):
            if 0 < place <= len(best):
                assert max(top.values()) == pytest.approx(float(best[place - 1]), abs=0.02)
                assert top[token] >= chance  # parts of characters have one text
                assert len(top) <= 4


def test_the_chosen_token_alone_where_no_others_are_wanted(client: OpenAI) -> None:
    reply = client.completions.create(model="gguf", prompt=CONTEXT, echo=True, logprobs=0, max_tokens=1)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert all(top is None or len(top) == 1 for top in logprobs.top_logprobs or ())

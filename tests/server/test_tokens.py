"""Texts as token ids and back."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from service import scripted, service


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PONDER_HOME", str(tmp_path_factory.mktemp("tokens")))
        models = [scripted("4"), scripted("4", "far", chat_only=True)]
        with service(lambda: models) as server, httpx.Client(base_url=server.url) as made:
            yield made


def test_there_and_back(client: httpx.Client) -> None:
    told = client.post("/tokenize", json={"prompt": "Köln", "add_special_tokens": False}).json()
    assert told == {"tokens": list("Köln".encode()), "count": 5, "max_model_len": 4096}
    assert client.post("/detokenize", json={"model": "m", "tokens": told["tokens"]}).json() == {"prompt": "Köln"}
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_messages_count_as_they_are_charged(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    ids = client.post("/tokenize", json={"messages": messages}).json()["tokens"]
    usage = client.post("/v1/chat/completions", json={"model": "m", "messages": messages}).json()["usage"]
    assert len(ids) == usage["prompt_tokens"]


def test_the_tokenizer_is_told(client: httpx.Client) -> None:
    assert client.get("/tokenizer_info").json()["eos_token"] == "<|im_end|>"


def test_what_is_wrong_is_said(client: httpx.Client) -> None:
    for path, body, status in (
        ("/detokenize", {"tokens": [9999]}, 400),
        ("/detokenize", {"tokens": ["x"]}, 400),
        ("/tokenize", {"model": "m"}, 400),
        ("/tokenize", {"model": "nobody", "prompt": "x"}, 404),
        ("/tokenize", {"model": "far", "prompt": "x"}, 501),
    ):
        reply = client.post(path, json=body)
        assert (reply.status_code, bool(reply.json()["error"]["message"])) == (status, True)

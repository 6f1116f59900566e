"""Vectors of texts over the server: OpenAI's own clients, upstreams well and ill, the ledger, our own model."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_server import VECTOR, Upstream
from openai import AsyncOpenAI, OpenAI
from service import service
from tiny import tiny_model, tiny_tokenizer, torch

from ponder.chat.model import model_of
from ponder.engine.llamacpp import LlamaEngine, LlamaSettings
from ponder.ops.keys import Keys
from ponder.ops.ledger import Ledger
from ponder.ops.limits import parse_limits
from ponder.server.config import Config, parsed
from ponder.server.failures import Refusal
from ponder.server.local import Local
from ponder.server.openai_embeddings import as_numbers, as_text, read
from ponder.server.request import Embedding
from ponder.server.upstream_vectors import vector_of
from ponder.train.export import to_gguf
from ponder.types import user

ROW = [0.0, *VECTOR]


def configured(url: str, **more: Any) -> Config:
    tables = [
        {"name": "up", "url": url, "models": {"embed": "embed-1"}, "check": 0, "retries": {"base": 0.01}, **more},
        {"name": "claude", "url": url, "dialect": "anthropic", "models": {"claude": "c"}, "check": 0},
        {"name": "google", "url": url, "dialect": "gemini", "models": {"gem": "gem-1"}, "check": 0},
    ]
    routes = [
        {"model": "either", "to": ["up/embed", "google/gem"]},
        {"model": "unsure", "to": ["up/embed", "google/gem"], "how": "cascade", "threshold": 0.5},
    ]
    return parsed({"upstream": tables, "route": routes, "prices": {"embed": {"prompt": 2.0, "output": 0.0}}})


# ---------------------------------------------------------------- what is read


def asked(**fields: Any) -> Any:
    return read({"model": "embed", "input": "a", **fields}, {}, "r1")


def test_texts_and_token_ids() -> None:
    one = asked(user="u")
    assert (one.model, one.n, one.dialect, one.user) == ("embed", 0, "embeddings", "u")
    assert one.question.messages == (user("a"),)
    assert one.job == Embedding(("a",))
    assert asked(input=["a", "b"]).job.inputs == ("a", "b")
    ids = asked(input=[[1, 2], [3]], dimensions=7, encoding_format="base64")
    assert (ids.job, ids.raw_ids) == (Embedding(((1, 2), (3,)), 7, "base64"), (1, 2, 3))
    assert asked(input=[1, 2]).job.inputs == ((1, 2),)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": ["a"] * 2049}, "input[0]"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"strange": 1}, "strange"),
        ({"model": "embed:vote-8"}, "model"),
        ({"ponder": {"effort": "high"}}, "model"),
    ],
)
def test_refuses_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as caught:
        asked(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40)


@given(FLOATS)
def test_numbers_and_base64_say_the_same(row: list[float]) -> None:
    packed = base64.b64decode(as_text(row))
    assert list(struct.unpack(f"<{len(row)}f", packed)) == row
    assert as_numbers(packed) == row
    assert vector_of(as_text(row)) == packed


@pytest.mark.parametrize("value", [None, "", "@", "AAA=", [], ["a"], [True], [[1]], [1.0, None], [math.inf], {}])
def test_what_is_no_vector(value: Any) -> None:
    assert vector_of(value) is None


# ---------------------------------------------------------------- OpenAI's clients


def test_the_client_gets_what_the_upstream_gave(client: OpenAI, up: Upstream) -> None:
    reply = client.embeddings.create(model="embed", input="hello", dimensions=4, user="u")  # it asks for Base64
    assert reply.data[0].embedding == ROW
    assert (reply.model, reply.usage.prompt_tokens, reply.usage.total_tokens) == ("embed", 11, 11)
    assert up.asked[-1][0] == "/v1/embeddings"
    assert up.body == {
        "model": "embed-1",
        "input": "hello",
        "encoding_format": "base64",
        "dimensions": 4,
        "user": "u",
    }


@pytest.mark.parametrize("told", ["asked", "numbers", "backwards"])
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_each_encoding_however_the_upstream_tells_it(client: OpenAI, up: Upstream, told: str, encoding: Any) -> None:
    up.vectors = told
    reply = client.embeddings.create(model="embed", input=["a", "b", "c"], encoding_format=encoding)
    assert [each.index for each in reply.data] == [0, 1, 2]
    found: list[Any] = [each.embedding for each in reply.data]
    if encoding == "base64":
        found = [list(struct.unpack("<4f", base64.b64decode(each))) for each in found]
    assert found == [[float(place), *VECTOR] for place in range(3)]


def test_token_ids_pass(client: OpenAI, up: Upstream) -> None:
    assert len(client.embeddings.create(model="embed", input=[[1, 2], [3]]).data) == 2
    assert up.body["input"] == [[1, 2], [3]]
    client.embeddings.create(model="embed", input=[5, 6])
    assert up.body["input"] == [5, 6]


def test_asynchronous_clients_side_by_side(up: Upstream) -> None:
    async def work(url: str) -> None:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            made = [client.embeddings.create(model="embed", input=["x"] * (1 + place)) for place in range(8)]
            assert [len(reply.data) for reply in await asyncio.gather(*made)] == list(range(1, 9))

    with service(config=configured(up.url)) as server:
        asyncio.run(work(server.url))


def test_gemini_makes_vectors_of_texts(client: OpenAI, up: Upstream) -> None:
    reply = client.embeddings.create(model="gem", input=["a", "b"], dimensions=4, encoding_format="float")
    assert [each.embedding for each in reply.data] == [[0, *VECTOR], [1, *VECTOR]]
    assert reply.usage.prompt_tokens > 0
    assert up.asked[-1][0] == "/v1/models/gem-1:batchEmbedContents"
    row = {"model": "models/gem-1", "content": {"parts": [{"text": "b"}]}, "outputDimensionality": 4}
    assert up.body["requests"][1] == row
    with pytest.raises(openai.BadRequestError, match="token ids"):
        client.embeddings.create(model="gem", input=[1, 2])


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        ("m", openai.BadRequestError, "makes no vectors.*GGUF"),
        ("claude", openai.BadRequestError, "makes no vectors"),
        ("unsure", openai.BadRequestError, "a cascade"),
        ("nobody", openai.NotFoundError, "there is no model 'nobody'"),
    ],
)
def test_models_that_make_none_say_what_to_do(client: OpenAI, model: str, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        client.embeddings.create(model=model, input="a")


# ---------------------------------------------------------------- upstreams that are ill


def test_what_was_not_begun_is_tried_again(client: OpenAI, up: Upstream) -> None:
    up.faults = [(503, {"retry-after": "0"}), (429, {"retry-after": "0"})]
    assert client.embeddings.create(model="embed", input="a").data[0].embedding == ROW
    assert len(up.asked) == 3


def test_what_may_have_been_begun_is_not(client: OpenAI, up: Upstream) -> None:
    up.faults = [(500, {})]
    with pytest.raises(openai.InternalServerError, match="the upstream up answered 500: it failed"):
        client.embeddings.create(model="embed", input="a")
    assert len(up.asked) == 1


def test_a_wrong_request_is_told_as_the_upstream_tells_it(client: OpenAI, up: Upstream) -> None:
    up.faults = [(400, {})]
    with pytest.raises(openai.BadRequestError, match="it failed"):
        client.embeddings.create(model="embed", input="a")


@pytest.mark.parametrize("told", ["few", "garbage", {}, [], {"data": [{"embedding": [1e400]}]}, {"data": 5}])
def test_vectors_that_are_none_are_never_handed_on(client: OpenAI, up: Upstream, told: Any) -> None:
    up.vectors = told
    with pytest.raises(openai.InternalServerError, match=r"of 2 vectors|no JSON"):
        client.embeddings.create(model="embed", input=["a", "b"])


def test_a_route_goes_on_to_the_next_place(client: OpenAI, up: Upstream) -> None:
    up.faults = [(500, {})]
    assert client.embeddings.create(model="either", input="a", encoding_format="float").data[0].embedding == ROW
    assert [path for path, *_ in up.asked] == ["/v1/embeddings", "/v1/models/gem-1:batchEmbedContents"]


def test_the_breaker_opens_and_leaves_the_upstream_alone(up: Upstream) -> None:
    up.faults = [(500, {})] * 3
    config = configured(up.url, breaker={"failures": 3, "pause": 60})
    with service(config=config) as server, httpx.Client(base_url=server.url) as http:
        body = {"model": "embed", "input": "a"}
        assert [http.post("/v1/embeddings", json=body).status_code for _ in range(3)] == [502] * 3
        refused = http.post("/v1/embeddings", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "upstream_open")
        assert len(up.asked) == 3


def test_a_deadline_ends_it(up: Upstream) -> None:
    up.pause = 5
    with service(config=configured(up.url)) as server, httpx.Client(base_url=server.url) as http:
        began = time.monotonic()
        late = http.post("/v1/embeddings", json={"model": "embed", "input": "a", "ponder": {"deadline": 0.2}})
        assert (late.status_code, time.monotonic() - began < 2) == (504, True)


# ---------------------------------------------------------------- keys and the ledger


def test_tokens_are_reserved_settled_and_limited(up: Upstream) -> None:
    with Keys.open() as keys:
        _, secret = keys.add("alice", limits=parse_limits("300 tokens/day"))
        _, other = keys.add("bob")
    with service(config=configured(up.url)) as server:
        with OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0) as alice:
            raw = alice.embeddings.with_raw_response.create(model="embed", input="hello")
            assert raw.headers["x-ponder-tokens"] == "11"
            assert float(raw.headers["x-ponder-dollars"]) == pytest.approx(11 * 2e-6)
            assert raw.headers["x-ponder-backend"] == "up"
            with pytest.raises(openai.RateLimitError):  # every byte may be a token
                alice.embeddings.create(model="embed", input="x" * 300)
            alice.embeddings.create(model="embed", input="hello")
        with OpenAI(base_url=f"{server.url}/v1", api_key=other, max_retries=0) as bob:
            up.usage = False
            bob.embeddings.create(model="embed", input="x" * 40)
    with Ledger.open() as ledger:
        entries = [each for each in ledger.entries() if each.state != "void"]
    assert sorted((each.state, each.prompt, each.completion, each.micro) for each in entries) == [
        ("done", 11, 0, 22),
        ("done", 11, 0, 22),
        ("done", 14, 0, 28),  # counted by ponder, since the upstream did not
    ]
    assert all(each.tokens_most < 300 for each in entries)


def test_what_is_refused_costs_nothing(client: OpenAI, up: Upstream) -> None:
    up.faults = [(400, {})]
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="embed", input="a")
    with Ledger.open() as ledger:
        assert [each.state for each in ledger.entries()] == ["void"]


# ---------------------------------------------------------------- a model of our own


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("vectors") / "tiny.gguf"
    to_gguf(tiny_model(), tiny_tokenizer(), file, kind="f32")
    return file


def own(weights: Path) -> Local:
    settings = LlamaSettings(cells=256, sequences=8, batch=64, threads=1)
    return Local(model_of(LlamaEngine(weights, (), settings, {})), name="tiny")


def torch_vector(text: str) -> list[float]:
    ids = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        mean = tiny_model().model(torch.tensor([ids])).last_hidden_state[0].mean(0)
    found: list[float] = (mean / mean.norm()).tolist()
    return found


def test_our_own_model_makes_mean_vectors_of_length_one(weights: Path) -> None:
    texts = ["the man in the rain", "and the other man"]
    with (
        service(lambda: [own(weights)]) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        reply = client.embeddings.create(model="tiny", input=texts)
        for text, row in zip(texts, reply.data, strict=True):
            assert row.embedding == pytest.approx(torch_vector(text), abs=2e-3)
        ids = [tiny_tokenizer()(text, add_special_tokens=False)["input_ids"] for text in texts]
        assert reply.usage.prompt_tokens == sum(map(len, ids))
        again = client.embeddings.create(model="tiny", input=ids, encoding_format="float", dimensions=32)
        for one, other in zip(again.data, reply.data, strict=True):
            assert one.embedding == pytest.approx(other.embedding, abs=1e-3)
        for fields, said in (
            ({"input": "a", "dimensions": 8}, "32 dimensions"),
            ({"input": [10**6]}, "no token"),
            ({"input": "a" * 300}, "does not fit"),
        ):
            with pytest.raises(openai.BadRequestError, match=said):
                client.embeddings.create(model="tiny", **fields)  # type: ignore[arg-type]
        assert client.embeddings.create(model="tiny", input="a").usage.prompt_tokens == 1


def test_a_client_that_leaves_ends_the_work(weights: Path) -> None:
    with service(lambda: [own(weights)]) as server:
        ids = [[5] * 250] * 1000
        with httpx.Client(base_url=server.url) as http:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/embeddings", json={"model": "tiny", "input": ids}, timeout=0.3)
            began = time.monotonic()
            http.post("/v1/embeddings", json={"model": "tiny", "input": "a"}, timeout=10).raise_for_status()
            assert time.monotonic() - began < 3
    with Ledger.open() as ledger:
        left = next(each for each in ledger.entries() if each.prompt != 1)
    assert left.state == "partial"
    assert left.prompt < 250_000

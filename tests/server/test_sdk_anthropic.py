"""Anthropic's own Python client against the server: messages, thinking that is signed, tools, counting, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from service import answers, scripted, service
from serving import Serving

from ponder.engine.scripted import Fault, says
from ponder.ops.keys import Keys
from ponder.ops.limits import parse_limits
from ponder.server.local import Local

CALLS = (
    "Let me see."
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Rom"}}\n</tool_call>'
)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [{"name": "weather", "description": "Tells it.", "input_schema": CITY}]
THINK: Any = {"type": "enabled", "budget_tokens": 1024}
LONG = " ".join(f"word{number}" for number in range(60))


def backends() -> list[Local]:
    replies = {"weather": CALLS, "long": LONG, "stop": "a b STOP c"}
    gone = scripted(says("never"), "gone", faults=[Fault("disconnect", at=1, times=None)])
    return [answers(replies), scripted("whatever", "bound", grammar=True), gone, scripted("4", "org/small", context=64)]


@pytest.fixture
def client(server: Serving) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=20) as made:
        yield made


def said(text: str) -> Any:
    return [{"role": "user", "content": text}]


def ask(client: Anthropic, text: str, model: str = "m", **options: Any) -> Any:
    return client.messages.create(**{"model": model, "max_tokens": 2000, "messages": said(text), **options})


def test_thinking_is_signed_and_comes_back(client: Anthropic) -> None:
    first = ask(client, "2+2?", thinking=THINK)
    thinking, text = first.content
    assert (thinking.type, thinking.thinking, text.text) == ("thinking", "2 + 2 is 4.", "The answer is 4.")
    assert first.stop_reason == "end_turn"
    assert first.usage.output_tokens_details.thinking_tokens > 0
    replayed: Any = [*said("2+2?"), {"role": "assistant", "content": first.content}, *said("Sure?")]
    assert ask(client, "", messages=replayed, thinking=THINK).content[-1].text == "The answer is 4."
    forged = [block.model_dump() for block in first.content]
    forged[0]["thinking"] = "2 + 2 is 5."
    replayed[1] = {"role": "assistant", "content": forged}
    with pytest.raises(anthropic.BadRequestError, match="signature"):
        ask(client, "", messages=replayed, thinking=THINK)


def test_a_stream_says_what_the_whole_says(client: Anthropic) -> None:
    whole = ask(client, "2+2?", thinking=THINK)
    with client.messages.stream(model="m", max_tokens=2000, messages=said("2+2?"), thinking=THINK) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert [block.model_dump() for block in final.content] == [block.model_dump() for block in whole.content]
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert {"thinking", "signature", "text", "content_block_stop"} <= set(kinds)


def test_thinking_that_is_not_shown_comes_back_sealed(client: Anthropic) -> None:
    first = ask(client, "2+2?", thinking={**THINK, "display": "omitted"})
    assert (first.content[0].thinking, "2 + 2" in str(first.content[0].signature)) == ("", False)
    replayed: Any = [*said("2+2?"), {"role": "assistant", "content": first.content}, *said("Sure?")]
    assert ask(client, "", messages=replayed, thinking=THINK).stop_reason == "end_turn"


def test_calls_and_their_results(client: Anthropic) -> None:
    first = ask(client, "weather", tools=TOOLS)
    calls = [block for block in first.content if block.type == "tool_use"]
    assert first.stop_reason == "tool_use"
    assert [call.input["city"] for call in calls] == ["Köln", "Rom"]
    assert len({call.id for call in calls}) == 2
    results: Any = [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"} for call in calls]
    messages: Any = [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": results},
    ]
    assert ask(client, "", messages=messages, tools=TOOLS).stop_reason == "end_turn"
    with client.messages.stream(model="m", max_tokens=2000, messages=said("weather"), tools=TOOLS) as stream:
        final = stream.get_final_message()
    assert [block.input["city"] for block in final.content if block.type == "tool_use"] == ["Köln", "Rom"]  # type: ignore[index]


def test_what_must_be_a_call_or_json_is(client: Anthropic) -> None:
    number: Any = {"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"]}
    tools = [{"name": "pick", "input_schema": number}, {"name": "other", "input_schema": number}]
    for choice, names in (({"type": "any"}, {"pick", "other"}), ({"type": "tool", "name": "pick"}, {"pick"})):
        found = ask(client, "x", "bound", tools=tools, tool_choice={**choice, "disable_parallel_tool_use": True})
        (call,) = [block for block in found.content if block.type == "tool_use"]
        assert (call.name in names, call.input["a"] in (1, 22), found.stop_reason) == (True, True, "tool_use")
    shape = {"format": {"type": "json_schema", "schema": number}}
    assert json.loads(ask(client, "x", "bound", output_config=shape).content[0].text)["a"] in (1, 22)
    with pytest.raises(anthropic.BadRequestError, match=r"output_config\.format"):
        ask(client, "x", output_config=shape)
    with pytest.raises(anthropic.BadRequestError, match="tool_choice"):
        ask(client, "x", tools=tools, tool_choice={"type": "any"})


def test_stop_sequences_and_cuts(client: Anthropic) -> None:
    stopped = ask(client, "stop", stop_sequences=["STOP"])
    assert (stopped.content[0].text, stopped.stop_reason, stopped.stop_sequence) == ("a b ", "stop_sequence", "STOP")
    cut = ask(client, "long", max_tokens=32)
    assert (cut.stop_reason, cut.usage.output_tokens, cut.content[0].text) == ("max_tokens", 32, LONG[:32])


def test_tokens_are_counted_as_they_are_charged(client: Anthropic) -> None:
    counted = client.messages.count_tokens(model="m", messages=said("2+2?")).input_tokens
    usage = ask(client, "2+2?").usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens
    assert (
        client.messages.count_tokens(model="m", messages=said("2+2?"), tools=TOOLS, system="Be brief.").input_tokens
        > counted
    )


def test_strategies_and_headers(client: Anthropic) -> None:
    raw = client.messages.with_raw_response.create(model="m:vote-3", max_tokens=2000, messages=said("2+2?"))
    message = raw.parse()
    assert (message.model, message.content[-1].text) == ("m", "The answer is 4.")  # type: ignore[union-attr]
    assert message.ponder["samples"] == 3  # type: ignore[attr-defined]
    assert raw.headers["x-ponder-model"] == "m"
    assert raw.headers["request-id"].startswith("req_")


def test_models_as_this_client_lists_them(client: Anthropic) -> None:
    found = client.models.list()
    assert [model.id for model in found] == ["m", "bound", "gone", "org/small"]
    assert found.data[0].type == "model"
    assert found.data[0].display_name == "m"
    assert client.models.retrieve("org/small").id == "org/small"


def test_asynchronous_clients_side_by_side(server: Serving) -> None:
    async def work() -> list[str]:
        async with AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:

            async def one() -> str:
                async with client.messages.stream(
                    model="m", max_tokens=2000, messages=said("2+2?"), thinking=THINK
                ) as stream:
                    return "".join([text async for text in stream.text_stream])

            return list(await asyncio.gather(*(one() for _ in range(8))))

    assert asyncio.run(work()) == ["The answer is 4."] * 8


@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_those_of_the_client(client: Anthropic, stream: bool) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        ask(client, "x", "nobody", stream=stream)
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    assert missing.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="context"):
        ask(client, "x" * 80, "org/small", stream=stream)
    with pytest.raises(anthropic.BadRequestError, match="budget_tokens"):
        ask(client, "x", thinking={"type": "enabled", "budget_tokens": 5}, stream=stream)


def test_a_failure_in_mid_stream_is_an_error(client: Anthropic) -> None:
    with (
        pytest.raises(anthropic.APIError),
        client.messages.stream(model="gone", max_tokens=50, messages=said("x")) as stream,
    ):
        stream.get_final_message()
    with pytest.raises(anthropic.APIStatusError) as caught:
        ask(client, "x", "gone")
    assert caught.value.status_code >= 500


def test_keys_and_limits(ponder_home: Any) -> None:
    with Keys.open() as keys:
        _, secret = keys.add("alice", limits=parse_limits("1 requests/day"))
    with service(lambda: [scripted("4")]) as server:
        stranger, alice = (Anthropic(base_url=server.url, api_key=key, max_retries=0) for key in ("sk-wrong", secret))
        with stranger, pytest.raises(anthropic.AuthenticationError):
            ask(stranger, "x")
        with alice:
            assert ask(alice, "x").content[0].text == "4"
            with pytest.raises(anthropic.RateLimitError) as caught:
                ask(alice, "x")
            assert int(caught.value.response.headers["retry-after"]) >= 1


@pytest.mark.model
def test_the_embedded_model() -> None:
    with (
        service(models=["ponder-135m"]) as server,
        Anthropic(base_url=server.url, api_key="none", timeout=60) as client,
    ):
        first = ask(client, "What is 3 + 4?", "ponder-135m", thinking=THINK)
        assert [block.type for block in first.content] == ["thinking", "text"]
        assert "7" in first.content[1].text
        assert first.usage.output_tokens_details.thinking_tokens > 0
        replayed: Any = [*said("What is 3 + 4?"), {"role": "assistant", "content": first.content}, *said("And 2 + 2?")]
        again = ask(client, "", "ponder-135m", messages=replayed, max_tokens=200)
        assert again.usage.cache_read_input_tokens > 0

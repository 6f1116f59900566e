"""Anthropic Messages as an upstream: what is sent, what is understood, and thinking that keeps its proof."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upstreams import Says, heard, request, upstream

from ponder.server.events import Begun, Call, Content, Ended, Reasoning, ReplyEvent
from ponder.server.failures import Refusal
from ponder.server.request import Request, Sampling, Shape, ToolChoice
from ponder.server.signatures import SignedThinking, Signer
from ponder.server.upstream_anthropic import Anthropic
from ponder.server.upstream_dialect import Failed
from ponder.types import Audio, Budget, Image, Message, Text, Thinking, ToolCall, ToolResult, system, user

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
START = {"type": "message_start", "message": {"usage": {"input_tokens": 5, "cache_read_input_tokens": 3}}}
STOP = {"type": "message_stop"}


def body(asked: Request, **more: Any) -> dict[str, Any]:
    return json.loads(Anthropic(**more).ask(asked, "up").data)


def read(*documents: dict[str, Any], asked: Request | None = None) -> list[ReplyEvent]:
    reading = Anthropic().reading(asked or request())
    return [event for document in documents for event in reading.take(document)]


def opening(index: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, kind: str, **more: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **more}}


def end(reason: str = "end_turn", sequence: str | None = None, **usage: Any) -> dict[str, Any]:
    told = {"output_tokens": 20, **usage}
    return {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": sequence}, "usage": told}


def test_a_conversation_with_calls_and_signed_thinking() -> None:
    ours = Signer(b"0123456789abcdef").sign("x", "m", 0)
    parts = (
        SignedThinking("hm", signature="theirs=="),
        SignedThinking("", redacted="hidden"),
        SignedThinking("x", signature=ours),
        Thinking("plain"),
        Text("one moment"),
        ToolCall("f", '{"a": 1}', "c1"),
        ToolCall("f", "not json", "c2"),
    )
    results = (Message("tool", (ToolResult("c1", "42"),)), Message("tool", (ToolResult("c2", "bad", True),)))
    sent = body(request(system("be kind"), user("hi"), Message("assistant", parts), *results, user("so?")))
    assert sent["system"] == "be kind"
    assert [turn["role"] for turn in sent["messages"]] == ["user", "assistant", "user"]
    assert sent["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "theirs=="},
        {"type": "redacted_thinking", "data": "hidden"},
        {"type": "text", "text": "one moment"},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "c2", "name": "f", "input": {"INVALID_JSON": "not json"}},
    ]
    assert sent["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "c1", "content": "42"},
        {"type": "tool_result", "tool_use_id": "c2", "content": "bad", "is_error": True},
        {"type": "text", "text": "so?"},
    ]


def test_settings_tools_and_shapes() -> None:
    asked = request(
        user("hi"),
        tools=(TOOL,),
        tool_choice=ToolChoice("required", parallel=False),
        sampling=Sampling(0.5, 0.9, 4, stop=("END",)),
        shape=Shape("schema", {"type": "object"}),
        budget=Budget(tokens=50),
        user="u1",
    )
    sent = body(asked)
    assert sent["tools"] == [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]
    assert sent["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert (sent["temperature"], sent["top_p"], sent["top_k"], sent["max_tokens"]) == (0.5, 0.9, 4, 50)
    assert sent["stop_sequences"] == ["END"]
    assert sent["output_config"] == {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    assert sent["metadata"] == {"user_id": "u1"}
    named = body(request(tools=(TOOL,), tool_choice=ToolChoice("named", "f")))
    assert named["tool_choice"] == {"type": "tool", "name": "f"}


def test_images_by_address_and_as_data() -> None:
    sent = body(request(Message("user", (Image("data:image/png;base64,AA"), Image("https://x/y.png")))))
    assert [part["source"] for part in sent["messages"][0]["content"]] == [
        {"type": "base64", "media_type": "image/png", "data": "AA"},
        {"type": "url", "url": "https://x/y.png"},
    ]
    with pytest.raises(Refusal, match="audio"):
        body(request(Message("user", (Audio("data:audio/wav;base64,AA"),))))


@pytest.mark.parametrize(
    ("fields", "thinking", "hard"),
    [
        ({}, None, "none"),
        ({"think": False}, {"type": "disabled"}, "hard"),
        ({"budget": Budget(thinking=3000)}, {"type": "enabled", "budget_tokens": 3000}, "hint"),
        ({"budget": Budget(thinking=50)}, {"type": "enabled", "budget_tokens": 1024}, "hint"),
        ({"effort": "high"}, {"type": "enabled", "budget_tokens": 4096}, "hint"),
        ({"budget": Budget(tokens=2000), "effort": "high"}, {"type": "enabled", "budget_tokens": 1999}, "hint"),
        ({"budget": Budget(tokens=1024), "effort": "high"}, {"type": "disabled"}, "hard"),
        ({"think": True}, {"type": "enabled", "budget_tokens": 2048}, "none"),
    ],
)
def test_budgets_keep_to_what_anthropic_takes(fields: dict[str, Any], thinking: Any, hard: str) -> None:
    ask = Anthropic().ask(request(**fields), "up")
    assert ask.body.get("thinking") == thinking
    assert ask.hard == hard
    if thinking and thinking["type"] == "enabled":
        assert 1024 <= thinking["budget_tokens"] < ask.body["max_tokens"]


def test_adaptive_models_get_an_effort() -> None:
    sent = body(request(budget=Budget(thinking=5000)), flavour="adaptive")
    assert (sent["thinking"], sent["output_config"]) == ({"type": "adaptive"}, {"effort": "high"})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"sampling": Sampling(seed=1)}, "seed"),
        ({"sampling": Sampling(logprobs=0)}, "logprobs"),
        ({"raw": "x"}, "prompt"),
        ({"shape": Shape("json")}, "response_format"),
    ],
)
def test_what_it_does_not_have_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as caught:
        body(request(**fields))
    assert caught.value.param == param


def test_a_stream_with_everything_in_it() -> None:
    reading = Anthropic().reading(request(sampling=Sampling(stop=("END",))))
    documents = [
        START,
        {"type": "ping"},
        opening(0, type="thinking", thinking=""),
        delta(0, "thinking_delta", thinking="hm"),
        delta(0, "signature_delta", signature="sig=="),
        opening(1, type="redacted_thinking", data="hidden"),
        opening(2, type="text", text=""),
        delta(2, "text_delta", text="yes"),
        opening(3, type="tool_use", id="a", name="f", input={}),
        delta(3, "input_json_delta", partial_json='{"x":'),
        opening(4, type="tool_use", id="b", name="g", input={}),
        delta(3, "input_json_delta", partial_json="1}"),
        delta(4, "input_json_delta", partial_json="{}"),
        end("stop_sequence", "END", output_tokens_details={"thinking_tokens": 12}),
        STOP,
    ]
    assert [event for document in documents for event in reading.take(document)] == [
        Reasoning("hm"),
        Reasoning("", signature="sig=="),
        Reasoning("", redacted="hidden"),
        Content("yes"),
        Call("", 0, "a", "f"),
        Call('{"x":', 0),
        Call("", 1, "b", "g"),
        Call("1}", 0),
        Call("{}", 1),
        Ended("stop", 0, "END"),
    ]
    used = reading.usage()
    assert used is not None
    assert (used.prompt, used.cached, used.completion, used.reasoning) == (8, 3, 20, 12)
    assert not used.estimated


def test_a_whole_message_is_read_too() -> None:
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "yes"},
        {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
    ]
    assert read({"type": "message", "content": content, "stop_reason": "tool_use", "usage": {}}) == [
        Reasoning("hm", signature="s"),
        Content("yes"),
        Call('{"x": 1}', 0, "a", "f"),
        Ended("tool_calls"),
    ]


def test_usage_of_a_stream_that_broke_is_estimated() -> None:
    reading = Anthropic().reading(request())
    for document in (START, opening(0, type="text"), *(delta(0, "text_delta", text="word ") for _ in range(7))):
        reading.take(document)
    used = reading.usage()
    assert used is not None
    assert used.estimated
    assert (used.prompt, used.completion >= 7) == (8, True)


@pytest.mark.parametrize(("kind", "status"), [("overloaded_error", 529), ("rate_limit_error", 429), ("new_error", 0)])
def test_errors_in_the_stream(kind: str, status: int) -> None:
    with pytest.raises(Failed, match="no") as caught:
        read({"type": "error", "error": {"type": kind, "message": "no"}})
    assert caught.value.status == status


NAMES = st.sampled_from(
    ["type", "index", "delta", "content_block", "usage", "text", "thinking", "message", "stop_reason"]
)
KINDS = st.sampled_from(
    ["message_start", "content_block_start", "content_block_delta", "message_delta", "message", "text", "tool_use"]
)
JSON = st.recursive(
    st.none() | st.integers() | st.floats() | KINDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(NAMES, JSON, max_size=5), max_size=6))
@settings(deadline=None, max_examples=50)
def test_garbage_makes_sound_events_or_none(documents: list[dict[str, Any]]) -> None:
    reading = Anthropic().reading(request())
    for document in documents:
        for event in reading.take(document):
            assert isinstance(event, Reasoning | Content | Call | Ended)
    used = reading.usage()
    assert used is None or 0 <= used.cached <= used.prompt


async def _over_the_wire() -> None:
    script = [START, opening(0, type="text"), delta(0, "text_delta", text="yes"), end(), STOP]
    async with Says(script) as server:
        backend = upstream(f"{server.root}/v1", Anthropic(), key="s3cret")
        found = await heard(backend)
        assert server.asked[0].path == "/v1/messages"
        assert server.asked[0].headers["x-api-key"] == "s3cret"
        assert server.asked[0].headers["anthropic-version"]
        await backend.close()
    assert found.events[0] == Begun("tiny", "up", "none")
    assert found.reply.choices[0].content == "yes"


def test_over_the_wire() -> None:
    import asyncio

    asyncio.run(_over_the_wire())


def test_counting_sends_what_matters_for_it() -> None:
    ask = Anthropic().counting(request(system("s"), user("hi"), tools=(TOOL,)), "up")
    assert ask is not None
    assert set(ask.body) == {"model", "messages", "system", "tools", "tool_choice"}
    assert Anthropic().counted({"input_tokens": 9}) == 9
    assert Anthropic().listed({"data": [{"id": "a", "max_input_tokens": 9}]}) == {"a": 9}

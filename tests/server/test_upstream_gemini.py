"""Gemini as an upstream: what is sent, and what is understood."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from faults import Plain
from hypothesis import given, settings
from hypothesis import strategies as st
from upstreams import Says, heard, request, upstream

from ponder.server.events import Call, Content, Ended, Reasoning, ReplyEvent
from ponder.server.failures import Refusal
from ponder.server.request import Request, Sampling, Shape, ToolChoice
from ponder.server.signatures import SignedThinking
from ponder.server.upstream_dialect import Failed
from ponder.server.upstream_gemini import Gemini
from ponder.types import Audio, Budget, Image, Message, Text, ToolCall, ToolResult, system, user

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def body(asked: Request, **more: Any) -> dict[str, Any]:
    return json.loads(Gemini(**more).ask(asked, "up").data)


def read(*documents: dict[str, Any], asked: Request | None = None) -> list[ReplyEvent]:
    reading = Gemini().reading(asked or request())
    return [event for document in documents for event in reading.take(document)]


def candidate(*parts: dict[str, Any], finish: str = "", index: int = 0) -> dict[str, Any]:
    return {"candidates": [{"index": index, "content": {"parts": list(parts)}, "finishReason": finish or None}]}


def test_everything_that_was_asked_for_is_sent() -> None:
    asked = request(
        system("be kind"),
        Message("user", (Text("look"), Image("data:image/png;base64,AA"), Audio("data:audio/wav;base64,BB"))),
        Message("assistant", (SignedThinking("", signature="sig"), ToolCall("f", '{"a": 1}', "c1"))),
        Message("tool", (ToolResult("c1", "42"),)),
        tools=(TOOL,),
        tool_choice=ToolChoice("named", "f"),
        n=2,
        budget=Budget(tokens=50),
        shape=Shape("schema", {"type": "object"}),
        sampling=Sampling(0.5, 0.9, 4, seed=7, stop=("END",)),
    )
    assert Gemini().ask(asked, "a/b").path == "/models/a%2Fb:streamGenerateContent?alt=sse"
    assert body(asked) == {
        "systemInstruction": {"parts": [{"text": "be kind"}]},
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"text": "look"},
                    {"inlineData": {"mimeType": "image/png", "data": "AA"}},
                    {"inlineData": {"mimeType": "audio/wav", "data": "BB"}},
                ],
            },
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "sig"}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"result": "42"}}}]},
        ],
        "tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": {"type": "object"}}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
        "generationConfig": {
            "temperature": 0.5,
            "topP": 0.9,
            "topK": 4,
            "seed": 7,
            "maxOutputTokens": 50,
            "stopSequences": ["END"],
            "candidateCount": 2,
            "responseMimeType": "application/json",
            "responseJsonSchema": {"type": "object"},
            "thinkingConfig": {"includeThoughts": True},
        },
    }


@pytest.mark.parametrize(
    ("fields", "flavour", "config", "hard"),
    [
        ({"budget": Budget(thinking=300)}, "budget", {"thinkingBudget": 300, "includeThoughts": True}, "hint"),
        ({"effort": "low"}, "budget", {"thinkingBudget": 1024, "includeThoughts": True}, "hint"),
        ({"think": True}, "budget", {"thinkingBudget": -1, "includeThoughts": True}, "none"),
        ({"think": False}, "budget", {"thinkingBudget": 0}, "hint"),
        ({"budget": Budget(thinking=300)}, "level", {"thinkingLevel": "minimal", "includeThoughts": True}, "hint"),
        ({"effort": "max"}, "level", {"thinkingLevel": "high", "includeThoughts": True}, "hint"),
    ],
)
def test_budgets_and_levels(fields: dict[str, Any], flavour: Any, config: dict[str, Any], hard: str) -> None:
    ask = Gemini(flavour).ask(request(**fields), "up")
    assert ask.body["generationConfig"]["thinkingConfig"] == config
    assert ask.hard == hard


@pytest.mark.parametrize(
    "fields", [{"raw": "x"}, {"sampling": Sampling(logprobs=1)}, {"sampling": Sampling(min_p=0.1)}]
)
def test_what_it_does_not_have_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match="leave it out"):
        body(request(**fields))


def test_an_image_by_address_is_refused() -> None:
    with pytest.raises(Refusal, match="data:"):
        body(request(Message("user", (Image("https://x/y.png"),))))


def test_a_stream_with_everything_in_it() -> None:
    reading = Gemini().reading(request(n=2))
    usage = {
        "promptTokenCount": 7,
        "cachedContentTokenCount": 3,
        "candidatesTokenCount": 4,
        "thoughtsTokenCount": 5,
    }
    documents = [
        candidate({"text": "hm", "thought": True}),
        candidate({"text": "yes"}, {"functionCall": {"name": "f", "args": {"x": 1}}, "thoughtSignature": "sig"}),
        candidate({"functionCall": {"name": "g"}}, finish="STOP"),
        {**candidate({"text": "no"}, finish="SAFETY", index=1), "usageMetadata": usage},
    ]
    assert [event for document in documents for event in reading.take(document)] == [
        Reasoning("hm"),
        Content("yes"),
        Reasoning("", signature="sig"),
        Call('{"x": 1}', 0, "", "f"),
        Call("{}", 1, "", "g"),
        Ended("tool_calls"),
        Content("no", 1),
        Ended("refusal", 1),
    ]
    used = reading.usage()
    assert used is not None
    assert (used.prompt, used.cached, used.completion, used.reasoning) == (7, 3, 9, 5)


def test_a_blocked_prompt_is_a_refusal_and_an_error_an_error() -> None:
    assert read({"promptFeedback": {"blockReason": "SAFETY"}}) == [Ended("refusal")]
    with pytest.raises(Failed, match="no") as caught:
        read({"error": {"code": 503, "message": "no"}})
    assert caught.value.status == 503


NAMES = st.sampled_from(["candidates", "index", "content", "parts", "text", "functionCall", "args", "usageMetadata"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(NAMES, JSON, max_size=4), max_size=5))
@settings(deadline=None, max_examples=50)
def test_garbage_makes_sound_events_or_none(documents: list[dict[str, Any]]) -> None:
    for event in read(*documents):
        assert isinstance(event, Reasoning | Content | Call | Ended)


def test_over_the_wire() -> None:
    async def run() -> None:
        usage = {"promptTokenCount": 7, "candidatesTokenCount": 4}
        async with Says([{**candidate({"text": "yes"}, finish="STOP"), "usageMetadata": usage}]) as server:
            backend = upstream(f"{server.root}/v1beta", Gemini(), key="s3cret")
            found = await heard(backend)
            assert server.asked[0].path == "/v1beta/models/tiny:streamGenerateContent?alt=sse"
            assert server.asked[0].headers["x-goog-api-key"] == "s3cret"
            assert found.reply.choices[0].content == "yes"
            server.faults.append(
                lambda steps: Plain(
                    400, json.dumps([{"error": {"message": "bad"}}]).encode(), {"content-type": "application/json"}
                )
            )
            refused = await heard(backend)
            assert refused.refusal is not None
            assert "bad" in refused.refusal.problem
            await backend.close()

    asyncio.run(run())


def test_models_and_counts() -> None:
    models = [
        {"name": "models/a", "inputTokenLimit": 9, "supportedGenerationMethods": ["generateContent"]},
        {"name": "models/e", "supportedGenerationMethods": ["embedContent"]},
    ]
    assert Gemini().listed({"models": models}) == {"a": 9}
    ask = Gemini().counting(request(user("hi")), "up")
    assert ask is not None
    assert ask.body["generateContentRequest"]["contents"] == [{"role": "user", "parts": [{"text": "hi"}]}]
    assert Gemini().counted({"totalTokens": 3}) == 3

"""Chat completions against the official client: what it sends is read, what is written it reads back."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai_client import client, drained, payloads, refused, streaming, together, whole_client

from ponder.errors import ContextOverflow, EngineTimeout
from ponder.server.events import (
    Begun,
    Call,
    Content,
    Ended,
    Progress,
    Reason,
    Reasoning,
    ReplyEvent,
    Token,
    Usage,
)
from ponder.server.failures import Refusal, overloaded
from ponder.server.openai_chat import read, stream, whole
from ponder.server.openai_wire import Wire
from ponder.server.request import Request, Sampling
from ponder.types import AnswerDelta, Budget, Cost, Provenance, Question, Sample, Trace, user

WIRE = Wire(clock=lambda: 1_700_000_000.5, system_fingerprint="fp_1")
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def asked(headers: dict[str, str] | None = None, **fields: Any) -> Request:
    return read({**BODY, **fields}, headers or {}, "r1")


# ---------------------------------------------------------------- read


def test_reads_every_field_of_a_request() -> None:
    body = {
        "model": "m:vote-8",
        "messages": [{"role": "user", "content": "hi"}],
        "n": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "seed": -5,
        "stop": ["a", "b", "c", "d", "e"],
        "logprobs": True,
        "top_logprobs": 3,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "logit_bias": {"5": -100, "6": 1.5},
        "max_completion_tokens": 100,
        "reasoning_effort": "low",
        "stream": True,
        "stream_options": {"include_usage": True},
        "store": True,
        "safety_identifier": "u1",
        "metadata": {"a": "b"},
        "prediction": {"type": "content", "content": "x"},
        "service_tier": "auto",
        "prompt_cache_key": "k",
        "repetition_penalty": 1.0,
        "modalities": ["text"],
    }
    request = read(json.dumps(body).encode(), {}, "r1")
    assert (request.id, request.model, request.strategy, request.n) == ("r1", "m", "vote(8)", 3)
    assert request.question == Question((user("hi"),))
    assert request.budget == Budget(100)
    assert request.effort == "low"
    assert request.sampling == Sampling(
        0.5, 0.9, 40, 0.05, 2**63 - 5, ("a", "b", "c", "d", "e"), 3, 0.5, -0.5, {5: -100.0, 6: 1.5}
    )
    assert request.stream
    assert request.store
    assert request.shown.usage
    assert (request.user, request.metadata, request.dialect) == ("u1", {"a": "b"}, "openai")


def test_what_is_left_out_is_left_to_the_model() -> None:
    assert asked() == Request("r1", "m", Question((user("hi"),)))
    assert asked(stop=None, tools=None, n=None, max_tokens=None, response_format=None) == asked()
    assert asked(stop="x").sampling.stop == ("x",)
    assert asked(logprobs=True).sampling.logprobs == 0
    assert asked(top_k=-1).sampling.top_k == 0
    assert asked(user="u").user == "u"
    assert asked(max_tokens=5) == asked(max_completion_tokens=5) == asked(max_tokens=5, max_completion_tokens=5)


def test_an_answer_may_be_asked_for_that_does_not_end() -> None:
    assert asked(ignore_eos=True).sampling.ignore_eos
    assert not asked(ignore_eos=False).sampling.ignore_eos


def test_a_stored_prompt_may_stand_for_messages() -> None:
    request = read({"model": "m", "ponder": {"prompt": "support@prod", "variables": {"a": 1}}}, {}, "r1")
    assert request.prompt is not None
    assert (request.prompt.name, request.prompt.label, request.variables) == ("support", "prod", {"a": 1})
    assert asked({"X-Ponder-Prompt": "support@2"}).prompt is not None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1}, "min_p"),
        ({"seed": 2**70}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": [5]}, "stop[0]"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 200}}, "logit_bias.5"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"stream": "yes"}, "stream"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"metadata": {"a": 5}}, "metadata.a"),
        ({"functions": []}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"audio": {}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"verbosity": "low"}, "verbosity"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"guided_json": {}}, "guided_json"),
        ({"temprature": 0.5}, "temprature"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_refuses_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as caught:
        asked(**fields)
    refusal = caught.value
    assert (refusal.status, refusal.kind, refusal.param) == (400, "invalid_request_error", param)
    assert str(refusal).startswith(param)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = [
    *("messages", "n", "tools", "tool_choice", "response_format", "stop", "logit_bias", "metadata", "stream_options"),
    *("ponder", "reasoning", "thinking", "seed", "max_tokens", "temperature", "top_logprobs", "stream", "user"),
]
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"])},
    optional={
        "content": ANY
        | st.lists(
            st.fixed_dictionaries(
                {"type": st.sampled_from(["text", "image_url", "input_audio", "file", "thinking", "refusal"])},
                optional=dict.fromkeys(("text", "image_url", "input_audio", "file", "thinking", "refusal"), ANY),
            ),
            max_size=2,
        ),
        "tool_calls": ANY | st.lists(st.fixed_dictionaries({"function": ANY}), max_size=2),
        "reasoning_content": ANY,
        "reasoning_details": ANY,
        "tool_call_id": ANY,
    },
)


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(NAMES), ANY, max_size=4),
    st.lists(MESSAGE, max_size=2) | ANY,
    st.dictionaries(st.sampled_from(["x-ponder-budget", "x-ponder-strategy"]), st.text(max_size=9), max_size=1),
)
def test_any_json_is_a_request_or_a_refusal(fields: dict[str, Any], messages: Any, headers: dict[str, str]) -> None:
    refusal = refused(lambda: read({"model": "m", "messages": messages, **fields}, headers, "r1"))
    assert refusal is None or (refusal.status == 400 and "\n" not in str(refusal))


# ---------------------------------------------------------------- whole

TRACE = Trace("t1", Question(()), provenance=Provenance(strategy="self_consistency"), samples=(Sample(0, "a"),) * 8)
USAGE = Usage(10, 4, 30, 20, cost=Cost(thinking=20, answer=10, calls=8), dollars=0.25, trace=TRACE)
BOTH = [
    Begun("m-real", "local", "hard"),
    Reasoning("Let me "),
    Progress(AnswerDelta("x")),
    Reasoning("see."),
    Content("It "),
    Call('{"a"', 0, "c1", "clock"),
    Call("{}", 1, "c2", "sum"),
    Call(": 1}", 0),
    Content("is."),
    Ended("tool_calls"),
    USAGE,
]


def test_a_whole_reply_is_what_the_client_expects() -> None:
    document = whole(asked(), together(BOTH), WIRE)
    ChatCompletion.model_validate(document, strict=True)
    completion = whole_client(document).chat.completions.create(model="m", messages=[])
    message = completion.choices[0].message
    assert (message.content, message.reasoning_content) == ("It is.", "Let me see.")  # type: ignore[attr-defined]
    calls = [
        (call.id, call.function.name, call.function.arguments)
        for call in message.tool_calls or ()
        if call.type == "function"
    ]
    assert calls == [("c1", "clock", '{"a": 1}'), ("c2", "sum", "{}")]
    assert completion.choices[0].finish_reason == "tool_calls"
    assert (completion.id, completion.created, completion.model) == ("chatcmpl-r1", 1_700_000_000, "m-real")
    assert completion.system_fingerprint == "fp_1"


def test_usage_tells_reasoning_cached_tokens_and_the_cost() -> None:
    document = whole(asked(), together(BOTH), WIRE)
    usage = ChatCompletion.model_validate(document).usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (10, 30, 40)
    assert usage.completion_tokens_details.reasoning_tokens == 20
    assert usage.prompt_tokens_details.cached_tokens == 4
    spent = document["usage"]["ponder"]
    assert (spent["dollars"], spent["strategy"], spent["samples"]) == (0.25, "self_consistency", 8)
    assert (spent["cost"]["thinking"], spent["cost"]["calls"], spent["estimated"]) == (20, 8, False)
    assert document["ponder"]["thinking_budget"] == "hard"
    assert (document["ponder"]["backend"], document["ponder"]["trace"]) == ("local", "t1")
    assert document["ponder"]["cost"] == spent["cost"]


def test_usage_of_several_choices_is_that_of_all_of_them() -> None:
    """Servers that count the first choice alone tell a part of what was generated."""
    events = [Begun("m"), Content("a", 0), Content("b", 1), Ended(choice=1), Ended(choice=0), Usage(5, 0, 16)]
    document = whole(asked(n=2), together(events), WIRE)
    assert [choice["message"]["content"] for choice in document["choices"]] == ["a", "b"]
    assert document["usage"]["completion_tokens"] == 16
    assert document["usage"]["total_tokens"] == 21


def test_a_reply_that_nobody_counted_has_no_usage_rather_than_zeros() -> None:
    document = whole(asked(), together([Begun("m"), Content("a"), Ended()]), WIRE)
    assert document["usage"] is None
    assert ChatCompletion.model_validate(document).usage is None


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("refusal", "content_filter"),
        ("cancelled", "length"),
    ],
)
def test_what_was_cut_does_not_pass_for_complete(reason: Reason, finish: str) -> None:
    assert whole(asked(), together([Content("a"), Ended(reason)]), WIRE)["choices"][0]["finish_reason"] == finish
    assert whole(asked(), together([Content("a")]), WIRE)["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("reasoning_content", {"reasoning_content"}),
        ("reasoning", {"reasoning"}),
        ("both", {"reasoning", "reasoning_content"}),
    ],
)
def test_thinking_has_the_name_that_the_wire_says(field: Any, names: set[str]) -> None:
    wire = Wire(reasoning_field=field)
    message = whole(asked(), together(BOTH), wire)["choices"][0]["message"]
    assert {name for name in message if name.startswith("reasoning")} == names
    sent = payloads(drained(stream(asked(), streaming(BOTH), wire)))
    deltas = [chunk["choices"][0]["delta"] for chunk in sent[:-1]]
    assert {name for delta in deltas for name in delta if name.startswith("reasoning")} == names
    assert "".join(delta.get(next(iter(names)), "") for delta in deltas) == "Let me see."


def test_thinking_that_is_not_wanted_is_not_sent() -> None:
    request = asked(include_reasoning=False)
    assert "reasoning_content" not in whole(request, together(BOTH), WIRE)["choices"][0]["message"]
    assert b"Let me" not in drained(stream(request, streaming(BOTH), WIRE))


TOKENS = (
    Token("a", -0.5, 1, (Token("a", -0.5, 1), Token("b", -1.5, 2), Token("c", -math.inf, 3))),
    Token("é", math.nan, 4),
)


def test_logprobs_are_told_as_asked_and_are_json() -> None:
    events = [Begun("m"), Content("aé", 0, TOKENS), Ended(), Usage()]
    document = whole(asked(logprobs=True, top_logprobs=3), together(events), WIRE)
    told = document["choices"][0]["logprobs"]["content"]
    assert [(each["token"], each["logprob"], each["bytes"]) for each in told] == [
        ("a", -0.5, [97]),
        ("é", None, [195, 169]),
    ]
    assert [each["logprob"] for each in told[0]["top_logprobs"]] == [-0.5, -1.5, -9999.0]
    json.dumps(document, allow_nan=False)
    few = whole(asked(logprobs=True, top_logprobs=1), together(events), WIRE)["choices"][0]["logprobs"]["content"]
    assert len(few[0]["top_logprobs"]) == 1
    assert whole(asked(), together(events), WIRE)["choices"][0]["logprobs"] is None


def test_calls_without_ids_get_the_same_ones_whole_and_streamed() -> None:
    events = [Begun("m"), Call("{}", 0, "", "f"), Call("{}", 1, "", "f"), Ended("tool_calls"), USAGE]
    ids = [call["id"] for call in whole(asked(), together(events), WIRE)["choices"][0]["message"]["tool_calls"]]
    assert len(set(ids)) == 2
    sent = payloads(drained(stream(asked(), streaming(events), WIRE)))
    pieces = [chunk["choices"][0]["delta"].get("tool_calls", [{}])[0] for chunk in sent[:-1]]
    assert [piece["id"] for piece in pieces if "id" in piece] == ids


# ---------------------------------------------------------------- stream


def test_a_stream_of_every_kind_of_event_byte_for_byte() -> None:
    request = asked(stream=True, stream_options={"include_usage": True})
    sent = payloads(drained(stream(request, streaming(BOTH), WIRE)))
    assert sent[-1] == "[DONE]"
    for chunk in sent[:-1]:
        ChatCompletionChunk.model_validate(chunk, strict=True)
        head = (chunk["id"], chunk["created"], chunk["model"], chunk["object"])
        assert head == ("chatcmpl-r1", 1_700_000_000, "m-real", "chat.completion.chunk")
    assert [chunk["usage"] for chunk in sent[:-2]] == [None] * (len(sent) - 2)
    assert sent[-2]["choices"] == []
    assert sent[-2]["usage"] == whole(request, together(BOTH), WIRE)["usage"]
    deltas = [chunk["choices"][0]["delta"] for chunk in sent[:-2]]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Let me "},
        {"reasoning_content": "see."},
        {"content": "It "},
        {
            "tool_calls": [
                {"index": 0, "id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"a"'}}
            ]
        },
        {"tool_calls": [{"index": 1, "id": "c2", "type": "function", "function": {"name": "sum", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
        {"content": "is."},
        {},
    ]
    finishes = [chunk["choices"][0]["finish_reason"] for chunk in sent[:-2]]
    assert finishes == [None] * 8 + ["tool_calls"]


def test_usage_is_told_to_those_alone_who_asked() -> None:
    sent = payloads(drained(stream(asked(stream=True), streaming(BOTH), WIRE)))
    assert all("usage" not in chunk for chunk in sent[:-1])
    assert sent[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_choices_come_interleaved_each_with_its_own_role_and_end() -> None:
    events = [Begun("m"), Content("a", 1), Content("b", 0), Ended(choice=1), Content("c", 0), Ended("length", 0)]
    sent = payloads(drained(stream(asked(n=2), streaming(events), WIRE)))[:-1]
    choices = [chunk["choices"][0] for chunk in sent]
    assert [(each["index"], each["delta"].get("role")) for each in choices[:2]] == [(0, "assistant"), (1, "assistant")]
    assert [(each["index"], each["delta"].get("content")) for each in choices[2:]] == [
        (1, "a"),
        (0, "b"),
        (1, None),
        (0, "c"),
        (0, None),
    ]
    assert [each["finish_reason"] for each in choices if each["finish_reason"]] == ["stop", "length"]


def test_a_choice_that_never_ended_was_cut() -> None:
    sent = payloads(drained(stream(asked(), streaming([Begun("m"), Content("a")]), WIRE)))
    assert sent[-2]["choices"][0]["finish_reason"] == "length"
    assert sent[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (overloaded("the upstream is full", 3), "overloaded_error", "overloaded"),
        (EngineTimeout("silent for 5 s", "ask again"), "timeout_error", "timeout"),
        (ContextOverflow("too long", "shorten it"), "invalid_request_error", "context_length_exceeded"),
    ],
)
def test_a_failure_in_the_middle_is_the_last_frame(error: Exception, kind: str, code: str) -> None:
    request = asked(stream=True, stream_options={"include_usage": True})
    sent = drained(stream(request, streaming([Begun("m"), Content("par"), Usage(5, 0, 1), error]), WIRE))
    frames = payloads(sent)
    assert "[DONE]" not in frames
    assert frames[-2]["usage"]["completion_tokens"] == 1
    assert (frames[-1]["error"]["type"], frames[-1]["error"]["code"]) == (kind, code)
    chunks = client(sent).chat.completions.create(model="m", messages=[], stream=True)
    assert "".join(next(chunks).choices[0].delta.content or "" for _ in range(2)) == "par"
    with pytest.raises(openai.APIError, match=str(error)) as caught:
        list(chunks)
    assert caught.value.type == kind


def test_a_fault_of_our_own_tells_the_client_nothing_and_is_raised() -> None:
    async def drain() -> bytes:
        frames = stream(asked(), streaming([Begun("m"), KeyError("sk-secret")]), WIRE)
        sent = await anext(frames) + await anext(frames)
        with pytest.raises(KeyError):
            await anext(frames)
        return sent

    sent = asyncio.run(drain())
    assert payloads(sent)[-1]["error"]["type"] == "api_error"
    assert b"sk-secret" not in sent


def test_closing_the_stream_closes_the_events() -> None:
    closed = []

    async def events() -> AsyncIterator[ReplyEvent]:
        try:
            yield Begun("m")
            await asyncio.sleep(60)
        finally:
            closed.append(True)

    async def leave() -> None:
        frames = stream(asked(), events(), WIRE)
        await anext(frames)
        await frames.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    assert closed == [True]


# ---------------------------------------------------------------- both say the same

PIECES = st.text(max_size=4)


@st.composite
def replies(draw: st.DrawFn) -> tuple[Request, list[ReplyEvent]]:
    """A request for some choices, and the events of a reply to it, those of the choices interleaved."""
    n = draw(st.integers(1, 3))
    queues: list[list[ReplyEvent]] = []
    for choice in range(n):
        events: list[ReplyEvent] = [Reasoning(text, choice) for text in draw(st.lists(PIECES, max_size=2))]
        for text in draw(st.lists(PIECES, max_size=3)):
            tokens = (Token(text, -draw(st.floats(0, 9)), 1, (Token("x", -1.0, 2),)),)
            events.append(Content(text, choice, tokens if draw(st.booleans()) else ()))
        calls = draw(st.integers(0, 3))
        first = [Call(draw(PIECES), number, f"c{number}", f"f{number}", choice) for number in range(calls)]
        more = [Call(draw(PIECES), number, choice=choice) for number in range(calls)]
        reason = draw(st.sampled_from(["stop", "length", "cancelled", "refusal"]))
        queues.append([*events, *first, *draw(st.permutations(more)), Ended(reason, choice)])
    order = draw(st.permutations([choice for choice, queue in enumerate(queues) for _ in queue]))
    shuffled = [queues[choice].pop(0) for choice in order]
    usage = Usage(*(draw(st.integers(0, 99)) for _ in range(4)), cost=Cost(calls=draw(st.integers(0, 9))))
    request = asked(n=n, stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=2)
    return request, [Begun("m"), *shuffled, usage]


@settings(max_examples=60, deadline=None)
@given(replies())
def test_the_official_client_puts_the_stream_together_to_the_whole(case: tuple[Request, list[ReplyEvent]]) -> None:
    request, events = case
    document = whole(request, together(events), WIRE)
    ChatCompletion.model_validate(document)
    sent = drained(stream(request, streaming(events), WIRE))
    with client(sent).chat.completions.stream(
        model="m", messages=[], n=request.n, stream_options={"include_usage": True}
    ) as chunks:
        for _ in chunks:
            pass
        total = chunks.current_completion_snapshot  # get_final_completion raises for what was cut
    assert (total.id, total.model, total.created) == (document["id"], document["model"], document["created"])
    assert total.usage is not None
    assert total.usage.to_dict() == document["usage"]
    for choice, expected in zip(total.choices, document["choices"], strict=True):
        message = expected["message"]
        assert (choice.message.content or "") == (message["content"] or "")
        assert choice.message.to_dict().get("reasoning_content", "") == message.get("reasoning_content", "")
        calls = [
            {"id": c.id, "type": c.type, "function": {"name": c.function.name, "arguments": c.function.arguments}}
            for c in choice.message.tool_calls or ()
        ]
        assert calls == message.get("tool_calls", [])
        assert choice.finish_reason == expected["finish_reason"]
        assert (choice.logprobs.to_dict() if choice.logprobs else None) == expected["logprobs"]


def test_the_asynchronous_client_reads_it_too() -> None:
    import httpx2

    sent = drained(stream(asked(), streaming(BOTH), WIRE))

    async def read_back() -> str:
        transport = httpx2.MockTransport(
            lambda _: httpx2.Response(200, content=sent, headers={"content-type": "text/event-stream"})
        )
        async with httpx2.AsyncClient(transport=transport) as http:
            asynchronous = openai.AsyncOpenAI(api_key="none", base_url="http://ponder/v1", http_client=http)
            chunks = await asynchronous.chat.completions.create(model="m", messages=[], stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    assert asyncio.run(read_back()) == "It is."

"""The dialect Anthropic Messages, as the official client sees it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anthropic as sdk
import httpx2
import pydantic
import pytest
from anthropic.types import Message as SdkMessage
from anthropic.types import MessageTokensCount, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from reply_events import BEGUN, USED, frames_of, reply_of, script, scripts, streamed

from ponder.server import anthropic, anthropic_reply
from ponder.server.events import Call, Content, Ended, Reasoning, ReplyEvent, Usage
from ponder.server.failures import Refusal, limited, overloaded
from ponder.server.request import Request, Sampling, Shape, ToolChoice
from ponder.server.signatures import SignedThinking, Signer, ours
from ponder.types import Image, Message, Text, Thinking, ToolCall, ToolResult

SIGNER = Signer(b"a secret of the server")
few = settings(max_examples=40)  # each goes through a client
EVENTS: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(RawMessageStreamEvent)
PIXEL = base64.b64encode(b"\x89PNG").decode()
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {}}}


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 4096, "messages": [{"role": "user", "content": "Hi"}], **more}


def read(headers: dict[str, str] | None = None, **more: Any) -> Request:
    return anthropic.read(json.dumps(asked(**more)).encode(), headers or {}, "r1", SIGNER)


def talk(*contents: Any) -> list[dict[str, Any]]:
    """A conversation of turns that alternate, the user's first."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def refused(**more: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(**more)
    assert (caught.value.status, caught.value.kind) == (400, "invalid_request_error")
    return caught.value


def sent(events: Sequence[ReplyEvent | Exception], request: Request | None = None) -> list[dict[str, Any]]:
    """The events of a stream, each as the official client's types want it."""
    request = request or read(stream=True)
    frames = frames_of(streamed(events, lambda incoming: anthropic.stream(request, incoming, SIGNER)))
    for name, data in frames:
        assert name == data["type"]
        if name not in ("ping", "error"):
            EVENTS.validate_python(data)
    return [data for _, data in frames]


def whole(events: Sequence[ReplyEvent], request: Request | None = None) -> dict[str, Any]:
    document = anthropic.whole(request or read(), reply_of(events), SIGNER)
    SdkMessage.model_validate_json(json.dumps(document))
    return document


class Served:
    """One official client, whose server answers every request with what it was given last."""

    def __init__(self) -> None:
        self.answer = httpx2.Response(200)
        http = httpx2.Client(transport=httpx2.MockTransport(lambda request: self.answer))
        self.api = sdk.Anthropic(api_key="k", base_url="http://ponder.test", http_client=http, max_retries=0)


SERVED = Served()


def client(data: bytes, kind: str = "text/event-stream", status: int = 200) -> sdk.Anthropic:
    headers = {"content-type": kind, "request-id": "req_1"}
    SERVED.answer = httpx2.Response(status, content=data, headers=headers)
    return SERVED.api


def accumulated(events: Sequence[ReplyEvent], request: Request | None = None) -> dict[str, Any]:
    """The message that the official client makes of a stream."""
    request = request or read(stream=True)
    data = streamed(events, lambda incoming: anthropic.stream(request, incoming, SIGNER))
    with client(data).messages.stream(**asked()) as stream:
        return stream.get_final_message().to_dict()


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message without ponder's own additions."""
    return {name: value for name, value in message.items() if name != "ponder"}


# ---------------------------------------------------------------- replies


@few
@given(scripts())
def test_the_accumulated_stream_is_the_whole(events: list[ReplyEvent]) -> None:
    assert plain(accumulated(events)) == plain(whole(events))


@few
@given(scripts())
def test_blocks_open_go_on_and_close_one_after_the_other(events: list[ReplyEvent]) -> None:
    frames = sent(events)
    kinds = [frame["type"] for frame in frames]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    index, open_ = 0, False
    for frame in frames[2:-2]:
        assert frame["index"] == index
        if frame["type"] == "content_block_start":
            assert not open_
            open_ = True
        elif frame["type"] == "content_block_stop":
            assert open_
            index, open_ = index + 1, False
        else:
            assert open_
    assert not open_


@few
@given(scripts())
def test_nothing_that_was_told_is_lost(events: list[ReplyEvent]) -> None:
    content = whole(events)["content"]
    thought = "".join(block.get("thinking", "") for block in content)
    said = "".join(block.get("text", "") for block in content)
    assert thought == "".join(event.text for event in events if isinstance(event, Reasoning))
    assert said == "".join(event.text for event in events if isinstance(event, Content))
    calls = {event.number for event in events if isinstance(event, Call)}
    assert sum(block["type"] == "tool_use" for block in content) == len(calls)


def test_thinking_ends_with_its_signature_and_then_the_block() -> None:
    frames = sent(script(Reasoning("I "), Reasoning("think"), Content("Hi")))
    told = [(frame["type"], frame.get("delta", {}).get("type")) for frame in frames if frame.get("index") == 0]
    assert told == [
        ("content_block_start", None),
        ("content_block_delta", "thinking_delta"),
        ("content_block_delta", "thinking_delta"),
        ("content_block_delta", "signature_delta"),
        ("content_block_stop", None),
    ]
    assert ours(frames[5]["delta"]["signature"])


@pytest.mark.parametrize(
    "signed",
    [[Reasoning("I think", signature="EqQB")], [Reasoning("I "), Reasoning("think"), Reasoning("", signature="EqQB")]],
)
def test_an_upstreams_signature_passes_through_untouched(signed: list[Reasoning]) -> None:
    events = script(*signed, Content("Hi"))
    block = {"type": "thinking", "thinking": "I think", "signature": "EqQB"}
    assert whole(events)["content"][0] == accumulated(events)["content"][0] == block


def test_two_signed_blocks_stay_two() -> None:
    events = script(Reasoning("a", signature="E1"), Reasoning("b", signature="E2"), Content("Hi"))
    assert [block.get("signature") for block in whole(events)["content"]] == ["E1", "E2", None]


def test_hidden_thinking_of_an_upstream_passes_through() -> None:
    events = script(Reasoning("", redacted="Eabc"), Reasoning("seen", signature="E1"), Content("Hi"))
    content = whole(events)["content"]
    assert content[0] == {"type": "redacted_thinking", "data": "Eabc"}
    assert accumulated(events)["content"] == content


def test_thinking_between_answers_is_a_block_of_its_own() -> None:
    events = script(Reasoning("a"), Content("b"), Reasoning("c"), Content("d"))
    assert [block["type"] for block in whole(events)["content"]] == ["thinking", "text", "thinking", "text"]


def test_parallel_calls_have_their_own_blocks_however_their_pieces_come() -> None:
    pieces = [Call('{"a"', 0, "t0", "add"), Call('{"b"', 1, "t1", "sub"), Call(": 1}", 0), Call(": 2}", 1)]
    message = accumulated(script(*pieces, reason="tool_calls"))
    assert [(block["id"], block["name"], block["input"]) for block in message["content"]] == [
        ("t0", "add", {"a": 1}),
        ("t1", "sub", {"b": 2}),
    ]
    assert message["stop_reason"] == "tool_use"


def test_pieces_of_a_call_are_sent_as_they_come() -> None:
    data = sent([BEGUN, Call('{"a":', 0, "t", "add"), Call(' "xy', 0), Call('z"}', 0), Ended("tool_calls"), USED])
    assert [frame["delta"]["partial_json"] for frame in data if "delta" in frame and "index" in frame] == [
        '{"a":',
        ' "xy',
        'z"}',
    ]


@pytest.mark.parametrize("arguments", ["add 2 and 3", "[1, 2]", '{"a": NaN}', '{"a": 1,}'])
def test_arguments_that_are_no_object_are_told_as_such_and_come_back(arguments: str) -> None:
    events = script(Call(arguments, 0, "t1", "add"), reason="tool_calls")
    block = whole(events)["content"][0]
    assert block["input"] == {"INVALID_JSON": arguments}
    assert accumulated(events)["content"] == [block]
    back = read(messages=talk("Hi", [block], [{"type": "tool_result", "tool_use_id": "t1", "content": "no"}]))
    assert back.question.messages[1].parts == (ToolCall("add", arguments, "t1"),)


def test_long_arguments_take_linear_time_however_small_their_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps({"text": "word " * 4000})
    read_at_all = 0

    def counting(arguments: str) -> dict[str, Any] | None:
        nonlocal read_at_all
        read_at_all += len(arguments)
        return reads(arguments)

    reads = anthropic_reply._read
    monkeypatch.setattr(anthropic_reply, "_read", counting)
    pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
    frames = sent(script(Call("", 0, "t", "write"), *(Call(piece, 0) for piece in pieces), reason="tool_calls"))
    told = [frame["delta"]["partial_json"] for frame in frames if frame["type"] == "content_block_delta"]
    assert "".join(told) == text
    assert len(told) > 50, "it is told in pieces"
    assert read_at_all < 25 * len(text)


def test_arguments_that_break_off_into_nonsense_end_the_stream_with_an_error() -> None:
    frames = sent([BEGUN, Call('{"a": 1, ', 0, "t", "add"), Call("oops", 0), Ended("tool_calls"), USED])
    assert frames[-1]["error"]["type"] == "api_error"
    assert not any(frame["type"] == "message_stop" for frame in frames)


@pytest.mark.parametrize(
    ("reason", "stop_text", "told"),
    [
        ("stop", None, ("end_turn", None)),
        ("length", None, ("max_tokens", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("refusal", None, ("refusal", None)),
        ("cancelled", None, ("max_tokens", None)),
    ],
)
def test_why_it_stopped(reason: Any, stop_text: str | None, told: tuple[str, str | None]) -> None:
    events = script(Content("Hi"), reason=reason, stop_text=stop_text)
    for message in (whole(events), accumulated(events)):
        assert (message["stop_reason"], message["stop_sequence"]) == told


def test_a_call_is_why_it_stopped_even_where_an_upstream_says_stop() -> None:
    assert whole(script(Call("{}", 0, "t", "add")))["stop_reason"] == "tool_use"
    assert whole(script(Call("{", 0, "t", "add"), reason="length"))["stop_reason"] == "max_tokens"


def test_a_reply_that_never_ended_does_not_pass_for_a_whole_one() -> None:
    events: list[ReplyEvent] = [BEGUN, Content("Hi")]
    assert whole(events)["stop_reason"] == accumulated(events)["stop_reason"] == "max_tokens"


def test_usage_tells_cached_and_thinking_tokens_apart() -> None:
    usage = {
        "input_tokens": 20,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 10,
        "output_tokens": 50,
        "output_tokens_details": {"thinking_tokens": 20},
    }
    assert whole(script(Content("Hi")))["usage"] == usage
    assert accumulated(script(Content("Hi")))["usage"] == usage


def test_usage_counts_every_sample_and_other_choices_do_not_show() -> None:
    events = [BEGUN, Content("Hi"), Content("Ho", choice=1), Ended(), Ended(choice=1), Usage(5, 0, 16)]
    message = accumulated(events)
    assert message["usage"]["output_tokens"] == 16
    assert [block["text"] for block in message["content"]] == ["Hi"]


def test_the_cost_is_told_beside_it() -> None:
    events = script(Content("Hi"))
    assert whole(events)["ponder"]["backend"] == "here"
    assert sent(events)[-2]["ponder"] == whole(events)["ponder"]


def test_an_unseen_thought_comes_back_with_its_signature_alone() -> None:
    request = read(thinking={"type": "adaptive", "display": "omitted"}, stream=True)
    events = script(Reasoning("secretly"), Content("Hi"))
    message = accumulated(events, request)
    assert plain(message) == plain(whole(events, request))
    assert message["content"][0]["thinking"] == ""
    assert "secretly" not in json.dumps(message)
    back = read(messages=talk("Hi", message["content"], "And?"))
    assert back.question.messages[1].parts[0] == Thinking("secretly")


def test_the_official_client_reads_a_stream_as_it_comes() -> None:
    events = script(Reasoning("Hm"), Content("He"), Content("llo"))
    request = read(stream=True)
    data = streamed(events, lambda incoming: anthropic.stream(request, incoming, SIGNER))
    with client(data).messages.stream(**asked()) as stream:
        assert list(stream.text_stream) == ["He", "llo"]
        assert stream.get_final_message().id == "msg_r1"


def test_the_official_async_client_accumulates_the_same() -> None:
    events = script(Reasoning("Hm"), Content("Hello"))
    request = read(stream=True)
    data = streamed(events, lambda incoming: anthropic.stream(request, incoming, SIGNER))

    async def pieces() -> AsyncIterator[bytes]:
        for byte in range(0, len(data), 7):
            yield data[byte : byte + 7]

    async def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=pieces(), headers={"content-type": "text/event-stream"})

    async def run() -> dict[str, Any]:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
        api = sdk.AsyncAnthropic(api_key="k", base_url="http://ponder.test", http_client=http, max_retries=0)
        async with api, api.messages.stream(**asked()) as stream:
            return (await stream.get_final_message()).to_dict()

    assert plain(asyncio.run(run())) == plain(whole(events))


def test_the_official_client_reads_a_whole_message_and_sends_it_back() -> None:
    events = script(Reasoning("I think"), Content("Hi"), Call('{"a": 1}', 0, "t1", "add"), reason="tool_calls")
    message = client(json.dumps(whole(events)).encode(), "application/json").messages.create(**asked())
    turn = message.to_param()
    back = json.loads(json.dumps([block.to_dict() for block in turn["content"]]))
    result = [{"type": "tool_result", "tool_use_id": "t1", "content": "5"}]
    question = read(messages=talk("Hi", back, result)).question
    assert question.messages[1:] == (
        Message("assistant", (Thinking("I think"), Text("Hi"), ToolCall("add", '{"a": 1}', "t1"))),
        Message("tool", (ToolResult("t1", "5"),)),
    )


def test_the_official_client_parses_an_answer_of_a_schema() -> None:
    class Sum(pydantic.BaseModel):
        total: int

    seen: list[dict[str, Any]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(json.loads(request.content))
        document = anthropic.whole(anthropic.read(request.content, {}, "r1", SIGNER), reply, SIGNER)
        return httpx2.Response(200, json=document)

    reply = reply_of(script(Content('{"total": 5}')))
    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    with sdk.Anthropic(api_key="k", base_url="http://ponder.test", http_client=http) as api:
        message = api.messages.parse(**asked(), output_format=Sum)
    assert message.parsed_output == Sum(total=5)
    shape = anthropic.read(seen[0], {}, "r2", SIGNER).shape
    assert shape.kind == "schema"
    assert shape.schema is not None
    assert "total" in shape.schema["properties"]


# ---------------------------------------------------------------- failures


def test_a_failure_before_the_first_event_is_raised() -> None:
    with pytest.raises(Refusal, match="busy"):
        sent([overloaded("it is busy", 1.0)])


def test_a_failure_in_mid_stream_is_an_error_event_and_the_last() -> None:
    request = read(stream=True)
    events = [BEGUN, Content("Hi"), overloaded("it is busy", 1.0)]
    frames = sent(events, request)
    assert frames[-1]["error"] == {"type": "overloaded_error", "message": "it is busy. ask again later."}
    data = streamed(events, lambda incoming: anthropic.stream(request, incoming, SIGNER))
    with pytest.raises(sdk.APIStatusError), client(data).messages.stream(**asked()) as stream:
        stream.get_final_message()


def test_a_fault_of_ours_says_nothing_of_itself_and_reaches_the_log() -> None:
    request = read(stream=True)
    seen: list[bytes] = []

    async def run() -> None:
        async def events() -> AsyncIterator[ReplyEvent]:
            yield BEGUN
            raise KeyError("/etc/secret")

        async for frame in anthropic.stream(request, events(), SIGNER):
            seen.append(frame)

    with pytest.raises(KeyError):
        asyncio.run(run())
    assert b"api_error" in seen[-1]
    assert b"secret" not in b"".join(seen)


def test_leaving_the_stream_closes_the_work_behind_it() -> None:
    closed: list[bool] = []

    async def run() -> None:
        async def events() -> AsyncIterator[ReplyEvent]:
            try:
                yield BEGUN
                await asyncio.sleep(60)
            finally:
                closed.append(True)

        stream = anthropic.stream(read(), events(), SIGNER)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())
    assert closed == [True]


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (Refusal(400, "invalid_request_error", "no"), "invalid_request_error"),
        (Refusal(401, "authentication_error", "no"), "authentication_error"),
        (Refusal(404, "not_found_error", "no"), "not_found_error"),
        (Refusal(413, "invalid_request_error", "no"), "request_too_large"),
        (limited("no", 2.0), "rate_limit_error"),
        (limited("no", None, "insufficient_quota"), "rate_limit_error"),
        (overloaded("no", 1.0), "overloaded_error"),
        (Refusal(500, "strange", "no"), "api_error"),
    ],
)
def test_errors_have_anthropics_form(refusal: Refusal, kind: str) -> None:
    told = anthropic.failure(refusal, "req_1")
    assert told["error"]["type"] == kind
    assert told["request_id"] == "req_1"
    if kind != "request_too_large":  # the client's types do not know it, its documentation does
        ErrorResponse.model_validate(told)
    with pytest.raises(sdk.APIStatusError) as caught:
        client(json.dumps(told).encode(), "application/json", refusal.status).messages.create(**asked())
    assert caught.value.status_code == refusal.status


# ---------------------------------------------------------------- requests


def test_the_least_request() -> None:
    request = read()
    assert (request.model, request.budget.tokens, request.dialect, request.stream) == ("m", 4096, "anthropic", False)
    assert request.question.messages == (Message("user", (Text("Hi"),)),)
    assert (request.think, request.effort, request.tool_choice) == (None, "", ToolChoice())


def test_system_as_text_and_as_blocks() -> None:
    blocks = [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind", "cache_control": {"type": "ephemeral"}}]
    assert read(system="Be kind").question.messages[0].text == "Be kind"
    assert read(system=blocks).question.messages[0] == Message("system", (Text("Be "), Text("kind")))


def test_turns_of_one_role_in_a_row_are_one() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert read(messages=messages).question.messages == (Message("user", (Text("a"), Text("b"))),)


def test_images_and_documents() -> None:
    content = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
        {"type": "image", "source": {"type": "url", "url": "https://pictures.test/a.png"}},
        {
            "type": "document",
            "title": "Tale",
            "context": "Old",
            "source": {"type": "text", "media_type": "text/plain", "data": "Once"},
        },
        {"type": "document", "source": {"type": "content", "content": "upon"}},
    ]
    parts = read(messages=talk(content)).question.messages[0].parts
    assert parts[:2] == (Image(f"data:image/png;base64,{PIXEL}"), Image("https://pictures.test/a.png"))
    assert "".join(part.text for part in parts[2:] if isinstance(part, Text)) == "Tale\nOld\nOnce\n\nupon\n\n"


def test_results_of_tools_and_their_images() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}}
    seen = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    result = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": [{"type": "text", "text": "broken"}, seen],
        "is_error": True,
    }
    messages = read(messages=talk("Hi", [call], [result, {"type": "text", "text": "Why?"}])).question.messages
    assert messages[1] == Message("assistant", (ToolCall("add", '{"a": 1}', "t1"),))
    assert messages[2] == Message("tool", (ToolResult("t1", "broken", error=True),))
    assert messages[3] == Message("user", (Image(f"data:image/png;base64,{PIXEL}"), Text("Why?")))


def test_a_result_without_its_call_is_refused() -> None:
    result = [{"type": "tool_result", "tool_use_id": "t9", "content": "5"}]
    assert refused(messages=talk(result)).param == "messages[0].content[0].tool_use_id"


def test_a_conversation_must_not_end_with_the_assistant() -> None:
    assert refused(messages=talk("Hi", "I")).param == "messages[1].role"


@pytest.mark.parametrize(
    ("thinking", "budget", "think", "effort"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, 1024, True, ""),
        ({"type": "enabled", "budget_tokens": 4095}, 4095, True, ""),
        ({"type": "adaptive"}, None, None, ""),
        ({"type": "disabled"}, 0, False, "none"),
        ({"type": "between_tools"}, 0, False, "none"),
    ],
)
def test_kinds_of_thinking(thinking: dict[str, Any], budget: int | None, think: bool | None, effort: str) -> None:
    request = read(thinking=thinking)
    assert (request.budget.thinking, request.think, request.effort) == (budget, think, effort)


def test_thinking_between_tools_is_thinking_after_a_result() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "add", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1"}
    assert read(thinking={"type": "between_tools"}, messages=talk("Hi", [call], [result])).think is None


@pytest.mark.parametrize(
    ("tokens", "said"), [(1023, "at least 1024"), (4096, "greater than `thinking.budget_tokens`"), (None, "missing")]
)
def test_budgets_of_thinking_that_anthropic_refuses(tokens: int | None, said: str) -> None:
    refusal = refused(thinking={"type": "enabled", "budget_tokens": tokens})
    assert refusal.param == "thinking.budget_tokens"
    assert said in str(refusal)


@pytest.mark.parametrize("effort", ["low", "medium", "high", "xhigh", "max"])
def test_efforts(effort: str) -> None:
    assert read(output_config={"effort": effort}).effort == effort


def test_shape_and_sampling_and_user() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    request = read(
        output_config={"format": {"type": "json_schema", "schema": schema}},
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        stop_sequences=["END", "\n"],
        metadata={"user_id": "u1"},
        stream=True,
    )
    assert request.shape == Shape("schema", schema)
    assert request.sampling == Sampling(temperature=0.5, top_p=0.9, top_k=40, stop=("END", "\n"))
    assert (request.user, request.stream) == ("u1", True)


@pytest.mark.parametrize(
    ("choice", "read_as"),
    [
        ({"type": "auto"}, ToolChoice("auto")),
        ({"type": "any"}, ToolChoice("required")),
        ({"type": "none"}, ToolChoice("none")),
        ({"type": "tool", "name": "add"}, ToolChoice("named", "add")),
        ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice("required", parallel=False)),
    ],
)
def test_tools_and_the_choice_of_them(choice: dict[str, Any], read_as: ToolChoice) -> None:
    request = read(tools=[TOOL], tool_choice=choice)
    assert request.tool_choice == read_as
    function = {"name": "add", "description": "Adds.", "parameters": TOOL["input_schema"]}
    assert request.question.tools == ({"type": "function", "function": function},)


def test_what_ponder_adds_is_read_here_too() -> None:
    request = anthropic.read(asked(model="m:vote-8"), {"X-Ponder-Deadline": "5"}, "r1", SIGNER)
    assert (request.model, request.strategy, request.deadline) == ("m", "vote(8)", 5.0)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role"),
        ({"messages": talk([{"type": "server_tool_use"}])}, "messages[0].content[0].type"),
        ({"messages": talk([{"type": "thinking", "thinking": "x", "signature": "y"}])}, "messages[0].content[0].type"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "add"}]}, "tools[0].input_schema"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "sub"}}, "tool_choice.name"),
        ({"temperature": 1.5}, "temperature"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"thinking": {"type": "often"}}, "thinking.type"),
        ({"thinking": {"type": "adaptive", "display": "all"}}, "thinking.display"),
        ({"system": 5}, "system"),
    ],
)
def test_what_is_refused_by_name(more: dict[str, Any], param: str) -> None:
    assert refused(**more).param == param


@pytest.mark.parametrize(
    ("source", "param"),
    [
        ({"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="}, "source.type"),
        ({"type": "file", "file_id": "f"}, "source.type"),
    ],
)
def test_documents_that_would_have_to_be_read_first_are_refused(source: dict[str, str], param: str) -> None:
    assert refused(messages=talk([{"type": "document", "source": source}])).param == f"messages[0].content[0].{param}"


def test_counting_needs_no_bound_and_answers_as_anthropic_does() -> None:
    body = {name: value for name, value in asked().items() if name != "max_tokens"}
    assert anthropic.read(body, {}, "r1", SIGNER, counting=True).budget.tokens is None
    assert MessageTokensCount.model_validate(anthropic.counted(12)).input_tokens == 12


# ---------------------------------------------------------------- thinking that comes back


def thought(text: str = "I think", **changed: Any) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": SIGNER.sign("I think", "m", 0), **changed}


def test_thinking_with_our_signature_comes_back() -> None:
    messages = read(messages=talk("Hi", [thought(), {"type": "text", "text": "Yes"}], "Why?")).question.messages
    assert messages[1].parts == (Thinking("I think"), Text("Yes"))


def test_the_suffix_of_a_model_is_no_other_model() -> None:
    assert read(model="m:high", messages=talk("Hi", [thought()], "Why?")).question.messages[1].parts


@pytest.mark.parametrize(
    "block",
    [
        thought("I thought"),
        thought(signature="ponder1.AAAA"),
        thought(signature="ponder9.AAAA"),
        thought(signature=Signer(b"another server's secret").sign("I think", "m", 0)),
        thought(signature=SIGNER.sign("I think", "n", 0)),
        thought(signature=SIGNER.sign("I think", "m", 1)),
        thought(signature=""),
        thought(signature=None),
        thought("", signature=SIGNER.sign("I think", "m", 0)),
    ],
)
def test_thinking_whose_signature_is_wrong_is_refused(block: dict[str, Any]) -> None:
    assert refused(messages=talk("Hi", [block], "Why?")).param == "messages[1].content[0].signature"


def test_blocks_of_one_message_cannot_change_places() -> None:
    first, second = thought(), thought("More", signature=SIGNER.sign("More", "m", 1))
    assert read(messages=talk("Hi", [first, second], "Why?"))
    assert refused(messages=talk("Hi", [second, first], "Why?"))


def test_an_upstreams_thinking_comes_back_untouched() -> None:
    blocks = [thought("It thought", signature="EqQB"), {"type": "redacted_thinking", "data": "Eabc"}]
    parts = read(messages=talk("Hi", blocks, "Why?")).question.messages[1].parts
    assert parts == (SignedThinking("It thought", signature="EqQB"), SignedThinking("", redacted="Eabc"))


@pytest.mark.parametrize(
    "block", [thought("It thought", signature="EqQB"), {"type": "redacted_thinking", "data": "Eabc"}]
)
def test_a_model_of_ponders_own_has_no_thinking_that_others_signed(block: dict[str, Any]) -> None:
    body = asked(messages=talk("Hi", [block], "Why?"))
    with pytest.raises(Refusal, match="Invalid"):
        anthropic.read(body, {}, "r1", SIGNER, upstream=lambda model: model != "m")
    assert anthropic.read(body, {}, "r1", SIGNER, upstream=lambda model: model == "m")


def test_hidden_thinking_of_ours_that_was_changed_is_refused() -> None:
    block = {"type": "redacted_thinking", "data": "ponder1.AAAA"}
    assert refused(messages=talk("Hi", [block], "Why?")).param == "messages[1].content[0].data"


# ---------------------------------------------------------------- anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
WORDS = st.sampled_from(
    (
        "text image document thinking tool_use tool_result redacted_thinking base64 url content enabled adaptive any "
        f"tool add m json_schema search_result ponder1.AA user assistant image/png {PIXEL} https://a.test"
    ).split()
)
VALUES = WORDS | JSON | st.just(5000)


def objects(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names), VALUES, max_size=len(names))


SOURCES = objects("type", "media_type", "data", "url", "content")
BLOCKS = st.builds(
    lambda block, source: {**block, **({"source": source} if source else {})},
    objects("type", "text", "thinking", "signature", "data", "id", "name", "input", "tool_use_id", "content", "title"),
    st.none() | SOURCES,
)
CONTENTS = st.lists(BLOCKS, max_size=3) | VALUES
MESSAGES = st.lists(st.fixed_dictionaries({"role": WORDS, "content": CONTENTS}) | JSON, max_size=3)
CHANGES = {
    **dict.fromkeys(
        [
            "stop_sequences",
            "temperature",
            "metadata",
            "max_tokens",
            "stream",
            "top_k",
            "model",
            "cache_control",
        ],
        VALUES,
    ),
    "messages": MESSAGES | VALUES,
    "system": CONTENTS,
    "thinking": objects("type", "budget_tokens", "display") | VALUES,
    "tools": st.lists(objects("name", "type", "input_schema", "description", "strict"), max_size=2) | VALUES,
    "tool_choice": objects("type", "name", "disable_parallel_tool_use") | VALUES,
    "output_config": objects("effort", "format") | VALUES,
}
CHANGE = st.one_of([st.tuples(st.just(name), value) for name, value in CHANGES.items()])
BODIES = st.lists(CHANGE, max_size=2).map(lambda changes: {**asked(), **dict(changes)})


@given(BODIES | JSON)
def test_any_body_gives_a_request_or_a_refusal(body: Any) -> None:
    data = json.dumps(body).encode()
    try:
        request = anthropic.read(data, {}, "r1", SIGNER)
    except Refusal as refusal:
        told = (refusal.status, bool(str(refusal)))
    else:
        told = (400, bool(request.question.messages))
    assert told == (400, True)

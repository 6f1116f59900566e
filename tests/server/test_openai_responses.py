"""The dialect OpenAI Responses, as the official client sees it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import openai as sdk
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from reply_events import BEGUN, frames_of, reply_of, script, scripts, streamed

from ponder.server import openai_responses as responses
from ponder.server.events import Call, Content, Ended, Reasoning, ReplyEvent, Token, Usage
from ponder.server.failures import Refusal, overloaded
from ponder.server.request import PromptVersion, Request, Sampling, Shape, ToolChoice
from ponder.server.responses_reply import Wire
from ponder.server.responses_store import ResponsesStore
from ponder.server.signatures import SignedThinking, Signer
from ponder.types import Audio, Image, Message, Text, Thinking, ToolCall, ToolResult

SIGNER = Signer(b"a secret of the server")
WIRE = Wire(SIGNER, created=1700000000, echo={"tools": [], "tool_choice": "auto", "parallel_tool_calls": True})
few = settings(max_examples=40)  # each goes through a client
EVENTS: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": True}


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "m", "input": "Hi", **more}


def read(previous: Sequence[Any] | None = None, **more: Any) -> Request:
    return responses.read(json.dumps(asked(**more)).encode(), {}, "resp_1", previous, SIGNER)


def refused(**more: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(**more)
    assert (caught.value.status, caught.value.kind) == (400, "invalid_request_error")
    return caught.value


def sent(events: Sequence[ReplyEvent | Exception], request: Request | None = None, wire: Wire = WIRE) -> list[Any]:
    """The events of a stream, each as the official client's types want it."""
    request = request or read(stream=True)
    frames = frames_of(streamed(events, lambda incoming: responses.stream(request, incoming, wire)))
    for number, (name, data) in enumerate(frames):
        assert (data["type"], data["sequence_number"]) == (name, number)
        EVENTS.validate_python(data)
    return [data for _, data in frames]


def whole(events: Sequence[ReplyEvent], request: Request | None = None, wire: Wire = WIRE) -> dict[str, Any]:
    document = responses.whole(request or read(), reply_of(events), wire)
    Response.model_validate_json(json.dumps(document))
    return document


class Served:
    """One official client, whose server answers every request with what it was given last."""

    def __init__(self) -> None:
        self.answer = httpx2.Response(200)
        http = httpx2.Client(transport=httpx2.MockTransport(lambda request: self.answer))
        self.api = sdk.OpenAI(api_key="k", base_url="http://ponder.test/v1", http_client=http, max_retries=0)


SERVED = Served()


def client(data: bytes, kind: str = "text/event-stream") -> sdk.OpenAI:
    SERVED.answer = httpx2.Response(200, content=data, headers={"content-type": kind})
    return SERVED.api


def stream_of(events: Sequence[ReplyEvent], request: Request | None = None, wire: Wire = WIRE) -> bytes:
    request = request or read(stream=True)
    return streamed(events, lambda incoming: responses.stream(request, incoming, wire))


def assembled(frames: list[Any]) -> list[dict[str, Any]]:
    """The output that the deltas of a stream add up to, the events of items alone left aside."""
    items: dict[int, dict[str, Any]] = {}
    for frame in frames:
        kind = frame["type"]
        if kind == "response.output_item.added":
            items[frame["output_index"]] = {**frame["item"], "text": "", "summary_text": "", "logprobs": []}
        elif kind == "response.reasoning_summary_text.delta":
            items[frame["output_index"]]["summary_text"] += frame["delta"]
        elif kind.endswith(".delta"):
            items[frame["output_index"]]["text"] += frame["delta"]
            items[frame["output_index"]]["logprobs"] += frame.get("logprobs", [])
    return [items[number] for number in sorted(items)]


# ---------------------------------------------------------------- replies


@few
@given(scripts(), st.booleans(), st.booleans())
def test_the_deltas_the_items_and_the_last_event_tell_the_whole(
    events: list[ReplyEvent], summary: bool, encrypted: bool
) -> None:
    wire = Wire(SIGNER, 1700000000, summary, encrypted, WIRE.echo)
    request = read(stream=True, include=["message.output_text.logprobs"], top_logprobs=1)
    document = whole(events, request, wire)
    frames = sent(events, request, wire)
    assert frames[-1]["response"] == document
    done = [frame["item"] for frame in frames if frame["type"] == "response.output_item.done"]
    assert done == document["output"]
    for item, told in zip(assembled(frames), document["output"], strict=True):
        assert (item["id"], item["type"]) == (told["id"], told["type"])
        if told["type"] == "function_call":
            assert (item["text"], item["call_id"], item["name"]) == (told["arguments"], told["call_id"], told["name"])
        else:
            assert item["text"] == "".join(part["text"] for part in told["content"])
        if told["type"] == "message":
            assert item["logprobs"] == told["content"][0]["logprobs"]
        if told["type"] == "reasoning":
            assert item["summary_text"] == "".join(part["text"] for part in told["summary"])


@few
@given(scripts())
def test_the_official_client_accumulates_any_stream(events: list[ReplyEvent]) -> None:
    kinds = []
    with client(stream_of(events)).responses.stream(model="m", input="Hi") as stream:
        for event in stream:
            kinds.append(event.type)
    document = whole(events)
    assert kinds[0] == "response.created"
    assert kinds[-1] == f"response.{document['status']}"
    if document["status"] == "completed":
        final = stream.get_final_response()
        said = "".join(event.text for event in events if isinstance(event, Content))
        assert final.output_text == said
        assert [item.id for item in final.output] == [item["id"] for item in document["output"]]


@few
@given(scripts())
def test_nothing_that_was_told_is_lost(events: list[ReplyEvent]) -> None:
    output = whole(events)["output"]
    texts = {"reasoning": "", "message": ""}
    for item in output:
        if item["type"] in texts:
            texts[item["type"]] += "".join(part["text"] for part in item["content"])
    assert texts["reasoning"] == "".join(event.text for event in events if isinstance(event, Reasoning))
    assert texts["message"] == "".join(event.text for event in events if isinstance(event, Content))
    calls = {event.number for event in events if isinstance(event, Call)}
    assert sum(item["type"] == "function_call" for item in output) == len(calls)


def test_the_events_of_an_answer_after_thinking() -> None:
    frames = sent(script(Reasoning("Hm"), Content("He"), Content("llo")))
    assert [frame["type"].removeprefix("response.") for frame in frames] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


def test_a_summary_is_told_only_where_one_was_asked_for() -> None:
    events = script(Reasoning("Hm"), Content("Hello"))
    wire = responses.wire_of(asked(reasoning={"summary": "auto"}), SIGNER, 1700000000.5)
    kinds = [frame["type"] for frame in sent(events, wire=wire)]
    for kind in ("part.added", "text.delta", "text.done", "part.done"):
        assert kinds.count(f"response.reasoning_summary_{kind}") == 1
    assert whole(events, wire=wire)["output"][0]["summary"] == [{"type": "summary_text", "text": "Hm"}]
    assert whole(events)["output"][0]["summary"] == []
    assert not any("summary" in frame["type"] for frame in sent(events))


def test_a_reply_that_was_cut_is_not_completed() -> None:
    events = script(Reasoning("Hm"), Content("Hel"), reason="length")
    document = whole(events)
    assert (document["status"], document["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in document["output"]] == ["completed", "incomplete"]
    assert sent(events)[-1]["type"] == "response.incomplete"


@pytest.mark.parametrize(
    ("reason", "status", "why"),
    [("stop", "completed", None), ("tool_calls", "completed", None), ("refusal", "incomplete", "content_filter")],
)
def test_how_it_ended(reason: Any, status: str, why: str | None) -> None:
    document = whole(script(Content("Hi"), reason=reason))
    assert document["status"] == status
    assert document["incomplete_details"] == (None if why is None else {"reason": why})


def test_a_reply_that_never_ended_is_incomplete() -> None:
    assert whole([BEGUN, Content("Hi")])["status"] == "incomplete"
    assert sent([BEGUN, Content("Hi")])[-1]["type"] == "response.incomplete"


def test_usage_has_the_details_that_clients_require() -> None:
    usage = whole(script(Content("Hi")))["usage"]
    del usage["ponder"]
    assert usage == {
        "input_tokens": 30,
        "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 0},
        "output_tokens": 50,
        "output_tokens_details": {"reasoning_tokens": 20},
        "total_tokens": 80,
    }


def test_other_choices_do_not_show_and_are_counted() -> None:
    events = [BEGUN, Content("Hi"), Content("Ho", choice=1), Ended(), Ended(choice=1), Usage(5, 0, 16)]
    document = whole(events)
    assert Response.model_validate(document).output_text == "Hi"
    assert document["usage"]["output_tokens"] == 16


def test_parallel_calls_are_items_of_their_own_however_their_pieces_come() -> None:
    pieces = [Call('{"a"', 0, "c0", "add"), Call('{"b"', 1, "c1", "sub"), Call(": 1}", 0), Call(": 2}", 1)]
    events = script(*pieces, reason="tool_calls")
    with client(stream_of(events)).responses.stream(model="m", input="Hi") as stream:
        output = stream.get_final_response().output
    assert [(item.call_id, item.name, item.arguments) for item in output if item.type == "function_call"] == [
        ("c0", "add", '{"a": 1}'),
        ("c1", "sub", '{"b": 2}'),
    ]


def test_log_probabilities_come_where_they_are_asked_for() -> None:
    tokens = (Token("Hi", -0.5, top=(Token("Hi", -0.5), Token("Ho", -1.5), Token("x", float("nan")))),)
    events = script(Content("Hi", tokens=tokens))
    request = read(include=["message.output_text.logprobs"], top_logprobs=2)
    logprobs = whole(events, request)["output"][0]["content"][0]["logprobs"]
    assert [(each["token"], each["logprob"]) for each in logprobs] == [("Hi", -0.5)]
    assert [each["token"] for each in logprobs[0]["top_logprobs"]] == ["Hi", "Ho"]
    assert whole(events)["output"][0]["content"][0]["logprobs"] == []


def test_the_official_client_parses_an_answer_of_a_schema() -> None:
    class Sum(pydantic.BaseModel):
        total: int

    document = json.dumps(whole(script(Reasoning("2 and 3"), Content('{"total": 5}')))).encode()
    response = client(document, "application/json").responses.parse(model="m", input="Hi", text_format=Sum)
    assert response.output_parsed == Sum(total=5)
    with client(stream_of(script(Content('{"total": 6}')))).responses.stream(
        model="m", input="Hi", text_format=Sum
    ) as stream:
        assert stream.get_final_response().output_parsed == Sum(total=6)


def test_the_official_async_client_reads_the_same() -> None:
    data = stream_of(script(Reasoning("Hm"), Content("Hel"), Content("lo")))

    async def pieces() -> AsyncIterator[bytes]:
        for byte in range(0, len(data), 11):
            yield data[byte : byte + 11]

    async def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=pieces(), headers={"content-type": "text/event-stream"})

    async def run() -> str:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
        api = sdk.AsyncOpenAI(api_key="k", base_url="http://ponder.test/v1", http_client=http, max_retries=0)
        async with api, api.responses.stream(model="m", input="Hi") as stream:
            return (await stream.get_final_response()).output_text

    assert asyncio.run(run()) == "Hello"


def test_the_response_repeats_what_was_asked() -> None:
    body = asked(
        instructions="Be kind",
        tools=[TOOL],
        tool_choice={"type": "function", "name": "add"},
        reasoning={"effort": "low", "summary": "concise"},
        text={"format": {"type": "json_object"}},
        metadata={"a": "b"},
        max_output_tokens=99,
        temperature=0.5,
        truncation="auto",
        parallel_tool_calls=False,
        include=["reasoning.encrypted_content"],
    )
    request = responses.read(body, {}, "r1", None, SIGNER)
    document = whole(script(Content("{}")), request, responses.wire_of(body, SIGNER, 1700000000.9))
    response = Response.model_validate(document)
    assert (response.id, response.created_at, response.instructions) == ("resp_r1", 1700000000, "Be kind")
    assert (response.max_output_tokens, response.temperature) == (99, 0.5)
    assert response.metadata == {"a": "b"}
    assert response.reasoning is not None
    assert (response.reasoning.effort, response.reasoning.summary) == ("low", "concise")
    assert response.tools[0].to_dict()["name"] == "add"
    assert response.truncation == "disabled", "nothing is left out of a prompt here"
    assert not response.parallel_tool_calls


# ---------------------------------------------------------------- failures


def test_a_failure_before_the_first_event_is_raised() -> None:
    with pytest.raises(Refusal, match="busy"):
        sent([overloaded("it is busy", 1.0)])


def test_a_failure_in_mid_stream_is_a_failed_response_and_the_last_event() -> None:
    last = sent([BEGUN, Content("Hi"), overloaded("it is busy", 1.0)])[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "it is busy. ask again later."}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_a_fault_of_ours_says_nothing_of_itself_and_reaches_the_log() -> None:
    seen: list[bytes] = []

    async def run() -> None:
        async def events() -> AsyncIterator[ReplyEvent]:
            yield BEGUN
            raise KeyError("/etc/secret")

        async for frame in responses.stream(read(), events(), WIRE):
            seen.append(frame)

    with pytest.raises(KeyError):
        asyncio.run(run())
    assert b"response.failed" in seen[-1]
    assert b"secret" not in b"".join(seen)


# ---------------------------------------------------------------- requests


def test_the_least_request_is_kept() -> None:
    request = read()
    assert request.question.messages == (Message("user", (Text("Hi"),)),)
    assert (request.model, request.store, request.stream, request.dialect) == ("m", True, False, "responses")
    assert (request.think, request.effort, request.budget.tokens) == (None, "", None)
    assert not read(store=False).store


def test_instructions_and_roles() -> None:
    messages = [{"role": role, "content": role} for role in ("developer", "system", "user", "assistant", "user")]
    read_as = read(instructions="first", input=messages).question.messages
    assert [message.role for message in read_as] == ["system", "system", "system", "user", "assistant", "user"]
    assert [message.text for message in read_as][:2] == ["first", "developer"]


def test_parts_of_a_message() -> None:
    note = "data:text/plain;base64," + base64.b64encode(b"a note").decode()
    content = [
        {"type": "input_text", "text": "See"},
        {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
        {"type": "input_image", "image_url": "https://pictures.test/a.png"},
        {"type": "input_file", "filename": "note.txt", "file_data": note},
        {"type": "input_file", "file_data": PIXEL},
        {"type": "input_audio", "input_audio": {"format": "wav", "data": "AAAA"}},
    ]
    assert read(input=[{"role": "user", "content": content}]).question.messages[0].parts == (
        Text("See"),
        Image(PIXEL),
        Image("https://pictures.test/a.png"),
        Text("note.txt\na note\n\n"),
        Image(PIXEL),
        Audio("data:audio/wav;base64,AAAA"),
    )


def test_the_items_of_one_turn_are_one_message() -> None:
    items = [
        {"role": "user", "content": "2+3, 4+5?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Add."}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Let me", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c0", "name": "add", "arguments": '{"a": 2}'},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 4}'},
        {"type": "function_call_output", "call_id": "c0", "output": "5"},
        {
            "type": "function_call_output",
            "call_id": "c1",
            "output": [{"type": "input_text", "text": "9"}, {"type": "input_image", "image_url": PIXEL}],
        },
    ]
    assert read(input=items).question.messages[1:] == (
        Message(
            "assistant",
            (Thinking("Add."), Text("Let me"), ToolCall("add", '{"a": 2}', "c0"), ToolCall("add", '{"a": 4}', "c1")),
        ),
        Message("tool", (ToolResult("c0", "5"), ToolResult("c1", "9"))),
        Message("user", (Image(PIXEL),)),
    )


def test_an_output_without_its_call_is_refused() -> None:
    output = {"type": "function_call_output", "call_id": "c9", "output": "5"}
    assert refused(input=[output]).param == "input[0].call_id"


@pytest.mark.parametrize("effort", ["minimal", "low", "medium", "high", "xhigh", "max"])
def test_efforts(effort: str) -> None:
    request = read(reasoning={"effort": effort})
    assert (request.effort, request.think) == (effort, True)


def test_no_effort_is_no_thinking() -> None:
    request = read(reasoning={"effort": "none"})
    assert (request.effort, request.think, request.budget.thinking) == ("none", False, 0)


def test_settings() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    request = read(
        max_output_tokens=50,
        temperature=1.5,
        top_p=0.5,
        text={"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}, "verbosity": "medium"},
        metadata={"a": "b"},
        safety_identifier="u1",
        top_logprobs=3,
        prompt={"id": "support", "version": "3", "variables": {"name": "Ann"}},
        stream=True,
    )
    assert request.budget.tokens == 50
    assert request.sampling == Sampling(temperature=1.5, top_p=0.5, logprobs=3)
    assert request.shape == Shape("schema", schema, "a")
    assert (request.metadata, request.user, request.stream) == ({"a": "b"}, "u1", True)
    assert (request.prompt, request.variables) == (PromptVersion("support", 3), {"name": "Ann"})


@pytest.mark.parametrize(
    ("choice", "read_as", "left"),
    [
        ("auto", ToolChoice("auto"), 2),
        ("none", ToolChoice("none"), 2),
        ("required", ToolChoice("required"), 2),
        ({"type": "function", "name": "add"}, ToolChoice("named", "add"), 2),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "sub"}]},
            ToolChoice("required"),
            1,
        ),
    ],
)
def test_tools_and_the_choice_of_them(choice: Any, read_as: ToolChoice, left: int) -> None:
    request = read(tools=[TOOL, {**TOOL, "name": "sub"}], tool_choice=choice)
    assert request.tool_choice == read_as
    assert len(request.question.tools) == left
    assert read(tools=[TOOL], parallel_tool_calls=False).tool_choice == ToolChoice(parallel=False)
    function = {"name": "add", "parameters": TOOL["parameters"], "strict": True}
    assert read(tools=[TOOL]).question.tools == ({"type": "function", "function": function},)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"model": None}, "model"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"n": 2}, "n"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}]},
            "input[0].content[0].image_url",
        ),
        ({"input": [{"type": "item_reference", "id": "msg_9"}]}, "input[0].id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "sub"}}, "tool_choice.name"),
        ({"include": ["everything"]}, "include[0]"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"truncation": "some"}, "truncation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"previous_response_id": "resp_0"}, "previous_response_id"),
    ],
)
def test_what_is_refused_by_name(more: dict[str, Any], param: str) -> None:
    assert refused(**more).param == param


def test_background_that_is_off_and_nulls_are_left_out() -> None:
    assert read(background=False, conversation=None, n=None, instructions=None)


# ---------------------------------------------------------------- conversations


def kept(store: ResponsesStore, body: dict[str, Any], id: str, events: list[ReplyEvent]) -> tuple[Request, Any]:
    """What a server does with a request: reads it, answers it, keeps both. The request, and the response as sent."""
    previous = responses.previous_id(body)
    chain = None if previous is None else store.chain(previous, "k")
    request = responses.read(body, {}, id, chain, SIGNER)
    wire = responses.wire_of(body, SIGNER, 1700000000)
    reply = reply_of(events)
    document = responses.whole(request, reply, wire)
    inputs = responses.input_items(body, id, chain, SIGNER)
    assert store.put(document, inputs, responses.outputs(request, reply, wire), "k")
    return request, document


def test_a_conversation_goes_on_from_what_was_kept(tmp_path: Path) -> None:
    call = Call('{"a": 2}', 0, "c0", "add")
    with ResponsesStore.open(tmp_path / "r.db") as store:
        first = asked(input="2+3?", instructions="Be brief", tools=[TOOL])
        kept(store, first, "r1", script(Reasoning("Add."), call, reason="tool_calls"))
        output = {"type": "function_call_output", "call_id": "c0", "output": "5"}
        kept(store, asked(input=[output], previous_response_id="resp_r1"), "r2", script(Content("It is 5.")))
        request, document = kept(
            store, asked(input="Sure?", previous_response_id="resp_r2"), "r3", script(Content("Yes"))
        )
        assert store.get("resp_r3", "k") == document
        listed = store.input_items("resp_r2", "k")
    assert request.question.messages == (
        Message("user", (Text("2+3?"),)),
        Message("assistant", (Thinking("Add."), ToolCall("add", '{"a": 2}', "c0"))),
        Message("tool", (ToolResult("c0", "5"),)),
        Message("assistant", (Text("It is 5."),)),
        Message("user", (Text("Sure?"),)),
    )
    assert document["previous_response_id"] == "resp_r2"
    assert ResponseItemList.model_validate(listed).data[0].to_dict()["output"] == "5"


def test_an_upstreams_signature_is_kept_and_not_shown(tmp_path: Path) -> None:
    events = script(Reasoning("Hm", signature="EqQB"), Reasoning("", redacted="Eabc"), Content("Hi"))
    with ResponsesStore.open(tmp_path / "r.db") as store:
        _, document = kept(store, asked(), "r1", events)
        assert "encrypted_content" not in json.dumps(document)
        request, _ = kept(store, asked(previous_response_id="resp_r1"), "r2", script(Content("Yes")))
        other, _ = kept(store, asked(model="n", previous_response_id="resp_r1"), "r3", script(Content("Yes")))
    thought = (SignedThinking("Hm", signature="EqQB"), SignedThinking("", redacted="Eabc"))
    assert request.question.messages[1].parts == (*thought, Text("Hi"))
    assert other.question.messages[1].parts == (Thinking("Hm"), Text("Hi"))


def test_items_without_a_store_go_back_and_forth_sealed() -> None:
    wire = responses.wire_of(asked(include=["reasoning.encrypted_content"], store=False), SIGNER, 0)
    output = whole(script(Reasoning("Hm", signature="EqQB"), Content("Hi")), wire=wire)["output"]
    del output[0]["content"]  # as clients do which replay the sealed thinking alone
    items = [{"role": "user", "content": "Hi"}, *output, {"role": "user", "content": "And?"}]
    parts = read(input=items, store=False).question.messages[1].parts
    assert parts == (SignedThinking("Hm", signature="EqQB"), Text("Hi"))


def test_sealed_thinking_that_was_changed_is_refused() -> None:
    sealed = Signer(b"another server's secret").seal(Thinking("Hm"), "m")
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed}
    assert refused(input=[item, {"role": "user", "content": "Hi"}]).param == "input[0].encrypted_content"


def test_an_upstreams_own_sealed_thinking_passes_through() -> None:
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAB"}
    parts = read(input=[item, {"role": "user", "content": "Hi"}]).question.messages[0].parts
    assert parts == (SignedThinking("", redacted="gAAAAB"),)


def test_an_item_can_be_named_by_its_id(tmp_path: Path) -> None:
    with ResponsesStore.open(tmp_path / "r.db") as store:
        _, document = kept(store, asked(), "r1", script(Content("Hello")))
        chain = store.chain("resp_r1", "k")
    reference = {"type": "item_reference", "id": document["output"][0]["id"]}
    request = read(chain, input=[reference, {"role": "user", "content": "What?"}], previous_response_id="resp_r1")
    assert [message.text for message in request.question.messages] == ["Hi", "HelloHello", "What?"]


@few
@given(scripts())
def test_the_official_client_sends_back_what_it_got(events: list[ReplyEvent]) -> None:
    response = Response.model_validate(whole(events))
    back = [json.loads(json.dumps(item.to_dict())) for item in response.output]
    request = read(input=[{"role": "user", "content": "Hi"}, *back])
    parts = [part for message in request.question.messages[1:] for part in message.parts]
    said = "".join(part.text for part in parts if isinstance(part, Text))
    thought = "".join(part.text for part in parts if isinstance(part, Thinking))
    assert said == "".join(event.text for event in events if isinstance(event, Content))
    assert thought == "".join(event.text for event in events if isinstance(event, Reasoning))


# ---------------------------------------------------------------- anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
WORDS = st.sampled_from(
    (
        "message function_call function_call_output reasoning item_reference input_text input_image input_file refusal "
        "input_audio output_text user assistant system function allowed_tools required add json_schema low ponder1.AA "
        f"wav AAAA data:text/plain;base64,/w== {PIXEL} https://a.test reasoning.encrypted_content"
    ).split()
)
VALUES = WORDS | JSON


def objects(*names: str, **nested: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={**dict.fromkeys(names, VALUES), **nested})


PARTS = objects("type", "text", "image_url", "file_data", "filename", "refusal", input_audio=objects("format", "data"))
ITEMS = objects(
    *("type", "role", "id", "call_id", "name", "arguments", "summary", "encrypted_content"),
    content=st.lists(PARTS, max_size=2) | VALUES,
    output=st.lists(PARTS, max_size=2) | VALUES,
)
CHANGES = {
    **dict.fromkeys(
        [
            "instructions",
            "max_output_tokens",
            "store",
            "include",
            "stream",
            "metadata",
            "top_logprobs",
            "truncation",
            "prompt",
            "user",
            "background",
            "parallel_tool_calls",
            "max_tool_calls",
            "temperature",
        ],
        VALUES,
    ),
    "input": st.lists(ITEMS | JSON, max_size=3) | VALUES,
    "reasoning": objects("effort", "summary") | VALUES,
    "text": objects("verbosity", format=objects("type", "name", "schema")) | VALUES,
    "tools": st.lists(objects("type", "name", "parameters", "strict"), max_size=2) | VALUES,
    "tool_choice": objects("type", "name", "mode", "tools") | VALUES,
}
CHANGE = st.one_of([st.tuples(st.just(name), value) for name, value in CHANGES.items()])
BODIES = st.lists(CHANGE, max_size=2).map(lambda changes: {**asked(), **dict(changes)})


@given(BODIES | JSON)
def test_any_body_gives_a_request_or_a_refusal(body: Any) -> None:
    data = json.dumps(body).encode()
    try:
        request = responses.read(data, {}, "r1", None, SIGNER)
    except Refusal as refusal:
        told = (refusal.status, bool(str(refusal)))
    else:
        assert responses.input_items(data, "r1", None, SIGNER)
        document = whole(script(Content("Hi")), request, responses.wire_of(data, SIGNER, 0))
        told = (400, document["status"] == "completed")
    assert told == (400, True)

"""Messages, tools and shapes as OpenAI's clients send them."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from ponder.chat.template import CHATML, ChatTemplate
from ponder.server.failures import Refusal
from ponder.server.json_body import Fields
from ponder.server.openai_messages import messages_of, shape_of, tool_choice_of, tools_of
from ponder.server.request import Shape, ToolChoice
from ponder.types import Audio, Image, Message, Text, Thinking, ToolCall, ToolResult, system

PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()


def messages(*given: dict[str, Any]) -> tuple[Message, ...]:
    return messages_of(Fields({"messages": list(given)}))


def test_a_conversation_with_everything_in_it() -> None:
    wav = base64.b64encode(b"RIFF").decode()
    read = messages(
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {
            "role": "user",
            "name": "ada",
            "content": [
                {"type": "text", "text": "What?", "cache_control": {"type": "ephemeral"}},
                {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
                {"type": "image_url", "image_url": "https://example.com/a.png"},
                {"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}},
                {"type": "file", "file": {"filename": "a.txt", "file_data": "data:text/plain;base64,aGVsbG8="}},
                {"type": "file", "file": {"file_data": PIXEL}},
                {"type": "file", "file": {"file_data": f"data:audio/wav;base64,{wav}"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "I need the time.",
            "refusal": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"zone":"UTC"}'}},
                {"id": "c2", "type": "function", "function": {"name": "clock", "arguments": {"zone": "CET"}}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
        {
            "role": "tool",
            "tool_call_id": "c2",
            "content": [{"type": "text", "text": "13:"}, {"type": "text", "text": "00"}],
        },
        {"role": "assistant", "content": "Noon.", "annotations": [], "audio": None, "ponder": {"seen": 1}},
    )
    assert read == (
        system("Be brief."),
        system("Be kind."),
        Message(
            "user",
            (
                Text("What?"),
                Image(PIXEL),
                Image("https://example.com/a.png"),
                Audio(f"data:audio/wav;base64,{wav}"),
                Text("hello"),
                Image(PIXEL),
                Audio(f"data:audio/wav;base64,{wav}"),
            ),
        ),
        Message(
            "assistant",
            (
                Thinking("I need the time."),
                ToolCall("clock", '{"zone":"UTC"}', "c1"),
                ToolCall("clock", '{"zone": "CET"}', "c2"),
            ),
        ),
        Message("tool", (ToolResult("c1", "12:00"),)),
        Message("tool", (ToolResult("c2", "13:00"),)),
        Message("assistant", (Text("Noon."),)),
    )
    text = ChatTemplate(CHATML).render([message for message in read if message.role != "user"])
    assert "12:00" in text


@pytest.mark.parametrize(
    "said",
    [
        {"reasoning_content": "Hm.", "content": "Yes."},
        {"reasoning": "Hm.", "content": "Yes."},
        {"reasoning": "Hm.", "reasoning_content": "Hm.", "content": "Yes."},
        {"reasoning_details": [{"type": "reasoning.text", "text": "Hm."}], "content": "Yes."},
        {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Yes."}]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                {"type": "text", "text": "Yes."},
            ]
        },
    ],
)
def test_earlier_thinking_is_kept_whatever_it_is_called(said: dict[str, Any]) -> None:
    assert messages({"role": "assistant", **said}) == (Message("assistant", (Thinking("Hm."), Text("Yes."))),)


def test_a_refusal_is_what_was_said() -> None:
    assert messages({"role": "assistant", "refusal": "No."})[0].text == "No."
    assert messages({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]})[0].text == "No."


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({}, "role"),
        ({"role": "wizard", "content": "x"}, "role"),
        ({"role": "function", "content": "x"}, "role"),
        ({"role": "user"}, "content"),
        ({"role": "user", "content": 5}, "content"),
        ({"role": "user", "content": ["x"]}, "content[0]"),
        ({"role": "system", "content": [{"type": "image_url", "image_url": PIXEL}]}, "content[0].type"),
        ({"role": "assistant"}, "content"),
        ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "function_call"),
        ({"role": "assistant", "tool_calls": [{"type": "custom"}]}, "tool_calls[0].type"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "tool_calls[0].function.name"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]},
            "tool_calls[0].function.arguments",
        ),
        ({"role": "tool", "content": "x"}, "tool_call_id"),
    ],
)
def test_refuses_messages_by_path(message: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as caught:
        messages({"role": "user", "content": "hi"}, message)
    assert (caught.value.status, caught.value.param) == (400, f"messages[1].{param}")


@pytest.mark.parametrize(
    ("kind", "value", "where"),
    [
        ("text", None, ".text"),
        ("image_url", None, ".image_url"),
        ("image_url", {}, ".image_url.url"),
        ("image_url", "file:///etc/passwd", ".image_url"),
        ("image_url", "data:text/html;base64,eA==", ".image_url"),
        ("image_url", "data:image/png;base64,%%", ".image_url"),
        ("image_url", "data:image/png,x", ".image_url"),
        ("input_audio", {"data": "?", "format": "wav"}, ".input_audio.data"),
        ("input_audio", {"data": "eA==", "format": "a/b"}, ".input_audio.format"),
        ("audio_url", PIXEL, ".audio_url"),
        ("file", {"file_id": "f1"}, ".file.file_id"),
        ("file", {"file_data": "data:application/pdf;base64,eA=="}, ".file.file_data"),
        ("file", {"file_data": "data:text/plain;base64,/w=="}, ".file.file_data"),
        ("video_url", "https://example.com/a.mp4", ".type"),
        ("", "x", ".type"),
    ],
)
def test_refuses_parts_by_path(kind: str, value: Any, where: str) -> None:
    with pytest.raises(Refusal) as caught:
        messages({"role": "user", "content": [{"type": kind, kind: value}]})
    assert (caught.value.status, caught.value.param) == (400, f"messages[0].content[0]{where}")


TOOLS = [
    {"type": "function", "function": {"name": "clock", "description": "Tells the time.", "strict": True,
                                      "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}},
    {"type": "function", "function": {"name": "sum", "strict": None}},
]  # fmt: skip


def chosen(choice: Any, **more: Any) -> tuple[ToolChoice, list[str]]:
    body = Fields({"tools": TOOLS, "tool_choice": choice, **more})
    found, left = tool_choice_of(body, tools_of(body))
    return found, [tool["function"]["name"] for tool in left]


def test_tools_have_the_form_that_templates_know() -> None:
    tools = tools_of(Fields({"tools": TOOLS}))
    assert tools[0] == {**TOOLS[0], "function": dict(TOOLS[0]["function"])}  # type: ignore[call-overload]
    assert tools[1]["function"] == {"name": "sum", "parameters": {"type": "object", "properties": {}}}
    assert tools_of(Fields({})) == ()


def test_every_form_of_a_choice_of_tools() -> None:
    both = ["clock", "sum"]
    assert chosen(None) == chosen("auto") == (ToolChoice(), both)
    assert chosen("none") == (ToolChoice("none"), both)
    assert chosen("required") == chosen("any") == (ToolChoice("required"), both)
    assert chosen("auto", parallel_tool_calls=False) == (ToolChoice(parallel=False), both)
    named = {"type": "function", "function": {"name": "sum"}}
    assert chosen(named) == (ToolChoice("named", "sum"), both)
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    assert chosen(allowed) == (ToolChoice("required"), ["sum"])
    allowed["allowed_tools"]["mode"] = "auto"  # type: ignore[index]
    assert chosen(allowed) == (ToolChoice("auto"), ["sum"])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice.function.name"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": []}}},
            "tool_choice.allowed_tools.tools",
        ),
    ],
)
def test_refuses_tools_by_path(body: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as caught:
        tool_choice_of(Fields(body), tools_of(Fields(body)))
    assert caught.value.param == param


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("wanted", "shape"),
    [
        (None, Shape()),
        ({"type": "text"}, Shape()),
        ({"type": "json_object"}, Shape("json")),
        ({"type": "json_object", "schema": SCHEMA}, Shape("schema", SCHEMA)),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, Shape("schema", SCHEMA, "x")),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
            Shape("schema", SCHEMA, "x"),
        ),
    ],
)
def test_shapes(wanted: Any, shape: Shape) -> None:
    assert shape_of(Fields({"response_format": wanted})) == shape


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({}, "response_format.type"),
        ({"type": "grammar"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": True}}, "response_format.json_schema.schema"),
    ],
)
def test_refuses_shapes_by_path(wanted: Any, param: str) -> None:
    with pytest.raises(Refusal) as caught:
        shape_of(Fields({"response_format": wanted}))
    assert caught.value.param == param

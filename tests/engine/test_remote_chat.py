"""The remote engine and chat completions."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import faults
import servers
from remote_helpers import CAP, PROMPT, TOKEN_KINDS, chatted, drain, failing, finishes, text_of, with_engine

from ponder.engine.remote import RemoteEngine
from ponder.engine.remote_chat import message_dicts
from ponder.errors import (
    GarbledReply,
    Unsupported,
)
from ponder.protocols import SamplingParams
from ponder.types import Audio, Image, Message, Text, Thinking, ToolCall, ToolResult, Video, assistant, system, user


def test_chat_gives_thinking_and_answer_apart() -> None:
    for name in ("reasoning_content", "reasoning"):
        server = servers.FakeServer(("It is 4.",), thinking="two and two", thinking_field=name)
        chunks = chatted(server)
        assert "".join(chunk.thinking for chunk in chunks) == "two and two"
        assert text_of(chunks, 0) == "It is 4."
        last = chunks[-1]
        assert (last.finish, last.completion_tokens, last.thinking_tokens) == ("stop", 6, 3)
        assert (last.prompt_tokens, last.prompt_cached) == (7, 3)
        assert server.asked[0].body["messages"] == [{"role": "user", "content": "hi"}]


def test_chat_works_on_the_token_kinds_too() -> None:
    for fake in TOKEN_KINDS[:3]:
        server = fake(("a b", "c"))
        chunks = chatted(server, 2, think=False)
        assert [text_of(chunks, i) for i in range(2)] == ["a b", "c"]
        assert server.asked[0].body["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
        assert server.asked[0].path == "/v1/chat/completions"


def test_three_replies_share_one_request_and_its_count() -> None:
    server = servers.FakeServer(("a b c", "d e", "f"))
    chunks = chatted(server, 3)
    assert [text_of(chunks, i) for i in range(3)] == ["a b c", "d e", "f"]
    ends = [chunk for chunk in chunks if chunk.finish]
    assert sorted(chunk.index for chunk in ends) == [0, 1, 2]
    assert sum(chunk.completion_tokens or 0 for chunk in ends) == 6
    assert [chunk.prompt_tokens for chunk in ends].count(7) == 1
    assert server.asked[0].body["n"] == 3


def test_usage_that_counts_too_little_is_not_believed() -> None:
    def one_reply(event: dict[str, Any]) -> None:
        if event["usage"]:
            event["usage"]["completion_tokens"] = 2

    ends = [c for c in chatted(servers.FakeServer(("a b c",), faults=[faults.edit(one_reply)]), 3) if c.finish]
    assert sum(chunk.completion_tokens or 0 for chunk in ends) == 9


def test_usage_that_counts_more_than_was_seen_is_believed() -> None:
    def hidden(event: dict[str, Any]) -> None:
        if event["usage"]:
            event["usage"]["completion_tokens"] = 500

    ends = [c for c in chatted(servers.FakeServer(faults=[faults.edit(hidden)]), 2) if c.finish]
    assert sum(chunk.completion_tokens or 0 for chunk in ends) == 500


def test_without_usage_each_delta_counts_one() -> None:
    last = chatted(servers.FakeServer(("a b c",), faults=[lambda steps: [*steps[:-2], faults.DONE]]))[-1]
    assert (last.completion_tokens, last.prompt_tokens, last.thinking_tokens) == (3, None, None)


@pytest.mark.parametrize("how", [{"ignores_n": True}, {"refuses": ["n"]}])
def test_a_server_that_gives_one_reply_is_asked_again(how: dict[str, Any]) -> None:
    server = servers.FakeServer(("same",), **how)
    chunks = chatted(server, 3, replace(CAP, seed=1))
    assert [text_of(chunks, i) for i in range(3)] == ["same"] * 3
    assert all(finishes(chunks, i) == ["stop"] for i in range(3))
    seeds = [request.body["seed"] for request in server.asked if request.body.get("n", 1) == 1 or server.ignores_n]
    assert seeds == [1, 2, 3]


def test_optional_fields_that_a_server_refuses_are_left_out_and_stay_out() -> None:
    class Picky(servers.FakeServer):
        def _reply(self, request: servers.Request) -> Any:
            for name in ("max_completion_tokens", "stream_options"):
                if name in (request.body or {}):
                    self.asked.append(request)
                    return faults.Plain(400, json.dumps({"error": {"message": f"unknown field {name}"}}).encode())
            return super()._reply(request)

    server = Picky(("a b c d",))

    async def work(engine: RemoteEngine) -> None:
        for _ in range(2):
            chunks = await drain(engine.chat([user("hi")], 1, SamplingParams(max_tokens=2)))
            assert text_of(chunks, 0) == "a b"

    with_engine(server, work)
    assert len(server.asked) == 4
    assert server.asked[-1].body["max_tokens"] == 2


def test_chat_beyond_the_cap_is_cut() -> None:
    server = servers.FakeServer(("a b c d e f",))
    honest = server.chat
    server.chat = lambda body: honest({**body, "max_completion_tokens": 99})  # type: ignore[method-assign]
    for n in (1, 2):
        chunks = chatted(server, n, SamplingParams(max_tokens=3))
        assert all(text_of(chunks, i) == "a b c" for i in range(n))
        assert all(finishes(chunks, i) == ["length"] for i in range(n))
        assert sum(chunk.completion_tokens or 0 for chunk in chunks) > 3 * n  # the surplus is paid for


def test_tool_calls_are_put_together() -> None:
    pieces = [
        {"index": 0, "id": "x", "type": "function", "function": {"name": "add", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a":'}},
        {"index": 1, "id": "y", "function": {"name": "sub", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": " 1}"}},
    ]
    last = chatted(servers.FakeServer(("",), calls=pieces))[-1]
    assert last.finish == "stop"
    assert last.tool_calls == (ToolCall("add", '{"a": 1}', "x"), ToolCall("sub", "{}", "y"))


def test_parallel_tool_calls_that_are_all_number_0_stay_apart() -> None:
    pieces = [{"index": 0, "id": name, "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    last = chatted(servers.FakeServer(("",), calls=pieces))[-1]
    assert [call.name for call in last.tool_calls] == ["a", "b"]


def test_what_a_plain_chat_server_cannot_do_is_refused() -> None:
    async def work(engine: RemoteEngine) -> None:
        can = engine.capabilities
        assert (can.tokens, can.chat, can.fork, can.exact_cancel, can.score, can.logprobs) == (
            False,
            True,
            *[False] * 4,
        )
        for call in (
            lambda: engine.sample(PROMPT, 1, CAP),
            lambda: engine.chat([user("x")], 1, replace(CAP, adapters={"a": 1.0})),
        ):
            with pytest.raises(Unsupported):
                call()
        for lacking in (replace(CAP, top_k=5), replace(CAP, min_p=0.1), replace(CAP, ignore_eos=True)):
            with pytest.raises(Unsupported):
                await drain(engine.chat([user("x")], 1, lacking))
        with pytest.raises(Unsupported, match=r"openai\+vllm"):
            await engine.tokenize("x")

    with_engine(servers.FakeServer(), work)


def test_think_is_sent_only_where_it_is_known() -> None:
    server = servers.FakeServer()
    chatted(server, think=True)
    assert not {"chat_template_kwargs", "reasoning_effort"} & server.asked[0].body.keys()
    chatted(server, think=False, reasoning_effort=True)
    chatted(server, think=True, reasoning_effort=True)
    assert [request.body["reasoning_effort"] for request in server.asked[1:]] == ["none", "medium"]
    chatted(server, 1, replace(CAP, top_p=0.5))
    assert server.asked[3].body["top_p"] == 0.5


def test_an_answer_in_parts_is_read() -> None:
    def parts(event: dict[str, Any]) -> None:
        for choice in event["choices"]:
            if choice["delta"].get("content"):
                choice["delta"]["content"] = [{"type": "text", "text": choice["delta"]["content"]}]

    assert text_of(chatted(servers.FakeServer(("a b",), faults=[faults.edit(parts)])), 0) == "a b"


def test_a_filtered_reply_is_an_error_and_not_an_answer() -> None:
    def filtered(event: dict[str, Any]) -> None:
        for choice in event["choices"]:
            choice["finish_reason"] = choice["finish_reason"] and "content_filter"

    assert chatted(servers.FakeServer(faults=[faults.edit(filtered)]))[-1].finish == "error"


def test_a_reply_that_goes_on_after_its_end_is_garbled() -> None:
    assert isinstance(failing(servers.FakeServer(faults=[lambda steps: [*steps[:-1], *steps]])), GarbledReply)


def test_messages_as_servers_want_them() -> None:
    talk = (
        system("Be brief."),
        Message("user", (Text("What is "), Image("data:image/png;base64,AA"), Audio("data:audio/wav;base64,BB"))),
        assistant("Looking.", "hm"),
        Message("assistant", (ToolCall("look", "{}", "c1"),)),
        Message("tool", (ToolResult("c1", "a cat"), ToolResult("c2", "a dog"))),
        Message("user", (ToolResult("c3", "late"), Text("and?"))),
        Message("assistant", (Thinking("only"),)),
    )
    assert message_dicts(talk) == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is "},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                {"type": "input_audio", "input_audio": {"data": "BB", "format": "wav"}},
            ],
        },
        {"role": "assistant", "content": "Looking.", "reasoning_content": "hm"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
        {"role": "tool", "tool_call_id": "c2", "content": "a dog"},
        {"role": "tool", "tool_call_id": "c3", "content": "late"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "", "reasoning_content": "only"},
    ]
    for part in (Video(("x",)), Audio("http://x/y.wav")):
        with pytest.raises(Unsupported):
            message_dicts([Message("user", (part,))])

"""OpenAI's own Python client against the server: chat, completions, responses, models, errors."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from service import THOUGHT, answers, scripted, service
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
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
E = "ponder-135m"
LONG = " ".join(f"word{number}" for number in range(120))


def backends() -> list[Local]:
    replies = {
        "weather": CALLS,
        "long": LONG,
        "essay": f"Let me see. The answer is {LONG}",
        "differ": ["one", "two", "three"],
        "JSON": '{"a": 1}',
        "stop": "a b STOP c",
    }
    plain = scripted("no markers at all", "org/plain")
    bound = scripted("<think>hm</think>whatever", "bound", grammar=True)
    likely = scripted(says("ab"), "likely", logprob=lambda prefix, token: -0.5)
    slow = scripted(says(LONG), "slow", faults=[Fault("delay", at=1, seconds=0.02, every=True, times=None)])
    gone = scripted(says("never"), "gone", faults=[Fault("disconnect", at=1, times=None)])
    small = scripted(THOUGHT, "small", context=64)
    return [answers(replies), plain, bound, likely, slow, gone, small]


@pytest.fixture
def client(server: Serving) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20) as made:
        yield made


def ask(client: OpenAI, text: str, model: str = "m", **options: Any) -> Any:
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **options)


def told(chunks: Any) -> tuple[dict[int, str], dict[int, str], dict[int, str], list[Any]]:
    """Thinking, content and reason of each choice, and the chunks without choices."""
    thinking, content, reasons, rest = dict[int, str](), dict[int, str](), dict[int, str](), []
    for chunk in chunks:
        rest += [] if chunk.choices else [chunk]
        for choice in chunk.choices:
            place, delta = choice.index, choice.delta
            assert place not in reasons
            thinking[place] = thinking.get(place, "") + (getattr(delta, "reasoning_content", None) or "")
            content[place] = content.get(place, "") + (delta.content or "")
            if choice.finish_reason:
                reasons[place] = choice.finish_reason
    return thinking, content, reasons, rest


# ---------------------------------------------------------------- chat


def test_thinking_comes_beside_the_answer(client: OpenAI) -> None:
    reply = ask(client, "2+2?", reasoning_effort="low")
    message = reply.choices[0].message
    assert (message.content, message.reasoning_content) == ("The answer is 4.", "2 + 2 is 4.")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens_details.reasoning_tokens > 0
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.ponder["thinking_budget"] == "hard"


def test_a_stream_says_what_the_whole_says(client: OpenAI) -> None:
    chunks = list(ask(client, "2+2?", reasoning_effort="low", stream=True, stream_options={"include_usage": True}))
    thinking, content, reasons, rest = told(chunks)
    assert (thinking, content, reasons) == ({0: "2 + 2 is 4."}, {0: "The answer is 4."}, {0: "stop"})
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len(rest) == 1
    assert len({chunk.id for chunk in chunks}) == 1


def test_asynchronous_clients_side_by_side(server: Serving) -> None:
    async def work() -> None:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(number: int) -> str:
                messages: Any = [{"role": "user", "content": f"{number}?"}]
                if number % 2:
                    reply = await client.chat.completions.create(model="m", messages=messages, reasoning_effort="low")
                    return str(reply.choices[0].message.content)
                stream = await client.chat.completions.create(
                    model="m", messages=messages, stream=True, reasoning_effort="low"
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            assert await asyncio.gather(*map(one, range(10))) == ["The answer is 4."] * 10

    asyncio.run(work())


def test_all_choices_come_and_all_are_counted(client: OpenAI) -> None:
    three, ones = ask(client, "differ", n=3), [len(word) + 1 for word in ("one", "two", "three")]
    assert [choice.message.content for choice in three.choices] == ["one", "two", "three"]
    assert three.usage.completion_tokens == sum(ones)
    stream = ask(client, "differ", n=3, stream=True, stream_options={"include_usage": True})
    _, content, reasons, rest = told(stream)
    assert content == {0: "one", 1: "two", 2: "three"}
    assert set(reasons) == {0, 1, 2}
    assert rest[0].usage.completion_tokens == sum(ones)


def test_long_answers_and_their_cut(client: OpenAI) -> None:
    whole = ask(client, "long").choices[0]
    assert (whole.message.content, whole.finish_reason) == (LONG, "stop")
    cut = ask(client, "long", max_completion_tokens=50)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 50)
    assert cut.choices[0].message.content == LONG[:50]
    assert ask(client, "long", max_tokens=1).choices[0].message.content == LONG[:1]


def test_stop_strings_are_left_out(client: OpenAI) -> None:
    assert ask(client, "stop", stop="STOP").choices[0].message.content == "a b "
    _, content, reasons, _ = told(ask(client, "stop", stop=["STOP", "zz"], stream=True))
    assert (content, reasons) == ({0: "a b "}, {0: "stop"})


def test_parallel_calls_have_places_and_ids_of_their_own(client: OpenAI) -> None:
    reply = ask(client, "weather", tools=TOOLS)
    calls = reply.choices[0].message.tool_calls
    assert reply.choices[0].finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Köln", "Rom"]
    pieces: dict[int, str] = {}
    ids: dict[int, str] = {}
    for chunk in ask(client, "weather", tools=TOOLS, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or ():
            pieces[piece.index] = pieces.get(piece.index, "") + (piece.function.arguments or "")
            ids.setdefault(piece.index, piece.id)
    assert [json.loads(pieces[place])["city"] for place in (0, 1)] == ["Köln", "Rom"]
    seen = [*ids.values(), *(call.id for call in calls)]
    assert len(set(seen)) == 4, "the same call in another reply is another call"


def test_calls_are_answered_and_gone_on_from(client: OpenAI) -> None:
    first = ask(client, "weather", tools=TOOLS).choices[0].message
    told: Any = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in first.tool_calls]
    messages: Any = [{"role": "user", "content": "How is it?"}, first.model_dump(exclude_none=True), *told]
    assert client.chat.completions.create(model="m", messages=messages, tools=TOOLS).choices[0].finish_reason == "stop"


def test_one_call_where_no_more_may_come(client: OpenAI) -> None:
    assert len(ask(client, "weather", tools=TOOLS, parallel_tool_calls=False).choices[0].message.tool_calls) == 1
    assert ask(client, "weather", tools=TOOLS, tool_choice="none").choices[0].message.tool_calls is None


class Town(BaseModel):
    city: str


@pytest.mark.parametrize("effort", ["none", "low"])
def test_what_must_be_a_call_or_json_is(client: OpenAI, effort: Any) -> None:
    options: dict[str, Any] = {"model": "bound", "reasoning_effort": effort, "max_tokens": 400}
    named = {"type": "function", "function": {"name": "weather"}}
    number: Any = {"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"]}
    short: Any = [{"type": "function", "function": {"name": "pick", "parameters": number}}]
    for choice in ("required", {"type": "function", "function": {"name": "pick"}}):
        choices = ask(client, "x", tools=short, tool_choice=choice, parallel_tool_calls=False, **options).choices
        assert choices[0].finish_reason == "tool_calls"
        (call,) = choices[0].message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)["a"] in (1, 22)) == ("pick", True)
    shaped = ask(
        client, "x", response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": number}}, **options
    )
    assert json.loads(shaped.choices[0].message.content)["a"] in (1, 22)
    assert isinstance(
        json.loads(ask(client, "x", response_format={"type": "json_object"}, **options).choices[0].message.content),
        dict,
    )
    with pytest.raises(openai.BadRequestError, match="not among the tools"):
        ask(client, "x", tools=short, tool_choice=named, **options)
    shape: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": number}}
    told = [ask(client, "x", tools=short, response_format=shape, seed=seed, **options).choices[0] for seed in range(6)]
    for choice in told:
        calls = choice.message.tool_calls or []
        assert choice.finish_reason == ("tool_calls" if calls else "stop")
        said = [call.function.arguments for call in calls] or [choice.message.content]
        assert all(json.loads(each)["a"] in (1, 22) for each in said)
        assert not (calls and choice.message.content)


def test_a_shape_that_cannot_be_kept_is_refused_by_name(client: OpenAI) -> None:
    for field, options in {
        "response_format": {"response_format": {"type": "json_object"}},
        "tool_choice": {"tools": TOOLS, "tool_choice": "required"},
    }.items():
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, "x", **options)
        assert caught.value.param == field
    with pytest.raises(openai.BadRequestError) as caught:
        ask(
            client,
            "x",
            "bound",
            response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": 3}}},
        )
    assert caught.value.param == "response_format"


class Pick(BaseModel):
    done: bool


def test_parse_gives_a_value(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "x"}]
    made = client.chat.completions.parse(model="bound", messages=messages, response_format=Pick, max_tokens=300)
    assert isinstance(made.choices[0].message.parsed, Pick)
    found = client.responses.parse(model="bound", input="x", text_format=Pick, max_output_tokens=300)
    assert isinstance(found.output_parsed, Pick)


# ---------------------------------------------------------------- what ponder adds


def test_strategies_by_suffix_field_and_header(client: OpenAI) -> None:
    by_suffix = ask(client, "2+2?", "m:vote-3")
    by_field = ask(client, "2+2?", extra_body={"ponder": {"strategy": "vote(3)"}})
    by_header = ask(client, "2+2?", extra_headers={"X-Ponder-Strategy": "vote-3"})
    for reply in (by_suffix, by_field, by_header):
        assert reply.model == "m"
        assert (reply.ponder["strategy"], reply.ponder["samples"]) == ("vote(3)", 3)
        assert reply.choices[0].message.content == "The answer is 4."
        cost = reply.ponder["cost"]
        assert reply.usage.completion_tokens == sum(
            cost[each] for each in ("thinking", "answer", "cancelled", "verifier", "written", "probe")
        )


def test_the_best_of_several_that_were_cut_is_cut(client: OpenAI) -> None:
    cut = ask(client, "essay", "m:vote-2", max_tokens=200)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens <= 200
    made = client.responses.create(model="m:vote-2", input="essay", max_output_tokens=200)
    assert made.status == "incomplete"


def test_the_budget_for_thinking_holds(client: OpenAI) -> None:
    reply = ask(client, "2+2?", extra_body={"thinking": {"type": "enabled", "budget_tokens": 5}})
    assert 0 < len(reply.choices[0].message.reasoning_content) <= 5  # tokens of this engine are bytes
    assert reply.choices[0].message.content


def test_headers_tell_who_answered_and_what_it_cost(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="m", messages=[{"role": "user", "content": "x"}])
    told, usage = raw.headers, raw.parse().usage
    assert usage is not None
    assert (told["x-ponder-model"], told["x-ponder-backend"], told["x-ponder-budget"]) == ("m", "local", "none")
    assert int(told["x-ponder-tokens"]) == usage.total_tokens
    assert told["x-request-id"].startswith("req_")
    with client.chat.completions.with_streaming_response.create(
        model="m", messages=[{"role": "user", "content": "x"}], stream=True
    ) as stream:
        assert stream.headers["x-ponder-model"] == "m"
        assert stream.headers["content-type"].startswith("text/event-stream")


def test_a_deadline_gives_what_there_is(client: OpenAI) -> None:
    reply = ask(client, "x", "slow", extra_headers={"X-Ponder-Deadline": "0.3"})
    assert LONG.startswith(reply.choices[0].message.content)
    assert reply.choices[0].finish_reason == "length"
    assert 0 < reply.usage.completion_tokens < len(LONG)


# ---------------------------------------------------------------- completions


def test_completions_whole_and_streamed(client: OpenAI) -> None:
    made = client.completions.create(model="likely", prompt=["x", "y"], max_tokens=2, n=2)
    assert [(choice.index, choice.text) for choice in made.choices] == [(0, "ab"), (1, "ab"), (2, "ab"), (3, "ab")]
    texts = [""] * 4
    for chunk in client.completions.create(model="likely", prompt=["x", "y"], max_tokens=2, n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["ab"] * 4


def test_echo_scores_the_prompt(client: OpenAI) -> None:
    made = client.completions.create(model="likely", prompt="xyz", max_tokens=1, echo=True, logprobs=0).choices[0]
    assert made.text.startswith("xyz")
    assert made.logprobs is not None
    assert made.logprobs.tokens == ["x", "y", "z", "a"]
    assert (made.logprobs.token_logprobs or [])[:3] == [None, -0.5, -0.5]
    assert made.logprobs.text_offset == [0, 1, 2, 3]


def test_many_prompts_do_not_wait_for_each_other(client: OpenAI) -> None:
    """More prompts than the server has places, several times at once."""

    async def work() -> list[int]:
        async with AsyncOpenAI(base_url=str(client.base_url), api_key="none", max_retries=0) as many:
            prompts = ["x"] * 80
            made = [many.completions.create(model="m", prompt=prompts, max_tokens=2) for _ in range(3)]
            return [len(each.choices) for each in await asyncio.gather(*made)]

    assert asyncio.run(asyncio.wait_for(work(), 30)) == [80] * 3
    chunks = list(client.completions.create(model="m", prompt=["x"] * 80, max_tokens=2, stream=True))
    assert {chunk.choices[0].index for chunk in chunks} == set(range(80))


# ---------------------------------------------------------------- responses


def test_responses_whole_kept_gone_on_from_and_deleted(client: OpenAI) -> None:
    first = client.responses.create(model="m", input="2+2?", reasoning={"effort": "low", "summary": "auto"})
    assert first.output_text == "The answer is 4."
    assert [item.type for item in first.output] == ["reasoning", "message"]
    assert first.output[0].summary[0].text == "2 + 2 is 4."  # type: ignore[union-attr]
    assert (first.status, first.usage is not None) == ("completed", True)
    again = client.responses.retrieve(first.id)
    assert again.output_text == first.output_text
    assert [item.type for item in client.responses.input_items.list(first.id)] == ["message"]
    low: Any = {"effort": "low"}
    second = client.responses.create(model="m", input="And?", previous_response_id=first.id, reasoning=low)
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.previous_response_id == first.id
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="not kept"):
        client.responses.create(model="m", input="And?", previous_response_id=first.id)


def test_responses_streamed(client: OpenAI) -> None:
    with client.responses.stream(model="m", input="2+2?", reasoning={"effort": "low"}) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert {"response.reasoning_text.delta", "response.output_text.delta", "response.output_text.done"} <= set(kinds)
    assert (kinds[-1], final.output_text) == ("response.completed", "The answer is 4.")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == final.output_text


def test_a_response_that_was_cut_is_incomplete(client: OpenAI) -> None:
    cut = client.responses.create(model="m", input="long", max_output_tokens=20)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    last = list(client.responses.create(model="m", input="long", max_output_tokens=20, stream=True))[-1]
    assert last.type == "response.incomplete"


def test_calls_in_responses(client: OpenAI) -> None:
    tools: Any = [{"type": "function", "name": "weather", "parameters": CITY, "strict": False}]
    first = client.responses.create(model="m", input="weather", tools=tools)
    calls: Any = [item for item in first.output if item.type == "function_call"]
    assert [json.loads(call.arguments)["city"] for call in calls] == ["Köln", "Rom"]
    outputs: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
    second = client.responses.create(model="m", input=outputs, tools=tools, previous_response_id=first.id)
    assert second.status == "completed"


def test_sealed_reasoning_goes_back(client: OpenAI) -> None:
    first = client.responses.create(
        model="m", input="2+2?", reasoning={"effort": "low"}, store=False, include=["reasoning.encrypted_content"]
    )
    items: Any = [item.model_dump(exclude_none=True) for item in first.output]
    assert items[0]["encrypted_content"]
    again: Any = [{"role": "user", "content": "2+2?"}, *items, {"role": "user", "content": "Sure?"}]
    assert client.responses.create(model="m", input=again, store=False).status == "completed"
    items[0]["encrypted_content"] = items[0]["encrypted_content"][:-8] + "AAAAAAA="
    with pytest.raises(openai.BadRequestError, match="could not be verified"):
        client.responses.create(model="m", input=again, store=False)


# ---------------------------------------------------------------- models and errors


def test_models_with_slashes_in_their_names(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()][:3] == ["m", "org/plain", "bound"]
    assert client.models.retrieve("org/plain").id == "org/plain"
    assert httpx.get(f"{client.base_url}models/org/plain").json()["id"] == "org/plain"
    assert ask(client, "x", "org/plain").choices[0].message.content == "no markers at all"


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_has_a_status_before_a_stream_begins(client: OpenAI, stream: bool) -> None:
    cases: list[tuple[type[openai.APIStatusError], str, str, dict[str, Any]]] = [
        (openai.NotFoundError, "nobody", "model", {}),
        (openai.BadRequestError, "m", "temperature", {"temperature": 3}),
        (openai.BadRequestError, "m", "frobnicate", {"extra_body": {"frobnicate": 1}}),
        (openai.BadRequestError, "m", "logit_bias", {"logit_bias": {"1": 5}}),
        (openai.BadRequestError, "small", "messages", {"max_tokens": 30}),
    ]
    for kind, model, param, options in cases:
        with pytest.raises(kind) as caught:
            ask(client, "x" * 80, model, stream=stream, **options)
        assert caught.value.param == param
    with pytest.raises(openai.BadRequestError) as overflow:
        ask(client, "x" * 80, "small", stream=stream)
    assert overflow.value.code == "context_length_exceeded"


def test_a_failure_in_mid_stream_is_an_error(client: OpenAI) -> None:
    with pytest.raises(openai.APIError, match=r"\w"):
        list(ask(client, "x", "gone", stream=True))
    with pytest.raises(openai.InternalServerError):
        ask(client, "x", "gone")


def test_too_large_a_request_is_413(server: Serving) -> None:
    with httpx.Client(base_url=server.url) as client:
        reply = client.post("/v1/chat/completions", content=b"{" + b" " * (33 << 20))
    assert (reply.status_code, reply.json()["error"]["type"]) == (413, "invalid_request_error")


def test_keys_limits_and_full_queues(ponder_home: Any) -> None:
    with Keys.open() as keys:
        _, secret = keys.add("alice", limits=parse_limits("2 requests/day"))
    with service(lambda: [scripted("4", "m")]) as server:
        url = f"{server.url}/v1"
        with (
            OpenAI(base_url=url, api_key="sk-wrong", max_retries=0) as stranger,
            pytest.raises(openai.AuthenticationError),
        ):
            ask(stranger, "x")
        with OpenAI(base_url=url, api_key=secret, max_retries=0) as alice:
            for _ in range(2):
                assert ask(alice, "x").choices[0].message.content == "4"
            with pytest.raises(openai.RateLimitError) as caught:
                ask(alice, "x")
            assert int(caught.value.response.headers["retry-after"]) >= 1
            assert secret not in str(caught.value.body)


def test_a_full_server_says_when_to_come_back() -> None:
    hung = [Fault("delay", at=0, seconds=30, times=None)]
    with service(lambda: [scripted("4", "m", faults=hung)], running=1, waiting=0) as server:

        async def work() -> openai.APIStatusError:
            async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
                messages: Any = [{"role": "user", "content": "x"}]
                first = asyncio.create_task(client.chat.completions.create(model="m", messages=messages))
                while (await asyncio.to_thread(httpx.get, f"{server.url}/ready")).json()["running"] == 0:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                with pytest.raises(openai.InternalServerError) as caught:
                    await client.chat.completions.create(model="m", messages=messages)
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
                return caught.value

        error = asyncio.run(work())
        assert (error.status_code, int(error.response.headers["retry-after"]) >= 1) == (503, True)


# ---------------------------------------------------------------- the embedded model


@pytest.mark.model
def test_the_embedded_model() -> None:
    with (
        service(models=["ponder-135m"]) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        think = ask(client, "What is 3 + 4?", E, max_tokens=120, seed=1)
        assert think.choices[0].message.reasoning_content
        assert "7" in think.choices[0].message.content
        again = ask(client, "What is 3 + 4?", E, max_tokens=120, seed=1)
        assert again.choices[0].message.content == think.choices[0].message.content
        assert again.usage.prompt_tokens_details.cached_tokens > 0
        four = ask(client, "Which number do you think of?", E, n=4, max_tokens=60, seed=3, temperature=1)
        said = [(choice.message.reasoning_content, choice.message.content) for choice in four.choices]
        assert len(said) == 4
        assert len(set(said)) > 1
        assert sum(map(len, map("".join, said))) / 8 < four.usage.completion_tokens <= 4 * 60
        stopped = ask(client, "What is 3 + 4?", E, max_tokens=120, seed=1, stop=["answer"])
        assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("The ", "stop")
        options: Any = {
            "logprobs": True,
            "top_logprobs": 3,
            "temperature": 0,
            "reasoning_effort": "none",
            "max_tokens": 8,
        }
        likely = ask(client, "Say yes.", E, **options).choices[0]
        tokens = likely.logprobs.content
        assert "".join(token.token for token in tokens) == likely.message.content
        for token in tokens:
            assert len(token.top_logprobs) == 3
            assert math.isclose(token.logprob, token.top_logprobs[0].logprob, abs_tol=0.01), (
                "greedy takes the likeliest"
            )
        schema: Any = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
        shape: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
        shaped = ask(client, "What is 3 + 4?", E, response_format=shape, max_tokens=160, seed=1)
        assert isinstance(json.loads(shaped.choices[0].message.content)["sum"], int)
        call = ask(client, "Weather in Rome?", E, tools=TOOLS, tool_choice="required", parallel_tool_calls=False,
                   max_tokens=200, temperature=0).choices[0]  # fmt: skip
        assert (call.finish_reason, call.message.tool_calls[0].function.name) == ("tool_calls", "weather")
        assert isinstance(json.loads(call.message.tool_calls[0].function.arguments)["city"], str)
        echoed = client.completions.create(
            model=E, prompt="The sky is blue", max_tokens=1, echo=True, logprobs=1
        ).choices[0]
        assert echoed.logprobs is not None
        assert all(value < 0 for value in (echoed.logprobs.token_logprobs or [])[1:-1] if value is not None)
        made = client.responses.create(model=E, input="What is 2 + 3?", max_output_tokens=120)
        assert [item.type for item in made.output] == ["reasoning", "message"]

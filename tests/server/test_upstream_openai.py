"""OpenAI's dialect as upstreams speak it: what is sent, and what is understood."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upstreams import chunk, request

from ponder.server.events import Call, Content, Ended, Reasoning, ReplyEvent, Token
from ponder.server.failures import Refusal
from ponder.server.request import Request, Sampling, Shape, ToolChoice
from ponder.server.signatures import SignedThinking
from ponder.server.upstream_dialect import Failed, Heard
from ponder.server.upstream_openai import OpenAI
from ponder.server.upstream_thinking import FLAVOURS, Flavour
from ponder.types import Audio, Budget, Image, Message, Text, Thinking, ToolCall, ToolResult, system, user

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def read(*documents: dict[str, Any], asked: Request | None = None, flavour: Flavour = "openai") -> list[ReplyEvent]:
    reading = OpenAI(flavour).reading(asked or request())
    return [event for document in documents for event in reading.take(document)]


def body(asked: Request, flavour: Flavour = "openai", **more: Any) -> dict[str, Any]:
    return json.loads(OpenAI(flavour, **more).ask(asked, "up").data)


# ---------------------------------------------------------------- what is sent


def test_everything_that_was_asked_for_is_sent() -> None:
    asked = request(
        system("be kind"),
        user("hi"),
        n=3,
        tools=(TOOL,),
        tool_choice=ToolChoice("named", "f", parallel=False),
        budget=Budget(tokens=50),
        shape=Shape("schema", {"type": "object"}, "thing"),
        user="u1",
        sampling=Sampling(0.5, 0.9, None, None, 7, ("END",), 2, 0.1, 0.2, {5: -1.0}),
    )
    assert body(asked) == {
        "model": "up",
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "max_completion_tokens": 50,
        "stop": ["END"],
        "logprobs": True,
        "top_logprobs": 2,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "logit_bias": {"5": -1.0},
        "n": 3,
        "user": "u1",
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "thing", "schema": {"type": "object"}, "strict": True},
        },
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_images_sounds_calls_and_results_are_passed_through() -> None:
    asked = request(
        Message("user", (Text("look"), Image("data:image/png;base64,AA"), Audio("data:audio/mpeg;base64,BB"))),
        Message("assistant", (Thinking("hm"), ToolCall("f", '{"a":1}', "c1"))),
        Message("tool", (ToolResult("c1", "42"),)),
    )
    said, calling, result = body(asked, "deepseek")["messages"]
    assert said["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
        {"type": "input_audio", "input_audio": {"data": "BB", "format": "mp3"}},
    ]
    assert calling["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    ]
    assert calling["reasoning_content"] == "hm"  # DeepSeek wants it back on turns of tools
    assert result == {"role": "tool", "tool_call_id": "c1", "content": "42"}


def test_a_shape_goes_where_it_is_kept_and_is_refused_where_it_is_not() -> None:
    schema = Shape("schema", {"type": "object"}, "thing")
    for flavour in FLAVOURS:
        any_json = body(request(shape=Shape("json")), flavour)
        assert any_json["response_format"] == {"type": "json_object"}
        if flavour == "deepseek":
            with pytest.raises(Refusal, match="knows no schemas") as caught:
                body(request(shape=schema), flavour)
            assert (caught.value.status, caught.value.param) == (400, "response_format")
        else:
            assert body(request(shape=schema), flavour)["response_format"]["json_schema"]["name"] == "thing"


def test_thinking_goes_back_only_where_it_is_taken() -> None:
    asked = request(user("a"), Message("assistant", (Thinking("hm"), Text("b"))), user("c"))
    assert body(asked)["messages"][1] == {"role": "assistant", "content": "b"}
    assert body(asked, "vllm")["messages"][1]["reasoning"] == "hm"


def test_a_signature_goes_back_to_openrouter_untouched() -> None:
    thoughts = (SignedThinking("hm", signature="sig=="), SignedThinking("", redacted="enc"))
    asked = request(user("a"), Message("assistant", (*thoughts, Text("b"))), user("c"))
    assert body(asked, "openrouter")["messages"][1]["reasoning_details"] == [
        {"type": "reasoning.text", "text": "hm", "signature": "sig=="},
        {"type": "reasoning.encrypted", "data": "enc"},
    ]


@pytest.mark.parametrize(("field", "flavour"), [("top_k", "openai"), ("min_p", "qwen"), ("ignore_eos", "ollama")])
def test_what_a_server_does_not_have_is_refused_by_name(field: str, flavour: Flavour) -> None:
    asked = request(sampling=Sampling(**{field: 1}))
    with pytest.raises(Refusal, match=field) as caught:
        OpenAI(flavour).ask(asked, "up")
    assert caught.value.param == field
    assert body(asked, "vllm")[field] == 1


def test_raw_text_and_token_ids_go_to_completions() -> None:
    ask = OpenAI("openai").ask(request(raw="once", budget=Budget(tokens=5), sampling=Sampling(logprobs=1)), "up")
    assert ask.path == "/completions"
    assert (ask.body["prompt"], ask.body["max_tokens"], ask.body["logprobs"]) == ("once", 5, 1)
    assert "max_completion_tokens" not in ask.body
    assert OpenAI("vllm").ask(request(raw_ids=(1, 2)), "up").body["prompt"] == [1, 2]
    with pytest.raises(Refusal, match="echo"):
        OpenAI().ask(request(raw="x", echo=True), "up")


@pytest.mark.parametrize(
    ("flavour", "enforced", "hard", "limit"),
    [
        ("vllm", "", "hard", None),
        ("vllm", "cut", "hard", 100),
        ("sglang", "", "hard", 100),
        ("sglang", "hard", "hard", None),
        ("sglang", "hint", "hint", None),
        ("openai", "", "hint", None),
        ("openai", "cut", "hint", None),  # nothing can be continued there
    ],
)
def test_what_becomes_of_a_budget(flavour: Flavour, enforced: Any, hard: str, limit: int | None) -> None:
    ask = OpenAI(flavour, enforced=enforced).ask(request(budget=Budget(thinking=100)), "up")
    assert (ask.hard, ask.limit) == (hard, limit)


def test_thinking_that_was_cut_is_closed_and_answered() -> None:
    asked = request(budget=Budget(thinking=100, tokens=300))
    ask = OpenAI("sglang").closed(asked, "up", "so far", 100)
    assert ask is not None
    assert ask.body["messages"][-1] == {"role": "assistant", "content": "<think>\nso far\n</think>\n\n"}
    assert ask.body["max_tokens"] == 200
    assert ask.body["continue_final_message"] is True
    assert ask.body["add_generation_prompt"] is False
    assert OpenAI("openai").closed(asked, "up", "so far", 100) is None


# ---------------------------------------------------------------- what is understood


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"reasoning_content": "hm", "reasoning": "hm"},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
    ],
)
def test_thinking_is_read_under_all_its_names_once(delta: dict[str, Any]) -> None:
    assert read(chunk(delta), chunk({"content": "yes"}), chunk({}, "stop")) == [
        Reasoning("hm"),
        Content("yes"),
        Ended("stop"),
    ]


def call(arguments: str, index: int | None = 0, id: str = "", name: str = "") -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    place = {} if index is None else {"index": index}
    return {"tool_calls": [{**place, **({"id": id} if id else {}), "function": function}]}


def calls_of(events: list[ReplyEvent]) -> list[tuple[int, str, str, str]]:
    found: dict[int, list[str]] = {}
    for event in events:
        if isinstance(event, Call):
            known = found.setdefault(event.number, ["", "", ""])
            known[0], known[1] = known[0] or event.id, known[1] or event.name
            known[2] += event.arguments
    return [(number, *texts) for number, texts in sorted(found.items())]  # type: ignore[misc]


TWO = [(0, "a", "f", '{"x":1}'), (1, "b", "g", "{}")]


@pytest.mark.parametrize(
    "deltas",
    [
        [call("", 0, "a", "f"), call('{"x"', 0), call("", 1, "b", "g"), call(":1}", 0), call("{}", 1)],
        [call('{"x":1}', 0, "a", "f"), call("{}", 0, "b", "g")],  # Ollama: all of them at index 0
        [call('{"x":1}', None, "a", "f"), call("{}", None, "b", "g")],
        [call('{"x":1}', 3, "a", "f"), call("{}", 7, "b", "g")],
        [call('{"x"', 0, "a", "f"), call(":1}", 0, "a", "f"), call("{}", 1, "b", "g")],  # says it all every time
        [{"tool_calls": call('{"x":1}', None, "a", "f")["tool_calls"] + call("{}", None, "b", "g")["tool_calls"]}],
    ],
)
def test_parallel_calls_have_numbers_of_their_own(deltas: list[dict[str, Any]]) -> None:
    events = read(*(chunk(delta) for delta in deltas), chunk({}, "stop"))
    assert calls_of(events) == TWO
    assert events[-1] == Ended("tool_calls")  # whatever it said


def test_calls_without_ids_are_told_apart_once_they_are_whole() -> None:
    events = read(*(chunk(call(text, 0, "", "f")) for text in ('{"x":1}', '{"x":2}')))
    assert [each[3] for each in calls_of(events)] == ['{"x":1}', '{"x":2}']


def test_choices_logprobs_stop_strings_and_reasons() -> None:
    asked = request(n=2, sampling=Sampling(logprobs=1, stop=("END",)))
    row = {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1.5}]}
    first = chunk({"content": "a"})
    first["choices"][0]["logprobs"] = {"content": [row]}
    last = chunk({}, "stop", 1)
    last["choices"][0]["stop_reason"] = "END"
    assert read(first, chunk({}, "length"), chunk({"content": "z"}, index=1), last, asked=asked) == [
        Content("a", 0, (Token("a", -0.5, top=(Token("b", -1.5),)),)),
        Ended("length"),
        Content("z", 1),
        Ended("stop", 1, "END"),
    ]


def test_completions_tell_logprobs_in_columns() -> None:
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [None, -1.0], "top_logprobs": [None, {"c": -2.0}]}
    asked = request(raw="x", sampling=Sampling(logprobs=1))
    (event,) = read({"choices": [{"index": 0, "text": "ab", "logprobs": logprobs}]}, asked=asked)
    assert isinstance(event, Content)
    assert math.isnan(event.tokens[0].logprob)
    assert event.tokens[1] == Token("b", -1.0, top=(Token("c", -2.0),))


def test_a_whole_answer_is_read_where_a_server_does_not_stream() -> None:
    message = {"content": "yes", "reasoning_content": "hm", "tool_calls": call("{}", None, "a", "f")["tool_calls"]}
    document = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    assert read(document) == [Reasoning("hm"), Content("yes"), Call("{}", 0, "a", "f"), Ended("tool_calls")]


def test_signatures_of_openrouter_are_kept() -> None:
    details = [{"type": "reasoning.text", "signature": "sig"}, {"type": "reasoning.encrypted", "data": "enc"}]
    assert read(chunk({"reasoning": "hm", "reasoning_details": details})) == [
        Reasoning("hm"),
        Reasoning("", signature="sig"),
        Reasoning("", redacted="enc"),
    ]


@pytest.mark.parametrize(
    ("error", "status"),
    [({"message": "no", "code": 429}, 429), ({"message": "no", "code": "x"}, 0), ("no", 0)],
)
def test_an_error_in_the_stream_is_one(error: Any, status: int) -> None:
    with pytest.raises(Failed, match="no") as caught:
        read({"error": error})
    assert caught.value.status == status


# ---------------------------------------------------------------- usage


def usage_of(told: dict[str, Any], flavour: Flavour = "openai", asked: Request | None = None, pieces: int = 4) -> Any:
    reading = OpenAI(flavour).reading(asked or request())
    for number in range(pieces):
        reading.take(chunk({"reasoning": "1234"} if number % 2 else {"content": "1234"}))
    reading.take({"choices": [], **told})
    return reading.usage()


def test_usage_is_what_the_upstream_counts() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens_details": {"reasoning_tokens": 5}}
    used = usage_of({"usage": {"prompt_tokens": 7, "completion_tokens": 9, "cost": 0.25, **details}})
    assert (used.prompt, used.cached, used.completion, used.reasoning) == (7, 3, 9, 5)
    assert (used.dollars, used.estimated, used.extra) == (0.25, False, {})
    assert used.cost.tokens == 9


def test_thinking_that_is_not_counted_is_told_by_its_share() -> None:
    used = usage_of({"usage": {"prompt_tokens": 7, "completion_tokens": 10, "prompt_cache_hit_tokens": 2}})
    assert (used.reasoning, used.cached, used.extra) == (5, 2, {"reasoning_estimated": True})


def test_llama_server_counts_one_choice_of_several_and_has_counts_of_its_own() -> None:
    counted = {"usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    assert usage_of(counted, "llama-server", request(n=2)).completion == 4
    assert usage_of(counted, "llama-server").completion == 2
    timed = usage_of({"timings": {"prompt_n": 5, "cache_n": 2, "predicted_n": 8}}, "llama-server")
    assert (timed.prompt, timed.cached, timed.completion) == (7, 2, 8)
    assert usage_of({}) is None


def test_an_estimate_says_so() -> None:
    heard = Heard()
    for event in (Reasoning("12345678"), Content("1234"), Content("x")):
        heard.see(event)
    used = heard.estimated(request(user("a" * 400)))
    assert used.estimated
    assert (used.reasoning, used.completion) == (2, 4)
    assert 100 <= used.prompt <= 120


# ---------------------------------------------------------------- whatever comes

NAMES = st.sampled_from(
    [
        *("choices", "index", "delta", "message", "content", "reasoning", "reasoning_details", "tool_calls", "cost"),
        *("function", "name", "arguments", "id", "finish_reason", "usage", "prompt_tokens", "completion_tokens"),
        *("timings", "text", "logprobs", "tokens", "token_logprobs", "top_logprobs", "token", "logprob", "type"),
        *("signature", "data", "completion_tokens_details", "reasoning_tokens", "stop_reason", "thinking"),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=10,
)
CHOICES = st.lists(st.dictionaries(NAMES, JSON, max_size=5), max_size=3)


@given(st.lists(st.dictionaries(NAMES, JSON, max_size=4) | st.fixed_dictionaries({"choices": CHOICES}), max_size=6))
@settings(deadline=None, max_examples=50)
def test_garbage_makes_sound_events_or_none(documents: list[dict[str, Any]]) -> None:
    asked = request(n=2, sampling=Sampling(logprobs=2))
    reading = OpenAI("vllm").reading(asked)
    ended: set[int] = set()
    for document in documents:
        for event in reading.take(document):
            assert isinstance(event, Reasoning | Content | Call | Ended)
            assert 0 <= event.choice < 2
            assert event.choice not in ended
            if isinstance(event, Ended):
                ended.add(event.choice)
    used = reading.usage() or reading.heard.estimated(asked)
    assert 0 <= used.cached <= used.prompt
    assert 0 <= used.reasoning <= used.completion


@given(
    st.lists(st.tuples(st.sampled_from("rc"), st.text(min_size=1, max_size=6)), max_size=10), st.sampled_from(FLAVOURS)
)
def test_no_text_is_lost_whatever_the_order(pieces: list[tuple[str, str]], flavour: Flavour) -> None:
    names = {"r": "reasoning", "c": "content"}
    events = read(*(chunk({names[kind]: text}) for kind, text in pieces), flavour=flavour)
    for kind, event_type in (("r", Reasoning), ("c", Content)):
        said = "".join(event.text for event in events if isinstance(event, event_type))  # type: ignore[attr-defined]
        assert said == "".join(text for each, text in pieces if each == kind)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"error": {"message": "no such model"}}, "no such model"),
        ({"error": "plain"}, "plain"),
        ({"message": "m"}, "m"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"error": {"message": "Provider", "metadata": {"raw": "why"}}}, "Provider why"),
        ([], ""),
        (None, ""),
    ],
)
def test_errors_are_found_where_servers_put_them(document: Any, message: str) -> None:
    assert OpenAI().failed(document) == message


def test_lists_of_models_with_their_contexts() -> None:
    data = [{"id": "a", "max_model_len": 9}, {"id": "b", "meta": {"n_ctx_train": 8}}, {"id": "c"}, {"x": 1}, "y"]
    assert OpenAI().listed({"data": data}) == {"a": 9, "b": 8, "c": 0}

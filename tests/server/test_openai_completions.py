"""Completions against the official client, and the likelihoods that evaluation harnesses read out of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from operator import itemgetter
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai_client import client, drained, payloads, refused, streaming, together, whole_client

from ponder.server.events import Begun, Content, Ended, Reasoning, ReplyEvent, Token, Usage
from ponder.server.failures import Refusal, overloaded
from ponder.server.openai_completions import read, stream, whole
from ponder.server.openai_wire import Wire
from ponder.server.request import Request, Sampling
from ponder.types import Budget, Cost, ask

WIRE = Wire(clock=lambda: 1_700_000_000.5)


def asked(prompt: Any = "Once", **fields: Any) -> tuple[Request, ...]:
    return read({"model": "m", "prompt": prompt, **fields}, {}, "r1")


# ---------------------------------------------------------------- read


def test_a_text() -> None:
    (request,) = asked()
    assert (request.id, request.model, request.raw, request.raw_ids) == ("r1", "m", "Once", ())
    assert request.question == ask("Once")
    assert (request.budget, request.dialect, request.echo) == (Budget(16), "completions", False)
    assert request.sampling == Sampling()


def test_texts_token_ids_and_lists_of_them() -> None:
    assert [(each.id, each.raw) for each in asked(["a", "b"])] == [("r1-0", "a"), ("r1-1", "b")]
    (request,) = asked([1, 2, 3])
    assert (request.id, request.raw, request.raw_ids) == ("r1", None, (1, 2, 3))
    assert [(each.id, each.raw_ids) for each in asked([[1, 2], [3]])] == [("r1-0", (1, 2)), ("r1-1", (3,))]
    assert [each.raw for each in asked([""])] == [""]


def test_every_field() -> None:
    fields = {
        "n": 2,
        "logprobs": 5,
        "echo": True,
        "stop": "x",
        "seed": 3,
        "temperature": 0,
        "max_tokens": 7,
        "user": "u",
    }
    (request,) = asked(stream=True, stream_options={"include_usage": True}, **fields)
    assert (request.n, request.echo, request.stream, request.shown.usage, request.user) == (2, True, True, True, "u")
    assert request.sampling == Sampling(temperature=0.0, seed=3, stop=("x",), logprobs=5)
    assert request.budget == Budget(7)


def test_the_bound_on_tokens_that_nobody_set_gives_way_to_a_budget() -> None:
    assert asked(ponder={"budget": 500})[0].budget == Budget(500)
    assert asked(ponder={"budget": {"answer": 50, "thinking": 100}})[0].budget.tokens == 166
    assert asked(ponder={"budget": 500}, max_tokens=20)[0].budget == Budget(20)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt[0]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [1, -1]}, "prompt[1]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [[1], "a"]}, "prompt[1]"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [[1], [2**40]]}, "prompt[1][0]"),
        ({"prompt": ["a"] * 2049}, "prompt[0]"),
        ({"prompt": ["a"] * 100, "n": 100}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"messages": []}, "messages"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"echo": "yes"}, "echo"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ],
)
def test_refuses_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as caught:
        read({"model": "m", "prompt": "a", **fields}, {}, "r1")
    assert (caught.value.status, caught.value.param) == (400, param)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["prompt", "n", "best_of", "logprobs", "echo", "max_tokens", "stop"]), ANY))
def test_any_json_is_requests_or_a_refusal(fields: dict[str, Any]) -> None:
    refusal = refused(lambda: read({"model": "m", "prompt": "a", **fields}, {}, "r1"))
    assert refusal is None or (refusal.status == 400 and "\n" not in str(refusal))


# ---------------------------------------------------------------- whole


def test_choices_of_several_prompts_are_numbered_on_and_their_usage_adds_up() -> None:
    requests = asked(["a", "b"], n=2)
    replies = [
        together([Begun("m"), Content(f"{p}0", 0), Content(f"{p}1", 1), Ended(choice=0), Ended("length", 1), usage])
        for p, usage in (("a", Usage(3, 1, 8, 2, cost=Cost(calls=1), dollars=0.5)), ("b", Usage(4, 0, 6, dollars=0.25)))
    ]
    document = whole(requests, replies, WIRE)
    Completion.model_validate(document, strict=True)
    completion = whole_client(document).completions.create(model="m", prompt="")
    assert [(each.index, each.text, each.finish_reason) for each in completion.choices] == [
        (0, "a0", "stop"),
        (1, "a1", "length"),
        (2, "b0", "stop"),
        (3, "b1", "length"),
    ]
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (7, 14)
    assert document["usage"]["prompt_tokens_details"]["cached_tokens"] == 1
    assert document["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2
    assert (document["usage"]["ponder"]["dollars"], document["usage"]["ponder"]["cost"]["calls"]) == (0.75, 1)
    assert (document["id"], document["created"]) == ("cmpl-r1", 1_700_000_000)


def test_unknown_prices_and_counts_are_not_added_up_as_zero() -> None:
    requests = asked(["a", "b"])
    begun = [Begun("m"), Content("x"), Ended()]
    unpriced = [together([*begun, Usage(dollars=0.5)]), together([*begun, Usage()])]
    assert whole(requests, unpriced, WIRE)["usage"]["ponder"]["dollars"] is None
    uncounted = [together([*begun, Usage()]), together(begun)]
    assert whole(requests, uncounted, WIRE)["usage"] is None


def test_thinking_is_kept_beside_the_text() -> None:
    reply = together([Begun("m"), Reasoning("Hm."), Content("x"), Ended(), Usage()])
    choice = whole(asked(), [reply], WIRE)["choices"][0]
    assert (choice["text"], choice["reasoning_content"]) == ("x", "Hm.")
    events = streaming([Begun("m"), Reasoning("Hm."), Content("x"), Ended(), Usage()])
    told = [frame["choices"][0] for frame in payloads(drained(stream(asked(), [events], WIRE)))[:-1]]
    assert [(each["text"], each.get("reasoning_content")) for each in told] == [("", "Hm."), ("x", None), ("", None)]


def token(text: str, logprob: float, id: int, *top: Token) -> Token:
    return Token(text, logprob, id, top)


PROMPT = (
    token("On", math.nan, 1),
    token("ce", -0.25, 2, Token("ce", -0.25, 2), Token("x", -3.0, 9)),
    token(" up", -2.0, 3, Token("!", -0.1, 8), Token(" up", -2.0, 3)),
)
NEXT = (token("on", -0.5, 4, Token("on", -0.5, 4), Token("?", -math.inf, 7)),)


def test_log_probabilities_have_their_older_form() -> None:
    (request,) = asked(logprobs=2)
    told = whole([request], [together([Begun("m"), Content("on", 0, NEXT), Ended(), Usage()])], WIRE)["choices"][0]
    assert told["logprobs"] == {
        "tokens": ["on"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"on": -0.5, "?": -9999.0}],
        "text_offset": [0],
    }
    (plain,) = asked()
    assert whole([plain], [together([Content("on", 0, NEXT), Ended()])], WIRE)["choices"][0]["logprobs"] is None


def test_the_prompt_is_echoed_with_its_log_probabilities() -> None:
    (request,) = asked([1, 2, 3], echo=True, logprobs=1)
    events = [Begun("m", prompt_tokens=PROMPT), Content("on", 0, NEXT), Ended("length"), Usage()]
    choice = whole([request], [together(events)], WIRE)["choices"][0]
    assert choice["text"] == "Once upon"
    assert choice["logprobs"]["tokens"] == ["On", "ce", " up", "on"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.25, -2.0, -0.5]
    assert choice["logprobs"]["text_offset"] == [0, 2, 4, 7]
    assert choice["logprobs"]["top_logprobs"] == [None, {"ce": -0.25}, {" up": -2.0, "!": -0.1}, {"on": -0.5}]


def test_a_text_is_echoed_as_it_was_sent() -> None:
    (request,) = asked("Once up", echo=True)
    events = [Begun("m", prompt_tokens=(Token("<s>", math.nan), *PROMPT)), Content("on"), Ended(), Usage()]
    assert whole([request], [together(events)], WIRE)["choices"][0]["text"] == "Once upon"


def likelihoods(document: dict[str, Any], contexts: list[int]) -> list[tuple[float, bool]]:
    """What a harness makes of it: the sum over the continuation, and whether each of its tokens is the likeliest."""
    found = []
    for choice, context in zip(sorted(document["choices"], key=itemgetter("index")), contexts, strict=True):
        told = choice["logprobs"]
        logprobs, tops = told["token_logprobs"][context:-1], told["top_logprobs"][context:-1]
        assert len(logprobs) == len(tops)
        found.append((sum(logprobs), all(own == max(top.values()) for own, top in zip(logprobs, tops, strict=True))))
    return found


@pytest.mark.parametrize("last", [(Content("on", 0, NEXT),), ()])
def test_a_harness_reads_likelihoods_even_where_nothing_follows_the_prompt(last: tuple[ReplyEvent, ...]) -> None:
    """It cuts off the one generated token, which is the end token where the model ends at once."""
    body = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    requests = asked([[1, 2, 3], [1, 2]], **body)
    assert [each.budget.tokens for each in requests] == [1, 1]
    replies = [
        together([Begun("m", prompt_tokens=PROMPT[: len(each.raw_ids)]), *last, Ended(), Usage(3, 0, 1)])
        for each in requests
    ]
    assert likelihoods(whole(requests, replies, WIRE), [1, 1]) == [(-2.25, False), (-0.25, True)]


def test_tokens_with_one_text_do_not_hide_the_likelier_one() -> None:
    same = (token("\ufffd", -3.0, 5, Token("\ufffd", -0.5, 6)),)
    (request,) = asked(logprobs=1)
    told = whole([request], [together([Content("\ufffd", 0, same), Ended()])], WIRE)["choices"][0]["logprobs"]
    assert told["top_logprobs"] == [{"\ufffd": -0.5}]


def test_the_likeliest_of_more_are_shown() -> None:
    (request,) = asked(n=2, best_of=4)
    assert (request.n, request.sampling.logprobs, request.shown.choices) == (4, 0, 2)
    sums = [(-9.0,), (-0.1, -0.3), (-0.5,), (math.nan,)]
    events: list[ReplyEvent] = [Begun("m")]
    for number, logprobs in enumerate(sums):
        events += [Content(str(number), number, tuple(Token("x", each) for each in logprobs)), Ended(choice=number)]
    document = whole([request], [together([*events, Usage(1, 0, 20)])], WIRE)
    assert [(each["index"], each["text"], each["logprobs"]) for each in document["choices"]] == [
        (0, "1", None),
        (1, "2", None),
    ]
    assert document["usage"]["completion_tokens"] == 20


# ---------------------------------------------------------------- stream


def test_a_stream_as_the_client_reads_it() -> None:
    requests = asked(["a", "b"], stream=True, stream_options={"include_usage": True})
    streams = [
        streaming([Begun("m2"), Content("x"), Content("y"), Ended("length"), Usage(1, 0, 2)]),
        streaming([Begun("m2"), Content("z"), Ended("tool_calls"), Usage(2, 0, 1)]),
    ]
    sent = drained(stream(requests, streams, WIRE))
    frames = payloads(sent)
    assert frames[-1] == "[DONE]"
    assert [frame["usage"] for frame in frames[:-2]] == [None] * (len(frames) - 2)
    assert (frames[-2]["choices"], frames[-2]["usage"]["total_tokens"]) == ([], 6)
    assert {(frame["id"], frame["object"], frame["model"]) for frame in frames[:-1]} == {
        ("cmpl-r1", "text_completion", "m2")
    }
    texts = ["", ""]
    finishes: list[Any] = [None, None]
    for chunk in client(sent).completions.create(model="m", prompt="", stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    assert (texts, finishes) == (["xy", "z"], ["length", "stop"])


@st.composite
def completions(draw: st.DrawFn) -> tuple[tuple[Request, ...], list[list[ReplyEvent]]]:
    """Requests for one or two prompts, and the events of their replies."""
    prompts = draw(st.integers(1, 2))
    n, echo, logprobs = draw(st.integers(1, 2)), draw(st.booleans()), draw(st.sampled_from([None, 0, 1]))
    requests = asked([[1, 2, 3]] * prompts, n=n, echo=echo, logprobs=logprobs)
    scripts: list[list[ReplyEvent]] = []
    for _ in requests:
        queues: list[list[ReplyEvent]] = []
        for choice in range(n):
            events: list[ReplyEvent] = []
            for text in draw(st.lists(st.text(max_size=3), max_size=3)):
                tokens = () if logprobs is None else (Token(text, -draw(st.floats(0, 5)), 1, (Token("t", -1.0, 2),)),)
                events.append(Content(text, choice, tokens))
            queues.append([*events, *([Ended("stop", choice)] if draw(st.booleans()) else [])])
        order = draw(st.permutations([choice for choice, queue in enumerate(queues) for _ in queue]))
        scripts.append([Begun("m", prompt_tokens=PROMPT), *(queues[choice].pop(0) for choice in order), Usage(3, 0, 5)])
    return requests, scripts


@settings(max_examples=80, deadline=None)
@given(completions())
def test_the_stream_put_together_is_the_whole(case: tuple[tuple[Request, ...], list[list[ReplyEvent]]]) -> None:
    requests, scripts = case
    expected = whole(requests, [together(script) for script in scripts], WIRE)["choices"]
    told = {choice["index"]: choice for choice in expected}
    found: dict[int, dict[str, Any]] = {}
    for frame in payloads(drained(stream(requests, [streaming(script) for script in scripts], WIRE)))[:-1]:
        (choice,) = frame["choices"]
        mine = found.setdefault(choice["index"], {"text": "", "logprobs": None, "finish_reason": None})
        mine["text"] += choice["text"]
        mine["finish_reason"] = choice["finish_reason"] or mine["finish_reason"]
        if choice["logprobs"]:
            mine["logprobs"] = mine["logprobs"] or {name: [] for name in choice["logprobs"]}
            for name, values in choice["logprobs"].items():
                mine["logprobs"][name] += values
    for index, mine in found.items():
        if index in told:
            assert mine == {name: told[index][name] for name in mine}
        else:  # a choice of which no event came, and which the echo alone shows
            assert (mine["finish_reason"], requests[0].echo or mine["text"] == "") == ("length", True)
    assert set(told) <= set(found)


def test_a_failure_ends_the_stream_and_closes_the_prompts_that_wait() -> None:
    closed = []

    async def waiting() -> AsyncIterator[ReplyEvent]:
        try:
            yield Begun("m")
        finally:
            closed.append(True)

    async def drain() -> bytes:
        second = waiting()
        await anext(second)  # begun beside the first
        frames = stream(
            asked(["a", "b"], stream=True), [streaming([Begun("m"), Content("x"), overloaded("full", 1)]), second], WIRE
        )
        return b"".join([frame async for frame in frames])

    sent = asyncio.run(drain())
    assert closed == [True]
    frames = payloads(sent)
    assert "[DONE]" not in frames
    assert frames[-1]["error"]["code"] == "overloaded"
    with pytest.raises(openai.APIError, match="full"):
        list(client(sent).completions.create(model="m", prompt="", stream=True))

"""One upstream as a backend, against servers that are well, ill, slow, hung and dead."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from faults import (
    CUT,
    DONE,
    HANG,
    Fault,
    Plain,
    Wait,
    cut_after,
    end_after,
    hang,
    page,
    refuse,
    reset,
    slowly,
    split,
    whole,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import FakeServer, FakeVllm
from upstreams import Heard, Says, chunk, heard, request, thinking, upstream

from ponder.server.backend import Served
from ponder.server.events import Begun, Content, Ended, Reasoning, ReplyEvent, Usage
from ponder.server.media import Media
from ponder.server.request import Request, Sampling
from ponder.server.upstream import Price, Retries
from ponder.server.upstream_answer import Timeouts
from ponder.server.upstream_breaker import BreakerSettings
from ponder.server.upstream_openai import OpenAI
from ponder.types import Budget, Image, Message, user

USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
GOOD = [chunk({"content": "yes"}), chunk({}, "stop"), USAGE, DONE]


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


async def asked(server: FakeServer, question: Request | None = None, dialect: Any = None, **fields: Any) -> Heard:
    """One request over an upstream that is closed afterwards."""
    backend = upstream(server.url, dialect, **fields)
    try:
        return await heard(backend, question)
    finally:
        await backend.close()


def once(fault: Fault, question: Request | None = None, dialect: Any = None, **fields: Any) -> tuple[Heard, int]:
    """What comes of a server with one fault, and how often it was asked."""

    async def work() -> tuple[Heard, int]:
        async with FakeServer(replies=("Hello big world",), thinking="let me see", faults=[fault]) as server:
            return await asked(server, question, dialect, **fields), len(server.asked)

    return asyncio.run(work())


# ---------------------------------------------------------------- what is well


def test_an_answer_with_its_thinking_and_usage() -> None:
    async def work() -> None:
        async with FakeVllm(replies=("Hello big world",), thinking="let me see") as server:
            found = await asked(server, request(budget=thinking(50)), OpenAI("vllm"))
        assert found.events[0] == Begun("tiny", "up", "hard")
        choice = found.reply.choices[0]
        assert (choice.reasoning, choice.content, choice.reason) == ("let me see", "Hello big world", "stop")
        used = found.events[-1]
        assert isinstance(used, Usage)
        assert (used.prompt, used.cached, used.completion, used.reasoning, used.estimated) == (7, 3, 6, 3, False)

    run(work)


def test_several_choices_in_one_request_where_the_server_can() -> None:
    async def work() -> None:
        async with FakeServer(replies=("a", "b", "c")) as server:
            found = await asked(server, request(n=3))
            assert len(server.asked) == 1
        assert [choice.content for choice in found.reply.in_order] == ["a", "b", "c"]

    run(work)


def test_several_choices_in_several_requests_where_it_cannot() -> None:
    async def work() -> None:
        async with Says(GOOD) as server:
            found = await asked(server, request(n=3, sampling=Sampling(seed=5)), OpenAI("deepseek"))
            assert sorted(each.body["seed"] for each in server.asked) == [5, 6, 7]
            assert all("n" not in each.body for each in server.asked)
        assert [choice.content for choice in found.reply.in_order] == ["yes"] * 3
        used = found.reply.usage
        assert used is not None
        assert (used.prompt, used.completion, len(used.extra["attempts"])) == (21, 6, 3)

    run(work)


def test_of_several_requests_one_fails_and_all_are_accounted_for() -> None:
    async def work() -> None:
        late = [Wait(0.2), *GOOD]
        async with Says(GOOD, late, [chunk({"content": "x"}), CUT]) as server:
            found = await asked(server, request(n=3), OpenAI("qwen"))
        assert found.refusal is not None
        used = found.events[-1]
        assert isinstance(used, Usage)
        assert sorted("error" in each for each in used.extra["attempts"]) == [False, False, True]

    run(work)


def test_of_several_requests_what_those_have_made_that_end_with_a_failed_one_is_counted() -> None:
    async def work() -> None:
        told = {"usage": {"prompt_tokens": 7, "completion_tokens": 40}}
        scripts = (
            [*[chunk({"content": "word "})] * 3, HANG],
            [chunk({"content": "x"}, **told), HANG],
            [Wait(0.3), chunk({"content": "x"}), CUT],
        )
        async with Says(*scripts) as server:
            found = await asked(server, request(n=3), OpenAI("qwen"))
            assert all(each.left.is_set() for each in server.asked[:2])
        assert found.refusal is not None
        assert found.seconds < 3
        used = found.events[-1]
        assert isinstance(used, Usage)
        assert sorted(each["completion"] for each in used.extra["attempts"]) == [1, 4, 40]
        assert (used.completion, used.estimated) == (45, True)
        assert [each["completion"] for each in used.extra["attempts"] if "error" in each] == [1]

    run(work)


def test_of_several_requests_one_that_was_lost_is_booked_beside_those_that_began() -> None:
    async def work() -> None:
        begins = [chunk({"content": "x"}), Wait(0.3), chunk({"content": "x"}), HANG]
        async with Says(begins, [Wait(0.1), CUT]) as server:
            found = await asked(server, request(n=2), OpenAI("qwen"))
        used = found.events[-1]
        assert isinstance(used, Usage)
        (failed,) = [each for each in used.extra["attempts"] if "error" in each]
        assert failed["prompt"] > 0
        assert failed["estimated"]
        assert len(used.extra["attempts"]) == 2

    run(work)


def test_a_server_that_ignores_n_is_found_out() -> None:
    async def work() -> None:
        async with FakeServer(ignores_n=True) as server:
            found = await asked(server, request(n=3))
        assert found.refusal is not None
        assert "1 of 3 choices" in found.refusal.problem
        assert isinstance(found.events[-1], Usage)

    run(work)


def test_usage_that_is_not_sent_is_estimated_and_says_so() -> None:
    async def work() -> None:
        async with Says([chunk({"content": "yes"}), chunk({}, "stop"), DONE]) as server:
            found = await asked(server)
        used = found.events[-1]
        assert isinstance(used, Usage)
        assert used.estimated
        assert used.completion >= 1

    run(work)


def test_a_stream_that_does_not_end_after_its_end_is_not_waited_for() -> None:
    async def work() -> None:
        async with Says([*GOOD, HANG]) as server:
            found = await asked(server)
        assert found.refusal is None
        assert found.reply.choices[0].content == "yes"
        assert found.seconds < 3

    run(work)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.sampled_from([b"\n", b"\r\n", b"\r"]))
@settings(max_examples=15, deadline=None)
def test_chunks_cut_anywhere_inside_a_character_too(cuts: list[int], line_end: bytes) -> None:
    async def work() -> None:
        steps = [chunk({"content": "naïve 日本 🎉"}), chunk({}, "stop"), DONE]
        async with Says(steps, faults=[split(cuts, line_end)]) as server:
            found = await asked(server)
        assert found.reply.choices[0].content == "naïve 日本 🎉"

    run(work)


def test_a_whole_answer_in_place_of_a_stream_is_taken() -> None:
    choice = {"index": 0, "message": {"content": "yes"}, "finish_reason": "stop"}
    found, _ = once(whole({"choices": [choice], "usage": USAGE["usage"]}))
    assert found.reply.choices[0].content == "yes"


def test_half_a_surrogate_pair_is_replaced_and_a_whole_one_is_a_character() -> None:
    async def work() -> None:
        first = b'data: {"choices":[{"index":0,"delta":{"content":"a\\ud83d \\ud83c\\udf89"}}]}\n\n'
        async with Says([first, chunk({}, "stop"), DONE]) as server:
            found = await asked(server)
        assert found.reply.choices[0].content == "a? 🎉"

    run(work)


# ---------------------------------------------------------------- what is ill, before the first event


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (refuse(400), 400, None),
        (refuse(401), 502, "upstream_key"),
        (refuse(402), 502, "upstream_quota"),
        (refuse(404), 404, None),
        (refuse(413), 413, None),
        (refuse(429), 429, "upstream_busy"),
        (refuse(500), 502, "upstream_failed"),
        (refuse(503), 503, "upstream_busy"),
        (refuse(504), 504, "timeout"),
        (refuse(302, location="http://elsewhere/"), 502, "upstream_failed"),
        (page(502), 502, "upstream_failed"),
        (page(200), 502, "upstream_garbled"),
        (reset(), 502, "upstream_failed"),
        (whole({"error": {"message": "no"}}), 502, "upstream_failed"),
        (lambda steps: [b"data: {not json\n\n"], 502, "upstream_garbled"),
        (lambda steps: [b"data: [1, 2]\n\n"], 502, "upstream_garbled"),
        (lambda steps: [b"data: \xff\xfe\n\n"], 502, "upstream_garbled"),
        (lambda steps: [b"data: " + b"[" * 100_000 + b"\n\n"], 502, "upstream_garbled"),
        (lambda steps: [b"data: " + b"x" * (9 * 2**20)], 502, "upstream_garbled"),
        (lambda steps: [{"error": {"message": "busy", "code": 429}}], 429, "upstream_busy"),
        (lambda steps: [DONE], 502, "upstream_failed"),
        (refuse(400, {"error": {"message": "maximum context length is 10 tokens"}}), 400, "context_length_exceeded"),
    ],
)
def test_failures_before_anything_came_have_a_status_of_their_own(fault: Fault, status: int, code: str | None) -> None:
    found, asked_for = once(fault)
    assert found.refusal is not None
    assert (found.refusal.status, found.refusal.code) == (status, code)
    assert asked_for == 1
    if code != "upstream_failed" or not found.events:
        assert not any(isinstance(event, Content) for event in found.events)


def test_a_key_is_never_told() -> None:
    async def work() -> None:
        async with FakeServer(key="right") as server:
            backend = upstream(server.url, key="s3cret-key")
            found = await heard(backend)
            assert found.refusal is not None
            said = f"{found.refusal} {found.refusal!r} {backend!r} {backend.configuration!r} {backend._wire!r}"
            assert "s3cret-key" not in said
            server.key, server.faults = None, [refuse(400, {"error": {"message": "bad key s3cret-key\nhere"}})]
            found = await heard(backend)
            assert found.refusal is not None
            assert "bad key *** here" in found.refusal.problem
            await backend.close()

    run(work)


def test_a_busy_server_is_asked_again_when_it_said_and_only_then() -> None:
    found, asked_for = once(refuse(429, retry_after="0.05"))
    assert (found.refusal, asked_for) == (None, 2)
    assert found.seconds >= 0.05
    found, asked_for = once(refuse(503, retry_after="60"))
    assert found.refusal is not None
    assert (found.refusal.retry_after, asked_for) == (60.0, 1)
    found, asked_for = once(refuse(429, retry_after="0.5"), request(deadline=0.3))
    assert found.refusal is not None
    assert asked_for == 1


def test_a_connection_that_fails_is_tried_again() -> None:
    async def work() -> None:
        async with FakeServer() as server:
            port = server.port
        backend = upstream(f"http://127.0.0.1:{port}/v1", retries=Retries(5, 0.1))
        asking = asyncio.create_task(heard(backend))
        await asyncio.sleep(0.05)
        again = FakeServer()
        again._server = await asyncio.start_server(again._connection, "127.0.0.1", port)
        found = await asking
        assert found.refusal is None
        assert len(again.asked) == 1
        await backend.close()
        await again.__aexit__()

    run(work)


def test_nobody_there() -> None:
    async def work() -> None:
        async with FakeServer() as server:
            pass
        found = await asked(server)
        assert found.refusal is not None
        assert (found.refusal.status, found.refusal.code) == (503, "upstream_unreachable")

    run(work)


# ---------------------------------------------------------------- what dies in the middle


@pytest.mark.parametrize(
    "fault",
    [
        cut_after(3),
        end_after(3),
        lambda steps: [*steps[:3], b"data: {broken\n\n"],
        lambda steps: [*steps[:3], {"error": {"message": "died", "code": 500}}],
        lambda steps: [*steps[:3], b"data: " + b"x" * (9 * 2**20)],
    ],
)
def test_what_came_until_it_died_is_told_and_nothing_is_asked_twice(fault: Fault) -> None:
    found, asked_for = once(fault)
    assert found.refusal is not None
    assert found.refusal.status in (500, 502)
    assert asked_for == 1
    assert any(isinstance(event, Reasoning) for event in found.events)
    used = found.events[-1]
    assert isinstance(used, Usage)
    assert used.estimated
    assert used.completion >= 1


def test_silence_is_not_waited_out() -> None:
    patience = Timeouts(1, 0.3, 0.3)
    for fault in (hang(), hang(0), hang(2)):
        found, asked_for = once(fault, timeouts=patience)
        assert found.refusal is not None
        assert (found.refusal.status, found.refusal.code, asked_for) == (504, "timeout", 1)
        assert 0.25 < found.seconds < 2


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_wherever_it_dies_the_last_event_is_the_usage(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, 8))
    fault = data.draw(st.sampled_from([cut_after, end_after]))
    found, asked_for = once(fault(place))
    assert asked_for == 1
    if found.events:
        assert isinstance(found.events[0], Begun)
        assert isinstance(found.events[-1], Usage)
        assert sum(isinstance(event, Usage) for event in found.events) == 1
    assert (found.refusal is None) == any(isinstance(event, Ended) for event in found.events)


# ---------------------------------------------------------------- what is ended from here


def test_a_client_that_leaves_closes_the_upstream_at_once() -> None:
    async def work() -> None:
        for fault, after in ((hang(), 0), (slowly(0.05), 2)):
            async with FakeServer(replies=("a b c d e f g h " * 20,), faults=[fault]) as server:
                backend, stop, began = upstream(server.url), asyncio.Event(), [0.0]

                def seen(event: ReplyEvent, stop: asyncio.Event = stop, began: list[float] = began) -> None:
                    if isinstance(event, Content) and not stop.is_set():
                        began[0] = time.monotonic()
                        stop.set()

                asking = asyncio.create_task(heard(backend, stop=stop, seen=seen))
                if not after:
                    await server.busy.wait()
                    began[0] = time.monotonic()
                    stop.set()
                found = await asking
                await asyncio.wait_for(server.asked[0].left.wait(), 2)
                assert time.monotonic() - began[0] < 0.2
                assert found.refusal is None
                assert [event for event in found.events if isinstance(event, Ended)] == [Ended("cancelled")]
                used = found.events[-1]
                assert isinstance(used, Usage)
                assert used.estimated
                assert used.prompt > 0
                await backend.close()

    run(work)


def test_a_reader_that_goes_away_closes_the_upstream_too() -> None:
    async def work() -> None:
        async with FakeServer(faults=[hang(2)]) as server:
            backend = upstream(server.url)
            events = backend.reply(request(), asyncio.Event())
            assert isinstance(await anext(events), Begun)
            await events.aclose()
            await asyncio.wait_for(server.asked[0].left.wait(), 0.5)
            await backend.close()

    run(work)


def test_a_deadline_gives_what_there_is_and_a_timeout_where_there_is_nothing() -> None:
    found, _ = once(hang(3), request(deadline=0.3))
    assert found.refusal is None
    assert [event for event in found.events if isinstance(event, Ended)] == [Ended("cancelled")]
    assert found.seconds < 1
    found, _ = once(hang(), request(budget=Budget(seconds=0.2)))
    assert found.refusal is not None
    assert found.refusal.status == 504


def test_thinking_that_is_over_its_budget_is_cut_and_answered() -> None:
    async def work() -> None:
        def counted(text: str, tokens: int) -> dict[str, Any]:
            return chunk({"reasoning_content": text}, usage={"prompt_tokens": 7, "completion_tokens": tokens})

        first = [counted("one ", 1), counted("two ", 2), counted("three ", 3), counted("four ", 4), HANG]
        second = [chunk({"reasoning_content": "more"}), chunk({"content": "42"}), chunk({}, "stop")]
        second += [{"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 1}}, DONE]  # type: ignore[list-item]
        async with Says(first, second) as server:
            found = await asked(server, request(budget=Budget(thinking=3, tokens=20)), OpenAI("sglang"))
            await asyncio.wait_for(server.asked[0].left.wait(), 0.5)
            assert server.asked[0].body["stream_options"]["continuous_usage_stats"] is True
            assert server.asked[1].body["messages"][-1]["content"] == "<think>\none two three\n</think>\n\n"
            assert server.asked[1].body["max_tokens"] == 17
        choice = found.reply.choices[0]
        assert (choice.reasoning, choice.content, choice.reason) == ("one two three ", "42", "stop")
        assert found.events[0] == Begun("tiny", "up", "hard")
        used = found.reply.usage
        assert used is not None
        assert (used.prompt, used.completion, used.reasoning) == (19, 4, 4)  # what it thought on is paid for
        assert [each["completion"] for each in used.extra["attempts"]] == [3, 1]

    run(work)


def test_a_piece_that_goes_beyond_the_budget_is_not_shown() -> None:
    async def work() -> None:
        first = [
            chunk({"reasoning_content": "a"}, usage={"prompt_tokens": 1, "completion_tokens": 2}),
            chunk({"reasoning_content": "b c d e"}, usage={"prompt_tokens": 1, "completion_tokens": 7}),
            HANG,
        ]
        async with Says(first, GOOD) as server:
            found = await asked(server, request(budget=thinking(3)), OpenAI("sglang"))
        assert found.reply.choices[0].reasoning == "a"
        assert found.reply.choices[0].content == "yes"

    run(work)


def test_thinking_within_its_budget_is_left_alone() -> None:
    async def work() -> None:
        async with FakeServer(thinking="a b", replies=("42",)) as server:
            found = await asked(server, request(budget=thinking(50)), OpenAI("sglang"))
            assert len(server.asked) == 1
        assert found.reply.choices[0].content == "42"

    run(work)


# ---------------------------------------------------------------- models, health, breaker


def test_models_are_configured_or_listed_with_prices_and_contexts() -> None:
    async def work() -> None:
        async with FakeVllm(models=("a", "b")) as server:
            listed = upstream(server.url, OpenAI("vllm"), models={}, check=60.0)
            assert listed.models() == ()
            await listed.start()
            assert [(served.name, served.context) for served in listed.models()] == [("a", 4096), ("b", 4096)]
            prices = {"alias": Price(1.0, 2.0)}
            named = upstream(server.url, models={"alias": "a"}, prices=prices)
            await named.start()
            assert named.models() == (
                Served(
                    "alias",
                    "up",
                    4096,
                    owned_by="up",
                    prompt_price=1.0,
                    cached_price=1.0,
                    output_price=2.0,
                    details={"model": "a"},  # an address inside is not for clients
                ),
            )
            found = await heard(named, request(model="alias"))
            assert found.refusal is None
            assert server.asked[0].body["model"] == "a"
            unknown = await heard(named, request(model="zzz"))
            assert unknown.refusal is not None
            assert unknown.refusal.status == 404
            await listed.close()
            await named.close()

    run(work)


def test_health_is_looked_after_in_the_background() -> None:
    async def work() -> None:
        async with FakeServer() as server:
            backend = upstream(server.url, check=0.02, breaker=BreakerSettings(failures=2, pause=30))
            await backend.start()
            assert backend.healthy
            await asyncio.sleep(0.15)
            assert sum(each.method == "GET" for each in server.requests) >= 3
        for _ in range(200):
            await asyncio.sleep(0.02)
            if backend.breaker.state == "open":
                break
        assert backend.breaker.state == "open"
        assert not backend.healthy
        await backend.close()

    run(work)


def test_a_server_that_keeps_failing_is_left_alone_and_tried_again() -> None:
    async def work() -> None:
        now = [0.0]
        async with FakeServer(faults=[refuse(500)] * 3) as server:
            backend = upstream(server.url, clock=lambda: now[0], breaker=BreakerSettings(failures=3, pause=10))
            for _ in range(3):
                await heard(backend)
            found = await heard(backend)
            assert found.refusal is not None
            assert (found.refusal.code, found.refusal.retry_after) == ("upstream_open", 10.0)
            assert len(server.asked) == 3
            now[0] = 10.0
            assert (await heard(backend)).refusal is None
            assert backend.breaker.state == "closed"
            await backend.close()

    run(work)


def test_what_is_wrong_with_a_request_does_not_open_the_breaker() -> None:
    async def work() -> None:
        faults = [refuse(400), refuse(429), refuse(404)] * 3
        async with FakeServer(faults=faults) as server:
            backend = upstream(server.url, breaker=BreakerSettings(failures=1))
            for _ in faults:
                await heard(backend)
            await heard(backend, request(strategy="vote(8)"))
            await heard(backend, request(sampling=Sampling(top_k=3)))
            assert backend.breaker.state == "closed"
            assert len(server.asked) == len(faults)
            await backend.close()

    run(work)


def test_a_trial_that_the_client_ends_gives_way_to_the_next() -> None:
    async def work() -> None:
        now = [0.0]
        async with FakeServer(faults=[refuse(500), hang()]) as server:
            backend = upstream(server.url, clock=lambda: now[0], breaker=BreakerSettings(failures=1, pause=1))
            await heard(backend)
            now[0] = 1.0
            assert (await heard(backend, request(deadline=0.1))).refusal is not None
            assert (await heard(backend)).refusal is None
            await backend.close()

    run(work)


def test_strategies_do_not_run_over_an_upstream() -> None:
    found, asked_for = once(refuse(500), request(strategy="vote(8)"))
    assert found.refusal is not None
    assert (found.refusal.param, asked_for) == ("strategy", 0)


# ---------------------------------------------------------------- counting, media


def test_tokens_are_counted_where_the_server_does() -> None:
    class Counting(FakeVllm):
        def post(self, path: str, body: Any) -> object:
            return {"count": 11} if path == "/tokenize" else super().post(path, body)

    async def work() -> None:
        async with Counting() as server:
            backend = upstream(server.url, OpenAI("vllm"))
            assert await backend.count(request()) == 11
            await backend.close()
            other = upstream(server.url)
            with pytest.raises(Exception, match="counts no tokens"):
                await other.count(request())
            await other.close()

    run(work)


def test_images_are_fetched_where_the_server_wants_bytes() -> None:
    async def work() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 3\r\n\r\nPNG")
            writer.close()

        async def resolve(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        images = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = images.sockets[0].getsockname()[1]
        media = Media(resolve=resolve, allowed=lambda address: True, ports=())
        async with FakeServer() as server:
            backend = upstream(server.url, media=media)
            found = await heard(backend, request(Message("user", (Image(f"http://img.example:{port}/a.png"),))))
            assert found.refusal is None
            sent = server.asked[0].body["messages"][0]["content"][0]["image_url"]["url"]
            assert sent == "data:image/png;base64,UE5H"
            await backend.close()
        images.close()

    run(work)


def test_logprobs_come_through() -> None:
    async def work() -> None:
        first = chunk({"content": "yes"})
        first["choices"][0]["logprobs"] = {"content": [{"token": "yes", "logprob": -0.5, "top_logprobs": []}]}
        async with Says([first, chunk({}, "stop"), DONE]) as server:
            found = await asked(server, request(sampling=Sampling(logprobs=0)))
        assert math.isclose(found.reply.choices[0].tokens[0].logprob, -0.5)

    run(work)


def test_a_hundred_requests_at_once_share_nothing() -> None:
    async def work() -> None:
        class Echo(FakeServer):
            def chat(self, body: Any) -> list[Any]:
                return [chunk({"content": body["messages"][0]["content"]}), chunk({}, "stop"), DONE]

        async with Echo() as server:
            backend = upstream(server.url)
            questions = [request(user(f"number {number}")) for number in range(100)]
            found = await asyncio.gather(*(heard(backend, each) for each in questions))
            assert [each.reply.choices[0].content for each in found] == [f"number {n}" for n in range(100)]
            await backend.close()

    run(work)


def test_a_plain_error_body_is_bounded() -> None:
    body = json.dumps({"error": {"message": "x" * 50_000}}).encode()
    found, _ = once(lambda steps: Plain(400, body, {"content-type": "application/json"}))
    assert found.refusal is not None
    assert len(str(found.refusal)) < 800

"""Backends made of others: who is asked, who is asked next, and that every attempt is accounted for."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from decimal import Decimal

import pytest
from faults import cut_after, hang, refuse
from hypothesis import given
from hypothesis import strategies as st
from servers import FakeServer
from upstreams import heard, request, upstream

from ponder.errors import InputError
from ponder.ops.prices import Rate
from ponder.server.backend import Served
from ponder.server.events import Begun, Content, Ended, ReplyEvent, Token, Usage
from ponder.server.failures import Refusal, invalid, limited
from ponder.server.request import Request
from ponder.server.routing import Route, Target, cheapest_first, fallback, moves_on, weighted
from ponder.server.routing_cascade import Cascade
from ponder.server.upstream_breaker import BreakerSettings
from ponder.types import Budget, Question, Sample, Score

BUSY = limited("too many", 1.0)


class Place:
    """A backend that does what it is told, and remembers what it was asked."""

    def __init__(
        self, name: str, *does: Sequence[ReplyEvent | Exception] | Refusal, price: float | None = None
    ) -> None:
        self.name = name
        self.does = list(does) or [answer(name)]
        self.asked: list[Request] = []
        self.price = price
        self.context = 100

    def models(self) -> tuple[Served, ...]:
        return (Served("m", self.name, self.context, prompt_price=self.price, output_price=self.price),)

    async def reply(self, request: Request, stop: asyncio.Event) -> AsyncGenerator[ReplyEvent, None]:
        self.asked.append(request)
        does = self.does.pop(0) if len(self.does) > 1 else self.does[0]
        if isinstance(does, Refusal):
            raise does
        for event in does:
            if isinstance(event, Exception):
                raise event
            yield event

    async def count(self, request: Request) -> int:
        raise Refusal(501, "api_error", "no")

    async def close(self) -> None: ...


def answer(text: str, logprob: float | None = None, reason: str = "stop") -> list[ReplyEvent]:
    tokens = () if logprob is None else (Token(text, logprob),)
    used = Usage(10, 0, 4)
    return [Begun("m", "b", "hard"), Content(text, 0, tokens), Ended(reason), used]  # type: ignore[arg-type]


def target(place: Place) -> Target:
    return Target(place, "m")


async def said(route: Route | Cascade, asked: Request | None = None) -> str:
    found = await heard(route, asked or request(model="r"))
    return found.reply.choices[0].content


# ---------------------------------------------------------------- fallback


def test_the_next_place_is_asked_where_one_cannot_answer() -> None:
    first, second = Place("a", BUSY, price=1.0), Place("b", price=2.0)
    found = asyncio.run(heard(fallback("r", [target(first), target(second)]), request(model="r")))
    assert found.refusal is None
    assert found.events[0] == Begun("r", "b", "hard")
    assert found.reply.choices[0].content == "b"
    assert second.asked[0].model == "m"
    used = found.reply.usage
    assert used is not None
    assert (used.prompt, used.completion) == (10, 4)
    assert [(each["backend"], each["completion"], each.get("error", "")[:8]) for each in used.extra["attempts"]] == [
        ("a", 0, "too many"),
        ("b", 4, ""),
    ]
    assert used.dollars == pytest.approx(14 * 2.0 / 1e6)


@pytest.mark.parametrize("refusal", [invalid("no such field"), Refusal(413, "invalid_request_error", "large")])
def test_what_is_wrong_with_the_request_is_wrong_everywhere(refusal: Refusal) -> None:
    first, second = Place("a", refusal), Place("b")
    found = asyncio.run(heard(fallback("r", [target(first), target(second)])))
    assert found.refusal is refusal
    assert not second.asked


def test_a_longer_context_may_be_found_elsewhere() -> None:
    assert moves_on(invalid("too long", code="context_length_exceeded"))
    assert not moves_on(invalid("wrong"))


def test_once_something_came_nothing_is_asked_again() -> None:
    broken: list[ReplyEvent | Exception] = [*answer("half")[:2], Usage(10, 0, 1), BUSY]
    first, second = Place("a", broken), Place("b")
    found = asyncio.run(heard(fallback("r", [target(first), target(second)])))
    assert found.refusal is BUSY
    assert not second.asked
    assert isinstance(found.events[-1], Usage)
    assert [each["backend"] for each in found.events[-1].extra["attempts"]] == ["a"]


def test_where_nobody_can_the_last_one_says_why() -> None:
    last = Refusal(503, "overloaded_error", "the last")
    found = asyncio.run(heard(fallback("r", [target(Place("a", BUSY)), target(Place("b", last))])))
    assert found.refusal is last
    assert not found.events


def test_a_request_that_may_have_been_begun_counts_with_its_prompt() -> None:
    late = Refusal(504, "timeout_error", "silent", code="timeout", lost=True)
    found = asyncio.run(heard(fallback("r", [target(Place("a", late, price=1.0)), target(Place("b", price=1.0))])))
    used = found.reply.usage
    assert used is not None
    lost = used.extra["attempts"][0]
    assert lost["estimated"]
    assert lost["prompt"] > 0
    assert used.prompt == 10 + lost["prompt"]
    assert used.dollars == pytest.approx((used.prompt + used.completion) / 1e6)


def test_the_next_place_has_the_time_that_is_left() -> None:
    class Slow(Place):
        async def reply(self, request: Request, stop: asyncio.Event) -> AsyncGenerator[ReplyEvent, None]:
            await asyncio.sleep(0.2)
            raise BUSY
            yield

    second = Place("b")
    asked = request(deadline=1.0, budget=Budget(seconds=0.9))
    asyncio.run(heard(fallback("r", [target(Slow("a")), target(second)]), asked))
    (got,) = second.asked
    assert got.deadline is not None
    assert got.budget.seconds is not None
    assert got.deadline < 0.85
    assert got.budget.seconds < 0.75
    third = Place("c")
    found = asyncio.run(heard(fallback("r", [target(Slow("a")), target(third)]), request(deadline=0.1)))
    assert found.refusal is BUSY
    assert not third.asked


def test_real_upstreams_with_an_open_breaker_are_passed_over() -> None:
    async def run() -> None:
        ill = FakeServer(faults=[refuse(500)] * 2)
        async with ill, FakeServer(replies=("well",)) as well:
            first = upstream(ill.url, name="a", breaker=BreakerSettings(failures=2, pause=30))
            second = upstream(well.url, name="b")
            route = fallback("r", [Target(first, "tiny"), Target(second, "tiny")])
            for _ in range(5):
                assert await said(route) == "well"
            assert len(ill.asked) == 2
            assert len(well.asked) == 5
            await first.close()
            await second.close()

    asyncio.run(run())


def test_a_generation_is_never_done_twice() -> None:
    async def run() -> None:
        dying = FakeServer(faults=[cut_after(2), hang()])
        async with dying, FakeServer() as other:
            first, second = upstream(dying.url, name="a"), upstream(other.url, name="b")
            route = fallback("r", [Target(first, "tiny"), Target(second, "tiny")])
            found = await heard(route)
            assert found.refusal is not None
            assert not other.asked
            stop = asyncio.Event()
            asyncio.get_running_loop().call_later(0.1, stop.set)
            found = await heard(route, stop=stop)
            assert [event for event in found.events if isinstance(event, Ended)] == [Ended("cancelled")]
            assert not other.asked
            await first.close()
            await second.close()

    asyncio.run(run())


# ---------------------------------------------------------------- weights and prices


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_weights_are_kept_exactly_and_evenly(weights: list[int]) -> None:
    places = [Place(str(number)) for number in range(len(weights))]
    route = weighted("r", {target(place): weight for place, weight in zip(places, weights, strict=True)})
    order = [route._sorted(request())[0].backend.name for _ in range(3 * sum(weights))]
    for start in range(0, len(order), sum(weights)):
        counts = Counter(order[start : start + sum(weights)])
        assert counts == Counter({str(number): weight for number, weight in enumerate(weights)})


def test_weights_skip_what_is_open_and_fall_back() -> None:
    async def run() -> None:
        ill = FakeServer(faults=[refuse(500)])
        async with ill, FakeServer(replies=("b",)) as well, FakeServer(replies=("c",)) as third:
            first = upstream(ill.url, name="a", breaker=BreakerSettings(failures=1, pause=30))
            others = [upstream(well.url, name="b"), upstream(third.url, name="c")]
            route = weighted(
                "r", {Target(first, "tiny"): 4, Target(others[0], "tiny"): 3, Target(others[1], "tiny"): 1}
            )
            replies = Counter([await said(route) for _ in range(9)])
            assert len(ill.asked) == 1
            assert replies["b"] == 7  # of the first and of three in four from then on
            for each in (first, *others):
                await each.close()

    asyncio.run(run())


def test_the_cheapest_is_asked_first_and_the_unknown_last() -> None:
    places = [Place("dear", price=5.0), Place("unknown"), Place("cheap", price=1.0), Place("middle", BUSY, price=2.0)]
    route = cheapest_first("r", [target(place) for place in places])
    assert [each.backend.name for each in route._sorted(request())] == ["cheap", "middle", "dear", "unknown"]
    places[2].does = [BUSY]
    assert asyncio.run(said(route)) == "dear"


def test_price_depends_on_the_request() -> None:
    rates = {"a": Rate(prompt=Decimal(1), output=Decimal(10)), "b": Rate(prompt=Decimal(5), output=Decimal(1))}
    route = cheapest_first("r", [target(Place("a")), target(Place("b"))], lambda served: rates[served.backend])
    assert route._sorted(request(budget=Budget(tokens=1)))[0].backend.name == "a"
    assert route._sorted(request(budget=Budget(tokens=1000)))[0].backend.name == "b"


def test_a_route_looks_like_the_dearest_and_longest_of_its_places() -> None:
    places = [Place("a", price=1.0), Place("b", price=3.0)]
    places[1].context = 500
    (served,) = fallback("r", [target(place) for place in places]).models()
    assert (served.name, served.context, served.prompt_price, served.output_price) == ("r", 500, 3.0, 3.0)
    assert served.details == {"targets": ["a/m", "b/m"]}
    (unknown,) = fallback("r", [target(Place("a", price=1.0)), target(Place("b"))]).models()
    assert unknown.prompt_price is None


def test_routes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="place"):
        fallback("r", [])
    with pytest.raises(ValueError, match="weights"):
        weighted("r", {target(Place("a")): 0})


def test_counting_asks_those_that_can() -> None:
    class Counts(Place):
        async def count(self, request: Request) -> int:
            return 7

    route = fallback("r", [target(Place("a")), target(Counts("b"))])
    assert asyncio.run(route.count(request())) == 7
    with pytest.raises(Refusal, match="no"):
        asyncio.run(fallback("r", [target(Place("a"))]).count(request()))


# ---------------------------------------------------------------- cascades


def cascade(small: Place, large: Place, threshold: float = 0.5, **more: object) -> Cascade:
    return Cascade("r", target(small), target(large), threshold=threshold, **more)  # type: ignore[arg-type]


def test_a_sure_answer_of_the_small_model_stands() -> None:
    small, large = Place("s", answer("small", math.log(0.9)), price=1.0), Place("l", price=9.0)
    found = asyncio.run(heard(cascade(small, large), request(model="r")))
    assert found.events[0] == Begun("r", "b", "hard")
    assert found.reply.choices[0].content == "small"
    assert not large.asked
    assert small.asked[0].sampling.logprobs == 0


@pytest.mark.parametrize(
    "does",
    [answer("small", math.log(0.2)), answer("small"), answer("small", -0.01, "length"), BUSY, [*answer("s")[:2], BUSY]],
)
def test_an_answer_that_is_not_sure_is_given_by_the_large_one(does: Sequence[ReplyEvent | Exception] | Refusal) -> None:
    small, large = Place("s", does, price=1.0), Place("l", price=9.0)
    found = asyncio.run(heard(cascade(small, large), request(model="r")))
    assert found.reply.choices[0].content == "l"
    used = found.reply.usage
    assert used is not None
    attempts = used.extra["attempts"]
    assert attempts[-1]["backend"] == "l"
    if does not in (BUSY,) and not isinstance(does[-1], Exception):  # type: ignore[index]
        assert [each["backend"] for each in attempts] == ["s", "l"]
        assert (used.prompt, used.completion) == (20, 8)
        assert used.dollars == pytest.approx((14 * 1.0 + 14 * 9.0) / 1e6)


def test_the_small_answer_is_better_than_none() -> None:
    small, large = Place("s", answer("small", math.log(0.2))), Place("l", BUSY)
    found = asyncio.run(heard(cascade(small, large)))
    assert found.refusal is None
    assert found.reply.choices[0].content == "small"
    assert found.reply.usage is not None
    assert "too many" in found.reply.usage.extra["attempts"][1]["error"]


def test_where_both_fail_the_large_one_says_why_and_the_small_ones_tokens_count() -> None:
    half: list[ReplyEvent | Exception] = [*answer("half")[:2], Usage(10, 0, 1), BUSY]
    last = Refusal(503, "overloaded_error", "the last")
    found = asyncio.run(heard(cascade(Place("s", half), Place("l", last))))
    assert found.refusal is last
    assert isinstance(found.events[-1], Usage)
    assert found.events[-1].completion == 1


def test_a_verifier_judges_in_place_of_the_tokens() -> None:
    async def verifier(question: Question, sample: Sample) -> Score:
        if sample.answer == "broken":
            raise InputError("cannot judge")
        return Score(float(sample.answer == "good"), "v")

    for text, expected in (("good", "good"), ("bad", "l"), ("broken", "l")):
        small = Place("s", answer(text))
        assert asyncio.run(said(cascade(small, Place("l"), verifier=verifier))) == expected
        assert small.asked[0].sampling.logprobs is None


def test_the_small_model_has_its_share_of_the_time() -> None:
    small = Place("s", answer("small", 0.0))
    asyncio.run(heard(cascade(small, Place("l")), request(deadline=2.0)))
    assert small.asked[0].deadline == 1.0


def test_a_cascade_gives_one_choice_and_reserves_for_both() -> None:
    route = cascade(Place("s", price=1.0), Place("l", price=9.0))
    found = asyncio.run(heard(route, request(n=2)))
    assert found.refusal is not None
    assert found.refusal.param == "n"
    assert route.models()[0].output_price == 10.0
    with pytest.raises(ValueError, match="no cascade"):
        cascade(Place("s"), Place("l"), math.nan)

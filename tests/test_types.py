"""The values: they survive JSON unchanged, refuse what they do not know, and their arithmetic holds."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder import types
from ponder.types import (
    VERSION,
    AnswerDelta,
    Audio,
    BestAnswer,
    Budget,
    Cost,
    Done,
    Event,
    Image,
    Message,
    Provenance,
    Question,
    Sample,
    SampleFinished,
    Score,
    Scored,
    Span,
    Text,
    Thinking,
    ThinkingDelta,
    ToolCall,
    ToolCalled,
    ToolResult,
    ToolReturned,
    Trace,
    Video,
    ask,
    assistant,
    event_from_json,
    event_to_json,
    from_dict,
    from_json,
    system,
    to_dict,
    to_json,
    user,
)

# ---------------------------------------------------------------- any value

texts = st.text(max_size=8)
counts = st.integers(0, 10**6)
floats = st.floats(0, 1e9)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
json_objects = st.dictionaries(texts, json_values, max_size=2)


def tuples(items: st.SearchStrategy[Any], size: int = 3) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=size).map(tuple)


calls = st.builds(ToolCall, texts, texts, texts)
results = st.builds(ToolResult, texts, texts, st.booleans())
parts = st.one_of(
    st.builds(Text, texts),
    st.builds(Thinking, texts),
    st.builds(Image, texts),
    st.builds(Audio, texts),
    st.builds(Video, tuples(texts), floats),
    calls,
    results,
)
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), tuples(parts))
questions = st.builds(
    Question,
    messages=tuples(messages),
    reference=st.none() | texts,
    task=st.none() | texts,
    tools=tuples(json_objects, 2),
    metadata=json_objects,
)
spans = st.builds(Span, st.sampled_from(["thinking", "answer", "tool_call", "marker"]), counts, counts)
tokens = tuples(st.tuples(counts, st.booleans(), st.none() | st.floats(-1e6, 0)))
costs = st.builds(
    Cost,
    **{
        field.name: {"seconds": floats, "flops": st.none() | floats, "dollars": st.none() | floats}.get(
            field.name, counts
        )
        for field in dataclasses.fields(Cost)
    },
)
scores = st.builds(Score, floats, texts, texts, tuples(floats))
budgets = st.builds(
    Budget,
    tokens=st.none() | st.integers(100, 10**6),
    seconds=st.none() | st.floats(0.1, 1e6),
    dollars=st.none() | st.floats(0.1, 1e6),
    calls=st.none() | st.integers(1, 100),
    answer=st.none() | st.integers(1, 100),
    thinking=st.none() | st.integers(50, 1000),
    min_thinking=st.integers(0, 50),
)
provenances = st.builds(
    Provenance,
    model=texts,
    adapters=st.dictionaries(texts, floats, max_size=2),
    strategy=texts,
    settings=json_objects,
    prompt_version=st.none() | texts,
    seed=st.none() | counts,
    parent=st.none() | texts,
    synthetic=st.booleans(),
    software=texts,
)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    rows = draw(tokens)
    return Sample(
        index=draw(counts),
        text=draw(texts),
        prompt_ids=draw(tuples(counts)),
        ids=tuple(row[0] for row in rows),
        mask=tuple(row[1] for row in rows),
        logprobs=tuple(row[2] for row in rows),
        finish=draw(st.sampled_from(["stop", "length", "cancelled", "error"])),
        spans=draw(tuples(spans)),
        thinking=draw(texts),
        answer=draw(texts),
        tool_calls=draw(tuples(calls)),
        exact=draw(st.booleans()),
    )


events = st.one_of(
    st.builds(ThinkingDelta, texts, counts),
    st.builds(AnswerDelta, texts, counts),
    st.builds(ToolCalled, calls, counts),
    st.builds(ToolReturned, results),
    st.builds(SampleFinished, samples(), costs),
    st.builds(Scored, scores, counts, costs),
    st.builds(BestAnswer, texts, counts),
)
traces = st.builds(
    Trace,
    id=texts,
    question=questions,
    answer=texts,
    cost=costs,
    samples=tuples(samples(), 2),
    scores=tuples(scores, 2),
    events=tuples(events, 4),
    provenance=provenances,
    budget=budgets,
    state=st.sampled_from(["running", "done", "interrupted", "failed"]),
    created=texts,
    error=st.none() | texts,
)

# ---------------------------------------------------------------- JSON


@given(st.one_of(traces, questions, samples(), scores, costs, budgets, provenances, messages))
@settings(deadline=None, max_examples=150)
def test_values_come_back_from_json_unchanged(value: Any) -> None:
    line = to_json(value)
    assert "\n" not in line
    back = from_json(type(value), line)
    assert back == value
    assert type(back) is type(value)
    no_lists(back)


def no_lists(value: Any) -> None:
    """Sequences must come back as tuples, not lists, at every depth outside free-form mappings."""
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        assert not isinstance(inner, list), field.name
        for each in inner if isinstance(inner, tuple) else (inner,):
            if dataclasses.is_dataclass(each):
                no_lists(each)


@given(events | st.builds(Done, traces))
@settings(deadline=None, max_examples=60)
def test_every_event_comes_back_from_json_unchanged(event: Event) -> None:
    line = event_to_json(event)
    assert "\n" not in line
    assert event_from_json(line) == event


def test_every_kind_of_event_is_tried_above() -> None:
    tried = {ThinkingDelta, AnswerDelta, ToolCalled, ToolReturned, SampleFinished, Scored, BestAnswer, Done}
    assert set(Event.__args__) == tried  # type: ignore[attr-defined]


@pytest.mark.parametrize("version", [None, 0, VERSION + 1, str(VERSION)])
def test_other_versions_are_refused(version: Any) -> None:
    document = {**to_dict(Cost(answer=1)), "version": version}
    if version is None:
        del document["version"]
    with pytest.raises(ValueError, match=f"version {version!r}; this ponder reads version {VERSION}"):
        from_dict(Cost, document)
    with pytest.raises(ValueError, match="version"):
        event_from_json(json.dumps({**to_dict(AnswerDelta("x")), "version": 99}))


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        (Cost, "[]", "object was expected"),
        (Cost, "7", "object was expected"),
        (Cost, "not JSON", "Expecting value"),
        (Cost, '{"version": 1, "answer": "many"}', "answer"),
        (Trace, '{"version": 1, "id": "t"}', "question"),
        (Score, '{"version": 1, "value": 1, "verifier": null}', "verifier"),
        (Message, '{"version": 1, "role": "god", "parts": []}', "role"),
        (Message, '{"version": 1, "role": "user", "parts": [{"type": "smell", "text": "x"}]}', "parts"),
        (Sample, '{"version": 1, "index": 0, "text": "", "ids": [1], "mask": [], "logprobs": []}', "1 ids, 0 masks"),
        (Budget, '{"version": 1, "tokens": -5}', "must be above 0, not -5"),
    ],
)
def test_documents_of_another_shape_are_refused(kind: type[Any], text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        from_json(kind, text)


def test_unknown_events_are_refused() -> None:
    with pytest.raises(ValueError, match="'explosion' is no event of this ponder"):
        event_from_json('{"version": 1, "type": "explosion"}')
    with pytest.raises(ValueError, match="None is no event"):
        event_from_json('{"version": 1}')


def test_json_is_readable_and_says_its_version() -> None:
    assert json.loads(to_json(AnswerDelta("é"))) == {
        "version": VERSION,
        "text": "é",
        "sample": 0,
        "type": "answer_delta",
    }
    assert "é" in to_json(AnswerDelta("é"))


def test_importing_the_values_stays_light() -> None:
    code = (
        "import sys, ponder.types;"
        "heavy = [m for m in ('pydantic', 'numpy', 'httpx', 'rich') if m in sys.modules];"
        "ours = [m for m in sys.modules if m.startswith('ponder.') and m != 'ponder.types'];"
        "sys.exit(f'{heavy} {ours}' if heavy or ours else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- cost


counted = costs.map(lambda cost: dataclasses.replace(cost, seconds=float(int(cost.seconds)), flops=None, dollars=1.0))


@given(counted, counted, counted)
@settings(deadline=None)
def test_costs_add_up_in_any_order(a: Cost, b: Cost, c: Cost) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Cost() == a
    assert sum((a, b, c), Cost()) == a + b + c


@given(costs, costs)
@settings(deadline=None)
def test_every_field_is_added_and_the_unknown_stays_unknown(a: Cost, b: Cost) -> None:
    total = a + b
    for field in dataclasses.fields(Cost):
        one, other, both = (getattr(cost, field.name) for cost in (a, b, total))
        assert both == (None if one is None or other is None else one + other), field.name


@given(costs, costs)
@settings(deadline=None)
def test_totals_are_the_sums_of_their_parts(a: Cost, b: Cost) -> None:
    assert a.generated == a.thinking + a.answer + a.verifier + a.probe + a.cancelled
    assert a.tokens == a.generated + a.written
    assert a.prompt == a.prompt_computed + a.prompt_cached
    assert (a + b).tokens == a.tokens + b.tokens
    assert (a + b).prompt == a.prompt + b.prompt


@given(costs, costs)
@settings(deadline=None)
def test_costs_compare_in_every_known_count(a: Cost, b: Cost) -> None:
    assert a <= a + b
    assert a <= a
    if a <= b and b <= a and None not in (a.flops, b.flops, a.dollars, b.dollars):
        assert a == b
    for field in dataclasses.fields(Cost):
        if getattr(a, field.name) is not None:
            more = dataclasses.replace(a, **{field.name: getattr(a, field.name) + 1})
            assert a <= more
            assert not more <= a, field.name


def test_costs_add_to_costs_alone() -> None:
    with pytest.raises(TypeError):
        Cost() + 1  # type: ignore[operator]


# ---------------------------------------------------------------- budget


@pytest.mark.parametrize("name", ["tokens", "seconds", "dollars", "calls", "answer"])
@pytest.mark.parametrize("value", [0, -1])
def test_bounds_must_be_above_nothing(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"a budget's {name} must be above 0, not {value}"):
        Budget(**{name: value})


@pytest.mark.parametrize("name", ["thinking", "min_thinking"])
def test_thinking_may_be_nothing_but_not_less(name: str) -> None:
    assert getattr(Budget(**{name: 0}), name) == 0
    with pytest.raises(ValueError, match=f"a budget's {name} must be at least 0, not -1"):
        Budget(**{name: -1})


def test_contradictions_name_both_sides() -> None:
    with pytest.raises(ValueError, match="answer=20 does not fit into tokens=10"):
        Budget(tokens=10, answer=20)
    with pytest.raises(ValueError, match="min_thinking=5 is above thinking=4"):
        Budget(thinking=4, min_thinking=5)
    Budget(tokens=10, answer=10, thinking=4, min_thinking=4)


@given(st.integers(1, 10**6))
@settings(deadline=None)
def test_the_answer_reserve_is_a_quarter_but_one_to_64(size: int) -> None:
    reserve = Budget(tokens=size).reserve
    assert 1 <= reserve <= min(64, size)
    assert reserve == min(64, max(1, size // 4))
    assert Budget(tokens=size, answer=1).reserve == 1


def test_the_reserve_without_a_bound() -> None:
    assert Budget().reserve == 64
    assert Budget(answer=300).reserve == 300


@pytest.mark.parametrize(
    ("bound", "spent"),
    [
        ("tokens", {"thinking": 5}),
        ("tokens", {"written": 5}),
        ("tokens", {"cancelled": 2, "probe": 2, "verifier": 1}),
        ("seconds", {"seconds": 5.0}),
        ("dollars", {"dollars": 5.0}),
        ("calls", {"calls": 5}),
    ],
)
def test_a_budget_is_exceeded_only_above_its_bound(bound: str, spent: dict[str, Any]) -> None:
    cost = Cost(**spent)
    assert Budget(**{bound: 5}).exceeded(cost) is None
    assert Budget(**{bound: 4}).exceeded(cost) == bound
    assert Budget().exceeded(cost) is None


def test_prompt_tokens_and_unknown_prices_do_not_count_against_a_budget() -> None:
    assert Budget(tokens=1).exceeded(Cost(prompt_computed=100, prompt_cached=100)) is None
    assert Budget(dollars=1).exceeded(Cost(dollars=None)) is None


# ---------------------------------------------------------------- messages, samples, traces


def test_questions_from_whatever_is_at_hand() -> None:
    question = ask("hi")
    assert question == Question((user("hi"),))
    assert ask(question) is question
    assert ask([system("s"), user("a"), assistant("b", "hm"), user("c")]).text == "c"
    assert ask((assistant("b"),)).text == ""


def test_the_text_of_a_message_leaves_thinking_and_attachments_out() -> None:
    message = Message("assistant", (Thinking("hm"), Text("a"), Image("data:,"), Text("b"), ToolCall("f", "{}")))
    assert message.text == "ab"
    assert assistant("a", "hm").parts == (Thinking("hm"), Text("a"))
    assert assistant("a").parts == (Text("a"),)


@pytest.mark.parametrize("lengths", [(1, 0, 0), (1, 1, 0), (0, 1, 1), (2, 2, 1)])
def test_samples_need_a_mask_and_a_log_probability_for_each_token(lengths: tuple[int, int, int]) -> None:
    ids, mask, logprobs = lengths
    with pytest.raises(ValueError, match=f"{ids} ids, {mask} masks, {logprobs} log-probabilities"):
        Sample(0, "", ids=(1,) * ids, mask=(True,) * mask, logprobs=(None,) * logprobs)


def test_the_thinking_of_a_trace_is_that_of_the_sample_that_was_chosen() -> None:
    pair = (Sample(0, "", thinking="wrong", answer="5"), Sample(1, "", thinking="right", answer="4"))
    assert Trace("t", ask("2 + 2"), answer="4", samples=pair).thinking == "right"
    assert Trace("t", ask("2 + 2"), answer="7", samples=pair).thinking == ""


def test_values_cannot_be_changed() -> None:
    for value in (Cost(), Budget(), Text("x"), Trace("t", ask("q"))):
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.tokens = 1  # type: ignore[misc, union-attr]


def test_every_value_is_a_frozen_dataclass() -> None:
    for name, kind in vars(types).items():
        if isinstance(kind, type) and kind.__module__ == "ponder.types":
            assert kind.__dataclass_params__.frozen, name  # type: ignore[attr-defined]

"""Answers that a grammar binds: whole or cut, never wrong; thinking as it comes; the budget as hard as ever."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from drive import MARKERS, Outcome, Watched, babbler, check_told, of, outcome_of, think
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.chat.answer_grammar import any_json, constrained, json_schema, regular, tool_call
from ponder.chat.formats import DEEPSEEK_R1, ELICIT, FAMILIES, GPT_OSS, PONDER, QWEN3, THINK_TAGS, ThinkingFormat
from ponder.chat.model import Model, model_of
from ponder.engine.scripted import EOS, Fault, ScriptedEngine, says
from ponder.errors import NoAnswer, Unsupported
from ponder.strategies.beam_search import beam_search
from ponder.strategies.best_of_n import best_of_n
from ponder.strategies.budget_forcing import budget_forcing
from ponder.strategies.chain_of_thought import chain_of_thought
from ponder.strategies.direct import direct
from ponder.strategies.early_exit import early_exit
from ponder.strategies.refine import refine
from ponder.strategies.self_consistency import self_consistency
from ponder.types import AnswerDelta, Budget, Question, Sample, Score, ThinkingDelta, ask

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 12}, "b": {"enum": [1, 22, 333]}},
    "required": ["a", "b"],
}
CHECKER = jsonschema.Draft202012Validator(SCHEMA)
TOOLS = (
    {"name": "get", "parameters": {"type": "object", "properties": {"c": {"type": "string", "maxLength": 9}}}},
    {"name": "add", "parameters": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}},
)
SOLVED = "<think>\nWe add 3 and 4.</think>The answer is 7, and </think> here <think> there."


def bound(engine: Any, grammar: str = "", form: ThinkingFormat = PONDER) -> Model:
    return replace(of(engine, form), answer_grammar=grammar or json_schema(SCHEMA))


def is_whole(sample: Sample) -> bool:
    """A sample that stopped is valid, one that was cut is the beginning of something: which of them."""
    if sample.finish == "stop":
        CHECKER.validate(json.loads(sample.answer))
        return True
    assert sample.finish == "length"
    return False


# ---------------------------------------------------------------- whatever the model says

PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "</thi",
        "think>",
        "\n",
        " ",
        "{",
        '"',
        "}",
        '{"a": "x',
        "Wait. ",
        "3 + 4.",
        "é",
        "漢",
        "🤔",
        "7",
    ]
)
TEXTS = st.lists(PIECES, max_size=40).map("".join)
FORMS = st.sampled_from([THINK_TAGS, PONDER, DEEPSEEK_R1, QWEN3, FAMILIES["granite"], FAMILIES["mistral"], ELICIT])


@settings(max_examples=150)
@given(
    text=TEXTS,
    eos=st.booleans(),
    budget=st.integers(40, 300),
    n=st.integers(1, 3),
    wanted=st.booleans(),
    minimum=st.sampled_from([0, 0, 20]),
    form=FORMS,
    burst=st.sampled_from([1, 1, 3]),
    specials=st.sampled_from([(), MARKERS]),
)
def test_the_budget_stays_hard_and_what_stops_is_valid(
    text: str,
    eos: bool,
    budget: int,
    n: int,
    wanted: bool,
    minimum: int,
    form: ThinkingFormat,
    burst: int,
    specials: Any,
) -> None:
    engine = babbler(text, eos, burst=burst, specials=specials, grammar=True)
    outcome = think(bound(engine, form=form), Budget(tokens=n * budget, min_thinking=minimum), n, wanted)
    check_bound(engine, outcome, n * budget, n, form)
    if not wanted:
        assert outcome.error is None
    assert outcome.error is None or isinstance(outcome.error, NoAnswer)
    for sample, _ in outcome.finished:
        whole = is_whole(sample)
        assert whole or sample.answer[:1] in ("", "{")


def check_bound(engine: ScriptedEngine, outcome: Outcome, tokens: int, n: int, form: ThinkingFormat = PONDER) -> None:
    """As `drive.check`; but an answer that is bound may hold markers: they are text."""
    assert engine.open_streams == 0
    assert sorted(sample.index for sample, _ in outcome.finished) == list(range(n))
    assert outcome.total.tokens <= tokens
    assert outcome.total.generated == engine.generated
    for sample, cost in outcome.finished:
        assert outcome.said(ThinkingDelta, sample.index).strip() == sample.thinking
        assert outcome.said(AnswerDelta, sample.index).strip() == sample.answer
        assert len(sample.ids) == cost.tokens - cost.cancelled
        assert cost.written == sample.mask.count(False)
        whole = engine.tokenizer.decode(token for token in sample.ids if token != EOS).decode(errors="replace")
        assert whole.replace("\ufffd", "") == sample.text.replace("\ufffd", "")
        # To a format with other markers than these they are text.
        markers = {*form.open_markers, *form.close_markers} & {*MARKERS}
        assert not any(marker in sample.thinking for marker in markers)


@settings(max_examples=40)
@given(
    at=st.integers(0, 60), sample=st.sampled_from([None, 0, 1]), times=st.integers(1, 2), thinking=st.integers(0, 30)
)
def test_a_broken_connection_is_gone_on_from_in_the_middle_of_the_grammar(
    at: int, sample: int | None, times: int, thinking: int
) -> None:
    faults = (Fault("disconnect", at=at, sample=sample, times=times),)
    text = "<think>\n" + "x" * thinking + '</think>{"a": "1234567890", "b": 22}'
    engine = babbler(text, grammar=True, faults=faults)
    outcome = think(bound(engine), 400, 2)
    check_told(engine, outcome, 2)
    assert outcome.error is None
    assert all(is_whole(sample) for sample, _ in outcome.finished)


# ---------------------------------------------------------------- thinking is free, the answer is not


def test_thinking_is_asked_for_freely_and_the_answer_by_the_grammar() -> None:
    engine = Watched(babbler(SOLVED, grammar=True))
    outcome = think(bound(engine), 200)
    assert outcome.sample.thinking == "We add 3 and 4."
    assert is_whole(outcome.sample)
    (_, _, first), (prefix, _, second) = engine.asked
    assert (first.grammar, first.stops) == ("", ("</think>",))
    assert (second.grammar, second.stops, second.grammar_consumed) == (json_schema(SCHEMA), (), 0)
    assert engine.engine.tokenizer.decode(prefix).endswith(b"We add 3 and 4.\n</think>\n")


def test_several_samples_share_the_request_for_their_thinking_and_waste_next_to_nothing() -> None:
    engine = Watched(babbler("<think>\nA long thought about it.</think>" + "and more" * 40, grammar=True))
    outcome = think(bound(engine), 600, 3)
    assert [n for _, n, _ in engine.asked] == [3, 1, 1, 1]
    for sample, cost in outcome.finished:
        assert is_whole(sample)
        assert cost.cancelled <= len("</think>") + 1  # the model's own marker


def test_without_thinking_the_grammar_begins_at_once() -> None:
    engine = Watched(babbler("nothing like it", grammar=True))
    outcome = think(bound(engine), 300, 4, think=False)
    assert [(n, params.grammar != "") for _, n, params in engine.asked] == [(4, True)]
    assert all(is_whole(sample) for sample, _ in outcome.finished)
    assert outcome.total.written == outcome.total.cancelled == 0


def test_without_a_grammar_nothing_is_asked_otherwise() -> None:
    engine = Watched(babbler(SOLVED, grammar=True))
    outcome = think(of(engine), 200)
    assert all(not params.grammar and not params.stops and not params.top for _, _, params in engine.asked)
    assert outcome.sample.answer.startswith("The answer is 7")
    assert "</think>" not in outcome.sample.thinking


def test_an_end_of_turn_in_thinking_closes_it() -> None:
    outcome = think(bound(babbler("<think>\nHm.", grammar=True)), 200)
    assert outcome.sample.thinking == "Hm."
    assert is_whole(outcome.sample)


def test_thinking_that_is_too_short_waits_first() -> None:
    engine = babbler("<think>\nHm.</think>" + "I see. " * 30 + "</think>x", grammar=True)
    outcome = think(bound(engine), Budget(tokens=400, min_thinking=40))
    assert "Wait" in outcome.sample.thinking
    assert is_whole(outcome.sample)


@pytest.mark.parametrize("form", [PONDER, THINK_TAGS, ELICIT, GPT_OSS, FAMILIES["gemma"], FAMILIES["granite-phrases"]])
@pytest.mark.parametrize("wanted", [True, False])
def test_every_format_gives_the_answer_and_no_word_of_its_own(form: ThinkingFormat, wanted: bool) -> None:
    start, close = constrained(form, "").start, form.close_markers[0]
    engine = babbler(f"{start}First this. {close} Then that.", grammar=True)
    outcome = think(bound(engine, regular("[0-9]{4}"), form), 400, think=wanted)
    assert outcome.sample.answer.isdecimal()
    assert len(outcome.sample.answer) == 4
    assert outcome.sample.finish == "stop"
    assert bool(outcome.sample.thinking) == wanted


def test_markers_in_a_string_are_text() -> None:
    said = {"a": "<think>the answer is</think> <|im_end|> <tool_call>x</tool_call>"}
    schema = json_schema({"type": "object", "properties": {"a": {"const": said["a"]}}, "required": ["a"]})
    for form in (PONDER, ELICIT, GPT_OSS):
        for wanted in (True, False):
            model = bound(babbler("Hm.", specials=MARKERS, grammar=True), schema, form)
            sample = think(model, 500, think=wanted, question=replace(ask("?"), tools=TOOLS)).sample
            assert json.loads(sample.answer) == said
            assert sample.finish == "stop"
            assert not sample.tool_calls


def test_an_answer_of_which_nothing_is_a_word_is_an_answer() -> None:
    outcome = think(bound(babbler("<think>\nHm.", grammar=True), regular(r"\.\.\.")), 100)
    assert outcome.error is None
    assert (outcome.sample.answer, outcome.sample.finish) == ("...", "stop")


def test_an_answer_that_is_cut_says_so() -> None:
    schema = json_schema({"type": "string", "minLength": 500})
    outcome = think(bound(babbler("<think>\nHm.</think>", grammar=True), schema), 120)
    assert outcome.sample.finish == "length"
    assert outcome.sample.answer.startswith('"')
    assert outcome.total.tokens == 120


def test_an_engine_without_grammars_refuses() -> None:
    for how in ({}, {"chat_only": True}):
        model = replace(model_of(ScriptedEngine(says("7"), **how)), answer_grammar=any_json())
        outcome = outcome_of(direct()(ask("?"), model, Budget(tokens=100)))
        assert isinstance(outcome.error, Unsupported)
        assert "schema or grammar" in str(outcome.error)
        assert model.engine.calls == 0


# ---------------------------------------------------------------- calls


@pytest.mark.parametrize("style", ["hermes", "granite", "llama", "mistral", "mistral-named"])
@pytest.mark.parametrize("wanted", [True, False])
def test_a_forced_call_is_read_as_one(style: Any, wanted: bool) -> None:
    engine = babbler("<think>\nI call it.</think> no call at all", grammar=True)
    outcome = think(bound(engine, tool_call(style, TOOLS, "add")), 600, 2, wanted, replace(ask("?"), tools=TOOLS))
    for sample, _ in outcome.finished:
        assert sample.finish == "stop"
        assert sample.answer == ""
        assert sample.tool_calls
        for call in sample.tool_calls:
            assert call.name == "add"
            assert json.loads(call.arguments)["n"] in (1, 2)


def test_a_forced_call_of_channels_names_its_own() -> None:
    specials = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|constrain|>")
    for wanted in (True, False):
        start = constrained(GPT_OSS, "").start
        engine = babbler(f"{start}I call it.<|end|><|start|>assistant", specials=specials, grammar=True)
        model = bound(engine, tool_call("harmony", TOOLS, "add"), GPT_OSS)
        sample = think(model, 400, 1, wanted, replace(ask("?"), tools=TOOLS)).sample
        assert [call.name for call in sample.tool_calls] == ["add"]
        assert sample.thinking == ("I call it." if wanted else "")


# ---------------------------------------------------------------- every strategy


async def half(question: Question, sample: Sample) -> Score:
    return Score(0.5, "half")


@pytest.mark.parametrize(
    "strategy",
    [
        direct(),
        chain_of_thought(),
        budget_forcing(10),
        self_consistency(3),
        best_of_n(2, verifier=half),
        beam_search(2, 1, half),
        early_exit(16, 2, probe=60),
        refine(2),
    ],
    ids=lambda strategy: getattr(strategy, "__qualname__", "?"),
)
def test_every_strategy_gives_a_valid_answer(strategy: Callable[..., AsyncIterator[Any]]) -> None:
    engine = babbler(
        "<think>\nOne line.\nAnother line.\nAnd so on.\n</think>" + "something else entirely", grammar=True
    )
    outcome = outcome_of(strategy(ask("?"), bound(engine), Budget(tokens=1200)))
    assert outcome.error is None
    answers = [event.answer for event in outcome.events if event.type == "best_answer"]
    CHECKER.validate(json.loads(answers[-1]))
    assert outcome.total.tokens <= 1200
    for sample, _ in outcome.finished:
        if sample.finish == "stop":
            CHECKER.validate(json.loads(sample.answer))

"""Grammars on the engines themselves: a random model on torch, and the embedded one on llama.cpp."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_requests import BARE, ROUNDING, Got, take

from ponder.chat.answer_grammar import any_json, json_schema, regular, style_of, tool_call
from ponder.chat.formats import PONDER
from ponder.chat.model import Model, model_of
from ponder.chat.tool_calls import parse_tool_calls
from ponder.engine.llamacpp import LlamaEngine
from ponder.errors import InputError, Unsupported
from ponder.protocols import Engine, SamplingParams
from ponder.strategies.budget import think_within
from ponder.types import Budget, Question, SampleFinished, ask

TEXT = "<|im_start|>user\nSay something about the sea.<|im_end|>\n<|im_start|>assistant\n"
EXACT = 1e-4
Work = Callable[[Engine, list[int]], Awaitable[None]]
TOOLS: tuple[dict[str, Any], ...] = (
    {"name": "look",
     "parameters": {"type": "object", "properties": {"at": {"type": "string", "maxLength": 6}}, "required": ["at"]}},
    {"name": "add", "parameters": {"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"]}},
)  # fmt: skip

TEXTS = st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 6))
NUMBERS = st.builds(
    lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, st.integers(-9, 9), st.integers(0, 99)
)
CHOICES = st.builds(
    lambda each: {"enum": each}, st.lists(st.sampled_from(["a", "é🤔", 3, None, "<|im_end|>"]), min_size=1)
)
SCALARS = st.one_of(TEXTS, NUMBERS, CHOICES, st.just({"type": "boolean"}))
LISTS = st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, SCALARS, st.integers(0, 3))
SCHEMAS = st.builds(
    lambda properties: {"type": "object", "properties": properties, "required": list(properties)},
    st.dictionaries(st.sampled_from(["name", "é", "a b", "🤔"]), SCALARS | LISTS, max_size=3),
)


@pytest.fixture(params=["batched", "slow"])
def tiny(request: pytest.FixtureRequest) -> Iterator[Engine]:
    torch_engine = pytest.importorskip("ponder.engine.torch_engine", exc_type=ImportError)
    from tiny import tiny_model, tiny_tokenizer

    how = torch_engine.TorchSettings(slow=request.param == "slow", sequences=24, batch=32)
    made = torch_engine.TorchEngine(tiny_model(), tiny_tokenizer(), settings=how)
    yield made
    asyncio.run(made.close())


@pytest.fixture(params=[pytest.param("tiny"), pytest.param("llama", marks=pytest.mark.model)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "llama":
        yield request.getfixturevalue("llama")
        return
    torch_engine = pytest.importorskip("ponder.engine.torch_engine", exc_type=ImportError)
    from tiny import tiny_model, tiny_tokenizer

    made = torch_engine.TorchEngine(tiny_model(), tiny_tokenizer())
    yield made
    asyncio.run(made.close())


def on(engine: Engine, work: Work) -> None:
    async def run() -> None:
        await work(engine, await engine.tokenize(TEXT))

    asyncio.run(run())


async def said(engine: Engine, prompt: list[int], grammar: str, n: int = 1, most: int = 120, **how: Any) -> Got:
    adapters = BARE if isinstance(engine, LlamaEngine) else None
    return await take(engine, prompt, n, most, grammar=grammar, **({"adapters": adapters, "temperature": 2.0} | how))


def text_of(got: Got, index: int) -> str:
    return "".join(chunk.text for chunk in got.chunks if chunk.index == index)


def finish_of(got: Got, index: int) -> str:
    (finish,) = [chunk.finish for chunk in got.chunks if chunk.index == index and chunk.finish]
    return finish


def ids_of(got: Got, index: int) -> list[int]:
    return [token for chunk in got.chunks if chunk.index == index for token in chunk.ids]


# ---------------------------------------------------------------- valid, whatever the model wants


def check_schemas(engine: Engine, most: int, schema: dict[str, Any], seed: int, ignore_eos: bool) -> None:
    async def work(engine: Engine, prompt: list[int]) -> None:
        got = await said(engine, prompt, json_schema(schema), 2, most, seed=seed, ignore_eos=ignore_eos)
        for index in range(2):
            assert finish_of(got, index) == "stop"
            jsonschema.validate(json.loads(text_of(got, index)), schema)

    on(engine, work)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=SCHEMAS, seed=st.integers(0, 2**40), ignore_eos=st.booleans())
def test_a_random_model_at_temperature_2_writes_valid_json(
    tiny: Engine, schema: dict[str, Any], seed: int, ignore_eos: bool
) -> None:
    check_schemas(tiny, 150, schema, seed, ignore_eos)


@pytest.mark.model
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=SCHEMAS, seed=st.integers(0, 2**40), ignore_eos=st.booleans())
def test_the_embedded_model_at_temperature_2_writes_valid_json(
    llama: LlamaEngine, schema: dict[str, Any], seed: int, ignore_eos: bool
) -> None:
    check_schemas(llama, 150, schema, seed, ignore_eos)


@pytest.mark.parametrize("style", ["hermes", "granite", "llama", "mistral", "mistral-named"])
def test_forced_calls_are_calls_of_offered_tools(engine: Engine, style: Any) -> None:
    async def work(engine: Engine, prompt: list[int]) -> None:
        got = await said(engine, prompt, tool_call(style, TOOLS, parallel=False), 4)
        for index in range(4):
            assert finish_of(got, index) == "stop"
            (call,) = parse_tool_calls(text_of(got, index))
            schema = next(tool["parameters"] for tool in TOOLS if tool["name"] == call.name)
            jsonschema.validate(json.loads(call.arguments), schema)

    on(engine, work)


def test_characters_of_several_bytes_come_whole(engine: Engine) -> None:
    async def work(engine: Engine, prompt: list[int]) -> None:
        got = await said(engine, prompt, regular("[é漢🤔]{8}"), 6, 60)
        for index in range(6):
            text = text_of(got, index)
            assert len(text) == 8
            assert set(text) <= set("é漢🤔")
            assert len({text_of(got, index) for index in range(6)}) > 1

    on(engine, work)


def test_a_string_that_is_spelled_like_an_end_of_turn_ends_nothing(engine: Engine) -> None:
    async def work(engine: Engine, prompt: list[int]) -> None:
        const = "a<|im_end|><|im_start|>b"
        got = await said(engine, prompt, json_schema({"const": const}))
        assert json.loads(text_of(got, 0)) == const
        assert not set(engine.info.eos_ids) & set(ids_of(got, 0))
        (start,) = await engine.tokenize("<|im_start|>")
        assert start not in ids_of(got, 0)

    on(engine, work)


# ---------------------------------------------------------------- the same draw, however it is cut


def test_samples_of_one_request_are_those_of_single_ones(tiny: Engine) -> None:
    async def work(engine: Engine, prompt: list[int]) -> None:
        together = await said(engine, prompt, regular("[a-z ]{5,20}"), 5, seed=3)
        for index in range(5):
            alone = await said(engine, prompt, regular("[a-z ]{5,20}"), 1, seed=3, first=index)
            assert ids_of(alone, 0) == ids_of(together, index)
        assert len({tuple(ids_of(together, index)) for index in range(5)}) > 1

    on(tiny, work)


def test_going_on_in_the_middle_and_forking_there_equal_an_unbroken_draw(engine: Engine) -> None:
    grammar = json_schema(
        {"type": "array", "items": {"enum": ["sea", "é🤔", 12.5, {"a": "b"}]}, "minItems": 3, "maxItems": 4}
    )

    async def work(engine: Engine, prompt: list[int]) -> None:
        whole = await said(engine, prompt, grammar, temperature=0.0)
        ids = ids_of(whole, 0)
        assert finish_of(whole, 0) == "stop"
        for place in range(1, len(ids) + 1, 2):
            begun = [*prompt, *ids[:place]]
            rest = await said(engine, begun, grammar, 2, temperature=0.0, grammar_consumed=place)
            for index in range(2):
                again = [*ids[:place], *ids_of(rest, index)]
                assert finish_of(rest, index) == "stop"
                # Quantised products are rounded otherwise in batches of another shape: another token may win.
                assert again == ids or isinstance(engine, LlamaEngine)
                jsonschema.validate(json.loads(await engine.detokenize(again)), {"type": "array", "minItems": 3})
        forks = await said(engine, [*prompt, *ids[:3]], grammar, 4, grammar_consumed=3)
        for index in range(4):
            text = await engine.detokenize([*ids[:3], *ids_of(forks, index)])
            jsonschema.validate(json.loads(text), {"type": "array", "minItems": 3, "maxItems": 4})

    on(engine, work)


def test_what_was_cut_is_a_beginning(engine: Engine) -> None:
    grammar = json_schema({"type": "string", "minLength": 40, "maxLength": 60})

    async def work(engine: Engine, prompt: list[int]) -> None:
        short = await said(engine, prompt, grammar, 3, 4)
        assert [finish_of(short, index) for index in range(3)] == ["length"] * 3
        got = await said(engine, [*prompt, *ids_of(short, 1)], grammar, 1, grammar_consumed=4)
        assert 40 <= len(json.loads(await engine.detokenize([*ids_of(short, 1), *ids_of(got, 0)]))) <= 60

    on(engine, work)


def test_a_cancelled_request_leaves_others_and_later_ones_as_they_are(engine: Engine) -> None:
    async def work(engine: Engine, prompt: list[int]) -> None:
        expected = ids_of(await said(engine, prompt, regular("[a-z]{30}"), seed=5), 0)
        endless = json_schema({"type": "string", "minLength": 1000})
        params = SamplingParams(
            150, seed=1, grammar=endless, adapters=BARE if isinstance(engine, LlamaEngine) else None
        )
        stream = engine.sample(prompt, 3, params)
        while not (await anext(stream)).ids:
            pass
        beside = asyncio.ensure_future(said(engine, prompt, regular("[a-z]{30}"), seed=5))
        await anext(stream)
        await stream.aclose()
        assert ids_of(await beside, 0) == expected
        await said(engine, prompt, "", most=1)  # an end is told before it is forgotten
        assert (await engine.counts())["requests"] <= 1

    on(engine, work)


# ---------------------------------------------------------------- probabilities


def test_log_probabilities_are_the_model_s_own_and_the_likeliest_are_told(engine: Engine) -> None:
    async def work(engine: Engine, prompt: list[int]) -> None:
        near = ROUNDING if isinstance(engine, LlamaEngine) else EXACT
        for grammar in (regular("[a-z ]{6}"), ""):
            got = await said(engine, prompt, grammar, 1, 6, top=7)
            ids, chunks = ids_of(got, 0), [chunk for chunk in got.chunks if chunk.ids]
            bare = BARE if isinstance(engine, LlamaEngine) else None
            scored = await engine.score([*prompt, *ids], len(prompt), SamplingParams(1, adapters=bare))
            assert [chunk.logprobs[0] for chunk in chunks] == pytest.approx(list(scored), abs=near)
            for place, chunk in enumerate(chunks):
                ((_, best), *_) = told = chunk.top[0]
                assert len(told) == 7
                assert [chance for _, chance in told] == sorted((chance for _, chance in told), reverse=True)
                before = [*prompt, *ids[:place]]
                for token, chance in told[:3]:
                    (own,) = await engine.score([*before, token], len(before), SamplingParams(1, adapters=bare))
                    assert own == pytest.approx(chance, abs=near)
                assert chunk.logprobs[0] <= best + EXACT
                assert dict(told).get(ids[place], chunk.logprobs[0]) == pytest.approx(chunk.logprobs[0], abs=EXACT)

    on(engine, work)


def test_nothing_is_told_where_nothing_is_asked(engine: Engine) -> None:
    async def work(engine: Engine, prompt: list[int]) -> None:
        got = await said(engine, prompt, "", 2, 3)
        assert all(chunk.top == () for chunk in got.chunks)
        with pytest.raises(Unsupported, match="100 of the likeliest"):
            await said(engine, prompt, "", top=101)

    on(engine, work)


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize("grammar", ["start: /[a/", '{"grammars": [{"json_schema": {"type": "x"}}]}', "{", "start: x"])
def test_what_is_no_grammar_is_one_line_and_hurts_nobody(engine: Engine, grammar: str) -> None:
    async def work(engine: Engine, prompt: list[int]) -> None:
        with pytest.raises(InputError, match="the grammar cannot be used") as raised:
            await said(engine, prompt, grammar)
        assert "\n" not in str(raised.value)
        assert text_of(await said(engine, prompt, regular("ok")), 0) == "ok"

    on(engine, work)


def test_a_prefix_that_does_not_follow_the_grammar_is_refused(engine: Engine) -> None:
    async def work(engine: Engine, prompt: list[int]) -> None:
        with pytest.raises(InputError, match="does not begin with"):
            await said(engine, prompt, regular("[0-9]+"), grammar_consumed=2)
        with pytest.raises(InputError, match="does not end in"):
            await said(engine, prompt, regular("[0-9]+"), grammar_consumed=len(prompt) + 1)

    on(engine, work)


@pytest.mark.parametrize(
    "how", [{"grammar_consumed": 1}, {"grammar_consumed": -1, "grammar": "x"}, {"top": -1}, {"stops": ("",)}]
)
def test_settings_that_contradict_themselves_are_refused(how: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"grammar_consumed|top|stops"):
        SamplingParams(1, **how)


def test_a_sample_ends_at_any_of_its_stops(engine: Engine) -> None:
    async def work(engine: Engine, prompt: list[int]) -> None:
        got = await said(engine, prompt, regular("(a|b|é){40}"), 4, stops=("ab", "éé"))
        for index in range(4):
            text = text_of(got, index)
            assert "ab" in text or "éé" in text or finish_of(got, index) == "stop"
            last = await engine.detokenize(ids_of(got, index)[-1:])
            if finish_of(got, index) == "length" and "\ufffd" not in last:
                assert "ab" not in text[: -len(last)]
                assert "éé" not in text[: -len(last)]

    on(engine, work)


# ---------------------------------------------------------------- thinking and answering


def samples_of(model: Model, question: Question, budget: Budget, n: int, think: bool) -> list[SampleFinished]:
    async def run() -> list[SampleFinished]:
        events = [event async for event in think_within(model, question, budget, n, think)]
        return [event for event in events if isinstance(event, SampleFinished)]

    return asyncio.run(run())


@pytest.mark.parametrize("think", [True, False])
def test_a_model_thinks_freely_and_answers_as_it_must(engine: Engine, think: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["n"],
    }
    model = replace(model_of(engine), format=PONDER, answer_grammar=json_schema(schema))
    model = replace(model, params=replace(model.params, seed=4, temperature=1.0))
    for finished in samples_of(model, ask("How much is 3 + 4?"), Budget(tokens=240), 4, think):
        sample = finished.sample
        assert sample.finish == "stop"
        jsonschema.validate(json.loads(sample.answer), schema)
        assert bool(sample.thinking) == think
        assert finished.cost.tokens <= 60


def test_a_model_s_own_call_is_forced(engine: Engine) -> None:
    style = style_of(engine.info.chat_template or "")
    model = replace(model_of(engine), format=PONDER, answer_grammar=tool_call(style, TOOLS, "add", parallel=False))
    question = replace(ask("Add 22."), tools=TOOLS)
    for finished in samples_of(model, question, Budget(tokens=240, answer=90), 2, True):
        (call,) = finished.sample.tool_calls
        assert (call.name, finished.sample.answer) == ("add", "")
        assert json.loads(call.arguments)["n"] in (1, 22)


def test_any_json_is_json(engine: Engine) -> None:
    async def work(engine: Engine, prompt: list[int]) -> None:
        got = await said(engine, prompt, any_json(), 3, 60, temperature=0.7)
        for index in range(3):
            assert text_of(got, index).startswith("{")
            if finish_of(got, index) == "stop":
                json.loads(text_of(got, index))

    on(engine, work)


def test_others_go_on_while_the_vocabulary_of_grammars_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_engine = pytest.importorskip("ponder.engine.torch_engine", exc_type=ImportError)
    from tiny import tiny_model, tiny_tokenizer

    from ponder.engine import constraint

    began, goes_on = threading.Event(), threading.Event()

    class Slow(constraint.Vocabulary):
        def __init__(self, tokens: Any) -> None:
            began.set()
            assert goes_on.wait(30)
            super().__init__(tokens)

    monkeypatch.setattr(constraint, "Vocabulary", Slow)
    engine = torch_engine.TorchEngine(tiny_model(), tiny_tokenizer())

    async def work(engine: Engine, ids: list[int]) -> None:
        grammar = json_schema({"enum": ["yes"]})
        bound, left = (asyncio.create_task(take(engine, ids, 1, 12, grammar=grammar)) for _ in range(2))
        assert await asyncio.to_thread(began.wait, 30)
        plain = await take(engine, ids, 1, 4)
        assert plain.ids()
        assert not bound.done()
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        goes_on.set()
        assert (await bound).text() == '"yes"'
        await engine.close()

    on(engine, work)

"""The scripted engine: what it says, counts and breaks must be exactly what the script asks for."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.engine.scripted import (
    CHATML,
    EOS,
    HEADER,
    TOKENIZER,
    ByteTokenizer,
    Fault,
    ScriptedEngine,
    open_scripted,
    says,
    script,
)
from ponder.errors import (
    ContextOverflow,
    EngineDisconnected,
    EngineError,
    EngineUnavailable,
    GarbledReply,
    InputError,
    RateLimited,
    Unsupported,
)
from ponder.protocols import ChatChunk, Chunk, Engine, SamplingParams
from ponder.types import Message, Text, ToolResult, system, user

PROMPT = "<|im_start|>user\nhi<|im_end|>\n" + HEADER


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


async def gather(stream: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in stream]


def sampled(
    engine: ScriptedEngine, prompt: str | list[int] = PROMPT, n: int = 1, tokens: int = 500, **options: Any
) -> list[Chunk]:
    prefix = TOKENIZER.encode(prompt) if isinstance(prompt, str) else prompt
    return run(gather(engine.sample(prefix, n, SamplingParams(tokens, **options))))


def text_of(chunks: list[Chunk], index: int = 0) -> str:
    return "".join(chunk.text for chunk in chunks if chunk.index == index)


def ids_of(chunks: list[Chunk], index: int = 0) -> list[int]:
    return [token for chunk in chunks if chunk.index == index for token in chunk.ids]


def said_after(reply: Any, turn: str, index: int = 0) -> str:
    return text_of(sampled(ScriptedEngine(reply), PROMPT + turn, n=index + 1), index)


# ---------------------------------------------------------------- tokenizer


@given(st.text())
@settings(deadline=None, max_examples=40)
def test_tokenizing_is_lossless(text: str) -> None:
    engine = ScriptedEngine(says("x"), specials=("<think>",))
    ids = run(engine.tokenize(text))
    assert run(engine.detokenize(ids)) == text


def test_special_tokens_become_one_id_and_everything_else_is_bytes() -> None:
    assert TOKENIZER.encode("é<|im_end|><|im_start|>!") == [0xC3, 0xA9, EOS, EOS + 1, 33]
    assert ByteTokenizer(("<think>",)).encode("<think></think>") == [EOS + 2, *b"</think>"]
    assert ByteTokenizer(("<|im_start|>", "<|im_end|>")).names == TOKENIZER.names
    assert ByteTokenizer(eos="</s>").encode("</s>") == [EOS]
    assert ByteTokenizer(("<a>", "<a><b>")).encode("<a><b>") == [EOS + 3]


def test_unknown_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="258 is no token id"):
        TOKENIZER.decode([258])
    with pytest.raises(ValueError, match="-1 is no token id"):
        sampled(ScriptedEngine(says("x")), [-1])


def test_it_is_an_engine_and_says_what_it_is() -> None:
    engine = ScriptedEngine(says("x"), name="toy", context=100, specials=("<think>",))
    assert isinstance(engine, Engine)
    assert engine.uri == "scripted:toy"
    assert (engine.info.name, engine.info.context, engine.info.eos_ids) == ("toy", 100, (EOS,))
    assert engine.info.chat_template == CHATML
    assert engine.capabilities.tokens
    assert not engine.capabilities.chat
    assert not engine.capabilities.logprobs


def test_the_template_writes_what_the_replies_look_for() -> None:
    import jinja2

    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    written = jinja2.Template(CHATML).render(messages=messages, add_generation_prompt=True)
    assert written == "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert not jinja2.Template(CHATML).render(messages=messages, add_generation_prompt=False).endswith(HEADER)


def test_importing_it_loads_no_pydantic() -> None:
    code = "import sys, ponder.engine.scripted; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- sampling


def ordinary(size: int) -> st.SearchStrategy[str]:
    """Texts in which no special token can hide."""
    return st.text(st.characters(exclude_characters="|", exclude_categories=["Cs"]), min_size=1, max_size=size)


@given(ordinary(40), st.integers(1, 60), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_text_is_held_back_to_whole_characters_and_counts_are_exact(text: str, tokens: int, burst: int) -> None:
    engine = ScriptedEngine(says(text), burst=burst)
    chunks = sampled(engine, tokens=tokens)
    ids = ids_of(chunks)
    whole = [*text.encode(), EOS]
    assert ids == whole[:tokens]
    assert chunks[-1].finish == ("stop" if len(whole) <= tokens else "length")
    assert all(chunk.finish is None for chunk in chunks[:-1])
    assert "\ufffd" not in text_of(chunks) or "\ufffd" in text
    assert text_of(chunks) == bytes(t for t in ids if t != EOS).decode(errors="ignore")
    for end, chunk in enumerate(chunks, start=1):
        given = bytes(t for each in chunks[:end] for t in each.ids if t != EOS)
        assert chunk.pending == (len(given.decode(errors="ignore").encode()) < len(given))
    assert engine.generated == len(ids)
    assert all(len(chunk.ids) <= burst for chunk in chunks)
    assert all(chunk.logprobs == (None,) * len(chunk.ids) for chunk in chunks)


@given(ordinary(20), st.data())
@settings(deadline=None, max_examples=60)
def test_a_fork_at_any_token_continues_bytes_and_text(text: str, data: st.DataObject) -> None:
    engine = ScriptedEngine(says(text))
    whole = sampled(engine)
    cut = data.draw(st.integers(0, len(text.encode())))
    first = sampled(engine, tokens=cut) if cut else []
    second = sampled(engine, TOKENIZER.encode(PROMPT) + ids_of(first))
    assert ids_of(first) + ids_of(second) == ids_of(whole)
    assert text_of(first) + text_of(second) == text


def test_bytes_that_are_no_utf8_become_the_replacement_character_only_then() -> None:
    broken = ScriptedEngine(lambda prefix, index, params: [0xC3, 0xA9, 0xC3, 33, 0xE2, 0x82])
    assert text_of(sampled(broken)) == "é\ufffd!\ufffd"
    assert text_of(sampled(broken, tokens=6)) == "é\ufffd!"


def test_special_tokens_show_in_the_text_and_the_end_of_turn_does_not() -> None:
    engine = ScriptedEngine(says("a<|im_start|>b<|im_end|>never"))
    chunks = sampled(engine)
    assert text_of(chunks) == "a<|im_start|>b"
    assert ids_of(chunks) == [97, EOS + 1, 98, EOS]


def test_samples_come_in_turn_each_with_its_own_text() -> None:
    chunks = sampled(ScriptedEngine(says("ab", "cd")), n=3)
    assert [chunk.index for chunk in chunks] == [0, 1, 2] * 3
    assert [text_of(chunks, index) for index in range(3)] == ["ab", "cd", "ab"]


def test_endless_sources_end_at_the_cap_and_at_the_context() -> None:
    engine = ScriptedEngine(lambda prefix, index, params: itertools.repeat(120), context=50)
    assert len(ids_of(sampled(engine, [1] * 40, tokens=7))) == 7
    full = sampled(engine, [1] * 40, tokens=100)
    assert len(ids_of(full)) == 10
    assert full[-1].finish == "length"
    with pytest.raises(ContextOverflow, match="50 tokens leaves no room in a context of 50"):
        sampled(engine, [1] * 50)


def test_ignore_eos_goes_on_to_the_cap() -> None:
    chunks = sampled(ScriptedEngine(says("a<|im_end|>b")), tokens=6, ignore_eos=True)
    assert text_of(chunks) == "a\nb\n\n\n"
    assert chunks[-1].finish == "length"
    endless = ScriptedEngine(lambda prefix, index, params: itertools.repeat(EOS))
    assert len(ids_of(sampled(endless, tokens=5, ignore_eos=True))) == 5


def test_the_reply_gets_the_prefix_the_index_and_the_settings() -> None:
    seen: list[tuple[tuple[int, ...], int, float]] = []

    def reply(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Iterator[int]:
        seen.append((prefix, index, params.temperature))
        return iter([65])

    sampled(ScriptedEngine(reply), [1, 2, 3], n=2, temperature=0.25)
    assert seen == [((1, 2, 3), 0, 0.25), ((1, 2, 3), 1, 0.25)]


def test_requests_that_make_no_sense_are_refused() -> None:
    engine = ScriptedEngine(says("x"))
    with pytest.raises(InputError, match="prompt is empty"):
        sampled(engine, [])
    with pytest.raises(ValueError, match="n must be at least 1"):
        sampled(engine, n=0)
    with pytest.raises(Unsupported, match="adapters"):
        sampled(engine, adapters={"reasoning": 1.0})
    with pytest.raises(ValueError, match="at least one text"):
        says()
    with pytest.raises(ValueError, match="burst and context"):
        ScriptedEngine(says("x"), burst=0)
    assert engine.calls == engine.generated == 0


# ---------------------------------------------------------------- prefix cache


def prompt_counts(chunks: list[Chunk]) -> list[tuple[int, int]]:
    return [(c.prompt_computed, c.prompt_cached) for c in chunks if c.prompt_computed or c.prompt_cached]


def test_the_prompt_is_computed_once_a_request_and_cached_for_the_next() -> None:
    engine = ScriptedEngine(says("four"))
    size = len(TOKENIZER.encode(PROMPT))
    first = sampled(engine, n=4)
    assert prompt_counts(first) == [(size, 0)]
    assert first[0].prompt_computed == size
    assert prompt_counts(sampled(engine)) == [(1, size - 1)]


def test_a_fork_recomputes_one_token_and_a_divergence_what_differs() -> None:
    engine = ScriptedEngine(says("abcdef"))
    prefix = TOKENIZER.encode(PROMPT)
    sampled(engine)
    assert prompt_counts(sampled(engine, [*prefix, *b"abc"])) == [(1, len(prefix) + 2)]
    assert prompt_counts(sampled(engine, [*prefix, *b"abXYZ"])) == [(3, len(prefix) + 2)]
    assert prompt_counts(sampled(engine, [7, 8])) == [(2, 0)]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12))
@settings(deadline=None, max_examples=60)
def test_cached_counts_are_the_longest_common_prefix_with_anything_seen(prompts: list[list[int]]) -> None:
    engine = ScriptedEngine(lambda prefix, index, params: [1])
    seen: list[list[int]] = []
    for prompt in prompts:
        longest = max((sum(1 for _ in _common(prompt, known)) for known in seen), default=0)
        cached = min(longest, len(prompt) - 1)
        chunks = sampled(engine, prompt)
        assert prompt_counts(chunks) == [(len(prompt) - cached, cached)]
        seen.append(prompt + ids_of(chunks))


def _common(one: list[int], other: list[int]) -> Iterator[tuple[int, int]]:
    return itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))


def test_the_cache_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ponder.engine.scripted.CACHED_SEQUENCES", 2)
    engine = ScriptedEngine(lambda prefix, index, params: [])
    for first in (1, 2, 3):
        sampled(engine, [first, 0, 0])
    assert prompt_counts(sampled(engine, [3, 0, 0])) == [(1, 2)]
    assert prompt_counts(sampled(engine, [1, 0, 0])) == [(3, 0)]


def test_a_stream_that_is_still_open_can_be_forked() -> None:
    engine = ScriptedEngine(says("abcdef"))
    prefix = TOKENIZER.encode(PROMPT)

    async def work() -> list[Chunk]:
        async with aclosing(engine.sample(prefix, 1, SamplingParams(50))) as stream:
            given = [(await anext(stream)).ids[0] for _ in range(3)]
            return await gather(engine.sample(prefix + given, 1, SamplingParams(50)))

    chunks = run(work())
    assert prompt_counts(chunks) == [(1, len(prefix) + 2)]
    assert text_of(chunks) == "def"


# ---------------------------------------------------------------- replies


@pytest.mark.parametrize(
    ("text", "turn", "rest"),
    [
        ("<think>abc</think>42", "", "<think>abc</think>42"),
        ("<think>abc</think>42", "<think>ab", "c</think>42"),
        ("<think>abc</think>42", "<think>ab\n</think>\n\n", "42"),
        ("<think>a\n\nc</think>42", "<think>a\n</think>\n\n", "42"),
        ("<think>abc</think>42", "<think>abc\nWait,", "</think>42"),
        ("<think>abc</think>42", "<think>abc\nWait,<", "/think>42"),
        ("<think>abc</think>42", "<think>abc\nWait,</think>4", "2"),
        ("<think>abc</think>42", "<think>abc</think>42", ""),
        ("abc</think>42", "<think>\n", "abc</think>42"),
        ("abc</think>42", "<think>\nab", "c</think>42"),
        ("42", "<think>\n\n</think>\n\n", "42"),
        ("42", "<think>\n\n</think>\n\n4", "2"),
    ],
)
def test_says_goes_on_where_the_turn_stands(text: str, turn: str, rest: str) -> None:
    assert said_after(says(text), turn) == rest


@given(
    st.lists(st.sampled_from(["cats ", "saw ", "é", "x. ", "\n\n"]), max_size=12).map("".join),
    st.sampled_from(["\n</think>\n\n", "</think>", "\nWait,", "\n\n</think>\n\nFinal answer: "]),
    st.data(),
)
@settings(deadline=None, max_examples=80)
def test_says_can_be_forked_at_any_byte_after_something_was_written(
    thinking: str, written: str, data: st.DataObject
) -> None:
    said = f"<think>{thinking}</think>\n\nforty-two is it".encode()
    reply, params = says(said.decode()), SamplingParams(1)

    def rest(turn: bytes) -> bytes:
        return TOKENIZER.decode(reply((*TOKENIZER.encode(PROMPT), *turn), 0, params))  # type: ignore[arg-type]

    cut = data.draw(st.integers(len("<think>"), len(said) - len("</think>\n\nforty-two is it")))
    turn = said[:cut] + written.encode()
    whole = rest(turn)
    assert whole.endswith(b"forty-two is it")
    assert (b"</think>" in whole) == ("Wait" in written)
    fork = data.draw(st.integers(0, len(whole)))
    assert rest(turn + whole[:fork]) == whole[fork:]


def test_says_goes_on_in_the_last_turn_and_without_any_turn_at_all() -> None:
    assert said_after(says("one two"), "one two<|im_end|>\n" + HEADER + "one") == " two"
    assert text_of(sampled(ScriptedEngine(says("and more")), "raw text and")) == " more"
    gemma = says("abc</think>42", header="<start_of_turn>model\n")
    assert text_of(sampled(ScriptedEngine(gemma), "<start_of_turn>model\nab</think>")) == "42"


def test_says_knows_special_tokens_of_its_tokenizer() -> None:
    specials = ("<think>", "</think>")
    reply = says("<think>hm</think>42", tokenizer=ByteTokenizer(specials))
    chunks = sampled(ScriptedEngine(reply, specials=specials))
    assert ids_of(chunks) == [258, *b"hm", 259, *b"42", EOS]
    assert text_of(chunks) == "<think>hm</think>42"


SCRIPT: dict[str, Any] = {
    "version": 1,
    "replies": [
        {"when": "capital of France", "say": "Paris"},
        {"when": r"/\d+ \+ \d+/", "say": ["<think>add</think>4", "5"]},
        {"after": "</think>\n\n", "say": "closed early"},
        {"when": "twice", "say": "long answer"},
    ],
    "otherwise": "no idea",
}


def asked(question: str, turn: str = "", document: dict[str, Any] = SCRIPT, index: int = 0) -> str:
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n{HEADER}{turn}"
    return text_of(sampled(ScriptedEngine(script(document)), prompt, n=index + 1), index)


def test_script_picks_the_first_entry_that_fits() -> None:
    assert asked("The capital of France?") == "Paris"
    assert asked("What is 2 + 2?") == "<think>add</think>4"
    assert asked("What is 2 + 2?", index=1) == "5"
    assert asked("The capital of France, and 2 + 2?") == "Paris"
    assert asked("Eh?") == "no idea"


def test_script_continues_the_turn_or_looks_further() -> None:
    assert asked("What is 2 + 2?", "<think>ad") == "d</think>4"
    assert asked("What is 2 + 2?", "<think>ad</think>\n\n") == "closed early"
    assert asked("What is 2 + 2?", "<think>ad</think>\n\nclosed") == " early"
    assert asked("What is 2 + 2?", "</think>\n\nx</think>\n\n") == "closed early"
    assert asked("Eh?", "no ") == "idea"


def test_script_matches_the_question_and_not_the_turn() -> None:
    assert asked("Eh?", "twice") == "no idea"
    assert asked("say it twice", "long ") == "answer"
    assert text_of(sampled(ScriptedEngine(script(SCRIPT)), "raw: 3 + 4")) == "<think>add</think>4"


def test_script_without_a_fitting_entry_shows_the_end_of_the_prompt() -> None:
    with pytest.raises(EngineError, match=r"no reply in the script fits the prompt that ends .*is the moon") as caught:
        asked("Who is the moon?", document={"version": 1, "replies": [{"when": "sun", "say": "hot"}]})
    assert "otherwise" in caught.value.mend


def test_script_faults_belong_to_their_entry_and_are_counted() -> None:
    document = {
        "version": 1,
        "replies": [
            {"when": "a", "say": "abc", "fault": {"kind": "disconnect", "at": 2}},
            {"when": "b", "say": "xyz", "fault": {"kind": "partial", "at": 1, "times": None}},
        ],
    }
    engine = ScriptedEngine(script(document))
    got: list[Chunk] = []

    async def collect() -> None:
        async for chunk in engine.sample(TOKENIZER.encode("a"), 1, SamplingParams(9)):
            got.append(chunk)

    with pytest.raises(EngineDisconnected):
        run(collect())
    assert text_of(got) == "ab"
    assert text_of(sampled(engine, "a")) == "abc"
    for _ in range(2):
        partial = sampled(engine, "b")
        assert text_of(partial) == "x"
        assert partial[-1].finish is None


# ---------------------------------------------------------------- faults


def engine_with(*faults: Fault, **options: Any) -> ScriptedEngine:
    return ScriptedEngine(says("abcdef"), faults=faults, **options)


async def until_error(engine: ScriptedEngine, n: int = 1) -> tuple[list[Chunk], Exception | None]:
    got: list[Chunk] = []
    try:
        async for chunk in engine.sample(TOKENIZER.encode(PROMPT), n, SamplingParams(50)):
            got.append(chunk)
    except EngineError as error:
        return got, error
    return got, None


@pytest.mark.parametrize(
    ("kind", "error", "retryable"),
    [("disconnect", EngineDisconnected, True), ("garbage", GarbledReply, False), ("rate_limit", RateLimited, True)],
)
@pytest.mark.parametrize("at", [0, 1, 4])
@pytest.mark.parametrize("burst", [1, 3])
def test_failures_come_after_exactly_k_tokens(
    kind: Any, error: type[EngineError], retryable: bool, at: int, burst: int
) -> None:
    engine = engine_with(Fault(kind, at=at), burst=burst)
    got, raised = run(until_error(engine))
    assert type(raised) is error
    assert raised.retryable is retryable
    assert ids_of(got) == list(b"abcdef"[:at])
    assert engine.generated == at
    assert engine.open_streams == 0
    assert run(until_error(engine))[1] is None


def test_rate_limits_say_when_to_come_back() -> None:
    assert run(until_error(engine_with(Fault("rate_limit", seconds=1.5))))[1].after == 1.5
    assert run(until_error(engine_with(Fault("rate_limit"))))[1].after is None


def test_times_and_first_call_choose_the_calls() -> None:
    engine = engine_with(Fault("disconnect", first_call=2, times=2))
    failed = [run(until_error(engine))[1] is not None for _ in range(5)]
    assert failed == [False, True, True, False, False]
    always = engine_with(Fault("disconnect", times=None))
    assert all(run(until_error(always))[1] for _ in range(4))


def test_a_fault_counts_tokens_of_the_call_or_of_one_sample() -> None:
    whole, _ = run(until_error(engine_with(Fault("disconnect", at=5)), n=2))
    assert len(whole) == 5
    one, _ = run(until_error(engine_with(Fault("disconnect", at=5, sample=1)), n=2))
    assert len(ids_of(one, 1)) == 5
    never, raised = run(until_error(engine_with(Fault("disconnect", sample=7)), n=2))
    assert raised is None
    assert text_of(never, 1) == "abcdef"


def test_a_partial_stream_just_stops() -> None:
    engine = engine_with(Fault("partial", at=3))
    got, raised = run(until_error(engine, n=2))
    assert raised is None
    assert len(got) == 3
    assert all(chunk.finish is None for chunk in got)


def test_a_partial_sample_leaves_the_others_alone() -> None:
    got, _ = run(until_error(engine_with(Fault("partial", at=2, sample=0)), n=2))
    assert text_of(got, 0) == "ab"
    assert [c.finish for c in got if c.index == 0 and c.finish] == []
    assert text_of(got, 1) == "abcdef"
    assert [c.finish for c in got if c.index == 1 and c.finish] == ["stop"]


def test_wrong_counts_lie_about_prompt_and_tokens_only_when_told_to() -> None:
    engine = engine_with(Fault("wrong_counts", prompt=10, tokens=3))
    size = len(TOKENIZER.encode(PROMPT))
    lying, honest = sampled(engine, n=2), sampled(engine, n=2)
    assert prompt_counts(lying) == [(size + 10, 0)]
    assert [c.lost for c in lying if c.finish] == [3, 3]
    assert prompt_counts(honest) == [(1, size - 1)]
    assert [c.lost for c in honest if c.finish] == [0, 0]
    assert engine.generated == len(ids_of(lying)) * 4
    alone = sampled(engine_with(Fault("wrong_counts", tokens=3, sample=1)), n=2)
    assert [c.lost for c in alone if c.finish] == [0, 3]


def test_delays_before_one_token_or_before_each() -> None:
    def took(fault: Fault) -> float:
        begin = time.perf_counter()
        assert text_of(sampled(engine_with(fault))) == "abcdef"
        return time.perf_counter() - begin

    assert took(Fault("delay", seconds=0.1, at=2)) >= 0.1
    assert took(Fault("delay", seconds=0.03, at=3, every=True)) >= 0.03 * 4
    script_delay = script(
        {"version": 1, "replies": [{"say": "ab", "fault": {"kind": "delay", "seconds": 0.03, "every": True}}]}
    )
    begin = time.perf_counter()
    assert text_of(sampled(ScriptedEngine(script_delay))) == "ab"
    assert time.perf_counter() - begin >= 0.03 * 3


def test_a_hanging_stream_can_be_cancelled_and_its_tokens_are_in_the_books() -> None:
    engine = engine_with(Fault("hang", at=2))
    got: list[Chunk] = []

    async def work() -> None:
        async def consume() -> None:
            async with aclosing(engine.sample(TOKENIZER.encode(PROMPT), 1, SamplingParams(9))) as stream:
                async for chunk in stream:
                    got.append(chunk)

        task = asyncio.create_task(consume())
        await asyncio.sleep(0.05)
        assert engine.open_streams == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work())
    assert text_of(got) == "ab"
    assert engine.generated == 2
    assert engine.open_streams == 0
    assert text_of(sampled(engine)) == "abcdef"


def test_a_hanging_sample_lets_the_others_finish_before_silence() -> None:
    engine = engine_with(Fault("hang", at=1, sample=0))
    got: list[Chunk] = []

    async def consume() -> None:
        async for chunk in engine.sample(TOKENIZER.encode(PROMPT), 2, SamplingParams(9)):
            got.append(chunk)

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(consume(), 0.1))
    assert text_of(got, 0) == "a"
    assert text_of(got, 1) == "abcdef"


def test_closing_the_stream_stops_the_source_at_once() -> None:
    pulled: list[int] = []

    def source() -> Iterator[int]:
        for token in itertools.repeat(97):
            pulled.append(token)
            yield token

    engine = ScriptedEngine(lambda prefix, index, params: source())

    async def work() -> None:
        stream = engine.sample([1], 1, SamplingParams(1000))
        for _ in range(5):
            await anext(stream)
        await stream.aclose()

    run(work())
    assert engine.generated == len(pulled) == 5
    assert engine.open_streams == 0


@pytest.mark.parametrize("fault", [None, Fault("hang", at=2), Fault("hang", at=2, sample=0), Fault("delay", seconds=9)])
def test_closing_the_engine_cancels_open_streams_and_admits_nothing_more(fault: Fault | None) -> None:
    engine = ScriptedEngine(
        lambda prefix, index, params: itertools.repeat(97), faults=[fault] if fault else (), context=10**9
    )

    async def work() -> list[Chunk]:
        task = asyncio.create_task(gather(engine.sample([1], 1, SamplingParams(10**6))))
        await asyncio.sleep(0.02)
        await engine.close()
        await engine.close()
        return await task

    chunks = run(work())
    assert chunks[-1].finish == "cancelled"
    assert engine.generated == len(ids_of(chunks))
    with pytest.raises(EngineUnavailable, match="closed"):
        sampled(engine)


def test_one_engine_serves_several_event_loops() -> None:
    engine = engine_with(Fault("delay", seconds=0.01, times=None))
    assert [text_of(sampled(engine)) for _ in range(2)] == ["abcdef", "abcdef"]


@pytest.mark.parametrize("wrong", [{"at": -1}, {"seconds": -0.5}, {"times": 0}], ids=lambda wrong: next(iter(wrong)))
def test_faults_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="fault"):
        Fault("delay", **wrong)


# ---------------------------------------------------------------- log-probabilities


def test_log_probabilities_come_from_the_callable_alike_in_sample_and_score() -> None:
    def logprob(prefix: tuple[int, ...], token: int) -> float:
        return -len(prefix) - token / 1000

    engine = ScriptedEngine(says("ab"), logprob=logprob, burst=2)
    assert engine.capabilities.logprobs
    assert engine.capabilities.score
    prefix = TOKENIZER.encode(PROMPT)
    chunks = sampled(engine)
    ids = ids_of(chunks)
    given = [value for chunk in chunks for value in chunk.logprobs]
    assert given == [logprob(tuple(prefix + ids[:i]), token) for i, token in enumerate(ids)]
    assert run(engine.score(prefix + ids, len(prefix))) == given
    assert run(engine.score(prefix, len(prefix))) == []
    with pytest.raises(ValueError, match="start must lie in"):
        run(engine.score([1], 2))


def test_a_sample_ends_at_the_character_it_is_asked_to_end_at() -> None:
    chunks = run(
        gather(ScriptedEngine(says("one\ntwo\n")).sample(TOKENIZER.encode(PROMPT), 1, SamplingParams(99, until="\n")))
    )
    assert (text_of(chunks), chunks[-1].finish) == ("one\n", "length")
    with pytest.raises(Unsupported, match="leave until out"):
        run(gather(ScriptedEngine(says("x"), until=False).sample([1], 1, SamplingParams(9, until="\n"))))
    with pytest.raises(ValueError, match="one character"):
        SamplingParams(9, until="ab")


def test_samples_are_numbered_from_where_they_are_asked_to() -> None:
    chunks = run(
        gather(ScriptedEngine(says("a", "b", "c")).sample(TOKENIZER.encode(PROMPT), 2, SamplingParams(9, first=1)))
    )
    assert [c.text for c in chunks if c.text] == ["b", "c"]
    with pytest.raises(ValueError, match="at least 0"):
        SamplingParams(9, first=-1)


def test_score_without_log_probabilities_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="no log-probabilities"):
        run(ScriptedEngine(says("x")).score([1], 0))


# ---------------------------------------------------------------- chat


def chatted(
    engine: ScriptedEngine, *messages: Message, n: int = 1, tokens: int = 99, **options: Any
) -> list[ChatChunk]:
    return run(gather(engine.chat(messages or (user("hi"),), n, SamplingParams(tokens), **options)))


def test_chat_divides_thinking_from_the_answer_and_counts_bytes() -> None:
    engine = ScriptedEngine(says("<think>é?</think>so < 4", "plain"), chat_only=True)
    chunks = chatted(engine, n=2)
    first = [c for c in chunks if c.index == 0]
    assert "".join(c.thinking for c in first) == "é?"
    assert "".join(c.answer for c in first) == "so < 4"
    assert all(c.thinking or c.answer or c.finish for c in chunks)
    last = first[-1]
    assert last.finish == "stop"
    assert last.completion_tokens == len("<think>é?</think>so < 4".encode()) + 1
    assert last.thinking_tokens == 3
    assert last.prompt_tokens == len(TOKENIZER.encode(PROMPT))
    assert last.prompt_cached == 0
    assert "".join(c.answer for c in chunks if c.index == 1) == "plain"
    assert engine.generated == sum(c.completion_tokens or 0 for c in chunks)


def test_chat_without_thinking_and_cut_in_a_marker() -> None:
    engine = ScriptedEngine(says("<think>hm</think>42"), chat_only=True)
    off = chatted(engine, think=False)
    assert "".join(c.thinking for c in off) == ""
    assert "".join(c.answer for c in off) == "42"
    cut = chatted(engine, tokens=len("<think>hm</th"))
    assert "".join(c.thinking for c in cut) == "hm</th"
    assert cut[-1].finish == "length"


def test_chat_shows_the_reply_all_messages() -> None:
    document = {"version": 1, "replies": [{"when": "/(?s)be brief.*hi.*it is 7/", "say": "!"}, {"say": "?"}]}
    engine = ScriptedEngine(script(document), chat_only=True)
    tool = Message("tool", (ToolResult("1", "it is 7"),))
    assert chatted(engine, system("be brief"), user("hi"), tool)[0].answer == "!"
    assert chatted(engine, Message("user", (Text("hi"),)))[0].answer == "?"


def test_chat_fails_as_sample_does() -> None:
    engine = ScriptedEngine(says("abc"), chat_only=True, faults=[Fault("wrong_counts", prompt=5, tokens=2)])
    lying, honest = chatted(engine)[-1], chatted(engine)[-1]
    assert (lying.completion_tokens, honest.completion_tokens) == (6, 4)
    assert lying.prompt_tokens == (honest.prompt_tokens or 0) + 5
    with pytest.raises(RateLimited):
        chatted(ScriptedEngine(says("abc"), chat_only=True, faults=[Fault("rate_limit")]))


def test_each_side_refuses_the_other() -> None:
    tokens, chat = ScriptedEngine(says("x")), ScriptedEngine(says("x"), chat_only=True)
    assert (chat.capabilities.tokens, chat.capabilities.chat) == (False, True)
    assert chat.info.chat_template is None
    with pytest.raises(Unsupported, match="messages alone"):
        sampled(chat)
    with pytest.raises(Unsupported, match="deals in tokens"):
        chatted(tokens)


# ---------------------------------------------------------------- files


def test_a_file_makes_an_engine(tmp_path: Path) -> None:
    path = tmp_path / "toy.json"
    document = {
        **SCRIPT,
        "model": {"name": "toy", "context": 300, "burst": 2, "specials": ["<think>"]},
        "faults": [{"kind": "disconnect", "first_call": 2}],
    }
    path.write_text(json.dumps(document))
    engine = run(open_scripted(f"scripted:{path}"))
    assert engine.uri == f"scripted:{path}"
    assert (engine.info.name, engine.info.context) == ("toy", 300)
    chunks = sampled(engine, f"<|im_start|>user\n2 + 2<|im_end|>\n{HEADER}")
    assert chunks[0].ids == (258, 97)
    assert text_of(chunks) == "<think>add</think>4"
    with pytest.raises(EngineDisconnected):
        sampled(engine)
    assert text_of(sampled(run(open_scripted(path)))) == "no idea"


def test_a_file_can_be_chat_only(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text('{"version": 1, "otherwise": "<think>a</think>b", "model": {"chat_only": true}}')
    assert "".join(c.answer for c in chatted(run(open_scripted(path)))) == "b"


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('{"version": 1,\n "replies": [}', "line 2, column 14"),
        ('{"replies": []}', "version"),
        ('{"version": 2}', "version"),
        ("[]", "the whole"),
        ('{"version": 1, "replies": [{"when": "x"}]}', r"replies\[0\]\.say"),
        ('{"version": 1, "replies": [{"say": []}]}', r"replies\[0\]: .*empty list"),
        ('{"version": 1, "replies": [{"say": "x", "after": ""}]}', r"replies\[0\]: .*after is empty"),
        ('{"version": 1, "replies": [{"say": "x", "when": "/(/"}]}', "regular expression"),
        ('{"version": 1, "replies": [{"say": "x", "wen": "y"}]}', r"replies\[0\]\.wen"),
        ('{"version": 1, "faults": [{"kind": "explode"}]}', r"faults\[0\]\.kind"),
        ('{"version": 1, "faults": [{"kind": "delay", "at": -1}]}', r"faults\[0\]"),
        ('{"version": 1, "model": {"context": 0}}', "model: .*context and burst"),
    ],
)
def test_a_wrong_file_is_named_with_the_place_and_the_mend(tmp_path: Path, content: str, place: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(InputError, match=place) as caught:
        run(open_scripted(path))
    assert str(path) in str(caught.value)
    assert caught.value.mend
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00\x80"), "is not a text file"),
    ],
    ids=["missing", "directory", "binary"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, make: Callable[[Path], Any], problem: str) -> None:
    path = tmp_path / "script.json"
    make(path)
    with pytest.raises(InputError, match=problem) as caught:
        run(open_scripted(path))
    assert str(path) in str(caught.value)
    assert caught.value.mend

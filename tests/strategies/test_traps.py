"""What went wrong elsewhere with budgets and with telling thinking from answers, each as a test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from drive import MARKERS, QUESTION, Watched, answer_runs, answering, babbler, check, of, think, thinks, turn_of

from ponder.chat.formats import FAMILIES, PONDER, ThinkingFormat
from ponder.chat.model import Model
from ponder.chat.parse import Parser
from ponder.engine.scripted import EOS, HEADER, Fault, ScriptedEngine, says
from ponder.errors import EngineDisconnected
from ponder.protocols import SamplingParams
from ponder.strategies.budget import think_within
from ponder.strategies.chain_of_thought import chain_of_thought
from ponder.strategies.direct import direct
from ponder.types import AnswerDelta, Budget, SampleFinished, ThinkingDelta, ask

FORMS = [FAMILIES[name] for name in ("ponder", "think-tags", "deepseek-r1", "mistral", "granite", "gemma", "elicit")]
by_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
RAMBLE = "and then there is more to it, " * 50


def rambling(form: ThinkingFormat, answer: str = "4") -> Callable[[str], str]:
    """Thinks for ever; once thinking is closed it answers."""
    return thinks(form, RAMBLE, answer)


@by_form
def test_the_budget_is_not_ignored(form: ThinkingFormat) -> None:
    # vLLM and SGLang: a budget in the request changed nothing unless a parser or a flag was set on the server.
    for tokens in (60, 100, 250):
        engine = answering(rambling(form))
        outcome = think(of(engine, form), tokens)
        check(engine, outcome, tokens)
        assert outcome.sample.thinking.startswith("and then")
        assert outcome.sample.answer.removeprefix(form.answer_opener).strip() == "4"


@by_form
@pytest.mark.parametrize("single", [True, False], ids=["one-token", "many-tokens"])
def test_the_ids_of_markers_are_the_tokenizers(form: ThinkingFormat, single: bool) -> None:
    # SGLang: marker ids were hard-coded for one model, so that no other ever left its thinking.
    specials = (form.open, form.close) if single and form.open else ()
    engine = answering(rambling(form), specials=specials)
    outcome = think(of(engine, form), 200)
    check(engine, outcome, 200)
    closing = tuple(engine.tokenizer.encode(form.closing))
    written = tuple(
        token for token, sampled in zip(outcome.sample.ids, outcome.sample.mask, strict=True) if not sampled
    )
    assert written[: len(closing)] == closing
    assert (max(closing) >= 256) == bool(specials)
    assert outcome.sample.answer.removeprefix(form.answer_opener).strip() == "4"


def test_a_cut_leaves_neither_reasoning_nor_markers_in_the_answer() -> None:
    # llama.cpp: the rest of the sentence and a late "</think>" came out as the answer.
    engine = answering(thinks(PONDER, "First, this. " * 100, "</think>\n\n4</think>"))
    outcome = think(of(engine), 150)
    check(engine, outcome, 150)
    assert outcome.sample.thinking.endswith("First, this.")
    assert outcome.sample.answer == "4"


def test_a_cut_inside_a_word_is_avoided_where_a_sentence_ends() -> None:
    # ollama: thinking was cut at the very token, in the middle of a word.
    for tokens in range(100, 200, 7):
        engine = answering(thinks(PONDER, "We see it. " * 99, "4"))
        outcome = think(of(engine), tokens)
        check(engine, outcome, tokens)
        assert outcome.sample.thinking.endswith("it."), tokens


@pytest.mark.parametrize("burst", [1, 2, 3])
def test_a_cut_inside_a_character_is_impossible(burst: int) -> None:
    # Byte-level tokens spread a character over several: cut between them, text and ids part for good.
    for tokens in range(60, 100):
        engine = babbler("<think>\n" + "🤔漢é" * 60, burst=burst)
        outcome = think(of(engine), tokens)
        check(engine, outcome, tokens)
        assert set(outcome.sample.thinking) <= set("🤔漢é")


def test_the_budget_does_not_start_again_with_each_block() -> None:
    # ollama: every "<think>" had the whole budget anew.
    engine = babbler("<think>" + "".join(f"{i:040d}</think>x<think>" for i in range(50)))
    outcome = think(of(engine, FAMILIES["think-tags"]), Budget(tokens=1000, thinking=100))
    check(engine, outcome, 1000)
    blocks = outcome.sample.text.count("<think>")
    assert blocks > 3
    assert len(outcome.sample.thinking) <= 100
    assert outcome.total.thinking <= 100 + blocks, "only the markers came on top"


@by_form
@pytest.mark.parametrize("tokens", [20, 40, 80])
def test_there_is_an_answer_whatever_the_model_does(form: ThinkingFormat, tokens: int) -> None:
    # ollama: when thinking used up the limit, the reply was empty.
    def gives_nothing(turn: str) -> str:
        return ""

    def ends_inside(turn: str) -> str:
        return "" if turn else form.open + "Hm"

    for reply in (rambling(form), rambling(form, ""), gives_nothing, ends_inside):
        engine = answering(reply)
        outcome = think(of(engine, form), tokens)
        check(engine, outcome, tokens)
        assert outcome.error is None
        assert outcome.sample.answer.strip(".: \n")


@by_form
def test_without_thinking_the_answer_is_not_taken_for_it(form: ThinkingFormat) -> None:
    # vLLM: with thinking switched off the parser waited for a "</think>" and put all into the reasoning.
    engine = answering(lambda turn: "It is 4.")
    outcome = think(of(engine, form), 100, think=False)
    check(engine, outcome, 100)
    assert (outcome.sample.thinking, outcome.sample.answer) == ("", "It is 4.")
    assert outcome.total.thinking == 0


def test_an_answer_without_any_thinking_is_not_taken_for_it() -> None:
    # vLLM: a model that skipped its thinking block had its answer filed under reasoning.
    engine = answering(lambda turn: "It is 4.")
    outcome = think(of(engine, FAMILIES["think-tags"]), 100)
    check(engine, outcome, 100)
    assert (outcome.sample.thinking, outcome.sample.answer) == ("", "It is 4.")


@pytest.mark.parametrize("specials", [(), MARKERS], ids=["bytes", "specials"])
@pytest.mark.parametrize("name", ["ponder", "think-tags"])
def test_a_sample_continued_at_any_token_parses_as_if_never_cut(name: str, specials: tuple[str, ...]) -> None:
    # vLLM: a continued assistant turn was parsed as if it began anew, which is what stepwise search lives on.
    form = FAMILIES[name]
    start = "" if form.start else "<think>"
    text = f"{start}One, 漢 two.\n</think>\nIt is <4>."
    engine = ScriptedEngine(
        says(form.start + text, tokenizer=babbler("", specials=specials).tokenizer), specials=specials
    )
    whole = think(of(engine, form), 300).sample
    assert (whole.thinking, whole.answer) == ("One, 漢 two.", "It is <4>.")
    kinds = [span.kind for span in whole.spans for _ in range(span.start, span.end)]

    async def continued(at: int) -> None:
        """The first `at` tokens are kept and the rest is sampled anew."""
        kept = engine.tokenizer.decode(whole.ids[:at]).decode(errors="ignore")
        parser = Parser.resume(form, kept, inside=bool(form.start), tools=False)
        pieces, ids = [], (*whole.prompt_ids, *whole.ids[:at])
        async with aclosing(engine.sample(ids, 1, SamplingParams(max_tokens=300))) as chunks:
            async for chunk in chunks:
                pieces += parser.feed(chunk.text)
        pieces += parser.finish()
        assert kept + "".join(piece.text for piece in pieces) == whole.text
        assert [piece.kind for piece in pieces for _ in piece.text] == kinds[len(kept) :], kept

    async def everywhere() -> None:
        for at in range(len(whole.ids)):
            await continued(at)

    asyncio.run(everywhere())


@by_form
def test_thinking_that_the_prompt_opened_is_counted(form: ThinkingFormat) -> None:
    # vLLM: 0 reasoning tokens in the usage when the template, and not the model, had opened the block.
    engine = answering(rambling(form))
    outcome = think(of(engine, form), 200)
    spelled = len(engine.tokenizer.encode(outcome.sample.thinking))
    assert spelled <= outcome.total.thinking <= spelled + len(form.open) + 1
    assert outcome.total.answer <= len(" 4") + 1


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_the_usage_of_many_samples_is_counted_in_full(n: int) -> None:
    # llama.cpp: with n > 1 the usage held one sample's tokens.
    engine = answering(rambling(PONDER))
    outcome = think(of(engine), 100 * n, n)
    check(engine, outcome, 100 * n, n)
    assert outcome.total.generated >= n * 40
    first = outcome.finished[0][0]
    assert outcome.total.prompt == len(first.prompt_ids), "the prompt that they share counts once"
    assert outcome.total.calls == engine.calls


def test_samples_are_not_mixed_up() -> None:
    # search-and-learn: one pool of beams gave one problem's answer to another.
    def source(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Iterator[int]:
        turn = engine.tokenizer.decode(turn_of(prefix)).decode().removeprefix("<think>\n")
        letter = turn[:1] or "abc"[index]
        yield from (letter * 99 if "</think>" not in turn else letter).encode()
        yield EOS

    engine = ScriptedEngine(source)
    outcome = think(of(engine), 240, 3)
    check(engine, outcome, 240, 3)
    for sample, _ in outcome.finished:
        letter = "abc"[sample.index]
        assert set(sample.thinking) == {letter}
        assert sample.answer == letter


async def leave_after(model: Model, count: int, budget: int = 500) -> None:
    """Takes some events of a request and closes it."""
    for strategy in (chain_of_thought(), direct()):
        events: Any = strategy(QUESTION, model, Budget(tokens=budget))
        for _ in range(count):
            await anext(events)
        await events.aclose()
        assert model.engine.open_streams == 0, "it went on"  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [1, 2, 30])
@pytest.mark.parametrize("chat_only", [False, True])
def test_nothing_goes_on_after_the_client_has_left(count: int, chat_only: bool) -> None:
    # litellm, llama.cpp: the server computed the rest of a reply that nobody would read.
    async def run() -> None:
        engine = answering(
            lambda turn: RAMBLE, chat_only=chat_only, faults=[Fault("delay", every=True, seconds=0.0001)]
        )
        await asyncio.wait_for(leave_after(of(engine), count), 20)
        before = engine.generated
        await asyncio.sleep(0.02)
        assert engine.generated == before

    asyncio.run(run())


@pytest.mark.parametrize("chat_only", [False, True])
def test_a_client_that_leaves_before_the_first_token_ends_the_work_too(chat_only: bool) -> None:
    # llama.cpp: a request could not be cancelled before its first token.
    async def run() -> None:
        engine = babbler("x", chat_only=chat_only, faults=[Fault("hang")])
        events: Any = chain_of_thought()(QUESTION, of(engine), Budget(tokens=100))
        first = asyncio.ensure_future(anext(events))
        while not engine.open_streams:  # noqa: ASYNC110 (an engine has no event for it)
            await asyncio.sleep(0.001)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await events.aclose()
        assert engine.open_streams == 0
        assert engine.generated == 0

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_stream_that_stops_is_no_finished_sample() -> None:
    # search-and-learn: a missing finish reason was read as the end of the text.
    reply = says("<think>\nHm.</think>\nIt is 4.")
    broken = ScriptedEngine(reply, faults=[Fault("partial", at=15)])
    outcome = think(of(broken), 200)
    check(broken, outcome, 200)
    assert (outcome.sample.answer, outcome.sample.finish) == ("It is 4.", "stop")
    assert outcome.total.calls == 2

    always = ScriptedEngine(reply, faults=[Fault("partial", at=4, times=None)])
    outcome = think(of(always), 200)
    check(always, outcome, 200)
    assert isinstance(outcome.error, EngineDisconnected)
    assert "without a finish" in str(outcome.error)
    assert outcome.sample.finish == "error"
    assert outcome.total.generated == always.generated > 0, "what failed costs, too"


@by_form
def test_a_continuation_is_the_exact_sequence_and_no_text_in_the_prompt(form: ThinkingFormat) -> None:
    # crucible-ttc: what had been generated was pasted into the next user message.
    engine = answering(rambling(form, ""))
    watched = Watched(engine)
    outcome = think(of(watched, form), Budget(tokens=200, min_thinking=30), 1)
    check(engine, outcome, 200)
    sample, header = outcome.sample, bytes(HEADER, "ascii")
    assert len(watched.asked) > 3
    for prefix, _, _ in watched.asked:
        assert prefix[: len(sample.prompt_ids)] == sample.prompt_ids
        ours = prefix[len(sample.prompt_ids) :]
        assert ours == sample.ids[: len(ours)]
        assert engine.tokenizer.decode(prefix).count(header) == 1


def test_settings_do_not_leak_between_requests_at_once() -> None:
    # optillm: the settings of a request were written into a global, where the next one found them.
    async def run() -> None:
        engine = answering(rambling(PONDER), faults=[Fault("delay", every=True, seconds=0.0001, times=None)])
        watched = Watched(engine)
        settings = [(0.1, 90), (0.5, 150), (0.9, 210)]

        async def one(temperature: float, tokens: int) -> tuple[int, float]:
            model = replace(of(watched), params=SamplingParams(max_tokens=1, temperature=temperature))
            question = ask(f"temperature {temperature}")
            async with aclosing(think_within(model, question, Budget(tokens=tokens))) as events:
                (cost,) = [e.cost async for e in events if isinstance(e, SampleFinished)]
            assert model.params == SamplingParams(max_tokens=1, temperature=temperature)
            return cost.tokens, temperature

        spent = await asyncio.gather(*(one(*each) for each in settings))
        assert all(tokens <= most for (tokens, _), (_, most) in zip(spent, settings, strict=True))
        assert len(watched.asked) >= 6
        for prefix, _, params in watched.asked:
            assert f"temperature {params.temperature}<" in engine.tokenizer.decode(prefix).decode()

    asyncio.run(run())


def test_what_is_thrown_away_is_paid_for() -> None:
    # its_hub, crucible-ttc: tokens that were discarded appeared in no bill.
    def reply(turn: str) -> str:
        return "4" if "</think>" in turn else "" if turn.endswith("Wait") else "Hm.</think>no</think>"

    engine = answering(reply, burst=5)
    outcome = think(of(engine), Budget(tokens=200, min_thinking=20))
    check(engine, outcome, 200)
    assert outcome.total.cancelled > 0
    assert outcome.total.generated == engine.generated > sum(outcome.sample.mask)


def test_what_streams_is_what_was_just_generated() -> None:
    # optillm: the whole reply was computed first, and then played back in pieces.
    async def run() -> None:
        engine = answering(rambling(PONDER, "It is 4, and that is it."))
        seen = 0
        async with aclosing(think_within(of(engine), QUESTION, Budget(tokens=300))) as events:
            async for event in events:
                if isinstance(event, ThinkingDelta | AnswerDelta):
                    seen += len(event.text)
                    assert engine.generated <= seen + 30
        assert seen > 200

    asyncio.run(run())


def test_markers_that_nobody_asked_for_stay_out_of_the_answer() -> None:
    # llama.cpp: end-of-turn tokens and think tags that a model spelled out were shown to the user.
    engine = answering(thinks(PONDER, "Hm.</think>4</think><|endoftext|></s>", ""))
    outcome = think(of(engine), 200)
    check(engine, outcome, 200)
    assert answer_runs(outcome.sample) == ["", "4"]

"""A model's own probability that each of its steps is right: values by hand, exact tokens, memory, costs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.chat.model import Model, Price, model_of
from ponder.engine._script import shared
from ponder.engine.llamacpp import LlamaEngine
from ponder.engine.scripted import ScriptedEngine, says
from ponder.errors import InputError, Unsupported
from ponder.protocols import LogProbs, SamplingParams, Verifier, bound, most_tokens
from ponder.strategies.budget import think_within
from ponder.types import Budget, Cost, Question, Sample, SampleFinished, Score, Span, ask, user
from ponder.verifiers import reward_model
from ponder.verifiers.self_reward import QUESTION, process_reward

QUIZ = Question((user("How much is 2 + 3?"),))
PROMPT = tuple(b"<prompt>\n")


class Opinion(ScriptedEngine):
    """An engine that finds a text right with the probability `right(text)`, and keeps a prefix cache.

    `seen` holds the token ids that a question was asked after, question included.
    """

    def __init__(self, right, specials: Sequence[str] = ()) -> None:  # type: ignore[no-untyped-def]
        self.right = right
        self.seen: list[tuple[int, ...]] = []
        self.cached: list[tuple[int, ...]] = []
        self.computed = 0
        super().__init__(says(""), specials=specials, logprob=self._opinion)

    def _opinion(self, prefix: tuple[int, ...], token: int) -> float:
        self.seen.append(prefix)
        said = self.tokenizer.decode(prefix).decode()
        chance = self.right(said.removeprefix("<prompt>\n").removesuffix(f"{QUESTION} "))
        return math.log(0.5 * {ord("Y"): chance, ord("N"): 1 - chance}[token])

    async def score(self, ids: Sequence[int], start: int, params: SamplingParams | None = None) -> list[float]:
        values = await super().score(ids, start, params)
        cached = min(start - 1, max((shared(known, ids) for known in self.cached), default=0))
        self.cached.append(tuple(ids[:-1]))
        self.computed += len(ids) - 1 - cached
        return LogProbs(values, len(ids) - 1 - cached)


def by_line(*chances: float) -> Opinion:
    """Finds the n-th line right with the n-th probability."""
    return Opinion(lambda said: chances[len(said.splitlines()) - 1])


def drawn(text: str, engine: ScriptedEngine, spans: tuple[Span, ...] | None = None) -> Sample:
    ids = tuple(engine.tokenizer.encode(text))
    spans = (Span("thinking", 0, len(text)),) if spans is None else spans
    return Sample(0, text, PROMPT, ids, (True,) * len(ids), (None,) * len(ids), spans=spans)


def score(verifier: Verifier, sample: Sample) -> Score:
    async def run() -> Score:
        return await verifier(QUIZ, sample)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("aggregate", "value"), [("min", 0.25), ("product", 0.8 * 0.25 * 0.5), ("mean", 1.55 / 3), ("last", 0.5)]
)
def test_values(aggregate: str, value: float) -> None:
    engine = by_line(0.8, 0.25, 0.5)
    made = score(process_reward(model_of(engine), aggregate=aggregate), drawn("One.\nTwo.\nThree.", engine))  # type: ignore[arg-type]
    assert made.steps == pytest.approx((0.8, 0.25, 0.5))
    assert made.value == pytest.approx(value)
    assert (made.verifier, made.why) == ("process_reward", "weakest of 3 steps: Two.")


@given(st.text(st.sampled_from("aé€😀 .\n\r"), max_size=40))
def test_questions_follow_exact_tokens(text: str) -> None:
    """Each token is a byte here: every character beyond ASCII spans several."""
    engine = Opinion(lambda said: 0.5)
    sample = drawn(text, engine)
    made = score(process_reward(model_of(engine), most_steps=50), sample)
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(made.steps) == len(lines)
    asked = tuple(f"{QUESTION} ".encode())
    for prefix, line in zip(engine.seen[::2], lines, strict=True):
        before = prefix[: -len(asked)]
        assert prefix == before + asked
        assert before == sample.prompt_ids + sample.ids[: len(before) - len(PROMPT)]
        ended = bytes(before).decode().removesuffix("\n")
        assert ended.removesuffix("\r").endswith(line)


def test_a_token_over_the_end_of_a_step_goes_with_it() -> None:
    engine = Opinion(lambda said: 0.5, specials=[".\n\nB"])
    sample = drawn("A.\n\nBut é\nC", engine)
    assert len(sample.ids) < len(sample.text)
    score(process_reward(model_of(engine)), sample)
    asked = len(f"{QUESTION} ")
    assert [prefix[len(PROMPT) : -asked] for prefix in engine.seen[::2]] == [sample.ids[:2], sample.ids[:8], sample.ids]


def test_bytes_that_are_no_character() -> None:
    """A stream that was cut there shows them otherwise than the whole does; the tokens count."""
    engine = ScriptedEngine(says(""), logprob=lambda prefix, token: -1.0)
    ids = (*b"One.\n", 0xE2, 0x82, *b"Two.")
    text = "One.\n\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}Two."
    sample = Sample(0, text, PROMPT, ids, (True,) * 11, (None,) * 11, spans=(Span("thinking", 0, len(text)),))
    made = score(process_reward(model_of(engine)), sample)
    question = len(f"{QUESTION} ")
    assert made.cost.prompt_computed == 2 * (len(PROMPT) + 5 + question) + 2 * (len(PROMPT) + 11 + question)


def test_earlier_steps_are_not_asked_again() -> None:
    engine = by_line(0.8, 0.25, 0.5)
    verifier = process_reward(model_of(engine))
    first = score(verifier, drawn("One.\nTwo.\n", engine))
    assert engine.calls == 4
    second = score(verifier, drawn("One.\nTwo.\nThree.\n", engine))
    assert engine.calls == 6
    assert second.steps == pytest.approx((*first.steps, 0.5))
    assert (second.cost.verifier, second.cost.calls) == (2, 2)
    assert score(verifier, drawn("One.\nTwo.\nThree.\n", engine)).cost == Cost()
    assert engine.calls == 6
    # The same text in other tokens, or after another prompt, is another sample.
    score(verifier, replace(drawn("One.\n", engine), prompt_ids=tuple(b"<prompt>\n\n")))
    assert engine.calls == 8


def test_a_parser_may_hold_back_the_end_of_a_step() -> None:
    """While it is drawn its text ends before the newline that its tokens have: the step is the same one."""
    engine = by_line(0.8, 0.25, 0.5)
    verifier = process_reward(model_of(engine))
    whole = drawn("One.\n", engine)
    score(verifier, replace(whole, text="One.", spans=(Span("thinking", 0, 4),)))
    assert engine.calls == 2
    spans = (Span("thinking", 0, 4), Span("marker", 4, 14), Span("answer", 14, 15))
    closed = score(verifier, drawn("One.\n</think>\n5", engine, spans))
    assert (engine.calls, closed.cost.calls, len(closed.steps)) == (4, 2, 2)  # the answer alone is asked anew


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_model, "REMEMBERED", 2)
    engine = by_line(0.8)
    verifier = process_reward(model_of(engine))
    for text, calls in [("A", 2), ("B", 4), ("A", 4), ("C", 6), ("A", 6), ("B", 8)]:
        score(verifier, drawn(text, engine))
        assert engine.calls == calls


def test_no_more_than_so_many_steps() -> None:
    """What does not fit is one step, so that those before it keep their ends and their values."""
    engine = by_line(0.9, 0.8, 0.7, 0.6, 0.5)
    verifier = process_reward(model_of(engine), most_steps=3)
    assert most_tokens(verifier) == 6
    assert score(verifier, drawn("1\n2\n3\n4\n", engine)).steps == pytest.approx((0.9, 0.8, 0.6))
    made = score(verifier, drawn("1\n2\n3\n4\n5\n", engine))
    assert made.steps == pytest.approx((0.9, 0.8, 0.5))
    assert made.cost.verifier == 2
    with pytest.raises(InputError, match="most_steps=0"):
        process_reward(most_steps=0)


def test_what_counts_as_a_step() -> None:
    engine = Opinion(lambda said: 0.5)
    verifier = process_reward(model_of(engine))
    answer = (Span("answer", 0, 4),)
    assert len(score(verifier, drawn("a\n\nb", engine, answer)).steps) == 2
    both = (Span("marker", 0, 2), Span("thinking", 2, 3), Span("answer", 4, 9))
    assert len(score(verifier, drawn("> a\nb\nc\nd", engine, both)).steps) == 2
    assert len(score(verifier, drawn("a\nb", engine, ())).steps) == 2
    pieces = tuple(Span("thinking", at, at + 1) for at in range(7))
    assert score(verifier, drawn("One.\nTwo.", engine, pieces)).why == "weakest of 2 steps: One."
    nothing = score(verifier, drawn(" \n", engine))
    assert (nothing.value, nothing.why, nothing.cost) == (0.5, "found no step", Cost())


def test_costs() -> None:
    engine = by_line(0.5, 0.5)
    model = model_of(engine, Price(prompt=1, cached=0.5, output=2))
    sample = drawn("One.\nTwo.", engine)
    engine.cached.append(sample.prompt_ids + sample.ids)  # it was drawn by this engine
    cost = score(process_reward(model), sample).cost
    question, prompt = len(f"{QUESTION} "), len(PROMPT)
    # The cache has the sample and, for the second answer of two, the question but for its last token.
    assert cost.prompt_computed == engine.computed == 2 * (question + 1)
    assert cost.prompt == 2 * ((prompt + 5 + question) + (prompt + 9 + question))
    assert (cost.verifier, cost.written, cost.calls, cost.tokens) == (4, 0, 4, 4)
    assert cost.seconds > 0
    assert cost.dollars == pytest.approx((cost.prompt_computed + 0.5 * cost.prompt_cached + 2 * 4) / 1e6)
    assert cost.flops is None


def test_an_engine_that_does_not_tell_computed_everything() -> None:
    engine = ScriptedEngine(says(""), logprob=lambda prefix, token: -1.0)
    made = score(process_reward(model_of(engine)), drawn("One.", engine))
    assert made.value == 0.5
    assert made.cost.prompt_computed == 2 * len(PROMPT + tuple(f"One.{QUESTION} ".encode()))
    assert made.cost.prompt_cached == 0


def test_a_strategy_lends_its_model() -> None:
    engine, other = by_line(0.75), by_line(0.25)
    free = process_reward()
    with pytest.raises(InputError, match=r"process_reward\(\) has no model to ask"):
        score(free, drawn("One.", engine))
    assert score(bound(free, model_of(engine)), drawn("One.", engine)).value == pytest.approx(0.75)
    given_one = process_reward(model_of(other))
    assert score(bound(given_one, model_of(engine)), drawn("One.", engine)).value == pytest.approx(0.25)
    assert most_tokens(free) == most_tokens(given_one) == 32
    # Values of one model are no values of another.
    assert score(bound(free, model_of(other)), drawn("One.", engine)).value == pytest.approx(0.25)


def test_what_cannot_be_scored() -> None:
    sample = drawn("One.", by_line(0.5))
    for silent in (ScriptedEngine(says("")), ScriptedEngine(says(""), chat_only=True)):
        with pytest.raises(Unsupported, match=r"has none\. Use the gguf: engine"):
            score(process_reward(model_of(silent)), sample)
    verifier = process_reward(model_of(by_line(0.5)))
    with pytest.raises(Unsupported, match="this sample has none"):
        score(verifier, Sample(0, "One.", exact=False))
    with pytest.raises(InputError, match="another tokenizer"):
        score(verifier, replace(sample, text="Two."))
    with pytest.raises(InputError, match="aggregate 'max'"):
        process_reward(aggregate="max")  # type: ignore[arg-type]


@pytest.mark.model
def test_on_the_embedded_model(llama: LlamaEngine) -> None:
    """Its own thinking, drawn in earnest: every step has a value, and the cache holds what was drawn."""
    model: Model = model_of(llama)
    model = replace(model, params=replace(model.params, seed=1))

    async def run() -> tuple[Sample, Score, Score]:
        samples = []
        async with aclosing(think_within(model, ask("What is 17 + 25?"), Budget(tokens=120))) as events:
            async for event in events:
                samples += [event.sample] if isinstance(event, SampleFinished) else []
        verifier = process_reward(model, most_steps=4)
        return samples[0], await verifier(QUIZ, samples[0]), await verifier(QUIZ, samples[0])

    sample, made, again = asyncio.run(run())
    # Where it answers at once, as it may, the answer is its one step.
    thought = len([line for line in sample.thinking.splitlines() if line.strip()])
    assert len(made.steps) == min(4, thought + (1 if sample.answer.strip() else 0))
    assert all(0 < value < 1 for value in made.steps)
    assert made.value == min(made.steps)
    assert made.cost.verifier == made.cost.calls == 2 * len(made.steps)
    # A question and the token before it, and one token for the second answer: the sample itself is cached.
    assert made.cost.prompt_computed <= len(made.steps) * 20
    assert made.cost.prompt_cached >= len(sample.prompt_ids) * 2 * len(made.steps) - 2
    assert (again.steps, again.cost) == (made.steps, Cost())

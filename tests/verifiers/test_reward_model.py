"""Reward models: where they are asked, with which adapter, and what a plain function's reward becomes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scoring import score as score_answer

from ponder.chat.model import Model, model_of
from ponder.engine._script import TOKENIZER
from ponder.engine.llamacpp import LlamaEngine
from ponder.engine.scripted import EOS, ScriptedEngine, says
from ponder.errors import EngineUnavailable, GarbledReply, InputError
from ponder.protocols import Capabilities, SamplingParams, Verifier, bound, most_tokens
from ponder.types import Cost, Question, Sample, Score, Span, user
from ponder.verifiers.reward_model import MARKER, from_function, outcome_reward, process_reward_model, step_ends

TEXT = "2 + 3 = 5\n5 * 2 = 11\n</think>\nIt is 11."
SPANS = (Span("thinking", 0, 20), Span("marker", 20, 30), Span("answer", 30, 39))


class Rewarding(ScriptedEngine):
    """Says "+" after a marker with the probability that stands beside the text so far, and two adapters."""

    def __init__(self, chances: Mapping[str, float]) -> None:
        super().__init__(says(""), logprob=self._reward)
        self.chances = chances
        self.asked: list[tuple[str, Mapping[str, float] | None]] = []

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, adapters=("thinks", "rewards"))

    def _reward(self, prefix: tuple[int, ...], token: int) -> float:
        said = TOKENIZER.decode(prefix).decode()
        assert said.endswith(MARKER)
        chance = self.chances[said.removesuffix(MARKER)]
        return math.log(0.1 * {ord("+"): chance, ord("-"): 1 - chance}[token])

    async def score(self, ids: Sequence[int], start: int, params: SamplingParams | None = None) -> list[float]:
        said = TOKENIZER.decode(ids[:start]).decode()
        self.asked.append((said.removesuffix(MARKER), params and params.adapters))
        return await super().score(ids, start, params)


ENGINE_CHANCES = {"?2 + 3 = 5\n": 0.75, "?2 + 3 = 5\n5 * 2 = 11\n": 0.125, f"?{TEXT}": 0.25}


def drawn(text: str = TEXT, spans: tuple[Span, ...] = SPANS, end: Sequence[int] = (EOS,)) -> Sample:
    ids = (*text.encode(), *end)
    return Sample(0, text, tuple(b"?"), ids, (True,) * len(ids), (None,) * len(ids), spans=spans)


def score(verifier: Verifier, sample: Sample) -> Score:
    async def run() -> Score:
        return await verifier(Question((user("?"),)), sample)

    return asyncio.run(run())


def test_outcome() -> None:
    """Asked once, after the whole sample and before the token that ended its turn."""
    engine = Rewarding(ENGINE_CHANCES)
    verifier = outcome_reward(model_of(engine), adapters={"rewards": 1.0})
    made = score(verifier, drawn())
    assert (made.value, made.steps, made.verifier) == (pytest.approx(0.25), (), "outcome_reward")
    assert engine.asked == [(f"?{TEXT}", {"rewards": 1.0})] * 2
    assert (made.cost.verifier, made.cost.calls, most_tokens(verifier)) == (2, 2, 2)
    assert made.cost.prompt == 2 * len(f"?{TEXT}{MARKER}")
    assert score(verifier, drawn()).cost == Cost()


def test_outcome_of_nothing() -> None:
    assert score(outcome_reward(model_of(Rewarding({"?": 0.3}))), drawn("", ())).value == pytest.approx(0.3)


def test_process() -> None:
    engine = Rewarding(ENGINE_CHANCES)
    verifier = process_reward_model(model_of(engine), adapters={"rewards": 0.5})
    made = score(verifier, drawn())
    assert made.steps == pytest.approx((0.75, 0.125, 0.25))
    assert made.value == pytest.approx(0.125)
    assert made.why == "weakest of 3 steps: 5 * 2 = 11"
    assert [said for said, _ in engine.asked[::2]] == ["?2 + 3 = 5\n", "?2 + 3 = 5\n5 * 2 = 11\n", f"?{TEXT}"]
    assert {tuple((adapters or {}).items()) for _, adapters in engine.asked} == {(("rewards", 0.5),)}


def test_adapters() -> None:
    engine = Rewarding(ENGINE_CHANCES)
    thinking = model_of(engine)
    thinking = replace(thinking, params=replace(thinking.params, adapters={"thinks": 1.0}))
    score(bound(outcome_reward(), thinking), drawn())
    score(bound(outcome_reward(adapters={}), thinking), drawn())
    assert [adapters for _, adapters in engine.asked[::2]] == [{"thinks": 1.0}, {}]
    with pytest.raises(InputError, match=r"no adapter 'reward'. Open its engine with it \(it has: thinks, rewards\)"):
        score(outcome_reward(thinking, adapters={"reward": 1.0}), drawn())


def scored(*logprobs: float) -> Model:
    given = iter(logprobs)
    return model_of(ScriptedEngine(says(""), logprob=lambda prefix, token: next(given)))


@given(st.floats(-1e4, 0), st.floats(-1e4, 0))
def test_the_reward_is_a_share_of_two(yes: float, no: float) -> None:
    value = score(outcome_reward(scored(yes, no)), drawn()).value
    other = score(outcome_reward(scored(no, yes)), drawn()).value
    assert 0 <= value <= 1
    assert value + other == pytest.approx(1)
    assert (value > 0.5) == (yes > no + 1e-15) or math.isclose(yes, no)


@pytest.mark.parametrize(
    ("yes", "no", "value"),
    [(-1.0, -math.inf, 1), (-math.inf, -1.0, 0), (-math.inf, -math.inf, 0.5), (-900, -900 + math.log(3), 0.25)],
)
def test_extremes(yes: float, no: float, value: float) -> None:
    assert score(outcome_reward(scored(yes, no)), drawn()).value == pytest.approx(value)


def test_failures_are_no_scores() -> None:
    with pytest.raises(GarbledReply, match="one log-probability"):
        score(outcome_reward(scored(math.nan, -1)), drawn())
    closed = Rewarding(ENGINE_CHANCES)
    asyncio.run(closed.close())
    verifier = outcome_reward(model_of(closed))
    for _ in range(2):  # and nothing is remembered of them
        with pytest.raises(EngineUnavailable):
            score(verifier, drawn())


def test_answers_that_begin_alike() -> None:
    # " +" and " -" share their first byte, which then counts as part of the marker.
    engine = ScriptedEngine(says(""), logprob=lambda prefix, token: {ord("+"): -1.0, ord("-"): -2.0}[token])
    made = score(outcome_reward(model_of(engine), token=" +", against=" -"), drawn())
    assert made.value == pytest.approx(1 / (1 + math.exp(-1)))
    with pytest.raises(InputError, match="begins like all of the other"):
        score(outcome_reward(model_of(engine), token="+", against="++"), drawn())


@given(st.lists(st.text(st.sampled_from("ab \n"), max_size=5)), st.integers(1, 6))
def test_steps_keep_their_ends(pieces: list[str], most: int) -> None:
    """However a text goes on after a newline, all its steps but the last one that fits stay where they were."""
    whole = "".join(f"{piece}\n" for piece in pieces)
    ends = step_ends(whole, (), most)
    assert len(ends) <= most
    assert ends == sorted(set(ends))
    assert "".join(whole.split()) == "".join(whole[: ends[-1] if ends else 0].split())
    before = step_ends(whole[: len(whole) // 2].rpartition("\n")[0] + "\n", (), most)
    assert before[: most - 1] == ends[: len(before[: most - 1])]


@pytest.mark.parametrize(
    ("answer", "most", "ends"),
    [("", 9, [2, 4]), ("7", 9, [2, 4, 14]), ("7\n\n8\n", 9, [2, 4, 18]), ("7", 2, [2, 14]), (" \n", 9, [2, 4])],
)
def test_the_answer_is_one_step_after_the_thinking(answer: str, most: int, ends: list[int]) -> None:
    text = f"a\nb\n</think>\n{answer}"
    spans = (Span("thinking", 0, 4), Span("marker", 4, 13), Span("answer", 13, len(text)))
    assert step_ends(text, spans, most) == ends


def test_from_function() -> None:
    async def later(question: Question, sample: Sample) -> float:
        await asyncio.sleep(0)
        return len(sample.answer) / 2

    verifier = from_function("length", lambda question, sample: len(sample.answer))
    assert score_answer(verifier, "1234") == Score(4.0, "length")
    assert score_answer(from_function("half", later), "1234") == Score(2.0, "half")
    assert (most_tokens(verifier), bound(verifier, None)) == (0, verifier)
    for bad in (math.nan, math.inf, None, "much"):
        with pytest.raises(InputError, match=f"the reward odd gave {bad!r}"):
            score_answer(from_function("odd", lambda question, sample, bad=bad: bad), "1")


@pytest.mark.model
def test_on_the_embedded_model(llama: LlamaEngine) -> None:
    """An adapter is on for the reward alone: with the one at hand for a reward model, values differ from the base's."""
    model = model_of(llama)
    (name,) = llama.capabilities.adapters

    async def run() -> list[Score]:
        prompt = (await model.prompt((user("How much is 2 + 3?"),), think=True)).ids
        text = "2 + 3 = 5\nSo it is 5.\n"
        ids = tuple(await llama.tokenize(text))
        none = (None,) * len(ids)
        sample = Sample(0, text, prompt, ids, (True,) * len(ids), none, spans=(Span("thinking", 0, len(text)),))
        chosen: list[Mapping[str, float]] = [{}, {name: 4.0}, {}]
        ask = [process_reward_model(model, token=" good", against=" bad", adapters=each) for each in chosen]
        return [await each(Question(()), sample) for each in ask]

    base, adapted, again = asyncio.run(run())
    assert len(base.steps) == len(adapted.steps) == 2
    assert base.steps != pytest.approx(adapted.steps, abs=0.1)
    assert base.steps == pytest.approx(again.steps, abs=0.02)
    assert again.cost.prompt_cached > again.cost.prompt_computed

"""Early exit: thinking ends when probes agree, the probes are charged, and nothing is said twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from drive import Outcome, of, outcome_of, turn_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.engine.scripted import EOS, TOKENIZER, Fault, ScriptedEngine
from ponder.protocols import SamplingParams
from ponder.strategies.early_exit import early_exit
from ponder.types import AnswerDelta, BestAnswer, Budget, Cost, SampleFinished, ask

QUESTION = ask("How many?")
EVERY = 10


def settling(answers: Sequence[int], faults: Sequence[Fault] = (), every: int = EVERY) -> ScriptedEngine:
    """Thinks in letters, and after k stretches of `every` of them would answer answers[k]; ends after the last."""

    def source(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Iterator[int]:
        turn = TOKENIZER.decode(turn_of(prefix)).decode(errors="replace").partition("<think>\n")[2]
        thinking, closed, answer = turn.partition("</think>")
        if closed:
            stretch = min((len(thinking.strip()) - 1) // every, len(answers) - 1)
            yield from TOKENIZER.encode(f"The answer is {answers[max(stretch, 0)]}.".removeprefix(answer.lstrip()))
        else:
            yield from TOKENIZER.encode("x" * (every * len(answers) - len(thinking)) + "\n</think>\n")
            yield from TOKENIZER.encode(f"The answer is {answers[-1]}.")
        yield from [ord("7")] * 1000 if params.ignore_eos else [EOS]

    return ScriptedEngine(source, faults=tuple(faults))


def solve(engine: ScriptedEngine, tokens: int = 1000, settled: int = 2, **bounds: float | int) -> Outcome:
    strategy = early_exit(EVERY, settled, probe=20)
    return outcome_of(strategy(QUESTION, of(engine), Budget(tokens=tokens, **bounds)))  # type: ignore[arg-type]


def check(engine: ScriptedEngine, outcome: Outcome, tokens: int) -> None:
    assert engine.open_streams == 0
    assert outcome.total.tokens <= tokens
    assert outcome.total.generated == engine.generated


def best(outcome: Outcome) -> str:
    return [event.answer for event in outcome.events if isinstance(event, BestAnswer)][-1]


@pytest.mark.parametrize(
    ("answers", "settled", "answer", "stretches"),
    [
        ([5, 5, 9, 9, 9], 2, 5, 2),
        ([1, 2, 3, 3, 9], 2, 3, 4),
        ([1, 2, 2, 3, 3, 3, 9, 9], 3, 3, 6),
        ([4, 9, 9], 1, 4, 1),
        ([1, 2, 1, 2], 2, 2, 4),  # it never settles: the thinking ends by itself
    ],
)
def test_thinking_ends_at_the_first_probe_that_settles_it(
    answers: list[int], settled: int, answer: int, stretches: int
) -> None:
    engine = settling(answers)
    outcome = solve(engine, settled=settled)
    check(engine, outcome, 1000)
    assert best(outcome) == f"The answer is {answer}."
    root = next(sample for sample, _ in outcome.finished if sample.index == 0)
    assert root.thinking == "x" * stretches * EVERY


def test_probes_are_charged_as_probes_and_say_nothing_aloud() -> None:
    engine = settling([1, 5, 5, 9, 9])
    outcome = solve(engine)
    root, *probes = sorted(outcome.finished, key=lambda each: each[0].index)
    assert (root[1].thinking, root[1].probe, root[1].answer) == (30, 0, 0)
    assert len(probes) == 3
    for sample, cost in probes:
        assert (sample.parent, cost.thinking, cost.answer) == (0, 0, 0)
        assert cost.probe > 0
        assert cost.written > 0, "the closing marker"
    assert [sample.finish for sample, _ in probes] == ["cancelled", "cancelled", "stop"]
    said = [event for event in outcome.events if isinstance(event, AnswerDelta)]
    assert [(event.text, event.sample) for event in said] == [("The answer is 5.", 3)]


def test_it_spends_less_than_thinking_to_the_end() -> None:
    early, late = settling([7] * 20), settling([7] * 20)
    spent = [solve(early).total.tokens, solve(late, settled=100).total.tokens]
    assert spent[0] < spent[1] / 2


def test_answers_are_compared_in_canonical_form() -> None:
    engine = settling([1000, 1000, 2])
    outcome = outcome_of(
        early_exit(EVERY, 2, probe=20, canonical=lambda text: None)(QUESTION, of(engine), Budget(tokens=900))
    )
    check(engine, outcome, 900)
    assert best(outcome) == "The answer is 2.", "answers without a form never agree"


@given(
    st.integers(4, 200),
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
    st.lists(
        st.builds(
            Fault,
            st.sampled_from(["disconnect", "garbage", "partial", "rate_limit"]),
            at=st.integers(0, 20),
            times=st.one_of(st.none(), st.integers(1, 2)),
            first_call=st.integers(0, 4),
        ),
        max_size=2,
    ),
    st.one_of(st.none(), st.integers(2, 8)),
)
@settings(max_examples=100, deadline=None)
def test_never_over_budget_and_always_an_answer_or_a_typed_failure(
    tokens: int, answers: list[int], faults: list[Fault], calls: int | None
) -> None:
    engine = settling(answers, faults)
    outcome = solve(engine, tokens, calls=calls)  # type: ignore[arg-type]
    check(engine, outcome, tokens)
    assert calls is None or outcome.total.calls <= calls
    assert outcome.error is not None or best(outcome)


def test_costs_add_up_in_the_events() -> None:
    engine = settling([1, 2, 2])
    outcome = solve(engine)
    assert sum((e.cost for e in outcome.events if isinstance(e, SampleFinished)), Cost()).generated == engine.generated


@pytest.mark.parametrize("settings_", [{"every": 0}, {"settled": 0}, {"probe": 0}])
def test_settings_that_make_no_sense_are_refused(settings_: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        early_exit(**settings_)

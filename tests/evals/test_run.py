"""Evaluations: results depend on what was asked alone, nothing is lost, and no failure passes for a wrong answer."""

from __future__ import annotations

import asyncio
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.chat.model import Model, Price, model_of
from ponder.engine.scripted import HEADER, TOKENIZER, Fault, ScriptedEngine, Source, says
from ponder.errors import ContextOverflow, EngineTimeout, GarbledReply, InputError, RateLimited, StoreError
from ponder.evals import run as run_module
from ponder.evals.cached import Account
from ponder.evals.inquiry import seed_of
from ponder.evals.results import Result, Run, Setting
from ponder.evals.run import compare, evaluate, kept_run, run_id
from ponder.ops.store import Store
from ponder.protocols import SamplingParams
from ponder.solving import asolve
from ponder.strategies.naming import strategy_named
from ponder.tasks import Task
from ponder.types import Budget, Cost, Question, Sample, Score, user
from ponder.verifiers.arithmetic_steps import arithmetic_steps

VOTE = Setting("vote(3)", Budget(tokens=600))
TIGHT = Setting("vote(3)", Budget(tokens=240))
"""Thinking is closed early, so that samples are continued by requests of their own."""


def sums(count: int, verifier: str = "math_answer", **metadata: Any) -> Task:
    questions = tuple(
        Question(
            (user(f"What is {i} + 3?"),),
            reference=str(i + 3),
            metadata={"id": f"q{i}", "kind": ["even", "odd"][i % 2]} | metadata,
        )
        for i in range(count)
    )
    return Task("sums", questions, verifier, "5a")


class Drawing:
    """Says one of several texts, by the question, the seed and the number of the sample; pauses at random."""

    def __init__(self, pauses: float = 0.0, seed: int = 0, texts: Callable[[int], Sequence[str]] | None = None) -> None:
        self._pauses, self._random = pauses, random.Random(seed)
        self._texts = texts or self.usual

    @staticmethod
    def usual(i: int) -> Sequence[str]:
        return (
            f"I add 3 to {i} and get {i + 3}.\nThe answer is {i + 3}.",
            f"Three more than {i}, I count on my fingers, which takes a while.\nThe answer is {i + 3}.",
            f"So {i}.\nThe answer is {i}.",
            f"Well, {i} and 3 tens.\nThe answer is {i + 30}.",
        )

    def __call__(self, prefix: tuple[int, ...], index: int, params: SamplingParams) -> Source:
        text = TOKENIZER.decode(prefix).decode(errors="replace")
        asked, _, turn = text.rpartition(HEADER)
        texts = self._texts(int(re.findall(r"What is (\d+)", asked)[-1]))
        begun = [each for each in texts if turn and each[:5] == turn[:5]]
        chosen = begun or [texts[random.Random(f"{params.seed} {index}").randrange(len(texts))]]
        for token in says(chosen[0])(prefix, 0, params):
            if self._pauses and self._random.random() < 0.02:
                yield Fault("delay", seconds=self._random.random() * self._pauses)
            yield token


def drawing(pauses: float = 0.0, seed: int = 0, **options: Any) -> Model:
    return model_of(ScriptedEngine(Drawing(pauses, seed), **options))


def saying(*texts: str, **options: Any) -> Model:
    return model_of(ScriptedEngine(says(*texts), **options))


def asked(task: Task, model: Model, setting: Setting = VOTE, **options: Any) -> Run:
    return asyncio.run(asyncio.wait_for(evaluate(task, model, setting, **options), 60))


def timeless(run: Run) -> list[Any]:
    """The results without what depends on the clock, and on which prompts the engine's cache happened to hold."""

    def cost(cost: Cost) -> Cost:
        return replace(cost, seconds=0.0, prompt_cached=cost.prompt, prompt_computed=0, recomputed=0)

    return [
        replace(
            result,
            cost=cost(result.cost),
            samples=tuple(
                replace(s, cost=cost(s.cost)) for s in sorted(result.samples, key=lambda sample: sample.index)
            ),
        )
        for result in run.results
    ]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "ponder.db") as opened:
        yield opened


@pytest.fixture(autouse=True)
def at_once_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "PAUSES", (0.0, 0.0))


# ---------------------------------------------------------------- results


def test_every_question_is_asked_judged_and_costed() -> None:
    model = drawing(logprob=lambda prefix, token: -0.5)
    told: list[tuple[int, int]] = []
    account = Account()
    run = asked(sums(6), model, seeds=2, progress=lambda *now: told.append(now), account=account)
    assert [(r.question, r.seed) for r in run.results] == [(f"q{i}", seed) for i in range(6) for seed in range(2)]
    assert told == [(done, 12) for done in range(13)]
    assert run.questions == tuple(f"q{i}" for i in range(6))
    assert (run.task, run.model, run.setting, run.seeds, run.sha256) == ("sums", "scripted", VOTE, 2, "5a")
    assert run.temperature == model.params.temperature
    for result in run.results:
        i = int(result.question[1:])
        assert result.kind == ["even", "odd"][i % 2]
        assert result.correct == result.lenient == (result.answer == f"The answer is {i + 3}.")
        assert [sample.index for sample in sorted(result.samples, key=lambda s: s.index)] == [0, 1, 2]
        for sample in result.samples:
            assert sample.correct == (sample.answer == str(i + 3))
            assert sample.answer in (str(i), str(i + 3), str(i + 30))
            assert (sample.weight, sample.kept) == (pytest.approx(0.60653066), True)
        assert result.cost.tokens == sum(sample.cost.tokens for sample in result.samples) > 0
    assert run.cost.generated == account.tokens == model.engine.generated  # type: ignore[attr-defined]
    assert account.samples == 36
    assert 0 < sum(r.correct for r in run.results) < 12  # the script is neither always right nor always wrong


@settings(max_examples=6, deadline=None)
@given(st.sampled_from([1, 2, 8]), st.integers(0, 10**6), st.sampled_from(["vote(3)", "best_of_n(2)", "direct"]))
def test_neither_order_nor_concurrency_changes_a_result(at_once: int, luck: int, strategy: str) -> None:
    setting = Setting(strategy, Budget(tokens=150))
    calm = asked(sums(6), drawing(), setting, at_once=3, seed=luck % 3)
    disturbed = asked(sums(6), drawing(0.01, luck), setting, at_once=at_once, seed=luck % 3)
    assert disturbed.id == calm.id
    assert timeless(disturbed) == timeless(calm)


def test_seeds_are_the_same_on_every_machine() -> None:
    assert seed_of(0, "q1", 0) == 38577287334585313
    assert len({seed_of(s, q, r) for s in (0, 1) for q in ("q1", "q10") for r in (0, 1, 10)}) == 12
    assert all(0 <= seed_of(s, "é", 0) < 2**63 for s in range(50))


def test_repetitions_and_runs_of_another_seed_draw_other_samples() -> None:
    run, other = [asked(sums(8), drawing(), Setting("direct"), seeds=2, seed=seed) for seed in (0, 1)]
    answers = [[r.answer for r in each.results if r.seed == s] for each in (run, other) for s in (0, 1)]
    assert len({tuple(each) for each in answers}) == 4


def test_an_unmarked_answer_is_lenient_and_a_clear_one_is_both() -> None:
    run = asked(sums(1), saying("So it is 3."), Setting("direct"))
    assert (run.results[0].correct, run.results[0].lenient) == (0, 1)
    for verifier in ("math_answer(strict=True)", "math_answer(True)", "math_answer(False, 1.0)", "math_answer()"):
        run = asked(sums(1, verifier), saying("So it is 3."), Setting("direct"))
        assert (run.results[0].correct, run.results[0].lenient) == (0, 1)
    run = asked(sums(1, "normalised_text"), saying("3."), Setting("direct"))
    assert (run.results[0].correct, run.results[0].lenient) == (1, 1)


def test_a_question_may_declare_its_verifier() -> None:
    picked = Question(
        (user("What is 1, a or b?"),),
        "B",
        metadata={"id": "pick", "choices": ["a", "b"], "verifier": "choice"},
    )
    task = replace(sums(1, "normalised_text"), questions=(*sums(1).questions, picked))
    run = asked(task, saying("The answer is (B)."), Setting("vote(2)", Budget(tokens=200)))
    assert [result.correct for result in run.results] == [0, 1]
    assert [sample.answer for sample in run.results[1].samples] == ["B", "B"]
    (question,) = sums(1).questions
    own = replace(question, metadata={**question.metadata, "verifier": "math_answer"})
    run = asked(Task("own", (own,), "exact_text", "5a"), saying("So it is 3."), Setting("direct"))
    assert (run.results[0].correct, run.results[0].lenient) == (0, 1)


def test_selecting_verifiers_score_every_sample_and_tell_what_they_cost() -> None:
    def asking() -> Any:
        async def verify(question: Question, sample: Sample) -> Score:
            return Score(len(sample.answer) / 100, "asking", cost=Cost(verifier=2))

        return verify

    selectors = {"arithmetic": arithmetic_steps(), "asking": asking()}
    run = asked(sums(2), saying("3 + 3 = 6.\nThe answer is 6.", "3 + 3 = 7.\nThe answer is 7."), selectors=selectors)
    for result in run.results:
        samples = sorted(result.samples, key=lambda sample: sample.index)
        assert samples[0].scores["arithmetic"] > samples[1].scores["arithmetic"]
        assert [sample.scores["asking"] for sample in samples] == [0.16] * 3
        assert [dict(sample.costs) for sample in samples] == [{"asking": Cost(verifier=2)}] * 3


# ---------------------------------------------------------------- a model that gives no answer


def test_no_answer_is_a_wrong_result_with_its_cost() -> None:
    run = asked(sums(2), model_of(ScriptedEngine(lambda *_: ())), Setting("direct", Budget(tokens=60)))
    for result in run.results:
        assert (result.correct, result.lenient, result.answer) == (0, 0, "")
        assert result.error is not None
        assert result.error.startswith("NoAnswer: the model gave no answer")
        assert result.cost.tokens > 0
    assert run.scores() == [[0.0], [0.0]]


def test_a_budget_without_room_for_an_answer_is_a_wrong_result() -> None:
    run = asked(sums(1), saying("7"), Setting("direct", Budget(tokens=3)))
    assert run.results[0].error is not None
    assert run.results[0].error.startswith("BudgetTooSmall: ")


def test_a_question_that_is_too_long_is_a_wrong_result_and_the_others_are_not() -> None:
    task = sums(2)
    long = replace(task.questions[0], messages=(user("What is 0 + 3?" + " Well?" * 100),))
    run = asked(
        replace(task, questions=(long, task.questions[1])), drawing(context=400), Setting("direct", Budget(tokens=100))
    )
    assert [bool(result.error) for result in run.results] == [True, False]
    assert (run.results[0].error or "").startswith(ContextOverflow.__name__)


def test_time_that_ran_out_is_a_wrong_result_only_where_the_setting_bounds_it() -> None:
    silent = [Fault("hang", at=0, times=None)]
    run = asked(sums(2), drawing(faults=silent), Setting("direct", Budget(tokens=100, seconds=0.1)))
    assert [(result.error or "").partition(":")[0] for result in run.results] == ["EngineTimeout"] * 2

    class Slow(ScriptedEngine):
        async def _stream(self, *_: Any) -> Any:
            raise EngineTimeout("the server said nothing for 120 seconds", "ask again")
            yield

    with pytest.raises(EngineTimeout, match="120 seconds"):
        asked(sums(1), model_of(Slow(says("7"))), Setting("direct", Budget(tokens=100, seconds=10)))


def test_a_sample_that_was_cut_short_is_no_draw() -> None:
    model = saying("Hm.\nThe answer is 3.", "Hm.\nThe answer is 3.", "A long tale of numbers. " * 20)
    run = asked(sums(1), model, Setting("vote(3, risk=0.3)", Budget(tokens=900)))
    kept = {sample.index: sample.kept for sample in run.results[0].samples}
    assert kept == {0: True, 1: True, 2: False}
    assert run.results[0].answer == "The answer is 3."


# ---------------------------------------------------------------- an engine that fails


def failing(kind: Any, times: int | None, **where: Any) -> Model:
    return drawing(faults=[Fault(kind, times=times, **where)])


@pytest.mark.parametrize("kind", ["disconnect", "rate_limit"])
def test_a_question_whose_engine_failed_is_asked_again(kind: Any, store: Store) -> None:
    # Strategies ask three times themselves: the first attempt fails, the second goes through.
    model = failing(kind, times=3)
    run = asked(sums(3), model, Setting("direct"), at_once=1, store=store)
    assert timeless(run) == timeless(asked(sums(3), drawing(), Setting("direct")))


def test_after_two_more_attempts_the_run_stops_and_keeps_what_is_done(store: Store) -> None:
    model = failing("rate_limit", times=None, first_call=3)
    told: list[tuple[int, int]] = []
    with pytest.raises(RateLimited):
        asked(sums(5), model, Setting("direct"), at_once=1, store=store, progress=lambda *now: told.append(now))
    assert told[-1] == (2, 5)
    assert model.engine.calls == 2 + 3 * 3  # type: ignore[attr-defined]
    healthy = drawing()
    run = asked(sums(5), healthy, Setting("direct"), store=store)
    assert len(run.results) == 5
    assert healthy.engine.calls == 3  # type: ignore[attr-defined]


def test_what_cannot_be_mended_by_asking_again_stops_at_once() -> None:
    model = failing("garbage", times=None)
    with pytest.raises(GarbledReply):
        asked(sums(3), model, Setting("direct"), at_once=1)
    assert model.engine.calls == 1  # type: ignore[attr-defined]


def test_a_vote_of_the_samples_that_a_failing_engine_left_is_no_result() -> None:
    # The first sample has ended, and the second one is to be continued when the engine fails.
    texts = ("Hm.\nThe answer is 3.", "I wonder for a long while what that may be.\nThe answer is 0.")
    setting = Setting("vote(2)", Budget(tokens=160))

    def model(kind: Any, times: int) -> Model:
        return saying(*texts, faults=[Fault(kind, times=times, first_call=2)])

    made_do = asyncio.run(
        asolve("What is 0 + 3?", model=model("garbage", 1), strategy=strategy_named("vote(2)"), budget=160)
    )
    assert {sample.finish for sample in made_do.samples} == {"stop", "error"}
    with pytest.raises(GarbledReply):
        asked(sums(1), model("garbage", 1), setting)
    # Strategies go on twice by themselves: the third time is the one that ends the sample.
    run = asked(sums(1), model("disconnect", 3), setting)
    assert timeless(run) == timeless(asked(sums(1), saying(*texts), setting))
    assert all(sample.kept for sample in run.results[0].samples)


def test_an_error_of_one_question_ends_the_others_in_good_order() -> None:
    engine = ScriptedEngine(Drawing(), faults=[Fault("garbage", at=9, first_call=4), Fault("hang", at=5, times=3)])
    with pytest.raises(GarbledReply):
        asked(sums(8), model_of(engine), Setting("direct"), at_once=4)
    assert engine.open_streams == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"strategy": "guess(3)"}, "there is no strategy 'guess'"),
        ({"verifier": "guess"}, "there is no verifier 'guess'"),
        ({"verifier": "f("}, "is no verifier"),
        ({"seeds": 0}, "seeds=0"),
        ({"at_once": 0}, "at_once=0"),
    ],
)
def test_mistakes_are_told_before_anything_is_paid(change: dict[str, Any], problem: str) -> None:
    model = drawing()
    task = sums(1, change.pop("verifier", "math_answer"))
    with pytest.raises(InputError, match=re.escape(problem)):
        asked(task, model, Setting(change.pop("strategy", "direct")), **change)
    assert model.engine.calls == 0  # type: ignore[attr-defined]


def test_a_question_without_a_reference_says_so() -> None:
    task = replace(sums(1), questions=(Question((user("What is 1?"),), metadata={"id": "q"}),))
    with pytest.raises(InputError, match="reference"):
        asked(task, drawing(), Setting("direct"))


# ---------------------------------------------------------------- going on


def stopped_after(results: int, model: Model, setting: Setting, **options: Any) -> Run:
    async def work() -> Run:
        stop = asyncio.Event()

        def progress(done: int, total: int) -> None:
            if done >= results:
                stop.set()

        return await evaluate(sums(8), model, setting, stop=stop, progress=progress, **options)

    return asyncio.run(asyncio.wait_for(work(), 60))


@settings(max_examples=5, deadline=None)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=3),
    st.sampled_from([1, 2, 8]),
    st.integers(0, 99),
    st.sampled_from([VOTE, TIGHT]),
)
def test_a_run_that_was_stopped_goes_on_to_the_same_end(
    stops: list[int], at_once: int, luck: int, setting: Setting
) -> None:
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "ponder.db") as store:
        undisturbed, account = Account(), Account()
        whole = asked(sums(8), drawing(), setting, account=undisturbed)
        for results in sorted(stops):
            part = stopped_after(results, drawing(0.004, luck), setting, at_once=at_once, store=store, account=account)
            assert part.id == whole.id
            known = {(result.question, result.seed): result for result in timeless(whole)}
            assert all(known[result.question, result.seed] == result for result in timeless(part))
        run = asked(sums(8), drawing(0.004, luck), setting, at_once=at_once, store=store, account=account)
        assert timeless(run) == timeless(whole)
        # At most what was in flight at a stop, three samples a question, was drawn again.
        assert 0 <= account.samples - undisturbed.samples <= 3 * at_once * len(stops)
        assert timeless(kept_run(store, run.id)) == timeless(whole)


def test_what_is_done_is_neither_asked_nor_judged_again(store: Store) -> None:
    run = asked(sums(4), drawing(), store=store)
    dead = drawing()
    asyncio.run(dead.engine.close())
    told: list[tuple[int, int]] = []
    account = Account()
    again = asked(sums(4), dead, store=store, progress=lambda *now: told.append(now), account=account)
    assert again == run
    assert told == [(4, 4)]
    assert account.counts == dict.fromkeys(account.counts, 0)


def test_another_verifier_judges_the_samples_that_are_there(store: Store) -> None:
    run = asked(sums(4), drawing(0.01), store=store)
    dead = drawing()
    asyncio.run(dead.engine.close())
    account = Account()
    again = asked(sums(4, "pattern('answer')"), dead, store=store, account=account)
    assert again.id != run.id
    assert [result.correct for result in again.results] == [1] * 4
    assert (account.samples, account.cached_samples) == (0, 12)
    assert again.cost.tokens == run.cost.tokens
    # Not the seconds of the replay, but those that the samples took: and pauses are long beside a replay.
    assert again.cost.seconds >= 0.002 * max(sample.cost.tokens for each in run.results for sample in each.samples)


def test_fewer_samples_of_more_questions_come_from_the_cache(store: Store) -> None:
    asked(sums(4), drawing(), store=store)
    account = Account()
    asked(sums(5), drawing(), Setting("vote(2)", Budget(tokens=400)), store=store, account=account)
    assert (account.samples, account.cached_samples) == (2, 8)


def test_a_server_that_deals_in_messages_is_cached_too(store: Store) -> None:
    model = saying("<think>Hm, 3.</think>The answer is 3.", chat_only=True)
    run = asked(sums(2), model, Setting("vote(2)", Budget(tokens=400)), store=store)
    calls, account = model.engine.calls, Account()  # type: ignore[attr-defined]
    setting = Setting("vote(2)", Budget(tokens=400))
    again = asked(sums(2, "exact_text"), model, setting, store=store, account=account)
    assert model.engine.calls == calls == 4  # type: ignore[attr-defined]
    assert [[s.cost.tokens for s in r.samples] for r in again.results] == [
        [s.cost.tokens for s in r.samples] for r in run.results
    ]
    assert (account.tokens, account.cached_samples) == (0, 4)


def test_a_stop_before_the_first_question_gives_an_empty_run() -> None:
    async def work() -> Run:
        stop = asyncio.Event()
        stop.set()
        return await evaluate(sums(2), drawing(), VOTE, stop=stop)

    assert asyncio.run(work()).results == ()


def test_a_stop_while_a_server_asks_for_patience_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "PAUSES", (30.0, 30.0))

    async def work() -> Run:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.1, stop.set)
        return await evaluate(sums(1), failing("rate_limit", times=None), Setting("direct"), stop=stop)

    assert asyncio.run(asyncio.wait_for(work(), 10)).results == ()


def test_traces_are_kept_where_they_are_wanted(store: Store) -> None:
    run = asked(sums(2), drawing(), store=store)
    assert [result.trace for result in run.results] == ["", ""]
    assert store.list() == []
    run = asked(sums(2), drawing(), store=store, seed=1, traces=True)
    for result in run.results:
        trace = store.get(result.trace)
        assert (trace.state, trace.answer, trace.provenance.seed) == (
            "done",
            result.answer,
            seed_of(1, result.question, 0),
        )
        assert len(trace.samples) == 3
    assert kept_run(store, run.id) == run


def test_a_database_that_cannot_be_written_stops_the_run(store: Store) -> None:
    store._connection.execute("DROP TABLE results")
    with pytest.raises(StoreError):
        asked(sums(2), drawing(), store=store)


# ---------------------------------------------------------------- who a run is


def test_whatever_decides_the_results_is_in_the_id() -> None:
    def changed(**change: Any) -> str:
        task, model, setting = sums(2), drawing(), VOTE
        for name, value in change.items():
            if name in ("verifier", "sha256"):
                task = replace(task, **{name: value})
            elif name == "questions":
                task = sums(value)
            elif name == "context":
                model = drawing(context=value)
            elif name == "price":
                model = replace(model, price=value)
            elif name in ("strategy", "budget"):
                setting = replace(setting, **{name: value})
            elif name in ("temperature", "top_p"):
                model = replace(model, params=replace(model.params, **{name: value}))
        rest = {name: change[name] for name in ("seeds", "seed", "selectors") if name in change}
        return run_id(task, model, setting, **rest)

    changes: list[dict[str, Any]] = [
        {},
        {"verifier": "choice"},
        {"sha256": "x"},
        {"questions": 3},
        {"context": 4095},
        {"price": Price(1, 1, 1)},
        {"strategy": "vote(4)"},
        {"budget": Budget(tokens=301)},
        {"budget": Budget(tokens=300, thinking=5)},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"seeds": 2},
        {"seed": 2},
        {"selectors": {"a": arithmetic_steps()}},
    ]
    assert len({changed(**each) for each in changes}) == len(changes)
    assert changed() == changed()
    seeded = replace(drawing(), params=replace(drawing().params, seed=99, max_tokens=5))
    assert run_id(sums(2), seeded, VOTE) == changed()  # every question gets a seed of its own


def made(correct: Sequence[Sequence[float]], tokens: int, sha256: str = "5a", names: str = "abcdef") -> Run:
    results = [
        Result(names[i], seed, value, Cost(answer=tokens))
        for i, each in enumerate(correct)
        for seed, value in enumerate(each)
    ]
    return Run("ab" * 32, "sums", "toy", VOTE, tuple(results), sha256=sha256)


def test_two_runs_are_compared_question_by_question() -> None:
    found = compare(made([[1], [1], [0], [1]], 20), made([[1], [0], [0], [0]], 40))
    assert (found.difference.value, found.difference.better, found.difference.worse) == (0.5, 2, 0)
    assert found.difference.p_value == 0.5
    assert found.tokens == 0.5
    repeated = compare(made([[1, 0], [1, 1]], 20), made([[0, 0], [1, 1]], 20))
    assert (repeated.difference.value, repeated.difference.n, repeated.difference.p_value) == (0.25, 2, None)
    some = compare(made([[1], [0], [1]], 30), made([[0], [0]], 10, names="cb"))
    assert (some.difference.n, some.difference.value, some.tokens) == (2, 0.5, 3)
    assert compare(made([[1]], 1), made([[1]], 0)).tokens is None
    with pytest.raises(InputError, match="different tasks"):
        compare(made([[1]], 1), made([[1]], 1, sha256="6b"))
    with pytest.raises(InputError, match="no question in common"):
        compare(made([[1]], 1), made([[1]], 1, names="z"))


def test_a_run_of_another_version_says_so(store: Store) -> None:
    run = asked(sums(2), drawing(), store=store)
    import zlib

    store._connection.execute("UPDATE results SET document = ?", (zlib.compress(b'{"version": 99}'),))
    with pytest.raises(StoreError, match="cannot be read"):
        kept_run(store, run.id)
    with pytest.raises(StoreError, match="cannot be read"):
        asked(sums(2), drawing(), store=store)

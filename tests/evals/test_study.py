"""What follows from one pool of samples, against every subset and every order counted one by one."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import DOLLARS, FLOPS, PROMPT, judged, pool_of, run_of, study

from ponder.errors import InputError
from ponder.evals import pooled
from ponder.evals.adaptive import adaptive_vote
from ponder.evals.derive import Selector, difference, study_of
from ponder.evals.results import Result, Run, Setting
from ponder.evals.statistics import mean_interval
from ponder.evals.study import dump, load
from ponder.strategies.self_consistency import decided, winner
from ponder.types import Budget, Cost, Sample

ANSWERS = st.sampled_from(["7", "8", "9", None])


def same(text: str) -> str | None:
    return text or None


def voted(order: list[int], answers: list[str | None]) -> int:
    """The sample whose answer the strategy gives, these being all that it has."""
    samples = [Sample(index, "", answer=answers[index] or "") for index in order]
    chosen = winner(samples, "plain", same)
    assert chosen is not None
    return chosen.index


# ---------------------------------------------------------------- votes that stop early


@settings(max_examples=40)
@given(st.lists(ANSWERS, min_size=1, max_size=6), st.data())
def test_stopping_early_is_the_strategys_own_rule_over_all_orders(answers, data):
    n = len(answers)
    k, wave = data.draw(st.integers(1, n)), data.draw(st.integers(1, 4))
    risk = data.draw(st.sampled_from([0.05, 0.1, 0.2, 0.4]))
    correct = [float(data.draw(st.booleans())) for _ in answers]
    tokens = [float(data.draw(st.integers(1, 50))) for _ in answers]
    accuracy, paid, begun = [], [], []
    for order in permutations(range(n)):
        taken, seen = list(order[:k]), []
        for place in range(k):
            seen = taken[: place + 1]
            if decided([Sample(i, "", answer=answers[i] or "") for i in seen], risk, same, k - place - 1):
                break
        started = min(k, -(-len(seen) // wave) * wave)
        accuracy.append(correct[voted(seen, answers)])
        paid.append(sum(tokens[i] for i in taken[:started]))
        begun.append(started)
    found = adaptive_vote(answers, correct, tokens, k, risk, wave=wave)
    assert found == pytest.approx((np.mean(accuracy), np.mean(paid), np.mean(begun)))


def test_random_orders_come_near_all_of_them():
    answers = ["7", "7", "8", "7", "9", None, "8", "7"]
    correct, tokens = [float(a == "7") for a in answers], [10.0, 20, 30, 40, 50, 60, 70, 80]
    every = adaptive_vote(answers, correct, tokens, 8, 0.2, exact=10**6)
    some = adaptive_vote(answers, correct, tokens, 8, 0.2, exact=1, orders=4000)
    assert some == pytest.approx(every, rel=0.02)
    assert some != every
    assert some == adaptive_vote(answers, correct, tokens, 8, 0.2, exact=1, orders=4000)


def test_one_answer_alone_stops_after_four():
    assert adaptive_vote(["7"] * 32, [1.0] * 32, [10.0] * 32, 32, 0.05) == (1.0, 40.0, 4.0)
    # Half of the samples decide: the others could not turn them.
    assert adaptive_vote(["7"] * 32, [1.0] * 32, [10.0] * 32, 32, 1e-9) == (1.0, 160.0, 16.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: adaptive_vote(["7"], [1.0], [1.0], 2, 0.1),
        lambda: adaptive_vote(["7"], [1.0], [], 1, 0.1),
        lambda: adaptive_vote(["7"] * 9, [1.0] * 9, [1.0] * 9, 9, 0.1, orders=0),
    ],
)
def test_what_cannot_be_drawn_is_refused(call):
    with pytest.raises(InputError):
        call()


# ---------------------------------------------------------------- points of a pool


def test_every_number_of_samples_is_the_mean_over_all_subsets():
    answers = [["7", "8", "8", "7", "7", None], ["1", "2", "3", "7", "2", "2"]]
    found = study_of(pool_of(answers, ["7", "7"]), risks=())
    vote, coverage = found.series
    assert [point.samples for point in vote.points] == [1, 2, 4, 6]
    for point, covered in zip(vote.points, coverage.points, strict=True):
        for question, given_answers in enumerate(answers):
            shares, covers = [], []
            for subset in combinations(range(6), point.samples):
                orders = list(permutations(subset))[:: max(1, len(list(permutations(subset))) // 720)]
                shares.append(np.mean([given_answers[voted(list(order), given_answers)] == "7" for order in orders]))
                covers.append(any(given_answers[i] == "7" for i in subset))
            assert point.scores[question] == pytest.approx(np.mean(shares))
            assert covered.scores[question] == pytest.approx(np.mean(covers))


def test_answers_that_are_judged_differently_count_by_half():
    """One sample says "7" so that the strict verifier takes it, another one does not."""
    samples = tuple(replace(judged(i, a, "7"), correct=c) for i, (a, c) in enumerate([("7", 1.0), ("7", 0.0)]))
    run = Run("p", "t", "m", Setting("vote(2)", Budget(128)), (Result("q", 0, 0.0, Cost(), samples=samples),))
    vote = study_of(run).series[0]
    assert [point.scores for point in vote.points] == [(0.5,), (0.5,)]


def test_samples_without_an_answer_have_no_vote_but_may_be_all_there_is():
    samples = tuple(replace(judged(i, a, "7"), correct=c) for i, (a, c) in enumerate([(None, 1.0), ("8", 0.0)]))
    run = Run("p", "t", "m", Setting("vote(2)", Budget(128)), (Result("q", 0, 0.0, Cost(), samples=samples),))
    assert [point.scores for point in study_of(run).series[0].points] == [(0.5,), (0.0,)]


def test_best_of_k_takes_the_highest_score_and_weights_count():
    rows = [("7", 0.9, 0.2), ("8", 0.4, 0.9), ("8", 0.1, 0.3), ("7", 0.6, 0.25)]
    samples = tuple(judged(i, a, "7", scores={"steps": s}, weight=w) for i, (a, s, w) in enumerate(rows))
    run = Run("p", "t", "m", Setting("vote(4)", Budget(256)), (Result("q", 0, 0.0, Cost(), samples=samples),))
    by_steps = {"steps": Selector("best_of_n({k}, verifier='steps')", 3)}
    series = {each.name: each for each in study_of(run, selectors=by_steps).series}
    assert [point.scores[0] for point in series["best_of_n(steps)"].points] == pytest.approx([5 / 6, 1.0])
    assert series["best_of_n(steps)"].points[-1].setting == Setting("best_of_n(4, verifier='steps')", Budget(256 + 12))
    assert series["vote logprob"].points[-1].scores == (0.0,)  # 0.45 against 1.2
    assert series["vote"].points[-1].scores == (0.5,)
    unknown = {each.name: each for each in study_of(run).series}["best_of_n(steps)"]
    assert [point.setting for point in unknown.points] == [None, None]


def test_the_prompt_is_paid_once():
    run = pool_of([["7"] * 4, ["8"] * 4], ["7", "7"], tokens=10)
    points = study_of(run).series[0].points
    for point in points:
        assert point.spent.tokens == 10 * point.samples
        assert point.spent.flops == pytest.approx(FLOPS * (PROMPT + 10 * point.samples))
        assert point.spent.dollars == pytest.approx(DOLLARS * (PROMPT + 10 * point.samples))
        assert point.spent.seconds == pytest.approx(point.samples)
    whole = run.results[0].cost
    assert points[-1].spent == pytest.approx((whole.tokens, whole.seconds, whole.flops, whole.dollars))


def test_where_samples_share_no_prompt_each_pays_its_own():
    costs = [Cost(40, answer=10, seconds=1.0, flops=50.0, dollars=None) for _ in range(4)]
    samples = tuple(replace(judged(i, "7", "7"), cost=cost) for i, cost in enumerate(costs))
    run = Run("p", "t", "m", Setting("vote(4)"), (Result("q", 0, 1.0, sum(costs, Cost()), samples=samples),))
    points = study_of(run).series[0].points
    assert [point.spent for point in points] == [(10.0, 1.0, 50.0, None), (20, 2, 100, None), (40, 4, 200, None)]
    assert points[-1].setting == Setting("vote(4)", Budget())


def test_scoring_is_paid_for_each_sample():
    scoring = {"reward": Cost(verifier=3, seconds=0.5, flops=6.0, dollars=None)}
    samples = tuple(judged(i, "7", "7", scores={"reward": 1.0}, costs=scoring) for i in range(4))
    cost = sum((sample.cost for sample in samples), Cost())
    run = Run("p", "t", "m", Setting("vote(4)", Budget(256)), (Result("q", 0, 1.0, cost, samples=samples),))
    series = {each.name: each.points[-1].spent for each in study_of(run).series}
    vote, best = series["vote"], series["best_of_n(reward)"]
    assert best == (vote.tokens + 12, vote.seconds + 2, vote.flops + 24, None)


def test_samples_that_were_cut_short_cost_and_are_no_draws():
    kept, cut = ["7", "8", "8"], judged(3, "7", "7", tokens=30, kept=False)
    samples = (*(judged(i, a, "7") for i, a in enumerate(kept)), cut)
    others = tuple(judged(i, "7", "7") for i in range(4))
    results = (Result("a", 0, 0.0, Cost(), samples=samples), Result("b", 0, 1.0, Cost(), samples=others))
    found = study_of(Run("p", "t", "m", Setting("vote(4)", Budget(400)), results), risks=())
    vote = found.series[0]
    assert vote.points[-1].scores == (0.0, 1.0)  # of the three that are there, two say 8
    assert vote.points[-1].spent.tokens == (4 * 15 + 40) / 2
    assert found.notes == (
        "1 of 2 questions have fewer than 4 samples that ended well (the fewest: 3); "
        "larger votes there take all that there are.",
    )


def test_repetitions_of_a_question_are_one_pool():
    first, second = pool_of([["7", "8"]], ["7"]).results[0], pool_of([["8", "8"]], ["7"]).results[0]
    run = Run("p", "t", "m", Setting("vote(2)", Budget(128)), (first, replace(second, seed=1)), seeds=2)
    points = study_of(run).series[0].points
    assert [point.samples for point in points] == [1, 2, 4]
    assert [point.scores[0] for point in points] == pytest.approx([0.25, 0.25, 0.0])
    assert points[-1].setting == Setting("vote(4)", Budget(256))


# ---------------------------------------------------------------- studies


def test_runs_make_series_by_strategy_in_the_order_of_their_budgets():
    runs = [run_of("direct", 64, [0, 1]), run_of("direct", 32, [0, 0]), run_of("beam_search(4)", 64, [1, 1])]
    found = study_of(None, runs, floor=("3", 0.25))
    assert [series.name for series in found.series] == ["direct", "beam_search(4)"]
    assert [point.label for point in found.series[0].points] == ["direct, 32 tokens", "direct, 64 tokens"]
    assert [point.accuracy for point in found.series[0].points] == [0.0, 0.5]
    assert [point.spent.tokens for point in found.series[0].points] == [24, 48]
    assert found.best.setting == Setting("beam_search(4)", Budget(tokens=64))
    assert (found.floor, found.floor_answer, found.gap) == (0.25, "3", None)
    first, second = found.series[0].points
    assert first.step is None
    assert second.step == difference(second, first)
    assert second.step.value == 0.5
    assert first.short is not None
    assert first.short.value == 1.0


def test_repeated_questions_are_clusters():
    """Ten answers to two questions are two questions."""
    results = tuple(Result(f"q{i}", seed, float(i), Cost(answer=5)) for i in range(2) for seed in range(5))
    run = Run("r", "t", "m", Setting("direct", Budget(64)), results, seeds=5)
    (point,) = study_of(None, [run]).series[0].points
    assert point.scores == (0.0, 1.0)
    assert point.interval == mean_interval([[0.0] * 5, [1.0] * 5]).interval


def test_the_frontier_knows_each_axis_and_leaves_out_what_nobody_can_choose():
    found = study()
    by_tokens = found.frontier()
    assert [point.spent.tokens for point in by_tokens] == sorted(point.spent.tokens for point in by_tokens)
    assert all(a.accuracy < b.accuracy for a, b in pairwise(by_tokens))
    assert found.best in by_tokens
    assert all(point.setting is not None for point in by_tokens)
    for point in found.settings:
        assert any(f.spent.tokens <= point.spent.tokens and f.accuracy >= point.accuracy for f in by_tokens)
    assert found.frontier("seconds") != by_tokens
    free = [replace(p, spent=p.spent._replace(dollars=None)) for p in found.series[0].points]
    assert replace(found, series=(replace(found.series[0], points=tuple(free)),)).frontier("dollars") == []


def test_rounding_errors_are_no_gain():
    """0.1 + 0.2 is above 0.3, and no better."""
    runs = [run_of("direct", 32, [0.3, 0.3]), run_of("direct", 64, [0.1 + 0.2, 0.3])]
    found = study_of(None, runs)
    assert [point.label for point in found.frontier()] == ["direct, 32 tokens"]
    assert found.best.label == "direct, 32 tokens"


def test_the_gap_is_what_the_best_selection_of_the_same_samples_leaves():
    found = study()
    assert found.gap is not None
    covered = found.series[-1].points[-1]
    assert (found.series[-1].bound, covered.samples, found.gap.coverage) == (True, 16, "coverage of 16")
    rivals = [point for series in found.series[:-1] for point in series.points if point.samples == 16]
    assert found.gap.difference.value == pytest.approx(covered.accuracy - max(point.accuracy for point in rivals))
    assert found.gap.difference.interval.low > 0


def test_gains_are_there_where_three_costs_are():
    gains = {series.name: series.gain for series in study().series}
    assert gains["direct"] is None
    assert gains["coverage"] is not None
    assert gains["coverage"].tokens == 45 * 16
    low, high = gains["coverage"].interval
    assert low <= gains["coverage"].value <= high


def test_only_questions_that_all_runs_have_count():
    short = run_of("direct", 64, [0, 1, 1])
    found = study_of(None, [replace(short, results=short.results[1:]), run_of("chain_of_thought", 64, [1, 1, 1])])
    assert found.questions == ("q1", "q2")
    assert found.notes == ("Left out, as some runs did not finish them: 1 of 3 questions.",)


@pytest.mark.parametrize(
    ("runs", "problem"),
    [
        ([], "nothing to study"),
        ([run_of("direct", 64, [1]), replace(run_of("direct", 64, [1]), task="other")], "different tasks"),
        (
            [run_of("direct", 64, [1]), replace(run_of("a", 64, [1]), results=(Result("x", 0, 1.0, Cost()),))],
            "no question in common",
        ),
    ],
)
def test_what_cannot_be_studied_is_refused(runs, problem):
    with pytest.raises(InputError, match=problem):
        study_of(None, runs)


def test_a_pool_in_which_nothing_ended_well_is_refused():
    with pytest.raises(InputError, match="no sample of the pool ended well"):
        study_of(Run("p", "t", "m", Setting("vote(2)"), (Result("q", 0, 0.0, Cost(), error="gone"),)))


def test_costs_of_a_pool_without_samples_are_nothing():
    (draws,) = pooled.draws_of(Run("p", "t", "m", Setting("vote(2)"), (Result("q", 0, 0.0, Cost(), error="x"),)))
    assert (draws.kept, draws.each, pooled.sizes([draws])) == ((), (0.0, 0.0, 0.0, 0.0), [])


# ---------------------------------------------------------------- JSON


def test_a_study_comes_back_from_its_file(tmp_path):
    made = study()
    dump(made, tmp_path / "curve.json")
    assert load(tmp_path / "curve.json") == made


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "task": 3}', "\0"])
def test_what_is_no_study_is_refused(tmp_path, text):
    (tmp_path / "curve.json").write_text(text)
    with pytest.raises(InputError, match=r"is no study|has version None"):
        load(tmp_path / "curve.json")
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / "missing.json")


def test_another_version_is_refused(tmp_path):
    dump(study(questions=8, samples=4), tmp_path / "curve.json")
    document = json.loads((tmp_path / "curve.json").read_text()) | {"version": 99}
    (tmp_path / "curve.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="has version 99"):
        load(tmp_path / "curve.json")

"""Beam search, diverse tree search and tree search, against slow references on trees with known rewards."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from drive import Outcome, of, outcome_of, turn_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.chat.model import Model
from ponder.engine.scripted import EOS, TOKENIZER, Fault, ScriptedEngine
from ponder.errors import BudgetTooSmall, EngineDisconnected, EngineError, Unsupported
from ponder.protocols import SamplingParams, Strategy, Verifier
from ponder.strategies.beam_search import beam_search
from ponder.strategies.diverse_tree_search import diverse_tree_search
from ponder.strategies.tree_search import tree_search
from ponder.types import BestAnswer, Budget, Cost, Question, Sample, SampleFinished, Score, Scored, ask

QUESTION = ask("Which way?")
LETTERS = "abcdefgh"
DEPTH = 3


def paths(engine_faults: tuple[Fault, ...] = (), depth: int = DEPTH, **how: Any) -> ScriptedEngine:
    """A model whose i-th continuation takes the i-th letter, one a line, and whose answer is the way it took."""

    def source(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Iterator[int]:
        said = TOKENIZER.decode(turn_of(prefix)).decode(errors="replace").partition("<think>")[2].lstrip("\n")
        way, closed, answer = said.partition("</think>")
        taken = [line for line in way.split("\n") if line]
        if closed:
            rest = f"\nThe answer is {' '.join(taken)}.".removeprefix(answer)
        elif way and not way.endswith("\n"):
            rest = "\n"
        elif len(taken) == depth:
            rest = f"</think>\nThe answer is {' '.join(taken)}."
        else:
            letters = [LETTERS[index % len(LETTERS)], *LETTERS[:1] * (depth - len(taken) - 1)]
            rest = "\n".join(letters) + f"\n</think>\nThe answer is {' '.join([*taken, *letters])}."
        yield from TOKENIZER.encode(rest)
        yield from [ord("7")] * 1000 if params.ignore_eos else [EOS]

    return ScriptedEngine(source, faults=engine_faults, **how)


def way_of(sample: Sample) -> str:
    return "".join(sample.thinking.split())


def rewards(seed: int) -> Any:
    """A reward for every way, between 0 and 1, that depends on the whole of it."""
    return lambda way: random.Random(f"{seed} {way}").random() if way else 0.0


def by_way(reward: Any) -> Verifier:
    """Scores each step by the reward of the way up to there."""

    async def verify(question: Question, sample: Sample) -> Score:
        way = way_of(sample)
        steps = tuple(reward(way[: i + 1]) for i in range(len(way)))
        return Score(steps[-1] if steps else 0.0, "by_way", steps=steps)

    return verify


def solve(strategy: Strategy, model: Model, budget: int | Budget = 4000, question: Question = QUESTION) -> Outcome:
    bounds = Budget(tokens=budget) if isinstance(budget, int) else budget
    return outcome_of(strategy(question, model, bounds))


def best(outcome: Outcome) -> str:
    return [event.answer for event in outcome.events if isinstance(event, BestAnswer)][-1]


def check(engine: ScriptedEngine, outcome: Outcome, tokens: int) -> None:
    """Whatever goes wrong: within the budget, nothing forgotten, nothing told twice, forks where they say."""
    assert engine.open_streams == 0
    total = sum((e.cost for e in outcome.events if isinstance(e, SampleFinished | Scored)), Cost())
    claimed = sum(fault.tokens for fault in engine.faults if fault.kind == "wrong_counts")
    if not claimed:  # an engine may claim to have lost more than it was asked for
        assert total.tokens <= tokens, "over budget"
        assert total.generated == engine.generated, "usage differs from what the engine generated"
    assert total.generated >= engine.generated, "something was forgotten"
    samples = {sample.index: sample for sample, _ in outcome.finished}
    assert len(samples) == len(outcome.finished)
    for sample in samples.values():
        if sample.parent is not None:
            shared = samples[sample.parent].ids[: sample.fork]
            assert sample.ids[: sample.fork] == shared[: len(sample.ids)] or sample.finish == "error"
    assert outcome.error is not None or any(isinstance(event, BestAnswer) for event in outcome.events)


# ---------------------------------------------------------------- slow references


def beams(reward: Any, n: int, width: int, depth: int = DEPTH) -> str:
    """Beam search on strings, word for word as the equation has it."""
    kept = [LETTERS[i % len(LETTERS)] for i in range(n)]
    kept = sorted(kept, key=lambda way: -reward(way))[: n // width]
    for _ in range(depth - 1):
        children = [way + LETTERS[i] for way in kept for i in range(width)]
        kept = sorted(children, key=lambda way: -reward(way))[: n // width]
    return max(kept, key=reward)


def subtrees(reward: Any, n: int, width: int, depth: int = DEPTH) -> str:
    heads = [LETTERS[i] for i in range(n // width)]
    for _ in range(depth - 1):
        heads = [max((way + LETTERS[i] for i in range(width)), key=reward) for way in heads]
    return max(heads, key=reward)


def all_ways(width: int, depth: int = DEPTH) -> list[str]:
    ways = [""]
    for _ in range(depth):
        ways = [way + LETTERS[i] for way in ways for i in range(width)]
    return ways


def uct(reward: Any, simulations: int, width: int, depth: int = DEPTH) -> str | None:
    """Tree search on strings: visits and means in dictionaries, every node looked up anew."""
    visits: dict[str, int] = {}
    means: dict[str, float] = {}
    children: dict[str, list[str]] = {}
    ended: set[str] = set()

    def is_open(way: str) -> bool:
        return any(map(is_open, children[way])) if way in children else way not in ended

    for _ in range(simulations):
        if not is_open(""):
            break
        way = ""
        while way in children:
            ways = [child for child in children[way] if is_open(child)]
            way = max(ways, key=lambda child: means[child] + math.sqrt(math.log(visits[way]) / visits[child]))
        if len(way) == depth:  # the answer is one more step, and children that are alike are one
            children[way] = [f"{way}!"]
            ended |= set(children[way])
        else:
            children[way] = [way + LETTERS[i] for i in range(width)]
        for child in children[way]:
            value, node = reward(child.partition("!")[0]), child
            while True:
                visits[node] = visits.get(node, 0) + 1
                means[node] = means.get(node, 0.0) + (value - means.get(node, 0.0)) / visits[node]
                if not node:
                    break
                node = way if node == child else node[:-1]
    return max((way.partition("!")[0] for way in ended), key=reward, default=None)


def spelled(way: str) -> str:
    return f"The answer is {' '.join(way)}."


# ---------------------------------------------------------------- the searches find what the references find


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("n", "width"), [(4, 2), (6, 2), (4, 1), (4, 4), (8, 4)])
def test_beam_search_is_the_beam_search_of_the_equation(seed: int, n: int, width: int) -> None:
    reward = rewards(seed)
    engine = paths()
    outcome = solve(beam_search(n, width, by_way(reward)), of(engine))
    check(engine, outcome, 4000)
    assert best(outcome) == spelled(beams(reward, n, width))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("n", "width"), [(4, 2), (6, 3), (8, 2), (3, 1)])
def test_diverse_tree_search_keeps_the_best_child_of_each_subtree(seed: int, n: int, width: int) -> None:
    reward = rewards(seed)
    engine = paths()
    outcome = solve(diverse_tree_search(n, width, by_way(reward)), of(engine))
    check(engine, outcome, 4000)
    assert best(outcome) == spelled(subtrees(reward, n, width))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("simulations", "width"), [(9, 2), (20, 2), (14, 3)])
def test_tree_search_follows_the_upper_confidence_bound(seed: int, simulations: int, width: int) -> None:
    reward = rewards(seed)
    engine = paths()
    outcome = solve(tree_search(simulations, width, by_way(reward)), of(engine), 20_000)
    check(engine, outcome, 20_000)
    wanted = uct(reward, simulations, width)
    if wanted is not None:
        assert best(outcome) == spelled(wanted)


@pytest.mark.parametrize("seed", range(6))
def test_tree_search_with_simulations_enough_finds_the_best_of_all_ways(seed: int) -> None:
    reward = rewards(seed)
    engine = paths(context=60_000)
    outcome = solve(tree_search(1000, 2, by_way(reward)), of(engine), 50_000)
    check(engine, outcome, 50_000)
    assert best(outcome) == spelled(max(all_ways(2), key=reward))
    answers = {sample.answer for sample, _ in outcome.finished if sample.answer}
    assert answers == {spelled(way) for way in all_ways(2)}


def test_a_greedy_beam_misses_what_a_wider_one_finds() -> None:
    """The reward of the first step misleads: `b` is where the treasure is."""
    table = {"a": 0.9, "b": 0.5, "aa": 0.2, "ab": 0.1, "ba": 1.0, "bb": 0.3}

    def reward(way: str) -> float:
        return table.get(way[:2], 0.0) if way else 0.0

    found = [best(solve(beam_search(n, 2, by_way(reward)), of(paths()))) for n in (2, 4)]
    assert found[0].startswith("The answer is a")
    assert found[1].startswith("The answer is b a")


def test_rollouts_serve_a_verifier_that_looks_at_answers_alone() -> None:
    async def verify(question: Question, sample: Sample) -> Score:
        return Score(float(sample.answer == spelled("baa")), "answers")

    engine = paths()
    outcome = solve(tree_search(6, 2, verify, rollouts=True), of(engine), 8000)
    check(engine, outcome, 8000)
    assert best(outcome) == spelled("baa")


@pytest.mark.parametrize("aggregate", ["last", "min", "product", "mean"])
def test_steps_are_aggregated_as_asked(aggregate: Any) -> None:
    """Two beams: `a` has one bad step and ends well, `b` is even throughout."""
    values = {"a": 0.9, "aa": 0.1, "aaa": 0.8, "b": 0.61, "ba": 0.61, "baa": 0.61}

    def reward(way: str) -> float:
        return values.get(way, 0.0)

    outcome = solve(beam_search(2, 1, by_way(reward), aggregate=aggregate), of(paths()))
    assert best(outcome) == spelled("aaa" if aggregate in ("last",) else "baa")


# ---------------------------------------------------------------- what it costs


class Counted:
    """An engine that counts the tokens it has to compute: a sampled one is computed by whoever goes on after it."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine
        self.computed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def sample(self, prefix: Any, n: int, params: SamplingParams) -> Any:
        async for chunk in self.engine.sample(prefix, n, params):
            self.computed += chunk.prompt_computed + len(chunk.ids) - (1 if chunk.finish else 0)
            yield chunk


@pytest.mark.parametrize(
    "strategy",
    [
        beam_search(4, 2, by_way(rewards(1))),
        diverse_tree_search(4, 2, by_way(rewards(1))),
        tree_search(8, 2, by_way(rewards(1))),
    ],
    ids=["beam", "diverse", "tree"],
)
def test_each_token_of_the_tree_is_computed_once(strategy: Strategy) -> None:
    counted = Counted(paths())
    outcome = solve(strategy, of(counted))
    assert outcome.error is None
    prompt = len(outcome.sample.prompt_ids)
    assert prompt < counted.computed <= prompt + outcome.total.tokens


def test_an_engine_that_cannot_stop_at_a_line_is_stopped_by_the_reader() -> None:
    reward = rewards(3)
    engine = paths(until=False)
    outcome = solve(beam_search(4, 2, by_way(reward)), of(engine))
    check(engine, outcome, 4000)
    assert best(outcome) == spelled(beams(reward, 4, 2))


def test_a_step_without_an_end_is_cut_at_its_most_tokens() -> None:
    async def length(question: Question, sample: Sample) -> Score:
        return Score(float(len(sample.ids)), "length")

    engine = ScriptedEngine(lambda prefix, index, params: TOKENIZER.encode("wörd " * 100))
    outcome = solve(beam_search(2, 2, length, step=7, steps=3), of(engine), 400)
    check(engine, outcome, 400)
    assert any(sample.finish == "cancelled" and len(sample.ids) <= 28 for sample, _ in outcome.finished)


def test_verifier_tokens_count_and_are_set_aside() -> None:
    async def dear(question: Question, sample: Sample) -> Score:
        return Score(0.5, "dear", cost=Cost(verifier=20))

    dear.tokens = 20  # type: ignore[attr-defined]
    engine = paths()
    for budget in (60, 120, 200, 400):
        engine.generated = 0
        outcome = solve(beam_search(4, 2, dear), of(engine), budget)
        total = sum((e.cost for e in outcome.events if isinstance(e, SampleFinished | Scored)), Cost())
        assert total.tokens <= budget
        assert total.generated - total.verifier == engine.generated
        assert outcome.error is None
        assert best(outcome).startswith("The answer is")


# ---------------------------------------------------------------- what can go wrong


FAULTS = st.builds(
    Fault,
    st.sampled_from(["disconnect", "garbage", "partial", "wrong_counts", "rate_limit", "hang"]),
    at=st.integers(0, 12),
    sample=st.one_of(st.none(), st.integers(0, 3)),
    times=st.one_of(st.none(), st.integers(1, 3)),
    first_call=st.integers(0, 4),
    prompt=st.integers(-3, 3),
    tokens=st.integers(0, 3),
)
SEARCHES = st.sampled_from(
    [
        beam_search(4, 2, by_way(rewards(5)), step=9),
        beam_search(2, 1, by_way(rewards(5))),
        diverse_tree_search(4, 2, by_way(rewards(5))),
        tree_search(5, 2, by_way(rewards(5))),
        tree_search(3, 2, by_way(rewards(5)), rollouts=True),
    ]
)


@given(
    st.integers(4, 300), SEARCHES, st.lists(FAULTS, max_size=2), st.booleans(), st.one_of(st.none(), st.integers(1, 9))
)
@settings(max_examples=120, deadline=None)
def test_never_over_budget_and_always_an_answer_or_a_typed_failure(
    tokens: int, strategy: Strategy, faults: list[Fault], until: bool, calls: int | None
) -> None:
    engine = paths(tuple(faults), until=until)
    hangs = any(fault.kind == "hang" for fault in faults)
    outcome = solve(strategy, of(engine), Budget(tokens=tokens, calls=calls, seconds=0.2 if hangs else None))
    check(engine, outcome, tokens)
    total = sum((cost for _, cost in outcome.finished), Cost())
    assert calls is None or total.calls <= calls
    if outcome.error is None:
        assert best(outcome)


@pytest.mark.parametrize("calls", range(2, 12))
def test_the_last_calls_are_kept_for_an_answer(calls: int) -> None:
    engine = paths()
    outcome = solve(beam_search(4, 2, by_way(rewards(1))), of(engine), Budget(tokens=2000, calls=calls))
    check(engine, outcome, 2000)
    assert outcome.error is None
    assert best(outcome).startswith("The answer is")
    assert sum((cost for _, cost in outcome.finished), Cost()).calls <= calls


def test_a_branch_that_fails_takes_no_other_along() -> None:
    engine = paths((Fault("disconnect", first_call=2, times=2),))
    outcome = solve(diverse_tree_search(4, 2, by_way(rewards(1))), of(engine))
    check(engine, outcome, 4000)
    assert outcome.error is None


def test_where_all_fail_the_failure_is_told() -> None:
    outcome = solve(beam_search(2, 2, by_way(rewards(1))), of(paths((Fault("disconnect", times=None),))))
    assert isinstance(outcome.error, EngineDisconnected)


def test_a_verifier_that_fails_leaves_the_branches_as_they_are() -> None:
    async def broken(question: Question, sample: Sample) -> Score:
        raise EngineError("the scorer is gone")

    engine = paths()
    outcome = solve(beam_search(4, 2, broken), of(engine))
    check(engine, outcome, 4000)
    assert not any(isinstance(event, Scored) for event in outcome.events)
    assert outcome.error is None


def test_time_that_runs_out_leaves_the_best_so_far() -> None:
    engine = paths((Fault("delay", seconds=0.005, every=True, times=None),), depth=40)
    outcome = solve(beam_search(4, 2, by_way(rewards(1))), of(engine), Budget(tokens=4000, seconds=1.0))
    check(engine, outcome, 4000)
    assert outcome.error is None
    assert best(outcome).startswith("The answer is")


def test_a_stop_ends_the_search_at_once_and_tells_what_there_is() -> None:
    engine = paths((Fault("delay", seconds=0.005, every=True, times=None),), depth=40)
    stop = asyncio.Event()

    async def run() -> list[Any]:
        events = []
        async for event in beam_search(4, 2, by_way(rewards(1)))(
            QUESTION, replace(of(engine), stop=stop), Budget(tokens=4000)
        ):
            events.append(event)
            if len(events) == 30:
                stop.set()
        return events

    events = asyncio.run(asyncio.wait_for(run(), 10))
    assert sum((e.cost for e in events if isinstance(e, SampleFinished)), Cost()).generated == engine.generated
    assert engine.open_streams == 0


def test_a_search_that_nobody_reads_any_more_stops_its_streams() -> None:
    engine = paths(depth=40)

    async def run() -> None:
        events = beam_search(4, 2, by_way(rewards(1)))(QUESTION, of(engine), Budget(tokens=4000))
        async for _ in events:
            break
        await events.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        assert engine.open_streams == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    "strategy", [beam_search(4, 2, by_way(rewards(7))), tree_search(9, 2, by_way(rewards(7)))], ids=["beam", "tree"]
)
@pytest.mark.parametrize("slow", [0, 1, 2])
def test_the_order_of_completion_changes_nothing(strategy: Strategy, slow: int) -> None:
    late = paths((Fault("delay", sample=slow, seconds=0.003, every=True, times=None),))
    outcomes = [solve(strategy, of(engine)) for engine in (paths(), late)]
    assert best(outcomes[0]) == best(outcomes[1])
    ways = [sorted((s.index, s.parent, s.text) for s, _ in outcome.finished) for outcome in outcomes]
    assert ways[0] == ways[1]


def test_problems_never_share_a_tree() -> None:
    """Two searches on one engine at once, with rewards that pull in opposite directions."""
    engine = paths()

    async def one(wanted: str) -> str:
        strategy = beam_search(4, 2, by_way(lambda way: float(way.count(wanted))))
        events = [event async for event in strategy(ask(f"Find {wanted}"), of(engine), Budget(tokens=3000))]
        return [event.answer for event in events if isinstance(event, BestAnswer)][-1]

    async def both() -> list[str]:
        return await asyncio.gather(one("a"), one("b"))

    assert asyncio.run(both()) == [spelled("aaa"), spelled("bbb")]


# ---------------------------------------------------------------- what makes no sense


def test_servers_of_messages_cannot_be_searched() -> None:
    outcome = solve(beam_search(), of(ScriptedEngine(lambda *asked: (), chat_only=True)))
    assert isinstance(outcome.error, Unsupported)
    assert "vote or best_of_n" in str(outcome.error)


def test_a_budget_without_room_for_an_answer_is_named() -> None:
    outcome = solve(beam_search(), of(paths()), 2)
    assert isinstance(outcome.error, BudgetTooSmall)


@pytest.mark.parametrize(
    "make",
    [
        lambda: beam_search(3, 2),
        lambda: beam_search(0, 1),
        lambda: beam_search(4, 2, step=0),
        lambda: beam_search(4, 2, steps=0),
        lambda: diverse_tree_search(5, 2),
        lambda: diverse_tree_search(4, 2, step=0),
        lambda: tree_search(0),
        lambda: tree_search(4, 0),
        lambda: tree_search(4, step=0),
        lambda: tree_search(4, exploration=-1),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()

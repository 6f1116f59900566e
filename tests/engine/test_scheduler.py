"""Continuous batching, over a cache that notices every mistake: right tokens, no waste, no deadlock, no leak."""

from __future__ import annotations

import random as randomness
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from cache_backend import END_IDS, VOCABULARY, CacheBackend, alone, scores_alone
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.engine.lines import Request
from ponder.engine.sampling import Sampling
from ponder.engine.scheduler import PREFILL_BESIDE_DECODE, Scheduler, describe
from ponder.errors import ContextOverflow, EngineError, PonderError

PLAIN = Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=0, ignore_eos=True)
BASE = (0.0, 0.0)
LONG = [2 + i % (VOCABULARY - 2) for i in range(400)]


@dataclass
class Asked:
    """A request, and what came back of it."""

    request: Request
    rows: dict[int, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    finishes: dict[int, str] = field(default_factory=dict)
    prompts: list[tuple[int, int]] = field(default_factory=list)
    errors: list[PonderError] = field(default_factory=list)

    def ids(self, index: int) -> list[int]:
        return [token for token, _ in self.rows[index]]

    def check(self) -> None:
        """What came back is what a plain loop gives, or a beginning of it where the request was cancelled."""
        request = self.request
        assert set(self.rows) | set(self.finishes) <= set(range(request.n))
        for index in range(request.n):
            rows, finish = alone(request.prefix, index, request.max_tokens, request.sampling, request.adapters)
            if request.cancelled and self.finishes.get(index, "cancelled") == "cancelled":
                assert self.rows[index] == rows[: len(self.rows[index])]
            else:
                assert (self.rows[index], self.finishes.get(index)) == (rows, finish)


class Bench:
    """A scheduler, its backend, and everything that was asked of it."""

    def __init__(
        self, *, cells: int = 4096, sequences: int = 16, shelf: int = 2**20, tidy: bool = True, **backend: object
    ) -> None:
        self.backend = CacheBackend(cells=cells, sequences=sequences, **backend)
        self.scheduler = Scheduler(
            self.backend, cells=cells, sequences=sequences, end_ids=END_IDS, shelf=shelf, tidy=tidy
        )
        self.asked: list[Asked] = []

    def ask(
        self,
        prefix: Sequence[int],
        n: int = 1,
        max_tokens: int = 4,
        adapters: tuple[float, ...] = BASE,
        sampling: Sampling = PLAIN,
    ) -> Asked:
        asked: Asked

        def emit(tokens: list[tuple[int, int, float]], finishes: list[tuple[int, str]]) -> None:
            for index, token, logprob in tokens:
                assert index not in asked.finishes
                asked.rows[index].append((token, logprob))
            for index, finish in finishes:
                assert index not in asked.finishes
                asked.finishes[index] = finish

        request = Request(
            key=len(self.asked),
            prefix=list(prefix),
            n=n,
            max_tokens=max_tokens,
            sampling=sampling,
            adapters=adapters,
            emit=emit,
            fail=lambda error: asked.errors.append(error),
            prompt=lambda computed, cached: asked.prompts.append((computed, cached)),
        )
        asked = Asked(request)
        self.scheduler.add(request)
        self.asked.append(asked)
        return asked

    def step(self) -> None:
        self.scheduler.step()
        self.check_books()

    def check_books(self) -> None:
        """The scheduler's idea of the cache is the cache."""
        for slot in self.scheduler._slots:
            assert slot.tokens == self.backend.tokens(slot.number)

    def finish(self, most: int = 3000) -> None:
        for _ in range(most):
            if self.scheduler.idle:
                return
            self.step()
        raise AssertionError(f"not finished after {most} steps: {describe(self.scheduler)}")

    def check_over(self) -> None:
        """Everything finished as it should, and nothing is held back."""
        for asked in self.asked:
            asked.check()
            assert len(asked.prompts) <= 1
        assert describe(self.scheduler)["running"] == describe(self.scheduler)["requests"] == 0
        assert not [slot for slot in self.scheduler._slots if slot.busy]


# ---------------------------------------------------------------- any workload

ADAPTERS = st.sampled_from([BASE, (1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
STEMS = st.sampled_from([LONG[:1], LONG[:7], LONG[:7], LONG[:19], [*LONG[:5], 3, 3], LONG[40:52]])
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.8, 1.0]),
    top_p=st.sampled_from([1.0, 0.9]),
    top_k=st.sampled_from([0, 5]),
    min_p=st.just(0.0),
    seed=st.integers(0, 3),
    ignore_eos=st.booleans(),
)
NEW = st.tuples(st.just("new"), STEMS, st.integers(1, 6), st.integers(1, 8), ADAPTERS, SAMPLINGS)
# Continues a sample of an earlier request at a token, whether that one still runs or not.
FORK = st.tuples(
    st.just("fork"), st.integers(0, 9), st.integers(0, 5), st.integers(0, 8), st.integers(1, 4), st.booleans()
)
STEP = st.tuples(st.just("step"), st.integers(1, 6))
CANCEL = st.tuples(st.just("cancel"), st.integers(0, 9))
SCORE = st.tuples(st.just("score"), STEMS, st.integers(1, 7), ADAPTERS)


def do(bench: Bench, deed: tuple) -> None:
    match deed:
        case ("new", prefix, n, max_tokens, adapters, sampling):
            bench.ask(prefix, n, max_tokens, adapters, sampling)
        case ("fork", which, index, at, n, same_adapters) if bench.asked:
            old = bench.asked[which % len(bench.asked)]
            prefix = [*old.request.prefix, *old.ids(index % old.request.n)[:at]]
            adapters = old.request.adapters if same_adapters else BASE
            bench.ask(prefix[:30], n, 5, adapters, replace(PLAIN, seed=at))
        case ("step", times):
            for _ in range(times):
                bench.step()
        case ("cancel", which) if bench.asked:
            bench.scheduler.cancel(bench.asked[which % len(bench.asked)].request.key)
            bench.check_books()
        case ("score", ids, start, adapters):
            scores = bench.scheduler.score(ids, min(start, len(ids)), adapters)
            bench.check_books()
            assert scores is None or scores == scores_alone(ids, min(start, len(ids)), adapters)


@settings(max_examples=150)
@given(
    deeds=st.lists(st.one_of(NEW, NEW, FORK, FORK, STEP, STEP, CANCEL, SCORE), min_size=1, max_size=14),
    cells=st.integers(38, 90),
    sequences=st.integers(2, 9),
    batch=st.integers(1, 12),
    aborting=st.sampled_from([0.0, 0.0, 0.3]),
    shelf=st.sampled_from([0, 2000, 2**20]),
)
def test_any_workload_samples_what_each_request_would_alone(
    deeds: list[tuple],
    cells: int,
    sequences: int,
    batch: int,
    aborting: float,
    shelf: int,
) -> None:
    chance = randomness.Random(cells)
    bench = Bench(cells=cells, sequences=sequences, batch=batch, shelf=shelf, aborts=lambda: chance.random() < aborting)
    for deed in deeds:
        do(bench, deed)
    bench.finish()
    bench.check_over()
    # What is left over is usable: the next one comes out right, too.
    bench.ask(LONG[:19], n=2)
    bench.finish()
    bench.check_over()


# ---------------------------------------------------------------- nothing is computed twice


def test_a_prompt_is_computed_once_however_many_share_it() -> None:
    bench = Bench()
    asked = bench.ask(LONG[:50], n=6, max_tokens=5)
    bench.finish()
    bench.check_over()
    assert asked.prompts == [(50, 0)]
    # The last token of a sample is never computed: nothing follows it. What several begin with is computed once.
    beginnings = {tuple(asked.ids(i)[:length]) for i in range(6) for length in range(1, 5)}
    assert bench.backend.computed == 50 + len(beginnings) < 50 + 6 * 4


@pytest.mark.parametrize("temperature", [0.0, 0.3, 0.6])
def test_samples_that_say_the_same_are_computed_once(temperature: float) -> None:
    bench = Bench(sequences=8)
    asked = bench.ask(LONG[:20], n=6, max_tokens=12, sampling=replace(PLAIN, temperature=temperature))
    bench.finish()
    bench.check_over()
    beginnings = {tuple(asked.ids(i)[:length]) for i in range(6) for length in range(1, 12)}
    assert bench.backend.computed == 20 + len(beginnings)
    assert (len(beginnings) == 11) == (temperature == 0)


def test_a_line_that_parts_always_finds_a_sequence() -> None:
    """Six samples begin alike in a cache of eight sequences; another prompt takes none that they may need."""
    bench = Bench(sequences=8)
    alike = bench.ask(LONG[:20], n=6, max_tokens=30, sampling=replace(PLAIN, temperature=0.3))
    other = bench.ask(LONG[100:110], n=4, max_tokens=3)
    bench.finish()
    bench.check_over()
    assert len({tuple(alike.ids(i)) for i in range(6)}) > 1
    assert len(other.finishes) == 4


def test_the_same_prompt_again_computes_its_last_token_alone() -> None:
    bench = Bench()
    bench.ask(LONG[:50])
    bench.finish()
    again = bench.ask(LONG[:50], n=3)
    bench.finish()
    assert again.prompts == [(1, 49)]


def test_continuing_a_finished_sample_computes_one_token_and_a_fork_anywhere_no_more() -> None:
    bench = Bench()
    first = bench.ask(LONG[:20], n=3, max_tokens=12)
    bench.finish()
    for index in range(3):
        continued = bench.ask([*LONG[:20], *first.ids(index)], max_tokens=1)
        before = bench.backend.computed
        bench.finish()
        assert continued.prompts == [(1, 31)]
        assert bench.backend.computed == before + 1
    for at in range(13):
        forked = bench.ask([*LONG[:20], *first.ids(1)[:at]], n=3, max_tokens=2)
        bench.finish()
        assert forked.prompts == [(1, 19 + at)]
    bench.check_over()


@pytest.mark.parametrize("common", range(1, 12))
def test_a_prompt_that_begins_like_another_computes_from_where_they_part(common: int) -> None:
    bench = Bench()
    bench.ask(LONG[:12], max_tokens=1)
    bench.finish()
    other = bench.ask([*LONG[:common], 15 - LONG[common] % 2, *LONG[:9]], max_tokens=1)
    bench.finish()
    assert other.prompts == [(10, common)]


def test_a_running_sample_is_forked_without_computing_it_again() -> None:
    bench = Bench()
    first = bench.ask(LONG[:20], max_tokens=30)
    while len(first.rows[0]) < 12:
        bench.step()
    forked = bench.ask([*LONG[:20], *first.ids(0)[:9]], n=2, max_tokens=3)
    bench.finish()
    assert forked.prompts == [(1, 28)]
    bench.check_over()


def test_a_cancelled_prompt_goes_on_where_it_stopped() -> None:
    bench = Bench(batch=8)
    first = bench.ask(LONG[:50])
    for _ in range(3):
        bench.step()
    bench.scheduler.cancel(0)
    assert (first.rows, bench.scheduler.idle) == ({}, True)
    again = bench.ask(LONG[:50])
    bench.finish()
    assert again.prompts == [(26, 24)]


def test_the_cache_is_not_shared_between_adapters() -> None:
    bench = Bench()
    for adapters in (BASE, (1.0, 0.0), (2.0, 0.0)):
        asked = bench.ask(LONG[:10], adapters=adapters)
        bench.finish()
        assert asked.prompts == [(10, 0)]
    assert bench.ask(LONG[:10], adapters=(1.0, 0.0))
    bench.finish()
    assert bench.asked[-1].prompts == [(1, 9)]
    bench.check_over()


def test_what_is_idle_leaves_the_cache_when_other_work_begins_and_comes_back_whole() -> None:
    bench = Bench(cells=40, sequences=6, batch=40)
    for prefix in (LONG[:12], LONG[20:32], LONG[40:52], LONG[60:72]):
        bench.ask(prefix, n=2, max_tokens=3)
        bench.finish()
    assert describe(bench.scheduler)["cached"] == 2 * 14  # the last one's samples, of which one went on in the prompt's
    for asked in bench.asked[:4]:
        for index in (0, 1):
            continued = bench.ask([*asked.request.prefix, *asked.ids(index)], max_tokens=1)
            bench.finish()
            assert continued.prompts == [(1, 14)]
    bench.check_over()


def test_a_sample_that_alone_goes_on_from_somewhere_is_copied_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, copies = Bench(), list[tuple[int, ...]]()
    copy = bench.backend.copy
    monkeypatch.setattr(bench.backend, "copy", lambda *about: copies.append(about) or copy(*about))
    first = bench.ask(LONG[:10], n=3, max_tokens=3)
    bench.finish()
    assert len(copies) == 2  # the third took the prompt's own sequence
    for index in range(3):
        bench.ask([*LONG[:10], *first.ids(index), 7], max_tokens=2)
    bench.finish()
    assert len(copies) == 2
    bench.check_over()


def test_nothing_is_put_away_before_there_is_no_room_where_idle_sequences_slow_nobody_down() -> None:
    bench = Bench(cells=200, sequences=6, tidy=False)
    for prefix in (LONG[:12], LONG[20:32], LONG[40:52]):
        bench.ask(prefix, max_tokens=3)
        bench.finish()
    assert (describe(bench.scheduler)["cached"], describe(bench.scheduler)["shelved"]) == (3 * 14, 0)
    for prefix in (LONG[60:72], LONG[80:92], LONG[100:112], LONG[120:132]):
        bench.ask(prefix, max_tokens=3)
        bench.finish()
    assert describe(bench.scheduler)["shelved"] > 0
    bench.check_over()


def test_without_a_shelf_what_is_idle_is_computed_again() -> None:
    bench = Bench(shelf=0)
    for prefix in (LONG[:12], LONG[20:32], LONG[:12]):
        bench.ask(prefix, max_tokens=2)
        bench.finish()
        assert bench.asked[-1].prompts == [(12, 0)]
    bench.check_over()


def test_a_few_idle_cells_beside_many_running_ones_stay_where_they_are() -> None:
    bench = Bench()
    bench.ask(LONG[:10], max_tokens=2)
    bench.finish()
    bench.ask(LONG[100:300], max_tokens=2)
    bench.finish()
    assert describe(bench.scheduler)["shelved"] == 0
    bench.ask(LONG[:10], max_tokens=2)
    bench.finish()
    assert (bench.asked[-1].prompts, describe(bench.scheduler)["shelved"] > 0) == ([(1, 9)], True)
    bench.check_over()


def test_a_shelved_sequence_that_no_longer_fits_is_computed_again() -> None:
    bench = Bench(cells=40, sequences=6, batch=40)
    bench.ask(LONG[:30], max_tokens=4)
    bench.finish()
    running = bench.ask(LONG[100:110], max_tokens=20)
    bench.step()
    assert describe(bench.scheduler)["shelved"] > 0
    short = bench.ask(LONG[:6], max_tokens=3)  # 6 + 3 fit beside the promise of 30, the whole of the 33 do not
    bench.finish()
    assert (short.prompts, running.finishes) == ([(6, 0)], {0: "length"})
    bench.check_over()


# ---------------------------------------------------------------- who runs when


@pytest.mark.parametrize(("prompt", "most", "n"), [(30, 25, 4), (16, 15, 1)])
def test_requests_whose_promises_exclude_each_other_run_one_after_the_other(prompt: int, most: int, n: int) -> None:
    bench = Bench(cells=60, sequences=16, batch=64)
    first = bench.ask(LONG[:prompt], n, max_tokens=most)
    second = bench.ask(LONG[50 : 50 + prompt], n, max_tokens=most)
    while not first.request.over:
        bench.step()
        assert not second.rows
    bench.finish()
    bench.check_over()


def test_a_small_request_does_not_overtake_a_large_one_for_ever() -> None:
    bench = Bench(cells=60)
    bench.ask(LONG[:10], max_tokens=20)
    large, small = bench.ask(LONG[20:50], max_tokens=25), bench.ask(LONG[60:65], max_tokens=2)
    while not small.rows:
        bench.step()
    assert large.rows
    bench.finish()
    bench.check_over()


def test_two_sequences_are_enough_and_one_is_refused() -> None:
    bench = Bench(sequences=2)
    bench.ask(LONG[:9], n=3)
    bench.ask(LONG[:5], n=2)
    bench.finish()
    bench.check_over()
    with pytest.raises(ValueError, match="at least 2"):
        Bench(sequences=1)


def test_the_sequence_of_a_prompt_is_free_once_its_last_sample_runs() -> None:
    bench = Bench(sequences=4)
    asked = bench.ask(LONG[:9], n=3, max_tokens=9)
    while not asked.rows[2]:
        bench.step()
    assert bench.scheduler.score(LONG[50:60], 1, BASE) is not None
    assert describe(bench.scheduler)["running"] == 3
    bench.finish()
    bench.check_over()


def test_many_sets_of_adapters_take_turns() -> None:
    bench = Bench()
    sets = [(float(i), 0.0) for i in range(4)]
    for adapters in sets:
        bench.ask(LONG[:5], max_tokens=10, adapters=adapters)
    for _ in range(20):
        bench.step()
    turns = bench.backend.adapters_of_batches
    assert all(set(turns[at : at + 4]) == set(sets) for at in range(0, 20, 4))
    bench.finish()
    bench.check_over()


def test_a_long_prompt_beside_running_samples_comes_in_small_pieces() -> None:
    bench = Bench(batch=512)
    running = bench.ask(LONG[:4], max_tokens=20)
    bench.step()
    bench.step()
    waiting = bench.ask(LONG[10:400])
    before, said = bench.backend.computed, len(running.rows[0])
    bench.step()
    assert bench.backend.computed == before + 1 + PREFILL_BESIDE_DECODE
    assert len(running.rows[0]) == said + 1
    assert not waiting.rows
    bench.finish()
    bench.check_over()


def test_a_cancel_ends_running_and_waiting_samples_alike() -> None:
    bench = Bench(cells=60, sequences=4)
    asked = bench.ask(LONG[:10], n=6, max_tokens=20)  # two at a time
    other = bench.ask(LONG[:3], max_tokens=3)
    while len(asked.rows[1]) < 3:
        bench.step()
    bench.scheduler.cancel(0)
    assert asked.finishes == {0: "cancelled", 1: "cancelled"}
    said = [len(asked.rows[index]) for index in range(6)]
    bench.scheduler.cancel(0)  # once more does nothing
    bench.scheduler.cancel(99)
    bench.finish()
    assert [len(asked.rows[index]) for index in range(6)] == said
    assert other.finishes == {0: "length"}
    bench.check_over()


def test_what_can_never_fit_is_refused_at_once() -> None:
    bench = Bench(cells=100, context=50)
    with pytest.raises(ContextOverflow, match="45 tokens and 6 more do not fit into 50"):
        bench.ask(LONG[:45], max_tokens=6)
    with pytest.raises(ContextOverflow, match="empty"):
        bench.ask([])
    with pytest.raises(ContextOverflow, match="a text of 51 tokens does not fit into 50"):
        bench.scheduler.score(LONG[:51], 1, BASE)
    bench.ask(LONG[:45], max_tokens=5)
    bench.finish()
    bench.check_over()
    tight = Bench(cells=30)
    with pytest.raises(ContextOverflow):
        tight.ask(LONG[:28], max_tokens=3)


# ---------------------------------------------------------------- scoring


def test_scores_are_those_of_the_model_and_reuse_the_cache() -> None:
    bench = Bench(batch=16)
    asked = bench.ask(LONG[:40], max_tokens=10, sampling=replace(PLAIN, temperature=0.5))
    bench.finish()
    ids = [*LONG[:40], *asked.ids(0)]
    before = bench.backend.computed
    scores = bench.scheduler.score(ids, 40, BASE)
    assert scores == scores_alone(ids, 40, BASE)
    assert scores == [logprob for _, logprob in asked.rows[0]]  # the model's own, whatever the temperature
    assert bench.backend.computed == before + 10  # tokens 39 to 48: the rest of the prompt is there already
    assert bench.scheduler.score(ids, len(ids), BASE) == []
    assert bench.scheduler.score(ids, 1, (1.0, 0.0)) == scores_alone(ids, 1, (1.0, 0.0))
    bench.check_over()


@pytest.mark.parametrize(("cells", "sequences"), [(40, 16), (400, 3)], ids=["cells", "sequences"])
def test_scoring_waits_until_there_is_room(cells: int, sequences: int) -> None:
    bench = Bench(cells=cells, sequences=sequences)
    bench.ask(LONG[:10], n=3, max_tokens=10)
    while describe(bench.scheduler)["running"] < 2:
        bench.step()
    assert bench.scheduler.score(LONG[20:50], 1, BASE) is None
    while (scores := bench.scheduler.score(LONG[20:50], 1, BASE)) is None:
        bench.step()
    assert scores == scores_alone(LONG[20:50], 1, BASE)
    bench.finish()
    bench.check_over()


def test_scoring_in_the_last_sequence_cuts_off_what_it_cannot_use() -> None:
    bench = Bench(cells=60, sequences=3)
    old = bench.ask(LONG[:15], max_tokens=5)
    bench.finish()
    bench.ask(LONG[50:55], n=2, max_tokens=30)  # its prompt and one sample; there is no room for the other
    for _ in range(3):
        bench.step()
    assert sum(not slot.busy for slot in bench.scheduler._slots) == 1
    before, ids = bench.backend.computed, [*LONG[:15], *old.ids(0)[:2], 5, 6]
    assert bench.scheduler.score(ids, 17, BASE) == scores_alone(ids, 17, BASE)
    assert bench.backend.computed == before + 2
    bench.check_books()
    bench.finish()
    bench.check_over()


def test_an_interrupted_score_gives_nothing_and_holds_nothing() -> None:
    aborts = iter([False, True])
    bench = Bench(batch=4, aborts=lambda: next(aborts, False))
    assert bench.scheduler.score(LONG[:12], 3, BASE) is None
    bench.check_books()
    bench.check_over()
    assert bench.scheduler.score(LONG[:12], 3, BASE) == scores_alone(LONG[:12], 3, BASE)


# ---------------------------------------------------------------- failures


def test_a_batch_that_fails_raises_and_dropping_everything_mends_it() -> None:
    bench = Bench()
    bench.ask(LONG[70:90])
    bench.finish()
    idle = describe(bench.scheduler)["cached"]
    dropped = [bench.ask(LONG[:9], n=3, max_tokens=9), bench.ask(LONG[:4]), bench.ask(LONG[:7], adapters=(1.0, 0.0))]
    for _ in range(4):
        bench.step()
    bench.backend.fail_with = -3
    with pytest.raises(EngineError, match=r"batch of \d+ tokens \(code -3\)"):
        bench.step()
    assert describe(bench.scheduler)["cached"] > idle  # only a full cache is a reason to give up what is idle
    assert bench.scheduler.drop_all() == [asked.request for asked in dropped if not asked.request.over]
    nothing = {"running": 0, "requests": 0, "shelved": 0, "cached": 0}
    assert {name: count for name, count in describe(bench.scheduler).items() if name != "computed"} == nothing
    bench.check_books()
    with pytest.raises(EngineError, match="code -3"):
        bench.scheduler.score(LONG[:9], 1, BASE)
    bench.backend.fail_with = None
    bench.asked.clear()
    bench.ask(LONG[:9], n=3)
    bench.finish()
    bench.check_over()


def test_a_full_cache_without_anything_to_give_up_is_an_error_and_not_a_loop() -> None:
    bench = Bench()
    bench.ask(LONG[:9])
    bench.backend.fail_with = 1
    with pytest.raises(EngineError, match="code 1"):
        bench.step()

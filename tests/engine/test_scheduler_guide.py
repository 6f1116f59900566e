"""Requests with a grammar, or texts that end them, beside others in one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from cache_backend import END_IDS, VOCABULARY, CacheBackend, advance, alone, logits_of, state_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.chat.answer_grammar import regular
from ponder.engine.constraint import Vocabulary
from ponder.engine.guide import Guide
from ponder.engine.lines import Request
from ponder.engine.sampling import Sampling, likeliest, picks
from ponder.engine.scheduler import Scheduler, describe
from ponder.errors import InputError, PonderError

SCALES = (0.0, 0.0)
PIECES = [b"<end>", b"<end>", *(bytes([letter]) for letter in b"abcdefghijkl"), b"ab", b"cd"]
PROMPT = [2, 3, 4, 5, 6]


class Letters:
    size, end_ids = VOCABULARY, END_IDS

    def tokenize(self, text: str) -> list[int]:
        return [PIECES.index(letter.encode()) for letter in text if letter.encode() in PIECES]

    def piece(self, token: int) -> bytes:
        return PIECES[token]

    def special_ids(self) -> tuple[int, ...]:
        return ()


GRAMMARS = Vocabulary(Letters())


def guide_of(grammar: str = "", stops: Sequence[bytes] = (), consumed: Sequence[int] = ()) -> Guide:
    return Guide(Letters().piece, GRAMMARS.begin(regular(grammar), consumed) if grammar else None, tuple(stops))


@dataclass
class Asked:
    request: Request
    rows: dict[int, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    tops: dict[int, list[Any]] = field(default_factory=lambda: defaultdict(list))
    finishes: dict[int, str] = field(default_factory=dict)
    errors: list[PonderError] = field(default_factory=list)

    def text(self, index: int) -> bytes:
        return b"".join(PIECES[token] for token, _ in self.rows[index] if token not in END_IDS)


class Bench:
    def __init__(self, sequences: int = 16) -> None:
        backend = CacheBackend(cells=4096, sequences=sequences)
        self.scheduler = Scheduler(backend, cells=4096, sequences=sequences, end_ids=END_IDS, shelf=2**20)
        self.keys = 0

    def ask(
        self,
        guide: Guide | None,
        n: int = 1,
        max_tokens: int = 12,
        prefix: Sequence[int] = PROMPT,
        top: int = 0,
        **how: Any,
    ) -> Asked:
        sampling = Sampling(
            **({"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 0, "ignore_eos": False} | how)
        )

        def emit(tokens: list[Any], finishes: list[tuple[int, str]]) -> None:
            for index, token, logprob, *told in tokens:
                asked.rows[index].append((token, logprob))
                asked.tops[index] += told
            for index, finish in finishes:
                assert index not in asked.finishes
                asked.finishes[index] = finish

        request = Request(
            key=self.keys, prefix=list(prefix), n=n, max_tokens=max_tokens, sampling=sampling, adapters=SCALES,
            emit=emit, fail=lambda error: asked.errors.append(error), prompt=lambda computed, cached: None,
            guide=guide, top=top,
        )  # fmt: skip
        asked = Asked(request)
        self.keys += 1
        self.scheduler.add(request)
        return asked

    def finish(self) -> None:
        for _ in range(2000):
            if self.scheduler.idle:
                assert describe(self.scheduler)["running"] == 0
                assert not [slot for slot in self.scheduler._slots if slot.busy]
                return
            self.scheduler.step()
        raise AssertionError("not finished")


def bound_alone(
    prefix: Sequence[int], index: int, most: int, how: Sampling, grammar: str, consumed: Sequence[int] = ()
) -> tuple[list[tuple[int, float]], str]:
    """What a sample under a grammar has to be, from a plain loop."""
    state, random = state_of(prefix, SCALES), how.random(index)
    constraint = GRAMMARS.begin(regular(grammar), consumed)
    banned = np.array(END_IDS, dtype=np.int64) if how.ignore_eos else None
    rows: list[tuple[int, float]] = []
    while not constraint.complete:
        rows += picks(logits_of(state), how, [random], banned, constraint.allowed())
        if rows[-1][0] in END_IDS:
            return rows, "stop"
        state = advance(state, rows[-1][0], SCALES)
        constraint.take(rows[-1][0])
        if len(rows) == most and not constraint.complete:
            return rows, "length"
    return rows, "stop"


GRAMMAR = st.sampled_from(["[a-d]{3,6}", "(ab|cd|e)*f", "a", "abcd(e|fg)?", "[a-l]+", "(a|b)(c|d)(e|f)(g|h)(i|j)"])


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.none() | GRAMMAR, st.integers(1, 6), st.integers(1, 9), st.integers(0, 3), st.booleans()),
        max_size=5,
    )
)
def test_each_sample_is_what_it_would_be_alone(work: list[tuple[str | None, int, int, int, bool]]) -> None:
    bench = Bench()
    asked = [
        bench.ask(None if grammar is None else guide_of(grammar), n, most, seed=seed, ignore_eos=endless)
        for grammar, n, most, seed, endless in work
    ]
    bench.finish()
    for (grammar, n, most, _, _), each in zip(work, asked, strict=True):
        for index in range(n):
            if grammar is None:
                expected = alone(PROMPT, index, most, each.request.sampling, SCALES)
            else:
                expected = bound_alone(PROMPT, index, most, each.request.sampling, grammar)
            assert (each.rows[index], each.finishes[index]) == expected


@settings(max_examples=40)
@given(GRAMMAR, st.integers(0, 5), st.integers(0, 8))
def test_going_on_in_the_middle_is_as_if_nothing_had_been_cut(grammar: str, seed: int, place: int) -> None:
    bench = Bench()
    whole = bench.ask(guide_of(grammar), temperature=0.0, seed=seed)
    bench.finish()
    ids = [token for token, _ in whole.rows[0] if token not in END_IDS]
    place = min(place, len(ids))
    rest = bench.ask(
        guide_of(grammar, consumed=ids[:place]), prefix=[*PROMPT, *ids[:place]], temperature=0.0, max_tokens=12
    )
    bench.finish()
    assert whole.rows[0][:place] + rest.rows[0][: 12 - place] == whole.rows[0]
    if whole.finishes[0] == "stop":
        assert rest.finishes[0] == "stop"


def test_what_is_complete_before_it_began_ends_without_a_token() -> None:
    bench = Bench()
    asked = bench.ask(guide_of("ab", consumed=[2, 3]), n=3, prefix=[*PROMPT, 2, 3])
    bench.finish()
    assert asked.finishes == {0: "stop", 1: "stop", 2: "stop"}
    assert not any(asked.rows.values())


def test_a_grammar_that_cannot_be_followed_ends_its_own_request_alone() -> None:
    bench = Bench()
    good, other = bench.ask(guide_of("[a-f]{8}"), n=3), bench.ask(None, n=2)
    bad = bench.ask(guide_of("[a-c]{2}[xy]"), n=4)  # there is no x and no y
    bench.finish()
    assert [type(error) for error in bad.errors] == [InputError]
    assert not bad.finishes
    assert set(good.finishes.values()) == {"stop"}
    assert len(other.finishes) == 2
    assert not good.errors + other.errors
    after = bench.ask(guide_of("abc"))
    bench.finish()
    assert after.text(0) == b"abc"


def test_a_cancel_in_the_middle_leaves_a_beginning() -> None:
    bench = Bench()
    asked, other = bench.ask(guide_of("[a-f]{9}"), n=3), bench.ask(guide_of("[a-f]{9}"), n=2, seed=1)
    for _ in range(6):
        bench.scheduler.step()
    bench.scheduler.cancel(asked.request.key)
    bench.finish()
    assert set(asked.finishes.values()) == {"cancelled"}
    for index in range(3):
        GRAMMARS.begin(regular("[a-f]{9}"), [token for token, _ in asked.rows[index]])
    assert all(len(other.text(index)) == 9 for index in range(2))


def test_a_sample_ends_where_its_text_holds_a_stop() -> None:
    bench = Bench()
    asked = bench.ask(guide_of(stops=[b"ca", b"dd", b"fab"]), n=12, max_tokens=200, ignore_eos=True)
    bench.finish()
    assert set(asked.finishes.values()) == {"length"}
    for index in range(12):
        text, last = asked.text(index), PIECES[asked.rows[index][-1][0]]
        assert any(stop in text for stop in (b"ca", b"dd", b"fab"))
        assert not any(stop in text[: -len(last)] for stop in (b"ca", b"dd", b"fab"))


@pytest.mark.parametrize("grammar", ["", "[a-l]{4}"])
def test_the_likeliest_tokens_are_told_beside_each_token(grammar: str) -> None:
    bench = Bench()
    asked = bench.ask(guide_of(grammar) if grammar else None, n=3, max_tokens=5, top=4)
    bench.finish()
    for index in range(3):
        assert len(asked.tops[index]) == len(asked.rows[index])
        state = state_of(PROMPT, SCALES)
        for (token, _), top in zip(asked.rows[index], asked.tops[index], strict=True):
            assert top == likeliest(logits_of(state), 4)
            state = advance(state, token, SCALES)

"""Backends on torch: whatever is copied, cut, put away and swapped about, logits are those of a plain forward pass."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_lora, tiny_model, torch

from ponder.engine.libllama import ABORTED
from ponder.engine.torch_adapters import adapters_of, evaluating, is_plain
from ponder.engine.torch_backend import BLOCK, TorchBackend
from ponder.engine.torch_decoder import ROUND
from ponder.engine.torch_projection import packs
from ponder.engine.torch_slow import SlowBackend
from ponder.errors import EngineError

SEQUENCES, CONTEXT = 6, 2 * ROUND + 40
EXACT = 2e-5
Backend = TorchBackend | SlowBackend


@cache
def model_of(kind: str = "llama", *names: str) -> Any:
    config = {"max_position_embeddings": CONTEXT, "n_positions": CONTEXT} if kind == "gpt2" else {}
    model = tiny_model(kind, **config)
    return tiny_lora(model, *names) if names else model


@cache
def expected(kind: str, names: tuple[str, ...], scales: tuple[float, ...], ids: tuple[int, ...]) -> np.ndarray:
    """Logits after the last of `ids`, from the model itself."""
    model = model_of(kind, *names)
    with torch.no_grad(), evaluating(model, dict(zip(names, scales, strict=True))):
        return model(torch.tensor([ids])).logits[0, -1].numpy()


def batched(model: Any) -> Backend:
    return TorchBackend(model, context=CONTEXT, batch=64)


def slow(model: Any) -> Backend:
    return SlowBackend(model, context=CONTEXT, batch=64)


def ids_of(seed: int, length: int) -> list[int]:
    return [5 + (seed * 37 + at * at * 11 + at) % 260 for at in range(length)]


class Book:
    """A backend, and what its sequences hold."""

    def __init__(self, make: Callable[[Any], Backend], kind: str = "llama") -> None:
        self.kind, self.backend = kind, make(model_of(kind))
        self.held: dict[int, list[int]] = {number: [] for number in range(SEQUENCES)}
        self.kept: list[tuple[list[int], object]] = []

    def decode(self, pieces: dict[int, list[int]]) -> None:
        rows = []
        for sequence, ids in pieces.items():
            begin = len(self.held[sequence])
            rows += [(token, begin + at, sequence, at == len(ids) - 1) for at, token in enumerate(ids)]
            self.held[sequence] += ids
        if not rows:
            return
        assert self.backend.decode(rows) == 0
        for row, (_, _, sequence, wanted) in enumerate(rows):
            if wanted:
                wanted_logits = expected(self.kind, (), (), tuple(self.held[sequence]))
                np.testing.assert_allclose(self.backend.logits(row), wanted_logits, atol=EXACT, rtol=0)

    def do(self, deed: tuple) -> None:
        match deed:
            case ("steps", seed, which):
                self.decode({n: ids_of(seed + n, 1) for n in which if 0 < len(self.held[n]) < CONTEXT - 1})
            case ("batch", lengths):
                fitting = {n: c for n, c in lengths.items() if len(self.held[n]) + c <= CONTEXT}
                self.decode({n: ids_of(n + count, count) for n, count in fitting.items()})
            case ("copy", source, target, share) if source != target and self.held[source]:
                self.cut(target, 0)
                length = max(1, int(len(self.held[source]) * share))
                self.backend.copy(source, target, length)
                self.held[target] = self.held[source][:length]
            case ("cut", number, share):
                self.cut(number, int(len(self.held[number]) * share))
            case ("away", number) if self.held[number]:
                state = self.backend.save(number)
                assert len(state) > 0
                self.kept.append((list(self.held[number]), state))
                self.cut(number, 0)
            case ("back", number) if self.kept:
                self.cut(number, 0)
                ids, state = self.kept.pop()
                assert self.backend.restore(number, state)
                self.held[number] = list(ids)

    def cut(self, number: int, length: int) -> None:
        self.backend.truncate(number, length)
        del self.held[number][length:]


NUMBER = st.integers(0, SEQUENCES - 1)
SHARE = st.sampled_from([0.0, 0.3, 0.7, 1.0])
DEEDS = st.one_of(
    st.tuples(st.just("steps"), st.integers(0, 9), st.sets(NUMBER, min_size=1)),
    st.tuples(
        st.just("batch"),
        st.dictionaries(NUMBER, st.sampled_from([1, 2, 3, 7, 20, ROUND + 3]), min_size=1, max_size=4),
    ),
    st.tuples(st.just("copy"), NUMBER, NUMBER, SHARE),
    st.tuples(st.just("cut"), NUMBER, SHARE),
    st.tuples(st.just("away"), NUMBER),
    st.tuples(st.just("back"), NUMBER),
)


@pytest.mark.parametrize("make", [batched, slow])
@settings(max_examples=12)
@given(deeds=st.lists(DEEDS, min_size=1, max_size=15))
def test_logits_are_those_of_a_forward_pass(make: Callable[[Any], Backend], deeds: list[tuple]) -> None:
    book = Book(make)
    for deed in [("batch", {0: 9, 1: 9, 2: 4}), *deeds, ("steps", 3, set(range(SEQUENCES)))]:
        book.do(deed)


@pytest.mark.parametrize(
    ("kind", "make"), [("qwen2", batched), ("gemma2", batched), ("gemma2", slow), ("gpt2", slow), ("mamba", slow)]
)
def test_models_of_other_kinds(kind: str, make: Callable[[Any], Backend]) -> None:
    # Caches that slide over a window, or sum all up in a state, cannot be cut: what is left is computed again.
    book = Book(make, kind)
    for deed in (
        ("batch", {0: 20, 1: 7}),
        ("copy", 0, 2, 0.5),
        ("away", 1),
        ("cut", 0, 0.3),
        ("steps", 1, {0, 2}),
        ("back", 3),
        ("batch", {0: 4, 3: 1, 2: 3}),
    ):
        book.do(deed)


@pytest.mark.parametrize("make", [batched, slow])
def test_adapters_are_switched_in_the_backend_and_never_in_the_model(make: Callable[[Any], Backend]) -> None:
    names = ("left", "right")
    model = model_of("llama", *names)
    model.base_model.set_adapter("right")
    model.train()
    try:
        before = [(p.requires_grad, p._version) for p in model.parameters()]
        backend = make(model)
        assert backend.adapters == {"left": 0.0, "right": 1.0}
        ids = ids_of(1, 12)
        rows = [(token, at, 0, at == 11) for at, token in enumerate(ids)]
        for scales in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 2.0), (-1.0, 0.0)):
            backend.use_adapters(scales)
            assert backend.decode(rows) == 0
            wanted = expected("llama", names, scales, tuple(ids))
            np.testing.assert_allclose(backend.logits(11), wanted, atol=10 * EXACT, rtol=0)
            backend.truncate(0, 0)
            assert model.active_adapters == ["right"]
            assert all(module.training for module in model.modules())
        backend.refresh()
        assert backend.decode(rows) == 0
        np.testing.assert_allclose(backend.logits(11), wanted, atol=10 * EXACT, rtol=0)  # the scales are kept
        assert [(p.requires_grad, p._version) for p in model.parameters()] == before
        assert expected("llama", names, (1.0, 0.0), tuple(ids)) is not expected("llama", names, (0.0, 1.0), tuple(ids))
    finally:
        model.eval()


def test_what_is_more_than_a_product_beside_a_linear_layer_is_left_to_the_model_itself() -> None:
    import peft

    assert is_plain(model_of("llama", "left", "right"))
    assert adapters_of(model_of()) == {}
    for special in ({"use_dora": True}, {"lora_bias": True}, {"target_modules": ["embed_tokens"]}):
        settings_ = {"r": 2, "target_modules": ["q_proj"]} | special
        model = tiny_model(attention_bias=True)
        peft.inject_adapter_in_model(peft.LoraConfig(**settings_), model, "own")
        assert not is_plain(model)


@pytest.mark.parametrize("make", [batched, slow])
def test_an_interrupted_backend_computes_nothing(make: Callable[[Any], Backend]) -> None:
    backend = make(model_of())
    backend.interrupted = True
    assert backend.decode([(5, 0, 0, True)]) == ABORTED
    backend.interrupted = False
    assert backend.decode([(5, 0, 0, True)]) == 0
    np.testing.assert_allclose(backend.logits(0), expected("llama", (), (), (5,)), atol=EXACT)


@pytest.mark.parametrize("make", [batched, slow])
def test_what_torch_cannot_do_is_an_engine_error(make: Callable[[Any], Backend]) -> None:
    model = tiny_model()
    backend = make(model)
    model.model.norm.weight.data = torch.ones(7)
    with pytest.raises(EngineError, match=r"torch could not compute 1 tokens: .*7"):
        backend.decode([(5, 0, 0, True)])


def test_the_cache_grows_with_what_is_in_use() -> None:
    backend = TorchBackend(model_of(), context=CONTEXT, batch=64)
    small = backend._decoder.keys.numel()
    for number in range(5):
        backend.decode([(token, at, number, False) for at, token in enumerate(ids_of(number, 4))])
    assert backend._decoder.keys.numel() == 8 * small
    backend.decode([(token, 4 + at, 0, False) for at, token in enumerate(ids_of(0, BLOCK))])
    assert backend._decoder.keys.numel() == 16 * small
    assert backend.bytes_a_token == 2 * 2 * 2 * 8 * 4


def test_what_is_reserved_takes_no_memory_and_never_moves() -> None:
    book = Book(batched)
    book.backend.reserve(SEQUENCES)
    place, before = book.backend._decoder.keys.data_ptr(), _resident()
    huge = batched(model_of())
    huge.reserve(200_000)
    assert huge._decoder.keys.nbytes > 2**31
    assert _resident() - before < 2**28
    book.decode({number: ids_of(number, 4 + 40 * number) for number in range(SEQUENCES)})
    book.decode({number: ids_of(9, 1) for number in range(SEQUENCES)})
    assert book.backend._decoder.keys.data_ptr() == place


def _resident() -> int:
    """Bytes of main memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_pieces_of_many_sequences_are_computed_together_wherever_they_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    book, sizes = Book(batched), list[int]()
    book.decode({0: ids_of(0, CONTEXT - 4), 1: ids_of(1, 70), 2: ids_of(2, 1)})
    prefill = book.backend._decoder.prefill
    monkeypatch.setattr(book.backend._decoder, "prefill", lambda ids, *at: sizes.append(len(ids)) or prefill(ids, *at))
    book.decode({0: ids_of(5, 3), 1: ids_of(6, 12), 2: ids_of(7, 2), 3: ids_of(8, 9)})  # padding ends beyond row 0
    assert sizes == [4]
    book.decode({1: ids_of(1, 100), 2: ids_of(2, 5)})
    assert sizes == [4, 1, 1]  # the padding would cost more than a product of its own


def test_a_computation_ends_where_it_is_interrupted_and_is_done_again() -> None:
    book = Book(batched)
    book.decode({0: ids_of(0, 20), 1: ids_of(1, 9)})
    decoder = book.backend._decoder
    heads, layers = decoder._heads, iter(range(100))

    def stopping(*args: Any) -> Any:
        if next(layers) == 0:
            book.backend.interrupted = True
        return heads(*args)

    decoder._heads = stopping  # type: ignore[method-assign]
    assert book.backend.decode([(5, 20, 0, True), (6, 9, 1, False), (7, 10, 1, True)]) == ABORTED
    assert next(layers) == 1, "the second layer was computed"
    book.backend.interrupted = False
    book.decode({0: [5], 1: [6, 7]})


def test_narrow_numbers_over_wide_weights_come_close() -> None:
    backend = TorchBackend(model_of(), context=CONTEXT, batch=64, dtype=torch.bfloat16)
    ids = ids_of(2, 30)
    backend.decode([(token, at, 0, at == 29) for at, token in enumerate(ids)])
    state = backend.save(0)
    backend.truncate(0, 0)
    assert backend.restore(4, state)
    backend.decode([(7, 30, 4, True)])
    found, wanted = backend.logits(0), expected("llama", (), (), (*ids, 7))
    assert 1e-4 < np.abs(found - wanted).max() < 0.25 * wanted.std()


# ---------------------------------------------------------------- folded adapters


@pytest.mark.parametrize("pack", [False, True])
def test_folded_adapters_compute_as_those_beside_the_weights_whoever_asks_in_between(pack: bool) -> None:
    dtype = torch.bfloat16 if pack else torch.float32
    if pack and not packs(torch.device("cpu"), dtype):
        pytest.skip("this processor packs no bfloat16 weights")
    model, usual, ids = tiny_lora(tiny_model(), "left", "right").to(dtype), (1.0, 0.5), ids_of(3, 9)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    folded = TorchBackend(model, context=CONTEXT, batch=64, pack=pack, fold=usual)
    beside = TorchBackend(model, context=CONTEXT, batch=64, pack=pack)

    def logits(backend: TorchBackend, scales: tuple[float, ...]) -> np.ndarray:
        backend.use_adapters(scales)
        backend.truncate(0, 0)
        assert backend.decode([(token, at, 0, at == len(ids) - 1) for at, token in enumerate(ids)]) == 0
        return backend.logits(len(ids) - 1).copy()

    def products(backend: TorchBackend) -> int:
        return sum(len(projection.low_rank) for projection in backend._projections())

    for scales in (usual, (0.0, 0.0), usual, (0.0, 1.0), usual):
        np.testing.assert_allclose(logits(folded, scales), logits(beside, scales), atol=0.5 if pack else EXACT, rtol=0)
        assert (products(folded) == 0) == (scales in (usual, (0.0, 0.0)))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert adapters_of(model) == {"left": 1.0, "right": 1.0}

    old = logits(folded, usual)
    with torch.no_grad():
        model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["left"].weight.mul_(-2)
    folded.refresh()
    new = logits(folded, usual)
    assert np.abs(new - old).max() > 0.05
    np.testing.assert_allclose(new, logits(beside, usual), atol=0.5 if pack else EXACT, rtol=0)

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ponder.errors import InputError
from ponder.train.divergence import forward_kl, jensen_shannon, reverse_kl, top_k_forward_kl

torch.set_num_threads(1)  # more of them wait for each other in products as small as these

DIVERGENCES = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "jensen_shannon_0.1": partial(jensen_shannon, beta=0.1),
}
each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)


def drawn(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(row: list[float], temperature: float) -> list[float]:
    weights = [math.exp(x / temperature) for x in row]
    return [w / sum(weights) for w in weights]


def slow_kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def slow(name: str, student: list[float], teacher: list[float], temperature: float) -> float:
    s, t = probabilities(student, temperature), probabilities(teacher, temperature)
    if name == "forward":
        return slow_kl(t, s)
    if name == "reverse":
        return slow_kl(s, t)
    beta = 0.1 if name.endswith("0.1") else 0.5
    m = [beta * b + (1 - beta) * a for a, b in zip(s, t, strict=True)]
    return beta * slow_kl(t, m) + (1 - beta) * slow_kl(s, m)


shapes = {
    "tokens": st.integers(0, 7),
    "vocabulary": st.integers(1, 9),
    "seed": st.integers(0, 2**32),
    "chunk": st.integers(1, 8),
    "temperature": st.sampled_from([0.5, 1.0, 2.0]),
}


@settings(max_examples=50)
@given(**shapes, name=st.sampled_from(sorted(DIVERGENCES)))
def test_divergences_are_what_a_loop_says(tokens, vocabulary, seed, chunk, temperature, name):
    student, teacher = drawn(seed, 2, tokens, vocabulary)
    found = DIVERGENCES[name](student, teacher, temperature=temperature, chunk=chunk)
    expected = [slow(name, s, t, temperature) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


@settings(max_examples=50)
@given(**shapes, data=st.data())
def test_top_k_is_what_a_loop_says(tokens, vocabulary, seed, chunk, temperature, data):
    student, teacher = drawn(seed, 2, tokens, vocabulary)
    k = data.draw(st.integers(1, vocabulary))
    logprobs, ids = (teacher / temperature).log_softmax(1).topk(k)
    found = top_k_forward_kl(student, ids, logprobs, temperature=temperature, chunk=chunk)
    for t in range(tokens):
        s, p = probabilities(student[t].tolist(), temperature), probabilities(teacher[t].tolist(), temperature)
        kept = ids[t].tolist()
        rest = [i for i in range(vocabulary) if i not in kept]
        both = [[q[i] for i in kept] + ([sum(q[i] for i in rest)] if rest else []) for q in (p, s)]
        assert found[t].item() == pytest.approx(slow_kl(*both), abs=1e-9)
    full = forward_kl(student, teacher, temperature=temperature)
    assert (found <= full + 1e-9).all()
    if k == vocabulary:
        torch.testing.assert_close(found, full)


@each_divergence
def test_gradients_are_those_of_the_value_whatever_the_chunk(divergence):
    student, teacher = drawn(1, 2, 5, 6)
    for chunk in (1, 2, 5, 9):
        measured = partial(divergence, teacher=teacher, temperature=1.5, chunk=chunk)
        assert torch.autograd.gradcheck(measured, student.clone().requires_grad_())


@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_top_k_gradient_is_that_of_its_value(k):
    student, teacher = drawn(2, 2, 5, 6)
    logprobs, ids = teacher.log_softmax(1).topk(k)
    measured = partial(top_k_forward_kl, ids=ids.int(), logprobs=logprobs, chunk=2)
    assert torch.autograd.gradcheck(measured, student.clone().requires_grad_())


def test_no_gradient_reaches_the_teacher():
    student, teacher = drawn(3, 2, 4, 5)
    student, teacher = student.requires_grad_(), teacher.requires_grad_()
    found = torch.autograd.grad(forward_kl(student, teacher).sum(), [student, teacher], allow_unused=True)
    assert found[0].abs().max() > 0
    assert found[1] is None


class Largest(TorchDispatchMode):
    """The number of elements of the largest float32 tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, Tensor) and made.dtype == torch.float32:
                self.elements = max(self.elements, made.numel())
        return result


@pytest.mark.parametrize("name", [*DIVERGENCES, "top_k"])
def test_float32_copies_stay_within_a_chunk(name):
    """Logits in bfloat16, as a model gives them: forwards and backwards nothing wider is made of all tokens."""
    tokens, vocabulary, chunk = 64, 50, 4
    student, teacher = drawn(4, 2, tokens, vocabulary).bfloat16()
    student.requires_grad_()
    with Largest() as largest:
        if name == "top_k":
            logprobs, ids = teacher.log_softmax(1).topk(3)
            loss = top_k_forward_kl(student, ids, logprobs, chunk=chunk)
        else:
            loss = DIVERGENCES[name](student, teacher, chunk=chunk)
        loss.sum().backward()
    assert loss.dtype == torch.float32
    assert student.grad.dtype == torch.bfloat16
    assert chunk * vocabulary <= largest.elements <= 2 * chunk * vocabulary


@each_divergence
def test_tokens_that_neither_can_say_do_not_matter(divergence):
    """Vocabularies are padded, and the padding's logits masked: 0 log 0 is 0, in the gradient too."""
    student, teacher = drawn(5, 2, 3, 4)
    padding = torch.full((3, 2), -torch.inf, dtype=torch.float64)
    wide = torch.cat([student, padding], 1).requires_grad_()
    narrow = student.clone().requires_grad_()
    found, expected = divergence(wide, torch.cat([teacher, padding], 1)), divergence(narrow, teacher)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(wide.grad[:, :4], narrow.grad)
    assert wide.grad[:, 4:].abs().max() == 0


def test_what_the_student_cannot_say_costs_infinitely_much_forwards_only():
    student, teacher = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, 0.0]])
    assert forward_kl(student, teacher).item() == math.inf
    assert reverse_kl(student, teacher).item() == pytest.approx(math.log(2))
    assert jensen_shannon(student, teacher).item() < math.log(2)


def test_jensen_shannon_goes_to_both_kullback_leibler_divergences():
    student, teacher = drawn(6, 2, 4, 5, scale=1.0)
    near = 1e-6
    for beta, limit in ((near, forward_kl), (1 - near, reverse_kl)):
        found = jensen_shannon(student, teacher, beta=beta) / near
        torch.testing.assert_close(found, limit(student, teacher), rtol=1e-4, atol=0)
    torch.testing.assert_close(jensen_shannon(student, teacher), jensen_shannon(teacher, student))


# ------------------------------------------------------------------ optima that are known


def learned(loss_of, start: Tensor, steps: int = 400) -> Tensor:
    student = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([student], lr=0.5, max_iter=steps, tolerance_grad=1e-10, tolerance_change=1e-14)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(student).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return student.detach()


@each_divergence
def test_the_teacher_minimises_every_divergence(divergence):
    start, teacher = drawn(7, 2, 3, 5, scale=1.0)
    found = learned(partial(divergence, teacher=teacher, temperature=2.0), start)
    torch.testing.assert_close(found.softmax(1), teacher.softmax(1), rtol=0, atol=1e-4)


def test_top_k_teaches_the_k_and_how_much_is_left():
    """The student keeps its own opinion of how the rest divides; without the bucket the rest would go to nothing."""
    start, teacher = drawn(8, 2, 3, 6, scale=1.0)
    logprobs, ids = teacher.log_softmax(1).topk(2)
    found = learned(partial(top_k_forward_kl, ids=ids, logprobs=logprobs), start)
    torch.testing.assert_close(found.log_softmax(1).gather(1, ids), logprobs, rtol=0, atol=1e-4)


def test_a_student_that_can_hold_one_mode_covers_forwards_and_picks_backwards():
    """A Gaussian of one fixed width on a line of 41 tokens; the teacher has a high and a low peak."""
    line = torch.linspace(-4, 4, 41, dtype=torch.float64)
    teacher = torch.logaddexp(math.log(0.7) - 4 * (line - 2).square(), math.log(0.3) - 4 * (line + 2).square())[None]
    place = torch.linspace(-3, 3, 61, dtype=torch.float64)
    students = -4 * (line[None] - place[:, None]).square()
    forwards = place[forward_kl(students, teacher.expand(61, -1)).argmin()].item()
    backwards = place[reverse_kl(students, teacher.expand(61, -1)).argmin()].item()
    assert forwards == pytest.approx(0.7 * 2 - 0.3 * 2, abs=0.11)  # the mean
    assert backwards == pytest.approx(2.0, abs=0.11)  # the higher peak


# ------------------------------------------------------------------ what is refused


def test_what_is_refused():
    student = torch.zeros(2, 3)
    for call, mend in [
        (lambda: jensen_shannon(student, student, beta=0.0), "forward_kl or reverse_kl"),
        (lambda: forward_kl(student, student, temperature=0.0), "above 0"),
        (lambda: reverse_kl(student, student, chunk=0), "at least 1"),
        (lambda: forward_kl(student, student[:1]), r"\(tokens, vocabulary\)"),
        (lambda: forward_kl(student, torch.zeros(2, 1)), r"\(tokens, vocabulary\)"),
        (lambda: forward_kl(student[None], student[None]), r"\(tokens, vocabulary\)"),
        (lambda: top_k_forward_kl(student, torch.zeros(1, 1).long(), torch.zeros(1, 1)), r"\(tokens, vocabulary\)"),
        (lambda: top_k_forward_kl(student, torch.zeros(2, 1).long(), torch.zeros(2, 2)), r"\(tokens, k\)"),
        (lambda: top_k_forward_kl(student, torch.zeros(2, 4).long(), torch.zeros(2, 4)), r"\(tokens, k\)"),
    ]:
        with pytest.raises(InputError, match=mend):
            call()

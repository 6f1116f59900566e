from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from train.trained import random_rows, small, trainer_in, weights

from ponder.errors import InputError, TrainingError
from ponder.train.optimizer import Optimizer, Schedule
from ponder.train.scorer import at_targets
from ponder.train.sft import sft


def one(value: Any, **settings: Any) -> tuple[nn.Parameter, Optimizer]:
    p = nn.Parameter(value)
    return p, Optimizer([("w", p)], **({"clip": None} | settings))


def push(p: nn.Parameter, optimizer: Optimizer, gradient: float, rate: float) -> float:
    (p * gradient).sum().backward()
    optimizer.collect()
    return optimizer.step(rate)


# ---------------------------------------------------------------- the equation


def test_steps_are_those_of_the_equation():
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, generator=draw)
    p, optimizer = one(start.clone(), betas=(0.8, 0.95), epsilon=1e-6, decay=0.1)
    w, m, v = start.double(), torch.zeros(3, 4).double(), torch.zeros(3, 4).double()
    for step in range(1, 6):
        g = torch.randn(3, 4, generator=draw)
        (p * g).sum().backward()
        optimizer.collect()
        norm = optimizer.step(0.01 * step)
        assert norm == pytest.approx(float(g.norm()), rel=1e-6)
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        w = w * (1 - 0.01 * step * 0.1)
        w = w - 0.01 * step * (m / (1 - 0.8**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-6)
        assert torch.allclose(p.detach().double(), w, atol=1e-6)
        assert p.grad is None


def test_only_matrices_decay():
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = Optimizer([("m", matrix), ("v", vector)], decay=0.5)
    (0 * (matrix.sum() + vector.sum())).backward()
    optimizer.collect()
    optimizer.step(0.1)
    assert torch.equal(vector.detach(), torch.ones(2))
    assert torch.allclose(matrix.detach(), torch.full((2, 2), 0.95))


def test_the_whole_gradient_is_clipped_by_its_norm():
    a, b = nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.zeros(4))
    optimizer = Optimizer([("a", a), ("b", b)], clip=2.0)
    (3 * a.sum() + 4 * b.sum()).backward()
    optimizer.collect()
    assert optimizer.step(1e-3) == pytest.approx(math.sqrt(9 * 9 + 4 * 16))
    state = optimizer.state()
    clipped = torch.cat([state["exp_avg.a"].flatten(), state["exp_avg.b"]]) / 0.1
    assert float(clipped.norm()) == pytest.approx(2.0, rel=1e-4)
    assert float(clipped[0] / clipped[-1]) == pytest.approx(3 / 4, rel=1e-4)


# ---------------------------------------------------------------- masters


def test_steps_too_small_for_bfloat16_add_up():
    """Near 1 bfloat16 resolves 1/128 and 1/256: of steps of 1e-4 each alone would be lost."""
    p, optimizer = one(torch.ones(2, 2, dtype=torch.bfloat16))
    kept = p.data_ptr()
    for step in range(1, 101):
        push(p, optimizer, 1.0, 1e-4)
        if step == 10:
            assert torch.equal(p.detach(), torch.ones(2, 2, dtype=torch.bfloat16))
    assert p.dtype == torch.bfloat16
    assert p.data_ptr() == kept  # written in place: a sampler that holds it has the new weights
    assert float(p.detach()[0, 0]) == pytest.approx(0.99, abs=1 / 256)
    assert float(p.detach()[0, 0]) < 1
    assert optimizer.state()["weight.w"] == pytest.approx(torch.full((2, 2), 0.99), abs=1e-5)


def test_nothing_that_the_next_step_depends_on_is_in_half_precision():
    p, optimizer = one(torch.ones(2, 2, dtype=torch.bfloat16))
    push(p, optimizer, 1.0, 1e-3)
    assert {value.dtype for value in optimizer.state().values()} == {torch.float32}
    full, exact = one(torch.ones(2, 2))
    push(full, exact, 1.0, 1e-3)
    assert full.dtype == torch.float32
    assert exact.state()["weight.w"].data_ptr() != full.data_ptr()  # a copy: later steps leave it as it is


def test_small_gradients_of_micro_batches_are_not_lost_in_bfloat16():
    p, optimizer = one(torch.ones(1, 1, dtype=torch.bfloat16))
    for gradient in (256.0, *[0.5] * 64):
        (p * gradient).sum().backward()
        optimizer.collect()
    assert optimizer.step(1e-4) == pytest.approx(256 + 32)


def test_a_bfloat16_model_trains_as_its_float32_masters_do(tmp_path):
    """The trap of weights silently cast: a rate at which each step is lost in bfloat16 moves the masters."""
    trainer = trainer_in(tmp_path, small(dtype=torch.bfloat16), steps=6, rate=1e-5)
    before = weights(trainer)
    sft(trainer, random_rows(6), 6)
    after = weights(trainer)
    moved = torch.cat([(after[name] - before[name]).flatten().abs() for name in before])
    assert float((moved > 0).float().mean()) > 0.9
    assert float(moved.max()) < 1e-4
    assert all(value.dtype == torch.float32 for value in after.values())
    for name, p in trainer.model.named_parameters():
        assert p.dtype == torch.bfloat16
        assert torch.equal(p.detach(), after[name].bfloat16())


# ---------------------------------------------------------------- accumulation


def test_micro_batches_add_up_to_one_batch(tmp_path):
    """Rows of very different lengths: averages of averages would show."""
    rows = [*random_rows(4, longest=8), *random_rows(4, shortest=40, longest=60)]
    total, gradients = sum(row.learnt for row in rows), []
    for tokens in (60, 120, 1000):
        trainer = trainer_in(tmp_path / str(tokens), tokens=tokens)
        norms: list[dict[str, torch.Tensor]] = []
        collect = trainer.optimizer.step

        def keep(rate: float, trainer: Any = trainer, norms: Any = norms, step: Any = collect) -> float:
            norms.append({name: p.grad.clone() for name, p in trainer.model.named_parameters()})
            return step(rate)

        trainer.optimizer.step = keep
        trainer.update(rows, at_targets, lambda logprobs, pack: (-logprobs.sum() / total, {}))
        gradients.append(norms[0])
    for name, gradient in gradients[0].items():
        for other in gradients[1:]:
            assert torch.allclose(gradient, other[name], atol=1e-6, rtol=1e-5), name


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_changes_nothing(bad, dtype):
    p, optimizer = one(torch.ones(2, 2, dtype=dtype), clip=1.0)
    push(p, optimizer, 1.0, 0.1)
    before = {name: value.clone() for name, value in optimizer.state().items()}
    with pytest.raises(TrainingError, match="the gradient is not finite"):
        push(p, optimizer, bad, 0.1)
    assert all(torch.equal(before[name], value) for name, value in optimizer.state().items())
    assert torch.equal(p.detach().float(), before["weight.w"].to(dtype).float())
    push(p, optimizer, 1.0, 0.1)  # and nothing of it is left
    assert bool(torch.isfinite(p).all())


def test_a_loss_that_reaches_no_weight_is_told():
    p, optimizer = one(torch.ones(2))
    with pytest.raises(TrainingError, match="no weight that is to be trained has a gradient"):
        optimizer.step(0.1)
    assert torch.equal(p.detach(), torch.ones(2))


def test_nothing_to_train_is_told():
    with pytest.raises(InputError, match="nothing of the model is to be trained"):
        Optimizer([])


# ---------------------------------------------------------------- state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_taken_up_goes_on_as_the_one_it_was_taken_from(dtype):
    p, optimizer = one(torch.linspace(-1, 1, 6).reshape(2, 3).to(dtype), decay=0.1)
    for _ in range(3):
        push(p, optimizer, 0.7, 1e-2)
    other, resumed = one(torch.zeros(2, 3, dtype=dtype), decay=0.1)
    push(other, resumed, 5.0, 1e-1)  # what it had before does not matter
    resumed.restore(optimizer.state())
    assert torch.equal(other.detach(), p.detach())
    for q, each in ((p, optimizer), (other, resumed)):
        push(q, each, -0.3, 1e-2)
    a, b = optimizer.state(), resumed.state()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(other.detach(), p.detach())


def test_the_state_before_the_first_step_is_one_too():
    _, optimizer = one(torch.ones(2))
    p, resumed = one(torch.zeros(2))
    push(p, resumed, 1.0, 0.1)
    resumed.restore(optimizer.state())
    assert resumed.state().keys() == {"weight.w"}
    assert torch.equal(p.detach(), torch.ones(2))


def test_a_state_of_another_model_is_refused():
    _, optimizer = one(torch.ones(2))
    with pytest.raises(TrainingError, match="does not fit the model: w is missing"):
        optimizer.restore({"weight.v": torch.ones(2)})
    with pytest.raises(TrainingError, match=r"w is \(3,\), not \(2,\)"):
        optimizer.restore({"weight.w": torch.ones(3)})


def test_it_follows_a_model_whose_parameters_were_replaced():
    model = nn.Linear(2, 2, bias=False)
    optimizer = Optimizer(list(model.named_parameters()), clip=None)
    model.weight = nn.Parameter(torch.ones(2, 2))  # as sharding does
    optimizer.follow(model)
    model.weight.sum().backward()
    optimizer.collect()
    optimizer.step(0.5)
    assert torch.allclose(model.weight.detach(), torch.full((2, 2), 0.5))


# ---------------------------------------------------------------- the learning rate


@pytest.mark.parametrize(
    ("kind", "floor", "expected"),
    [
        ("constant", 0.0, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", 0.0, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("linear", 0.2, [0.5, 1.0, 1.0, 0.8, 0.6, 0.4]),
        ("cosine", 0.0, [0.5, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_rates_warm_up_and_come_down(kind, floor, expected):
    schedule = Schedule(3.0, steps=6, warmup=2, kind=kind, floor=floor)
    assert [schedule.at(step) / 3 for step in range(1, 7)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peak": 0.0, "steps": 5}, "teaches nothing"),
        ({"peak": math.nan, "steps": 5}, "teaches nothing"),
        ({"peak": 1.0, "steps": 5, "warmup": 5}, "leaves none of 5 steps"),
    ],
)
def test_rates_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        Schedule(**settings)

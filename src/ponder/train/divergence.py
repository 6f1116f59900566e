"""How far a student's next-token distributions are from a teacher's: what distillation minimises.

With T = softmax(teacher / temperature), S = softmax(student / temperature), M = beta T + (1 - beta) S:

    forward KL      KL(T || S) = sum_v T_v (log T_v - log S_v)   covers all that the teacher does
    reverse KL      KL(S || T)                                   keeps to what the teacher does most
    Jensen-Shannon  beta KL(T || M) + (1 - beta) KL(S || M)      between them

(Agarwal et al., "On-Policy Distillation of Language Models" (GKD), 2024, section 2 and equation 1; Hinton et al.,
"Distilling the Knowledge in a Neural Network", 2015, for the temperature. No factor of temperature^2 is applied.)

Shapes: logits (tokens, vocabulary), results (tokens,) in nats, to be weighted by `ponder.train.loss.weights`. The
teacher is a constant: no gradient reaches it. Work is done `chunk` tokens at a time, forwards and backwards, so that
beside the logits and the gradient of the student's, in their own precision, only a few float32 copies of
(chunk, vocabulary) exist.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import log, log1p
from typing import Any

import torch
from torch import Tensor

from ponder.errors import InputError

CHUNK = 256


def forward_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, chunk: int = CHUNK) -> Tensor:
    """KL(teacher || student) of each token (tokens,)."""

    def of_chunk(student: Tensor, teacher: Tensor) -> Tensor:
        return _kl(_logs(teacher, temperature), _logs(student, temperature))

    return _by_chunks(of_chunk, chunk, temperature, student, _alike(student, teacher))


def reverse_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, chunk: int = CHUNK) -> Tensor:
    """KL(student || teacher) of each token (tokens,)."""

    def of_chunk(student: Tensor, teacher: Tensor) -> Tensor:
        return _kl(_logs(student, temperature), _logs(teacher, temperature))

    return _by_chunks(of_chunk, chunk, temperature, student, _alike(student, teacher))


def jensen_shannon(
    student: Tensor, teacher: Tensor, *, beta: float = 0.5, temperature: float = 1.0, chunk: int = CHUNK
) -> Tensor:
    """beta KL(teacher || M) + (1 - beta) KL(student || M) of each token (tokens,), at most log 2; 0 < beta < 1.

    At 0 and 1 it vanishes; divided by beta or 1 - beta it goes there to the forward or the reverse divergence.
    """
    if not 0 < beta < 1:
        raise InputError(f"beta is {beta}", "give 0 < beta < 1, or take forward_kl or reverse_kl")

    def of_chunk(student: Tensor, teacher: Tensor) -> Tensor:
        s, t = _logs(student, temperature), _logs(teacher, temperature)
        # Where neither has any probability the gradient of logaddexp is 0 / 0; such places count nowhere.
        possible = (s > -torch.inf) | (t > -torch.inf)
        mixture = torch.logaddexp((t + log(beta)).where(possible, 0.0), (s + log1p(-beta)).where(possible, 0.0))
        return beta * _kl(t, mixture) + (1 - beta) * _kl(s, mixture)

    return _by_chunks(of_chunk, chunk, temperature, student, _alike(student, teacher))


def top_k_forward_kl(
    student: Tensor, ids: Tensor, logprobs: Tensor, *, temperature: float = 1.0, chunk: int = CHUNK
) -> Tensor:
    """KL(teacher || student) of each token (tokens,) where only k of the teacher's probabilities were kept.

    sum over the k of T_v (log T_v - log S_v) + T_rest (log T_rest - log S_rest): all other tokens are one, whose
    probability is what is left. By the log sum inequality this is at most the full divergence, and equal to it for
    k = vocabulary. Dropping the rest instead, or scaling the k up to 1, would move the minimum.

    `ids` (tokens, k), different in a row; `logprobs` (tokens, k) at that `temperature`, over the whole vocabulary.
    """
    if ids.shape != logprobs.shape or ids.dim() != 2 or ids.shape[1] > student.shape[-1]:
        shapes = f"{tuple(ids.shape)} and {tuple(logprobs.shape)}"
        raise InputError(f"ids and log-probabilities of shapes {shapes} do not fit", "give both as (tokens, k)")
    return _by_chunks(partial(_top_k, temperature), chunk, temperature, student, ids, logprobs)


def _top_k(temperature: float, student: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
    s, t, ids = _logs(student, temperature), _wide(logprobs), ids.long()
    if ids.shape[1] == s.shape[1]:
        return _kl(t, s.gather(1, ids))
    # Summed rather than subtracted from 1, where float32 would leave nothing of a small rest.
    s_rest = s.scatter(1, ids, -torch.inf).logsumexp(dim=1, keepdim=True)
    t_rest = (1 - t.exp().sum(dim=1, keepdim=True)).clamp(min=0).log()
    return _kl(torch.cat([t, t_rest], dim=1), torch.cat([s.gather(1, ids), s_rest], dim=1))


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """sum p (log p - log q) over the last dimension, of logarithms; 0 log 0 is 0."""
    return (p.exp() * (p - q).where(p > -torch.inf, 0.0)).sum(dim=-1)


def _logs(logits: Tensor, temperature: float) -> Tensor:
    return (_wide(logits) / temperature).log_softmax(dim=-1)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _alike(student: Tensor, teacher: Tensor) -> Tensor:
    """The teacher; a vocabulary of another size would be broadcast, or compare one token with another."""
    if student.shape != teacher.shape:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise InputError(
            f"logits of shapes {shapes} do not fit", "give both as (tokens, vocabulary), of one vocabulary"
        )
    return teacher


def _by_chunks(
    of_chunk: Callable[..., Tensor], chunk: int, temperature: float, student: Tensor, *teacher: Tensor
) -> Tensor:
    if not temperature > 0:
        raise InputError(f"the temperature is {temperature}", "give a number above 0")
    if chunk < 1:
        raise InputError(f"{chunk} tokens at a time are none", "give chunk, at least 1")
    if student.dim() != 2 or any(len(each) != len(student) for each in teacher):
        raise InputError("student and teacher do not have the same tokens", "give logits as (tokens, vocabulary)")
    result: Tensor = _Chunks.apply(student, of_chunk, chunk, *teacher)  # type: ignore[no-untyped-call]
    return result


class _Chunks(torch.autograd.Function):
    """A function of rows, computed a chunk at a time, and computed again for the gradient instead of kept."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, of_chunk: Callable[..., Tensor], chunk: int, *teacher: Tensor) -> Tensor:
        ctx.save_for_backward(student, *teacher)
        ctx.of_chunk, ctx.chunk = of_chunk, chunk
        values = [
            of_chunk(*rows) for rows in zip(*(torch.split(each, chunk) for each in (student, *teacher)), strict=True)
        ]
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, *teacher = ctx.saved_tensors
        gradient = torch.empty_like(student)
        for start in range(0, len(student), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            with torch.enable_grad():
                part = student[rows].detach().requires_grad_()
                value = ctx.of_chunk(part, *(each[rows].detach() for each in teacher))
            (gradient[rows],) = torch.autograd.grad(value, part, upstream[0][rows])
        return gradient, None, None, *(None for _ in teacher)

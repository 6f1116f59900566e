"""Texts that are measured, not continued: log-probabilities of their tokens, and vectors of the whole.

    score_i = log p(token_i | tokens before it)        vector = mean_i h_i / |mean_i h_i|

with h_i the last hidden state of token i, after the model's last norm. Both work on the scheduler's cache between two
of its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ponder.engine.sampling import likeliest, log_softmax_at
from ponder.errors import EngineError, InputError, Unsupported
from ponder.protocols import LogProbs

if TYPE_CHECKING:
    from ponder.engine.lines import Rows
    from ponder.engine.scheduler import Scheduler

SCORED_A_BATCH = 64
"""Tokens scored at a time: llama.cpp keeps a row of logits for each of them."""


def score(
    scheduler: Scheduler, ids: Sequence[int], start: int, adapters: tuple[float, ...], top: int = 0
) -> LogProbs | None:
    """Log-probabilities of `ids[start:]`, start >= 1; None where there is no room before the next step.

    top: how many of the likeliest tokens are told at each place. None, too, where it was aborted. Raises
    ContextOverflow for what would never fit, and EngineError.
    """
    scores, tops = list[float](), list[tuple[tuple[int, float], ...]]()
    backend = scheduler.backend
    with scheduler.lent(ids, adapters, start - 1) as lent:
        if lent is None:
            return None
        slot, cached = lent
        size = min(SCORED_A_BATCH, backend.batch)
        for begin in range(cached, len(ids) - 1, size):
            end = min(begin + size, len(ids) - 1)
            rows = [(ids[at], at, slot.number, at >= start - 1) for at in range(begin, end)]
            if not scheduler.compute(rows, [slot]):
                return None
            slot.tokens.extend(row[0] for row in rows)
            for row, (_, at, _, wanted) in enumerate(rows):
                if wanted:
                    logits = backend.logits(row)
                    scores.append(log_softmax_at(logits, ids[at + 1]))
                    tops += [tuple(likeliest(logits, top))] if top else []
    return LogProbs(scores, max(0, len(ids) - 1 - cached), tops)


def embed(scheduler: Scheduler, ids: Sequence[int], adapters: tuple[float, ...]) -> list[float] | None:
    """The vector of `ids`, of length 1; None as for `score`. What was computed for it is not kept.

    Raises ContextOverflow for what would never fit, Unsupported where the backend has no hidden states, EngineError.
    """
    compute, width = getattr(scheduler.backend, "embed", None), getattr(scheduler.backend, "width", 0)
    if compute is None or not width:
        raise Unsupported("this model gives no vectors", "take a model that generates text, in a GGUF file")
    if not ids:
        raise InputError("an empty text has no vector", "leave it out")
    total = np.zeros(width, np.float64)
    found: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = []

    def decode(rows: Rows) -> int:
        code, hidden = compute(rows)
        found[:] = [hidden]
        return int(code)

    with scheduler.lent(ids, adapters, 0) as lent:
        if lent is None:
            return None
        slot, _ = lent
        try:
            for begin in range(0, len(ids), scheduler.backend.batch):
                end = min(begin + scheduler.backend.batch, len(ids))
                rows = [(ids[at], at, slot.number, True) for at in range(begin, end)]
                if not scheduler.compute(rows, [slot], decode):
                    return None
                slot.tokens.extend(row[0] for row in rows)
                total += found[0].sum(axis=0, dtype=np.float64)
        finally:
            scheduler.forget(slot)
    length = float(np.linalg.norm(total))
    if not length or not np.isfinite(length):
        raise EngineError("the model computed no numbers", "lower the adapters' scales, or fetch the weights again")
    vector: list[float] = (total / length).astype(np.float32).tolist()
    return vector

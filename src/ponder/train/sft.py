"""Supervised fine-tuning on traces: the cold start.

    loss = - 1/N sum_t log p(y_t | x, y_<t)        N: the tokens of the whole batch that are learnt from

Prompts are not learnt from. Without a cold start, reinforcement learning of a small model has nothing to reinforce.

Source: DeepSeek-AI, DeepSeek-R1 (2025), section 2.3.1, cold start.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ponder.errors import InputError
from ponder.train.batches import batch
from ponder.train.rows import Pack, Row
from ponder.train.scorer import at_targets
from ponder.train.trainer import Trainer


def sft(trainer: Trainer, rows: Sequence[Row], size: int) -> None:
    """Trains on `size` rows a step. Raises InputError where nothing can be learnt, and what `Trainer` raises."""
    rows = [row for row in rows if row.learnt]
    if not rows:
        raise InputError("no example has anything to learn from", "Give examples with an answer")
    for step in trainer.steps():
        chosen = [rows[at] for at in batch(len(rows), size, step, trainer.seed)]
        total = sum(row.learnt for row in chosen)

        def loss(logprobs: Tensor, pack: Pack, total: int = total) -> tuple[Tensor, dict[str, Tensor]]:
            return -logprobs.sum() / total, {}

        trainer.update(chosen, at_targets, loss)

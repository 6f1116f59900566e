"""Distillation: a student learns to say what its teacher would.

    loss = 1/N sum_t D(teacher(. | x, y_<t), student(. | x, y_<t))        N: the learnt tokens of the whole batch

Three ways, of which the first takes no loop of its own:

    traces          y: a teacher's traces that a verifier found right, as rows for `sft` (`taught`)
    distributions   y: the dataset's; D: forward or reverse KL, or Jensen-Shannon
    on-policy       y: the student's own samples, so that it learns where it goes itself

A share of the rows can be on-policy and the others the dataset's. No gradient goes through sampling.

Sources: Kim and Rush, Sequence-Level Knowledge Distillation (2016); Yuan et al., Scaling Relationship on Learning
Mathematical Reasoning (2023), rejection sampling; Agarwal et al., On-Policy Distillation of Language Models (2024),
algorithm 1 (lambda is `share`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch import Tensor

from ponder.errors import InputError
from ponder.train.batches import batch
from ponder.train.rows import Pack, Row, check_fit
from ponder.train.teacher import Teacher
from ponder.train.texts import Texts
from ponder.train.trainer import Trainer
from ponder.train.verified import Verified

Sampler = Callable[[Sequence[Sequence[int]], int], Sequence[tuple[Sequence[int], Sequence[int]]]]
"""From prompts and the number of the step to (prompt, completion) for each of them, by the student as it is now.

All processes get the same prompts and give the same completions; the same step samples the same again.
"""

COIN = 0x636F696E
"""Beside the run's seed and the step: what draws which rows are on-policy draws nothing else."""


def distill(
    trainer: Trainer,
    rows: Sequence[Row],
    size: int,
    teacher: Teacher,
    *,
    sample: Sampler | None = None,
    share: float = 1.0,
) -> None:
    """Trains on `size` rows a step; with `sample`, each is with probability `share` the student's own answer.

    The prompt of a row is what stands before its first learnt token; a row that is all prompt can only be answered by
    the student, so there are such rows for a share of 1 alone. Raises InputError where there is nothing to learn
    from, and what `Trainer` raises.
    """
    if not 0 <= share <= 1:
        raise InputError(f"a share of {share} of the rows cannot be the student's", "Give a number from 0 to 1")
    own = share if sample is not None else 0.0
    numbers = [at for at, row in enumerate(rows) if own == 1 or row.learnt]
    if not numbers:
        raise InputError("no example has anything to learn from", "Give examples with an answer, or share = 1")
    check_fit(rows, trainer.tokens)
    for step in trainer.steps():
        chosen = [numbers[at] for at in batch(len(numbers), size, step, trainer.seed)]
        heads = np.random.default_rng([COIN, trainer.seed, step]).random(size) < own
        lesson = [rows[at] for at, mine in zip(chosen, heads, strict=True) if not mine]
        sources: list[int | None] = [at for at, mine in zip(chosen, heads, strict=True) if not mine]
        if sample is not None and heads.any():
            prompts = [_prompt(rows[at]) for at, mine in zip(chosen, heads, strict=True) if mine]
            answers = _sampled(sample, prompts, step)
            lesson += answers
            sources += [None] * len(answers)
            trainer.log(sampled_length=sum(row.learnt for row in answers) / len(prompts))
        if lesson:
            _step(trainer, lesson, sources, teacher)


def _step(trainer: Trainer, rows: Sequence[Row], sources: Sequence[int | None], teacher: Teacher) -> None:
    total = sum(row.learnt for row in rows)
    lesson, reduce = teacher.lesson(rows, sources)

    def loss(divergence: Tensor, pack: Pack) -> tuple[Tensor, dict[str, Tensor]]:
        return divergence.sum() / total, {}

    trainer.update(lesson, reduce, loss)


def distance(trainer: Trainer, rows: Sequence[Row], teacher: Teacher) -> float:
    """The mean over the learnt tokens of rows: what `distill` would call its loss; nothing is learnt."""
    lesson, reduce = teacher.lesson(rows, list(range(len(rows))))
    total = sum(row.learnt for row in rows)
    if not total:
        raise InputError("no example has anything to compare", "Give examples with an answer")
    return sum(float(value.double().sum()) for value in trainer.scored(lesson, reduce)) / total


def _prompt(row: Row) -> list[int]:
    """What stands before the first token that is learnt, which is never the very first one."""
    first = next((at for at in range(1, len(row)) if row.mask[at]), len(row))
    return list(row.ids[:first])


def _sampled(sample: Sampler, prompts: Sequence[Sequence[int]], step: int) -> list[Row]:
    """The student's answers that have a token."""
    found = sample(prompts, step)
    if len(found) != len(prompts):
        raise ValueError(f"the sampler gave {len(found)} completions for {len(prompts)} prompts")
    return [
        Row([*prompt, *said], [False] * len(prompt) + [True] * len(said)) for prompt, said in found if prompt and said
    ]


# ---------------------------------------------------------------- traces that are right


def taught(samples: Iterable[Verified], texts: Texts, *, threshold: float = 1.0, most: int | None = None) -> list[Row]:
    """Rows for `sft` from samples that score at least `threshold`: rejection sampling, from any teacher.

    They are written as the student's own turns (`texts`), so the vocabularies may differ. The same text counts once a
    question, and a question at most `most` times, so that the easy ones do not drown the others; answers that were
    cut off are left out.
    """
    rows, seen, counts = [], set(), Counter[str]()
    for question, sample, score, _ in samples:
        key = repr(question.messages)
        text = (key, sample.thinking, sample.answer)
        if not score >= threshold or sample.finish != "stop" or not sample.answer or text in seen:
            continue
        if most is not None and counts[key] >= most:
            continue
        seen.add(text)
        counts[key] += 1
        rows.append(texts.row(question.messages, sample.thinking, sample.answer))
    return rows

"""Distillation as a kind of training: from traces, from a teacher's distributions, on the student's own samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ponder.data.examples import of_question
from ponder.engine.torch_load import Loaded, load
from ponder.train import sources
from ponder.train.distill import Sampler, distill, taught
from ponder.train.kinds import Dataset, Lesson, example_rows, fitting, scored_samples, sft
from ponder.train.recipe import STORED, Distill, Recipe
from ponder.train.rows import Row
from ponder.train.sampling import sampler_of
from ponder.train.teacher import Divergence, Present, Stored, Teacher, common_words
from ponder.train.texts import Texts


def rows(recipe: Recipe, start: Loaded) -> Dataset:
    """A row for each example, for each right trace, or, where the student samples all, for each question."""
    told, texts = _told(recipe), Texts.of(start)
    if told.way == "traces":
        threshold = 1.0 if told.threshold is None else told.threshold
        found, counts = scored_samples(recipe)
        return fitting(recipe, taught(found, texts, threshold=threshold, most=told.most), (), **counts)
    if told.on_policy < 1:
        return example_rows(recipe, start)
    asked, hits = sources.kept_out(sources.questions(recipe.data.sources), recipe.data.keep_out, of_question)
    prompts = [texts.prompt(question.messages) for question in asked]
    rows = [Row(prompt, [False] * len(prompt)) for prompt in prompts]
    return fitting(recipe, rows, (), **({"kept_out": hits} if recipe.data.keep_out else {}))


def train(lesson: Lesson) -> None:
    """Learns from the teacher."""
    told = _told(lesson.recipe)
    if told.way == "traces":
        sft(lesson)
        return
    sample = _sampler(lesson, told) if told.on_policy else None
    distill(
        lesson.trainer, lesson.items, lesson.recipe.size, _teacher(lesson, told), sample=sample, share=told.on_policy
    )


def _told(recipe: Recipe) -> Distill:
    assert recipe.distill is not None
    return recipe.distill


def _teacher(lesson: Lesson, told: Distill) -> Teacher:
    assert told.teacher is not None
    assert told.way != "traces"
    if told.teacher.endswith(STORED):
        return Stored(Path(told.teacher), lesson.items)
    device = lesson.trainer.devices.device
    teacher = load(told.teacher, dtype=lesson.recipe.weights, device=device)
    divergence = Divergence(told.way, told.mixture or 0.5, told.temperature)
    words = common_words(lesson.start, teacher)
    return Present(teacher.model, divergence, words=words, precision=lesson.trainer.precision)


def _sampler(lesson: Lesson, told: Distill) -> Sampler:
    """The student, as it is at each step. Every process samples the same, from the same seeds."""
    from ponder.engine.torch_sampler import Job

    assert told.max_tokens is not None
    most = told.max_tokens
    sampler = sampler_of(
        lesson.start, lesson.texts, lesson.recipe.longest + most, told.slots, dtype=lesson.trainer.precision
    )

    def sample(prompts: Sequence[Sequence[int]], step: int) -> list[tuple[Sequence[int], Sequence[int]]]:
        seeds = [_seed(lesson.trainer.seed, step, number) for number in range(len(prompts))]
        jobs = [Job(tuple(prompt), 1, most, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return [(job.prompt, drawn.ids) for job, (drawn,) in zip(jobs, sampler.sample(jobs), strict=True)]

    return sample


def _seed(*numbers: int) -> int:
    digest = hashlib.sha256(",".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2

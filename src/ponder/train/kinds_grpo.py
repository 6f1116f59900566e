"""Reinforcement learning as a kind of training: questions, who samples, and what answers earn."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import torch

from ponder.chat.model import Model, model_of
from ponder.data.examples import of_question
from ponder.engine.torch_load import Loaded
from ponder.errors import InputError
from ponder.protocols import bound
from ponder.train import sources, tool_use
from ponder.train.grpo import Settings, grpo
from ponder.train.kinds import Dataset, Lesson
from ponder.train.loop import run
from ponder.train.recipe import Grpo, Recipe
from ponder.train.rewards import Rewarded, Rewards
from ponder.train.rollout import Rollout, Rollouts, local, remote
from ponder.train.sampling import sampler_of
from ponder.train.texts import Texts
from ponder.train.tools import tools_named
from ponder.train.trainer import Trainer
from ponder.verifiers.naming import verifier_named

LOCAL = "local"


def questions(recipe: Recipe, start: Loaded) -> Dataset:
    """The questions whose prompt is not too long. Raises InputError where the recipe's tools cannot be used."""
    told = _told(recipe)
    texts = _texts(told, start)
    if told.tools:
        tool_use.check(tools_named(told.tools), texts)
    asked = sources.questions(recipe.data.sources)
    found, hits = sources.kept_out(asked, recipe.data.keep_out, of_question)
    budget = max(told.budgets, default=None)
    lengths = [len(texts.prompt(question.messages, budget=budget)) for question in found]
    kept = [question for question, length in zip(found, lengths, strict=True) if length <= recipe.longest]
    if not kept:
        raise InputError(f"no prompt has at most {recipe.longest} tokens: {min(lengths)} at least", "Raise longest")
    counts = {"questions": len(kept), "left_out_as_too_long": len(found) - len(kept)}
    return Dataset(kept, counts | ({"kept_out": hits} if recipe.data.keep_out else {}))


def train(lesson: Lesson) -> None:
    """Learns from answers that earn more than others to the same question."""
    told = _told(lesson.recipe)
    texts = _texts(told, lesson.start)
    judge = _judge(told)
    rollouts, refresh = _rollouts(lesson, told, texts)
    rewards = rewards_of(told, judge)
    if told.tools:
        tools = tools_named(told.tools)
        rollouts = tool_use.with_tools(rollouts, tools, texts, turns=told.turns, least=_least(told, texts))
        rewards = Counting(**vars(rewards), to=lesson.trainer)
    grpo(
        lesson.trainer,
        lesson.items,
        texts,
        rollouts,
        rewards,
        settings_of(told),
        reference=getattr(lesson.start.model, "disable_adapter", None),
        process=bound(verifier_named(told.process_reward), judge) if told.process_reward else None,
        refresh=refresh,
    )


def settings_of(told: Grpo) -> Settings:
    """The settings of the loop: those of the recipe that it knows, and its own where the recipe says nothing."""
    names = {each.name for each in fields(Settings)}
    given = {name: value for name, value in dict(told).items() if name in names}
    return Settings(**{name: value for name, value in given.items() if name != "ceiling" or value is not None})


def rewards_of(told: Grpo, judge: Model | None = None) -> Rewards:
    """What an answer earns; verifiers that ask a model ask `judge`."""
    verifiers = {text: (bound(verifier_named(text), judge), weight) for text, weight in told.rewards.items()}
    return Rewards(verifiers, told.length_reward, told.alpha, told.delta, told.overlong)


@dataclass(frozen=True)
class Counting(Rewards):
    """Rewards that put into a step's line how often a sample called tools, and in vain: means over all its rounds.

    Counted where rewards are, since rollouts that a resume finds on disk come by here, too.
    """

    to: Trainer = field(kw_only=True)
    counts: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter), kw_only=True)

    def of(self, rollouts: Sequence[Rollout]) -> list[Rewarded]:
        count = self.counts[self.to.step]
        count["samples"] += len(rollouts)
        count["calls"] += sum(each.calls for each in rollouts)
        count["failed_calls"] += sum(each.failed for each in rollouts)
        self.to.log(**{name: count[name] / count["samples"] for name in ("calls", "failed_calls")})
        return super().of(rollouts)


def _judge(told: Grpo) -> Model | None:
    if told.judge is None:
        return None
    from ponder.engine import open_engine

    return model_of(run(open_engine(told.judge, adapters=told.judge_adapters)))


def _told(recipe: Recipe) -> Grpo:
    return recipe.grpo or Grpo()


def _texts(told: Grpo, start: Loaded) -> Texts:
    """How conversations are written down: with the tools in them, where the model's template shows tools."""
    texts = Texts.of(start)
    return tool_use.telling(texts, tools_named(told.tools)) if told.tools else texts


def _least(told: Grpo, texts: Texts) -> int:
    """Tokens that a turn needs: the sampler keeps some for closing the thinking and for an answer."""
    bounded = told.rollouts == LOCAL and texts.format.trained
    return len(texts.encode(texts.format.closing)) + told.answer if bounded else 1


def _rollouts(lesson: Lesson, told: Grpo, texts: Texts) -> tuple[Rollouts, Callable[[], None]]:
    """Who samples, and what to call after each step of the optimiser."""
    if told.rollouts != LOCAL:
        from ponder.engine import open_engine

        engine = run(open_engine(told.rollouts))
        if not engine.capabilities.tokens:
            raise InputError(f"{told.rollouts} deals in messages, and rollouts need tokens", "Serve it with vLLM, say")
        return remote(engine, texts, temperature=told.temperature, at_once=told.slots), lambda: None
    trained = texts.format.trained
    if (told.thinking or told.budgets) and not trained:
        raise InputError("the model has no markers of thinking, so that cannot be bounded", 'Set thinking = "ponder"')
    answer = told.answer if trained else None
    context = lesson.recipe.longest + told.max_tokens
    dtype = getattr(torch, lesson.recipe.precision)
    sampler = sampler_of(
        lesson.start, texts, context, told.slots, temperature=told.temperature, answer=answer, dtype=dtype
    )
    return local(sampler, texts), sampler.refresh

"""Verified traces of a model's own: what rejection sampling keeps, and what reward models are taught with.

    question -> n samples -> score of each -> trace on disk        RFT: learn from those that are right
    prefix up to the end of step k -> m completions -> label of k = share that is right        Math-Shepherd

Sampled in bulk, by whoever samples rollouts. A file of traces grows a part at a time, and a run that was killed goes on
after its last whole part. Steps after the first wrong equation are labelled 0 without asking.

Sources: Yuan et al., Scaling Relationship on Learning Mathematical Reasoning (2023), rejection sampling fine-tuning;
Wang et al., Math-Shepherd (2024), section 3.3, soft estimation.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ponder.errors import InputError
from ponder.train.grpo import step_places
from ponder.train.rewards import Rewarded, Rewards
from ponder.train.rollout import Ask, Rollout, Rollouts
from ponder.train.run import writing
from ponder.train.texts import Texts
from ponder.train.verified import LABELS
from ponder.types import Cost, Provenance, Question, Sample, SampleFinished, Score, Scored, Trace, from_json, to_json
from ponder.verifiers.arithmetic_steps import equations
from ponder.verifiers.reward_model import step_ends

MOST_STEPS = 16


@dataclass(frozen=True)
class Harvest:
    """What was found: questions, samples, right ones, labelled steps, tokens sampled."""

    questions: int = 0
    samples: int = 0
    right: int = 0
    steps: int = 0
    tokens: int = 0

    def __add__(self, other: Harvest) -> Harvest:
        return Harvest(
            self.questions + other.questions,
            self.samples + other.samples,
            self.right + other.right,
            self.steps + other.steps,
            self.tokens + other.tokens,
        )


def harvest(
    path: Path,
    asks: Sequence[Ask],
    rollouts: Rollouts,
    rewards: Rewards,
    texts: Texts,
    *,
    model: str,
    completions: int = 0,
    part: int = 256,
    shown: Callable[[int, int, Harvest], None] = lambda done, total, found: None,
) -> Harvest:
    """Appends a trace for each ask to the file at `path`, `part` asks at a time; what is there is not asked again.

    completions: how many label each step; 0 for no labels. model: the name that the traces give it. Raises InputError
    for a file that holds other traces, TrainingError for a full disk.
    """
    done, found = _there(path, asks)
    shown(done, len(asks), found)
    while done < len(asks):
        chosen = asks[done : done + part]
        flat = rewards.of([rollout for group in rollouts(chosen) for rollout in group])
        labels = _labels(flat, rollouts, rewards, texts, completions) if completions else [None] * len(flat)
        traces, at = [], 0
        for ask in chosen:
            traces.append(_trace(ask, flat[at : at + ask.n], labels[at : at + ask.n], model))
            at += ask.n
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write("".join(to_json(trace) + "\n" for trace in traces))
            file.flush()
            os.fsync(file.fileno())
        done += len(chosen)
        found += sum((_counted(trace) for trace in traces), Harvest())
        shown(done, len(asks), found)
    return found


# ---------------------------------------------------------------- labels of steps


def _labels(
    flat: Sequence[Rewarded], rollouts: Rollouts, rewards: Rewards, texts: Texts, completions: int
) -> list[Score | None]:
    """The labels of each sample's steps, with the tokens that they took; None for a sample without a step."""
    values: list[list[float]] = []
    spent = [0] * len(flat)
    asks: list[Ask] = []
    places: list[tuple[int, int]] = []
    for number, one in enumerate(flat):
        sample = one.rollout.sample
        ends = step_places(texts, one.rollout, MOST_STEPS) if sample.text else []
        fine = _fine(sample, len(ends))
        values.append([0.0] * len(ends))
        for step, end in enumerate(ends[:fine]):
            ask = _going_on(one.rollout, end + 1, completions, step)
            if ask is None:  # nothing is left to go on with: the step is as good as what came of it
                values[number][step] = float(one.correct)
            else:
                asks.append(ask)
                places.append((number, step))
    groups = rollouts(asks) if asks else []
    begun = [flat[number].rollout.sample for number, _ in places]
    judged = rewards.of(
        [_whole(rollout, first, texts) for first, group in zip(begun, groups, strict=True) for rollout in group]
    )
    for at, (number, step) in enumerate(places):
        mine = judged[at * completions : (at + 1) * completions]
        values[number][step] = sum(one.correct and one.rollout.sample.finish == "stop" for one in mine) / completions
        spent[number] += sum(one.rollout.length for one in mine)
    costs = [Cost(verifier=tokens) for tokens in spent]
    return [
        Score(min(steps), LABELS, steps=tuple(steps), cost=cost) if steps else None
        for steps, cost in zip(values, costs, strict=True)
    ]


def _fine(sample: Sample, steps: int) -> int:
    """How many of the first steps have no wrong equation."""
    begin = 0
    for number, end in enumerate(step_ends(sample.text, sample.spans, MOST_STEPS)[:steps]):
        if not all(equations(sample.text[begin:end])):
            return number
        begin = end
    return steps


def _going_on(rollout: Rollout, length: int, completions: int, step: int) -> Ask | None:
    ask, ids = rollout.ask, rollout.sample.ids[:length]
    left = ask.max_tokens - length
    if left < 1:
        return None
    thinking = None if ask.thinking is None else max(1, ask.thinking - length)
    digest = hashlib.sha256(f"{ask.seed},{rollout.sample.index},{step}".encode()).digest()
    seed = int.from_bytes(digest[:8], "big") >> 2
    return replace(ask, prompt=(*ask.prompt, *ids), n=completions, max_tokens=left, thinking=thinking, seed=seed)


def _whole(rollout: Rollout, begun: Sample, texts: Texts) -> Rollout:
    """A completion, read together with the beginning of the sample that it completes."""
    sample, prompt = rollout.sample, begun.prompt_ids
    before = sample.prompt_ids[len(prompt) :]
    unknown = (None,) * len(before)
    whole = replace(
        sample,
        prompt_ids=prompt,
        ids=(*before, *sample.ids),
        mask=((False,) * len(before) + sample.mask),
        logprobs=(*unknown, *sample.logprobs),
    )
    drawn = (*(math.nan for _ in before), *rollout.drawn)
    return replace(rollout, sample=texts.read(whole), drawn=drawn)


# ---------------------------------------------------------------- traces


def _trace(ask: Ask, group: Sequence[Rewarded], labels: Sequence[Score | None], model: str) -> Trace:
    events: list[SampleFinished | Scored] = []
    scores: list[Score] = []
    for index, one in enumerate(group):
        chosen = sum(one.rollout.sample.mask)
        events.append(SampleFinished(one.rollout.sample, Cost(answer=chosen, calls=1)))
        label = labels[index]
        mine = [*one.scores.values(), *([label] if label else [])]
        events += [Scored(score, index, score.cost) for score in mine]
        scores += mine
    best = max(group, key=lambda one: one.reward, default=None)
    return Trace(
        _identity(ask, model),
        ask.question,
        answer=best.rollout.sample.answer if best else "",
        cost=sum((event.cost for event in events), Cost()),
        samples=tuple(one.rollout.sample for one in group),
        scores=tuple(scores),
        events=tuple(events),
        provenance=Provenance(
            model, strategy="harvest", settings={"n": ask.n, "max_tokens": ask.max_tokens}, seed=ask.seed
        ),
    )


def _identity(ask: Ask, model: str) -> str:
    said = json.dumps([model, ask.prompt, ask.n, ask.max_tokens, ask.thinking, ask.seed])
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def _there(path: Path, asks: Sequence[Ask]) -> tuple[int, Harvest]:
    """How many of the asks the file already answers; what was cut short at its end is dropped."""
    if not path.exists():
        return 0, Harvest()
    done, found, good = 0, Harvest(), 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                trace = from_json(Trace, line.decode())
            except ValueError:
                break
            if done >= len(asks) or trace.question != asks[done].question or len(trace.samples) != asks[done].n:
                raise InputError(f"{path} holds traces of other questions", "Give another file, or remove this one")
            done, found, good = done + 1, found + _counted(trace), good + len(line)
    with writing(path), path.open("r+b") as file:
        file.truncate(good)
    return done, found


def _counted(trace: Trace) -> Harvest:
    firsts = {event.sample: event.score for event in reversed(trace.events) if isinstance(event, Scored)}
    return Harvest(
        1,
        len(trace.samples),
        sum(score.value >= 0.999 for score in firsts.values() if score.verifier != LABELS),
        sum(len(score.steps) for score in trace.scores if score.verifier == LABELS),
        trace.cost.generated,
    )


def questions_asked(questions: Sequence[Question], texts: Texts, n: int, max_tokens: int, seed: int = 0) -> list[Ask]:
    """An ask of `n` samples for each question, thinking."""
    asks = []
    for number, question in enumerate(questions):
        digest = hashlib.sha256(f"{seed},{number}".encode()).digest()
        prompt = tuple(texts.prompt(question.messages))
        asks.append(Ask(question, prompt, n, max_tokens, seed=int.from_bytes(digest[:8], "big") >> 2))
    return asks

"""Rollouts: answers of the policy to be learnt from, token for token, with what they were drawn at.

    Ask -> Rollouts -> Rollout          a prompt and how often; who samples; what was said

Who samples is a function: the sampler that reads the weights in training (`local`), any engine that deals in tokens,
such as a vLLM server (`remote`), either of them with tools between the turns (`with_turns`). What ponder or a tool
wrote into a sample is in its tokens, and its mask says that the policy did not choose it.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ponder.errors import TrainingError
from ponder.protocols import Engine, SamplingParams, closing
from ponder.train.loop import run
from ponder.train.run import writing
from ponder.train.texts import Texts
from ponder.types import Finish, Question, Sample

if TYPE_CHECKING:
    from ponder.engine.torch_sampler import Sampler


@dataclass(frozen=True)
class Ask:
    """A prompt to be continued `n` times.

    thinking: tokens after which the thinking is closed, None for no bound but max_tokens. told: the budget that the
    prompt tells the model, where it tells one. seed: of sample 0; sample i draws its own numbers.
    """

    question: Question
    prompt: tuple[int, ...]
    n: int
    max_tokens: int
    thinking: int | None = None
    told: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Rollout:
    """A sample, and the log-probability of each token where it was drawn, at its temperature; NaN where unknown."""

    ask: Ask
    sample: Sample
    drawn: tuple[float, ...]

    @property
    def length(self) -> int:
        """Tokens that the policy chose."""
        return sum(self.sample.mask)


class Rollouts(Protocol):
    """Samples each ask n times; the order is the asks'."""

    def __call__(self, asks: Sequence[Ask]) -> list[list[Rollout]]: ...


class Environment(Protocol):
    """What answers the policy: a tool, a user, a world. None ends the sample."""

    async def __call__(self, question: Question, sample: Sample) -> str | None: ...


# ---------------------------------------------------------------- who samples


def local(sampler: Sampler, texts: Texts) -> Rollouts:
    """The sampler that reads the weights in training."""
    from ponder.engine.torch_sampler import Job

    def sample(asks: Sequence[Ask]) -> list[list[Rollout]]:
        jobs = [Job(ask.prompt, ask.n, ask.max_tokens, ask.thinking, ask.seed) for ask in asks]
        found = []
        for ask, drawn in zip(asks, sampler.sample(jobs), strict=True):
            group = []
            for index, one in enumerate(drawn):
                said = Sample(index, "", ask.prompt, one.ids, one.mask, one.logprobs, one.finish)
                group.append(Rollout(ask, texts.read(said), _numbers(one.tempered)))
            found.append(group)
        return found

    return sample


def remote(engine: Engine, texts: Texts, *, temperature: float = 1.0, at_once: int = 64) -> Rollouts:
    """Any engine that deals in tokens. `drawn` are its own log-probabilities, at temperature 1; NaN where it has none.

    The weights there are whatever the server holds, and its arithmetic is its own: correct for both with importance
    weights.
    """

    def sample(asks: Sequence[Ask]) -> list[list[Rollout]]:
        return run(_sampled(asks))

    async def _sampled(asks: Sequence[Ask]) -> list[list[Rollout]]:
        gate = asyncio.Semaphore(at_once)

        async def one(ask: Ask) -> list[Rollout]:
            async with gate:
                return await _continued(engine, texts, ask, temperature)

        return list(await asyncio.gather(*map(one, asks)))

    return sample


async def _continued(engine: Engine, texts: Texts, ask: Ask, temperature: float) -> list[Rollout]:
    first = ask.max_tokens if ask.thinking is None else min(ask.thinking, ask.max_tokens)
    pieces = await _drawn(engine, ask.prompt, ask.n, first, temperature, ask.seed)
    written = texts.encode(texts.format.closing)
    rollouts = []
    for index, piece in enumerate(pieces):
        sample = Sample(index, "", ask.prompt, piece.ids, (True,) * len(piece.ids), piece.logprobs, piece.finish)
        left = ask.max_tokens - first
        if piece.finish == "length" and left > 0:
            if _thinks(texts, sample):
                sample = _written(sample, written)
                left -= len(written)
            if left > 0:
                prefix = (*ask.prompt, *sample.ids)
                (more,) = await _drawn(engine, prefix, 1, left, temperature, ask.seed + 1 + index)
                sample = _joined(sample, more.ids, more.logprobs, more.finish)
        rollouts.append(Rollout(ask, texts.read(sample), _numbers(sample.logprobs)))
    return rollouts


def _thinks(texts: Texts, sample: Sample) -> bool:
    """Whether the sample's thinking is still open."""
    if not texts.format.inside(texts.decode(sample.prompt_ids)):
        return False
    spans = texts.read(sample).spans
    return not spans or spans[-1].kind == "thinking"


@dataclass
class _Piece:
    ids: tuple[int, ...] = ()
    logprobs: tuple[float | None, ...] = ()
    finish: Finish = "length"


async def _drawn(
    engine: Engine, prefix: Sequence[int], n: int, most: int, temperature: float, seed: int
) -> list[_Piece]:
    pieces = [_Piece() for _ in range(n)]
    params = SamplingParams(most, temperature=temperature, seed=seed)
    async with closing(engine.sample(prefix, n, params)) as chunks:
        async for chunk in chunks:
            piece = pieces[chunk.index]
            piece.ids += chunk.ids
            piece.logprobs += chunk.logprobs or (None,) * len(chunk.ids)
            piece.finish = chunk.finish or piece.finish
    return pieces


def with_turns(rollouts: Rollouts, environment: Environment, texts: Texts, *, turns: int) -> Rollouts:
    """Samples in at most `turns` turns: after each the environment may write something, and the policy goes on.

    What it writes is in the sample's tokens and not in its mask. All samples' turns are taken together.
    """

    def sample(asks: Sequence[Ask]) -> list[list[Rollout]]:
        found = rollouts(asks)
        for turn in range(1, turns):
            replies = run(_replies(found))
            going = [(g, i, texts.encode(reply)) for g, i, reply in replies if reply is not None]
            asked = []
            for g, i, written in going:
                before = found[g][i].sample
                left = found[g][i].ask.max_tokens - len(before.ids) - len(written)
                prompt = (*before.prompt_ids, *before.ids, *written)
                asked.append(
                    replace(found[g][i].ask, prompt=prompt, n=1, max_tokens=left, seed=_seed(found[g][i], turn))
                )
            fits = [at for at, ask in enumerate(asked) if ask.max_tokens > 0]
            for at, (more,) in zip(fits, rollouts([asked[at] for at in fits]) if fits else (), strict=True):
                g, i, written = going[at]
                found[g][i] = _extended(found[g][i], written, more, texts)
            if not fits:
                break
        return found

    async def _replies(found: list[list[Rollout]]) -> list[tuple[int, int, str | None]]:
        places = [(g, i) for g, group in enumerate(found) for i in range(len(group))]
        said = await asyncio.gather(*(environment(found[g][i].ask.question, found[g][i].sample) for g, i in places))
        return [(g, i, reply) for (g, i), reply in zip(places, said, strict=True)]

    return sample


def _seed(rollout: Rollout, turn: int) -> int:
    return (rollout.ask.seed * 1_000_003 + rollout.sample.index * 101 + turn) % 2**62


def _extended(rollout: Rollout, written: Sequence[int], more: Rollout, texts: Texts) -> Rollout:
    sample = _written(rollout.sample, written)
    joined = _joined(sample, more.sample.ids, more.sample.logprobs, more.sample.finish, more.sample.mask)
    drawn = (*rollout.drawn, *(math.nan for _ in written), *more.drawn)
    return Rollout(rollout.ask, texts.read(joined), drawn)


def _written(sample: Sample, ids: Sequence[int]) -> Sample:
    """The sample with tokens that the policy did not choose."""
    nothing = (None,) * len(ids)
    return replace(
        sample,
        ids=(*sample.ids, *ids),
        mask=(*sample.mask, *(False for _ in ids)),
        logprobs=(*sample.logprobs, *nothing),
    )


def _joined(
    sample: Sample,
    ids: Sequence[int],
    logprobs: Sequence[float | None],
    finish: Finish,
    mask: Sequence[bool] | None = None,
) -> Sample:
    return replace(
        sample,
        ids=(*sample.ids, *ids),
        mask=(*sample.mask, *(mask or (True,) * len(ids))),
        logprobs=(*sample.logprobs, *logprobs),
        finish=finish,
    )


def _numbers(logprobs: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else float(value) for value in logprobs)


# ---------------------------------------------------------------- rollouts that are on disk


def kept(
    rollouts: Rollouts, folder: Path, part: int, *, keeps: bool = True
) -> Callable[[str, Sequence[Ask]], list[list[Rollout]]]:
    """`rollouts`, `part` asks at a time, each part on disk before the next is begun; parts that are there are read.

    Parts are made up alike each time, so what a run that was killed samples again is, to the last bit of its
    arithmetic, what it would have been. `keeps`: whether this process is the one that writes.
    """

    def sample(name: str, asks: Sequence[Ask]) -> list[list[Rollout]]:
        found: list[list[Rollout]] = []
        for number, begin in enumerate(range(0, len(asks), part)):
            path = folder / f"{name}-{number:03d}.jsonl"
            chosen = asks[begin : begin + part]
            groups = _read(path, chosen)
            if groups is None:
                groups = rollouts(chosen)
                if keeps:
                    _write(path, groups)
            found += groups
        return found

    return sample


def _write(path: Path, groups: Sequence[Sequence[Rollout]]) -> None:
    part = path.with_suffix(".part")
    with writing(path):
        part.write_text("".join(json.dumps(_line(g, r)) + "\n" for g, group in enumerate(groups) for r in group))
        os.replace(part, path)


def _line(group: int, rollout: Rollout) -> dict[str, Any]:
    sample = rollout.sample
    return {
        "group": group,
        "question": rollout.ask.question.text,
        "prompt_ids": sample.prompt_ids,
        "told": rollout.ask.told,
        "ids": sample.ids,
        "mask": [int(chosen) for chosen in sample.mask],
        "logprobs": sample.logprobs,
        "drawn": [None if math.isnan(value) else value for value in rollout.drawn],
        "finish": sample.finish,
        "spans": [[span.kind, span.start, span.end] for span in sample.spans],
        "text": sample.text,
        "thinking": sample.thinking,
        "answer": sample.answer,
    }


def _read(path: Path, asks: Sequence[Ask]) -> list[list[Rollout]] | None:
    from ponder.types import Span

    if not path.is_file():
        return None
    groups: list[list[Rollout]] = [[] for _ in asks]
    try:
        for text in path.read_text().splitlines():
            line = json.loads(text)
            ask = asks[line["group"]]
            sample = Sample(
                len(groups[line["group"]]),
                line["text"],
                tuple(line["prompt_ids"]),
                tuple(line["ids"]),
                tuple(bool(chosen) for chosen in line["mask"]),
                tuple(line["logprobs"]),
                line["finish"],
                tuple(Span(*span) for span in line["spans"]),
                line["thinking"],
                line["answer"],
            )
            groups[line["group"]].append(Rollout(ask, sample, _numbers(line["drawn"])))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise TrainingError(f"{path} cannot be read: {error}", "Remove it: it is sampled again") from None
    same = all(
        len(group) == ask.n and all(r.sample.prompt_ids == ask.prompt for r in group)
        for group, ask in zip(groups, asks, strict=True)
    )
    return groups if same else None

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
from ponder.types import Finish, Question, Sample, Span

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
    """A sample, and the log-probability of each token where it was drawn, at its temperature; NaN where unknown.

    calls: of tools that were made for it; failed: those of them that went wrong.
    """

    ask: Ask
    sample: Sample
    drawn: tuple[float, ...]
    calls: int = 0
    failed: int = 0

    @property
    def length(self) -> int:
        """Tokens that the policy chose."""
        return sum(self.sample.mask)


class Rollouts(Protocol):
    """Samples each ask n times; the order is the asks'."""

    def __call__(self, asks: Sequence[Ask]) -> list[list[Rollout]]: ...


@dataclass(frozen=True)
class Reply:
    """What an environment writes after a turn; `calls` and `failed` are as in a rollout.

    turn: whether the policy begins a new turn after it, whose answer alone counts; else it goes on with what it said.
    """

    text: str
    calls: int = 0
    failed: int = 0
    turn: bool = False


class Environment(Protocol):
    """What answers the policy: a tool, a user, a world. None ends the sample.

    turn: what the policy said since it was last answered. All that was before is in its prompt.
    """

    async def __call__(self, question: Question, turn: Sample) -> Reply | None: ...


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


def with_turns(rollouts: Rollouts, environment: Environment, texts: Texts, *, turns: int, least: int = 1) -> Rollouts:
    """Samples in at most `turns` turns: after each the environment may write something, and the policy goes on.

    What it writes is in the sample's tokens and not in its mask. All samples' turns are taken together. max_tokens is
    of all turns and what is written between them: a sample ends where fewer than `least` are left. So is the cap of the
    thinking.
    """

    def sample(asks: Sequence[Ask]) -> list[list[Rollout]]:
        found = rollouts(asks)
        last = {(g, i): rollout for g, group in enumerate(found) for i, rollout in enumerate(group)}
        for turn in range(1, turns):
            replies, asked = {}, {}
            for (g, i), reply in zip(last, run(_replies(list(last.values()))), strict=True):
                if reply is None:
                    continue
                before = found[g][i]
                found[g][i] = replace(before, calls=before.calls + reply.calls, failed=before.failed + reply.failed)
                ask = _further(before, texts.encode(reply.text), turn)
                if ask.max_tokens >= least:
                    replies[g, i], asked[g, i] = reply, ask
            if not asked:
                break
            drawn = rollouts(list(asked.values()))
            last = {place: more for place, (more,) in zip(asked, drawn, strict=True)}
            for (g, i), more in last.items():
                found[g][i] = _extended(found[g][i], replies[g, i], more, texts)
        return found

    async def _replies(turns: Sequence[Rollout]) -> list[Reply | None]:
        return list(await asyncio.gather(*(environment(each.ask.question, each.sample) for each in turns)))

    return sample


def _further(rollout: Rollout, written: Sequence[int], turn: int) -> Ask:
    """What asks for one more turn of a rollout, after what was written."""
    ask, sample = rollout.ask, rollout.sample
    return replace(
        ask,
        prompt=(*sample.prompt_ids, *sample.ids, *written),
        n=1,
        max_tokens=ask.max_tokens - len(sample.ids) - len(written),
        thinking=None if ask.thinking is None else max(1, ask.thinking - rollout.length),
        seed=(ask.seed * 1_000_003 + sample.index * 101 + turn) % 2**62,
    )


def _extended(rollout: Rollout, reply: Reply, more: Rollout, texts: Texts) -> Rollout:
    before, turn, written = rollout.sample, more.sample, texts.encode(reply.text)
    joined = _joined(_written(before, written), turn.ids, turn.logprobs, turn.finish, turn.mask)
    if reply.turn:
        ended = before.ids[-1:] if before.ids[-1:] == (texts.end,) else ()  # it is in no text
        joined = _in_turns(joined, before, texts.decode([*ended, *written]), turn)
    else:
        joined = texts.read(joined)
    return replace(rollout, sample=joined, drawn=(*rollout.drawn, *(math.nan for _ in written), *more.drawn))


def _in_turns(joined: Sample, before: Sample, between: str, turn: Sample) -> Sample:
    """`joined`, read turn by turn: the answer is the last one's, and earlier ones' are calls."""
    begin = len(before.text)
    at = begin + len(between)
    spans = [replace(span, kind="tool_call") if span.kind == "answer" else span for span in before.spans]
    spans += [Span("marker", begin, at), *(Span(each.kind, each.start + at, each.end + at) for each in turn.spans)]
    thinking = "\n".join(filter(None, (before.thinking, turn.thinking)))
    text = before.text + between + turn.text
    return replace(joined, text=text, spans=tuple(spans), thinking=thinking, answer=turn.answer)


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
        "calls": rollout.calls,
        "failed": rollout.failed,
    }


def _read(path: Path, asks: Sequence[Ask]) -> list[list[Rollout]] | None:
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
            used = line.get("calls", 0), line.get("failed", 0)  # older runs have written none
            groups[line["group"]].append(Rollout(ask, sample, _numbers(line["drawn"]), *used))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise TrainingError(f"{path} cannot be read: {error}", "Remove it: it is sampled again") from None
    same = all(
        len(group) == ask.n and all(r.sample.prompt_ids == ask.prompt for r in group)
        for group, ask in zip(groups, asks, strict=True)
    )
    return groups if same else None

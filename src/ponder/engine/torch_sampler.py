"""Many samples of many prompts at once, straight from a model in training: what rollouts are made of.

Continuous batching over a fixed number of rows: a prompt is computed once for all of its samples (`torch_prompts`), a
row whose sample ended gets the next one, and at the tail the living rows move together, so that a step computes only
what lives. All but the last token of a prompt is computed beforehand; that one is a step like any other.

Sources: Yu et al., Orca: A Distributed Serving System for Transformer-Based Generative Models (2022), section 3, for
scheduling by step; Muennighoff et al., s1 (2025), section 3, for the closing that is written when thinking is spent.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ponder.engine.torch_decoder import Decoder, fuses, head_dim
from ponder.engine.torch_draw import Filters, key
from ponder.engine.torch_lanes import BROKEN, LIVE, Drawn, Lanes, Start, Thinking
from ponder.engine.torch_projection import packs
from ponder.engine.torch_prompts import Copied, Prompts, Shared
from ponder.errors import BudgetTooSmall, ContextOverflow, EngineError, InputError

__all__ = ["Drawn", "Job", "Sampler", "Thinking"]

PREFILL = {"cpu": 2048, "cuda": 32_768}
"""Tokens of prompts, padding included, that are computed in one batch."""

LOOK = {"cpu": 1, "cuda": 8}
"""Steps between two looks of the host at what has ended."""


@dataclass(frozen=True)
class Job:
    """`n` samples of at most `max_tokens` tokens after `prompt`, `thinking` of them for thinking at most.

    The prompt of a job whose sampler knows how thinking ends lies inside thinking. Sample i of the same seed draws the
    same tokens whatever runs beside it, up to rounding in the arithmetic.
    """

    prompt: tuple[int, ...]
    n: int
    max_tokens: int
    thinking: int | None = None
    seed: int = 0


@dataclass
class _Living:
    """A sample in a lane; `length` bounds the tokens that its row holds, `last` what that can become."""

    job: int
    sample: int
    length: int
    last: int


class Sampler:
    """Draws samples from a model with `slots` rows of `context` tokens.

    end_ids: tokens that end a sample. pieces: the bytes of each token id. dtype: of the arithmetic and the cache, None
    for that of the weights. stop: texts that end a sample with the token that completes them. thinking: how thinking
    ends; None where samples do not think. fold: adds adapters into a copy of the weights. look: steps between two
    looks of the host. share: a prompt lies in memory once for all of its samples, and is not copied to each; None
    does so on processors, where a step is no CUDA graph. `tokens`, `steps` and `seconds` count what was drawn, over
    all runs.

    Samples come from the model's weights as they are when `run` begins. Where copies of them are kept (dtype, fold,
    packed for the processor), a change through torch is noticed; after one behind its back (`.data`), call `refresh`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        end_ids: Sequence[int],
        pieces: Sequence[bytes],
        slots: int,
        context: int,
        dtype: torch.dtype | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        thinking: Thinking | None = None,
        stop: tuple[str, ...] = (),
        fold: bool = False,
        look: int | None = None,
        share: bool | None = None,
    ) -> None:
        weight = next(model.parameters())
        graphs = weight.device.type == "cuda"
        if graphs and share:
            raise ValueError("a captured step takes rows that hold their whole prompts")
        self._decoder = Decoder(
            model,
            slots,
            context,
            dtype=dtype,
            fold=fold,
            pack=packs(weight.device, dtype or weight.dtype),
            fused=graphs and _kernels_here(model),
            share=not graphs if share is None else share,
        )
        self._lanes = Lanes(
            self._decoder,
            end_ids=end_ids,
            pieces=pieces,
            vocabulary=self._decoder.vocabulary,
            filters=Filters(temperature, top_k, top_p, min_p),
            thinking=thinking,
            stop=stop,
        )
        self._thinking = thinking
        self._look = look or LOOK.get(self._decoder.device.type, 1)
        self._prefill_tokens = PREFILL.get(self._decoder.device.type, 2048)
        self._steps: Callable[[int, int], None] = self._lanes.step
        if graphs:
            from ponder.engine.torch_graphs import Graphs

            self._steps = Graphs(self._lanes)
        self._seen = self._stamp()
        self.tokens = self.steps = 0
        self.seconds = 0.0

    def refresh(self) -> None:
        """Takes over the model's weights, and its adapters, as they are now."""
        self._decoder.refresh()
        self._seen = self._stamp()

    def sample(self, jobs: Sequence[Job]) -> list[list[Drawn]]:
        """All samples of all jobs, in their order. Raises what `run` does."""
        found: list[dict[int, Drawn]] = [{} for _ in jobs]
        for job, sample, drawn in self.run(jobs):
            found[job][sample] = drawn
        return [[samples[number] for number in sorted(samples)] for samples in found]

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, int, Drawn]]:
        """(job, sample, what it drew) as samples end.

        Raises ContextOverflow or InputError before anything runs where a job cannot be done, and EngineError where
        the model computes no numbers.
        """
        caps = [self._cap(job) for job in jobs]
        if self._stamp() != self._seen:
            self.refresh()
        return _Run(self, jobs, caps).results()

    def _cap(self, job: Job) -> int | None:
        """Tokens of thinking that a sample of this job may take; raises where the job cannot be done."""
        if not job.prompt or job.n < 1 or job.max_tokens < 1:
            raise InputError(
                f"a job of {len(job.prompt)} prompt tokens, {job.n} samples and {job.max_tokens} tokens each",
                "give at least 1 of each",
            )
        if len(job.prompt) + job.max_tokens > self._decoder.context:
            raise ContextOverflow(
                f"{len(job.prompt)} prompt tokens and {job.max_tokens} more do not fit into {self._decoder.context}",
                "shorten the prompt, lower max_tokens, or open the sampler with a larger context",
            )
        if self._thinking is None:
            if job.thinking is not None:
                raise InputError("a job with a budget for thinking", "tell the sampler how thinking ends")
            return None
        room = job.max_tokens - len(self._thinking.closing_ids) - self._thinking.answer
        if room < 0:
            raise BudgetTooSmall(
                f"{job.max_tokens} tokens hold no closing marker and {self._thinking.answer} tokens of an answer",
                f"give at least {job.max_tokens - room}",
            )
        return room if job.thinking is None else min(room, job.thinking)

    def _stamp(self) -> list[tuple[int, int]]:
        """What differs once torch has changed a parameter: where each lies and how often it was written."""
        return [(parameter.data_ptr(), parameter._version) for parameter in self._decoder.model.parameters()]


def _kernels_here(model: nn.Module) -> bool:
    """Whether the Triton kernels can run this model here; where they cannot, that is said."""
    missing = importlib.util.find_spec("triton") is None
    if missing:
        warnings.warn("triton is not installed: sampling without fused kernels, slower", RuntimeWarning, stacklevel=3)
    return not missing and fuses(head_dim(model))


class _Run:
    """One call of `Sampler.run`: who waits, and who lives in which row."""

    def __init__(self, sampler: Sampler, jobs: Sequence[Job], caps: Sequence[int | None]) -> None:
        self.sampler, self.jobs, self.caps = sampler, jobs, caps
        self.decoder, self.lanes = sampler._decoder, sampler._lanes
        self.waiting = deque((job, sample) for job, asked in enumerate(jobs) for sample in range(asked.n))
        self.living: list[_Living] = []
        prompts = [job.prompt[:-1] for job in jobs]
        kind = Copied if self.decoder.trunks is None else Shared
        self.prompts: Prompts = kind(self.decoder, prompts, sampler._prefill_tokens)

    def results(self) -> Iterator[tuple[int, int, Drawn]]:
        self.lanes.clear()
        self.decoder.reserve(
            max((len(job.prompt) - 1 for job in self.jobs), default=0),
            max((job.max_tokens for job in self.jobs), default=0) + 1,
        )
        began = time.perf_counter()
        self._fill([])
        while self.living:
            self._steps()
            ended = self._ended()
            done = [(self.living[row].job, self.living[row].sample) for row in ended]
            drawn = self.lanes.take(ended)
            self._fill(ended)
            self.sampler.tokens += sum(len(one.ids) for one in drawn)
            self.sampler.seconds += time.perf_counter() - began
            yield from ((job, sample, one) for (job, sample), one in zip(done, drawn, strict=True))
            began = time.perf_counter()

    def _steps(self) -> None:
        """Steps until the host looks again: no more than the longest of the living can still take."""
        count = min(self.sampler._look, max(one.last - one.length for one in self.living))
        longest = max(min(one.last, one.length + count) for one in self.living)
        for _ in range(count):
            self.sampler._steps(len(self.living), longest)
        self.sampler.steps += count
        for one in self.living:
            one.length = min(one.last, one.length + count)

    def _ended(self) -> list[int]:
        """Rows whose samples ended. Raises EngineError where a model's logits were no numbers."""
        finish = self.lanes.finish[: len(self.living)].tolist()
        if BROKEN in finish:
            self.decoder.clear()
            raise EngineError("the model computed no numbers", "lower the learning rate, or take an earlier checkpoint")
        return [row for row, state in enumerate(finish) if state != LIVE]

    def _fill(self, free: list[int]) -> None:
        """Starts waiting samples in free and new rows; where none waits, the last rows move into the holes."""
        self.prompts.leave(free)
        rows = [*free, *range(len(self.living), self.decoder.slots)][: len(self.waiting)]
        if rows:
            self._start(rows, [self.waiting.popleft() for _ in rows])
        holes = free[len(rows) :]
        if holes:
            self._close_up(holes)
        if rows or holes:
            self.prompts.settle(len(self.living))

    def _close_up(self, holes: list[int]) -> None:
        size = len(self.living) - len(holes)
        targets = [row for row in holes if row < size]
        sources = [row for row in range(size, len(self.living)) if row not in set(holes)]
        for source, target in zip(sources, targets, strict=True):
            self.decoder.copy(source, [target], self.living[source].length)
            self.prompts.move(source, target)
            self.living[target] = self.living[source]
        if sources:
            self.lanes.move(sources, targets)
        del self.living[size:]

    def _start(self, rows: Sequence[int], samples: Sequence[tuple[int, int]]) -> None:
        rows = self.prompts.enter(rows, [job for job, _ in samples])
        starts = []
        for row, (job, sample) in zip(rows, samples, strict=True):
            asked, before = self.jobs[job], self.prompts.before(job)
            new = _Living(job, sample, before, before + asked.max_tokens)
            self.living += [new] * (row + 1 - len(self.living))
            self.living[row] = new
            drawing = key(asked.seed, sample)
            starts.append(Start(asked.prompt[-1], len(asked.prompt) - 1, asked.max_tokens, drawing, self.caps[job]))
        self.lanes.start(rows, starts)

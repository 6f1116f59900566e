"""Many samples of many prompts at once, straight from a model in training: what rollouts are made of.

Continuous batching over a fixed number of rows: a prompt is computed once and copied to its samples, a row whose
sample ended gets the next one, and at the tail the living rows move together, so that a step computes only what
lives. All but the last token of a prompt is computed beforehand; that one is a step like any other.

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

from ponder.engine.torch_decoder import Decoder, fuses, head_dim, reach
from ponder.engine.torch_draw import Filters, key
from ponder.engine.torch_lanes import BROKEN, LIVE, Drawn, Lanes, Start, Thinking
from ponder.engine.torch_projection import packs
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
    """A sample in a lane; `length` bounds the tokens that its row holds."""

    job: int
    sample: int
    length: int
    last: int


class Sampler:
    """Draws samples from a model with `slots` rows of `context` tokens.

    end_ids: tokens that end a sample. pieces: the bytes of each token id. dtype: of the arithmetic and the cache, None
    for that of the weights. stop: texts that end a sample with the token that completes them. thinking: how thinking
    ends; None where samples do not think. fold: adds adapters into a copy of the weights. look: steps between two
    looks of the host. `tokens`, `steps` and `seconds` count what was drawn, over all runs.

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
    ) -> None:
        weight = next(model.parameters())
        self._decoder = Decoder(
            model,
            slots,
            context,
            dtype=dtype,
            fold=fold,
            pack=packs(weight.device, dtype or weight.dtype),
            fused=weight.device.type == "cuda" and _kernels_here(model),
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
        if self._decoder.device.type == "cuda":
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
    """One call of `Sampler.run`: who waits, who lives in which row, and whose prompt each row holds."""

    def __init__(self, sampler: Sampler, jobs: Sequence[Job], caps: Sequence[int | None]) -> None:
        self.sampler, self.jobs, self.caps = sampler, jobs, caps
        self.decoder, self.lanes = sampler._decoder, sampler._lanes
        self.waiting = deque((job, sample) for job, asked in enumerate(jobs) for sample in range(asked.n))
        self.living: list[_Living] = []
        self.held: list[int | None] = [None] * self.decoder.slots

    def results(self) -> Iterator[tuple[int, int, Drawn]]:
        self.lanes.clear()
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
            self.sampler._steps(len(self.living), reach(longest, self.decoder.context))
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
        rows = [*free, *range(len(self.living), self.decoder.slots)][: len(self.waiting)]
        if rows:
            self._start(rows, [self.waiting.popleft() for _ in rows])
        holes = free[len(rows) :]
        if holes:
            self._close_up(holes)

    def _close_up(self, holes: list[int]) -> None:
        size = len(self.living) - len(holes)
        targets = [row for row in holes if row < size]
        sources = [row for row in range(size, len(self.living)) if row not in set(holes)]
        for source, target in zip(sources, targets, strict=True):
            self.decoder.copy(source, [target], self.living[source].length)
            self.living[target], self.held[target] = self.living[source], self.held[source]
        if sources:
            self.lanes.move(sources, targets)
        del self.living[size:]

    # ------------------------------------------------------------ starting samples

    def _start(self, rows: Sequence[int], samples: Sequence[tuple[int, int]]) -> None:
        starts = []
        for row, (job, sample) in zip(self._seats(rows, samples), samples, strict=True):
            asked = self.jobs[job]
            before = len(asked.prompt) - 1
            new = _Living(job, sample, before, before + asked.max_tokens)
            self.living += [new] * (row + 1 - len(self.living))
            self.living[row] = new
            starts.append(
                (row, Start(asked.prompt[-1], before, asked.max_tokens, key(asked.seed, sample), self.caps[job]))
            )
        self._prompts(rows)
        self.lanes.start([row for row, _ in starts], [start for _, start in starts])

    def _seats(self, rows: Sequence[int], samples: Sequence[tuple[int, int]]) -> list[int]:
        """A row for each sample: one that holds its prompt already, where there is one."""
        holding: dict[int | None, list[int]] = {}
        for row in reversed(rows):
            holding.setdefault(self.held[row], []).append(row)
        seats = [holding[job].pop() if holding.get(job) else None for job, _ in samples]
        rest = iter(sorted(row for left in holding.values() for row in left))
        return [next(rest) if seat is None else seat for seat in seats]

    def _prompts(self, rows: Sequence[int]) -> None:
        """Sees to it that each of the rows holds its sample's prompt, computed once or copied."""
        lacking: dict[int, list[int]] = {}
        for row in rows:
            if self.held[row] != self.living[row].job:
                lacking.setdefault(self.living[row].job, []).append(row)
                self.held[row] = None
        missing = [job for job in lacking if job not in self.held]
        for batch in self._batches(missing):
            self._prefill(batch, [lacking[job].pop(0) for job in batch])
        for job, targets in lacking.items():
            if targets:
                self.decoder.copy(self.held.index(job), targets, len(self.jobs[job].prompt) - 1)
                for row in targets:
                    self.held[row] = job

    def _batches(self, jobs: Sequence[int]) -> Iterator[list[int]]:
        """Jobs whose prompts are computed together: of similar lengths, and not too many."""
        batch: list[int] = []
        for job in sorted(jobs, key=lambda number: len(self.jobs[number].prompt)):
            length = len(self.jobs[job].prompt)
            crowded = (len(batch) + 1) * length > self.sampler._prefill_tokens
            if batch and (crowded or length > 1.25 * len(self.jobs[batch[0]].prompt) + 8):
                yield batch
                batch = []
            batch.append(job)
        if batch:
            yield batch

    def _prefill(self, jobs: Sequence[int], rows: Sequence[int]) -> None:
        prompts = [self.jobs[job].prompt[:-1] for job in jobs]
        longest = max(len(prompt) for prompt in prompts)
        if longest:
            padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
            self.decoder.prefill(torch.tensor(padded, device=self.decoder.device), rows)
        for row, job in zip(rows, jobs, strict=True):
            self.held[row] = job

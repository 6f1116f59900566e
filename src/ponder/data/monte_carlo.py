"""Labels for steps by Monte-Carlo rollouts: how often is what follows a step right?

    soft   c_k = (1/n) sum_i [completion i of the first k steps is right]
    hard   c_k = 1 if any of them is, else 0

Completions continue a sample's exact token ids: one request for each step's end, of which the engine holds the
prefix already. With hard labels a request ends with the first completion that is right, and `halving` looks for the
first step from which none is in log2(steps) requests, taking every later one for wrong, too.

Each completion is written to a ledger as it ends, so that a run that was killed goes on without paying for it again.
It goes on with the same completions: keeping whichever ended first, and drawing others in place of the rest, would
favour short ones. So where an engine cannot be asked for sample i alone (`Capabilities.first`), completions are kept
once all of their request are there.

Sources: Wang et al., Math-Shepherd (2024), section 3.3, soft and hard estimation; Luo et al., OmegaPRM (2024), section
3.2, the search by halving.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from ponder.chat.model import Model
from ponder.chat.parse import Parser, coalesce
from ponder.data.ledger import Ledger
from ponder.data.step_labels import MOST_STEPS, Labeller, Labels, arithmetic_labels, steps_in
from ponder.errors import EngineError, InputError
from ponder.protocols import SamplingParams, Verifier, closing
from ponder.types import Cost, Question, Sample, Span


@dataclass(frozen=True)
class MonteCarlo:
    """A labeller that lets `model` continue after each step, `k` times, and asks `right` about each answer.

    right: a completion counts where its score is at least 1/2, and where it ended by itself within `max_tokens`: an
        answer that was cut is none. Sampled is with the model's own settings (`Model.params`).
    hard: 1 where any completion is right, rather than their share. halving: see the module; only with `hard`.
    ledger: what it knows is not sampled again. It is for one `right` and one state of the weights: of a model that was
        trained on, or with another verifier, start a new one.

    Raises InputError for settings that contradict each other, EngineError where a completion did not end.
    """

    model: Model
    right: Verifier
    k: int = 8
    hard: bool = False
    halving: bool = False
    max_tokens: int = 512
    seed: int = 0
    most_steps: int = MOST_STEPS
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k={self.k} completions label nothing", "Give at least 1")
        if self.k > 1 and not self.model.params.temperature:
            raise InputError(f"at temperature 0 all {self.k} completions are the same", "Raise it, or set k=1")
        if self.halving and not self.hard:
            raise InputError("halving looks for where completions are no longer right at all", "Set hard=True with it")

    async def __call__(self, question: Question, sample: Sample) -> Labels:
        places = tuple(place for _, place in await steps_in(self.model.engine, sample, self.most_steps))
        values, cost = await self.values(question, sample, places)
        return Labels(places, values, cost)

    async def values(self, question: Question, sample: Sample, places: Sequence[int]) -> tuple[tuple[float, ...], Cost]:
        """A label for each of the sample's beginnings of so many tokens, and what was spent on them."""
        total = Cost()

        async def value(place: int) -> float:
            nonlocal total
            reached, cost = await self._continued(question, sample, place)
            total += cost
            return float(any(reached)) if self.hard else sum(reached) / len(reached)

        if not self.halving:
            return tuple([await value(place) for place in places]), total
        low, high = 0, len(places)  # completions of all before `low` were right, of `high` and later ones none
        while low < high:
            middle = (low + high) // 2
            if await value(places[middle]):
                low = middle + 1
            else:
                high = middle
        return tuple(float(k < low) for k in range(len(places))), total

    async def _continued(self, question: Question, sample: Sample, place: int) -> tuple[list[bool], Cost]:
        """Whether each completion is right, as many as it takes."""
        key, total = self._key(question, (*sample.prompt_ids, *sample.ids[:place])), Cost()
        async with self.ledger.alone(key):  # samples that begin alike are labelled side by side
            for first, n in _gaps(self.ledger.known(key), self.k):
                if self.hard and any(self._known(key)):
                    break
                request = _Request(self, question, sample, place, key, first, n)
                try:
                    await request.run()
                finally:
                    total += request.close()
        return self._known(key), total

    def _known(self, key: str) -> list[bool]:
        return [right for index, right in self.ledger.known(key).items() if index < self.k]

    def _key(self, question: Question, prefix: Sequence[int]) -> str:
        """Stands for all that decides completion i, but for the verifier."""
        params = asdict(replace(self.model.params, max_tokens=self.max_tokens, seed=self.seed))
        what = [self.model.name, params, question.reference, self.hard, list(prefix)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


class _Request:
    """Completions `first` to `first` + `n` - 1 of a prefix: sampled, judged, written down, paid for."""

    def __init__(
        self, labeller: MonteCarlo, question: Question, sample: Sample, place: int, key: str, first: int, n: int
    ) -> None:
        self.labeller, self.question, self.sample = labeller, question, sample
        self.said, self.key, self.first, self.n = sample.ids[:place], key, first, n
        self.engine = labeller.model.engine
        self.whole = not self.engine.capabilities.first
        self.ids: dict[int, list[int]] = {index: [] for index in range(n)}
        self.right: dict[int, bool] = {}
        self.kept: set[int] = set()
        self.beside = Cost(calls=1)
        self.started = time.monotonic()

    async def run(self) -> None:
        """Reads what the engine samples, until all is there or the label is settled."""
        stream = self.engine.sample((*self.sample.prompt_ids, *self.said), self.n, self._params())
        try:
            async with closing(stream) as chunks:
                async for chunk in chunks:
                    self._count(chunk.prompt_computed, chunk.prompt_cached, chunk.lost)
                    self.ids[chunk.index] += chunk.ids
                    if chunk.finish in ("stop", "length"):
                        await self._ended(chunk.index, chunk.finish == "stop")
                    if self._settled:
                        break
        finally:
            self._count(0, 0, getattr(stream, "undelivered", 0))
        if len(self.right) < self.n and not self._settled:
            raise EngineError(
                f"{self.n - len(self.right)} of {self.n} completions did not end", "Start it again: what ended is kept"
            )
        for index in self.right:
            self._keep(index)

    def close(self) -> Cost:
        """Writes down what the request cost beside the completions that were kept; gives all of it."""
        lost = sum(len(ids) for index, ids in self.ids.items() if index not in self.kept)
        beside = self.beside + Cost(cancelled=lost, seconds=time.monotonic() - self.started)
        priced = self.labeller.model.priced
        self.labeller.ledger.spent(self.key, priced(beside))
        return priced(beside) + priced(Cost(verifier=sum(len(self.ids[index]) for index in self.kept)))

    @property
    def _settled(self) -> bool:
        return self.labeller.hard and any(self.right.values())

    async def _ended(self, index: int, whole: bool) -> None:
        self.right[index] = whole and await self._judged(index)
        if not self.whole:
            self._keep(index)

    async def _judged(self, index: int) -> bool:
        sample = await _completed(self.labeller.model, self.sample, (*self.said, *self.ids[index]))
        return (await self.labeller.right(self.question, sample)).value >= 0.5

    def _keep(self, index: int) -> None:
        if index not in self.kept:
            cost = self.labeller.model.priced(Cost(verifier=len(self.ids[index])))
            self.labeller.ledger.add(self.key, self.first + index, self.right[index], cost)
            self.kept.add(index)

    def _count(self, computed: int, cached: int, lost: int) -> None:
        self.beside += Cost(prompt_computed=computed, prompt_cached=cached, cancelled=lost)

    def _params(self) -> SamplingParams:
        labeller = self.labeller
        first, salt = self.first, ""
        if self.whole:
            first, salt = 0, str(self.first)  # it cannot skip samples: another seed, or it would draw the same again
        seed = int.from_bytes(hashlib.sha256((self.key + salt).encode()).digest()[:4], "big") >> 1
        return replace(labeller.model.params, max_tokens=labeller.max_tokens, seed=seed, first=first, until="")


async def _completed(model: Model, begun: Sample, ids: tuple[int, ...]) -> Sample:
    """The sample of `ids`, which begins as `begun` does, taken apart."""
    said = ids[:-1] if ids and ids[-1] in model.engine.info.eos_ids else ids
    text = await model.engine.detokenize(said)
    parser = Parser(model.format, await _inside(model, begun), tools=False)
    pieces = coalesce([*parser.feed(text), *parser.finish()])
    spans, at = [], 0
    for piece in pieces:
        spans.append(Span(piece.kind, at, at + len(piece.text)))
        at += len(piece.text)
    thinking, answer = ("".join(p.text for p in pieces if p.kind == kind) for kind in ("thinking", "answer"))
    none, drawn = (None,) * len(ids), (True,) * len(ids)
    return Sample(begun.index, text, begun.prompt_ids, ids, drawn, none, "stop", tuple(spans), thinking, answer)


async def _inside(model: Model, sample: Sample) -> bool:
    """Whether the sample began inside thinking: its own spans know best."""
    for span in sample.spans:
        if span.kind != "marker" or sample.text[span.start : span.end].strip():
            return span.kind == "thinking"
    return model.format.inside(await model.engine.detokenize(sample.prompt_ids))


def _gaps(known: dict[int, bool], k: int) -> list[tuple[int, int]]:
    """(first, length) of each run of numbers below k that are not known."""
    runs: list[tuple[int, int]] = []
    for index in range(k):
        if index in known:
            continue
        if runs and sum(runs[-1]) == index:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return runs


def combined_labels(rollouts: MonteCarlo) -> Labeller:
    """0 from the first wrong equation on, which costs nothing, and what `rollouts` say of the steps before it."""
    arithmetic = arithmetic_labels(rollouts.model.engine, rollouts.most_steps)

    async def label(question: Question, sample: Sample) -> Labels:
        checked = await arithmetic(question, sample)
        fine = next((k for k, value in enumerate(checked.values) if value == 0), len(checked.values))
        values, cost = await rollouts.values(question, sample, checked.places[:fine])
        return Labels(checked.places, (*values, *checked.values[fine:]), cost)

    return label

"""What a step decides for every running sample, on the device: what is written, what ends, what is recorded.

A lane is a row of the decoder's cache with a sample in it. Its thinking is a state machine:

    thinking   until the model writes the marker, or `cap` tokens are spent
    closing    the closing ids are written, one a step: the mask is False for them
    answering  until a token that ends, a stop string, or `limit` tokens

The host looks only now and then; a lane that has ended meanwhile computes on and records nothing. All tensors are
changed in their places, so that a step can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ponder.engine.torch_decoder import Decoder
from ponder.engine.torch_draw import Filters, bounded, draw, log_probabilities, uniform
from ponder.engine.torch_markers import automaton

THINKING, CLOSING, ANSWERING = range(3)
LIVE, STOP, LENGTH, BROKEN = range(4)


@dataclass(frozen=True)
class Thinking:
    """How thinking ends: the text the model closes it with, what is written when it does not, and the room that
    stays for the answer, in tokens."""

    close: str = "</think>"
    closing_ids: tuple[int, ...] = ()
    answer: int = 0

    def __post_init__(self) -> None:
        if not (self.close and self.closing_ids and self.answer >= 0):
            raise ValueError(
                "thinking needs a closing marker, the ids that close it, and 0 or more tokens for the answer"
            )


@dataclass(frozen=True)
class Drawn:
    """A finished sample. `ids[i]` was drawn where `mask[i]`, else written. `logprobs` are natural, at temperature 1;
    `tempered` at the drawing temperature before filters (at 0: the same as `logprobs`). `thought`: tokens drawn
    inside thinking, a marker of the model's own included. A token that ended the sample is its last."""

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    tempered: tuple[float, ...]
    finish: Literal["stop", "length"]
    thought: int


@dataclass(frozen=True)
class Start:
    """A sample to be put into a lane: the last token of its prompt and that token's position."""

    token: int
    position: int
    limit: int
    key: int
    cap: int | None
    """Tokens of thinking; None for a sample that does not think."""


class Lanes:
    """The state of `decoder.slots` lanes, of which steps compute the first few."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        end_ids: Sequence[int],
        pieces: Sequence[bytes],
        vocabulary: int,
        filters: Filters,
        thinking: Thinking | None,
        stop: Sequence[str],
    ) -> None:
        self.decoder, self._filters, self._vocabulary = decoder, filters, vocabulary
        self._ends = self._long([token in set(end_ids) for token in range(vocabulary)]).bool()
        padded = [*pieces[:vocabulary], *[b""] * (vocabulary - len(pieces))]  # embeddings may have rows to spare
        self._stop = self._automaton([text.encode() for text in stop], padded) if stop else None
        self._close = self._automaton([thinking.close.encode()], padded) if thinking else None
        self._closing = self._long(thinking.closing_ids) if thinking else None
        slots, room = decoder.slots, decoder.context + 1  # one more: where an ended lane's next token would go
        zeros = [torch.zeros(slots, dtype=torch.int64, device=decoder.device) for _ in range(11)]
        self.token, self.position, self.count, self.limit, self.key, self.cap = zeros[:6]
        self.thought, self.phase, self.written, self.closed, self.stopped = zeros[6:]
        self.finish = torch.full_like(self.token, STOP)
        self.ids = torch.zeros(slots, room, dtype=torch.int64, device=decoder.device)
        self.mask = torch.zeros(slots, room, dtype=torch.bool, device=decoder.device)
        self.logprobs = torch.zeros(slots, room, dtype=torch.float32, device=decoder.device)
        self.tempered = torch.zeros_like(self.logprobs)
        self._state = (*zeros, self.finish, self.ids, self.mask, self.logprobs, self.tempered)

    def _long(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=self.decoder.device)

    def _automaton(self, texts: Sequence[bytes], pieces: Sequence[bytes]) -> Tensor:
        table = automaton(texts, pieces)
        small = table.astype(np.int8) if len(table) < 128 else table
        return torch.from_numpy(small).to(self.decoder.device)

    # ------------------------------------------------------------ what the host does

    def clear(self) -> None:
        """Nothing runs any more."""
        self.finish.fill_(STOP)

    def start(self, rows: Sequence[int], starts: Sequence[Start]) -> None:
        """Puts samples into lanes whose cache holds all but the last token of their prompts."""
        where = self._long(rows)
        for tensor, values in (
            (self.token, [s.token for s in starts]),
            (self.position, [s.position for s in starts]),
            (self.limit, [s.limit for s in starts]),
            (self.key, [s.key for s in starts]),
            (self.cap, [s.cap or 0 for s in starts]),
            (self.phase, [ANSWERING if s.cap is None else THINKING if s.cap else CLOSING for s in starts]),
        ):
            tensor[where] = self._long(values)
        for tensor in (self.count, self.thought, self.written, self.closed, self.stopped, self.finish):
            tensor[where] = 0

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Gives lanes `targets` the state of lanes `sources`, which end; none of these is one of those."""
        origins, where = self._long(sources), self._long(targets)
        for tensor in self._state:
            tensor[where] = tensor[origins]
        self.finish[origins] = STOP

    def take(self, rows: Sequence[int]) -> list[Drawn]:
        """The samples that ended in lanes `rows`."""
        where = self._long(rows)
        columns = (self.ids, self.mask, self.logprobs, self.tempered, self.count, self.finish, self.thought)
        held = [tensor[where].cpu() for tensor in columns]
        taken = []
        for ids, mask, logprobs, tempered, count, finish, thought in zip(*held, strict=True):
            said = int(count)
            taken.append(
                Drawn(
                    tuple(ids[:said].tolist()),
                    tuple(mask[:said].tolist()),
                    tuple(logprobs[:said].tolist()),
                    tuple(tempered[:said].tolist()),
                    "stop" if int(finish) == STOP else "length",
                    int(thought),
                )
            )
        return taken

    # ------------------------------------------------------------ what the device does

    @torch.no_grad()
    def step(self, rows: int, reach: int) -> None:
        """One more token for the first `rows` lanes, none of which holds more than `reach` tokens after it."""
        logits = self.decoder.logits(self.decoder.decode(self.token[:rows], self.position[:rows], reach))
        tokens, sums, tempered = self._draw(logits, uniform(self.key[:rows], self.count[:rows]))
        live = self.finish[:rows] == LIVE
        written = self.phase[:rows] == CLOSING
        if self._closing is not None:
            planned = self._closing[self.written[:rows].clamp(max=len(self._closing) - 1)]
            tokens = torch.where(written, planned, tokens)
        self._record(tokens, ~written, *log_probabilities(logits, tokens, sums, tempered, self._filters.temperature))
        self._advance(tokens, live)
        if self._closing is not None:
            self._think(tokens, live, written)
        self._end(tokens, live, written, sums)

    def _draw(self, logits: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.decoder.fused or not self._filters.off or self._filters.temperature == 0:
            return draw(logits, numbers, self._filters)
        from ponder.engine.torch_kernels import choose

        return choose(logits, numbers, bounded(self._filters.temperature))

    def _record(self, tokens: Tensor, mask: Tensor, logprobs: Tensor, tempered: Tensor) -> None:
        rows = len(tokens)
        place = self.count[:rows, None]
        self.ids[:rows].scatter_(1, place, tokens[:, None])
        self.mask[:rows].scatter_(1, place, mask[:, None])
        self.logprobs[:rows].scatter_(1, place, logprobs[:, None])
        self.tempered[:rows].scatter_(1, place, tempered[:, None])

    def _advance(self, tokens: Tensor, live: Tensor) -> None:
        rows = len(tokens)
        self.count[:rows] += live
        self.position[:rows] += live
        self.token[:rows] = torch.where(live, tokens, self.token[:rows])

    def _think(self, tokens: Tensor, live: Tensor, written: Tensor) -> None:
        assert self._close is not None
        assert self._closing is not None
        rows = len(tokens)
        phase = self.phase[:rows]
        thinking = phase == THINKING
        self.thought[:rows] += live & thinking
        state = self._moved(self._close, self.closed[:rows], tokens)
        self.closed[:rows] = torch.where(live & thinking, state, self.closed[:rows])
        self.written[:rows] += live & written
        said = (thinking & (self.closed[:rows] == len(self._close) - 1)) | (
            written & (self.written[:rows] >= len(self._closing))
        )
        spent = thinking & (self.thought[:rows] >= self.cap[:rows])
        phase.masked_fill_(live & spent, CLOSING).masked_fill_(live & said, ANSWERING)

    def _end(self, tokens: Tensor, live: Tensor, written: Tensor, sums: Tensor) -> None:
        rows = len(tokens)
        finish = self.finish[:rows]
        finish.masked_fill_(live & (self.count[:rows] >= self.limit[:rows]), LENGTH)
        finish.masked_fill_(live & ~written & self._ends[tokens], STOP)
        if self._stop is not None:
            state = self._moved(self._stop, self.stopped[:rows], tokens)
            self.stopped[:rows] = torch.where(live, state, self.stopped[:rows])
            finish.masked_fill_(live & (self.stopped[:rows] == len(self._stop) - 1), STOP)
        finish.masked_fill_(live & ~sums.isfinite(), BROKEN)

    def _moved(self, table: Tensor, states: Tensor, tokens: Tensor) -> Tensor:
        return table.view(-1)[states * self._vocabulary + tokens].long()

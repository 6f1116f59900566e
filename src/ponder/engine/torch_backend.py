"""The scheduler's backend on a `torch_decoder.Decoder`: sequences have rows, and rows change places.

The decoder computes its first B rows in one go. So before each step the B sequences that go on by one token are
brought there; a piece of prompt may lie anywhere. Rows and their length grow with what is in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ponder.engine.libllama import ABORTED
from ponder.engine.sampling import Logits
from ponder.engine.shelf import State
from ponder.engine.torch_adapters import adapters_of, evaluating, low_rank
from ponder.engine.torch_decoder import ROUND, Decoder, Interrupted
from ponder.engine.torch_projection import Projection
from ponder.errors import EngineError

EVEN, FEW = 2, 16
"""Pieces are computed together where none is more than this many times as long as another, or this many tokens longer:
padding costs, and so does reading the weights once more."""


BLOCK = 64
"""Positions of a block on a processor: attention reads whole ones, and with 128 an evaluation took a sixth longer."""


@dataclass
class Piece:
    """Tokens of one sequence in a batch, from position `start` on; `wanted` pairs (place in it, row of the batch)."""

    sequence: int
    start: int
    ids: list[int] = field(default_factory=list)
    wanted: list[tuple[int, int]] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.ids)


def pieces_of(rows: Sequence[tuple[int, int, int, bool]]) -> list[Piece]:
    """The rows of a batch, (token, position, sequence, wants logits), by their sequences."""
    pieces: dict[int, Piece] = {}
    for row, (token, position, sequence, wanted) in enumerate(rows):
        piece = pieces.setdefault(sequence, Piece(sequence, position))
        if wanted:
            piece.wanted.append((len(piece.ids), row))
        piece.ids.append(token)
    return list(pieces.values())


class TorchBackend:
    """Implements `scheduler.Backend`.

    model: one that `torch_decoder.covers`. context: tokens a sequence may have. batch: rows a step.
    dtype, pack: see `Decoder`. `use_adapters` takes a scale for each of `adapters`, the names in the model; a second
    copy of the weights is kept for the scales `fold`, with the adapters in it, as long as there is memory for it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        context: int,
        batch: int,
        dtype: torch.dtype | None = None,
        pack: bool = False,
        fold: Sequence[float] = (),
    ) -> None:
        self.context, self.batch = context, batch
        self.adapters: Mapping[str, float] = adapters_of(model)
        self._decoder = Decoder(model, 1, context, dtype=dtype, pack=pack)
        self._scales = list(self.adapters.values())
        self._fold = list(fold) if any(fold) else None
        self._weights = self._in_force()
        self._folded: list[Tensor] = []
        self._sequences: list[int | None] = [None]  # of each row
        self._rows: dict[int, int] = {}  # of each sequence that has tokens
        self._lengths: dict[int, int] = {}
        self._logits: Logits = np.empty((0, 0), np.float32)
        self._places: dict[int, int] = {}
        block = BLOCK if self.device.type == "cpu" else ROUND
        self._decoder.make_room(block, block)
        self.use_adapters(self._scales)

    @property
    def interrupted(self) -> bool:
        """While it is set, `decode` gives up at the next layer."""
        return self._decoder.interrupted

    @interrupted.setter
    def interrupted(self, on: bool) -> None:
        self._decoder.interrupted = on

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._decoder.device

    @property
    def bytes_a_token(self) -> int:
        """Bytes of cache that a token takes."""
        return self._decoder.bytes_a_token

    def refresh(self) -> None:
        """Renews what is a copy of the model's weights. Keys and values stay, and are those of the old ones."""
        self._decoder.refresh()
        self._weights, self._folded = self._in_force(), []
        self.use_adapters(self._scales)

    def use_adapters(self, scales: Sequence[float]) -> None:
        """Switches every adapter to its scale, 0 for off, and leaves those of the model itself as they are."""
        self._scales = list(scales)
        chosen = dict(zip(self.adapters, scales, strict=True))
        for projection, weight in zip(self._projections(), self._weights, strict=True):
            projection.weight, projection.low_rank, start = weight, [], 0
            for module in projection.modules:
                projection.low_rank += [(a, b, scale, start) for a, b, scale in low_rank(module, chosen)]
                base: Any = getattr(module, "base_layer", module)
                start += len(base.weight)
        if self._scales == self._fold:
            self._use_folded(chosen)

    def _use_folded(self, scales: Mapping[str, float]) -> None:
        """Takes the weights that have the adapters in them: half of a step may go into products with A and B."""
        projections = self._projections()
        try:
            if not self._folded:
                with evaluating(self._decoder.model, scales):
                    self._folded = [_folded(p).weight if p.low_rank else p.weight for p in projections]
        except (RuntimeError, MemoryError):  # no room for that: slower, but the same model
            self._fold = None
            return
        for projection, weight in zip(projections, self._folded, strict=True):
            projection.weight, projection.low_rank = weight, []

    def _in_force(self) -> list[Tensor]:
        """The weights that the decoder's projections have by now."""
        return [projection.weight for projection in self._projections()]

    def _projections(self) -> list[Projection]:
        layers = self._decoder._layers
        return [p for layer in layers for p in (layer.qkv, layer.out, layer.gate_up, layer.down)] + [
            self._decoder._head
        ]

    def reserve(self, sequences: int) -> None:
        """Room for so many whole sequences, where memory is only taken as it is written to: nothing moves later."""
        if self.device.type == "cpu":
            self._resize(sequences, self.context)

    # ------------------------------------------------------------ computing

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> int:
        """Computes (token, position, sequence, wants logits) rows. Returns 0, or `ABORTED` where it was interrupted.

        Raises EngineError where torch fails, as for want of memory.
        """
        if self.interrupted:
            return ABORTED
        pieces = pieces_of(tokens)
        try:
            hidden, places = self._compute(pieces)
            self._places = {row: place for place, row in enumerate(places)}
            if places:
                self._logits = self._decoder.logits(torch.cat(hidden)).cpu().numpy()
        except Interrupted:
            return ABORTED
        except (RuntimeError, MemoryError) as error:  # torch has no closer type for most that goes wrong
            why = str(error).partition("\n")[0]
            raise EngineError(f"torch could not compute {len(tokens)} tokens: {why}", "ask for less at once") from error
        for piece in pieces:
            self._lengths[piece.sequence] = piece.end
        return 0

    def logits(self, row: int) -> Logits:
        """Logits (vocabulary,) of row `row` of the last decode. A view: valid until the next one."""
        found: Logits = self._logits[self._places[row]]
        return found

    def _compute(self, pieces: list[Piece]) -> tuple[list[Tensor], list[int]]:
        """Hidden states (P, width) of the rows that are wanted, and the numbers of those rows."""
        for piece in pieces:
            self._place(piece.sequence, piece.end)
        steps = [piece for piece in pieces if len(piece.ids) == 1]
        hidden: list[Tensor] = []
        places: list[int] = []
        if steps:
            found = self._step(steps)
            hidden.append(found[[self._rows[piece.sequence] for piece in steps if piece.wanted]])
            places += [row for piece in steps for _, row in piece.wanted]
        for together in _together([piece for piece in pieces if len(piece.ids) > 1]):
            states = self._prefill(together)
            for state, piece in zip(states, together, strict=True):
                hidden.append(state[[place for place, _ in piece.wanted]])
                places += [row for _, row in piece.wanted]
        return hidden, places

    def _step(self, pieces: list[Piece]) -> Tensor:
        """One token each; the hidden states (B, width) lie as the rows do."""
        self._bring_forward([piece.sequence for piece in pieces])
        pieces = sorted(pieces, key=lambda piece: self._rows[piece.sequence])
        ids = self._tensor([piece.ids[0] for piece in pieces])
        positions = self._tensor([piece.start for piece in pieces])
        return self._decoder.decode(ids, positions, max(piece.end for piece in pieces))

    def _prefill(self, pieces: list[Piece]) -> Tensor:
        longest = max(len(piece.ids) for piece in pieces)
        ids = self._tensor([piece.ids + [0] * (longest - len(piece.ids)) for piece in pieces])
        rows, starts = [self._rows[piece.sequence] for piece in pieces], [piece.start for piece in pieces]
        return self._decoder.prefill(ids, rows, starts)

    def _tensor(self, numbers: Sequence[object]) -> Tensor:
        return torch.tensor(numbers, device=self._decoder.device)

    # ------------------------------------------------------------ sequences

    def copy(self, source: int, target: int, length: int) -> None:
        """The empty sequence `target` gets the first `length` tokens of `source`."""
        if length:
            self._place(target, length)
            self._decoder.copy(self._rows[source], [self._rows[target]], length)
            self._lengths[target] = length

    def truncate(self, sequence: int, length: int) -> None:
        """Forgets the positions of `sequence` from `length` on."""
        if length == 0 and sequence in self._rows:
            self._sequences[self._rows.pop(sequence)] = None
            self._lengths.pop(sequence, None)
        elif sequence in self._lengths:
            self._lengths[sequence] = min(self._lengths[sequence], length)

    def save(self, sequence: int) -> memoryview:
        """The keys and values of `sequence`, for `restore`. Empty where there is no memory for them."""
        try:
            held = self._decoder.save(self._rows[sequence], self._lengths[sequence]).cpu()
        except (MemoryError, RuntimeError):
            return memoryview(b"")
        return held.flatten().view(torch.uint8).numpy().data

    def restore(self, sequence: int, state: State) -> bool:
        """The empty `sequence` becomes what was saved."""
        decoder = self._decoder
        held = torch.from_numpy(np.array(np.frombuffer(state, np.uint8))).view(decoder.dtype)
        shape = (2, decoder.config.num_hidden_layers, decoder.key_heads, -1, decoder.head_dim)
        held = held.view(shape).to(decoder.device)
        self._place(sequence, held.shape[3])
        decoder.restore(self._rows[sequence], held)
        self._lengths[sequence] = held.shape[3]
        return True

    # ------------------------------------------------------------ rows

    def _place(self, sequence: int, length: int) -> None:
        """Gives a sequence a row if it has none, and its row room for `length` tokens."""
        if sequence not in self._rows:
            if None not in self._sequences:
                self._resize(2 * len(self._sequences), self._room)
            self._rows[sequence] = self._sequences.index(None)
            self._sequences[self._rows[sequence]] = sequence
        if length > self._room:
            self._resize(len(self._sequences), min(max(length, 2 * self._room), self.context))

    def _bring_forward(self, sequences: Sequence[int]) -> None:
        """Moves rows about until these sequences have the first ones, in whatever order."""
        chosen = set(sequences)
        taken = [row for row in range(len(sequences)) if self._sequences[row] not in chosen]
        far = [sequence for sequence in sequences if self._rows[sequence] >= len(sequences)]
        for sequence, row in zip(far, taken, strict=True):
            self._exchange(sequence, row)

    def _exchange(self, sequence: int, row: int) -> None:
        old, other = self._rows[sequence], self._sequences[row]
        length = self._lengths.get(sequence, 0)
        if other is None:
            self._decoder.copy(old, [row], length)
        else:
            self._decoder.swap(old, row, max(length, self._lengths.get(other, 0)))
            self._rows[other] = old
        self._sequences[old], self._sequences[row] = other, sequence
        self._rows[sequence] = row

    @property
    def _room(self) -> int:
        """Tokens that each row has room for."""
        return int(self._decoder.keys.shape[1] * self._decoder.keys.shape[-2])

    def _resize(self, rows: int, length: int) -> None:
        """Makes the cache as large as this, whole blocks of positions; what is in it stays."""
        decoder, blocks = self._decoder, -(-length // self._decoder.keys.shape[-2])
        for name in ("keys", "values"):
            old = getattr(decoder, name)
            new = _zeros(old, (old.shape[0], blocks, rows, *old.shape[3:]))
            kept, held = min(blocks, old.shape[1]), min(rows, old.shape[2])
            new[:, :kept, :held] = old[:, :kept, :held]
            setattr(decoder, name, new)
        decoder.slots = rows
        self._sequences += [None] * (rows - len(self._sequences))


def _zeros(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros of the type of `like`. On a processor no page of them is taken before it is written to."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    width = like.element_size()
    return torch.from_numpy(np.zeros((*shape[:-1], shape[-1] * width), np.uint8)).view(like.dtype)


def _folded(projection: Projection) -> Projection:
    """The same with the adapters that are switched on in a copy of its weights."""
    return Projection(projection.modules, projection.dtype, fold=True, pack=projection.pack)


def _together(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Which pieces to compute in one padded product: those of much the same length."""
    groups: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: -len(piece.ids)):
        length = len(piece.ids)
        if groups and len(groups[-1][0].ids) <= max(EVEN * length, length + FEW):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups

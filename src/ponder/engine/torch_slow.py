"""The scheduler's backend for any causal model of transformers, one sequence at a time.

Every sequence has a cache of the model's own kind, copied whole where samples part. Where such a cache cannot be
cut back, as one of a recurrent model, it is thrown away, and what is left of the sequence is computed again.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ponder.engine.libllama import ABORTED
from ponder.engine.sampling import Logits
from ponder.engine.shelf import State
from ponder.engine.torch_adapters import adapters_of, evaluating
from ponder.engine.torch_backend import Piece, pieces_of
from ponder.errors import EngineError


@dataclass
class _Sequence:
    """Its tokens, and the model's cache of the first `held` of them."""

    tokens: list[int] = field(default_factory=list)
    cache: Any = None
    held: int = 0


class SlowBackend:
    """Implements `scheduler.Backend` with the forward pass of `model` itself.

    context: tokens a sequence may have. batch: rows a step. `use_adapters` takes a scale for each of `adapters`.
    """

    def __init__(self, model: Any, *, context: int, batch: int) -> None:
        self.context, self.batch = context, batch
        self.adapters = adapters_of(model)
        self.interrupted = False
        """While it is set, `decode` gives up."""
        self._model = model
        self._scales = dict(self.adapters)
        self._sequences: dict[int, _Sequence] = {}
        self._rows: dict[int, Logits] = {}

    def refresh(self) -> None:
        """Nothing here is a copy of weights."""

    def use_adapters(self, scales: Sequence[float]) -> None:
        """Switches every adapter to its scale, 0 for off, while this backend computes."""
        self._scales = dict(zip(self.adapters, scales, strict=True))

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> int:
        """Computes (token, position, sequence, wants logits) rows. Returns 0, or `ABORTED` where it was interrupted.

        Raises EngineError where torch fails, as for want of memory.
        """
        self._rows = {}
        with evaluating(self._model, self._scales):
            for piece in pieces_of(tokens):
                if self.interrupted:
                    return ABORTED
                try:
                    self._compute(piece)
                except (RuntimeError, MemoryError) as error:  # torch has no closer type for most that goes wrong
                    why = str(error).partition("\n")[0]
                    raise EngineError(f"torch could not compute {len(tokens)} tokens: {why}", "ask for less") from error
        return 0

    @torch.no_grad()
    def _compute(self, piece: Piece) -> None:
        sequence = self._sequences.setdefault(piece.sequence, _Sequence())
        ids = torch.tensor([sequence.tokens[sequence.held :] + piece.ids], device=self._model.device)
        cached = {} if sequence.cache is None else {"past_key_values": sequence.cache}
        out = self._model(ids, use_cache=True, **cached)
        sequence.tokens += piece.ids
        sequence.cache = getattr(out, "past_key_values", None)
        sequence.held = 0 if sequence.cache is None else len(sequence.tokens)
        for place, row in piece.wanted:
            self._rows[row] = out.logits[0, place - len(piece.ids)].float().cpu().numpy()

    def logits(self, row: int) -> Logits:
        """Logits (vocabulary,) of row `row` of the last decode."""
        return self._rows[row]

    def copy(self, source: int, target: int, length: int) -> None:
        """The empty sequence `target` gets the first `length` tokens of `source`."""
        self._sequences[target] = copy.deepcopy(self._sequences[source])
        self.truncate(target, length)

    def truncate(self, sequence: int, length: int) -> None:
        """Forgets the positions of `sequence` from `length` on."""
        found = self._sequences.get(sequence)
        if found is None:
            return
        if length == 0:
            del self._sequences[sequence]
            return
        del found.tokens[length:]
        if found.held <= length:
            return
        if _can_be_cut(found.cache):
            found.cache.crop(length - found.held)
            found.held = length
        else:
            found.cache, found.held = None, 0

    def save(self, sequence: int) -> bytes:
        """All there is of `sequence`, for `restore`. Empty where there is no memory for it."""
        try:
            return pickle.dumps(self._sequences[sequence])
        except MemoryError:
            return b""

    def restore(self, sequence: int, state: State) -> bool:
        """The empty `sequence` becomes what was saved."""
        self._sequences[sequence] = pickle.loads(state)
        return True


def _can_be_cut(cache: Any) -> bool:
    """Whether every layer of a cache keeps all positions, one by one."""
    from transformers.cache_utils import DynamicLayer

    layers: list[Any] = getattr(cache, "layers", None) or []
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)

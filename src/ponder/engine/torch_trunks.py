"""Prompts that several rows go on from: each lies in a cache once, and is read once a step for all of its rows.

For a row with query q, trunk keys and values (K, V) and its own (k, v), attention is

    softmax([q K^T, q k^T]) [V; v] = w_1 V + w_2 v

with one softmax over both scores. q K^T and w_1 V are products over all rows of a trunk at once: what the trunk takes
of the memory's time is divided by its rows. A trunk with fewer rows than another is padded to as many, so no trunk
has more than `SHARE`: beyond that there is little to win, and padding at worst stays cheaper than reading.

Source: Juravsky et al., Hydragen: High-Throughput LLM Inference with Shared Prefixes (2024), section 3; there the two
parts have a softmax each, and are put together afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ponder.engine.torch_cache import block_size, blocks, mix, scores

SHARE = 8
"""Rows of a trunk at most."""


class Trunks:
    """The cache of the trunks, and which row goes on from which.

    keys, values: (layers, blocks, trunks, key heads, block, d), where d and the heads are those of `rows`, the cache
    of rows. begins (rows,): tokens of the trunk that each row goes on from, which is the position of its own first.
    """

    def __init__(self, rows: Tensor) -> None:
        self.keys = rows.new_zeros(rows.shape[0], 0, 0, rows.shape[3], 1, rows.shape[5])
        self.values = self.keys.clone()
        self.begins = torch.zeros(0, dtype=torch.int64, device=rows.device)
        self._order = self._places = self.begins
        self._trunks = self._blocks = 0

    def reserve(self, length: int) -> None:
        """Room for trunks of at most `length` tokens; what was there may go."""
        size = block_size(length, 1)
        blocks = -(-length // size)
        if size != self.keys.shape[-2] or blocks > self.keys.shape[1]:
            layers, _, _, heads, _, d = self.keys.shape
            self.keys, self.values = (self.keys.new_zeros(layers, blocks, 0, heads, size, d) for _ in range(2))

    def widen(self, trunks: int) -> None:
        """Makes room for this many trunks; what is there stays."""
        there = self.keys.shape[2]
        if trunks > there:
            more = max(trunks, there * 5 // 4) - there
            shape = (*self.keys.shape[:2], more, *self.keys.shape[3:])
            self.keys, self.values = (torch.cat((old, old.new_zeros(shape)), 2) for old in (self.keys, self.values))

    def clear(self) -> None:
        """Empties the cache of what is no number."""
        self.keys.zero_()
        self.values.zero_()

    def arrange(self, trunks: Sequence[int], lengths: Sequence[int]) -> None:
        """From now on row i goes on from trunk `trunks[i]`, of which `lengths[i]` tokens count."""
        members: list[list[int]] = [[] for _ in range(max(trunks) + 1)]
        at = []
        for row, trunk in enumerate(trunks):
            at.append(len(members[trunk]))
            members[trunk].append(row)
        width, heads = max(map(len, members)), self.keys.shape[3]
        each = torch.arange(heads)
        rows = torch.tensor([[*found, *[0] * (width - len(found))] for found in members])
        self._order = (rows[:, None] * heads + each[:, None]).view(-1).to(self.keys.device)
        first = torch.tensor(trunks)[:, None] * heads + each
        self._places = (first * width + torch.tensor(at)[:, None]).view(-1).to(self.keys.device)
        self.begins = torch.tensor(lengths, device=self.keys.device)
        self._trunks, self._blocks = len(members), -(-max(lengths) // self.keys.shape[-2])

    @property
    def reach(self) -> int:
        """Positions of a trunk that are looked at."""
        return self._blocks * int(self.keys.shape[-2])

    def scores(self, layer: int, q: Tensor) -> Tensor:
        """Products (B * key heads, queries, reach) of queries (B * key heads, queries, d) and the keys of trunks."""
        keys = blocks(self.keys, layer, self._trunks, self._blocks)
        return self._spread(scores(self._gathered(q), keys), q.shape[1])

    def mixed(self, layer: int, weights: Tensor) -> Tensor:
        """Sums (B * key heads, queries, d) of the values of trunks by weights (B * key heads, queries, reach)."""
        values = blocks(self.values, layer, self._trunks, self._blocks)
        return self._spread(mix(self._gathered(weights), values), weights.shape[1])

    def _gathered(self, x: Tensor) -> Tensor:
        """(B * key heads, queries, n) as (trunks * key heads, rows of a trunk * queries, n)."""
        chosen = x.reshape(len(x), -1).index_select(0, self._order)
        return chosen.view(self._trunks * self.keys.shape[3], -1, x.shape[-1])

    def _spread(self, x: Tensor, queries: int) -> Tensor:
        """The way back."""
        return x.view(-1, queries * x.shape[-1]).index_select(0, self._places).view(-1, queries, x.shape[-1])

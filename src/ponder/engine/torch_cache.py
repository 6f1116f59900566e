"""Keys and values of many sequences, in blocks of positions: (layers, blocks, sequences, key heads, block, d).

Block b of the first B sequences is then one piece of memory, and a product over it runs at full speed; with a
sequence's positions side by side oneDNN copied them first, and attention took longer than all the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

ROUND = 128
"""Positions of a block at most; attention looks at whole blocks."""

_LEAST = 32
"""Positions of a block at least: smaller ones are no faster."""


class Cache(Protocol):
    """What holds keys and values."""

    keys: Tensor
    values: Tensor


def block_size(length: int, blocks: int) -> int:
    """Positions of a block, so that `blocks` of them hold `length`, as far as the limits allow."""
    size = _LEAST
    while size < ROUND and size * blocks < length:
        size *= 2
    return size


def blocks(held: Tensor, layer: int, sequences: int, count: int) -> list[Tensor]:
    """The first blocks of the first sequences, keys or values, (sequences * key heads, block, d) each."""
    return [held[layer, block, :sequences].flatten(0, 1) for block in range(count)]


def scores(q: Tensor, keys: Sequence[Tensor]) -> Tensor:
    """Products (N, queries, positions) of queries (N, queries, d) and blocks of keys (N, block, d)."""
    parts = [torch.bmm(q, block.transpose(1, 2)) for block in keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def mix(weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Sums (N, queries, d) of blocks of values (N, block, d) by weights (N, queries, positions)."""
    parts = weights.chunk(len(values), dim=-1)
    mixed = torch.bmm(parts[0], values[0])
    for part, block in zip(parts[1:], values[1:], strict=True):
        mixed.baddbmm_(part, block)
    return mixed


def write(cache: Cache, layer: int, chosen: Tensor, k: Tensor, v: Tensor, start: int) -> None:
    """Puts keys and values (P, key heads, T, d) into the blocks of the `chosen` sequences (P,) from `start` on.

    What lies beyond the last block is left out.
    """
    size = cache.keys.shape[-2]
    end = min(start + k.shape[2], cache.keys.shape[1] * size)
    for block in range(start // size, -(-end // size)):
        first, last = max(start, block * size), min(end, (block + 1) * size)
        for held, new in ((cache.keys, k), (cache.values, v)):
            held[layer, block, chosen, :, first - block * size : last - block * size] = new[
                :, :, first - start : last - start
            ]


def copy(cache: Cache, source: int, targets: Sequence[int], length: int) -> None:
    """Gives sequences `targets` the first `length` tokens of sequence `source`."""
    if targets and length:
        chosen = torch.as_tensor(list(targets), device=cache.keys.device)
        blocks = -(-length // cache.keys.shape[-2])
        for held in (cache.keys, cache.values):
            held[:, :blocks, chosen] = held[:, :blocks, source : source + 1]


def swap(cache: Cache, one: int, other: int, length: int) -> None:
    """Exchanges the first `length` tokens of two sequences."""
    blocks = -(-length // cache.keys.shape[-2])
    for held in (cache.keys, cache.values):
        kept = held[:, :blocks, one].clone()
        held[:, :blocks, one] = held[:, :blocks, other]
        held[:, :blocks, other] = kept


def save(cache: Cache, sequence: int, length: int) -> Tensor:
    """Keys and values (2, layers, key heads, length, d) of the first `length` tokens of a sequence, as a copy."""
    blocks = -(-length // cache.keys.shape[-2])
    held = torch.stack([part[:, :blocks, sequence] for part in (cache.keys, cache.values)])
    return held.transpose(2, 3).flatten(3, 4)[..., :length, :].clone()


def restore(cache: Cache, sequence: int, saved: Tensor) -> None:
    """Puts back what `save` gave."""
    size = cache.keys.shape[-2]
    for begin in range(0, saved.shape[3], size):
        part = saved[..., begin : begin + size, :]
        for held, kept in zip((cache.keys, cache.values), part, strict=True):
            held[:, begin // size, sequence, :, : part.shape[3]] = kept


def sequences(cache: Cache, layer: int, chosen: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Keys and values (P, key heads, length, d) of the first `length` positions of the `chosen` sequences (P,)."""
    blocks = -(-length // cache.keys.shape[-2])
    keys, values = (
        held[layer][:blocks, chosen].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length]
        for held in (cache.keys, cache.values)
    )
    return keys, values

"""Which items a step takes: every item once an epoch, in an order that the seed and the epoch alone decide.

Nothing has to be remembered for a resume: the step says where in the data it is.
"""

from __future__ import annotations

import numpy as np

from ponder.errors import InputError


def batch(count: int, size: int, step: int, seed: int) -> list[int]:
    """The `size` items out of `count` that step 1, 2, ... takes. Raises InputError where there are none."""
    if count < 1:
        raise InputError("the dataset is empty", "Give one with at least one example")
    return [_item(count, place, seed) for place in range((step - 1) * size, step * size)]


def _item(count: int, place: int, seed: int) -> int:
    epoch, within = divmod(place, count)
    return int(_order(count, epoch, seed)[within])


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _order(count: int, epoch: int, seed: int) -> np.ndarray:
    key = (count, epoch, seed)
    if key not in _orders:
        _orders.clear()  # epochs follow each other: the last one is done with
        _orders[key] = np.random.default_rng([seed, epoch]).permutation(count)
    return _orders[key]

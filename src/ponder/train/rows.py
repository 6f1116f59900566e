"""What a trainer computes on: sequences of tokens, packed side by side without padding.

A micro-batch is one long row of tokens, of as many whole sequences as fit into its token budget; nothing is spent on
padding, and a loss that is a sum over tokens is the same however the sequences are shared out. Every divisor is in
the tokens' own weights, worked out over the whole batch before it is split: so accumulation over micro-batches, and
over devices, adds up to exactly what one large batch would give.

A sequence may have branches: tokens that continue the sequence from somewhere and that its later tokens do not see,
such as the question a reward model is asked after each step. One pass then computes what they share once.

Source for packing without cross-contamination: Krell et al., Efficient Sequence Packing (2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ponder.errors import InputError


@dataclass(frozen=True)
class Row:
    """A sequence of tokens. `mask[t]`: token t is learnt from, being predicted from what comes before it.

    values: further numbers a token, each as long as `ids` ("weight", "advantage", ...). positions: where each token
    stands, 0, 1, 2, ... unless there are branches. branch: 0 for the trunk; a token sees the trunk up to its own
    position, and its own branch.
    """

    ids: Sequence[int]
    mask: Sequence[bool]
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    positions: Sequence[int] | None = None
    branch: Sequence[int] | None = None

    def __post_init__(self) -> None:
        sizes = {len(self.mask), *(len(value) for value in self.values.values())}
        sizes |= {len(each) for each in (self.positions, self.branch) if each is not None}
        if sizes != {len(self.ids)}:
            raise ValueError(f"a row of {len(self.ids)} tokens has values of {sorted(sizes)}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def learnt(self) -> int:
        """Tokens that are learnt from; the first one of a sequence, predicted from nothing, never is."""
        return sum(self.mask[1:])


@dataclass(frozen=True)
class Pack:
    """A micro-batch: all of shape (tokens,), but `lengths` (sequences,).

    sequence: number of the row in this pack; rows: their numbers in the batch. previous: index of the token from whose
    hidden state a token is predicted. `branch` is None where no row has one.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    sequence: Tensor
    previous: Tensor
    lengths: Tensor
    values: Mapping[str, Tensor]
    rows: tuple[int, ...]
    branch: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Pack:
        """The same on another device."""
        return Pack(
            self.ids.to(device),
            self.mask.to(device),
            self.positions.to(device),
            self.sequence.to(device),
            self.previous.to(device),
            self.lengths.to(device),
            {name: value.to(device) for name, value in self.values.items()},
            self.rows,
            None if self.branch is None else self.branch.to(device),
        )


def packed(rows: Sequence[Row], tokens: int, numbers: Sequence[int] | None = None) -> list[Pack]:
    """The rows in micro-batches of at most `tokens` tokens, longest first: neighbours have like lengths.

    `numbers` are the rows' numbers in the batch, 0, 1, 2, ... unless given. Raises InputError for a row that does not
    fit.
    """
    numbers = range(len(rows)) if numbers is None else numbers
    check_fit(rows, tokens)
    order = sorted(range(len(rows)), key=lambda at: (-len(rows[at]), at))
    groups: list[list[int]] = []
    room = 0
    for at in order:
        if len(rows[at]) > room:
            groups.append([])
            room = tokens
        groups[-1].append(at)
        room -= len(rows[at])
    return [_pack([rows[at] for at in group], tuple(numbers[at] for at in group)) for group in groups]


def check_fit(rows: Sequence[Row], tokens: int) -> None:
    """Raises InputError where a row does not fit into micro-batches of `tokens`."""
    longest = max((len(row) for row in rows), default=0)
    if longest > tokens:
        raise InputError(
            f"a sequence of {longest} tokens does not fit into micro-batches of {tokens}",
            f"Set tokens to at least {longest}, or leave long sequences out with longest",
        )


def _pack(rows: Sequence[Row], numbers: tuple[int, ...]) -> Pack:
    lengths = torch.tensor([len(row) for row in rows])
    starts = [0, *lengths.cumsum(0).tolist()]
    mask = _joined([row.mask for row in rows], torch.bool)
    previous = torch.arange(len(mask)) - 1
    branched = any(row.branch is not None for row in rows)
    for row, start in zip(rows, starts, strict=False):
        mask[start] = False
        previous[start] = start
        if row.branch is not None:
            previous[start : start + len(row)] = torch.tensor(_before(row)) + start
    names = rows[0].values.keys()
    if any(row.values.keys() != names for row in rows):
        raise ValueError(f"rows of one batch have different values: {[sorted(row.values) for row in rows]}")
    return Pack(
        ids=_joined([row.ids for row in rows], torch.long),
        mask=mask,
        positions=_joined([row.positions or range(len(row)) for row in rows], torch.long),
        sequence=torch.repeat_interleave(torch.arange(len(rows)), lengths),
        previous=previous,
        lengths=lengths,
        values={name: _joined([row.values[name] for row in rows], torch.float32) for name in names},
        rows=numbers,
        branch=_joined([row.branch or [0] * len(row) for row in rows], torch.long) if branched else None,
    )


def _joined(parts: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    return torch.cat([torch.tensor(part, dtype=dtype) for part in parts])


def _before(row: Row) -> list[int]:
    """For each token of a row with branches, the index of the token before it as the model sees them."""
    assert row.branch is not None
    last: dict[int, int] = {}
    places, before = row.positions or range(len(row)), []
    trunk: dict[int, int] = {}
    for at, (branch, place) in enumerate(zip(row.branch, places, strict=True)):
        # A branch goes on from its own last token, and begins after the trunk's token one position earlier.
        before.append(last[branch] if branch in last else trunk.get(place - 1, at))
        last[branch] = at
        if branch == 0:
            trunk[place] = at
    return before


def branched(trunk: Sequence[int], ends: Sequence[int], tail: Sequence[int], values: Sequence[float]) -> Row:
    """A row of `trunk`, with `tail` asked after each of its beginnings of length `ends`: branch k, value "target".

    Only the last token of each tail is learnt from, and its value is values[k].
    """
    ids, mask, places, branch, targets = (
        list(trunk),
        [False] * len(trunk),
        list(range(len(trunk))),
        [0] * len(trunk),
        [0.0] * len(trunk),
    )
    for number, (end, value) in enumerate(zip(ends, values, strict=True), start=1):
        ids += tail
        mask += [False] * (len(tail) - 1) + [True]
        places += range(end, end + len(tail))
        branch += [number] * len(tail)
        targets += [0.0] * (len(tail) - 1) + [value]
    return Row(ids, mask, {"target": targets}, places, branch)

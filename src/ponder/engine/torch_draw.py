"""Drawing tokens on the device: one row of logits and one uniform number a sample, no word to the host.

    w_i = exp(z_i / T - max_j z_j / T),   token = the first i with w_1 + ... + w_i > u * sum_j w_j

The sum runs in two levels: over blocks of a few hundred tokens, then within the one block where it passes u. The
same sums give the log-probabilities. Filters are those of `sampling`, in its order: temperature, top-k, min-p, top-p.

The numbers come from a counter, not from a state: u depends on a job's seed, the sample's number and the position
alone, so a sample draws the same whatever runs beside it. The hash is splitmix64's finaliser.

Sources: Devroye, Non-Uniform Random Variate Generation (1986), III.2; Steele, Lea and Flood, Fast Splittable
Pseudorandom Number Generators (2014), section 5; Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.engine.sampling import _COLDEST, _HOTTEST

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""2^64 over the golden ratio, as a signed number: torch has no other."""

_HEAD = 1024
"""A filtered draw looks at so many of the likeliest tokens first."""

_ROWS = 16
"""Rows drawn at a time on a processor: their weights stay in its cache."""


@dataclass(frozen=True)
class Filters:
    """What `protocols.SamplingParams` says about choosing tokens."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if not (self.top_k >= 0 and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1):
            raise ValueError(f"top_k >= 0, 0 < top_p <= 1 and 0 <= min_p <= 1, not {self}")

    @property
    def off(self) -> bool:
        """Whether every token can be drawn."""
        return not self.top_k and self.top_p == 1 and self.min_p == 0


# ------------------------------------------------------------------------ numbers


def key(seed: int, index: int) -> int:
    """What the numbers of sample `index` of a job with this seed are made from; a signed word of 64 bits."""
    return _signed(_mixed_word(_mixed_word(seed % 2**64) + (index + 1) * _GOLDEN))


def uniform(keys: Tensor, positions: Tensor) -> Tensor:
    """Numbers in [0, 1), float64, for samples of these keys (int64) at these positions (int64)."""
    return _top(_mixed(keys + (positions + 1) * _GOLDEN), 53).double() * 2.0**-53


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _top(x, 34)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _top(x, 37)) * (0x94D049BB133111EB - 2**64)
    return x ^ _top(x, 33)


def _top(x: Tensor, bits: int) -> Tensor:
    """The upper bits of words as numbers: torch's own shift drags the sign along."""
    top: Tensor = (x >> (64 - bits)) & (2**bits - 1)
    return top


def _mixed_word(x: int) -> int:
    x %= 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


# ------------------------------------------------------------------------ drawing


def draw(logits: Tensor, numbers: Tensor, filters: Filters) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, log of the sum of exp(z), log of the sum of exp(z / T)), each (B,), for logits (B, vocabulary).

    `numbers` (B,) are float64 in [0, 1). The sums are over the whole vocabulary, before any filter; at temperature
    0, where the likeliest token is taken, the second is the first.
    """
    if logits.device.type != "cpu" or len(logits) <= _ROWS:
        return _drawn(logits, numbers, filters)
    begins = range(0, len(logits), _ROWS)
    parts = [_drawn(logits[at : at + _ROWS], numbers[at : at + _ROWS], filters) for at in begins]
    tokens, sums, tempered = (torch.cat(column) for column in zip(*parts, strict=True))
    return tokens, sums, tempered


def log_probabilities(
    logits: Tensor, tokens: Tensor, sums: Tensor, tempered: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B,) of tokens at temperature 1 and at `temperature`, from what `draw` returned."""
    chosen = logits.gather(1, tokens[:, None])[:, 0]
    if temperature in (0, 1):
        return chosen - sums, chosen - sums
    return chosen - sums, chosen * (1 / bounded(temperature)) - tempered


def _drawn(logits: Tensor, numbers: Tensor, filters: Filters) -> tuple[Tensor, Tensor, Tensor]:
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp_()
    blocks = _blocks(weights)
    sums = peak[:, 0] + blocks.sum(-1, dtype=torch.float64).log().float()
    if filters.temperature == 0:
        return logits.argmax(-1), sums, sums
    tempered = sums
    if filters.temperature != 1:
        warmth = 1 / bounded(filters.temperature)
        weights = (logits - peak).mul_(warmth).exp_()
        blocks = _blocks(weights)
        tempered = peak[:, 0] * warmth + blocks.sum(-1, dtype=torch.float64).log().float()
    if not filters.off:
        return _filtered(weights, numbers, filters), sums, tempered
    return _placed(weights, blocks, numbers), sums, tempered


def bounded(temperature: float) -> float:
    """Temperatures beyond the bounds sample alike, and scaling by them could leave the range of float32."""
    return min(max(temperature, _COLDEST), _HOTTEST)


def block_of(vocabulary: int) -> int:
    """Tokens of a block: a divisor of the vocabulary near 256, so that no row has to be copied to be cut."""
    divisors = [size for size in range(64, 513) if vocabulary % size == 0]
    return min(divisors, key=lambda size: abs(size - 256)) if divisors else 256


def _blocks(weights: Tensor) -> Tensor:
    """Sums (B, blocks) of weights (B, vocabulary)."""
    rows, vocabulary = weights.shape
    block = block_of(vocabulary)
    if vocabulary % block == 0:
        return weights.view(rows, -1, block).sum(-1)
    whole = vocabulary - vocabulary % block
    rest = weights[:, whole:].sum(-1, keepdim=True)
    return torch.cat((weights[:, :whole].reshape(rows, -1, block).sum(-1), rest), dim=1)


def _placed(weights: Tensor, blocks: Tensor, numbers: Tensor) -> Tensor:
    """Where u times the sum of the weights is passed: never at a weight of 0."""
    vocabulary = weights.shape[1]
    number, within = _passed(blocks, numbers)
    block = block_of(vocabulary)
    places = number[:, None] * block + torch.arange(block, device=weights.device)
    held = weights.gather(1, places.clamp(max=vocabulary - 1))
    if vocabulary % block:
        held = held.masked_fill(places >= vocabulary, 0)
    return number * block + _passed(held, within)[0]


def _passed(weights: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The first place of each row whose running sum is beyond u of the total, and how far into its share that is."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    last = (cumulative < total).sum(-1)  # rounding must not lead beyond the last weight
    place = torch.minimum((cumulative <= numbers[:, None] * total).sum(-1), last)[:, None]
    share = weights.gather(1, place).double()
    before = cumulative.gather(1, place) - share
    within = ((numbers[:, None] * total - before) / share).clamp(0, 1 - 2.0**-53)
    return place[:, 0], within[:, 0]


def _filtered(weights: Tensor, numbers: Tensor, filters: Filters) -> Tensor:
    vocabulary = weights.shape[1]
    if filters.top_k:
        return _among(*weights.topk(min(filters.top_k, vocabulary)), numbers, filters)
    if weights.device.type == "cpu" and vocabulary > _HEAD:
        # Sorting a whole vocabulary takes longer than the model does; a look at the result costs nothing here.
        heaviest, ids = weights.topk(_HEAD)
        if bool(_enough(heaviest, weights, filters)):
            return _among(heaviest, ids, numbers, filters, weights.sum(-1, dtype=torch.float64))
    return _among(*weights.sort(descending=True), numbers, filters)


def _enough(heaviest: Tensor, weights: Tensor, filters: Filters) -> Tensor:
    """Whether what the filters keep is all among the heaviest."""
    cut = heaviest[:, -1] < filters.min_p * heaviest[:, 0]
    if filters.top_p < 1 and filters.min_p == 0:
        cut |= heaviest.sum(-1, dtype=torch.float64) >= filters.top_p * weights.sum(-1, dtype=torch.float64)
    return cut.all()


def _among(heaviest: Tensor, ids: Tensor, numbers: Tensor, filters: Filters, total: Tensor | None = None) -> Tensor:
    """Tokens drawn from `heaviest` (B, k), in falling order, after min-p and top-p.

    total: the sum that top-p is a share of; None where it is that of what min-p leaves.
    """
    kept = heaviest
    if filters.min_p > 0:
        kept = kept.masked_fill(kept < filters.min_p * kept[:, :1], 0)
    if filters.top_p < 1:
        cumulative = kept.cumsum(-1, dtype=torch.float64)
        whole = cumulative[:, -1] if total is None or filters.min_p > 0 else total
        before = cumulative - kept
        kept = kept.masked_fill(before >= filters.top_p * whole[:, None], 0)
    return ids.gather(1, _passed(kept, numbers)[0][:, None])[:, 0]


def reference(logits: Tensor, numbers: Tensor, filters: Filters) -> list[int]:
    """What `draw` draws, by the definition, token after token in float64: slow, to compare with."""
    drawn = []
    for row, number in zip(logits.double().tolist(), numbers.tolist(), strict=True):
        if filters.temperature == 0:
            drawn.append(max(range(len(row)), key=row.__getitem__))
            continue
        peak = max(row)
        weights = [
            (i, torch.exp(torch.tensor((z - peak) / bounded(filters.temperature))).item()) for i, z in enumerate(row)
        ]
        drawn.append(_walked(_kept(weights, filters), number))
    return drawn


def _kept(weights: list[tuple[int, float]], filters: Filters) -> list[tuple[int, float]]:
    if filters.off:
        return weights
    heaviest = sorted(weights, key=lambda pair: -pair[1])[: filters.top_k or None]
    heaviest = [pair for pair in heaviest if pair[1] >= filters.min_p * heaviest[0][1]]
    wanted = filters.top_p * sum(weight for _, weight in heaviest)
    before = itertools.accumulate((weight for _, weight in heaviest), initial=0.0)
    return [pair for pair, sum_before in zip(heaviest, before, strict=False) if sum_before < wanted]


def _walked(weights: list[tuple[int, float]], number: float) -> int:
    wanted = number * sum(weight for _, weight in weights)
    running = itertools.accumulate(weight for _, weight in weights)
    return next((i for (i, _), sum_so_far in zip(weights, running, strict=True) if sum_so_far > wanted), weights[-1][0])

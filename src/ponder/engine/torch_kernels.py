"""Triton kernels of a decoding step on a GPU, each beside the slow torch code that defines what it computes.

    attend   decode attention over grouped heads and real lengths, split over the sequence
    norm     RMSNorm with the residual added on the way
    turn     rotary positions, keys and values written into the cache
    choose   log of a sum of exponentials and a drawn token, in two readings of the logits

What they save is memory traffic and launches: a row reads its own keys alone, where a product over blocks reads as
many as the longest row has. Sources: Dao et al., Flash-Decoding (2023), for the split; Milakov and Gimelshein, Online
Normalizer Calculation for Softmax (2018), for sums that are rescaled when a larger score comes.

Importing this needs triton. TRITON_INTERPRET=1 runs the kernels on a processor, for tests.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# What triton compiles takes pointers, and says so by use alone.

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

SPLIT = 512
"""Positions that one program attends to; a multiple of a block of the cache."""

# ------------------------------------------------------------------------ attention


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _attend(
    q, keys, values, positions, parts, peaks, sums,
    block_stride, row_stride, scale, softcap,
    WINDOW: tl.constexpr, HEADS: tl.constexpr, GROUPS: tl.constexpr, PADDED: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, SPLIT_SIZE: tl.constexpr,
):  # fmt: skip
    """One program: a row, a key head, a stretch of SPLIT_SIZE positions. GROUPS query heads share its keys."""
    row, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    last = tl.load(positions + row)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(last - WINDOW + 1, 0)
    group, lane = tl.arange(0, PADDED), tl.arange(0, WIDTH)
    asked = group < GROUPS
    from_q = ((row * HEADS + head) * GROUPS + group)[:, None] * WIDTH + lane[None, :]
    query = tl.load(q + from_q, mask=asked[:, None], other=0.0)
    peak = tl.full((PADDED,), float("-inf"), tl.float32)
    total = tl.zeros((PADDED,), tl.float32)
    mixed = tl.zeros((PADDED, WIDTH), tl.float32)
    begin = tl.maximum(part * SPLIT_SIZE, first // STEP * STEP)
    end = tl.minimum((part + 1) * SPLIT_SIZE, last + 1)
    for start in range(begin, end, STEP):
        place = start + tl.arange(0, STEP)
        seen = (place <= last) & (place >= first)
        slot = (place // BLOCK).to(tl.int64) * block_stride + (head * BLOCK + place % BLOCK) * WIDTH
        held = (slot + row.to(tl.int64) * row_stride)[:, None] + lane[None, :]
        key = tl.load(keys + held, mask=seen[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        if softcap > 0:
            score = softcap * (1 - 2 / (tl.exp(2 * score / softcap) + 1))  # tanh, without an extern library
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp(score - safe[:, None])
        rescale = tl.exp(peak - safe)
        value = tl.load(values + held, mask=seen[:, None], other=0.0)
        total = total * rescale + tl.sum(weight, 1)
        mixed = mixed * rescale[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        peak = higher
    where = ((part * tl.num_programs(0) + row) * HEADS + head) * GROUPS + group
    tl.store(parts + where[:, None] * WIDTH + lane[None, :], mixed, mask=asked[:, None])
    tl.store(peaks + where, peak, mask=asked)
    tl.store(sums + where, total, mask=asked)


def attend(
    q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, reach: int, scale: float,
    window: int | None = None, softcap: float | None = None,
) -> Tensor:  # fmt: skip
    """Attention (B, heads, d) of queries (B, heads, d) over one layer's cache (blocks, slots, key heads, R, d).

    Row i sees positions up to `positions[i]` (B,) < `reach`, and the last `window` of them only.
    """
    rows, heads, width = q.shape
    _, _, key_heads, block, _ = keys.shape
    groups, splits = heads // key_heads, -(-reach // SPLIT)
    parts = torch.empty(splits, rows, heads, width, dtype=torch.float32, device=q.device)
    peaks, sums = (torch.empty(splits, rows, heads, dtype=torch.float32, device=q.device) for _ in range(2))
    _attend[(rows, key_heads, splits)](
        q.contiguous(), keys, values, positions, parts, peaks, sums,
        keys.stride(0), keys.stride(1), scale, softcap or 0.0,
        WINDOW=window or 0, HEADS=key_heads, GROUPS=groups, PADDED=max(16, triton.next_power_of_2(groups)),
        WIDTH=width, BLOCK=block, STEP=min(64, block), SPLIT_SIZE=SPLIT,
    )  # fmt: skip
    if splits == 1:
        return (parts[0] / sums[0][..., None]).to(q.dtype)
    share = torch.exp(peaks - peaks.amax(0)) * sums
    weight = torch.exp(peaks - peaks.amax(0)) / share.sum(0)
    return (parts * weight[..., None]).sum(0).to(q.dtype)


def attend_slowly(
    q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, reach: int, scale: float,
    window: int | None = None, softcap: float | None = None,
) -> Tensor:  # fmt: skip
    """What `attend` computes, a row at a time in float64."""
    mixed = []
    for row, place in enumerate(positions.tolist()):
        first = 0 if window is None else max(0, place - window + 1)
        k, v = (cache[:, row].transpose(0, 1).flatten(1, 2)[:, first : place + 1].double() for cache in (keys, values))
        grouped = q[row].double().view(k.shape[0], -1, q.shape[-1])
        scores = grouped @ k.transpose(1, 2) * scale
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        mixed.append((scores.softmax(-1) @ v).flatten(0, 1))
    return torch.stack(mixed).to(q.dtype)


# ------------------------------------------------------------------------ norm


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _norm(x, added, weight, out, width, epsilon, PLUS_ONE: tl.constexpr, ADDS: tl.constexpr, SIZE: tl.constexpr):
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, SIZE)
    inside = lane < width
    value = tl.load(x + row * width + lane, mask=inside, other=0.0)
    if ADDS:
        value = value + tl.load(added + row * width + lane, mask=inside, other=0.0)
        tl.store(x + row * width + lane, value, mask=inside)
    wide = value.to(tl.float32)
    scale = tl.load(weight + lane, mask=inside, other=0.0).to(tl.float32)
    if PLUS_ONE:
        scale += 1
    normal = wide / tl.sqrt(tl.sum(wide * wide) / width + epsilon) * scale
    tl.store(out + row * width + lane, normal.to(value.dtype), mask=inside)


def norm(x: Tensor, weight: Tensor, epsilon: float, added: Tensor | None = None, plus_one: bool = False) -> Tensor:
    """RMSNorm of x + added; x (B, width) becomes that sum in its place."""
    out = torch.empty_like(x)
    rows, width = x.shape
    _norm[(rows,)](
        x, x if added is None else added, weight, out, width, epsilon,
        PLUS_ONE=plus_one, ADDS=added is not None, SIZE=triton.next_power_of_2(width),
    )  # fmt: skip
    return out


def norm_slowly(
    x: Tensor, weight: Tensor, epsilon: float, added: Tensor | None = None, plus_one: bool = False
) -> Tensor:
    """What `norm` computes."""
    if added is not None:
        x.add_(added)
    wide = x.float()
    scale = weight.float() + 1 if plus_one else weight.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon) * scale).to(x.dtype)


# ------------------------------------------------------------------------ rotary positions and cache


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _turn(
    joined, cos, sin, positions, q, keys, values, block_stride, row_stride,
    QUERIES: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: a head of a row; the first QUERIES are queries, then HEADS keys, then HEADS values."""
    row, head, lane = tl.program_id(0), tl.program_id(1), tl.arange(0, WIDTH)
    place = tl.load(positions + row)
    base = (row * (QUERIES + 2 * HEADS) + head) * WIDTH
    value = tl.load(joined + base + lane)
    slot = (place // BLOCK).to(tl.int64) * block_stride + row.to(tl.int64) * row_stride + (place % BLOCK) * WIDTH + lane
    if head < QUERIES + HEADS:
        other = tl.load(joined + base + (lane + WIDTH // 2) % WIDTH)
        c, s = tl.load(cos + place * WIDTH + lane), tl.load(sin + place * WIDTH + lane)
        turned = (value.to(tl.float32) * c.to(tl.float32) + other.to(tl.float32) * s.to(tl.float32)).to(value.dtype)
        if head < QUERIES:
            tl.store(q + (row * QUERIES + head) * WIDTH + lane, turned)
        else:
            tl.store(keys + slot + (head - QUERIES) * BLOCK * WIDTH, turned)
    else:
        tl.store(values + slot + (head - QUERIES - HEADS) * BLOCK * WIDTH, value)


def turn(joined: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Turned queries (B, heads, d) of `joined` (B, heads + 2 key heads, d); its keys and values go into the cache.

    cos and sin (context, d) are the decoder's: the first half of sin has its sign changed.
    """
    rows, heads, width = joined.shape
    _, _, key_heads, block, _ = keys.shape
    queries = heads - 2 * key_heads
    q = torch.empty(rows, queries, width, dtype=joined.dtype, device=joined.device)
    _turn[(rows, heads)](
        joined.contiguous(), cos, sin, positions, q, keys, values, keys.stride(0), keys.stride(1),
        QUERIES=queries, HEADS=key_heads, WIDTH=width, BLOCK=block,
    )  # fmt: skip
    return q


def turn_slowly(joined: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What `turn` does."""
    _, _, key_heads, block, _ = keys.shape
    q, k, v = joined.split([joined.shape[1] - 2 * key_heads, key_heads, key_heads], dim=1)
    for row, place in enumerate(positions.tolist()):
        keys[place // block, row, :, place % block] = _turned(k[row], cos[place], sin[place])
        values[place // block, row, :, place % block] = v[row]
    return torch.stack([_turned(q[row], cos[place], sin[place]) for row, place in enumerate(positions.tolist())])


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (x.float() * cos.float() + x.float().roll(x.shape[-1] // 2, -1) * sin.float()).to(x.dtype)


# ------------------------------------------------------------------------ drawing


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _weigh(logits, peaks, plain, warm, vocabulary, blocks, warmth, SIZE: tl.constexpr):
    """One program: a block of a row; its largest logit, and both sums of exponentials below that."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = block * SIZE + tl.arange(0, SIZE)
    z = tl.load(logits + row * vocabulary + place, mask=place < vocabulary, other=float("-inf")).to(tl.float32)
    peak = tl.max(z)
    below = tl.where(z == float("-inf"), float("-inf"), z - tl.where(peak == float("-inf"), 0.0, peak))
    tl.store(peaks + row * blocks + block, peak)
    tl.store(plain + row * blocks + block, tl.sum(tl.exp(below)))
    tl.store(warm + row * blocks + block, tl.sum(tl.exp(below * warmth)))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _pick(logits, peaks, block_of, within, tokens, vocabulary, warmth, SIZE: tl.constexpr):
    """One program: a row; the token in its block where the share `within` is passed."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, SIZE)
    block = tl.load(block_of + row)
    place = block * SIZE + lane
    z = tl.load(logits + row * vocabulary + place, mask=place < vocabulary, other=float("-inf")).to(tl.float32)
    weight = tl.exp((z - tl.load(peaks + row)) * warmth)
    running = tl.cumsum(weight)
    total = tl.sum(weight)
    passed = (running > tl.load(within + row) * total) & (weight > 0)
    beyond = tl.where(passed, lane, SIZE)
    final = tl.max(tl.where(weight > 0, lane, 0))  # rounding must not lead beyond the last weight
    tl.store(tokens + row, block * SIZE + tl.minimum(tl.min(beyond), final))


def choose(logits: Tensor, numbers: Tensor, temperature: float, size: int = 1024) -> tuple[Tensor, Tensor, Tensor]:
    """What `torch_draw.draw` gives without filters, at a temperature above 0: the logits (B, vocabulary), of any
    floating type, are read once, and of each row one block again."""
    rows, vocabulary = logits.shape
    blocks, warmth = -(-vocabulary // size), 1 / temperature
    peaks, plain, warm = (torch.empty(rows, blocks, dtype=torch.float32, device=logits.device) for _ in range(3))
    _weigh[(rows, blocks)](logits, peaks, plain, warm, vocabulary, blocks, warmth, SIZE=size)
    peak = peaks.amax(-1, keepdim=True)
    cumulative = (warm.double() * torch.exp((peaks - peak).double() * warmth)).cumsum(-1)
    wanted = numbers[:, None] * cumulative[:, -1:]
    last = (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
    block = torch.minimum((cumulative <= wanted).sum(-1, keepdim=True), last)
    upper = cumulative.gather(1, block)
    lower = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    within = ((wanted - lower) / (upper - lower)).clamp(0, 1 - 2.0**-24).float()
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _pick[(rows,)](
        logits, peaks.gather(1, block).contiguous(), block.contiguous(), within, tokens, vocabulary, warmth, SIZE=size
    )
    sums = peak[:, 0] + (plain.double() * torch.exp((peaks - peak).double())).sum(-1).log().float()
    return tokens, sums, peak[:, 0] * warmth + cumulative[:, -1].log().float()

"""Runs the Triton kernels in Triton's interpreter beside their definitions, and prints the largest differences.

A program of its own: the interpreter is chosen by the environment before triton is imported. Last line: JSON.
"""

from __future__ import annotations

import json

import torch
from tiny import tiny_model

from ponder.engine import torch_kernels as kernels
from ponder.engine.torch_decoder import Decoder
from ponder.engine.torch_draw import Filters, draw


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


def attention() -> dict[str, float]:
    found = {}
    for name, (heads, key_heads, width, window, softcap, dtype) in {
        "grouped": (9, 3, 64, None, None, torch.float32),
        "window": (4, 4, 32, 70, None, torch.float32),
        "softcap": (4, 1, 16, None, 5.0, torch.float32),
        "narrow": (8, 2, 64, None, None, torch.float16),
    }.items():
        q = torch.randn(4, heads, width).to(dtype)
        keys, values = (torch.randn(9, 6, key_heads, 128, width).to(dtype) for _ in range(2))
        positions = torch.tensor([0, 127, 128, 1100])  # one, a block, a block and one, three splits
        settings = (positions, 1152, width**-0.5, window, softcap)
        found[name] = difference(
            kernels.attend(q, keys, values, *settings), kernels.attend_slowly(q, keys, values, *settings)
        )
    short = torch.randn(2, 2, 32)
    cache = torch.randn(2, 2, 1, 128, 32)
    settings = (torch.tensor([3, 200]), 256, 0.2)
    found["one split"] = difference(
        kernels.attend(short, cache, cache, *settings), kernels.attend_slowly(short, cache, cache, *settings)
    )
    return found


def norms() -> dict[str, float]:
    found = {}
    for name, added, plus_one in (("plain", False, False), ("residual", True, False), ("gemma", True, True)):
        x, weight = torch.randn(5, 96), torch.randn(96)
        more = torch.randn(5, 96) if added else None
        ours, theirs = x.clone(), x.clone()
        out = difference(
            kernels.norm(ours, weight, 1e-5, more, plus_one), kernels.norm_slowly(theirs, weight, 1e-5, more, plus_one)
        )
        found[name] = max(out, difference(ours, theirs))
        assert added != torch.equal(ours, x)
    return found


def rotary() -> dict[str, float]:
    joined, positions = torch.randn(3, 4 + 2 * 2, 16), torch.tensor([5, 130, 0])
    cos, sin = torch.randn(200, 16), torch.randn(200, 16)
    ours = [torch.zeros(2, 4, 2, 128, 16) for _ in range(2)]
    theirs = [torch.zeros(2, 4, 2, 128, 16) for _ in range(2)]
    q = difference(
        kernels.turn(joined, cos, sin, positions, *ours), kernels.turn_slowly(joined, cos, sin, positions, *theirs)
    )
    assert all(int((cache != 0).any(-1).sum()) == 6 for cache in ours)
    return {"queries": q, "keys": difference(ours[0], theirs[0]), "values": difference(ours[1], theirs[1])}


def drawing() -> dict[str, float]:
    found = {}
    for temperature in (0.7, 1.0, 1.5):
        logits = torch.randn(40, 2500) * 3
        logits[:, 1024:2048] = -torch.inf
        numbers = torch.rand(40, dtype=torch.float64)
        numbers[0], numbers[1] = 0.0, 1 - 2.0**-53
        tokens, sums, warm = kernels.choose(logits, numbers, temperature)
        wanted, wanted_sums, wanted_warm = draw(logits, numbers, Filters(temperature))
        found[f"tokens at {temperature}"] = float((tokens != wanted).sum())
        found[f"sums at {temperature}"] = max(difference(sums, wanted_sums), difference(warm, wanted_warm))
    return found


def decoding() -> dict[str, float]:
    """A whole step with the kernels beside one without, relative to the largest logit."""
    found = {}
    for kind, config in {
        "llama": {}, "qwen3": {}, "smollm3": {"num_hidden_layers": 4}, "gemma2": {"sliding_window": 7},
    }.items():  # fmt: skip
        model = tiny_model(kind, hidden_size=64, head_dim=16, **config)
        plain, fused = Decoder(model, 3, 200), Decoder(model, 3, 200, fused=True)
        ids = torch.randint(5, 250, (3, 140))
        for decoder in (plain, fused):
            decoder.prefill(ids, [0, 1, 2])
        worst = 0.0
        for step in range(3):
            places = torch.tensor([20, 126, 140]) + step
            logits = [d.logits(d.decode(ids[:, step], places, 256)) for d in (plain, fused)]
            worst = max(worst, difference(*logits) / float(logits[0].abs().max()))
        found[kind] = worst
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(
        json.dumps(
            {
                "attention": attention(),
                "norms": norms(),
                "rotary": rotary(),
                "drawing": drawing(),
                "decoding": decoding(),
            }
        )
    )

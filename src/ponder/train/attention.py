"""Attention over packed sequences: each token sees what comes before it in its own sequence, and nothing else.

The products with weights run over the packed tokens, without padding. Attention alone, a small part of the work
for sequences of hundreds of tokens, is computed as a batch of sequences padded to the longest, by PyTorch's own
kernels; on a GPU in half precision `varlen_attn` needs no padding there either. What pads stands behind the
last real token, where causal attention never looks.

It is registered with transformers under a name, and so runs inside its models' own forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ponder.errors import InputError
from ponder.train.rows import Pack

NAME = "ponder_packed"

SHORT = 512
"""Tokens of a sequence up to which the processor's kernel has its gradient sooner in float32 than in bfloat16."""


@dataclass(frozen=True)
class Layout:
    """How the tokens of a pack stand beside each other, in the form that attention needs.

    gather: (sequences, longest) indices of tokens; row and column: (tokens,) places in it. seen: (sequences, 1,
    longest, longest), which token may look at which, where that is not simply "those before it". place: (sequences,
    longest) positions as the model knows them.
    """

    gather: Tensor
    row: Tensor
    column: Tensor
    place: Tensor
    seen: Tensor | None
    cumulative: Tensor
    longest: int

    @classmethod
    def of(cls, pack: Pack) -> Layout:
        """The layout of a pack, on the pack's device."""
        lengths = pack.lengths
        starts = lengths.cumsum(0) - lengths
        longest = int(lengths.max())
        column = torch.arange(len(pack), device=pack.ids.device) - starts[pack.sequence]
        reach = torch.arange(longest, device=pack.ids.device)
        gather = torch.minimum(starts[:, None] + reach, (starts + lengths - 1)[:, None])
        cumulative = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)
        return cls(gather, pack.sequence, column, pack.positions[gather], _seen(pack, gather), cumulative, longest)


def _seen(pack: Pack, gather: Tensor) -> Tensor | None:
    if pack.branch is None:
        return None
    branch, place = pack.branch[gather], pack.positions[gather]
    order = torch.arange(gather.shape[1], device=gather.device)
    earlier = order[:, None] >= order
    same = branch[:, :, None] == branch[:, None, :]
    # A branch sees the trunk up to where it began, which is its own first position.
    began = torch.where(same, place[:, None, :], gather.numel()).amin(-1)
    trunk = (branch[:, None, :] == 0) & (place[:, None, :] < began[:, :, None])
    return ((earlier & same) | (trunk & ~same))[:, None]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for attention: query (1, heads, tokens, d); gives (1, tokens, heads, d)."""
    if more.get("s_aux") is not None:
        raise InputError("the model attends to sinks, which packed attention does not have", "Take another model")
    if layout is None:
        return _unpacked(module, query, key, value, attention_mask, scaling, dropout, softcap, more)
    groups = query.shape[1] // key.shape[1]
    if query.is_cuda and layout.seen is None and sliding_window is None and softcap is None and not dropout:
        mixed = _varlen(query[0], key[0], value[0], layout, scaling, groups)
        if mixed is not None:
            return mixed[None], None
    q, k, v = (x[0][:, layout.gather].transpose(0, 1) for x in (query, key, value))
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    mask = _mask(layout, sliding_window)
    if q.device.type == "cpu" and torch.is_grad_enabled() and layout.longest <= SHORT:
        q, k, v = q.float(), k.float(), v.float()
    if softcap is None:
        padded = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )
    else:
        padded = _capped(q, k, v, mask, scaling, softcap, dropout)
    return padded.transpose(1, 2)[layout.row, layout.column][None].to(query.dtype), None


def _mask(layout: Layout, window: int | None) -> Tensor | None:
    if window is None or window >= layout.longest:
        return layout.seen
    if layout.seen is not None:
        return layout.seen & (layout.place[:, None, :] > layout.place[:, :, None] - window)[:, None]
    order = torch.arange(layout.longest, device=layout.gather.device)
    return (order[:, None] >= order) & (order > order[:, None] - window)


def _capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, softcap: float, dropout: float
) -> Tensor:
    scores = (q @ k.transpose(-1, -2)).float() * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        asked, there = scores.shape[-2:]
        mask = torch.ones(asked, there, dtype=torch.bool, device=q.device).tril(there - asked)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype)
    return functional.dropout(weights, dropout) @ v


def _unpacked(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    more: dict[str, Any],
) -> tuple[Tensor, None]:
    """For a model that is used beside its training: as transformers itself would, whose kernels know no softcap."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=True, **more
        )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    # A row that sees nothing is padding; it has to stay finite.
    seen = None if mask is None else mask | ~mask.any(-1, keepdim=True)
    return _capped(query, key, value, seen, scaling, softcap, dropout).transpose(1, 2).contiguous(), None


def _varlen(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scaling: float | None, groups: int) -> Tensor | None:
    """(tokens, heads, d) by the kernel for sequences of different lengths; None where this PyTorch or type has none."""
    if q.dtype not in (torch.float16, torch.bfloat16):
        return None
    if scaling is not None and abs(scaling * q.shape[-1] ** 0.5 - 1) > 1e-6:
        return None  # the kernel's own scale is the usual one
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    q, k, v = (x.transpose(0, 1).contiguous() for x in (q, k, v))
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    ends, longest = layout.cumulative, layout.longest
    mixed = varlen_attn(q, k, v, ends, ends, longest, longest, **_causal(varlen_attn))
    return mixed if isinstance(mixed, Tensor) else mixed[0]


def _causal(function: Any) -> dict[str, Any]:
    """How this PyTorch is told that attention is causal: it changed from a flag to a window."""
    import inspect

    return {"is_causal": True} if "is_causal" in inspect.signature(function).parameters else {"window_size": (-1, 0)}


def use(model: Any) -> None:
    """Lets a transformers model attend by `attend` from now on. Without a layout it attends as before."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.set_attn_implementation(NAME)

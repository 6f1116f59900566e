"""One step of a transformers model over many sequences at once, on the model's own living weights.

    prefill   prompts of any lengths enter rows of a static key-value cache
    decode    one more token of each of the first B rows, whatever their positions

The weights are read where the model keeps them: after a step of an optimiser the next token comes from the new
weights, with no copy and no message. Only where the arithmetic is to be narrower than the weights (bfloat16 over
float32 masters), adapters are to be folded in, or weights packed for speed, are copies kept, and `refresh` renews
them, on a GPU in place, so that a captured CUDA graph goes on reading the same memory.

The cache lies in blocks of positions (`torch_cache`). A row holds all its tokens, or only those after a prompt that it
shares with others (`torch_trunks`).

Covered are the models of one pattern: grouped attention with rotary positions and a gated feed-forward part (Llama,
SmolLM, Mistral, Qwen2, Qwen3, SmolLM3, Gemma, Gemma 2, Gemma 3). `torch_slow` runs any other, a sequence at a time.

Sources: Shazeer, Fast Transformer Decoding (2019); Ainslie et al., GQA (2023): the query heads of a group are rows
of one product, so a key is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ponder.engine import torch_cache
from ponder.engine.torch_cache import ROUND, Cache
from ponder.engine.torch_projection import Projection, packs
from ponder.engine.torch_trunks import Trunks

__all__ = ["PATTERN", "ROUND", "Decoder", "Interrupted", "covers", "fuses", "head_dim"]

PATTERN = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text")
"""`model_type` of the configurations whose models this decoder runs."""


def covers(model: nn.Module) -> bool:
    """Whether `Decoder` runs this model."""
    return getattr(getattr(model, "config", None), "model_type", None) in PATTERN


class Interrupted(Exception):
    """Somebody wants the computation to end: see `Decoder.interrupted`."""


@dataclass(frozen=True)
class _Norm:
    """x / sqrt(mean(x^2) + e) * w, or * (1 + w) in the Gemma family."""

    module: Any
    plus_one: bool
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        weight = self.module.weight
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:  # torch's own takes twice as many passes there
            wide = x.float()
            length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
            scale = length.square_().div_(x.shape[-1]).add_(self.epsilon).rsqrt_()
            scaled: Tensor = (wide * scale).mul_(weight.float() + self.plus_one)
            return scaled.to(x.dtype)
        if self.plus_one:
            return functional.rms_norm(x.float(), weight.shape, 1 + weight.float(), self.epsilon).to(x.dtype)
        return functional.rms_norm(x, weight.shape, weight.to(x.dtype), self.epsilon)


def _norm(module: Any) -> _Norm:
    epsilon = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return _Norm(module, type(module).__name__.startswith("Gemma"), float(epsilon))


@dataclass
class _Layer:
    norm: _Norm
    attention: Any
    qkv: Projection
    out: Projection
    after_attention: _Norm | None
    norm_feed: _Norm
    gate_up: Projection
    down: Projection
    norm_query: _Norm | None
    norm_key: _Norm | None
    after_feed: _Norm | None
    activation: Any
    window: int | None
    kind: str | None
    rotary: bool


class Decoder:
    """A model, and the keys and values of `slots` sequences of at most `context` tokens.

    dtype: of the arithmetic and of the cache; None takes that of the model's weights. fold: adds adapters into a copy
    of the weights at each `refresh`, which makes them free while decoding. pack: keeps a copy of the weights as
    oneDNN's product reads them fastest, on processors with bfloat16 arithmetic. fused: decodes with the kernels of
    `torch_kernels`, which need triton. share: rows hold only what follows their `trunks`; `reserve` then makes the
    room. Raises ValueError for a model that `covers` does not know, where `pack` has no effect, for heads that the
    kernels cannot take, or for trunks with kernels.
    """

    def __init__(
        self,
        model: nn.Module,
        slots: int,
        context: int,
        *,
        dtype: torch.dtype | None = None,
        fold: bool = False,
        pack: bool = False,
        fused: bool = False,
        share: bool = False,
    ) -> None:
        if not covers(model):
            raise ValueError(f"no decoder for {type(model).__name__}")
        self.model = model
        config: Any = model.config
        self.config = config
        self.slots, self.context = slots, context
        inner: Any = _inner(model)
        head: Any = _head(model)
        self.device: torch.device = inner.embed_tokens.weight.device
        self.dtype = dtype or inner.embed_tokens.weight.dtype
        self._inner, self._embed = inner, inner.embed_tokens
        if pack and not packs(self.device, self.dtype):
            raise ValueError(f"no packed weights on {self.device.type} in {self.dtype}")
        self._layers = [self._layer(layer, fold, pack) for layer in inner.layers]
        self._head = Projection([head], self.dtype, fold, pack)
        self._norm = _norm(inner.norm)
        self.head_dim = head_dim(model)
        self.key_heads: int = config.num_key_value_heads
        self.groups: int = config.num_attention_heads // self.key_heads
        self.make_room(0 if share else context, ROUND)
        self.trunks = Trunks(self.keys) if share else None
        self._softcap = getattr(self.config, "attn_logit_softcapping", None)
        self._final_softcap = getattr(self.config, "final_logit_softcapping", None)
        self._tables = self._rotary_tables()
        cos, sin = next(iter(self._tables.values()))
        self._still = (torch.ones_like(cos), torch.zeros_like(sin))  # for layers without rotary positions
        if fused and not fuses(self.head_dim):
            raise ValueError(f"the kernels take heads of a power of two, at least 16, not {self.head_dim}")
        if fused and share:
            raise ValueError("the kernels take rows that hold all their tokens")
        self.fused = fused
        self.interrupted = False
        """While it is set, `prefill` and `decode` raise `Interrupted` at the next layer."""

    def _go_on(self) -> None:
        if self.interrupted:
            raise Interrupted

    @property
    def bytes_a_token(self) -> int:
        """Bytes of cache that a token takes."""
        return 2 * len(self._layers) * self.key_heads * self.head_dim * self.keys.element_size()

    @property
    def vocabulary(self) -> int:
        """Width of a row of logits."""
        return int(_head(self.model).weight.shape[0])

    def addresses(self) -> tuple[int, ...]:
        """Where everything lies that a step reads of the model: what a captured graph depends on."""
        projections = [p for layer in self._layers for p in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        tensors = [t for p in (*projections, self._head) for t in p.tensors()]
        return tuple(tensor.data_ptr() for tensor in tensors)

    def clear(self) -> None:
        """Empties the cache: what is no number in it would spoil every later row, whatever its weight."""
        self.keys.zero_()
        self.values.zero_()
        if self.trunks is not None:
            self.trunks.clear()

    def reserve(self, trunk: int, length: int) -> None:
        """Room for trunks of at most `trunk` tokens, and for `length` of its own in each row; what was there may go.

        Where rows hold all their tokens, there is room already.
        """
        if self.trunks is not None:
            self.trunks.reserve(trunk)
            size = torch_cache.block_size(length, 4)
            if size != self.keys.shape[-2] or length > self.keys.shape[1] * size:
                self.make_room(length, size)

    def make_room(self, length: int, size: int) -> None:
        """An empty cache of `length` positions a row, in blocks of `size`."""
        shape = (len(self._layers), -(-length // size), self.slots, self.key_heads, size, self.head_dim)
        self.keys = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.values = torch.zeros(shape, dtype=self.dtype, device=self.device)

    def refresh(self) -> None:
        """Renews what is a copy of the model's weights. Needed after a step only where dtype or fold make copies."""
        for layer in self._layers:
            for projection in (layer.qkv, layer.out, layer.gate_up, layer.down):
                projection.refresh()
        self._head.refresh()

    def _layer(self, layer: Any, fold: bool, pack: bool) -> _Layer:
        attention, feed = layer.self_attn, layer.mlp
        four = hasattr(layer, "pre_feedforward_layernorm")
        kinds = getattr(self.config, "layer_types", None)
        kind = None if kinds is None else kinds[attention.layer_idx]
        window = getattr(self.config, "sliding_window", None)
        if kinds is not None and kind != "sliding_attention":
            window = None
        return _Layer(
            norm=_norm(layer.input_layernorm),
            attention=attention,
            qkv=Projection([attention.q_proj, attention.k_proj, attention.v_proj], self.dtype, fold, pack),
            out=Projection([attention.o_proj], self.dtype, fold, pack),
            after_attention=_norm(layer.post_attention_layernorm) if four else None,
            norm_feed=_norm(layer.pre_feedforward_layernorm if four else layer.post_attention_layernorm),
            gate_up=Projection([feed.gate_proj, feed.up_proj], self.dtype, fold, pack),
            down=Projection([feed.down_proj], self.dtype, fold, pack),
            after_feed=_norm(layer.post_feedforward_layernorm) if four else None,
            norm_query=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
            norm_key=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
            activation=feed.act_fn,
            window=window,
            kind=kind,
            rotary=bool(getattr(attention, "use_rope", True)),
        )

    def _rotary_tables(self) -> dict[str | None, tuple[Tensor, Tensor]]:
        """cos and signed sin, (context, head_dim), by kind of layer where kinds turn at different speeds."""
        rotary, places = self._inner.rotary_emb, torch.arange(self.context, device=self.device)[None]
        like = torch.zeros(1, device=self.device, dtype=torch.float32)

        def table(*kind: str) -> tuple[Tensor, Tensor]:
            cos, sin = rotary(like, places, *kind)
            sin[..., : self.head_dim // 2] *= -1  # so that turning needs the halves exchanged, and no minus
            return cos[0].to(self.dtype), sin[0].to(self.dtype)

        kinds = getattr(rotary, "layer_types", None)
        return {None: table()} if kinds is None else {kind: table(kind) for kind in kinds}

    # ------------------------------------------------------------ what runs

    @torch.no_grad()
    def prefill(
        self, ids: Tensor, rows: Sequence[int], starts: Sequence[int] | None = None, into: Cache | None = None
    ) -> Tensor:
        """Hidden states (P, T, width) of `ids` (P, T), computed into the cache at `rows`, each from its own position
        of `starts` on (None: all from the first).

        The cache is that of the rows, or `into`, whose sequences `rows` then counts.

        Shorter prompts are padded at the end: what padding leaves in the cache lies beyond their last token, and is
        written over before anything looks at it.
        """
        cache: Cache = into or self
        prompts, length = ids.shape
        begun = starts is not None and any(starts)
        begins = torch.as_tensor(list(starts) if starts is not None and begun else [0], device=self.device)
        places = begins[:, None] + torch.arange(length, device=self.device)
        x = self._embedded(ids)
        known = places.clamp(max=self.context - 1)  # padding may lie beyond
        turns = {
            kind: (cos[known][..., None, :], sin[known][..., None, :]) for kind, (cos, sin) in self._tables.items()
        }
        chosen = torch.as_tensor(list(rows), device=self.device)
        reach = min(int(begins.max()) + length, cache.keys.shape[1] * cache.keys.shape[-2]) if begun else length
        seen = torch.arange(reach, device=self.device)
        causal = (seen <= places[..., None])[:, None]
        for number, layer in enumerate(self._layers):
            self._go_on()
            q, k, v = (part.transpose(1, 2) for part in self._heads(layer, x, turns))
            if starts is not None and begun:
                for row, start in enumerate(starts):
                    torch_cache.write(cache, number, chosen[row : row + 1], k[row : row + 1], v[row : row + 1], start)
                k, v = torch_cache.sequences(cache, number, chosen, reach)
            else:
                torch_cache.write(cache, number, chosen, k, v, 0)
            mask = causal if layer.window is None else causal & (seen > places[..., None] - layer.window)[:, None]
            mixed = self._attend(layer, q, _spread(k, self.groups), _spread(v, self.groups), mask)
            x = self._rest(layer, x, mixed.transpose(1, 2).reshape(prompts, length, -1))
        return self._norm(x)

    @torch.no_grad()
    def decode(self, ids: Tensor, positions: Tensor, reach: int) -> Tensor:
        """Hidden states (B, width) after token `ids[i]` (B,) at `positions[i]` (B,) of row i.

        `reach` bounds the positions looked at: more than the largest of `positions`, each counted from the end of
        the row's trunk where there are trunks.
        """
        if self.fused:
            return self._decode_fused(ids, positions, reach)
        x = self._embedded(ids)
        turns = {kind: (cos[positions][:, None], sin[positions][:, None]) for kind, (cos, sin) in self._tables.items()}
        places, seen = self._places(positions), self._seen(len(ids), reach)
        biases = {window: self._bias(seen, positions, window) for window in {layer.window for layer in self._layers}}
        for number, layer in enumerate(self._layers):
            self._go_on()
            q, k, v = self._heads(layer, x, turns)
            for cache, new in ((self.keys, k), (self.values, v)):
                cache[number].view(-1, self.head_dim).index_copy_(0, places, new.reshape(-1, self.head_dim))
            x = self._rest(layer, x, self._attend_cache(number, layer, q, biases[layer.window]))
        return self._norm(x)

    def _decode_fused(self, ids: Tensor, positions: Tensor, reach: int) -> Tensor:
        """`decode` by the kernels: what a layer adds is added by the norm that follows."""
        from ponder.engine import torch_kernels as kernels

        def normed(norm: _Norm, added: Tensor | None) -> Tensor:
            return kernels.norm(x, norm.module.weight, norm.epsilon, added, norm.plus_one)

        x, added = self._embedded(ids), None
        for number, layer in enumerate(self._layers):
            joined = self._query_normed(layer, layer.qkv(normed(layer.norm, added)).view(len(ids), -1, self.head_dim))
            cos, sin = self._tables[layer.kind if layer.kind in self._tables else None] if layer.rotary else self._still
            q = kernels.turn(joined, cos, sin, positions, self.keys[number], self.values[number])
            mixed = kernels.attend(
                q, self.keys[number], self.values[number], positions, reach, float(layer.attention.scaling),
                layer.window, self._softcap,
            )  # fmt: skip
            added = layer.out(mixed.view(len(ids), -1))
            added = added if layer.after_attention is None else layer.after_attention(added)
            added = self._fed(layer, normed(layer.norm_feed, added))
        return normed(self._norm, added)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocabulary) of hidden states, in float32."""
        logits = self._head(hidden).float()
        if self._final_softcap:
            logits = self._final_softcap * torch.tanh(logits / self._final_softcap)
        return logits

    # ------------------------------------------------------------ rows of the cache

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Gives rows `targets` the first `length` tokens of row `source`."""
        torch_cache.copy(self, source, targets, length)

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchanges the first `length` tokens of two rows."""
        torch_cache.swap(self, one, other, length)

    def save(self, row: int, length: int) -> Tensor:
        """Keys and values (2, layers, key heads, length, d) of the first `length` tokens of a row, as a copy."""
        return torch_cache.save(self, row, length)

    def restore(self, row: int, saved: Tensor) -> None:
        """Puts back what `save` gave."""
        torch_cache.restore(self, row, saved)

    def _places(self, positions: Tensor) -> Tensor:
        """Where row i's position lies among the vectors of a layer's cache, one for each key head, (B * key heads,)."""
        rows, size = torch.arange(len(positions), device=self.device), self.keys.shape[-2]
        if self.trunks is not None:
            positions = positions - self.trunks.begins
        blocks = (positions // size * self.slots + rows)[:, None] * self.key_heads
        heads = blocks + torch.arange(self.key_heads, device=self.device)
        return (heads * size + positions[:, None] % size).view(-1)

    def _seen(self, rows: int, reach: int) -> Tensor:
        """Positions (B or 1, columns) that the columns of scores stand for; `context` where there is no token."""
        size = self.keys.shape[-2]
        own = torch.arange(-(-reach // size) * size, device=self.device)[None]
        if self.trunks is None:
            return own
        begins = self.trunks.begins[:, None]
        before = torch.arange(self.trunks.reach, device=self.device).expand(rows, -1)
        return torch.cat((before.masked_fill(before >= begins, self.context), own + begins), dim=-1)

    # ------------------------------------------------------------ parts of a layer

    def _embedded(self, ids: Tensor) -> Tensor:
        x: Tensor = self._embed(ids).to(self.dtype)
        return x

    def _heads(self, layer: _Layer, x: Tensor, turns: dict[str | None, tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        """Queries (..., heads, d), keys and values (..., key heads, d), turned to their positions."""
        joined = layer.qkv(layer.norm(x)).view(*x.shape[:-1], -1, self.head_dim)
        joined = self._query_normed(layer, joined)
        queries = self.key_heads * self.groups
        turned = joined[..., : queries + self.key_heads, :]
        if layer.rotary:
            cos, sin = turns[layer.kind if layer.kind in turns else None]
            turned = torch.addcmul(turned * cos, torch.cat(turned.chunk(2, dim=-1)[::-1], dim=-1), sin)
        q, k = turned.split([queries, self.key_heads], dim=-2)  # type: ignore[no-untyped-call]
        return q, k, joined[..., queries + self.key_heads :, :]

    def _query_normed(self, layer: _Layer, joined: Tensor) -> Tensor:
        """Queries, keys and values side by side, the first two normed where the family does that."""
        if layer.norm_query is None or layer.norm_key is None:
            return joined
        heads = [self.key_heads * self.groups, self.key_heads, self.key_heads]
        q, k, v = joined.split(heads, dim=-2)  # type: ignore[no-untyped-call]
        return torch.cat((layer.norm_query(q), layer.norm_key(k), v), dim=-2)

    def _bias(self, seen: Tensor, positions: Tensor, window: int | None) -> Tensor:
        """What is added to the scores of row i at the positions `seen`: 0 or minus infinity, (B, 1, 1, columns)."""
        hidden = seen > positions[:, None]
        if window is not None:
            hidden |= seen <= positions[:, None] - window
        return torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, -torch.inf)[
            :, None, None
        ]

    def _attend_cache(self, number: int, layer: _Layer, q: Tensor, bias: Tensor) -> Tensor:
        """Attention (B, heads * d) of queries (B, heads, d) over the cache: a product a block, one softmax."""
        rows, trunks = len(q), self.trunks
        before = 0 if trunks is None else trunks.reach
        count = (bias.shape[-1] - before) // self.keys.shape[-2]
        keys, values = (torch_cache.blocks(held, number, rows, count) for held in (self.keys, self.values))
        grouped = q.reshape(rows * self.key_heads, self.groups, self.head_dim) * layer.attention.scaling
        scores = torch_cache.scores(grouped, keys)
        if trunks is not None and before:
            scores = torch.cat((trunks.scores(number, grouped), scores), dim=-1)
        scores = scores.view(rows, self.key_heads, self.groups, -1)
        if self._softcap is not None:
            scores = scores.div_(self._softcap).tanh_().mul_(self._softcap)
        weights = scores.add_(bias).softmax(-1).view(rows * self.key_heads, self.groups, -1)
        mixed = torch_cache.mix(weights[..., before:], values)
        if trunks is not None and before:
            mixed += trunks.mixed(number, weights[..., :before])
        return mixed.view(rows, -1)

    def _attend(self, layer: _Layer, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scale = float(layer.attention.scaling)
        if self._softcap is None:
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        scores = (q @ k.transpose(-1, -2)).float() * scale
        scores = self._softcap * torch.tanh(scores / self._softcap)
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        mixed: Tensor = weights.to(v.dtype) @ v
        return mixed

    def _rest(self, layer: _Layer, x: Tensor, mixed: Tensor) -> Tensor:
        """What a layer does after attention."""
        mixed = layer.out(mixed)
        x = x + (mixed if layer.after_attention is None else layer.after_attention(mixed))
        return x + self._fed(layer, layer.norm_feed(x))

    def _fed(self, layer: _Layer, normed: Tensor) -> Tensor:
        gate, up = layer.gate_up(normed).chunk(2, dim=-1)
        fed = layer.down(layer.activation(gate) * up)
        return fed if layer.after_feed is None else layer.after_feed(fed)


def head_dim(model: nn.Module) -> int:
    """Width of a head of a model that is covered."""
    return int(_inner(model).layers[0].self_attn.head_dim)


def fuses(head_dim: int) -> bool:
    """Whether the kernels take heads of this size."""
    return head_dim >= 16 and head_dim & (head_dim - 1) == 0


def _spread(x: Tensor, groups: int) -> Tensor:
    """Keys or values (P, key heads, T, d), once for each query head."""
    return x.repeat_interleave(groups, dim=1) if groups > 1 else x


def _unwrapped(model: Any) -> Any:
    """The causal model under what peft and parallel wrappers put around it."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif hasattr(model, "module"):
            model = model.module
        else:
            return model


def _inner(model: Any) -> Any:
    return _unwrapped(model).model


def _head(model: Any) -> Any:
    return _unwrapped(model).lm_head

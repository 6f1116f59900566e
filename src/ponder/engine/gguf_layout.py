"""How GGUF and transformers name, order and describe the same weights: the Llama line (Llama, Mistral, Qwen 2 and 3).

Rotary embeddings turn pairs of dimensions of q and k. transformers pairs dimension i of a head with i + d/2,
llama.cpp's `llama` architecture 2i with 2i + 1, so its files hold the rows of q and k in another order:

    GGUF row (head, i, half) = transformers row (head, half, i),    i < d/2, half < 2

The Qwen architectures keep the order of transformers. Source: `convert_hf_to_gguf.py` of llama.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ponder.engine.gguf_header import Header
from ponder.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedConfig

    Array = npt.NDArray[np.generic]

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""For each `model_type` of transformers what GGUF calls it."""

_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_BACK = {theirs: ours for names in (_WHOLE, _LAYER) for ours, theirs in names.items()}
_ROPE_FREQUENCIES = "rope_freqs.weight"


@dataclass(frozen=True)
class Layout:
    """What decides about names and the order of rows. `architecture` is GGUF's name."""

    architecture: str
    heads: int
    kv_heads: int

    def gguf_name(self, name: str) -> str | None:
        """`model.layers.0.mlp.up_proj.weight` -> `blk.0.ffn_up.weight`; None for what GGUF has no name for."""
        module, _, kind = name.rpartition(".")
        if module in _WHOLE:
            return f"{_WHOLE[module]}.{kind}"
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
        return f"blk.{found[1]}.{_LAYER[found[2]]}.{kind}" if found and found[2] in _LAYER else None

    def own_name(self, name: str) -> str | None:
        """`blk.0.ffn_up.weight` -> `model.layers.0.mlp.up_proj.weight`; None for what is not of the Llama line."""
        found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(\w+)", name)
        if found is None or found[2] not in _BACK:
            return None
        layer = f"model.layers.{found[1]}." if found[1] else ""
        return f"{layer}{_BACK[found[2]]}.{found[3]}"

    def to_gguf(self, gguf_name: str, rows: Array) -> Array:
        """`rows` (outputs, ...), as transformers has them, in the order that GGUF has under that name."""
        heads = self._heads(gguf_name)
        if heads is None:
            return rows
        return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    def from_gguf(self, gguf_name: str, rows: Array) -> Array:
        """The inverse of `to_gguf`."""
        heads = self._heads(gguf_name)
        if heads is None:
            return rows
        return rows.reshape(heads, len(rows) // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    def _heads(self, gguf_name: str) -> int | None:
        """Number of heads whose rows are reordered; None where nothing is."""
        if self.architecture != "llama":
            return None
        projection = gguf_name.split(".")[2:3]
        return {"attn_q": self.heads, "attn_k": self.kv_heads}.get(projection[0]) if projection else None


def layout_of(config: PreTrainedConfig) -> Layout:
    """The layout of a transformers model. Raises InputError for an architecture outside of the Llama line."""
    if config.model_type not in ARCHITECTURES:
        raise InputError(
            f"models of the architecture {config.model_type} are not known here as GGUF",
            f"Known are {', '.join(ARCHITECTURES)}; llama.cpp's own converter knows more",
        )
    return Layout(ARCHITECTURES[config.model_type], config.num_attention_heads, config.num_key_value_heads)


def layout_of_header(header: Header) -> Layout:
    """The layout of a GGUF file. Raises InputError for an architecture outside of the Llama line."""
    name = header.architecture
    if name not in ARCHITECTURES.values():
        raise InputError(f"GGUF files of the architecture {name} are not known here", "Give a model of the Llama line")
    heads = int(header.metadata[f"{name}.attention.head_count"])
    return Layout(name, heads, int(header.metadata.get(f"{name}.attention.head_count_kv", heads)))


# ---------------------------------------------------------------- hyperparameters


def keys(config: PreTrainedConfig) -> dict[str, int | float]:
    """The hyperparameters as GGUF has them, without the architecture's prefix.

    Raises InputError for what llama.cpp would compute otherwise than transformers.
    """
    if config.hidden_act != "silu":
        raise InputError(f"llama.cpp computes these models with silu, not {config.hidden_act}", "Train one with silu")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return {
        # Beyond a sliding window llama.cpp would attend to what transformers leaves out.
        "context_length": min(config.max_position_embeddings, window or config.max_position_embeddings),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "vocab_size": config.vocab_size,
    }


def rope_factors(model: Any) -> torch.Tensor | None:
    """By what llama.cpp is to divide each rotary frequency (head dimension / 2), None where it needs nothing.

    Raises InputError for positions that are scaled in a way that such factors cannot express.
    """
    import torch

    stated = model.config.rope_parameters
    kind = stated.get("rope_type", "default")
    if stated.get("partial_rotary_factor", 1.0) != 1.0 or not (
        kind == "default" or (kind in ("linear", "llama3") and ARCHITECTURES[model.config.model_type] == "llama")
    ):
        raise InputError(f"positions scaled as {kind} cannot be written as GGUF here", "Use llama.cpp's own converter")
    if kind == "default":
        return None
    frequencies: torch.Tensor = model.get_decoder().rotary_emb.inv_freq.double().cpu()
    steps = torch.arange(len(frequencies), dtype=torch.float64)
    plain: torch.Tensor = stated["rope_theta"] ** (-steps / len(frequencies))
    return (plain / frequencies).float()


def config_of(header: Header) -> PreTrainedConfig:
    """The transformers configuration of a GGUF file of the Llama line.

    Raises InputError for positions that are scaled, which this reading would lose.
    """
    from transformers import AutoConfig

    layout, shapes = layout_of_header(header), {tensor.name: tensor.shape for tensor in header.tensors}
    name = layout.architecture

    def value(key: str, otherwise: Any = None) -> Any:
        return header.metadata.get(f"{name}.{key}", otherwise)

    if _ROPE_FREQUENCIES in shapes or value("rope.scaling.type", "none") != "none":
        raise InputError("this GGUF file scales its rotary positions", "Give the Hugging Face folder of that model")
    hidden = int(value("embedding_length"))
    head = int(value("attention.key_length") or value("rope.dimension_count") or hidden // layout.heads)
    biases = {
        "llama": {
            "attention_bias": "blk.0.attn_output.bias" in shapes,
            "mlp_bias": "blk.0.ffn_up.bias" in shapes,
        },
        "qwen3": {"attention_bias": "blk.0.attn_output.bias" in shapes},
    }
    return AutoConfig.for_model(
        name,
        hidden_size=hidden,
        intermediate_size=int(value("feed_forward_length")),
        num_hidden_layers=int(value("block_count")),
        num_attention_heads=layout.heads,
        num_key_value_heads=layout.kv_heads,
        max_position_embeddings=int(value("context_length")),
        vocab_size=shapes["token_embd.weight"][1],
        # The shortest decimal number of that float32: 1e-05, not 9.999999747378752e-06.
        rms_norm_eps=_shortest(value("attention.layer_norm_rms_epsilon")),
        rope_parameters={"rope_type": "default", "rope_theta": _shortest(value("rope.freq_base", 10_000.0))},
        tie_word_embeddings="output.weight" not in shapes,
        bos_token_id=header.metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=header.metadata.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=header.metadata.get("tokenizer.ggml.padding_token_id"),
        head_dim=head,
        **biases.get(name, {}),
    )


def _shortest(number: float) -> float:
    import numpy as np

    return float(str(np.float32(number)))

"""Tiny models that compute in a millisecond, and a tiny tokenizer, for everything that trains or runs on torch.

Both are made anew in every process from fixed seeds. Tests that import this are skipped where torch is missing;
they may take `torch` from here.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
torch.set_num_threads(1)  # more of them wait for each other in products as small as these

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|pad|>"
SPECIALS = (PAD, START, END, "<think>", "</think>")
MERGES = ("t h", "th e", "a n", "Ġ the", "i n", "e r", "Ġ a", "o u", "r e", "an d", "Ġ and")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 272 tokens: 5 special ones, the 256 bytes, and 11 merges; with a ChatML template.

    Any text has ids, and a character beyond ASCII takes several of them.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIALS, *letters, *(merge.replace(" ", "") for merge in MERGES)]
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in MERGES)]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=PAD, chat_template=CHATML
    )


def tiny_model(kind: str = "llama", *, seed: int = 0, dtype: Any = None, **config: Any) -> Any:
    """A random causal model of 2 layers, width 32 and 4 heads in 2 groups, in evaluation mode, float32.

    `kind` is a `model_type` of transformers; `config` overrides its fields. Its logits are far from even, so that
    an error in any part of it shows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "vocab_size": len(SPECIALS) + 256 + len(MERGES),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": SPECIALS.index(PAD),
        "bos_token_id": SPECIALS.index(START),
        "eos_token_id": SPECIALS.index(END),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(shape | config))).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model if dtype is None else model.to(dtype)


def tiny_lora(model: Any, *names: str, rank: int = 4, alpha: float = 8.0, seed: int = 1) -> Any:
    """`model` with a LoRA of peft of each name in all its projections, each random and far from 0; all switched on."""
    import peft

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers by a name that transformers has given up.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        torch.manual_seed(seed)
        for name in names:
            settings = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
            if isinstance(model, peft.PeftModel):
                model.add_adapter(name, settings)
            else:
                model = peft.get_peft_model(model, settings, adapter_name=name)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.base_model.set_adapter(list(names))
    return model.eval()

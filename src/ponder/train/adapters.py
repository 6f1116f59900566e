"""Low-rank adapters that are trained, and weights with the trained ones merged in. `engine.torch_lora` reads them.

Adapters are float32 also where the model is bfloat16: a step of an optimiser is smaller than what bfloat16 resolves.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ponder.engine.torch_load import seeded
from ponder.engine.torch_lora import attach, base_of
from ponder.errors import InputError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    Model = PreTrainedModel | PeftModel

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All matrices of a layer of the Llama line."""


def with_lora(
    model: Model,
    rank: int,
    alpha: float,
    targets: Sequence[str] = PROJECTIONS,
    dropout: float = 0.0,
    name: str = "default",
    *,
    seed: int = 0,
) -> PeftModel:
    """`model` with a new adapter, which is active, and alone is trained. B is 0 and A is drawn from `seed`.

    The model is changed in place. Raises InputError for settings that cannot be, or a name that is taken.
    """
    from peft import LoraConfig

    if rank < 1 or not 0 <= dropout < 1 or not targets:
        raise InputError(
            f"no adapter has rank {rank}, dropout {dropout} and {len(targets)} targets",
            "Give a rank from 1, a dropout from 0 to below 1, and the names of modules",
        )
    settings: Any = {"lora_alpha": alpha, "lora_dropout": dropout, "task_type": "CAUSAL_LM"}
    config = LoraConfig(r=rank, target_modules=list(targets), **settings)
    with seeded(seed):
        return attach(model, config, name, trains=True)


def trainable(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters that training changes, by their names."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def plain_weights(model: Model) -> dict[str, torch.Tensor]:
    """The weights by the names of a model without adapters, the active ones being merged, in float32, into theirs.

    The model stays as it is. A matrix that is another one's under a second name (tied embeddings) is left out.
    Raises InputError for what PEFT put into the model other than low-rank matrices.
    """
    from peft.tuners.lora import LoraLayer

    base, weights = base_of(model), {}
    for key, values in base.state_dict().items():
        if any(part in key for part in (".modules_to_save.", ".original_module.", ".token_adapter.")):
            raise InputError(f"{key.split('.modules_to_save')[0]} was trained as a whole", "Export it by PEFT itself")
        if ".lora_" not in key:
            weights[key.replace(".base_layer.", ".")] = values.detach()
    if base.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer) and not module.disable_adapters:
            layer: Any = copy.deepcopy(module)  # merged and unmerged in place, it would not be the same again
            layer.float().merge(adapter_names=list(module.active_adapters))
            weights[f"{name}.weight"] = layer.get_base_layer().weight.detach()
    return weights

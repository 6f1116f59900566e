"""Low-rank adapters from files into a model, by PEFT.

    W' = W + (alpha / r) B A        Hu et al., LoRA (2021), section 4.1

A: (r, in), B: (out, r), W: (out, in), which stays as it is.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ponder.errors import InputError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

    Model = PreTrainedModel | PeftModel

PREFIX = "base_model.model."
"""What PEFT puts before the names of the modules of the model that it adapts."""


def with_adapter(model: Model, folder: Path | str, name: str = "default", trainable: bool = False) -> PeftModel:
    """`model` with the adapter in a PEFT folder or a GGUF file, which is active; no other adapter is trained then.

    The model is changed in place. Raises InputError for an adapter that cannot be read or does not fit.
    """
    from peft.utils import set_peft_model_state_dict

    path = Path(folder).expanduser()
    config, state = peft_folder(path) if path.is_dir() else _gguf_file(model, path)
    _check_fits(model, state, path)
    changed = attach(model, config, name, trains=trainable)
    report: Any = set_peft_model_state_dict(changed, state, adapter_name=name)
    lacking = [key for key in report.missing_keys if ".lora_" in key and f".{name}." in key]
    if lacking or report.unexpected_keys:
        raise InputError(
            f"the weights of {path} are not those that its configuration states, such as "
            f"{min(lacking or report.unexpected_keys)}",
            "Give an adapter that is complete",
        )
    return changed


def attach(model: Model, config: LoraConfig, name: str, *, trains: bool) -> PeftModel:
    """`model` with one more adapter, which alone is active. Raises InputError for settings that PEFT refuses."""
    from peft import PeftModel, get_peft_model

    config.inference_mode = not trains
    try:
        with warnings.catch_warnings():
            # PEFT reads a name that transformers is about to drop.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            if isinstance(model, PeftModel):
                config.base_model_name_or_path = base_of(model).name_or_path
                model.add_adapter(name, config)
                changed: Any = model
            else:
                config.base_model_name_or_path = None  # else PEFT warns that it takes the model's own name
                changed = get_peft_model(model, config, adapter_name=name)
            changed.set_adapter(name, inference_mode=not trains)
    except ValueError as error:
        raise InputError(f"no adapter can be added: {str(error).splitlines()[0]}", "Correct its settings") from error
    return cast("PeftModel", changed)


def base_of(model: Any) -> Any:
    """The transformers model inside of `model`, or itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def peft_folder(path: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Settings and matrices of the LoRA adapter in a folder. Raises InputError where there is none that is whole."""
    from peft import LoraConfig, PeftConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights = path / "adapter_model.safetensors"
    if not weights.is_file() or not (path / "adapter_config.json").is_file():
        raise InputError(f"{path} holds no PEFT adapter", f"Give a folder with adapter_config.json and {weights.name}")
    try:
        config, state = PeftConfig.from_pretrained(str(path)), load_file(weights)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise InputError(f"the adapter in {path} is damaged: {error}".splitlines()[0], "Write it again") from error
    if not isinstance(config, LoraConfig):
        raise InputError(f"{path} holds an adapter of the kind {config.peft_type}, not LoRA", "Give one of LoRA")
    return config, state


def _gguf_file(model: Model, path: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    from peft import LoraConfig

    from ponder.engine.gguf_layout import layout_of
    from ponder.engine.gguf_weights import read_adapter

    found = read_adapter(path, layout_of(model.config))
    settings: Any = {"lora_alpha": found.alpha, "task_type": "CAUSAL_LM"}
    config = LoraConfig(r=found.rank, target_modules=list(found.targets), **settings)
    return config, {PREFIX + key: value for key, value in found.tensors.items()}


def _check_fits(model: Model, state: dict[str, torch.Tensor], path: Path) -> None:
    """Before anything is changed: PEFT would leave a model behind that is half adapted."""
    import torch

    modules = dict(base_of(model).named_modules())
    for key, values in state.items():
        target, _, side = key.removeprefix(PREFIX).rpartition(".lora_")
        weight = getattr(modules.get(target), "weight", None)
        if weight is None:
            raise InputError(
                f"{path} adapts {target or key}, which the model does not have", "Give the model it is for"
            )
        axis = 1 if side.startswith("A") else 0
        if values.shape[axis] != weight.shape[axis]:
            raise InputError(
                f"{path} has {values.shape[axis]} for the {weight.shape[axis]} of {target}", "Give the model it is for"
            )
        if not torch.isfinite(values).all():
            raise InputError(f"{path} holds numbers that are not finite, in {target}", "Give an adapter that is whole")

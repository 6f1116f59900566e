"""Trained weights into files: PEFT folders, Hugging Face folders, GGUF adapters and GGUF models.

Each is written whole or not at all, and says so in one line where the disk is full.

A model of the catalogue stands on weights of 4 bits (Q4_1). What is trained on top of it is best exported by
`to_gguf_adapter`: the base stays the very file that everybody has, and the adapter weighs a tenth of it. `to_gguf`
writes whole models, as f32, f16 or q8_0 and never as 4 bits: merged weights lie between the steps of the old
blocks, and rounding them back cost most of what an adapter had taught (docs/engines.md).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ponder.engine import cache, catalogue, gguf_header
from ponder.engine.gguf_layout import Layout, keys, layout_of, layout_of_header, rope_factors
from ponder.engine.gguf_tokenizer import write_tokenizer
from ponder.engine.torch_load import METADATA_FILE, require_packages
from ponder.engine.torch_lora import PREFIX, base_of, peft_folder
from ponder.engine.weights import METADATA_KEYS
from ponder.errors import InputError, WeightsError
from ponder.train.adapters import plain_weights
from ponder.train.writing import replacing

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from gguf import GGMLQuantizationType, GGUFWriter
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Kind = Literal["f32", "f16", "q8_0"]
_FILE_TYPES: dict[str, int] = {"f32": 0, "f16": 1, "q8_0": 7}


def to_peft(
    model: PeftModel,
    folder: Path | str,
    *,
    name: str | None = None,
    kind: Literal["f32", "f16"] = "f32",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes the adapter `name` (None: the active one) as PEFT does: bit for bit, or rounded to f16 in half the bytes.

    `metadata`, as `Loaded` has it, goes beside it. Raises WeightsError where it cannot be stored, InputError for
    weights that are too large for f16.
    """
    from safetensors.torch import save_file

    chosen, state = _adapter_of(model, name)
    config: Any = copy.deepcopy(model.peft_config[chosen])
    config.inference_mode = True
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # the same file on every run
    with replacing(Path(folder)) as place:
        place.mkdir()
        save_file(_narrow(_plain(state), kind), place / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(place))
        _write_metadata(place, metadata)


def to_safetensors(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path | str,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a folder that transformers loads: weights with the active adapters merged, configuration, tokenizer.

    Weights keep their type; without adapters they are the same bit for bit. Raises WeightsError where the folder
    cannot be stored, InputError where it is taken.
    """
    from safetensors.torch import save_file

    base = base_of(model)
    config = copy.deepcopy(base.config)
    config.architectures, config.dtype = [type(base).__name__], base.dtype
    weights = {key: values.to(base.dtype) for key, values in plain_weights(model).items()}
    with replacing(Path(folder)) as place:
        place.mkdir()
        save_file(_plain(weights), place / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(place)
        if base.generation_config is not None:
            base.generation_config.save_pretrained(place)
        tokenizer.save_pretrained(place)
        _write_metadata(place, metadata)


def to_gguf_adapter(
    source: PeftModel | Path | str,
    file: Path | str,
    *,
    name: str | None = None,
    base: str | None = None,
    kind: Literal["f16", "f32"] = "f16",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes an adapter that llama.cpp applies to the GGUF file of its base, at the scale it was trained at.

    source: a model with the adapter `name` (None: the active one), or a PEFT folder, made for the model `base`
    (None: the one that the folder names). `metadata`, as in `Loaded`: a base that was never taught to think is asked
    in this adapter's way. Raises InputError for what llama.cpp's adapters cannot express, WeightsError where it cannot
    be stored.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    require_packages()
    config: Any
    if isinstance(source, str | Path):
        config, state = peft_folder(Path(source).expanduser())
        layout = _layout_named(base or config.base_model_name_or_path, source)
    else:
        chosen, state = _adapter_of(source, name)
        config, layout = source.peft_config[chosen], layout_of(source.config)
    packing = GGMLQuantizationType[kind.upper()]
    with replacing(Path(file)) as place:
        writer = GGUFWriter(place, layout.architecture)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", _alpha(config))
        _add_metadata(writer, metadata)
        named = {_adapter_name(layout, key): key for key in sorted(state)}
        _write(writer, {new: (layout, state[key], packing) for new, key in named.items()})


def to_gguf(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    file: Path | str,
    *,
    kind: Kind = "f16",
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a whole model of the Llama line, the active adapters merged, as one GGUF file that llama.cpp runs.

    kind: how matrices are stored (vectors are always f32). Not fewer than 8 bits: see the head of this module.
    `name` is the model's (None: the file's), `metadata` as in `Loaded`. Raises InputError for a model or tokenizer
    that llama.cpp would compute otherwise, WeightsError where the file cannot be stored.
    """
    from gguf import GGUFWriter

    if kind not in _FILE_TYPES:
        raise InputError(f"{kind} is no kind of file that is written here", f"Choose from {', '.join(_FILE_TYPES)}")
    base = base_of(model)
    layout, hyperparameters, factors = layout_of(base.config), keys(base.config), rope_factors(base)
    tensors = {}
    for key, values in plain_weights(model).items():
        new = layout.gguf_name(key)
        if new is None:
            raise InputError(f"GGUF has no name for the weights {key}", "Give a plain model of the Llama line")
        tensors[new] = (layout, values, _packing(values.shape, kind))
    if factors is not None:
        tensors["rope_freqs.weight"] = (layout, factors, _packing(factors.shape, "f32"))
    with replacing(Path(file)) as place:
        writer = GGUFWriter(place, layout.architecture)
        writer.add_type("model")
        writer.add_name(name or Path(file).stem)
        writer.add_file_type(_FILE_TYPES[kind])
        writer.add_quantization_version(2)
        for key, value in hyperparameters.items():
            add: Any = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"{layout.architecture}.{key}", value)
        write_tokenizer(writer, tokenizer, base.config.vocab_size)
        _add_metadata(writer, metadata)
        _write(writer, tensors)


# ---------------------------------------------------------------- adapters


def _adapter_of(model: PeftModel, name: str | None) -> tuple[str, dict[str, torch.Tensor]]:
    """The adapter's name, and its matrices by PEFT's names for files."""
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    known = list(model.peft_config) if isinstance(model, PeftModel) else []
    chosen = name or (model.active_adapters[0] if known else "")
    if chosen not in known:
        raise InputError(f"the model has no adapter {chosen}".rstrip(), f"It has {', '.join(known) or 'none'}")
    # Whether embeddings were resized would be looked up on the hub.
    return chosen, get_peft_model_state_dict(model, adapter_name=chosen, save_embedding_layers=False)


def _adapter_name(layout: Layout, key: str) -> str:
    target, _, side = key.removeprefix(PREFIX).rpartition(".lora_")
    new = layout.gguf_name(f"{target}.weight")
    if new is None or side not in ("A.weight", "B.weight"):
        raise InputError(f"llama.cpp has no adapter for {key}", "Adapt linear layers alone, by plain LoRA")
    return f"{new}.lora_{side[0].lower()}"


def _alpha(config: LoraConfig) -> float:
    """llama.cpp scales by alpha / r, r being the rank of each matrix."""
    if config.alpha_pattern or (config.use_rslora and config.rank_pattern):
        raise InputError("the adapter scales some layers otherwise than others", "Train it with one alpha for all")
    return float(config.lora_alpha) * (math.sqrt(config.r) if config.use_rslora else 1.0)


def _layout_named(name: str | None, source: Path | str) -> Layout:
    """The layout of a model by what `load` calls it, without loading it."""
    from transformers import AutoConfig

    if not name:
        raise InputError(f"{source} does not name the model that it adapts", "Give that as base=")
    if entry := catalogue.find(name):
        return layout_of_header(gguf_header.read_header(cache.require(entry.base, entry.name)))
    path = Path(name).expanduser()
    if path.is_file():
        return layout_of_header(gguf_header.read_header(path))
    try:
        return layout_of(AutoConfig.from_pretrained(name, local_files_only=path.is_dir()))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{source} adapts {name}, which cannot be looked up", "Give its base as base=, such as a folder or a file"
        ) from error


# ---------------------------------------------------------------- tensors


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: values.detach().to("cpu").contiguous() for key, values in tensors.items()}


def _narrow(tensors: Mapping[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    import torch

    if kind == "f32":
        return dict(tensors)
    for name, values in tensors.items():
        if not values.to(torch.float16).isfinite().all():
            raise InputError(f"the weights {name} are too large for f16", "Export them as f32")
    return {name: values.to(torch.float16) for name, values in tensors.items()}


def _add_metadata(writer: GGUFWriter, metadata: Mapping[str, Any] | None) -> None:
    thinking, temperature = ((metadata or {}).get(key) for key in METADATA_KEYS)
    if thinking is not None:
        writer.add_string(METADATA_KEYS[0], thinking if isinstance(thinking, str) else json.dumps(thinking))
    if temperature is not None:
        writer.add_float32(METADATA_KEYS[1], float(temperature))


def _write_metadata(folder: Path, metadata: Mapping[str, Any] | None) -> None:
    if metadata:
        (folder / METADATA_FILE).write_text(json.dumps(dict(metadata), indent=1), encoding="utf-8")


def _packing(shape: torch.Size, kind: str) -> GGMLQuantizationType:
    """How a tensor is stored. Q8_0 has blocks of 32 numbers of one row."""
    from gguf import GGMLQuantizationType

    if len(shape) == 1 or kind == "f32":
        return GGMLQuantizationType.F32
    return GGMLQuantizationType.Q8_0 if kind == "q8_0" and shape[-1] % 32 == 0 else GGMLQuantizationType.F16


def _write(writer: GGUFWriter, tensors: Mapping[str, tuple[Layout, torch.Tensor, GGMLQuantizationType]]) -> None:
    """Writes the file with one tensor in memory at a time."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES

    try:
        for name, (_, values, packing) in tensors.items():
            block, size = GGML_QUANT_SIZES[packing]
            writer.add_tensor_info(
                name, values.shape, np.dtype(np.float32), values.numel() // block * size, raw_dtype=packing
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, (layout, values, packing) in tensors.items():
            writer.write_tensor_data(_packed(name, layout, values, packing))
    finally:
        writer.close()


def _packed(name: str, layout: Layout, values: torch.Tensor, packing: GGMLQuantizationType) -> npt.NDArray[Any]:
    import numpy as np
    from gguf.quants import quantize

    target, _, side = name.partition(".lora_")
    rows: Any = values.detach().float().cpu().numpy()
    if side != "a":  # its rows are ranks, not outputs
        rows = layout.to_gguf(target, rows)
    with np.errstate(over="ignore"):
        packed = quantize(np.ascontiguousarray(rows), packing)
    if not np.isfinite(rows).all():
        raise InputError(f"the weights {name} are not finite", "Take an earlier checkpoint")
    if packing.name == "F16" and not np.isfinite(packed).all():
        raise InputError(f"the weights {name} are too large for f16", "Export them as f32")
    return packed

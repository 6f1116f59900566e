"""Reading the weights of GGUF files into transformers and PEFT, block-quantised ones as the numbers they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ponder.engine.gguf_header import Header, Tensor, read_header
from ponder.engine.gguf_layout import ARCHITECTURES, Layout, config_of, layout_of_header
from ponder.errors import InputError, WeightsError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


@dataclass(frozen=True)
class LowRank:
    """An adapter in PEFT's terms: `tensors` by PEFT's names without a prefix, `targets` the modules adapted."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    tensors: dict[str, torch.Tensor]


def read_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model in a GGUF file, on the CPU.

    The Llama line is read here. Other architectures are left to transformers, which takes several times as long.
    Raises InputError for what neither knows, WeightsError where the file lacks weights or has others.
    """
    header = read_header(path)
    if header.architecture not in ARCHITECTURES.values():
        return read_by_transformers(path, dtype)
    import torch
    import transformers

    config = config_of(header)
    layout = layout_of_header(header)
    state = {}
    for tensor in header.tensors:
        name = layout.own_name(tensor.name)
        if name is None:
            raise WeightsError(f"{path} holds {tensor.name}, which has no place in a model of this kind", _OTHER)
        rows = layout.from_gguf(tensor.name, _numbers(path, header, tensor))
        state[name] = torch.from_numpy(rows).to(dtype)
    loader = getattr(transformers, _CLASSES[header.architecture])
    model = complete(path, loader, None, config=config, state_dict=state, dtype=dtype)
    return cast("PreTrainedModel", model)


_OTHER = "Give the Hugging Face folder of that model instead"


def read_by_transformers(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model in a GGUF file as transformers itself reads it."""
    from transformers import AutoModelForCausalLM, GgufConfig

    settings = {"dtype": dtype, "quantization_config": GgufConfig(dequantize=True), "local_files_only": True}
    try:
        model = complete(path, AutoModelForCausalLM, str(path.parent), gguf_file=path.name, **settings)
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"transformers cannot read {path}: {str(error).splitlines()[0]}", _OTHER) from error
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:
        # The weights are plain numbers by now. What says otherwise would forbid training and saving them.
        quantizer.remove_quantization_config(model)
    stated = read_header(path).parameters
    if stated != model.num_parameters():
        raise WeightsError(f"transformers takes {model.num_parameters()} of the {stated} numbers in {path}", _OTHER)
    return cast("PreTrainedModel", model)


def complete(source: Path | str, loader: Any, *arguments: Any, **settings: Any) -> Any:
    """What `loader.from_pretrained` gives. Raises WeightsError where it left out or made up weights."""
    try:
        model, report = loader.from_pretrained(*arguments, output_loading_info=True, **settings)
    except RuntimeError as error:  # sizes that differ
        raise WeightsError(f"the weights in {source} do not fit their own configuration", _OTHER) from error
    for what, keys in (("lacks", report["missing_keys"]), ("holds the unknown", report["unexpected_keys"])):
        if keys:
            raise WeightsError(f"{source} {what} weights {min(keys)}", "Give a folder or file that is complete")
    return model


def _numbers(path: Path, header: Header, tensor: Tensor) -> npt.NDArray[np.float32]:
    """The tensor as float32, in the order of dimensions of torch: outputs first."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    shape = tensor.shape[::-1]
    # As plain arrays: slices of a memory map are each made with much ado, and here there are 100,000s of them.
    raw = np.asarray(np.memmap(path, np.uint8, "r", header.data + tensor.offset, tensor.length))
    try:
        found = dequantize(raw.reshape(*shape[:-1], -1), GGMLQuantizationType(tensor.type)).reshape(shape)
        return np.require(found, np.float32, ("C", "W"))  # torch wants what can be written to
    except (NotImplementedError, ValueError) as error:
        raise WeightsError(f"{path} holds {tensor.name} in a form that cannot be unpacked", _OTHER) from error


def read_adapter(path: Path, layout: Layout) -> LowRank:
    """The adapter in a GGUF file for a model of `layout`. Raises InputError for what is no such adapter."""
    import torch

    header = read_header(path)
    if not header.is_adapter or header.metadata.get("adapter.type") != "lora":
        raise InputError(f"{path} is not a low-rank adapter", "Give the GGUF file of one, or a PEFT folder")
    if header.architecture != layout.architecture:
        raise InputError(
            f"{path} is for {header.architecture} models, not {layout.architecture}", "Give the model it was trained on"
        )
    tensors, ranks, targets = {}, set(), set()
    for tensor in header.tensors:
        target, _, side = tensor.name.rpartition(".lora_")
        name = layout.own_name(target)
        if name is None or side not in ("a", "b"):
            raise InputError(
                f"{path} adapts {target or tensor.name}, which has no place in PEFT", "Give another adapter"
            )
        module = name.removesuffix(".weight")
        numbers = _numbers(path, header, tensor)
        tensors[f"{module}.lora_{side.upper()}.weight"] = torch.from_numpy(
            layout.from_gguf(target, numbers) if side == "b" else numbers
        )
        ranks.add(numbers.shape[0 if side == "a" else 1])
        targets.add(module.rpartition(".")[2])
    if len(ranks) != 1:
        raise InputError(f"{path} has matrices of several ranks", "Give an adapter of one rank")
    return LowRank(ranks.pop(), float(header.metadata["adapter.lora.alpha"]), tuple(sorted(targets)), tensors)

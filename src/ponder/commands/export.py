"""`ponder export`: what a run has trained, as files that other programs open."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ponder.commands.terminal import plain
from ponder.errors import InputError

if TYPE_CHECKING:
    from ponder.engine.torch_load import Loaded


class To(StrEnum):
    """The forms of weights."""

    gguf = "gguf"
    peft = "peft"
    safetensors = "safetensors"


class Packing(StrEnum):
    """How a file stores matrices."""

    f16 = "f16"
    f32 = "f32"
    q8_0 = "q8_0"


def export(
    source: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT_OR_RUN", help="A run's folder, or RUN/checkpoints/step-...")
    ],
    to: Annotated[To, typer.Option("--to", help="GGUF for llama.cpp; PEFT for an adapter; or a transformers folder.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file or folder to write; else beside the run's result.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="To GGUF: the whole model, where an adapter was trained.")
    ] = False,
    packing: Annotated[
        Packing | None, typer.Option("--packing", help="How matrices are stored: to GGUF f16 by default, to PEFT f32.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Export what was trained: of a run its newest checkpoint, or any checkpoint by its folder.

    ponder export runs/first --to gguf
    ponder export runs/first/checkpoints/step-00000100 --to safetensors --output model
    """
    from ponder.commands.training import require_packages

    require_packages()
    from ponder.train import result, start

    recipe, found = result.opened(source)
    adapted = start.adapted(recipe)
    if to is To.peft and not adapted:
        raise InputError(f"{source} trained the whole model, which is no adapter", "Export it --to safetensors")
    whole = to is To.safetensors or (to is To.gguf and (merge or not adapted))
    if merge and not (to is To.gguf and adapted):
        raise InputError("--merge is for an adapter that goes --to gguf", "Drop it")
    if packing is Packing.q8_0 and not whole:
        raise InputError("an adapter is not stored as q8_0", "Take --packing f16, or --merge")
    if packing is not None and to is To.safetensors:
        raise InputError("--packing is of GGUF and PEFT: safetensors keep the weights' own type", "Drop it")
    target = output or _folder(source) / _name(to, whole)
    model = result.trained(recipe, found)
    _write(model, to, target, whole, packing or (Packing.f32 if to is To.peft else Packing.f16))
    told = {"version": 1, "step": found.step, "to": to.value, "whole": whole, "output": str(target)}
    print(json.dumps(told) if as_json else plain(str(target)))


def _write(model: Loaded, to: To, target: Path, whole: bool, packing: Packing) -> None:
    from ponder.train import export as exports

    weights: Any = model.model  # what has no adapter is written whole, and packings are those of `to`
    kind: Any = packing.value
    if to is To.safetensors:
        exports.to_safetensors(weights, model.tokenizer, target, metadata=model.metadata)
    elif to is To.peft:
        exports.to_peft(weights, target, kind=kind, metadata=model.metadata)
    elif whole:
        exports.to_gguf(weights, model.tokenizer, target, kind=kind, metadata=model.metadata)
    else:
        exports.to_gguf_adapter(weights, target, kind=kind, metadata=model.metadata)


def _folder(source: Path) -> Path:
    return source.parents[1] if source.parent.name == "checkpoints" else source


def _name(to: To, whole: bool) -> str:
    if to is To.gguf:
        return "model.gguf" if whole else "adapter.gguf"
    return to.value

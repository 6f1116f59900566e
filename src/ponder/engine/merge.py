"""An adapter merged into its base, in a form that the processor computes faster.

    W' = W + s (alpha / r) B A        Hu et al., LoRA (2021), section 4.1, "No Additional Inference Latency"

A: (r, in), B: (out, r), W: (out, in). Beside the base, an adapter costs two more products at each of
its seven places in each layer. Merged weights are kept in Q8_0, which holds the sum; the coarser Q4_0
computes faster still, but cost most of what the adapter had taught (docs/engines.md). Everything that is
not adapted, or not Q4_1, stays as it is, byte for byte.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from ponder.engine.download import Progress, silent, storing
from ponder.errors import WeightsError

KIND = "Q8_0"
REVISION = 2
"""Raised when the same input gives another output."""


def merged(base: Path, base_sha256: str, adapter: Path, adapter_sha256: str, progress: Progress = silent) -> Path:
    """The merged file beside `base`, made now if it is not there. Raises WeightsError where it cannot be stored."""
    from filelock import FileLock

    name = f"{adapter.parent.name}-{base_sha256[:8]}-{adapter_sha256[:8]}-{KIND}-{REVISION}.gguf"
    target = base.parent / name
    if target.exists():
        return target
    with storing(target), FileLock(base.parent.with_name(f"{target.name}.lock")):
        if not target.exists():
            part = target.with_suffix(".part")
            try:
                merge(base, adapter, part, progress)
                os.replace(part, target)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    part.unlink()
    return target


def merge(base: Path, adapter: Path, target: Path, progress: Progress = silent) -> None:
    """Writes `base` with `adapter` merged into it to `target`. Raises WeightsError where they do not fit."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFReader
    from gguf.quants import dequantize, quantize

    kind, slow = GGMLQuantizationType[KIND], GGMLQuantizationType.Q4_1
    source, low_rank = GGUFReader(base), GGUFReader(adapter)
    factors = {tensor.name: np.asarray(tensor.data, dtype=np.float32) for tensor in low_rank.tensors}
    alpha = float(low_rank.fields["adapter.lora.alpha"].contents())
    writer = _copy_of_header(source, target)
    for done, tensor in enumerate(source.tensors):
        progress("merging", done, len(source.tensors))
        a, b = (factors.pop(f"{tensor.name}.{side}", None) for side in ("lora_a", "lora_b"))
        if a is None and tensor.tensor_type != slow:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        weights = dequantize(tensor.data, tensor.tensor_type)
        if a is not None and b is not None:
            if weights.shape != (b.shape[0], a.shape[1]):
                raise WeightsError(f"{adapter} does not fit {tensor.name} of {base}", "take the base it was trained on")
            weights = weights + (alpha / a.shape[0]) * (b @ a)
        chosen = kind if tensor.tensor_type == slow else tensor.tensor_type
        writer.add_tensor(tensor.name, quantize(weights.astype(np.float32), chosen), raw_dtype=chosen)
    if factors:
        raise WeightsError(f"{adapter} adapts {next(iter(factors))}, which {base} does not have", "take its own base")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    progress("merging", len(source.tensors), len(source.tensors))


def _copy_of_header(source: Any, target: Path) -> Any:
    """A writer that has the keys of `source`."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(target, str(source.fields["general.architecture"].contents()))
    for key, field in source.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        of = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=of)
    return writer

"""What a benchmark ran on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> str:
    """This machine: "x86_64, 2 cores, AMD EPYC 7B13"."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {processor()}"


def hardware(device: str) -> str:
    """What computes: the GPU for "cuda", else this machine."""
    if device != "cuda":
        return machine()
    import torch

    return torch.cuda.get_device_name()


def processor() -> str:
    """The name of its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")

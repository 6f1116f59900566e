"""The Triton kernels compute what their definitions compute, in Triton's interpreter: no GPU is needed.

Half precision is float16 here: the interpreter's products of bfloat16 are wrong, those of a bare `tl.dot` too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="module")
def differences() -> dict[str, dict[str, float]]:
    """In a process of its own, since triton asks for its interpreter when it is imported."""
    program = Path(__file__).with_name("kernel_checks.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(map(str, program.parents[:2]))}
    ended = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, dict[str, float]] = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_attention(differences: dict[str, dict[str, float]]) -> None:
    found = differences["attention"]
    assert set(found) == {"grouped", "window", "softcap", "narrow", "one split"}
    assert found.pop("narrow") < 2e-3
    assert all(value < 2e-6 for value in found.values()), found


@pytest.mark.parametrize("kernel", ["norms", "rotary"])
def test_norms_and_rotary_positions(differences: dict[str, dict[str, float]], kernel: str) -> None:
    assert len(differences[kernel]) == 3
    assert all(value < 2e-6 for value in differences[kernel].values()), differences[kernel]


def test_drawing(differences: dict[str, dict[str, float]]) -> None:
    found = differences["drawing"]
    assert len(found) == 6
    # A number within rounding of a border may fall on its other side: one of 40 at most.
    assert all(value <= (1 if name.startswith("tokens") else 5e-6) for name, value in found.items()), found


def test_a_whole_step(differences: dict[str, dict[str, float]]) -> None:
    assert set(differences["decoding"]) == {"llama", "qwen3", "smollm3", "gemma2"}
    assert all(value < 1e-5 for value in differences["decoding"].values()), differences["decoding"]

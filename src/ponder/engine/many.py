"""Which engine computes the weights of a known name where many samples are wanted: torch, if it is the faster here.

A name of the catalogue means weights, and no engine. llama.cpp starts in a second and is the faster for a few samples;
torch takes seconds to start, and is the faster with so many side by side that its matrix products are large, on a
processor that computes in bfloat16 or on a GPU. `gguf:NAME` and `hf:NAME` say which, and are never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from ponder.engine import catalogue
from ponder.errors import InputError, MissingExtra

SIDE_BY_SIDE = 64
"""Samples at once from which torch is the faster."""

WORTH = 256
"""Samples in all that make up for the seconds in which torch starts."""

BUSY = 256
"""Samples asked of it at once: more than its engine has sequences, so that what ends is followed at once."""

QUESTIONS = 8
"""Questions side by side on any other engine, where nobody says how many."""

LLAMA, TORCH = "gguf", "hf"


@dataclass(frozen=True)
class Work:
    """What is to be sampled: so many `asks`, each of `samples` side by side; `at_once` asks at a time, None for any."""

    asks: int
    samples: int = 1
    at_once: int | None = None

    @property
    def many(self) -> bool:
        """Whether torch gets enough to do: enough in all, and enough of it side by side."""
        asks = self.asks if self.at_once is None else min(self.asks, self.at_once)
        return self.asks * self.samples >= WORTH and asks * self.samples >= SIDE_BY_SIDE


def chosen(
    name: str, work: Work, begun: Collection[str] = (), *, torch_here: Callable[[], bool] | None = None
) -> tuple[str, str]:
    """The name as `open_engine` takes it for this work, and a line that says why; "" where there is nothing to say.

    begun: kinds of the engines that the same work was begun on: it goes on where it was begun, whatever else is
    so. Raises InputError where that is torch, which is missing by now.
    """
    if catalogue.find(name) is None:
        return name, ""
    kinds = set(begun) & {LLAMA, TORCH}
    wants = work.many and (torch_here or computes_here)()
    if not kinds or (TORCH if wants else LLAMA) in kinds:
        if not wants:
            return name, ""
        return (
            f"{TORCH}:{name}",
            f"{work.asks * work.samples:,} samples: torch computes them; {LLAMA}:{name} has llama.cpp",
        )
    if LLAMA in kinds:
        return name, f"begun on llama.cpp, and goes on there; {TORCH}:{name} begins anew on torch"
    if not installed():
        raise InputError(
            f"this was begun on {TORCH}:{name}, and its packages are missing",
            f"Run: pip install 'ponder[train]', or begin anew with {LLAMA}:{name}",
        )
    return f"{TORCH}:{name}", f"begun on torch, and goes on there; {LLAMA}:{name} begins anew on llama.cpp"


def questions_at_once(uri: str, samples: int, wanted: int | None) -> int:
    """Questions to ask side by side: as many as were `wanted`, else what keeps the engine at `uri` busy.

    samples: those of one question that run side by side.
    """
    if wanted is not None:
        return wanted
    if uri.partition(":")[0] != TORCH:
        return QUESTIONS
    return max(QUESTIONS, -(-BUSY // samples))


def installed() -> bool:
    """Whether the packages of the hf: engine are there. Imports none of them."""
    from ponder.engine.torch_load import require_packages

    try:
        require_packages()
    except MissingExtra:
        return False
    return True


def computes_here() -> bool:
    """Whether torch is installed, and computes in bfloat16 by instructions of this processor, or on a GPU."""
    if not installed():
        return False
    import torch

    from ponder.engine.torch_projection import packs

    if torch.cuda.is_available():
        return True
    return packs(torch.device("cpu"), torch.bfloat16) and _has_instructions(torch.cpu)


def _has_instructions(cpu: Any) -> bool:
    """`packs` holds for processors with AVX-512 alone, too, which is slow."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(cpu, test, bool)() for test in tests)

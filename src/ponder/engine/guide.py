"""What a sample's tokens are followed with as they come: a grammar, texts that end it, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from ponder.engine.constraint import Constraint


@dataclass
class Guide:
    """Follows samples that have said the same so far. `piece` gives the bytes of a token, none for an end of turn."""

    piece: Callable[[int], bytes]
    constraint: Constraint | None = None
    stops: tuple[bytes, ...] = ()
    tail: bytes = b""

    def fork(self) -> Guide:
        """Another one that goes on from here."""
        return replace(self, constraint=None if self.constraint is None else self.constraint.fork())

    @property
    def complete(self) -> bool:
        """Nothing may follow but the end."""
        return self.constraint is not None and self.constraint.complete

    def allowed(self) -> npt.NDArray[np.bool_] | None:
        """Which tokens may come next (vocabulary,); None where all may. Raises InputError where none can."""
        return None if self.constraint is None else self.constraint.allowed()

    def take(self, token: int) -> Literal["stop", "length"] | None:
        """Goes on by a token that ends no turn; says how the sample ends with it, if it does. Raises InputError."""
        if self.constraint is not None:
            self.constraint.take(token)
            if self.constraint.complete:
                return "stop"
        if not self.stops:
            return None
        text = self.tail + self.piece(token)
        self.tail = text[-max(map(len, self.stops)) :]
        return "length" if any(stop in text for stop in self.stops) else None

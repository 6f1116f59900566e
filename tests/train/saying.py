"""A policy that says one text after the other, whatever it is asked."""

from __future__ import annotations

from collections.abc import Sequence

from ponder.train.rollout import Ask, Rollout, Rollouts
from ponder.train.texts import Texts
from ponder.types import Sample


def spoken(texts: Texts, text: str, prompt: Sequence[int], ended: bool = True) -> Sample:
    """A sample of that text; `ended`: with the token that ends a turn."""
    ids = (*texts.encode(text), *([texts.end] if ended else []))
    return texts.read(Sample(0, "", tuple(prompt), ids, (True,) * len(ids), (None,) * len(ids)))


def saying(texts: Texts, *replies: str) -> Rollouts:
    """What samples them in turn."""
    said = iter(replies)

    def sample(asks: Sequence[Ask]) -> list[list[Rollout]]:
        found = [[spoken(texts, next(said), ask.prompt) for _ in range(ask.n)] for ask in asks]
        return [[Rollout(ask, s, (-1.0,) * len(s.ids)) for s in group] for ask, group in zip(asks, found, strict=True)]

    return sample

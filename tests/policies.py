"""A slow policy for tests of what learns from rollouts: one token at a time through transformers itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tiny import tiny_tokenizer

from ponder.engine.torch_load import Loaded
from ponder.train.rollout import Ask, Rollout, Rollouts
from ponder.train.texts import Texts
from ponder.types import Sample

THINKING = {"ponder.thinking": {"name": "ponder"}}


def tiny_texts(model: Any = None) -> Texts:
    """How the tiny model's conversations are written down: with `<think>`."""
    return Texts.of(Loaded(model, tiny_tokenizer(), "tiny", metadata=THINKING))


def naive(model: Any, texts: Texts, temperature: float = 1.0) -> Rollouts:
    """Samples by the definition."""

    def sample(asks: Sequence[Ask]) -> list[list[Rollout]]:
        return [[_one(model, texts, ask, index, temperature) for index in range(ask.n)] for ask in asks]

    return sample


@torch.no_grad()
def _one(model: Any, texts: Texts, ask: Ask, index: int, temperature: float) -> Rollout:
    generator = torch.Generator().manual_seed((ask.seed + index) % 2**62)
    ids, said, logprobs, drawn = list(ask.prompt), [], [], []
    training = model.training
    model.eval()
    for _ in range(ask.max_tokens):
        logits = model(torch.tensor([ids])).logits[0, -1].float()
        warm = (logits / temperature).log_softmax(-1)
        token = int(torch.multinomial(warm.exp(), 1, generator=generator))
        ids.append(token)
        said.append(token)
        logprobs.append(float(logits.log_softmax(-1)[token]))
        drawn.append(float(warm[token]))
        if token == texts.end:
            break
    model.train(training)
    finish = "stop" if said[-1] == texts.end else "length"
    sample = Sample(index, "", ask.prompt, tuple(said), (True,) * len(said), tuple(logprobs), finish)
    return Rollout(ask, texts.read(sample), tuple(drawn))

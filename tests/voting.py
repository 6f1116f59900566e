"""A scripted model whose samples give chosen answers, in the order of their start."""

from __future__ import annotations

import itertools
import re

from ponder.chat.model import Model, model_of
from ponder.engine._script import HEADER, TOKENIZER, Source
from ponder.engine.scripted import Fault, ScriptedEngine, says
from ponder.protocols import SamplingParams


def voter(*answers: str, thinking: str = "I think.", faults: list[Fault] | None = None) -> Model:
    """A model whose i-th sample says answers[i], in the order of their start, over however many requests."""
    texts = [f"{i}: {thinking}\nThe answer is {answer}." for i, answer in enumerate(answers)]
    begun = itertools.count()

    def reply(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Source:
        turn = TOKENIZER.decode(prefix).rpartition(HEADER.encode())[2].decode(errors="replace")
        named = re.search(r"(\d+): ", turn)
        which = int(named[1]) if named else next(begun)
        return says(texts[which % len(texts)])(prefix, 0, params)

    return model_of(ScriptedEngine(reply, faults=faults or []))

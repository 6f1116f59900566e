"""The sampler over the very weights that are trained, as the loops that sample want it."""

from __future__ import annotations

from typing import Any

import torch

from ponder.engine.torch_load import Loaded
from ponder.engine.torch_sampler import Sampler, Thinking
from ponder.engine.torch_tokens import Tokens
from ponder.errors import InputError
from ponder.train.texts import Texts


def sampler_of(
    start: Loaded,
    texts: Texts,
    context: int,
    slots: int,
    *,
    temperature: float = 1.0,
    answer: int | None = None,
    dtype: torch.dtype | None = None,
) -> Sampler:
    """A sampler of `slots` rows of `context` tokens.

    answer: tokens that stay for it where thinking is bounded; None where it never is. dtype: of the arithmetic, None
    for that of the weights. Raises InputError where the model has fewer positions.
    """
    model: Any = start.model
    config = (model.get_base_model() if hasattr(model, "get_base_model") else model).config
    if context > config.max_position_embeddings:
        raise InputError(
            f"a prompt and its answer may take {context} tokens, and the model has {config.max_position_embeddings}",
            "Lower longest or max_tokens",
        )
    thinking = None
    if answer is not None:
        closing = tuple(texts.encode(texts.format.closing))
        thinking = Thinking(texts.format.close, closing, answer)
    tokens = Tokens(start.tokenizer, config.vocab_size, (texts.end,))
    return Sampler(
        model,
        end_ids=(texts.end,),
        pieces=[tokens.piece(number) for number in range(tokens.size)],
        slots=slots,
        context=context,
        dtype=dtype,
        temperature=temperature,
        thinking=thinking,
    )

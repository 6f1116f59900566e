"""The forward pass of training: packed tokens in, a number for each token that is learnt from out.

    log p_t = z_t[id_t] / T - logsumexp(z_t / T)          z_t: logits after the tokens before t, in float32

Logits are never held for a whole batch: the head runs over pieces of the tokens that are learnt from, and each piece
is computed again for its gradient, but for the last one, with which the backward pass begins. So the largest thing in
memory is (piece, vocabulary), however long the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ponder.errors import InputError
from ponder.train import attention
from ponder.train.attention import Layout
from ponder.train.rows import Pack

PIECE = 1024
"""Tokens whose logits are held at a time."""

Reduce = Callable[[Tensor, Tensor], Tensor]
"""From logits (piece, vocabulary) in float32, and the places of their tokens in the pack, to (piece, ...)."""


class Scorer(nn.Module):
    """A causal model of transformers (or peft's wrap of one) as a function of packs.

    precision: the type that products are computed in, float32 or bfloat16 (by autocast: weights keep their own type).
    """

    def __init__(self, model: nn.Module, precision: torch.dtype = torch.float32, piece: int = PIECE) -> None:
        super().__init__()
        _check_head(model)
        attention.use(model)
        self.model = model
        self.precision = precision
        self.piece = piece

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def forward(self, pack: Pack, reduce: Reduce) -> Tensor:
        """`reduce` of the logits that predict each token of `pack.mask`, in the order of the pack: (learnt, ...)."""
        places = pack.mask.nonzero()[:, 0]
        with self._autocast():
            hidden = self.states(pack)

            def piecewise(states: Tensor, at: Tensor) -> Tensor:
                return reduce(self.logits(states), at)

            pieces = list(zip(torch.split(hidden, self.piece), torch.split(places, self.piece), strict=True))
            if not torch.is_grad_enabled():
                return torch.cat([piecewise(states, at) for states, at in pieces])
            again = [checkpoint(piecewise, states, at, use_reentrant=False) for states, at in pieces[:-1]]
            return torch.cat([*again, piecewise(*pieces[-1])])

    def states(self, pack: Pack) -> Tensor:
        """The hidden states that predict each token of `pack.mask` (learnt, width): what the head is applied to."""
        with self._autocast():
            return self._hidden(pack)[pack.previous[pack.mask.nonzero()[:, 0]]]

    def logits(self, states: Tensor) -> Tensor:
        """The head on hidden states: (states, vocabulary) in float32."""
        head: Any = self.causal.lm_head
        softcap = getattr(self.causal.config, "final_logit_softcapping", None)
        with self._autocast():
            logits: Tensor = head(states).float()
        return softcap * torch.tanh(logits / softcap) if softcap else logits

    @property
    def causal(self) -> Any:
        """The model itself, under what peft puts around it."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _hidden(self, pack: Pack) -> Tensor:
        states: Tensor = self.causal.model(
            input_ids=pack.ids[None],
            position_ids=pack.positions[None],
            # Four dimensions say that the mask is ready, so none is made; the layout takes its place.
            attention_mask=torch.zeros(1, 1, 1, 1, device=pack.ids.device),
            use_cache=False,
            layout=Layout.of(pack),
        ).last_hidden_state
        return states[0]

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)


def _check_head(model: nn.Module) -> None:
    """Raises InputError for a model that does to its logits what `logits` does not."""
    config: Any = getattr(model, "config", None)
    for name in ("logits_scaling", "logit_scale", "lm_head_multiplier"):
        if getattr(config, name, 1) not in (1, None):
            raise InputError(f"the model scales its logits by {name}, which training does not do", "Take another model")


def at_targets(pack: Pack, temperature: float = 1.0) -> Reduce:
    """Log-probabilities of the pack's own tokens at `temperature`."""
    return lambda logits, places: _chosen(logits, pack.ids[places], temperature, entropy=False)[0]


def with_entropy(pack: Pack, temperature: float = 1.0) -> Reduce:
    """(learnt, 2): log-probabilities, and the entropy of each distribution, which carries no gradient."""
    return lambda logits, places: torch.stack(_chosen(logits, pack.ids[places], temperature, entropy=True), dim=-1)


def _chosen(logits: Tensor, ids: Tensor, temperature: float, *, entropy: bool) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = _Chosen.apply(logits, ids, temperature, entropy)  # type: ignore[no-untyped-call]
    return found


class _Chosen(torch.autograd.Function):
    """Log-probabilities of the chosen ids, and entropies where they are wanted, from logits (n, vocabulary).

    d log p(id) / dz = (1[id] - p) / T: written out, it takes half the passes over (n, vocabulary) that autograd does.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
        logs = (logits if temperature == 1 else logits / temperature).log_softmax(-1)
        ctx.temperature = temperature
        ctx.save_for_backward(logs, ids)
        chosen = logs.gather(1, ids[:, None])[:, 0]
        even = logs.exp().mul_(logs).sum(-1).neg_() if entropy else chosen.new_zeros(())
        ctx.mark_non_differentiable(even)
        return chosen, even

    @staticmethod
    def backward(ctx: Any, given: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        logs, ids = ctx.saved_tensors
        each = (given / ctx.temperature)[:, None]
        gradient = logs.exp().mul_(-each).scatter_add_(1, ids[:, None], each)
        return gradient, None, None, None


def over_tokens(pack: Pack, learnt: Tensor) -> Tensor:
    """Values of the learnt tokens (learnt, ...), put at their places among all tokens (tokens, ...), 0 elsewhere."""
    full = learnt.new_zeros((len(pack), *learnt.shape[1:]))
    return full.index_put((pack.mask.nonzero()[:, 0],), learnt)

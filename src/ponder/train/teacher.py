"""The teachers of distillation: a model beside the student, or its distributions in a file.

A teacher gives `reduce`, from the student's logits of some tokens to the divergence at each of them; its own logits
are computed there, a piece of tokens at a time, and never held for a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from ponder.errors import InputError
from ponder.train import stored
from ponder.train.divergence import forward_kl, jensen_shannon, reverse_kl, top_k_forward_kl
from ponder.train.rows import Pack, Row, packed
from ponder.train.scorer import Reduce, Scorer

if TYPE_CHECKING:
    from ponder.engine.torch_load import Loaded

Kind = Literal["forward", "reverse", "jensen_shannon"]


class Teacher(Protocol):
    """What `distill` learns from."""

    def lesson(self, rows: Sequence[Row], numbers: Sequence[int | None]) -> tuple[list[Row], Callable[[Pack], Reduce]]:
        """The rows of a step, and the divergence at their tokens.

        numbers: which of the dataset's rows each one is; None for what the student has sampled.
        """
        ...


@dataclass(frozen=True)
class Divergence:
    """How far a student is from its teacher, at each token: see `divergence`. beta: that of jensen_shannon alone."""

    kind: Kind = "forward"
    beta: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"there is no divergence {self.kind!r}", f"Choose one of {', '.join(get_args(Kind))}")
        if not 0 < self.beta < 1:
            raise InputError(f"beta is {self.beta}", "Give 0 < beta < 1, or take forward or reverse")
        if not self.temperature > 0:
            raise InputError(f"the temperature is {self.temperature}", "Give a number above 0")

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(tokens,) from logits (tokens, vocabulary)."""
        if self.kind == "forward":
            return forward_kl(student, teacher, temperature=self.temperature)
        if self.kind == "reverse":
            return reverse_kl(student, teacher, temperature=self.temperature)
        return jensen_shannon(student, teacher, beta=self.beta, temperature=self.temperature)


class Present:
    """A teacher that is here: a model of the student's vocabulary, which stays as it is.

    Heads of some models have rows beyond their tokenizer's tokens, and not as many in each size: only the first
    `words` logits are compared.
    """

    def __init__(
        self,
        model: nn.Module,
        divergence: Divergence,
        *,
        words: int | None = None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self._scorer = Scorer(model, precision)
        self._divergence = divergence
        self._words = words

    def lesson(self, rows: Sequence[Row], numbers: Sequence[int | None]) -> tuple[list[Row], Callable[[Pack], Reduce]]:
        """The rows as they are."""
        return list(rows), self.reduce

    def reduce(self, pack: Pack) -> Reduce:
        """The divergence at the pack's learnt tokens."""
        self._scorer.eval()
        with torch.no_grad():
            states = self._scorer.states(pack)
        rank = pack.mask.cumsum(0) - 1

        def reduce(logits: Tensor, places: Tensor) -> Tensor:
            with torch.no_grad():
                teacher = self._scorer.logits(states[rank[places]])
            return self._divergence(logits[:, : self._words], teacher[:, : self._words])

        return reduce


class Stored:
    """A teacher's most likely tokens at each token of a dataset, read from a file that `store` wrote.

    What is minimised is the forward divergence, with all other tokens as one (see `top_k_forward_kl`).
    """

    def __init__(self, path: Path, rows: Sequence[Row]) -> None:
        """Raises InputError for a file that is missing, damaged, or was made for other rows."""
        tensors, facts = stored.load(path)
        if facts.get("rows") != stored.rows_hash(rows):
            raise InputError(f"{path} was made for other rows", "Have the teacher read these, with store()")
        self._ids, self._logprobs = tensors["ids"], tensors["logprobs"]
        self._temperature = float(facts["temperature"])
        ends = torch.tensor([row.learnt for row in rows]).cumsum(0).tolist()
        self._slices = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def lesson(self, rows: Sequence[Row], numbers: Sequence[int | None]) -> tuple[list[Row], Callable[[Pack], Reduce]]:
        """The rows with the value "stored", where in the tensors of the step each learnt token is."""
        known = [number for number in numbers if number is not None]
        if len(known) < len(numbers):
            raise InputError("a stored teacher has not read what the student samples", "Give a teacher that is here")
        ids = torch.cat([self._ids[self._slices[number]] for number in known])
        logprobs = torch.cat([self._logprobs[self._slices[number]] for number in known])

        def of_pack(pack: Pack) -> Reduce:
            def reduce(logits: Tensor, places: Tensor) -> Tensor:
                at = pack.values["stored"][places].long().cpu()
                chosen, known = ids[at].to(logits.device), logprobs[at].to(logits.device)
                return top_k_forward_kl(logits, chosen, known, temperature=self._temperature)

            return reduce

        return _numbered(rows), of_pack


def _numbered(rows: Sequence[Row]) -> list[Row]:
    """Each learnt token with its number among those of the batch, as a float32, which counts up to 2^24."""
    numbered, at = [], 0
    for row in rows:
        places = []
        for learn in [False, *row.mask[1:]]:
            places.append(float(at))
            at += learn
        numbered.append(replace(row, values={**row.values, "stored": places}))
    return numbered


def store(
    model: nn.Module,
    rows: Sequence[Row],
    k: int,
    path: Path,
    *,
    temperature: float = 1.0,
    tokens: int = 8192,
    precision: torch.dtype = torch.float32,
) -> None:
    """Writes a teacher's k most likely tokens, and their log-probabilities, at each learnt token of `rows`.

    A token takes 8 k bytes. Raises InputError for a k or rows that cannot be, WeightsError where there is no room.
    """
    scorer = Scorer(model, precision).eval()
    words = scorer.causal.get_output_embeddings().weight.shape[0]
    if not 1 <= k <= words:
        raise InputError(f"k is {k}", f"Give a number of tokens from 1 to {words}")
    if not any(row.learnt for row in rows):
        raise InputError("the rows have nothing to learn", "Give examples with an answer")

    def reduce(logits: Tensor, places: Tensor) -> Tensor:
        logprobs, ids = (logits / temperature).log_softmax(-1).topk(k)
        return torch.stack([logprobs, ids.float()], dim=1)  # exact up to 2^24 tokens

    found: dict[int, Tensor] = {}
    with torch.no_grad():
        for pack in packed(rows, tokens):
            pack = pack.to(scorer.device)
            learnt = [rows[number].learnt for number in pack.rows]
            found |= dict(zip(pack.rows, scorer(pack, reduce).cpu().split(learnt), strict=True))
    values = torch.cat([found[number] for number in range(len(rows))])
    facts = {"rows": stored.rows_hash(rows), "temperature": str(temperature)}
    stored.save(path, {"ids": values[:, 1].to(torch.int32), "logprobs": values[:, 0]}, facts)


def common_words(student: Loaded, teacher: Loaded) -> int:
    """How many tokens both have. Raises InputError where their tokens are not the same ones."""
    mine, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if mine != theirs:
        raise InputError(
            f"{teacher.source} has another vocabulary than {student.source}, so their distributions cannot be compared",
            "Let the teacher write traces, and train on those that are right",
        )
    return max(mine.values()) + 1

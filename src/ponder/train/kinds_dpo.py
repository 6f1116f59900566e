"""Learning from pairs as a kind of training: pairs that are written down, and those that scored traces hold."""

from __future__ import annotations

from collections.abc import Sequence

from ponder.data.examples import Example
from ponder.engine.torch_load import Loaded
from ponder.errors import InputError
from ponder.train import sources
from ponder.train.dpo import Pair, dpo, pairs_of
from ponder.train.kinds import Dataset, Lesson, scored_samples
from ponder.train.recipe import Dpo, Recipe
from ponder.train.texts import Texts
from ponder.train.verified import Verified
from ponder.types import Message


def pairs(recipe: Recipe, start: Loaded) -> Dataset:
    """The pairs that are not too long. Raises InputError where there are none."""
    told, texts = recipe.dpo or Dpo(), Texts.of(start)
    written, hits = sources.kept_out(sources.preferences(recipe.data.sources), recipe.data.keep_out, _preferred)
    found = [_written(texts, *each) for each in written]
    scored, kept_out = scored_samples(recipe, told.verifier) if not written and not hits else ([], {"kept_out": hits})
    own = [each for each in scored if own_tokens(texts, each)]
    found += pairs_of(own, matched=told.matched, gap=told.gap)
    kept = [pair for pair in found if _length(pair) <= recipe.longest]
    if not kept:
        why = (
            f"of {len(scored)} scored samples, {len(own)} are in this model's tokens" if scored else "all are too long"
        )
        raise InputError(f"the data holds no pair to learn from: {why}", "Ask this model, with best_of_n(8), say")
    counts = {"pairs": len(kept), "left_out_as_too_long": len(found) - len(kept)}
    if scored:
        counts["samples_of_other_tokens"] = len(scored) - len(own)
    if recipe.data.keep_out:
        counts |= kept_out
    return Dataset(kept, {**counts, "tokens": sum(map(_length, kept))})


def train(lesson: Lesson) -> None:
    """Learns to prefer what is preferred."""
    told = lesson.recipe.dpo or Dpo()
    dpo(
        lesson.trainer,
        lesson.items,
        lesson.recipe.size,
        beta=told.beta,
        kind=told.kind,
        smoothing=told.smoothing,
        reference=told.reference,
    )


def own_tokens(texts: Texts, item: Verified) -> bool:
    """Whether the sample's ids mean its text to this model, too: traces may be another one's."""
    sample = item.sample
    ids = sample.ids[:-1] if sample.ids and sample.ids[-1] == texts.end else sample.ids
    return sample.exact and bool(ids) and texts.decode(ids).strip() == sample.text.strip()


def _preferred(pair: tuple[tuple[Message, ...], sources.Said, sources.Said]) -> Example:
    messages, (thinking, answer), _ = pair
    return Example("\n".join(message.text for message in messages), answer, thinking)


def _written(texts: Texts, messages: Sequence[Message], chosen: sources.Said, rejected: sources.Said) -> Pair:
    prompt, preferred = texts.trace(messages, *chosen)
    other, refused = texts.trace(messages, *rejected)
    if prompt != other:
        raise InputError("of a pair one answer thinks and the other does not", "Let both think, or neither")
    return Pair(prompt, preferred, refused)


def _length(pair: Pair) -> int:
    return len(pair.prompt) + len(pair.chosen) + len(pair.rejected)

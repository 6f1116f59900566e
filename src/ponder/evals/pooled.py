"""What every number of samples would have come to, from one run of many samples a question (`vote(32)`).

For k = 1, 2, 4, ... votes, best of k and coverage are the unbiased estimates of `estimators`, votes that stop
early those of `adaptive`. k samples of a question cost

    prompt + k (mean cost of its samples)

where the prompt counts once if the samples shared it. Seconds are an even share of the whole request's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import NamedTuple

from ponder.evals.adaptive import adaptive_vote
from ponder.evals.estimators import best_of_k, majority_at_k, pass_at_k
from ponder.evals.results import Judged, Run
from ponder.types import Cost


class Spent(NamedTuple):
    """What a question cost on average. None where the engine or the user did not say."""

    tokens: float
    seconds: float
    flops: float | None
    dollars: float | None


@dataclass(frozen=True)
class Draws:
    """The samples of one question that are draws from one distribution, and what one of them costs.

    `prompt` is what is paid once however many samples there are, `each` what one more costs.
    """

    question: str
    kept: tuple[Judged, ...]
    prompt: Spent
    each: Spent

    def spent(self, samples: float) -> Spent:
        """The cost of so many samples of mean length."""
        flops, dollars = (
            None if once is None or more is None else once + samples * more
            for once, more in ((self.prompt.flops, self.each.flops), (self.prompt.dollars, self.each.dollars))
        )
        return Spent(samples * self.each.tokens, samples * self.each.seconds, flops, dollars)


class Estimate(NamedTuple):
    """An expected verdict and cost for each question, in the order of the pool."""

    scores: tuple[float, ...]
    spent: Spent


def draws_of(run: Run, questions: Sequence[str] | None = None) -> list[Draws]:
    """The draws of each question; all repetitions of a question are one pool."""
    found: dict[str, list[Judged]] = {name: [] for name in (run.questions if questions is None else questions)}
    seconds = dict.fromkeys(found, 0.0)
    for result in run.results:
        if result.question in found:
            found[result.question].extend(result.samples)
            seconds[result.question] += result.cost.seconds
    return [_draws(name, samples, seconds[name]) for name, samples in found.items()]


def _draws(question: str, samples: Sequence[Judged], seconds: float) -> Draws:
    started = max(1, len(samples))
    total = sum((sample.cost for sample in samples), Cost())
    # Samples that shared another one's prompt tell what a token costs without one.
    sharing = sum((sample.cost for sample in samples if not sample.cost.prompt), Cost())
    flops = _split(total.flops, sharing.flops, sharing, total, started)
    dollars = _split(total.dollars, sharing.dollars, sharing, total, started)
    return Draws(
        question,
        tuple(sample for sample in samples if sample.kept),
        Spent(0.0, 0.0, flops[0], dollars[0]),
        Spent(total.tokens / started, seconds / started, flops[1], dollars[1]),
    )


def _split(
    whole: float | None, shared: float | None, sharing: Cost, total: Cost, started: int
) -> tuple[float | None, float | None]:
    """What is paid once, and what for each sample; without samples that shared a prompt, each pays its own."""
    if whole is None or shared is None:
        return None, None
    computed = sharing.tokens + sharing.recomputed
    if not computed:
        return 0.0, whole / started
    each = shared / computed * (total.tokens + total.recomputed)
    return max(0.0, whole - each), min(whole, each) / started


def sizes(draws: Sequence[Draws]) -> list[int]:
    """1, 2, 4, ... up to the largest pool, and that itself."""
    most = max((len(each.kept) for each in draws), default=0)
    found, k = [], 1
    while k < most:
        found.append(k)
        k *= 2
    return [*found, most] if most else []


# ---------------------------------------------------------------- estimates


def votes(draws: Sequence[Draws], k: int, weighted: bool = False, seed: int = 0) -> Estimate:
    """A vote of k; of all there are where a question has fewer."""
    return _estimate(draws, k, [_vote(each.kept, min(k, len(each.kept)), weighted, seed) for each in draws])


def best(draws: Sequence[Draws], k: int, selector: str) -> Estimate:
    """The highest-scored of k by a selecting verifier, and what scoring cost; samples without a score come last."""
    scores, costs = [], []
    for each in draws:
        ranked = [sample.scores.get(selector, float("-inf")) for sample in each.kept]
        correct = [sample.correct for sample in each.kept]
        scores.append(best_of_k(ranked, correct, min(k, len(ranked))) if ranked else 0.0)
        scoring = mean_spent([sample.costs.get(selector, Cost()) for sample in each.kept] or [Cost()])
        costs.append(replace(each, each=_added(each.each, scoring)).spent(k))
    return Estimate(_shares(scores), mean_spent(costs))


def coverage(draws: Sequence[Draws], k: int) -> Estimate:
    """Whether any of k is right: what a verifier that never errs would select."""
    scores = []
    for each in draws:
        n, right = len(each.kept), sum(sample.correct >= 0.5 for sample in each.kept)
        scores.append(pass_at_k(right, n, min(k, n)) if n else 0.0)
    return _estimate(draws, k, scores)


def stopped_early(draws: Sequence[Draws], k: int, risk: float, seed: int = 0) -> Estimate:
    """A vote of at most k that stops once its leader is the wrong one with at most `risk`."""
    scores, costs = [], []
    for each in draws:
        size = min(k, len(each.kept))
        if not size:
            scores.append(0.0)
            costs.append(each.spent(k))
            continue
        answers = [sample.answer for sample in each.kept]
        correct = [sample.correct for sample in each.kept]
        tokens = [float(sample.cost.tokens) for sample in each.kept]
        expected = adaptive_vote(answers, correct, tokens, size, risk, seed=seed)
        scores.append(expected.accuracy)
        # Samples are dear where the vote is long: their tokens, not their number, are what is paid for.
        mean = sum(tokens) / len(tokens)
        costs.append(each.spent(expected.tokens / mean if mean else expected.samples))
    return Estimate(_shares(scores), mean_spent(costs))


def _vote(kept: Sequence[Judged], k: int, weighted: bool, seed: int) -> float:
    """The expected verdict of the winning answer, which is that of any of the samples that gave it.

    Samples with one answer may be judged differently, as where one says it clearly and one in passing; the
    estimator takes an answer as right or wrong, and is linear in that: each level of rightness is asked alone.
    """
    if not kept:
        return 0.0
    silent = [sample.correct for sample in kept if sample.answer is None]
    verdicts: dict[str, list[float]] = {}
    for sample in kept:
        if sample.answer is not None:
            verdicts.setdefault(sample.answer, []).append(sample.correct)
    levels = {answer: sum(each) / len(each) for answer, each in verdicts.items()}
    answers = [sample.answer for sample in kept]
    weights = [sample.weight for sample in kept] if weighted else None
    total = 0.0
    for level in sorted({level for level in levels.values() if level > 0}):
        right = [answer is not None and levels[answer] == level for answer in answers]
        total += level * majority_at_k(answers, right, k, weights, exact=2000, draws=2000, seed=seed)
    if any(silent):  # a vote in which nobody has an answer gives that of its first sample
        total += comb(len(silent), k) / comb(len(kept), k) * sum(silent) / len(silent)
    return total


def _estimate(draws: Sequence[Draws], k: int, scores: Sequence[float]) -> Estimate:
    return Estimate(_shares(scores), mean_spent([each.spent(k) for each in draws]))


def _shares(scores: Sequence[float]) -> tuple[float, ...]:
    # Sums of shares come to a rounding error above 1, which is no score.
    return tuple(min(1.0, score) for score in scores)


def _added(a: Spent, b: Spent) -> Spent:
    flops, dollars = (
        None if x is None or y is None else x + y for x, y in ((a.flops, b.flops), (a.dollars, b.dollars))
    )
    return Spent(a.tokens + b.tokens, a.seconds + b.seconds, flops, dollars)


def mean_spent(costs: Sequence[Spent | Cost]) -> Spent:
    """The mean over questions; unknown where it is unknown for one of them."""

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(values) else None

    return Spent(
        sum(each.tokens for each in costs) / len(costs),
        sum(each.seconds for each in costs) / len(costs),
        mean([each.flops for each in costs]),
        mean([each.dollars for each in costs]),
    )


def selectors(draws: Sequence[Draws]) -> list[str]:
    """The names of the verifiers that scored samples."""
    return list(dict.fromkeys(name for each in draws for sample in each.kept for name in sample.scores))

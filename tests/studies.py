"""Runs and studies made by hand, for what is derived from them."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import replace

from ponder.evals.derive import study_of
from ponder.evals.results import Judged, Result, Run, Setting
from ponder.evals.study import Disagreement, Made, Study, Voice
from ponder.types import Budget, Cost

PROMPT, FLOPS, DOLLARS = 40, 2.0e6, 1e-6
"""Tokens of a prompt; operations and dollars of a token."""


def judged(index: int, answer: str | None, right: str | None, tokens: int = 10, **more) -> Judged:
    """A sample; the first of a question pays for the prompt that the others share."""
    prompt = PROMPT if index == 0 else 0
    computed = prompt + tokens
    cost = Cost(prompt, thinking=tokens, seconds=1.0, flops=FLOPS * computed, dollars=DOLLARS * computed)
    return Judged(index, answer, float(answer is not None and answer == right), cost, **more)


def pool_of(answers: Sequence[Sequence[str | None]], right: Sequence[str], tokens: int = 10, share: int = 64) -> Run:
    """A run of many samples a question, answers[i] being those to question i."""
    results = []
    for number, (given, wanted) in enumerate(zip(answers, right, strict=True)):
        samples = tuple(judged(index, answer, wanted, tokens) for index, answer in enumerate(given))
        cost = sum((sample.cost for sample in samples), Cost())
        results.append(Result(f"q{number}", 0, 0.0, cost, samples=samples))
    most = max(map(len, answers))
    return Run("pool", "sums", "tiny", Setting(f"vote({most})", Budget(tokens=most * share)), tuple(results))


def run_of(strategy: str, budget: int, verdicts: Sequence[float], tokens: float | None = None) -> Run:
    """A run of one sample a question, question i being answered with verdicts[i]."""
    spent = int(budget * 0.75 if tokens is None else tokens)
    cost = Cost(PROMPT, answer=spent, seconds=0.5, flops=FLOPS * (PROMPT + spent), dollars=DOLLARS * (PROMPT + spent))
    results = tuple(Result(f"q{i}", 0, verdict, cost) for i, verdict in enumerate(verdicts))
    return Run(f"{strategy}-{budget}", "sums", "tiny", Setting(strategy, Budget(tokens=budget)), results)


@functools.cache
def study(questions: int = 40, samples: int = 16, seed: int = 0) -> Study:
    """A study in which thinking pays: some questions are easy, most are answered right now and then."""
    draw = random.Random(seed)
    skills = [draw.betavariate(0.8, 1.6) for _ in range(questions)]
    answers = [["7" if draw.random() < skill else draw.choice("1234") for _ in range(samples)] for skill in skills]
    drawn = pool_of(answers, ["7"] * questions, tokens=45)

    def scored(sample: Judged) -> Judged:
        score = round(sample.correct * 0.3 + draw.random(), 1)
        return replace(sample, weight=draw.uniform(0.5, 1), scores={"arithmetic_steps": score})

    pool = replace(
        drawn, results=tuple(replace(each, samples=tuple(map(scored, each.samples))) for each in drawn.results)
    )
    runs = [run_of("direct", 64, [float(skill > 0.8) for skill in skills], 9)]
    runs += [
        run_of("chain_of_thought", budget, [float(draw.random() < skill * gain) for skill in skills])
        for budget, gain in ((32, 0.4), (64, 0.8), (128, 1.0))
    ]
    voices = (
        Voice("direct", "<script>document.title = 'taken'</script>", False),
        Voice("vote(16)", "The answer is 7.", True, "3 + 4 = 7.\n<img src=x onerror=alert(1)>"),
    )
    made = Made("ponder curve sums.jsonl", "2 cores", ("ponder 0.1.0",), "2025-01-31", "ab" * 32, 0.7)
    told = [Disagreement("q3", "What is 3 + 4? </script><b>&amp;", "7", voices)]
    return study_of(pool, runs, floor=("7", 0.1), made=made, disagreements=told)

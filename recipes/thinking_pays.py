"""What thinking buys the embedded model, and from which budget on: accuracy against tokens, with intervals.

    pip install --group recipes
    python recipes/thinking_pays.py [--questions 100] [--output docs/images/thinking_pays.png]

Asks the same arithmetic word problems, of one and of two steps, directly and with thinking under
several budgets, greedily. The problems are made here from templates, numbers drawn with a seed, so
nothing has to be fetched; they are easy on purpose: the model has 135 million parameters. Intervals
are Wilson's, 95%, over problems. Prints a table and one line of JSON last, and draws the plot.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from ponder.errors import PonderError
from ponder.evals.statistics import wilson
from ponder.protocols import SamplingParams
from ponder.solving import asolve, open_model
from ponder.strategies.chain_of_thought import chain_of_thought
from ponder.strategies.direct import direct

BUDGETS = (16, 24, 32, 48, 64, 96)
AT_ONCE = 8


@dataclass(frozen=True)
class Problem:
    """A word problem with its answer; `steps` is how many operations it takes."""

    text: str
    answer: int
    steps: int


def problems(count: int, seed: int) -> list[Problem]:
    """`count` problems, half of them of one step."""
    draw = random.Random(seed)
    made = []
    for index in range(count):
        a, b, c = draw.randint(11, 60), draw.randint(2, 9), draw.randint(2, 9)
        who, what = draw.choice(["Tom", "Anna", "Sam", "Lily"]), draw.choice(["apples", "stamps", "marbles", "books"])
        if index % 2 == 0:
            made.append(
                Problem(f"{who} had {a} {what} and got {b} more. How many {what} does {who} have now?", a + b, 1)
            )
        else:
            text = (
                f"{who} had {a} {what} and bought {b} boxes with {c} {what} each. How many {what} does {who} have now?"
            )
            made.append(Problem(text, a + b * c, 2))
    return made


def is_right(answer: str, wanted: int) -> bool:
    """Whether the last number of `answer` is `wanted`."""
    numbers = re.findall(r"-?\d[\d,]*", answer)
    return bool(numbers) and numbers[-1].replace(",", "") == str(wanted)


async def accuracy(uri: str, asked: list[Problem], budget: int, think: bool) -> dict[str, object]:
    """Answers all problems under one budget."""
    model = await open_model(uri, params=SamplingParams(1, temperature=0.0))
    strategy, gate = (chain_of_thought() if think else direct()), asyncio.Semaphore(AT_ONCE)

    async def one(problem: Problem) -> tuple[bool, int]:
        async with gate:
            try:
                trace = await asolve(problem.text, model=model, strategy=strategy, budget=budget)
            except PonderError as error:
                print(f"{problem.text}: {error}", file=sys.stderr)
                return False, 0
            return is_right(trace.answer, problem.answer), trace.cost.tokens

    results = await asyncio.gather(*map(one, asked))
    row: dict[str, object] = {"budget": budget, "think": think, "tokens": sum(t for _, t in results) / len(asked)}
    for steps in (1, 2):
        marks = [right for (right, _), problem in zip(results, asked, strict=True) if problem.steps == steps]
        low, high = wilson(sum(marks), len(marks))
        row[f"steps_{steps}"] = {"right": sum(marks), "n": len(marks), "low": round(low, 3), "high": round(high, 3)}
    return row


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """Accuracy against the tokens that were used, one panel for each number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, constrained_layout=True)
    for steps, panel in zip((1, 2), panels, strict=True):
        for think, name, colour in ((False, "answering at once", "#888888"), (True, "thinking first", "#1f6feb")):
            chosen = [row for row in rows if row["think"] is think]
            cells = [row[f"steps_{steps}"] for row in chosen]
            shares = [cell["right"] / cell["n"] for cell in cells]
            low = [share - cell["low"] for share, cell in zip(shares, cells, strict=True)]
            high = [cell["high"] - share for share, cell in zip(shares, cells, strict=True)]
            budgets = [row["budget"] for row in chosen]
            panel.errorbar(budgets, shares, yerr=[low, high], label=name, color=colour, marker="o", capsize=3)
        panel.set_title(f"{steps} step{'s' * (steps > 1)}, {cells[0]['n']} problems")
        panel.set_xscale("log", base=2)
        panel.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
        panel.set_xlabel("budget, tokens for the whole request")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy (95% interval)")
    panels[0].set_ylim(0, 1)
    panels[1].legend(loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


async def main() -> None:
    """Runs the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ponder-135m")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/images/thinking_pays.png"))
    options = parser.parse_args()
    asked, rows = problems(options.questions, options.seed), []
    for think in (False, True):
        for budget in BUDGETS:
            row = await accuracy(options.model, asked, budget, think)
            rows.append(row)
            one, two = row["steps_1"], row["steps_2"]
            way = "thinking" if think else "direct"
            print(f"{way:9} budget {budget:3}  {row['tokens']:5.1f} tokens  1 step {one}  2 steps {two}", flush=True)
    draw(rows, options.output)
    print(json.dumps({"recipe": "thinking_pays", "model": options.model, "seed": options.seed, "rows": rows}))


if __name__ == "__main__":
    asyncio.run(main())

"""The whole way round at the size of a toy: a model of 1 million parameters, from nothing, in minutes on two cores.

    pip install 'ponder[train,plots]'
    python recipes/tiny/run.py [FOLDER]

data, cold start, reinforcement learning, samples, process reward model, student, measurements: each stage is skipped
where it is done, and goes on where it was stopped. Prints a table, and writes results.json and accuracy.png.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import chains  # noqa: E402
import claims  # noqa: E402

LENGTHS = range(2, 9)
"""Steps of a chain, which take turns: in what is imitated, sampled and tested."""
MEASURED = {"development": 0, "test": 5}
"""Seeds of the chains that choices are made on, and of those that are asked once all are made."""
REINFORCED = range(2, 7)
"""Those of reinforcement learning: in a shorter answer a reward says more about each token."""


@dataclass(frozen=True)
class Size:
    """How much of everything: chains to learn from, questions, samples of each; changes to the recipes."""

    first: int = 20_000
    examples: int = 6_000
    questions: int = 3_000
    sampled: int = 1800
    samples: int = 2
    test: int = 420
    pool: int = 6
    budgets: tuple[int, ...] = (28, 40, 52, 64, 80)
    changes: tuple[str, ...] = ()


SMOKE = Size(64, 64, 16, 8, 2, 7, 2, (40, 80), ("steps=2", "optimizer.warmup=0"))
"""Two steps of everything: shows that it runs, and nothing else."""


def main() -> int:
    """Runs the recipe; gives 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("tiny"))
    parser.add_argument("--smoke", action="store_true", help="two steps of each stage, and no claims")
    parser.add_argument("--development", action="store_true", help="measure on the chains that choices are made on")
    parser.add_argument("--threads", type=int, help="of the processor; all cores unless given")
    told = parser.parse_args()
    told.folder.mkdir(parents=True, exist_ok=True)
    size = SMOKE if told.smoke else Size()
    with contextlib.chdir(told.folder):
        if told.threads:
            import torch

            torch.set_num_threads(told.threads)
        found = run(size, "development" if told.development else "test")
    print(claims.table(found))
    held = claims.checked(found)
    for claim in held:
        print(f"{'holds' if claim.holds else 'FAILS'}  {claim.says}")
    print(json.dumps({"recipe": "tiny", **found}))
    return 0 if told.smoke or all(claim.holds for claim in held) else 1


def run(size: Size, asked: str) -> dict[str, Any]:
    """All stages, in the current folder; gives the results on the chains that are asked."""
    seconds = Seconds(Path("seconds.json"))
    stages: dict[str, Callable[[], None]] = {
        "data": lambda: write_data(size),
        "first": lambda: train("first", size),
        "cold": lambda: train("cold", size),
        "rl": lambda: train("rl", size),
        "samples": lambda: write_samples(size),
        "process": lambda: train("process", size),
        "small": lambda: train("small", size),
        "student": lambda: train("student", size),
        "measure": lambda: measure(size, asked),
    }
    for name, stage in stages.items():
        with seconds.of(name):
            stage()
        print(f"{name:8} {seconds.known[name]:6.1f} s", file=sys.stderr, flush=True)
    path = results_of(asked)
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    found["seconds"] = {name: round(value, 1) for name, value in seconds.known.items()}
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found


def results_of(asked: str) -> Path:
    """Where the results on a set of chains are kept."""
    return Path("results.json" if asked == "test" else f"{asked}.json")


class Seconds:
    """How long each stage took, all its starts together, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, float] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Adds what is done inside it to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.known[name] = self.known.get(name, 0.0) + time.perf_counter() - began
            self.path.write_text(json.dumps(self.known), "utf-8")


# ---------------------------------------------------------------- stages


def write_data(size: Size) -> None:
    """Chains to imitate, some without their thinking or with a part of it; questions; what is measured on."""
    import samples

    from ponder.data.examples import write_examples

    data = Path("data")
    if (data / "direct.jsonl").exists():
        return
    data.mkdir(exist_ok=True)
    chains.write_tokenizer(Path("tokenizer"))
    known = set[str]()
    for name, seed in MEASURED.items():
        asked = chains.chains(size.test, LENGTHS, seed, beside=known)
        known |= {each.question for each in asked}
        rows: list[dict[str, Any]] = [{"task": chains.TASK, "verifier": "exact_text()"}]
        rows += [
            {"id": str(number), "question": each.question, "answer": each.reference, **each.metadata}
            for number, each in enumerate(asked)
        ]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    first = chains.chains(size.first, LENGTHS, seed=1, beside=known, seldom=chains.SELDOM)
    second = chains.chains(size.examples, LENGTHS, seed=4, beside=known, slip=chains.SLIP)
    write_examples(data / "first.jsonl", mixed(first))
    write_examples(data / "examples.jsonl", mixed(second))
    write_examples(
        data / "questions.jsonl", map(at_once, chains.chains(size.questions, REINFORCED, seed=2, beside=known))
    )
    write_examples(data / "sampled.jsonl", chains.chains(size.sampled, LENGTHS, seed=3, beside=known))
    samples.write_direct(mixed(second)[::15], data / "direct.jsonl")


def mixed(learnt: Sequence[chains.Example]) -> list[chains.Example]:
    """One in three without its thinking, one in 24 with a part of it."""
    draw = random.Random("cuts")
    return [
        at_once(each) if number % 3 == 0 else chains.cut(each, draw) if number % 24 == 1 else each
        for number, each in enumerate(learnt)
    ]


def at_once(example: chains.Example) -> chains.Example:
    """The right answer without thinking."""
    return replace(example, answer=example.reference or "", thinking="", steps=())


def train(name: str, size: Size) -> None:
    """The stage that a recipe beside this file tells: what `ponder train` does with it."""
    from ponder import improve
    from ponder.train.recipe_file import load

    result = Path("runs", name)
    if (result / "model").exists():
        return
    recipe = load(HERE / f"{name}.toml", size.changes)
    improve.improve(recipe, result, shown=told(name))


def told(name: str) -> Callable[[int, int, Any], None]:
    """Tells every tenth of the steps on standard error."""

    def show(step: int, steps: int, values: Any) -> None:
        if step % max(1, steps // 10) == 0:
            words = [f"{key} {values[key]:.3f}" for key in ("loss", "reward", "accuracy") if key in values]
            print(f"{name}: step {step} of {steps}, {', '.join(words)}", file=sys.stderr, flush=True)

    return show


def write_samples(size: Size) -> None:
    """Samples of the reinforced model, which the reward model and the student learn from."""
    import samples

    from ponder.data.examples import read_examples

    path = Path("data", "samples.jsonl")
    if not path.exists():
        samples.write_samples(Path("runs/rl/model"), list(read_examples("data/sampled.jsonl")), size.samples, path)


def measure(size: Size, asked: str) -> None:
    """The measurements, and what they come to."""
    import measure as measuring

    from ponder.evals import plot, study
    from ponder.evals.study import Made
    from ponder.tasks import load
    from ponder.train.run import steps_of

    if results_of(asked).exists():
        return
    task, kept = load(f"data/{asked}.jsonl"), Path("measured", asked)
    kept.mkdir(parents=True, exist_ok=True)
    runs = measuring.measured(task, Path("runs"), kept, measuring.Plan(size.budgets, size.pool))
    made = Made("python recipes/tiny/run.py", f"{os.cpu_count()} cores, {platform.machine()}",
                date=datetime.now(UTC).date().isoformat(), sha256=task.sha256)  # fmt: skip
    curves = measuring.studied(task, runs, made)
    if asked == "test":
        study.dump(curves, Path("study.json"))
        plot.draw(curves, Path("accuracy.png"))
    rewards = [line["reward"] for line in steps_of(Path("runs/rl"))]
    found = measuring.results(curves, runs, rewards)
    results_of(asked).write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())

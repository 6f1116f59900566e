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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import chains  # noqa: E402
import claims  # noqa: E402
import stages  # noqa: E402
from stages import Stage  # noqa: E402

LENGTHS = range(2, 7)
"""Steps of a chain, which take turns: in what is imitated, sampled and tested."""
MEASURED = {"development": 0, "test": 11}
"""Seeds of the chains that choices are made on, and of those that are asked once all are made."""
OFTEN = 3.0
"""How often a hard entry is met in what is sampled, for one that is not: there is more to verify."""
REINFORCED = range(2, 6)
"""Those of reinforcement learning: in a shorter answer a reward says more about each token."""


@dataclass(frozen=True)
class Size:
    """How much of everything: chains to learn from, questions, samples of each; changes to the recipes."""

    first: int = 20_000
    examples: int = 6_000
    questions: int = 3_000
    sampled: int = 6_000
    samples: int = 2
    test: int = 420
    pool: int = 6
    budgets: tuple[int, ...] = (28, 40, 64)
    changes: tuple[str, ...] = ()


SMOKE = Size(64, 64, 16, 8, 2, 7, 2, (40, 64), ("steps=2", "optimizer.warmup=0"))
"""Two steps of everything: shows that it runs, and nothing else."""


def main() -> int:
    """Runs the recipe; gives 1 where a claim does not hold or a stage fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("tiny"))
    parser.add_argument("--smoke", action="store_true", help="two steps of each stage, and no claims")
    parser.add_argument("--development", action="store_true", help="measure on the chains that choices are made on")
    parser.add_argument("--keep", action="store_true", help="put the results of the test into this recipe's README")
    parser.add_argument("--at-once", type=int, default=2, help="stages side by side, each on one core (2)")
    told = parser.parse_args()
    told.folder.mkdir(parents=True, exist_ok=True)
    size, asked = SMOKE if told.smoke else Size(), "development" if told.development else "test"
    with contextlib.chdir(told.folder):
        if not stages.run(stages_of(asked), partial(make, size, asked), told.at_once):
            return 1
        found = finished(asked)
        if told.keep and not told.smoke and asked == "test":
            keep(found)
    print(claims.report(found))
    print(json.dumps({"recipe": "tiny", **found}))
    return 0 if told.smoke or all(claim.holds for claim in claims.checked(found)) else 1


def stages_of(asked: str) -> dict[str, Stage]:
    """All stages; what most of the others wait for stands first."""

    def trained(name: str, *needs: str) -> Stage:
        return Stage(f"runs/{name}/model", needs)

    def measured(*needs: str) -> Stage:
        return Stage(f"measured/{asked}/{needs[0]}.done", needs)

    return {
        "data": Stage("data/direct.jsonl"),
        "first": trained("first", "data"),
        "cold": trained("cold", "first"),
        "rl": trained("rl", "cold"),
        "samples": Stage("data/samples.jsonl", ("rl",)),
        "process": trained("process", "samples"),
        "ask process": measured("process", "rl"),
        "small": trained("small", "data"),
        "student": trained("student", "small", "samples"),
        "ask rl": measured("rl"),
        "ask cold": measured("cold"),
        "ask student": measured("student"),
        "results": Stage(str(results_of(asked)), tuple(f"ask {name}" for name in ("cold", "rl", "process", "student"))),
    }


def make(size: Size, asked: str, name: str) -> int:
    """Makes a stage. A training that was interrupted goes on where it is made again."""
    from ponder.errors import PonderError

    try:
        match name.split():
            case ["data"]:
                write_data(size)
            case ["samples"]:
                write_samples(size)
            case ["ask", model]:
                ask(size, asked, model)
            case ["results"]:
                results(size, asked)
            case _:
                train(name, size)
    except PonderError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def results_of(asked: str) -> Path:
    """Where the results on a set of chains are kept."""
    return Path("results.json" if asked == "test" else f"{asked}.json")


def finished(asked: str) -> dict[str, Any]:
    """The results, with the time that they took."""
    path = results_of(asked)
    found: dict[str, Any] = {**json.loads(path.read_text("utf-8")), "seconds": stages.seconds()}
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found


def keep(found: dict[str, Any]) -> None:
    """The results, the plot, and what the README says of them, beside this file."""
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (HERE / "accuracy.png").write_bytes(Path("accuracy.png").read_bytes())
    readme = HERE / "README.md"
    readme.write_text(claims.placed(readme.read_text("utf-8"), claims.report(found)), "utf-8")


# ---------------------------------------------------------------- stages


def write_data(size: Size) -> None:
    """Chains to imitate, some without their thinking or with a part of it; questions; what is measured on."""
    import samples

    from ponder.data.examples import write_examples

    data = Path("data")
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
    write_examples(data / "sampled.jsonl", chains.chains(size.sampled, LENGTHS, seed=3, beside=known, seldom=OFTEN))
    samples.write_direct([at_once(each) for each in second[::15]], data / "direct.jsonl")


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

    recipe = load(HERE / f"{name}.toml", size.changes)
    improve.improve(recipe, Path("runs", name), shown=told(name))


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

    asked = list(read_examples("data/sampled.jsonl"))
    samples.write_samples(Path("runs/rl/model"), asked, size.samples, Path("data/samples.jsonl"))


def ask(size: Size, asked: str, model: str) -> None:
    """Asks one of the models all that it is asked."""
    import measure

    from ponder.tasks import load

    kept = Path("measured", asked)
    kept.mkdir(parents=True, exist_ok=True)
    plan = measure.plan(size.budgets, size.pool)
    measure.measured(load(f"data/{asked}.jsonl"), Path("runs"), kept, plan[model])
    (kept / f"{model}.done").touch()


def results(size: Size, asked: str) -> None:
    """What the answers come to."""
    import measure

    from ponder.evals import plot, study
    from ponder.evals.study import Made
    from ponder.tasks import load
    from ponder.train.run import steps_of

    task, runs = load(f"data/{asked}.jsonl"), {}
    for planned in measure.plan(size.budgets, size.pool).values():
        runs |= measure.measured(task, Path("runs"), Path("measured", asked), planned)
    made = Made("python recipes/tiny/run.py", f"{os.cpu_count()} cores, {platform.machine()}",
                date=datetime.now(UTC).date().isoformat(), sha256=task.sha256)  # fmt: skip
    curves = measure.studied(task, runs, made)
    if asked == "test":
        study.dump(curves, Path("study.json"))
        plot.draw(curves, Path("accuracy.png"))
    rewards = [line["reward"] for line in steps_of(Path("runs/rl"))]
    found = measure.results(curves, runs, rewards)
    results_of(asked).write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())

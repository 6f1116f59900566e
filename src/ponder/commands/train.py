"""`ponder train`: models taught by a recipe, run by run, each resumed by the command that began it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ponder.commands.sample import sample
from ponder.commands.terminal import console, plain
from ponder.commands.watch import watch

if TYPE_CHECKING:
    from ponder.train.recipe import Kind, Recipe

RUNS = Path("runs")

app = typer.Typer(help="Training: a recipe in TOML, a run's folder, a result that engines open.", no_args_is_help=True)

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to do: see docs/training.md.")]
RunOption = Annotated[
    Path | None, typer.Option("--run", metavar="FOLDER", help="The run's folder; else runs/ and the recipe's name.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Another value than the recipe's, as optimizer.rate=3e-5."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Tell what it would do: data, tokens, parameters, memory.")
]

WHAT: dict[Kind, str] = {
    "sft": "Imitate examples that think before they answer: the cold start.",
    "grpo": "Learn from verified answers of one's own, each measured against others to the same question.",
    "reward": "Teach a reward model to judge answers, or each of their steps.",
    "distill": "Learn from a teacher: its right traces, or its distributions.",
    "dpo": "Learn from pairs of answers, one preferred to the other.",
}
"""What each kind of recipe is for."""


def _command(kind: Kind, what: str) -> Callable[..., None]:
    def command(
        recipe: RecipeArgument,
        run: RunOption = None,
        set_: SetOption = None,
        dry_run: DryRunOption = False,
        as_json: JsonOption = False,
    ) -> None:
        _train(kind, recipe, run, set_ or [], dry_run, as_json)

    command.__doc__ = f"""{what}

    The same command goes on after Ctrl-C or a crash. Ctrl-C ends the step and saves it; twice gives the step up.

    ponder train {kind} recipe.toml --dry-run
    ponder train {kind} recipe.toml --run runs/first --set optimizer.rate=3e-5
    """
    return command


for _kind, _what in WHAT.items():
    app.command(_kind)(_command(_kind, _what))
app.command()(sample)
app.command()(watch)


def _train(kind: Kind, file: Path, folder: Path | None, changes: list[str], dry_run: bool, as_json: bool) -> None:
    from ponder.commands import training
    from ponder.train.recipe_file import load

    with training.one_voice() as speaks:
        recipe = load(file, changes, kind)
        training.require_packages()
        if dry_run:
            told = _plan(recipe)
            if speaks:
                print(json.dumps(told)) if as_json else _print_plan(told)
            return
        folder = folder or RUNS / file.stem
        with training.progress_bar(folder.resolve().name) as show:
            from ponder.improve import improve

            result = improve(recipe, folder, shown=show, told=training.tell if speaks else lambda line: None)
        if speaks:
            _report(folder, result, recipe, as_json)


def _plan(recipe: Recipe) -> dict[str, Any]:
    from ponder.improve import planned

    return {"version": 1, **planned(recipe)}


def _report(folder: Path, result: Path, recipe: Recipe, as_json: bool) -> None:
    from ponder.train.run import notes_of, steps_of

    lines, notes = steps_of(folder), notes_of(folder)
    last = lines[-1] if lines else {}
    told = {
        "version": 1,
        "kind": recipe.kind,
        "run": str(folder),
        "result": str(result),
        "steps": last.get("step", 0),
        "seconds": round(sum(line.get("seconds", 0.0) for line in lines), 3),
        "tokens": int(sum(line.get("tokens", 0) for line in lines)),
        "data": notes.get("data", {}),
        "last": {name: value for name, value in last.items() if name not in ("step", "time")},
    }
    if as_json:
        print(json.dumps(told))
        return
    screen = console()
    took = f"{told['steps']} steps, {told['tokens']:,} tokens, {told['seconds']:,.1f} s"
    values = " · ".join(f"{name} {last[name]:.4g}" for name in ("loss", "reward", "accuracy", "length") if name in last)
    for label, value in (("trained", took), ("last step", values), ("result", result), ("page", folder / "page.html")):
        screen.print(f"{label:<10}{plain(str(value))}", soft_wrap=True, markup=False)


def _print_plan(told: dict[str, Any]) -> None:
    from rich.text import Text

    screen = console()
    screen.print(Text(plain(f"{told['kind']} · {told['model']}"), style="bold"), soft_wrap=True)
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in told["data"].items())
    memory = told["memory"]
    parts = ", ".join(f"{name} {_bytes(size)}" for name, size in memory.items() if name != "all" and size)
    trained, whole = told["parameters"]["trained"], told["parameters"]["all"]
    lines = {
        "data": counts,
        "steps": f"{told['steps']:,} of {told['batch']} a step: {told['epochs']:.3g} epochs",
        "trained": f"{trained:,} of {whole:,} parameters",
        "memory": f"about {_bytes(memory['all'])} on {told['device']}: {parts}",
    }
    for label, value in lines.items():
        screen.print(f"{label:<10}{plain(value)}", soft_wrap=True, markup=False)


def _bytes(count: float) -> str:
    """1.5 GiB"""
    size = next((size for size in (2**30, 2**20, 2**10) if count >= size), 1)
    return f"{count / size:.3g} {({2**30: 'GiB', 2**20: 'MiB', 2**10: 'KiB'}).get(size, 'bytes')}"

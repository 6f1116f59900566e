"""`ponder runs`: what was evaluated and trained, from what is kept of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ponder.commands.terminal import console, plain
from ponder.commands.train import RUNS
from ponder.errors import InputError, PonderError

if TYPE_CHECKING:
    from ponder.evals.results import Run
    from ponder.ops.results import RunSummary

app = typer.Typer(help="Runs: what was evaluated and trained.", no_args_is_help=True)

SHOWN = 10
"""Digits of an id that are printed."""
COSTS = ("tokens", "thinking", "answer", "verifier", "calls", "seconds", "flops", "dollars")


def _complete_run(incomplete: str) -> list[str]:
    from ponder.ops.results import Results
    from ponder.ops.store import Store

    folders = [str(folder) for folder in _folders(RUNS)]
    try:
        with Store.open() as store:
            known = [each.id[:SHOWN] for each in Results(store).runs(50)]
    except PonderError:
        known = []
    return [each for each in (*known, *folders) if each.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FolderOption = Annotated[Path, typer.Option("--folder", metavar="FOLDER", help="Where runs of training lie.")]


@app.command("list")
def list_runs(
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many evaluations, the newest.")] = 20,
    search: Annotated[
        str | None, typer.Option("--search", help="Only runs with this in task, model, strategy or folder.")
    ] = None,
    folder: FolderOption = RUNS,
    as_json: Json = False,
) -> None:
    """List the newest evaluations, and the runs of training in a folder."""
    from ponder.ops.results import Results
    from ponder.ops.store import Store

    with Store.open() as store:
        every = Results(store).runs(None if search else limit)
    evaluations = [each for each in every if _has(search, each.task, each.model, each.strategy, each.id)][:limit]
    trainings = [told for told in map(_training, _folders(folder)) if _has(search, told["run"], told["kind"])]
    if as_json:
        print(json.dumps({"evaluations": [asdict(each) for each in evaluations], "trainings": trainings}, indent=2))
    elif evaluations or trainings:
        _print_list(evaluations, trainings)
    else:
        typer.echo("no runs" if search is None else "no such runs")


@app.command()
def show(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="The id of an evaluation, or enough of its beginning; or the folder of a training run.",
            autocompletion=_complete_run,
        ),
    ],
    folder: FolderOption = RUNS,
    as_json: Json = False,
) -> None:
    """Show a run: of an evaluation accuracy and cost, of training how far it is.

    ponder runs show 3f9c0a
    ponder runs show runs/first
    """
    for path in (Path(run), folder / run):
        if run and path.is_dir():
            _show_training(path, as_json)
            return
    from ponder.evals.run import kept_run
    from ponder.ops.store import Store

    with Store.open() as store:
        told = _evaluated(kept_run(store, run))
    if as_json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        _print(told)


def _has(search: str | None, *texts: str) -> bool:
    return search is None or any(search.lower() in text.lower() for text in texts)


# ---------------------------------------------------------------- evaluations


def _evaluated(run: Run) -> dict[str, Any]:
    """A run in numbers, without what its file of questions would tell."""
    from ponder.commands.eval import _covered, _kinds, _mean

    if not run.results:
        raise InputError(f"the run {run.id[:SHOWN]} has no results yet", "start it again, and it goes on")
    cost, n = run.cost, len(run.results)
    costs = {name: None if (total := getattr(cost, name)) is None else total / n for name in COSTS}
    errors = [result.error.partition(":")[0] for result in run.results if result.error]
    return {
        "version": 1,
        "run": run.id,
        "task": run.task,
        "model": run.model,
        "strategy": run.setting.strategy,
        "budget": run.setting.budget.tokens,
        "temperature": run.temperature,
        "questions": len(run.questions),
        "seeds": run.seeds,
        "results": n,
        "accuracy": _mean(run.results, lambda result: result.correct),
        "lenient": _mean(run.results, lambda result: result.lenient),
        "coverage": _mean(run.results, _covered),
        "kinds": _kinds(run),
        "errors": {name: errors.count(name) for name in sorted(set(errors))},
        "cost": costs,
    }


def _print(told: dict[str, Any]) -> None:
    from rich.text import Text

    from ponder.commands.eval import _percent, _print_kinds

    screen = console()
    setting = f"{told['task']} · {told['model']} · {told['strategy']} · {told['budget']} tokens a question"
    screen.print(Text(plain(setting), style="bold"), soft_wrap=True)
    cost = {name: value for name, value in told["cost"].items() if value}
    lines = {
        "accuracy": f"{_percent(told['accuracy'])} of {told['questions']} questions",
        "lenient": f"{_percent(told['lenient'])} where an unmarked answer counts, too",
        "coverage": f"{_percent(told['coverage'])} with any sample right",
        "results": f"{told['results']}, each question asked up to {told['seeds']} times"
        if told["seeds"] > 1
        else str(told["results"]),
        "no answer": ", ".join(f"{count} ({name})" for name, count in told["errors"].items()),
        "an answer": ", ".join(f"{value:,.4g} {name}" for name, value in cost.items()),
        "run": told["run"][:SHOWN],
    }
    for label, value in lines.items():
        if value:
            screen.print(Text(f"{label:<10}").append(plain(value)), soft_wrap=True)
    if told["kinds"]:
        _print_kinds(told["kinds"])


# ---------------------------------------------------------------- training


def _folders(folder: Path) -> list[Path]:
    """The folders right in `folder` that hold a training run."""
    try:
        return sorted(each for each in folder.iterdir() if (each / "recipe.toml").is_file())
    except OSError:
        return []


def _training(folder: Path) -> dict[str, Any]:
    """A run of training in one line; one that cannot be read says so and hides no other."""
    from ponder.commands.watch import look

    try:
        told = look(folder)
    except PonderError as error:
        return {"run": str(folder), "kind": "", "state": error.problem, "step": 0, "steps": None}
    return {name: told[name] for name in ("run", "kind", "state", "step", "steps")}


def _show_training(folder: Path, as_json: bool) -> None:
    from ponder.commands.watch import _drawn, look

    told = look(folder)
    if as_json:
        print(json.dumps(told, indent=2))
    else:
        console().print(_drawn(told))


# ---------------------------------------------------------------- for people


def _print_list(evaluations: list[RunSummary], trainings: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    def cells(*texts: str) -> list[Text]:
        return [Text(plain(text)) for text in texts]

    if evaluations:
        table = Table("run", "task", "model", "strategy", "results", "created", box=SIMPLE_HEAD)
        for each in evaluations:
            created = each.created[:16].replace("T", " ")
            table.add_row(*cells(each.id[:SHOWN], each.task, each.model, each.strategy, str(each.results), created))
        table.columns[0].no_wrap, table.columns[4].justify = True, "right"
        console().print(table)
    if trainings:
        table = Table("training", "kind", "state", "step", box=SIMPLE_HEAD)
        for told in trainings:
            step = f"{told['step']:,}" + (f" of {told['steps']:,}" if told["steps"] else "")
            table.add_row(*cells(told["run"], told["kind"], told["state"], step))
        table.columns[0].overflow = "fold"
        console().print(table)

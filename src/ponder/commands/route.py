"""`ponder route`: when thinking helps, and a router that buys it only where it does."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ponder.commands import asking, evaluating
from ponder.commands.asking import Asking
from ponder.errors import EngineError, InputError

if TYPE_CHECKING:
    from ponder.chat.model import Model
    from ponder.evals.calibration import Ratio
    from ponder.evals.results import Run, Setting
    from ponder.evals.routing import Calibrated, Helped, RoutedArm
    from ponder.evals.statistics import Difference, Mean
    from ponder.strategies.policy import Policy
    from ponder.tasks import Task

ARMS = "direct@64,chain_of_thought@256,vote(8)@2048"


def route(
    file: evaluating.FileArgument,
    model: asking.ModelOption = asking.DEFAULT_MODEL,
    arms: Annotated[
        str, typer.Option("--arms", "-a", metavar="NAME@TOKENS,...", help="What there is to choose from.")
    ] = ARMS,
    keep: Annotated[
        float, typer.Option("--keep", help="Share of the dearest arm's accuracy that routing has to keep.")
    ] = 0.95,
    margin: Annotated[
        float, typer.Option("--margin", help="Standard errors by which it has to; 0 trusts the means.")
    ] = 1.0,
    first: Annotated[
        bool, typer.Option("--first", help="Draw the cheapest arm always, and let its confidence decide, too.")
    ] = False,
    limit: evaluating.LimitOption = None,
    sample_seed: evaluating.SampleSeedOption = None,
    seeds: evaluating.SeedsOption = 1,
    seed: evaluating.SeedOption = 0,
    at_once: evaluating.AtOnceOption = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Gets policy.toml, or a [route] in it; and route.json."),
    ] = Path("route"),
    verifier: evaluating.VerifierOption = None,
    format: evaluating.FormatOption = None,
    adapter: asking.AdapterOption = None,
    temperature: asking.TemperatureOption = None,
    price: asking.PriceOption = None,
    as_json: evaluating.JsonOption = False,
    no_cache: evaluating.NoCacheOption = False,
) -> None:
    """Measure when thinking helps, and calibrate a router that buys it only there.

    What is done is kept: the same command goes on after Ctrl-C or a crash, and pays for no sample twice.

    ponder route questions.jsonl --arms 'direct@64,vote(8)@1024' --keep 0.95
    ponder ask --policy route/policy.toml --effort auto "..."
    """
    from ponder.evals.cached import Account
    from ponder.evals.calibration import enough

    settings = settings_of(arms)
    _check(keep, margin)
    task = evaluating.task_of(file, format, verifier, limit, sample_seed)
    enough(len(task.questions))
    policy = _kept_policy(output)
    options = Asking(model, tuple(adapter or ()), temperature, None, price, not no_cache, as_json)
    account = Account()

    async def work(stop: asyncio.Event) -> None:
        with asking.opened_store(options) as store:
            strategies = [setting.strategy for setting in settings]
            opened = await evaluating.open_for(options, stop, store, task, strategies, seeds, at_once)
            try:
                if first and not opened.engine.capabilities.logprobs:
                    raise InputError(f"{model} tells no log-probabilities to decide by", "leave out --first")
                _check_model(policy, str(opened.engine.info.metadata.get("ponder.name", opened.name)), output)
                how = {"seeds": seeds, "seed": seed, "at_once": at_once, "store": store, "account": account}
                runs = [await _run(task, opened, setting, stop, how) for setting in settings]
            finally:
                await opened.engine.close()
        _finish(task, runs, policy, output, keep, margin, first, as_json, account.counts)

    asking.run(work)


# ---------------------------------------------------------------- what was asked for


def settings_of(text: str) -> list[Setting]:
    """The settings that `direct@64,vote(8, risk=0.05)@1024` names. Raises InputError."""
    from ponder.evals.results import Setting
    from ponder.strategies.naming import strategy_named
    from ponder.types import Budget

    found = []
    for each in evaluating.split_expressions(text):
        strategy, _, tokens = each.rpartition("@")
        if not strategy or not tokens.strip().isascii() or not tokens.strip().isdigit() or not int(tokens):
            raise InputError(f"the arm {each!r} has no budget", "write each as a strategy @ its tokens: vote(8)@1024")
        strategy_named(strategy)
        found.append(Setting(strategy.strip(), Budget(tokens=int(tokens))))
    if len(found) < 2 or len({(each.strategy, each.budget) for each in found}) < len(found):
        raise InputError(f"--arms {text!r} leaves nothing to choose from", "name at least two that differ")
    return found


def _check(keep: float, margin: float) -> None:
    asking.check_finite(keep=keep, margin=margin)
    if not 0 < keep <= 1:
        raise InputError(f"--keep {keep:g} is no share", "give one such as 0.95")
    if margin < 0:
        raise InputError(f"--margin {margin:g} is below 0", "give standard errors, such as 1")


def _kept_policy(folder: Path) -> Policy | None:
    """The policy that is to get a [route]. The folder is made now: after hours of measuring would be late."""
    from ponder.strategies.policy import load

    evaluating.make_folder(folder)
    path = folder / "policy.toml"
    return load(path) if path.exists() else None


def _check_model(policy: Policy | None, name: str, folder: Path) -> None:
    if policy is not None and policy.model not in ("", name):
        raise InputError(f"{folder / 'policy.toml'} is a policy for {policy.model}", "give another --output")


async def _run(task: Task, model: Model, setting: Setting, stop: asyncio.Event, how: dict[str, Any]) -> Run:
    """The whole run of an arm. Raises `Stopped` where the user ended it before."""
    from ponder.evals.run import evaluate

    kept = how["store"] is not None
    so_far = "what is done is kept: the same command goes on from there" if kept else "--no-cache keeps nothing"
    with evaluating.progress_bar(name_of(setting)) as show:
        try:
            at_once = evaluating.questions_at_once(model, setting.strategy, how["at_once"])
            run = await evaluate(task, model, setting, progress=show, stop=stop, **how | {"at_once": at_once})
        except EngineError as error:
            raise EngineError(error.problem, f"{error.mend or 'look at the engine'}; {so_far}") from None
    if len(run.results) < how["seeds"] * len(task.questions):
        raise asking.Stopped(f"stopped in {name_of(setting)} after {len(run.results)} answers", so_far)
    return run


# ---------------------------------------------------------------- what came out


def _finish(
    task: Task, runs: Sequence[Run], policy: Policy | None, folder: Path, keep: float, margin: float, first: bool,
    as_json: bool, paid: dict[str, int],
) -> None:  # fmt: skip
    from ponder.evals.routing import calibrate, when_thinking_helps
    from ponder.strategies import policy as policies

    questions = {str(question.metadata["id"]): question for question in task.questions}
    found = calibrate(runs, questions, keep=keep, margin=margin, first=first)
    by_setting = {run.setting: run for run in runs}
    base, *others = _from_direct([by_setting[arm.setting] for arm in found.arms])
    helps = [(run, when_thinking_helps(base, run)) for run in others]
    files = [folder / "policy.toml", folder / "route.json"]
    policies.dump(_policy(found, policy, runs[0]), files[0])
    told = _document(found, base, helps, runs[0])
    files[1].write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", "utf-8")
    notes = []
    if importlib.util.find_spec("matplotlib") is None:
        notes.append("no picture of the reliability: pip install 'ponder[plots]'")
    else:
        from ponder.evals import reliability_plot

        files.append(folder / "reliability.png")
        reliability_plot.draw(found, f"{runs[0].model} on {runs[0].task}, {found.n:,} questions", files[-1])
    if as_json:
        print(json.dumps(told | {"files": list(map(str, files)), "paid now": paid}, ensure_ascii=False))
    else:
        _print(found, base, helps, runs[0], keep)
        print("\n" + "\n".join([*notes, *map(str, files)]))


def _from_direct(runs: Sequence[Run]) -> list[Run]:
    """The runs, the one that does not think first; the cheapest where all do."""
    base = next((run for run in runs if run.setting.strategy.partition("(")[0].strip() == "direct"), runs[0])
    return [base, *(run for run in runs if run is not base)]


def _policy(found: Calibrated, policy: Policy | None, run: Run) -> Policy:
    """The policy with the table; one that did not exist has the cheapest, a middle and the dearest arm as efforts."""
    from ponder.strategies.policy import AUTO, EFFORTS, Effort, Policy
    from ponder.strategies.route import write

    table = write(found.table)
    if policy is not None:
        return replace(policy, route=table, default=AUTO)
    low, medium, high = EFFORTS
    arms = {low: found.arms[0], medium: found.arms[len(found.arms) // 2], high: found.arms[-1]}
    if len(found.arms) == 2:
        del arms[medium]

    def effort(arm: RoutedArm) -> Effort:
        tokens, accuracy = arm.setting.budget.tokens or 1, arm.accuracy
        interval = (accuracy.interval.low, accuracy.interval.high)
        why = "an arm of the route"
        return Effort(arm.setting.strategy, tokens, accuracy.value, interval, arm.tokens, accuracy.n, why)

    return Policy({name: effort(arm) for name, arm in arms.items()}, AUTO, run.task, run.model, table)


def _document(found: Calibrated, base: Run, helps: Sequence[tuple[Run, Sequence[Helped]]], run: Run) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "version": 1,
        "task": run.task,
        "model": run.model,
        "questions": found.n,
        "arms": [
            {"arm": name_of(arm.setting), "accuracy": _mean(arm.accuracy), "tokens": arm.tokens, "share": arm.share,
             "penalty": arm.strength, "reliability": asdict(arm.reliability)}
            for arm in found.arms
        ],
        "helps": [
            {"kind": row.kind, "from": name_of(base.setting), "to": name_of(other.setting),
             "direct": _mean(row.direct), "thinking": _mean(row.thinking), "difference": _difference(row.difference),
             "tokens": list(row.tokens)}
            for other, rows in helps
            for row in rows
        ],
        "router": {
            "accuracy": _mean(found.accuracy),
            "tokens": found.tokens,
            "kept": found.kept and _ratio(found.kept),
            "spent": _ratio(found.spent),
            "difference": _difference(found.difference),
            "by chance": _difference(found.by_chance),
            "tolerance": found.table.tolerance,
            "arms": [str(arm) for arm in found.table.arms],
            "first": found.table.first,
        },
    }  # fmt: skip


def name_of(setting: Setting) -> str:
    """The setting as --arms has it."""
    return f"{setting.strategy}@{setting.budget.tokens}"


def _mean(mean: Mean) -> dict[str, Any]:
    return {"value": mean.value, "low": mean.interval.low, "high": mean.interval.high, "questions": mean.n}


def _ratio(ratio: Ratio) -> dict[str, float]:
    return {"value": ratio.value, "low": ratio.interval.low, "high": ratio.interval.high}


def _difference(found: Difference) -> dict[str, Any]:
    return {
        "value": found.value,
        "low": found.interval.low,
        "high": found.interval.high,
        "better": found.better,
        "worse": found.worse,
        "mcnemar": found.p_value,
    }


# ---------------------------------------------------------------- for people


def _print(found: Calibrated, base: Run, helps: Sequence[tuple[Run, Sequence[Helped]]], run: Run, keep: float) -> None:
    from rich.text import Text

    from ponder.commands.terminal import console, plain

    screen = console()
    screen.print(Text(plain(f"{run.task} · {run.model} · {found.n:,} questions"), style="bold"), soft_wrap=True)
    for other, rows in helps:
        told = [
            ("all" if row.kind is None else row.kind or "(none)", str(row.difference.n), f"{row.direct.value:.1%}",
             f"{row.thinking.value:.1%}", _points(row.difference), f"{row.tokens[0]:,.0f} to {row.tokens[1]:,.0f}")
            for row in rows
        ]  # fmt: skip
        title = f"Does {name_of(other.setting)} help, compared with {name_of(base.setting)}?"
        _table(title, ("kind", "questions", "before", "after", "points", "tokens"), told)
    alone = [
        (name_of(arm.setting), _percent(arm.accuracy), f"{arm.tokens:,.0f}", f"{arm.share:.0%}",
         f"{arm.reliability.error:.3f}", f"{arm.reliability.brier:.3f}", f"{arm.reliability.base:.3f}")
        for arm in found.arms
    ]  # fmt: skip
    routed = ("routed", _percent(found.accuracy), f"{found.tokens:,.0f}", "", "", "", "")
    columns = ("arm", "accuracy", "tokens", "routed", "error", "Brier", "base")
    _table("The router, out of fold: accuracy and cost, and how good its probabilities are", columns, [*alone, routed])
    bins = [
        (name_of(arm.setting), f"{b.predicted:.2f}", f"{b.right:.2f}",
         f"{b.interval.low:.2f} to {b.interval.high:.2f}", str(b.n))
        for arm in found.arms
        for b in arm.reliability.bins
    ]  # fmt: skip
    _table("Reliability, out of fold", ("arm", "expected", "right", "95% interval", "questions"), bins)
    for line in _lines(found, keep):
        screen.print(Text(plain(line)), soft_wrap=True)


def _lines(found: Calibrated, keep: float) -> Iterator[str]:
    dearest = name_of(found.arms[-1].setting)
    if found.kept is None:
        yield f"{dearest} was never right: there is no accuracy to keep"
    else:
        yield f"kept     {_share(found.kept)} of the accuracy of always {dearest}; wanted were {keep:.0%}"
    yield f"spent    {_share(found.spent)} of its tokens"
    yield f"         {_points(found.difference)} points against it"
    yield f"         {_points(found.by_chance)} points against sending as many questions to each arm at random"
    if len(found.table.arms) == 1:
        yield (
            f"On all questions no tolerance keeps {keep:.0%} for sure: the route always takes {dearest}. "
            "More questions, or a smaller --keep or --margin, may change that."
        )


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from ponder.commands.terminal import console, plain

    table = Table(*columns, title=Text(plain(title)), title_justify="left", box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    table.columns[0].overflow = "fold"
    before = None
    for name, *rest in rows:
        # As Text: what stands in a file in square brackets is no markup. An arm is named where it begins.
        table.add_row(*(Text(plain(cell)) for cell in ("" if name == before else name, *rest)))
        before = name
    console().print(table)


def _percent(mean: Mean) -> str:
    return f"{mean.value:.1%} [{100 * mean.interval.low:.1f}, {100 * mean.interval.high:.1f}]"


def _share(ratio: Ratio) -> str:
    return f"{ratio.value:.1%} [{100 * ratio.interval.low:.1f}, {100 * ratio.interval.high:.1f}]"


def _points(found: Difference) -> str:
    return f"{100 * found.value:+.1f} [{100 * found.interval.low:+.1f}, {100 * found.interval.high:+.1f}]"

"""`ponder prompts`: versions that never change, labels that move, and a gate that they move through."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ponder.commands import asking, evaluating, prompt_eval
from ponder.commands.prompt_eval import Measuring, print_json
from ponder.commands.terminal import console, plain
from ponder.errors import InputError, PonderError

if TYPE_CHECKING:
    from ponder.ops.prompt import Prompt
    from ponder.ops.prompts import Evaluation, Move, Prompts, PromptSummary

app = typer.Typer(help="Prompts: versions, labels, and a gate between them.", no_args_is_help=True)

FIRST_LABEL = "prod"
"""What `eval` compares with unless it is told."""


class As(StrEnum):
    """Whose message a text is."""

    system = "system"
    user = "user"
    assistant = "assistant"


# ---------------------------------------------------------------- completion


def _complete_name(incomplete: str) -> list[str]:
    return [each.name for each in _known() if each.name.startswith(incomplete)]


def _complete_reference(incomplete: str) -> list[str]:
    """Names; behind an @ the labels and versions."""
    name, at, _ = incomplete.partition("@")
    if not at:
        return _complete_name(incomplete)
    found = [
        f"{name}@{which}"
        for each in _known()
        if each.name == name
        for which in (*each.labels, *range(1, each.versions + 1))
    ]
    return [each for each in found if each.startswith(incomplete)]


def _complete_label(incomplete: str) -> list[str]:
    labels = {label for each in _known() for label in each.labels} | {FIRST_LABEL}
    return sorted(label for label in labels if label.startswith(incomplete))


def _known() -> Iterable[PromptSummary]:
    from ponder.ops.prompts import Prompts

    try:
        with Prompts.open() as prompts:
            return prompts.list()
    except PonderError:
        return ()


NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The name of a prompt.", autocompletion=_complete_name)
]
Reference = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT",
        help="A prompt: support is its newest version, support@3 or support@prod another.",
        autocompletion=_complete_reference,
    ),
]
LabelArgument = Annotated[
    str, typer.Argument(metavar="LABEL", help="A label, such as prod or staging.", autocompletion=_complete_label)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


# ---------------------------------------------------------------- versions


@app.command("list")
def list_prompts(as_json: Json = False) -> None:
    """List the prompts, their labels and their newest versions."""
    from ponder.ops.prompts import Prompts

    with Prompts.open() as prompts:
        found = prompts.list()
    if as_json:
        print_json([asdict(each) for each in found])
    elif found:
        _print_list(found)
    else:
        typer.echo("no prompts")


@app.command()
def show(reference: Reference, set_: prompt_eval.SetOption = None, as_json: Json = False) -> None:
    """Show a version: its messages, its labels, and how it did. With --set, with its blanks filled.

    ponder prompts show support@prod
    ponder prompts show support@prod --set product=ponder
    """
    from ponder.ops.prompts import Prompts

    with Prompts.open() as prompts:
        prompt = prompts.get(reference)
        labels = [label for label, version in prompts.labels(prompt.name).items() if version == prompt.version]
        moves, evaluations = prompts.history(prompt.name), prompts.evaluations(prompt.reference)
    texts: list[tuple[str, str]] = [(turn.role, turn.text) for turn in prompt.messages]
    if set_ is not None:
        texts = [(message.role, message.text) for message in prompt.render(prompt_eval.values_of(set_))]
    if as_json:
        messages = [{"role": role, "text": text} for role, text in texts]
        seen = {"evaluations": [asdict(each) for each in evaluations], "history": [asdict(move) for move in moves]}
        print_json({**_document(prompt), "messages": messages, "labels": labels, **seen})
    else:
        _print(prompt, texts, labels, moves, evaluations)


@app.command()
def put(
    name: NameArgument,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The text; else standard input.", show_default=False)
    ] = None,
    role: Annotated[As, typer.Option("--as", help="Whose message it is.")] = As.system,
    variables: Annotated[
        list[str] | None,
        typer.Option("--var", metavar="NAME", help="A blank that it declares; again for more. Else those it uses."),
    ] = None,
    note: Annotated[str, typer.Option("--note", "-n", metavar="TEXT", help="What this version is about.")] = "",
    as_json: Json = False,
) -> None:
    """Store a text as the next version of a prompt. {{ name }} is a blank; see docs/prompts.md.

    What the newest version says already makes no new one. Prompts of several messages come by `ponder prompts import`.

    ponder prompts put support support.txt --note 'friendlier'
    """
    from ponder.ops.prompt import Turn

    asking.check_text(note, "--note")
    # Files end with a line end, messages do not.
    text = asking.read_input([] if file is None else [file], stdin=file is None).removesuffix("\n")
    _put(name, [Turn(role.value, text)], variables, note, as_json)


@app.command()
def diff(
    reference: Reference,
    other: Annotated[
        str,
        typer.Argument(
            metavar="OTHER",
            help="A version or label of it, or another prompt's; else the version before.",
            autocompletion=_complete_reference,
            show_default=False,
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Show what has changed to a version from another one, message by message.

    ponder prompts diff support@4 prod
    """
    from ponder.ops.prompt import diff
    from ponder.ops.prompts import Prompts

    with Prompts.open() as prompts:
        new = prompts.get(reference)
        if not other and new.version == 1:
            raise InputError(f"there is no version before {new.reference}", "name another one")
        old = _other(prompts, new, other or str(new.version - 1))
    text = diff(old, new)
    if as_json:
        print_json({"from": old.reference, "to": new.reference, "diff": text})
    elif text:
        _print_diff(text)
    else:
        typer.echo(f"{old.reference} and {new.reference} say the same")


@app.command("export")
def export_prompt(
    reference: Reference,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write, .toml or .json; else standard output.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a version as TOML or JSON, to lie in a repository.

    ponder prompts export support@prod -o prompts/support.toml
    """
    from ponder.ops import prompt_file
    from ponder.ops.prompts import Prompts

    with Prompts.open() as prompts:
        prompt = prompts.get(reference)
    if output is None:
        typer.echo(prompt_file.dumps(prompt, "json" if as_json else "toml"), nl=False)
        return
    prompt_file.write(prompt, output)
    if as_json:
        print_json({"prompt": prompt.reference, "file": str(output)})
    else:
        typer.echo(f"{plain(str(output))}: {prompt.reference}")


@app.command("import")
def import_prompt(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What export wrote: .toml or .json.")],
    as_json: Json = False,
) -> None:
    """Store what a file says as the next version of its prompt, unless the newest one says the same.

    ponder prompts import prompts/support.toml
    """
    from ponder.ops import prompt_file

    written = prompt_file.read(file)
    _put(written.name, written.messages, written.variables, written.note, as_json)


def _put(name: str, content: Any, variables: Any, note: str, as_json: bool) -> None:
    from ponder.ops.prompts import Prompts, UnknownPrompt

    with Prompts.open() as prompts:
        try:
            before = prompts.get(name).version
        except UnknownPrompt:
            before = 0
        prompt = prompts.put(name, content, variables, note)
    new = prompt.version > before
    if as_json:
        print_json({**_document(prompt), "new": new})
    else:
        typer.echo(prompt.reference if new else f"{prompt.reference} says that already")


# ---------------------------------------------------------------- labels


@app.command()
def tag(
    reference: Reference,
    label: LabelArgument,
    gate: Annotated[
        str | None,
        typer.Option("--gate", metavar="TASK", help=f"Only if it is no worse there. {prompt_eval.TASK_HELP}"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Although the gate refuses; that is written down.")] = False,
    model: asking.ModelOption = asking.DEFAULT_MODEL,
    strategy: prompt_eval.StrategyOption = "chain_of_thought",
    budget: prompt_eval.BudgetOption = asking.DEFAULT_BUDGET,
    margin: prompt_eval.MarginOption = prompt_eval.MARGIN,
    set_: prompt_eval.SetOption = None,
    limit: evaluating.LimitOption = None,
    sample_seed: evaluating.SampleSeedOption = None,
    seeds: evaluating.SeedsOption = 1,
    seed: prompt_eval.SeedOption = 0,
    at_once: evaluating.AtOnceOption = None,
    verifier: evaluating.VerifierOption = None,
    format: evaluating.FormatOption = None,
    temperature: asking.TemperatureOption = None,
    price: asking.PriceOption = None,
    as_json: Json = False,
    no_cache: evaluating.NoCacheOption = False,
) -> None:
    """Put a label at a version. With --gate, only if it answers no worse than the one where the label stands.

    Both are asked the same questions. It passes if the interval of the difference ends above the margin below zero.

    ponder prompts tag support@4 prod
    ponder prompts tag support@4 prod --gate questions.jsonl --limit 200
    """
    from ponder.ops.prompts import Prompts, check_label

    check_label(label)
    if force and gate is None:
        raise InputError("--force passes a gate, and there is none", "give --gate TASK, or drop --force")
    options = Measuring(
        *(model, strategy, budget, limit, sample_seed, seeds, seed, at_once, verifier, format, temperature, price),
        margin=margin,
        values=tuple(set_ or ()),
        cache=not no_cache,
    )
    with Prompts.open() as prompts:
        prompt = prompts.get(reference)
        stands = prompts.labels(prompt.name).get(label, 0)
        if gate is None or stands in (0, prompt.version):
            move = prompts.tag(prompt.reference, label)
            _report_move(move, stands, None, as_json)
            return
        verdict = prompt_eval.measured(prompt, prompts.get(f"{prompt.name}@{stands}"), gate, options)
        kept = prompts.add_evaluation(prompt.reference, verdict.document, verdict.passed)
        if not verdict.passed and not force:
            if as_json:
                print_json({"prompt": prompt.reference, "label": label, "moved": False, "gate": verdict.document})
            verdict.check()
        forced = not verdict.passed
        move = prompts.tag(prompt.reference, label, evaluation=kept, forced=forced, instead_of=stands)
    if not as_json:
        prompt_eval.show(verdict)
    _report_move(move, stands, verdict.document, as_json)


@app.command()
def rollback(name: NameArgument, label: LabelArgument, as_json: Json = False) -> None:
    """Put a label back to where it stood before; again, to where it stood before that.

    ponder prompts rollback support prod
    """
    from ponder.ops.prompts import Prompts

    with Prompts.open() as prompts:
        stands = prompts.labels(name).get(label, 0)
        move = prompts.rollback(name, label)
    _report_move(move, stands, None, as_json)


@app.command("eval")
def evaluate(
    reference: Reference,
    task: Annotated[str, typer.Option("--task", metavar="TASK", help=prompt_eval.TASK_HELP)],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="LABEL|VERSION",
            help="Compare with another version; by default with prod, where there is one.",
            autocompletion=_complete_label,
        ),
    ] = None,
    model: asking.ModelOption = asking.DEFAULT_MODEL,
    strategy: prompt_eval.StrategyOption = "chain_of_thought",
    budget: prompt_eval.BudgetOption = asking.DEFAULT_BUDGET,
    margin: prompt_eval.MarginOption = prompt_eval.MARGIN,
    set_: prompt_eval.SetOption = None,
    limit: evaluating.LimitOption = None,
    sample_seed: evaluating.SampleSeedOption = None,
    seeds: evaluating.SeedsOption = 1,
    seed: prompt_eval.SeedOption = 0,
    at_once: evaluating.AtOnceOption = None,
    verifier: evaluating.VerifierOption = None,
    format: evaluating.FormatOption = None,
    temperature: asking.TemperatureOption = None,
    price: asking.PriceOption = None,
    traces: evaluating.TracesOption = False,
    as_json: Json = False,
    no_cache: evaluating.NoCacheOption = False,
) -> None:
    """Evaluate a version on a file of questions, beside another one on the same.

    What is done is kept: the same command goes on after Ctrl-C or a crash, and pays for no sample twice.

    ponder prompts eval support --task questions.jsonl --limit 200 --against prod
    """
    from ponder.ops.prompts import Prompts

    options = Measuring(
        *(model, strategy, budget, limit, sample_seed, seeds, seed, at_once, verifier, format, temperature, price),
        margin=margin,
        values=tuple(set_ or ()),
        cache=not no_cache,
        traces=traces,
    )
    with Prompts.open() as prompts:
        prompt = prompts.get(reference)
        if against is None and FIRST_LABEL in prompts.labels(prompt.name):
            against = FIRST_LABEL
        other = None if against is None else _other(prompts, prompt, against)
        if other is not None and other.reference == prompt.reference:
            if against != FIRST_LABEL:
                raise InputError(f"{prompt.reference} would be compared with itself", "name another --against")
            other = None
        verdict = prompt_eval.measured(prompt, other, task, options)
        kept = prompts.add_evaluation(prompt.reference, verdict.document, verdict.passed)
    if as_json:
        print_json({"id": kept, **verdict.document})
    else:
        prompt_eval.show(verdict)


def _other(prompts: Prompts, prompt: Prompt, text: str) -> Prompt:
    """A version of `prompt` by its number or label, or that of another prompt by a whole reference."""
    return prompts.get(text if "@" in text else f"{prompt.name}@{text}")


# ---------------------------------------------------------------- as documents and for people


def _document(prompt: Prompt) -> dict[str, Any]:
    return {"prompt": prompt.reference, **asdict(prompt)}


def _report_move(move: Move, before: int, gate: dict[str, Any] | None, as_json: bool) -> None:
    moved = move.version != before
    if as_json:
        stood = f"{move.name}@{before}" if before else None
        told = {"prompt": f"{move.name}@{move.version}", "label": move.label, "moved": moved, "before": stood}
        print_json({**told, "forced": moved and move.forced, "gate": gate})
        return
    if not moved:
        typer.echo(f"{move.label} is {move.name}@{move.version} already")
        return
    forced = " (forced)" if move.forced else ""
    was = f", was {move.name}@{before}" if before else ""
    typer.echo(f"{move.label} is {move.name}@{move.version} now{was}{forced}")


def _print_list(found: tuple[PromptSummary, ...]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "versions", "labels", "variables", "newest", "note", box=SIMPLE_HEAD)
    table.columns[1].justify = "right"
    for column in table.columns[:-1]:
        column.overflow = "fold"
    for each in found:
        labels = ", ".join(f"{label}@{version}" for label, version in each.labels.items())
        cells = (each.name, str(each.versions), labels, ", ".join(each.variables), each.created[:10], each.note)
        table.add_row(*(Text(plain(cell)) for cell in cells))  # square brackets in a note are no markup
    console().print(table)


def _print(
    prompt: Prompt,
    texts: list[tuple[str, str]],
    labels: list[str],
    moves: tuple[Move, ...],
    evaluations: tuple[Evaluation, ...],
) -> None:
    from rich.text import Text

    screen = console()

    def section(title: str, body: str, style: str = "") -> None:
        screen.print(Text(plain(title), style="bold"))
        screen.print(Text(plain(body), style=style), soft_wrap=True)
        screen.print()

    facts = [prompt.created[:16].replace("T", " "), *([", ".join(labels)] if labels else []), prompt.note]
    section(prompt.reference, " · ".join(fact for fact in facts if fact), "dim")
    for role, text in texts:
        section(role, text)
    if prompt.variables:
        section("variables", ", ".join(prompt.variables))
    if evaluations:
        section("evaluations", "\n".join(_evaluated(each) for each in evaluations))
    if moves:
        section("labels", "\n".join(_moved(move) for move in moves))


def _evaluated(each: Evaluation) -> str:
    document = each.document
    line = (
        f"{each.created[:16].replace('T', ' ')}  {document['task']}  {document['candidate']['accuracy']['value']:.1%}"
    )
    found = document["difference"]
    if found is not None:
        low, high = 100 * found["low"], 100 * found["high"]
        line += f"  {100 * found['value']:+.1f} [{low:+.1f}, {high:+.1f}] against {document['current']['prompt']}"
    return line + ("" if each.passed is None else "  passed" if each.passed else "  not passed")


def _moved(move: Move) -> str:
    forced = ", forced" if move.forced else ""
    return f"{move.created[:16].replace('T', ' ')}  {move.label} to version {move.version} ({move.kind}{forced})"


def _print_diff(text: str) -> None:
    from rich.text import Text

    styles = {"---": "bold", "+++": "bold", "@": "cyan", "-": "red", "+": "green"}
    screen = console()
    for line in text.split("\n"):
        style = next((style for start, style in styles.items() if line.startswith(start)), "")
        screen.print(Text(plain(line), style=style), soft_wrap=True)

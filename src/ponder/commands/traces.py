"""`ponder traces`: what was asked before, and everything that happened on the way to the answer."""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ponder.commands.terminal import console, describe, plain

if TYPE_CHECKING:
    from rich.console import Console

    from ponder.ops.store import TraceSummary
    from ponder.types import Event, Trace, TraceState

app = typer.Typer(help="Traces: what was asked, thought and answered, and what it cost.", no_args_is_help=True)


class State(StrEnum):
    """How far a trace got."""

    running = "running"
    done = "done"
    interrupted = "interrupted"
    failed = "failed"


Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a trace, or enough of its beginning.")]
OnlyState = Annotated[State | None, typer.Option("--state", help="Only traces in this state.")]
Search = Annotated[str | None, typer.Option("--search", help="Only traces with this in question, answer or model.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_traces(
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 20,
    state: OnlyState = None,
    search: Search = None,
    as_json: Json = False,
) -> None:
    """List the newest traces."""
    from ponder.ops.store import Store

    with Store.open() as store:
        found = store.list(limit, _chosen(state), search)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(summary) for summary in found], indent=2, ensure_ascii=False))
    elif found:
        _print_list(found)
    else:
        typer.echo("no traces" if state is None and search is None else "no such traces")


@app.command()
def show(trace_id: Id, as_json: Json = False) -> None:
    """Show one trace: question, thinking, answer, cost and events."""
    from ponder.ops.store import Store
    from ponder.types import to_json

    with Store.open() as store:
        trace = store.get(trace_id)
    if as_json:
        typer.echo(to_json(trace))
    else:
        _print(trace)


@app.command()
def export(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; else standard output.")] = None,
    state: OnlyState = None,
    search: Search = None,
) -> None:
    """Write traces as JSON lines, oldest first."""
    from ponder.ops.store import Store

    chosen = _chosen(state)
    with Store.open() as store:
        if output is None:
            for line in store.lines(state=chosen, search=search):
                typer.echo(line)
        else:
            count = store.export(output, state=chosen, search=search)
            typer.echo(f"{output}: {count} {'trace' if count == 1 else 'traces'}")


@app.command("rm")
def remove(trace_id: Id, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False) -> None:
    """Remove one trace."""
    from ponder.ops.store import Store

    with Store.open() as store:
        found = store.find(trace_id)
        if not yes:
            typer.confirm(f"Remove trace {found} ({_short(store.get(found).question.text, 60)})?", abort=True)
        typer.echo(f"removed {store.remove(found)}")


def _chosen(state: State | None) -> TraceState | None:
    return None if state is None else state.value


# ---------------------------------------------------------------- for people


def _short(text: str, width: int) -> str:
    line = " ".join(plain(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _print_list(summaries: list[TraceSummary]) -> None:
    # Two lines each: an id that was cut could not be given to `show`.
    screen = console()
    for each in summaries:
        created = each.created[:16].replace("T", " ")
        facts = f"  {created}  {each.state}  {each.tokens} tokens"
        screen.print(Text(plain(each.id), style="bold").append(facts, style="not bold dim"), soft_wrap=True)
        line = _short(each.question, 200) + (f" → {_short(each.answer, 200)}" if each.answer else "")
        screen.print(Text("  " + _short(line, max(20, screen.width - 2))), soft_wrap=True)


def _print(trace: Trace) -> None:
    screen = console()
    made = " · ".join(
        part for part in (trace.provenance.model, trace.provenance.strategy, trace.created, trace.state) if part
    )
    _section(screen, f"trace {trace.id}", made)
    _section(screen, "question", trace.question.text)
    if trace.thinking:
        _section(screen, "thinking", trace.thinking, style="dim")
    _section(screen, "answer", trace.answer or "(none)")
    if trace.error:
        _section(screen, "error", trace.error)
    _section(screen, "cost", describe(trace.cost))
    lines = [_line(event) for event in trace.events]
    if lines:
        _section(screen, "events", "\n".join(lines))


def _section(screen: Console, title: str, body: str, style: str = "") -> None:
    screen.print(Text(plain(title), style="bold"))
    screen.print(Text(plain(body), style=style), soft_wrap=True)
    screen.print()


def _line(event: Event) -> str:
    from ponder import types

    match event:
        case types.ThinkingDelta() | types.AnswerDelta():
            return f"{event.type} of sample {event.sample}: {_short(event.text, 80)}"
        case types.ToolCalled():
            return f"tool_called by sample {event.sample}: {event.call.name}({_short(event.call.arguments, 60)})"
        case types.ToolReturned():
            failed = " (error)" if event.result.error else ""
            return f"tool_returned{failed}: {_short(event.result.content, 80)}"
        case types.SampleFinished():
            return f"sample_finished: {event.sample.index}, {event.sample.finish}, {describe(event.cost)}"
        case types.Scored():
            why = f": {_short(event.score.why, 60)}" if event.score.why else ""
            return f"scored sample {event.sample}: {event.score.value:g} by {event.score.verifier}{why}"
        case types.BestAnswer():
            return f"best_answer from sample {event.sample}: {_short(event.answer, 80)}"
        case _:
            return event.type

"""`ponder keys`: who may ask the server, for which project, and how much."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ponder.commands.terminal import plain

if TYPE_CHECKING:
    from ponder.ops.keys import Key, Project
    from ponder.ops.ledger import Ledger
    from ponder.ops.limits import Limit

app = typer.Typer(help="Keys: who may ask the server, and how much.", no_args_is_help=True)


def _complete_key(incomplete: str) -> list[str]:
    from ponder.errors import PonderError
    from ponder.ops.keys import Keys

    try:
        with Keys.open() as keys:
            return [key.name for key in keys.list() if key.name.startswith(incomplete)]
    except PonderError:
        return []


def _complete_project(incomplete: str) -> list[str]:
    from ponder.errors import PonderError
    from ponder.ops.keys import Keys

    try:
        with Keys.open() as keys:
            names = {key.project for key in keys.list()} | {project.name for project in keys.projects()}
            return sorted(name for name in names if name and name.startswith(incomplete))
    except PonderError:
        return []


KEY_HELP = "The name of a key, or enough of the beginning of its id."
KeyName = Annotated[str, typer.Argument(metavar="KEY", help=KEY_HELP, autocompletion=_complete_key)]
Limits = Annotated[
    str,
    typer.Option(
        "--limit",
        "-l",
        metavar="LIMITS",
        help="Such as '5 USD/month, 60 requests/minute, 100k tokens/day'; also: hour, total.",
    ),
]
ProjectName = Annotated[
    str, typer.Option("--project", "-p", metavar="NAME", autocompletion=_complete_project, help="The project.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")],
    project: ProjectName = "",
    limit: Limits = "",
    as_json: Json = False,
) -> None:
    """Make a key. Its secret is shown this once: only a hash of it is kept.

    ponder keys add alice --project web --limit '5 USD/month, 60 requests/minute'
    """
    from ponder.ops.keys import Keys
    from ponder.ops.limits import parse_limits

    with Keys.open() as keys:
        key, secret = keys.add(name, project, parse_limits(limit))
    if as_json:
        typer.echo(json.dumps(_document(key) | {"secret": secret}, indent=2, ensure_ascii=False))
    else:
        typer.echo(secret)
        typer.echo(f"That is the key of {plain(name)} ({key.id}). It is not shown again.", err=True)


@app.command("list")
def list_keys(
    revoked: Annotated[bool, typer.Option("--all", "-a", help="Revoked ones, too.")] = False, as_json: Json = False
) -> None:
    """List the keys, the limits of keys and projects, and what is used of them."""
    from ponder.ops.keys import Keys
    from ponder.ops.ledger import Ledger

    with Keys.open() as keys, Ledger.open() as ledger:
        found, projects = keys.list(revoked), keys.projects()
        rows = [_document(key) | {"used": _used(ledger, key.limits, key=key.id)} for key in found]
        shared = [
            {
                "name": project.name,
                "limits": _texts(project),
                "used": _used(ledger, project.limits, project=project.name),
            }
            for project in projects
        ]
    if as_json:
        typer.echo(json.dumps({"keys": rows, "projects": shared}, indent=2, ensure_ascii=False))
    elif rows or shared:
        _print(rows, shared, revoked)
    else:
        typer.echo("no keys" if revoked else "no keys in use")


@app.command()
def revoke(key: KeyName, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False) -> None:
    """End a key for good. Servers that run refuse it within a second; what it used stays in the ledger."""
    from ponder.ops.keys import Keys

    with Keys.open() as keys:
        found = keys.get(key)
        if not yes:
            typer.confirm(f"Revoke the key {found.id} of {plain(found.name)}?", abort=True)
        keys.revoke(found.id)
    typer.echo(f"revoked {found.id} ({plain(found.name)})")


@app.command()
def limit(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help=KEY_HELP, autocompletion=_complete_key, show_default=False)
    ] = "",
    project: ProjectName = "",
    limits: Limits = "",
) -> None:
    """Give a key, or all keys of a project together, other limits; without --limit, none.

    ponder keys limit alice --limit '10 USD/month'

    ponder keys limit --project web --limit '50 USD/month'
    """
    from ponder.errors import InputError
    from ponder.ops.keys import Keys
    from ponder.ops.limits import limits_text, parse_limits

    if bool(key) == bool(project):
        raise InputError("limits are of one key or of one project", "name a key, or give --project")
    wanted = parse_limits(limits)
    with Keys.open() as keys:
        if key:
            found = keys.limit(key, wanted)
            name = f"key {found.id} ({plain(found.name)})"
        else:
            keys.limit_project(project, wanted)
            name = f"project {plain(project)}"
    typer.echo(f"{name}: {limits_text(wanted) or 'no limits'}")


# ---------------------------------------------------------------- as documents and for people


def _document(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "project": key.project,
        "limits": _texts(key),
        "created": key.created,
        "revoked": key.revoked,
    }


def _texts(limited: Key | Project) -> list[str]:
    return [str(limit) for limit in limited.limits]


def _used(ledger: Ledger, limits: tuple[Limit, ...], key: str = "", project: str = "") -> list[str]:
    """What counts against each limit in the window that is now, in its order."""
    from ponder.ops.limits import told

    return [told(ledger.spent(key, limit.window, project=project).of(limit.unit), limit.unit) for limit in limits]


def _print(rows: list[dict[str, Any]], shared: list[dict[str, Any]], revoked: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from ponder.commands.terminal import console

    def cells(*texts: str) -> list[Text]:
        return [Text(plain(text)) for text in texts]  # square brackets in a name are no markup

    def used(row: dict[str, Any]) -> str:
        return "\n".join(f"{used} of {limit}" for used, limit in zip(row["used"], row["limits"], strict=True))

    if rows:
        table = Table("id", "name", "project", "used", "created", box=SIMPLE_HEAD)
        if revoked:
            table.add_column("revoked")
        for row in rows:
            dates = [row["created"][:10], *([(row["revoked"] or "")[:10]] if revoked else [])]
            table.add_row(*cells(row["id"], row["name"], row["project"], used(row), *dates))
        for column in table.columns:
            column.no_wrap, column.overflow = column.header not in ("name", "project"), "fold"
        console().print(table)
    if shared:
        table = Table("project", "used", box=SIMPLE_HEAD)
        for row in shared:
            table.add_row(*cells(row["name"], used(row)))
        console().print(table)

"""`ponder costs`: what was used and what it cost, by model, key, project, strategy, prompt or day."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ponder.commands.terminal import plain

if TYPE_CHECKING:
    from ponder.ops.ledger_values import Total


class By(StrEnum):
    """What costs are told by."""

    model = "model"
    key = "key"
    project = "project"
    strategy = "strategy"
    prompt = "prompt"
    backend = "backend"
    day = "day"


SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def costs(
    by: Annotated[By, typer.Option("--by", help="What the sums are made by.")] = By.model,
    since: Annotated[
        str,
        typer.Option("--since", metavar="WHEN", help="30m, 24h, 7d, 4w ago, or a date such as 2026-11-01 (UTC)."),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what the server's requests used and cost.

    ponder costs --by key --since 7d
    """
    from ponder.ops.keys import Keys
    from ponder.ops.ledger import Ledger

    start = _start(since)
    with Keys.open() as keys, Ledger.open() as ledger:
        totals, everything = ledger.totals(by.value, since=start), ledger.totals("all", since=start)
        names = {key.id: key.name for key in keys.list(revoked=True)} if by is By.key else {}
    if as_json:
        typer.echo(json.dumps(_document(by, start, totals, names), indent=2, ensure_ascii=False))
    elif totals:
        _print(by, totals, everything[0], names)
    else:
        typer.echo("no requests" if start is None else "no requests since then")


def _start(since: str) -> float | None:
    """Seconds since 1970. Raises InputError."""
    from ponder.errors import InputError

    text = since.strip()
    if not text:
        return None
    if match := re.fullmatch(r"([0-9]{1,6})\s*([mhdw])", text):
        return time.time() - int(match[1]) * SECONDS[match[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{since!r} is no time", "write it as 24h, 7d or 2026-11-01") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _document(by: By, start: float | None, totals: list[Total], names: dict[str, str]) -> dict[str, Any]:
    def row(total: Total) -> dict[str, Any]:
        known = {"key_name": names[total.name]} if total.name in names else {}
        return asdict(total) | known | {"dollars": total.micro / 1e6}

    since = None if start is None else datetime.fromtimestamp(start, UTC).isoformat(timespec="seconds")
    rows = [row(each) for each in totals]
    return {"by": by.value, "since": since, "rows": rows, "dollars": sum(each.micro for each in totals) / 1e6}


def _print(by: By, totals: list[Total], everything: Total, names: dict[str, str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from ponder.commands.terminal import console
    from ponder.ops.money import in_dollars

    table = Table(by.value, "requests", "prompt", "cached", "generated", "thinking", "cost", box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    table.columns[0].overflow = "fold"
    rows = [(names.get(each.name, each.name) or "(none)", each) for each in totals]
    if len(totals) > 1:
        rows.append(("all", everything))
    for name, each in rows:
        counts = (each.requests, each.prompt, each.cached, each.completion, each.reasoning)
        priced = each.attempts - each.open - each.unknown - each.unpriced
        cost = in_dollars(each.micro) if priced else "unknown" if each.unpriced else "-"
        more = " + unknown" if priced and each.unpriced else ""
        # As Text: what stands in a name in square brackets is no markup.
        table.add_row(Text(plain(name)), *(f"{count:,}" for count in counts), cost + more)
    screen = console()
    screen.print(table)
    for note in _notes(everything):
        screen.print(note, soft_wrap=True)


def _notes(total: Total) -> list[str]:
    """What the sums leave out."""
    from ponder.ops.money import in_dollars

    notes = []
    if total.unpriced:
        notes.append(f"without a known price: {total.unpriced} of {total.attempts} attempts; see prices.toml")
    if total.open:
        notes.append(f"under way: {total.open}, for which {in_dollars(total.open_micro)} are reserved")
    if total.unknown:
        notes.append(
            f"lost with their process: {total.unknown}, which count as {in_dollars(total.unknown_micro)} against limits"
        )
    return notes

"""Writes docs/cli from the command line's own code: a page for each command.

python tools/cli_docs.py            writes the pages
python tools/cli_docs.py --check    fails where a page differs from the code, and writes nothing
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

FOLDER = Path(__file__).parents[1] / "docs" / "cli"
HEAD = "<!-- Written by tools/cli_docs.py from the code: run `make docs` instead of editing. -->"


def pages(app: typer.Typer, name: str = "ponder") -> dict[str, str]:
    """The text of each page, by the name of its file."""
    root: Any = get_command(app)
    context = _context(root, name)
    commands = _subcommands(root, context)
    index = [HEAD, *_section(root, context, 1)]
    links = [f"- [`{name} {each}`]({each}.md): {_first_line(commands[each])}" for each in commands]
    index += ["Commands:\n\n" + "\n".join(links)]
    texts = {"index.md": index}
    for each, command in commands.items():
        texts[f"{each}.md"] = [HEAD, *_tree(command, _context(command, each, context), 1)]
    return {file: "\n\n".join(blocks) + "\n" for file, blocks in texts.items()}


def _context(command: Any, name: str, parent: typer.Context | None = None) -> typer.Context:
    return typer.Context(command, info_name=name, parent=parent, **command.context_settings)


def _subcommands(command: Any, context: typer.Context) -> dict[str, Any]:
    if not hasattr(command, "list_commands"):
        return {}
    found = {name: command.get_command(context, name) for name in command.list_commands(context)}
    return {name: each for name, each in found.items() if not each.hidden}


def _tree(command: Any, context: typer.Context, depth: int) -> Iterator[str]:
    yield from _section(command, context, depth)
    for name, each in _subcommands(command, context).items():
        yield from _tree(each, _context(each, name, context), depth + 1)


def _section(command: Any, context: typer.Context, depth: int) -> Iterator[str]:
    """What is to be said of one command: what it does, its usage, arguments and options."""
    yield f"{'#' * depth} {context.command_path}"
    yield from _paragraphs(command.help or "")
    yield f"```text\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```"
    for kind, title in (("argument", "Arguments"), ("option", "Options")):
        of_kind = [each for each in command.get_params(context) if each.param_type_name == kind]
        records = [record for each in of_kind if (record := each.get_help_record(context)) is not None]
        if records:
            yield f"{title}:\n\n" + "\n".join(f"- `{names}`: {_one_line(text)}" for names, text in records)


def _paragraphs(text: str) -> Iterator[str]:
    """The help text; paragraphs of command lines become code."""
    for paragraph in text.split("\f")[0].strip().split("\n\n"):
        lines = [line for line in paragraph.splitlines() if line.strip() != "\b"]
        if lines and all(line.lstrip().startswith(("ponder ", "$ ")) or " | ponder " in line for line in lines):
            yield "```sh\n" + "\n".join(line.strip() for line in lines) + "\n```"
        elif lines:
            yield "\n".join(lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _first_line(command: Any) -> str:
    return _one_line((command.help or "").split("\n\n")[0])


def differences(texts: dict[str, str], folder: Path) -> list[str]:
    """The files of `folder` that are not what `texts` says, missing and left-over ones included."""
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    return sorted(name for name in texts.keys() | there.keys() if texts.get(name) != there.get(name))


def main() -> int:
    from ponder.cli import app

    texts = pages(app)
    changed = differences(texts, FOLDER)
    if "--check" in sys.argv[1:]:
        if changed:
            print(f"docs/cli differs from the code in {', '.join(changed)}: run make docs", file=sys.stderr)
        return 1 if changed else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in changed:
        if name in texts:
            (FOLDER / name).write_text(texts[name], encoding="utf-8")
        else:
            (FOLDER / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())

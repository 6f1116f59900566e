"""The command line as a whole: help, version, shell completion, what it loads, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, ponder, scripted
from typer.main import get_command

import ponder as package
from ponder.cli import app
from ponder.commands import asking
from ponder.engine import catalogue

SCRIPT = Path(sys.executable).with_name("ponder")

HEAVY = {"httpx", "huggingface_hub", "numpy", "pydantic", "xllamacpp", "jinja2", "torch", "transformers", "peft"}
KINDS = {"sft", "grpo", "reward", "distill", "dpo"}
PROMPTS = {"list", "show", "put", "diff", "tag", "rollback", "eval", "export", "import"}


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that there is, as it is typed."""
    command = command or get_command(app)
    yield path
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*path, name))


ALL = list(commands())


def test_there_are_the_commands_of_the_readme():
    top = {path[0] for path in ALL if path}
    alone = {"ask", "chat", "costs", "curve", "eval", "export", "route", "serve"}
    assert top == {*alone, "keys", "models", "prompts", "runs", "traces", "train"}
    assert {path[1] for path in ALL if path[:1] == ("models",) and path[1:]} == {"list", "pull", "show", "rm"}
    assert {path[1] for path in ALL if path[:1] == ("train",) and path[1:]} == {*KINDS, "sample", "watch"}
    assert {path[1] for path in ALL if path[:1] == ("traces",) and path[1:]} == {"list", "show", "export", "rm"}
    assert {path[1] for path in ALL if path[:1] == ("keys",) and path[1:]} == {"add", "list", "revoke", "limit"}
    assert {path[1] for path in ALL if path[:1] == ("runs",) and path[1:]} == {"list", "show"}
    assert {path[1] for path in ALL if path[:1] == ("prompts",) and path[1:]} == PROMPTS


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help(path):
    long, short = ponder(*path, "--help"), ponder(*path, "-h")
    assert (long.code, long.err) == (0, "")
    assert long == short
    assert f"Usage: {' '.join(('ponder', *path))}" in long.out
    assert "--help" in long.out
    assert re.search(r"^ (?!Usage)[A-Z]", long.out, re.MULTILINE)  # what it is for


def test_every_option_is_described():
    for path in ALL:
        command = get_command(app)
        for name in path:
            command = command.commands[name]
        for each in command.params:
            assert each.name in ("help", "install_completion", "show_completion") or each.help, (path, each.name)


def test_without_arguments_the_help_is_shown():
    result = ponder()
    assert result.code in (0, 2)
    assert "Usage: ponder" in result.out + result.err
    assert "ask" in result.out + result.err


def test_version():
    assert ponder("--version").out == f"ponder {package.__version__}\n"


def test_the_installed_command_and_the_module_are_the_same():
    shown = [subprocess.run([*each, "--version"], capture_output=True, check=True) for each in ([SCRIPT], COMMAND)]
    assert shown[0].stdout == shown[1].stdout == f"ponder {package.__version__}\n".encode()


LOADED = """
import json, sys
from ponder import cli
try: cli.main()
except SystemExit: print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def test_help_loads_nothing_heavy():
    for arguments, shown in (([], "ask"), (["ask"], "--budget"), (["train"], "sft"), (["train", "sft"], "--dry-run")):
        command = [sys.executable, "-c", LOADED, *arguments, "--help"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert shown in result.stdout
        # Typer reads the options of a command with pydantic.
        assert (HEAVY - ({"pydantic"} if arguments else set())).isdisjoint(json.loads(result.stderr))


def test_importing_ponder_loads_next_to_nothing():
    code = (
        "import ponder, sys; print(len([m for m in sys.modules if m.startswith('ponder')]), 'asyncio' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "1 False\n"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        package.nonsense  # noqa: B018


# ---------------------------------------------------------------- shell completion


def complete(line: str) -> list[str]:
    """What bash offers after `line`."""
    words = line.split(" ")
    environment = os.environ | {
        "_PONDER_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    shown = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert shown.stderr == ""
    return shown.stdout.split()


def test_completion_of_model_names():
    torch = [f"hf:{name}" for name in catalogue.names()]
    assert complete("ponder ask -m ") == [*catalogue.names(), *torch, "openai:http://", "scripted:"]
    assert complete("ponder chat --model pon") == ["ponder-135m"]


def test_completion_of_commands_and_options():
    assert complete("ponder ") == [
        *("ask", "chat", "serve", "curve", "eval", "route", "export", "costs"),
        *("train", "models", "traces", "runs", "prompts", "keys"),
    ]
    assert {"--min-thinking", "--model"} <= set(complete("ponder ask --m"))


def test_completion_for_bash_can_be_installed():
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = subprocess.run(
        [SCRIPT, "--show-completion", "bash"], env=environment, capture_output=True, text=True, check=True
    )
    assert "_PONDER_COMPLETE=complete_bash" in shown.stdout
    assert "complete -o default -F" in shown.stdout
    subprocess.run(["bash", "-n"], input=shown.stdout, text=True, check=True)


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize("bug", [ZeroDivisionError("a bug"), PermissionError(13, "Permission denied")])
def test_what_no_user_can_mend_keeps_its_traceback(tmp_path, monkeypatch, bug):
    def broken(*_: object, **__: object) -> None:
        raise bug

    monkeypatch.setattr(asking, "read_input", broken)
    with pytest.raises(type(bug)):
        ponder("ask", "-m", scripted(tmp_path, "4"), "hi")

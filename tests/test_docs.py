"""What the documents say is true: their code runs, their command lines parse, their tables are those of the code."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest
import typer
from typer.main import get_command

import ponder
from ponder import errors
from ponder.chat.model import USUAL_TEMPERATURE
from ponder.cli import app
from ponder.commands import asking, chat
from ponder.engine import catalogue
from ponder.engine._script import FaultKind, ScriptModel
from ponder.engine.llamacpp import LlamaEngine
from ponder.engine.remote_chat import CHAT_ONLY
from ponder.engine.remote_llama_server import LlamaServer
from ponder.engine.remote_sglang import SGLang
from ponder.engine.remote_vllm import Vllm
from ponder.engine.scripted import ScriptedEngine, says
from ponder.errors import PonderError
from ponder.protocols import Capabilities
from ponder.strategies import draft, message_budget, requests
from ponder.types import Budget

ROOT = Path(__file__).parents[1]
PAGES = [path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))]
FENCE = re.compile(r"^```(?P<language>\w*)(?P<rest>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- Python


def own_code(page: str) -> str:
    """The page without the files of examples/ that it shows: those are executed as files."""
    return re.sub(r"<!-- examples/.*?<!-- end -->", lambda match: "\n" * match[0].count("\n"), read(page), flags=re.S)


def python_of(page: str, model: bool) -> str:
    """The Python of a page, each line at its number there; blocks for the embedded model only with `model`."""
    text = own_code(page)
    lines = [""] * (text.count("\n") + 1)
    for match in FENCE.finditer(text):
        if match["language"] == "python" and (model or "model" not in match["rest"]):
            first = text.count("\n", 0, match.start("code"))
            code = match["code"].splitlines()
            lines[first : first + len(code)] = code
    return "\n".join(lines)


def needs_model(page: str) -> bool:
    return python_of(page, model=True) != python_of(page, model=False)


def execute(page: str, model: bool, folder: Path) -> None:
    """Runs the blocks of a page in their order, as one program in a folder of its own. Warnings are errors."""
    program = f"exec(compile({python_of(page, model)!r}, {page!r}, 'exec'))"
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if python_of(page, model=False).strip()])
def test_python_runs(page: str, tmp_path: Path) -> None:
    execute(page, False, tmp_path)


@pytest.mark.model
@pytest.mark.timeout(400)  # seconds where the machine is idle; llama.cpp suffers most of all from a busy one
@pytest.mark.parametrize("page", [page for page in PAGES if needs_model(page)])
def test_python_runs_with_the_embedded_model(page: str, tmp_path: Path) -> None:
    execute(page, True, tmp_path)


def test_there_is_python_to_run() -> None:
    assert {"docs/budget.md", "docs/engines.md", "docs/errors.md", "docs/python.md", "docs/traces.md"} <= {
        page for page in PAGES if python_of(page, model=False).strip()
    }
    assert needs_model("README.md")


def test_a_block_that_fails_is_found_at_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    with pytest.raises(AssertionError, match=r'"page.md", line 8'):
        execute("page.md", False, tmp_path)


# ---------------------------------------------------------------- command lines


def command_lines(page: str) -> Iterator[list[str]]:
    """The words of each command in the shell blocks of a page."""
    for match in FENCE.finditer(read(page)):
        if match["language"] in ("sh", "bash", "console"):
            for line in match["code"].splitlines():
                words = shlex.split(re.sub(r"(^|\s)#.*", "", line.removeprefix("$ ")))
                while "|" in words:
                    yield words[: words.index("|")]
                    words = words[words.index("|") + 1 :]
                if words:
                    yield words


def mentions(page: str) -> Iterator[list[str]]:
    """The words of each `ponder ...` that is mentioned within the text of a page, complete or not."""
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", read(page))):
        if re.match(r"ponder [a-z-]", code):
            yield shlex.split(code)[1:]


def parse(command: Any, name: str, words: list[str], parent: Any = None) -> None:
    """Has the command line's own parser read `words`, without carrying anything out. Raises as that does."""
    with command.make_context(name, list(words), parent=parent) as context:
        if hasattr(command, "resolve_command"):
            name, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            parse(inner, name, rest, context)


def options_of(command: Any, context: Any) -> set[str]:
    return {option for param in command.get_params(context) for option in param.opts}


def exist(words: list[str]) -> None:
    """Each word that looks like a command or an option is one."""
    command: Any = get_command(app)
    context = typer.Context(command, info_name="ponder", **command.context_settings)
    for word in words:
        if hasattr(command, "list_commands") and not word.startswith("-"):
            assert word in command.list_commands(context), f"ponder {' '.join(words)}: there is no {word}"
            command = command.get_command(context, word)
            context = typer.Context(command, info_name=word, parent=context)
        elif word.startswith("-"):
            assert word in options_of(command, context), f"ponder {' '.join(words)}: there is no {word}"


@pytest.mark.parametrize("page", PAGES)
def test_command_lines_parse(page: str) -> None:
    for program, *words in command_lines(page):
        if Path(program).name != "ponder":
            continue
        if words[0].startswith("--"):  # carried out while parsing: installing completion is not for a test
            exist(words)
        else:
            parse(get_command(app), "ponder", words)
    for words in mentions(page):
        exist(words)


def test_there_are_command_lines_to_parse() -> None:
    lines = [words for page in PAGES for words in command_lines(page)]
    used = {words[1] for words in lines if words[0] == "ponder"}
    assert {"ask", "chat", "models", "traces"} <= used


@pytest.mark.parametrize("words", [["ask", "--bugdet", "3", "x"], ["aks"], ["models", "pull"], ["ask", "-b", "many"]])
def test_command_lines_that_do_not_exist_are_found(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"No such|Missing|valid integer"):
        parse(get_command(app), "ponder", words)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    lines = [words for page in PAGES for words in command_lines(page)]
    asked = {words[1] for words in lines if words[0] == "make"}
    asked |= {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)", read(page))}
    assert {"demo", "test", "docs"} <= asked <= targets


# ---------------------------------------------------------------- pages that are written from the code


def test_the_command_pages_are_those_of_the_code() -> None:
    cli_docs = tool("cli_docs")
    assert cli_docs.differences(cli_docs.pages(app), ROOT / "docs" / "cli") == []


def test_a_command_page_that_differs_is_found(tmp_path: Path) -> None:
    cli_docs = tool("cli_docs")
    texts = cli_docs.pages(app)
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert cli_docs.differences(texts, tmp_path) == []
    (tmp_path / "ask.md").write_text(texts["ask.md"].replace("--budget", "--bugdet"), encoding="utf-8")
    (tmp_path / "chat.md").unlink()
    (tmp_path / "old.md").write_text("left over")
    assert cli_docs.differences(texts, tmp_path) == ["ask.md", "chat.md", "old.md"]


def test_the_command_pages_name_every_command_and_option() -> None:
    small = typer.Typer(help="All.")
    group = typer.Typer(help="A group.")

    @small.command()
    def greet(name: str, loudly: bool = typer.Option(False, "--loudly", "-l", help="Shout.")) -> None:
        """Greet somebody.

        ponder greet Anna
        ponder greet Anna --loudly
        """

    @group.command()
    def leave(times: int = typer.Option(3, help="How often.")) -> None:
        """Leave."""

    small.add_typer(group, name="more")
    texts = tool("cli_docs").pages(small)
    assert set(texts) == {"index.md", "greet.md", "more.md"}
    assert "[`ponder greet`](greet.md): Greet somebody." in texts["index.md"]
    assert (
        "# ponder greet\n\nGreet somebody.\n\n```sh\nponder greet Anna\nponder greet Anna --loudly\n```"
        in (texts["greet.md"])
    )
    assert re.search(r"Arguments:\n\n- `name.*\[required\]", texts["greet.md"])
    assert re.search(r"- `-l, --loudly`: Shout\.", texts["greet.md"])
    assert re.search(r"## ponder more leave\n.*- `--times.*: How often\. \[default: 3\]", texts["more.md"], re.S)


def test_examples_are_shown_as_they_are() -> None:
    filled = tool("include_examples").filled
    shown = set()
    for page in PAGES:
        assert filled(read(page)) == read(page), f"{page} shows another text than examples/ holds: make docs"
        shown |= set(re.findall(r"<!-- (examples/\w+\.py) -->", read(page)))
    assert shown == {path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/own_*.py")}


# ---------------------------------------------------------------- what is said elsewhere too


def rows(page: str, head: str) -> dict[str, list[str]]:
    """The table of a page whose first column is called `head`: the other cells of each row by its first."""
    lines = read(page).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} |"))
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        found[first.strip("`")] = rest
    return found


def test_the_table_of_engines_is_that_of_the_code() -> None:
    embedded: Any = LlamaEngine.capabilities
    capabilities: dict[str, Capabilities] = {
        "gguf:": embedded.fget(SimpleNamespace(_adapters=())),
        "hf:": pytest.importorskip("ponder.engine.torch_engine", exc_type=ImportError).CAPABILITIES,
        "openai+vllm:": Vllm.capabilities,
        "openai+llamacpp:": LlamaServer.capabilities,
        "openai+sglang:": SGLang.capabilities,
        "openai+chat:": CHAT_ONLY,
        "scripted:": ScriptedEngine(says("x")).capabilities,
    }
    names = [f.name for f in dataclasses.fields(Capabilities) if f.name != "adapters"]
    head = next(line for line in read("docs/engines.md").splitlines() if line.startswith("| engine |"))
    assert [cell.strip() for cell in head.strip("|").split("|")][1:] == names
    assert rows("docs/engines.md", "engine") == {
        uri: ["yes" if getattr(each, name) else "no" for name in names] for uri, each in capabilities.items()
    }


def test_the_table_of_faults_is_that_of_the_code() -> None:
    assert set(rows("docs/engines.md", "fault")) == set(get_args(FaultKind))
    told = read("docs/engines.md")
    assert all(f"`{field.name}`" in told for field in dataclasses.fields(ScriptModel))


def test_the_table_of_errors_is_that_of_the_code() -> None:
    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, PonderError) and kind is not PonderError
    }
    assert set(rows("docs/errors.md", "class")) == set(kinds)
    codes = set(rows("docs/errors.md", "exit code"))
    assert {str(kind.exit_code) for kind in kinds.values()} | {str(asking.STOPPED)} <= codes


def test_the_budget_is_told_as_the_code_has_it() -> None:
    text = read("docs/budget.md")
    for field in dataclasses.fields(Budget):
        assert re.search(rf"`(Budget\()?{field.name}=", text), f"docs/budget.md leaves out {field.name}"
    assert f"{requests.THINKING_SHARE:.0%} of them" in text
    assert f"below {draft.LEAST_ANSWER} tokens a sample" in text
    assert requests.RESUMES == 2
    assert "twice at most" in text
    assert Budget(tokens=100_000).reserve == 64
    assert Budget(tokens=100).reserve == 25
    assert f"a reply gets {message_budget.UNBOUNDED:,}" in text
    assert f"{asking.DEFAULT_BUDGET:,} tokens" in read("docs/ask.md")


def test_the_temperatures_are_told() -> None:
    told = f"{catalogue.INTERIM_ADAPTER.temperature:g} for the default model"
    assert told in read("docs/ask.md")
    assert f"{USUAL_TEMPERATURE} for models that recommend none" in read("docs/ask.md")


def test_the_known_models_and_chat_commands_are_told() -> None:
    assert set(rows("docs/weights.md", "name")) == set(catalogue.names())
    for command in re.findall(r"/[a-z]+", chat.HELP):
        assert f"`{command}" in read("docs/ask.md"), f"docs/ask.md leaves out {command}"


def test_the_environment_variables_are_those_of_the_code() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    used = set(re.findall(r"PONDER_[A-Z]+|OPENAI_API_KEY|NO_COLOR|FORCE_COLOR", source))
    told = set(re.findall(r"`([A-Z_]+)`", " ".join(rows("docs/install.md", "variable"))))
    told |= {name for key in rows("docs/install.md", "variable") for name in re.findall(r"[A-Z_]+", key)}
    assert used <= told
    assert {name for name in told if name.startswith("PONDER_")} <= used


# ---------------------------------------------------------------- the pages themselves


def slugs(page: str) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(page))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in slugs(found.resolve().relative_to(ROOT).as_posix()), f"{page}: {target}"


def test_every_page_is_linked() -> None:
    linked = {
        ((ROOT / page).parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", read(page))
        if "://" not in target
    }
    assert [
        page for page in PAGES if (ROOT / page).resolve() not in linked and page not in ("README.md", "docs/index.md")
    ] == []


def test_the_changelog_tells_of_this_version() -> None:
    assert f"\n## {ponder.__version__}\n" in read("CHANGELOG.md")
    assert "\n## Unreleased\n" in read("CHANGELOG.md")

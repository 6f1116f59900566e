"""What holds the project together: light imports, one-way arrows, pinned versions, what is installed and how."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ponder

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS = Path(sys.executable).parent

HEAVY = ("torch", "xllamacpp", "gguf", "numpy", "pydantic", "httpx", "huggingface_hub", "jinja2", "rich")
ABOVE_HELP = [name for name in HEAVY if name != "rich"]
"""The command line draws its help with rich."""


UNMEASURED = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
"""The environment without what has children measured: that loads modules, and takes time, of its own."""


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after `code`."""
    program = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


# ---------------------------------------------------------------- imports


@pytest.mark.parametrize(
    "module", ["ponder", "ponder.types", "ponder.protocols", "ponder.errors", "ponder.engine", "ponder.engine.weights"]
)
def test_importing_ponder_loads_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import {module}") & set(HEAVY) == set()


def test_the_command_line_loads_nothing_heavy() -> None:
    assert loaded_by("import ponder.cli") & set(ABOVE_HELP) == set()


def test_a_heavy_import_would_be_found() -> None:
    assert "numpy" in loaded_by("import ponder.engine.sampling")


def test_help_is_quick() -> None:
    def seconds() -> float:
        began = time.monotonic()
        command = [SCRIPTS / "ponder", "--help"]
        done = subprocess.run(command, env=UNMEASURED, capture_output=True, text=True, check=True)
        assert "ask" in done.stdout
        return time.monotonic() - began

    assert min(seconds() for _ in range(5)) < 1.0


def test_what_the_package_offers_is_there() -> None:
    for name in ponder.__all__:
        assert getattr(ponder, name).__module__.startswith("ponder.")
    with pytest.raises(AttributeError, match="nothing"):
        _ = ponder.nothing


# ---------------------------------------------------------------- arrows


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    command = [SCRIPTS / "lint-imports", "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the source and its contracts, to be spoilt."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.gguf"))
    return tmp_path


def test_the_arrows_are_kept(copy: Path) -> None:
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_arrows_that_point_up_are_found(copy: Path) -> None:
    up = {
        "types": "protocols",
        "errors": "types",
        "paths": "errors",
        "protocols": "engine",
        "engine.cache": "chat.model",
        "engine.sse": "ops.store",
        "chat.template": "engine.sse",
        "strategies.direct": "engine.cache",
        "ops.store": "engine.catalogue",
        "solving": "commands.terminal",
        "commands.ask": "cli",
    }
    for source, target in up.items():
        file = copy / "src" / "ponder" / f"{source.replace('.', '/')}.py"
        file.write_text(file.read_text(encoding="utf-8") + f"\nimport ponder.{target}\n", encoding="utf-8")
    done = lint_imports(copy)
    assert done.returncode == 1
    for source, target in up.items():
        pair = rf"ponder\.{re.escape(source)} -> ponder\.{re.escape(target)}\b"
        assert re.search(pair, done.stdout), f"{source} -> {target} was not found"


def test_a_module_without_a_layer_is_found(copy: Path) -> None:
    (copy / "src" / "ponder" / "elsewhere.py").write_text('"""Nowhere in the layers."""\n')
    done = lint_imports(copy)
    assert done.returncode == 1
    assert "elsewhere" in done.stdout


# ---------------------------------------------------------------- versions


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def required(name: str) -> set[str]:
    """The names of everything that the installed distribution `name` needs here, itself included."""
    found: set[str] = set()
    todo = [(canonicalize_name(name), frozenset[str]())]
    done: set[tuple[str, frozenset[str]]] = set()
    while todo:
        each = todo.pop()
        if each in done:
            continue
        done.add(each)
        found.add(each[0])
        for line in importlib.metadata.requires(each[0]) or ():
            requirement = Requirement(line)
            extras = each[1] or {""}
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def test_every_package_is_pinned() -> None:
    pinned = pins()
    asked = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
    asked += [Requirement(line) for line in PYPROJECT["dependency-groups"]["dev"]]
    asked += [Requirement(line) for line in PYPROJECT["build-system"]["requires"]]
    for requirement in asked:
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"
    building = {canonicalize_name(Requirement(line).name) for line in PYPROJECT["build-system"]["requires"]}
    names = {canonicalize_name(requirement.name) for requirement in asked} - building
    needed = set().union(*map(required, names))
    assert needed - set(pinned) == set(), "not in constraints.txt"


def test_training_is_an_extra() -> None:
    """Nothing that ponder itself needs brings torch along."""
    needed = set().union(*(required(Requirement(line).name) for line in PYPROJECT["project"]["dependencies"]))
    assert {"torch", "transformers", "peft", "tensorboard"} & needed == set()
    extra = {Requirement(line).name for line in PYPROJECT["project"]["optional-dependencies"]["train"]}
    assert {"torch", "transformers", "peft"} <= extra


# ---------------------------------------------------------------- what is installed


def test_the_package_has_its_data() -> None:
    from ponder.engine.catalogue import INTERIM_ADAPTER

    folder = Path(ponder.__path__[0])
    assert (folder / "py.typed").is_file()
    assert INTERIM_ADAPTER.path.stat().st_size == INTERIM_ADAPTER.size
    assert (INTERIM_ADAPTER.path.parent / "MODEL_CARD.md").is_file()


def test_the_version_is_said_once() -> None:
    done = subprocess.run([SCRIPTS / "ponder", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ponder {ponder.__version__}\n"
    assert importlib.metadata.version("ponder") == ponder.__version__


# ---------------------------------------------------------------- how it is checked


def test_the_checks_of_a_change_are_the_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    assert script.read_text(encoding="utf-8").splitlines()[-1] == "make test"


def test_make_runs_every_check() -> None:
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    steps = ["ruff check", "ruff format --check", "mypy", "lint-imports", "cli_docs.py --check", "include_examples.py"]
    places = [done.stdout.index(step) for step in [*steps, "pytest"]]
    assert places == sorted(places), "pytest comes last, so that its summary does"
    assert "pytest" in done.stdout.splitlines()[-1]


def test_what_the_tests_reach_has_a_bound() -> None:
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "coverage"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--cov-fail-under=90" in done.stdout.splitlines()[-1]


def test_the_hooks_are_the_checks_of_make() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    subprocess.run([SCRIPTS / "pre-commit", "validate-config", ROOT / ".pre-commit-config.yaml"], check=True)
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    for tool in ("ruff check", "ruff format", "mypy", "lint-imports"):
        assert any(entry.startswith(f".venv/bin/{tool}") for entry in entries)
        assert f".venv/bin/{tool}" in makefile


CHILDREN = """
import subprocess, sys
child = [sys.executable, "-c"]
subprocess.run([*child, "import os, ponder.paths; ponder.paths.home(); os._exit(0)"], check=True)
killed = subprocess.Popen([*child, "import ponder.errors; print(flush=True); input()"], stdin=-1, stdout=-1)
killed.stdout.readline()
killed.kill()
killed.communicate()
subprocess.run([*child, "import ponder.protocols"], check=True)
"""


@pytest.mark.slow
def test_children_are_measured(tmp_path: Path) -> None:
    """What runs in a process of its own counts, also where it ends by os._exit; one that is killed does no harm."""
    settings = {"COVERAGE_RCFILE": str(ROOT / "pyproject.toml"), "COVERAGE_FILE": str(tmp_path / ".coverage")}
    environment = UNMEASURED | settings
    (tmp_path / "parent.py").write_text(CHILDREN)

    def coverage(*words: str) -> str:
        command = [sys.executable, "-m", "coverage", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    coverage("run", "parent.py")
    coverage("combine")
    files = json.loads(coverage("json", "-o", "-"))["files"]
    lines = {Path(name).name: each["executed_lines"] for name, each in files.items()}
    source = Path(ponder.__path__[0], "paths.py").read_text(encoding="utf-8").splitlines()
    assert source.index('    chosen = os.environ.get("PONDER_HOME")') + 1 in lines["paths.py"]
    assert lines["protocols.py"]
    assert "errors.py" not in lines or not lines["errors.py"]

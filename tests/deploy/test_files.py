"""The files of deploy/: they parse, and what they run is there."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ponder.cli import app
from ponder.server.endpoints import Endpoints
from ponder.server.openai_wire import Wire
from ponder.server.signatures import Signer

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def options() -> set[str]:
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    return set(re.findall(r"(--[\w-]+)", shown)) | set(re.findall(r"\s(-\w)\s", shown))


def commands() -> dict[str, list[str]]:
    """What each file runs, after `ponder`."""
    docker = (DEPLOY / "Dockerfile").read_text("utf-8")
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(DEPLOY / "ponder.service", "utf-8")
    found = re.search(r"^CMD (\[.*\])$", docker, re.MULTILINE)
    assert found is not None
    return {
        "Dockerfile": json.loads(found[1]),
        "compose.yaml": compose["services"]["ponder"]["command"],
        "ponder.service": shlex.split(unit["Service"]["ExecStart"])[1:],
        "kubernetes.yaml": container()["args"],
    }


def container() -> Any:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")))
    deployment = next(each for each in documents if each["kind"] == "Deployment")
    return deployment["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("file", ["Dockerfile", "compose.yaml", "ponder.service", "kubernetes.yaml"])
def test_the_command_exists_with_its_options(file: str) -> None:
    command = commands()[file]
    assert command[0] == "serve"
    assert {each for each in command if each.startswith("-") and each != "-"} <= options()
    beyond = "0.0.0.0" in command
    assert not beyond or "--keys" in command, "a server that others can reach asks for keys"


def test_the_probes_are_paths_that_need_no_key() -> None:
    routes = {
        route.path: route
        for route in Endpoints(None, Wire(), Signer(b"x" * 32)).routes()  # type: ignore[arg-type]
    }
    probes = [container()[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert all(routes[path].open for path in probes)
    assert routes["/metrics"].open


def test_the_grace_of_each_is_longer_than_the_drain() -> None:
    arguments = container()["args"]
    drain = float(arguments[arguments.index("--drain") + 1])
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8"))
    pod = next(each for each in documents if each["kind"] == "Deployment")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > drain + 5


def test_the_image_runs_without_rights_and_pins_what_it_installs() -> None:
    lines = (DEPLOY / "Dockerfile").read_text("utf-8").splitlines()
    assert "USER 10001" in lines
    assert any("-c constraints.txt" in line for line in lines)
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 10001"

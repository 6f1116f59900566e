"""OpenAI's JavaScript client against the server, where node is there and the package can be had."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from service import answers, scripted, service

CALLS = "".join(
    f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>' for city in ("Köln", "Rom")
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("node")
    if npm is None or shutil.which("node") is None:
        pytest.skip("there is no node here")
    done = subprocess.run([npm, "install", "openai"], cwd=folder, capture_output=True, text=True, timeout=100)
    if done.returncode:
        pytest.skip(f"the package cannot be had: {done.stderr[-200:]}")
    return folder


@pytest.mark.slow
def test_the_javascript_client(package: Path) -> None:
    script = shutil.copy(Path(__file__).with_name("conformance.mjs"), package)
    models = [answers({"weather": CALLS, "long": "word " * 2000}), scripted("4", "org/plain")]
    with service(lambda: models) as server:
        told = subprocess.run(["node", script, server.url], cwd=package, capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stdout.strip()) == (0, "conforms"), told.stderr
